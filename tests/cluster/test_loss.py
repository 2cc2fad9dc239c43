"""Workers that die, really: their tasks are done by others, or the error names the task that kills."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cloudpickle
import psutil
import pytest

from bdflow.cluster import ClusterError, Completed, Executor, Resources, WorkerLost, open_executor

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TWO = Resources(workers=2)


class Mortal:
    """Dies over some tasks, the first `times` times each; counts the beginnings in files."""

    def __init__(self, folder: Path, deadly: tuple[int, ...], times: int, pause: float = 0.0) -> None:
        self.folder, self.deadly, self.times, self.pause = folder, deadly, times, pause

    def __call__(self, task: int) -> int:
        with (self.folder / str(task)).open("a") as file:
            file.write("x")
        time.sleep(self.pause)
        if task in self.deadly and (self.folder / str(task)).stat().st_size <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return task + 100


def begun(folder: Path) -> dict[int, int]:
    return {int(file.name): file.stat().st_size for file in folder.iterdir()}


def test_tasks_of_a_dead_worker_are_done_again(remote: Executor, tmp_path: Path) -> None:
    done: list[Completed] = []
    work = partial(Mortal, tmp_path, (5, 20), 1)
    remote.run(work, range(40), resources=TWO, on_done=done.append)
    assert sorted((c.index, c.result) for c in done) == [(i, i + 100) for i in range(40)]
    again = {c.index for c in done if c.attempts > 1}
    assert {5, 20} <= again
    assert len(again) <= 4, "the killers, and what was queued with them"
    assert max(c.attempts for c in done) == 2
    assert {task for task, times in begun(tmp_path).items() if times > 1} <= again
    assert len({c.worker for c in done}) >= 2


def test_a_task_that_always_kills_is_named(remote: Executor, tmp_path: Path) -> None:
    with pytest.raises(WorkerLost) as caught:
        remote.run(partial(Mortal, tmp_path, (11,), 99), range(30), resources=TWO)
    assert (caught.value.index, caught.value.attempts) == (11, 3)
    for words in ("task 11", "3 times", "memory", "What to do: look at"):
        assert words in str(caught.value)
    assert begun(tmp_path)[11] == 3
    remote.run(partial(Mortal, tmp_path, (), 0), range(4), resources=TWO)


def test_one_attempt_only(tmp_path: Path) -> None:
    with (
        open_executor("dask", attempts=1) as dask,
        pytest.raises(WorkerLost, match="task 2: found that it died 1 time in a row"),
    ):
        dask.run(partial(Mortal, tmp_path, (2,), 99), range(9))


def die_at_start() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_die_while_they_start(remote: Executor) -> None:
    with pytest.raises(WorkerLost, match="died 3 times in a row while it started") as caught:
        remote.run(die_at_start, range(3), resources=TWO)  # type: ignore[arg-type]
    assert caught.value.index is None


def test_an_idle_worker_killed_from_outside_is_replaced(remote: Executor, tmp_path: Path) -> None:
    work = partial(Mortal, tmp_path, (), 0, 0.2)
    killed: list[int] = []

    def kill_other(done: Completed) -> None:
        if done.index == 3:
            pid = int(done.worker.split(":")[1])
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    done: list[Completed] = []
    remote.run(work, range(14), resources=TWO, on_done=lambda c: (done.append(c), kill_other(c))[0])
    assert sorted(c.index for c in done) == list(range(14))
    assert not psutil.pid_exists(killed[0]) or psutil.Process(killed[0]).status() == psutil.STATUS_ZOMBIE


class Greedy:
    def __call__(self, task: int) -> int:
        if task == 1:
            block = bytearray(os.urandom(1024) * (600 * 2**10))
            time.sleep(20)
            return len(block)
        return task


def test_dask_holds_the_memory_limit() -> None:
    with open_executor("dask") as dask, pytest.raises(WorkerLost, match="task 1:"):
        dask.run(Greedy, range(3), resources=Resources(memory=400 * 2**20))


def test_a_dask_address(tmp_path: Path) -> None:
    from distributed import LocalCluster

    quiet = {"dashboard_address": "127.0.0.1:0", "silence_logs": 50}
    with LocalCluster(n_workers=2, threads_per_worker=2, processes=True, **quiet) as theirs:
        address = theirs.scheduler_address
        done: list[Completed] = []
        with open_executor("dask", address=address) as dask:
            work = partial(Mortal, tmp_path, (5,), 1, 0.02)
            dask.run(work, range(40), on_done=done.append)
            with pytest.raises(ClusterError, match=r"found \d on the Dask worker .* asked for: 2 GPUs a worker"):
                dask.run(work, range(40), resources=Resources(gpus=2))
            with pytest.raises(ClusterError, match=r"found .*; expected what is asked for: .* GiB a worker"):
                dask.run(work, range(40), resources=Resources(memory=2**50))
        assert sorted(c.index for c in done) == list(range(40))
        assert 5 in [c.index for c in done if c.attempts > 1]
        assert len(theirs.workers) == 2, "the workers at an address are left as they were"
    with pytest.raises(ClusterError, match="found no answer within 1 s"):
        open_executor("dask", address=address, start_timeout=1).run(Greedy, range(3))


def test_a_dask_address_without_workers() -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", silence_logs=50) as theirs:
        dask = open_executor("dask", address=theirs.scheduler_address, start_timeout=2)
        with dask, pytest.raises(ClusterError, match=r"Dask's scheduler at .*: found no worker for 2 s"):
            dask.run(Greedy, range(3))


NODES = """
import os, signal, sys, time
import ray
from ray.cluster_utils import Cluster
from bdflow.cluster import ClusterError, Resources, open_executor

