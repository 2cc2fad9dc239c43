"""What every executor promises about a run: all tasks, in bounded memory, and the work's own errors."""

import gc
import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cloudpickle
import psutil
import pytest

from bdflow.cluster import ClusterError, Completed, Executor, Resources, open_executor

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TWO = Resources(workers=2)


class Square:
    def __init__(self, log: Path | None = None) -> None:
        if log is not None:
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")

    def __call__(self, task: int) -> int:
        return task * task


class PhasedSquare:
    def prepare(self, task: int) -> int:
        return task

    def work(self, inputs: int) -> int:
        return inputs * inputs

    def finish(self, task: int, made: int) -> int:
        return made


class Odd(ValueError):
    """An exception that cannot be made from its `args`."""

    def __init__(self, where: str, *, task: int) -> None:
        super().__init__(f"{where} does not like {task}")
        self.where, self.task = where, task


class Picky:
    def __init__(self, log: Path, tired: bool = False) -> None:
        self.log = log
        if tired:
            raise Odd("make_worker", task=-1)

    def __call__(self, task: int) -> int:
        with self.log.open("a") as file:
            file.write(f"{task}\n")
        if task == 7:
            raise Odd("the task", task=task)
        return task


class Lazily(Sequence):
    """Knows how far ahead of the completed tasks it was read."""

    def __init__(self, total: int) -> None:
        self.total, self.fetched, self.done, self.ahead = total, 0, 0, 0

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        self.fetched += 1
        self.ahead = max(self.ahead, self.fetched - self.done)
        return index

    def completed(self, _: Completed) -> None:
        self.done += 1


def test_every_task_is_done_once(executor: Executor, tmp_path: Path) -> None:
    done: list[Completed] = []
    executor.run(partial(Square, tmp_path / "made"), range(50), resources=TWO, on_done=done.append)
    assert sorted((c.index, c.result) for c in done) == [(i, i * i) for i in range(50)]
    assert all(c.attempts == 1 and c.seconds >= 0 and ":" in c.worker for c in done)
    made = (tmp_path / "made").read_text().split()
    assert len(made) == len(set(made)), "make_worker is called once in a process"
    assert {c.worker.split(":")[1] for c in done} <= set(made)
    assert len(made) == 1 or executor.name != "serial"


def test_a_run_without_on_done_and_one_without_tasks(executor: Executor, tmp_path: Path) -> None:
    executor.run(Square, [1, 2, 3])
    executor.run(partial(Square, tmp_path / "made"), [])
    assert not (tmp_path / "made").exists()


def test_serial_keeps_the_order_and_the_process(opened: dict[str, Executor]) -> None:
    done: list[Completed] = []
    opened["serial"].run(Square, range(9), on_done=done.append)
    assert [c.index for c in done] == list(range(9))
    assert {c.worker.split(":")[1] for c in done} == {str(os.getpid())}


def test_no_more_than_two_a_worker_in_flight(executor: Executor) -> None:
    tasks = Lazily(300)
    executor.run(Square, tasks, resources=TWO, on_done=tasks.completed)
    assert tasks.done == tasks.fetched == 300
    assert tasks.ahead <= (1 if executor.name == "serial" else 4)


@pytest.mark.slow(kind="memory of the driver")
def test_memory_of_the_driver_is_flat(opened: dict[str, Executor]) -> None:
    for kind, total in (("serial", 20_000), ("ray", 10_000)):
        _assert_flat(kind, _sizes(opened[kind], total))


# Alone in its process: in one of 600 MiB the garbage of the tests before is the larger part of what is seen.
@pytest.mark.slow(kind="memory of the driver")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "total", "worker", "most"),
    [("serial", 100_000, "Square", 10), ("ray", 30_000, "PhasedSquare", 3), ("dask", 20_000, "PhasedSquare", 10)],
)
def test_memory_of_the_driver_is_flat_over_many_tasks(kind: str, total: int, worker: str, most: float) -> None:
    driver = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_run; test_run.drive()"
    told = subprocess.run([sys.executable, "-c", driver, kind, str(total), worker], stdout=subprocess.PIPE, check=True)
    _assert_flat(kind, json.loads(told.stdout.splitlines()[-1]), most)


def drive() -> None:
    """Print what the memory of this process was during a run, in MiB."""
    kind, total, worker = sys.argv[1:]
    with open_executor(kind, total=Resources(workers=2, threads=2, memory=8 * 2**30), start_timeout=60) as executor:
        print(json.dumps(_sizes(executor, int(total), globals()[worker])))


def _sizes(executor: Executor, total: int, worker: type = Square) -> list[float]:
    sizes = []
    tasks = Lazily(total)

    def look(done: Completed) -> None:
        tasks.completed(done)
        if tasks.done % (total // 20) == 0:
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss / 2**20)

    executor.run(worker, tasks, resources=TWO, on_done=look)
    assert tasks.done == total
    return sizes


