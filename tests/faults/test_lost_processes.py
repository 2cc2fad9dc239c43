"""Processes that die. Each in every stage: the run ends, and its bytes are those of an undisturbed one."""

import random

import pytest

from tests.conftest import snapshot
from tests.support.faults import PROCESSES, Ground

CASES = [
    pytest.param(fault, stage, id=f"{fault.__name__}-{stage}", marks=pytest.mark.integration(kind=name))
    for name, (fault, stages) in PROCESSES.items()
    for stage in stages
]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("fault", "stage"), CASES)
def test_the_same_bytes_after(fault, stage, settings, undisturbed, tmp_path):
    fault(Ground(tmp_path, settings, snapshot(undisturbed), random.Random(stage)), stage)
