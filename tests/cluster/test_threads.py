"""Threads a worker: what libraries see, and the same bytes from every executor."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import FrameType

import cloudpickle
import numpy as np
import pytest
import threadpoolctl
from distributed import LocalCluster, Worker

from bdflow.cluster import Completed, Executor, Resources, open_executor, ray_session
from bdflow.cluster.clusters.local import UNWATCHED
from bdflow.cluster.clusters.slurm import spawn_variables
from bdflow.cluster.ray_session import NICENESS, environment_of_ray
from bdflow.cluster.threads import VARIABLES, limited

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Look:
    """What a worker finds, with torch loaded by it."""

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def __call__(self, task: int) -> tuple[dict[str, str], set[int], int]:
        pools = {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
        return {name: os.environ[name] for name in VARIABLES}, pools, self.torch.get_num_threads()


def test_libraries_see_the_limit(executor: Executor) -> None:
    threads = 2
    done: list[Completed] = []
    executor.run(Look, range(2), resources=Resources(threads=threads), on_done=done.append)
    for variables, pools, torch_threads in (c.result for c in done):
        assert set(variables.values()) == {str(threads)}
        assert pools == {threads}
        assert torch_threads == threads


def test_workers_are_as_important_as_their_driver(executor: Executor) -> None:
    """Ray's own 15 would leave them 36 of 1,060 parts of a core that one other process of this user wants."""
    done: list[Completed] = []
    executor.run(lambda: lambda task: os.nice(0), range(2), on_done=done.append)
    assert [c.result for c in done] == [os.nice(0)] * 2


@pytest.fixture(scope="module")
def theirs() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=1, threads_per_worker=3, dashboard_address="127.0.0.1:0", silence_logs=50) as theirs:
        yield theirs


def frames_asked_for(task: int) -> int:
    """How often anything in this process asks for the frames of all its threads, in 0.3 s of a task."""
    asked, frames = 0, sys._current_frames

    def counted() -> dict[int, FrameType]:
        nonlocal asked
        asked += 1
        return frames()

    sys._current_frames = counted
    try:
        time.sleep(0.3)
    finally:
        sys._current_frames = frames
    return asked


def test_nothing_asks_for_the_frames_of_all_threads_in_a_worker(executor: Executor) -> None:
    """Dask's profiler does, every 10 ms; up to Python 3.11.8 the process may then stop for ever."""
    done: list[Completed] = []
    executor.run(lambda: frames_asked_for, range(2), on_done=done.append)
    assert [c.result for c in done] == [0, 0]


@pytest.mark.parametrize(("fixed", "least", "most"), [((3,), 3, 100), ((9,), 0, 0)])
def test_the_profiler_of_workers_of_others_ends_where_it_may_stop_them(monkeypatch, theirs, fixed, least, most) -> None:
    monkeypatch.setattr("bdflow.cluster.executors.dask.PROFILED", ((0,), fixed))
    done: list[Completed] = []
    with open_executor("dask", address=theirs.scheduler_address) as dask:
        dask.run(lambda: frames_asked_for, [0], on_done=done.append)
    assert least <= done[0].result <= most


def looks_a_second(dask_worker: Worker) -> dict[str, float]:
    """How often a worker looks at its event loop and at its process, beside the work."""
    callbacks = dask_worker.periodic_callbacks
    return {name: 1000 / callbacks[name].callback_time for name in ("tick", "monitor")}


def test_own_workers_of_dask_seldom_look_at_themselves() -> None:
    """By default they do so 52 times a second, which costs a node of two cores 6% of both."""
    with open_executor("dask") as dask:
        dask.run(lambda: abs, [1])
        own = dask._own
        of_all = [*own.client.run(looks_a_second).values(), looks_a_second(own.cluster.scheduler)]
        of_all += [looks_a_second(nanny) for nanny in own.cluster.workers.values()]
    assert len(of_all) == 3
    for found in of_all:
        assert found == {"tick": 1, "monitor": 0.2}


def test_workers_in_jobs_of_slurm_find_the_same_settings() -> None:
    import dask

    found = dask.config.collect_env(spawn_variables(1))
    for name, value in UNWATCHED.items():
        assert dask.config.get(name, config=found) == value