def _assert_flat(kind: str, sizes: list[float], most: float = 10) -> None:
    """That from 25-45 % of the tasks to the last fifth of them the driver has grown by less than `most` MiB."""
    # Dask keeps 0.4 KiB of each of its last 100,000 tasks: the cache of the names it made of their keys.
    early, late = max(sizes[4:9]), max(sizes[-5:])
    assert late - early < most, f"{kind}: driver grew from {early:.0f} to {late:.0f} MiB: {sizes}"


def test_an_exception_of_a_task_comes_back_as_itself(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(Odd) as caught:
        executor.run(partial(Picky, tmp_path / "log"), range(1000), resources=TWO)
    assert (caught.value.where, caught.value.task) == ("the task", 7)
    assert str(caught.value) == "the task does not like 7"
    told = "".join(traceback.format_exception(caught.value))
    assert 'raise Odd("the task", task=task)' in told or "in __call__" in told
    if executor.name != "serial":
        assert "in task 7" in told
    tasks = [int(line) for line in (tmp_path / "log").read_text().split()]
    assert tasks.count(7) == 1, "an exception is not tried again"
    assert max(tasks) < 50, "nothing is submitted after it"
    executor.run(Square, range(4), resources=TWO)


def test_an_exception_of_make_worker_comes_back_as_itself(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(Odd) as caught:
        executor.run(partial(Picky, tmp_path / "log", tired=True), range(9), resources=TWO)
    assert caught.value.task == -1
    assert not (tmp_path / "log").exists()
    executor.run(Square, range(4), resources=TWO)


class Tangled(Exception):
    def __init__(self) -> None:
        super().__init__("tangled")
        self.handle = (line for line in "")


def test_an_exception_that_cannot_travel_is_named(remote: Executor) -> None:
    def fail(task: int) -> int:
        raise Tangled

    with pytest.raises(ClusterError, match=r"Tangled(.|\n)*cannot be pickled") as caught:
        remote.run(lambda: fail, range(3))
    assert "raise Tangled" in "".join(caught.value.__notes__) or "in fail" in "".join(caught.value.__notes__)


def test_an_error_in_on_done_ends_the_run(executor: Executor) -> None:
    def full(done: Completed) -> None:
        raise OSError(28, "disk full")

    with pytest.raises(OSError, match="disk full"):
        executor.run(Square, range(100), resources=TWO, on_done=full)
    executor.run(Square, range(4), resources=TWO)


def test_work_that_cannot_travel_is_refused(remote: Executor) -> None:
    generator = (x for x in range(3))
    with pytest.raises(ClusterError, match=r"cannot be pickled.*\n.*functools\.partial"):
        remote.run(lambda: lambda task: next(generator), range(3))


class Heavy:
    def __init__(self, size: int) -> None:
        self.block = bytearray(os.urandom(1024) * (size // 1024))

    def __call__(self, task: int) -> int:
        return psutil.Process().memory_info().rss


def test_the_worker_object_is_freed_when_the_run_ends(opened: dict[str, Executor]) -> None:
    done: list[Completed] = []
    dask = opened["dask"]
    dask.run(partial(Heavy, 300 * 2**20), range(4), resources=TWO, on_done=done.append)
    held = {c.worker: c.result for c in done}
    dask.run(partial(Heavy, 1024), range(8), resources=TWO, on_done=done.append)
    after = {c.worker: c.result for c in done}
    assert all(size > 300 * 2**20 for size in held.values())
    assert all(after[worker] < 250 * 2**20 for worker in held), "the same processes, without the block"


def test_processes_are_reused_while_resources_stay_the_same() -> None:
    with open_executor("dask") as dask:
        seen = []
        for resources in (TWO, TWO, Resources(workers=1)):
            workers: set[str] = set()
            dask.run(Square, range(20), resources=resources, on_done=lambda c, w=workers: w.add(c.worker))
            seen.append(workers)
    assert seen[0] == seen[1]
    assert len(seen[2]) == 1
    assert not seen[2] & seen[0]


def test_errors_and_completed_travel() -> None:
    from bdflow.cluster import WorkerLost

    lost = WorkerLost(3, 2, "gone", "the log")
    back = pickle.loads(pickle.dumps(lost))
    assert (back.index, back.attempts, str(back)) == (3, 2, str(lost))
    done = Completed(1, "x", 0.5, "host:1", 1)
    assert pickle.loads(pickle.dumps(done)) == done


def test_the_package_is_light() -> None:
    import subprocess

    code = "import sys, cluster; print(sorted({'ray', 'distributed', 'torch', 'numpy', 'rich'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
