"""Every fault once: the run ends, and its bytes are those of an undisturbed one."""

import os
import random

import pytest

from tests.conftest import execution, snapshot
from tests.faults import FAULTS, Ground, full_disk, lost_dask_node, lost_ray_node

NODES = (lost_dask_node, lost_ray_node)
CASES = [  # nodes in every stage, other faults in one; benchmarks/faults.py tries them in all
    pytest.param(fault, stage, id=f"{fault.__name__}-{stage}")
    for fault, stages in FAULTS.values()
    for stage in (stages if fault in NODES else ("features",))
]


@pytest.fixture(scope="module")
def expected(settings, tmp_path_factory):
    ground = Ground(tmp_path_factory.mktemp("undisturbed"), settings, {}, random.Random(0))
    ground.configure(execution=execution("serial"))
    ground.run()
    return snapshot(ground.study)


@pytest.mark.siege
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("fault", "stage"), CASES)
def test_the_same_bytes_after(fault, stage, settings, expected, tmp_path):
    assert fault is not full_disk or os.geteuid() == 0, "only root mounts a small file system"
    fault(Ground(tmp_path, settings, expected, random.Random(stage)), stage)
