"""What a task costs: bytes through files, memory at its highest, for itself and not for those before it."""

from functools import partial
from pathlib import Path

import numpy as np

from bdflow.cluster import Completed, Executor
from bdflow.cluster.usage import UsageMeter

MIB = 2**20


class Wasteful:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, mib: int) -> int:
        block = np.ones(mib * MIB, "u1")
        (self.folder / str(mib)).write_bytes(block.tobytes()[: 3 * MIB])
        return len((self.folder / str(mib)).read_bytes())


def test_every_executor_tells_what_tasks_used(executor: Executor, tmp_path: Path) -> None:
    done: list[Completed] = []
    executor.run(partial(Wasteful, tmp_path), [400, 10], on_done=done.append)
    used = {c.index: c.used for c in done}
    for one in used.values():
        assert 3 * MIB <= one.written < 4 * MIB
        assert 3 * MIB <= one.read < 8 * MIB
    assert used[0].peak > used[1].peak + 300 * MIB


def test_a_meter_begins_anew() -> None:
    np.ones(300 * MIB, "u1").sum()
    meter = UsageMeter()
    assert meter.read().written < 1000
    assert meter.read().peak < UsageMeter().read().peak + 50 * MIB
