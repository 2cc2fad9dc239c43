"""Faults of disks, files and clocks, and two runs at once, in every stage: the run ends in the undisturbed bytes."""

import os
import random

import pytest

from tests.conftest import snapshot
from tests.support.faults import PLACES, Ground, full_disk

CASES = [
    pytest.param(fault, stage, id=f"{fault.__name__}-{stage}", marks=pytest.mark.integration(kind=name))
    for name, (fault, stages) in PLACES.items()
    for stage in stages
]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("fault", "stage"), CASES)
def test_the_same_bytes_after(fault, stage, settings, undisturbed, tmp_path):
    assert fault is not full_disk or os.geteuid() == 0, "only root mounts a small file system"
    fault(Ground(tmp_path, settings, snapshot(undisturbed), random.Random(stage)), stage)