@pytest.mark.parametrize(("user", "of_nodes"), [(None, "0"), ("7", "7")])
def test_what_the_user_says_of_priority_stays(monkeypatch, user: str | None, of_nodes: str) -> None:
    monkeypatch.delenv(NICENESS, raising=False)
    monkeypatch.setattr(ray_session, "ray_forgets", lambda: None)  # the token of the Ray that other tests share
    if user is not None:
        monkeypatch.setenv(NICENESS, user)
    with environment_of_ray(own=True) as nodes:
        assert os.environ[NICENESS] == nodes[NICENESS] == of_nodes
    assert os.environ.get(NICENESS) == user
    with environment_of_ray(own=False) as nodes:
        assert os.environ.get(NICENESS) == user, "a cluster of others has its own"
        assert not nodes


def test_the_driver_gets_its_threads_back(opened: dict[str, Executor]) -> None:
    import torch

    before = os.environ.copy(), threadpoolctl.threadpool_info(), torch.get_num_threads()
    for threads in (1, 3):
        with limited(threads):
            assert torch.get_num_threads() == threads
        with pytest.raises(KeyError):
            opened["serial"].run(lambda: {}.__getitem__, [1], resources=Resources(threads=threads))
        after = os.environ.copy(), threadpoolctl.threadpool_info(), torch.get_num_threads()
        assert after[1:] == before[1:]
        assert after[0] == before[0]


class Arithmetic:
    """Sums whose last bits depend on how they are split: a product of matrices and a convolution."""

    def __init__(self) -> None:
        import torch

        torch.manual_seed(0)
        self.torch = torch
        self.net = torch.nn.Sequential(torch.nn.Conv2d(3, 24, 3), torch.nn.GELU(), torch.nn.Conv2d(24, 8, 5))

    def __call__(self, task: int) -> str:
        rng = np.random.default_rng(task)
        a = rng.standard_normal((301, 517), np.float32)
        product = a @ rng.standard_normal((517, 203), np.float32)
        images = self.torch.from_numpy(rng.standard_normal((2, 3, 67, 67), np.float32))
        with self.torch.no_grad():
            painted = self.net(images).numpy()
        return hashlib.sha256(product.tobytes() + painted.tobytes()).hexdigest()


@pytest.mark.slow(kind="executors")
def test_the_same_bytes_everywhere(opened: dict[str, Executor]) -> None:
    seen: dict[str, list[str]] = {}
    for kind, workers in (("serial", 1), ("dask", 3), ("ray", 2)):
        done: list[Completed] = []
        opened[kind].run(Arithmetic, range(6), resources=Resources(workers=workers), on_done=done.append)
        seen[kind] = [c.result for c in sorted(done, key=lambda c: c.index)]
    assert len({tuple(hashes) for hashes in seen.values()}) == 1, seen


@pytest.mark.slow(kind="executors")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bytes_with_one_two_and_three_workers(opened: dict[str, Executor], threads: int) -> None:
    hashes = set()
    for kind in opened:
        for workers in (1, 2, 3):
            done: list[Completed] = []
            resources = Resources(workers=workers, threads=threads)
            opened[kind].run(Arithmetic, range(8), resources=resources, on_done=done.append)
            hashes.add(tuple(c.result for c in sorted(done, key=lambda c: c.index)))
    assert len(hashes) == 1


TRIMMED = """
import os, sys
from bdflow.cluster import open_executor

def variable(task):
    return os.environ.get("MALLOC_TRIM_THRESHOLD_")

if __name__ == "__main__":
    found = []
    with open_executor(sys.argv[1]) as executor:
        executor.run(lambda: variable, range(2), on_done=lambda done: found.append(done.result))
    print(*found, variable(0))
"""


@pytest.mark.parametrize(
    ("kind", "value", "seen"),
    [
        ("dask", None, None),
        ("dask", "65536", None),
        ("dask", "1000000", "1000000"),
        pytest.param("ray", "65536", None, marks=pytest.mark.slow(kind="executors")),
    ],
)
def test_workers_keep_memory_they_will_need_again(kind: str, value: str | None, seen: str | None, tmp_path) -> None:
    """Dask's MALLOC_TRIM_THRESHOLD_ costs half the speed of a network. Any nanny of a process leaves it behind."""
    script = tmp_path / "trimmed.py"
    script.write_text(TRIMMED)
    inherited = {name: text for name, text in os.environ.items() if name != "MALLOC_TRIM_THRESHOLD_"}
    mine = {"MALLOC_TRIM_THRESHOLD_": value} if value else {}
    run = subprocess.run(
        [sys.executable, script, kind], env=inherited | mine, capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout.split() == [str(seen), str(seen), str(value)]