class Slow:
    def __call__(self, task):
        time.sleep(0.05)
        return task

if __name__ == "__main__":
    small = dict(object_store_memory=100 * 2**20, include_dashboard=False)
    nodes = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, **small))
    second = nodes.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    lost = False
    with open_executor("ray", address=nodes.address, start_timeout=20) as executor:
        for ask in (Resources(workers=3), Resources(workers=2, gpus=1)):
            try:
                executor.run(Slow, range(9), resources=ask)
            except ClusterError as error:
                print(str(error).splitlines()[0])
        done = []
        def see(c):
            global lost
            done.append(c)
            if len(done) == 20 and not lost:
                lost = True
                nodes.remove_node(second, allow_graceful=False)
        executor.run(Slow, range(80), resources=Resources(workers=2), on_done=see)
        print(sorted(c.index for c in done) == list(range(80)), max(c.attempts for c in done))
        while sum(node["Alive"] for node in ray.nodes()) > 1:
            time.sleep(0.1)
        again = []
        executor.run(Slow, range(9), resources=Resources(workers=2), on_done=again.append)
        print("with one node", sorted(c.index for c in again) == list(range(9)), len({c.worker for c in again}))
    nodes.shutdown()
"""


@pytest.mark.slow(kind="Ray node lost (raylet and actor)")
def test_a_ray_address_loses_a_node(tmp_path: Path) -> None:
    script = tmp_path / "nodes.py"
    script.write_text(NODES)
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "raylet" not in line]
    text = "\n".join(lines)
    assert "2 CPUs on 2 nodes (enough for 2 such workers); expected what is asked for: 3 workers x 1 CPU." in text
    assert "0 GPUs (enough for 0 such workers); expected what is asked for: 2 workers x 1 GPU = 2 GPUs." in text
    assert "True 2" in lines or "True 1" in lines
    assert "with one node True 1" in lines, "what was granted once goes on with the nodes that are left"


@pytest.mark.slow(kind="many kills in one run")
@pytest.mark.timeout(600)
def test_many_kills_in_one_run(remote: Executor, tmp_path: Path) -> None:
    deadly = tuple(range(0, 400, 8))
    done: list[Completed] = []
    work = partial(Mortal, tmp_path, deadly, 1)
    remote.run(work, range(400), resources=Resources(workers=3), on_done=done.append)
    assert sorted((c.index, c.result) for c in done) == [(i, i + 100) for i in range(400)]
    assert {c.index for c in done if c.attempts == 2} >= set(deadly)
    assert max(c.attempts for c in done) <= 3
