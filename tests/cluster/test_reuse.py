"""Worker processes of Ray that outlive a run: who is kept, who is not, and that nothing of the run before is left."""

import gc
import os
import signal
import sys
import time
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import cloudpickle
import psutil
import pytest

from bdflow.cluster import Completed, Executor, Resources, WorkerLost, open_executor
from bdflow.cluster.worker import WorkerProcess, give_back_memory
from bdflow.runner import Runner

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TWO = Resources(workers=2)


@pytest.fixture(scope="module")
def own() -> Iterator[Executor]:
    """An instance of Ray whose workers may die once over a task, and not at all while they start."""
    with open_executor("ray", total=Resources(4, 4, 2, 8 * 2**30), attempts=2, start_timeout=60) as ray:
        yield ray


@pytest.fixture
def ray(opened: dict[str, Executor], own: Executor) -> Executor:
    """No worker of a test before."""
    opened["ray"].close()
    own._drop_actors()  # type: ignore[attr-defined]
    return own


class Meeting:
    """Works until as many processes as are expected have begun; says which one it is, and who was alive when it was
    made.
    """

    def __init__(self, folder: Path, workers: int = 2, size: int = 0) -> None:
        kept = sys.modules.setdefault("of_this_process", ModuleType("of_this_process"))
        self.before = sum(one() is not None for one in vars(kept).setdefault("made", []))
        vars(kept)["made"].append(weakref.ref(self))
        self.folder, self.workers, self.block = folder, workers, bytearray(os.urandom(1024) * (size // 1024))

    def __call__(self, task: int) -> tuple[int, int, int, str | None]:
        (self.folder / str(os.getpid())).touch()
        until = time.monotonic() + 60
        while len(list(self.folder.iterdir())) < self.workers and time.monotonic() < until:
            time.sleep(0.02)
        return os.getpid(), self.before, psutil.Process().memory_info().rss, os.environ.get("CUDA_VISIBLE_DEVICES")


class MeetingInPhases(Meeting):
    def prepare(self, task: int) -> int:
        return task

    def work(self, inputs: int) -> tuple[int, int, int, str | None]:
        return self(inputs)

    def finish(self, task: int, made: tuple[int, int, int, str | None]) -> tuple[int, int, int, str | None]:
        return made


def meet(
    executor: Executor, folder: Path, resources: Resources = TWO, kind: type[Meeting] = Meeting, size: int = 0
) -> list[tuple[int, int, int, str | None]]:
    """What the tasks of a run say in which every worker has a part."""
    folder.mkdir()
    done: list[Completed] = []
    work = partial(kind, folder, resources.workers, size)
    executor.run(work, range(3 * resources.workers), resources=resources, on_done=done.append)
    assert sorted(c.index for c in done) == list(range(3 * resources.workers))
    assert {c.attempts for c in done} == {1}
    return [c.result for c in done]


def pids(said: list[tuple[int, int, int, str | None]]) -> set[int]:
    return {pid for pid, *_ in said}


def gone(processes: set[int]) -> bool:
    until = time.monotonic() + 20
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in processes):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow(kind="workers of Ray that are kept")
def test_a_second_run_starts_no_process_and_finds_nothing_of_the_first(ray: Executor, tmp_path: Path) -> None:
    block = 300 * 2**20
    first = meet(ray, tmp_path / "1", size=block)
    second = meet(ray, tmp_path / "2", kind=MeetingInPhases)
    third = meet(ray, tmp_path / "3")
    assert len(pids(first)) == 2
    assert pids(first) == pids(second) == pids(third)
    assert {before for _, before, *_ in (*first, *second, *third)} == {0}, "what was made before is gone by then"
    assert min(size for *_, size, _ in first) > block
    assert max(size for *_, size, _ in (*second, *third)) < block


@pytest.mark.slow(kind="workers of Ray that are kept")
def test_an_idle_worker_holds_nothing(ray: Executor, tmp_path: Path) -> None:
    held = meet(ray, tmp_path / "1", size=300 * 2**20)
    until = time.monotonic() + 20
    while any(psutil.Process(pid).memory_info().rss > 250 * 2**20 for pid in pids(held)):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow(kind="workers of Ray that are kept")
def test_as_many_are_kept_as_are_asked_for(ray: Executor, tmp_path: Path) -> None:
    three = pids(meet(ray, tmp_path / "1", Resources(workers=3)))
    done: list[Completed] = []
    ray.run(partial(Meeting, tmp_path, 1), [0], resources=Resources(workers=3), on_done=done.append)
    assert {c.result[0] for c in done} < three
    assert pids(meet(ray, tmp_path / "2", Resources(workers=3))) == three, "one task stops no worker"
    two = pids(meet(ray, tmp_path / "3", TWO))
    assert two < three
    assert gone(three - two)
    again = pids(meet(ray, tmp_path / "4", Resources(workers=3)))
    assert two < again
    assert len(again - three) == 1


@pytest.mark.slow(kind="workers of Ray that are kept")
@pytest.mark.parametrize(
    "other", [Resources(2, threads=2), Resources(2, gpus=1), Resources(2, gpus=0.5), Resources(2, memory=2**30)]
)
def test_other_resources_mean_other_processes(ray: Executor, other: Resources, tmp_path: Path) -> None:
    plain = meet(ray, tmp_path / "1")
    asked = meet(ray, tmp_path / "2", other)
    assert not pids(plain) & pids(asked)
    assert gone(pids(plain))
    assert {devices for *_, devices in plain} == {""}
    seen = {pid: devices for pid, *_, devices in asked}
    assert set(seen.values()) == ({"0", "1"} if other.gpus == 1 else {"0"} if other.gpus else {""})
    assert {pid: devices for pid, *_, devices in meet(ray, tmp_path / "3", other)} == seen, "each keeps its device"
    ray.rest()
    assert gone(pids(asked)) if other.gpus else all(map(psutil.pid_exists, pids(asked)))


@pytest.mark.slow(kind="workers of Ray that are kept")
def test_one_that_is_killed_between_two_runs_is_replaced(ray: Executor, tmp_path: Path) -> None:
    """It had no task: nothing is lost by it, whatever the attempts that are allowed."""
    first = pids(meet(ray, tmp_path / "1"))
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    second = pids(meet(ray, tmp_path / "2"))
    assert len(second) == 2
    assert not first & second
    os.kill(min(second), signal.SIGKILL)
    third = pids(meet(ray, tmp_path / "3"))
    assert len(third) == 2
    assert third & second == {max(second)}


class Mortal(Meeting):
    """Dies over task 1, the first time or always."""

    always = False

    def __call__(self, task: int) -> tuple[int, int, int, str | None]:
        died = self.folder.with_suffix(".died")
        if task == 1 and (self.always or not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(task)


class Poisoned(Mortal):
    always = True


@pytest.mark.slow(kind="workers of Ray that are kept")
def test_one_that_dies_in_a_later_run_is_replaced(ray: Executor, tmp_path: Path) -> None:
    first = pids(meet(ray, tmp_path / "1"))
    (tmp_path / "2").mkdir()
    done: list[Completed] = []
    ray.run(partial(Mortal, tmp_path / "2"), range(8), resources=TWO, on_done=done.append)
    assert sorted(c.index for c in done) == list(range(8))
    assert max(c.attempts for c in done) == 2
    second = {c.result[0] for c in done}
    third = pids(meet(ray, tmp_path / "3"))
    assert len(third) == 2
    assert len(third & first) == 1
    assert third & second, "who took its place is kept as well"


def fail(task: int) -> None:
    raise ValueError(f"task {task}")


def unmade() -> None:
    raise ValueError("cannot be made")


@pytest.mark.slow(kind="workers of Ray that are kept")
@pytest.mark.parametrize("how", ["task", "made", "poison", "on_done"])
def test_a_run_that_fails_leaves_no_process(ray: Executor, how: str, tmp_path: Path) -> None:
    first = pids(meet(ray, tmp_path / "1"))

    def full(done: Completed) -> None:
        raise OSError(28, "disk full")

    if how == "poison":
        with pytest.raises(WorkerLost, match="task 1: found that it died 2 times"):
            ray.run(partial(Poisoned, tmp_path, 1), range(8), resources=TWO)
    elif how == "on_done":
        with pytest.raises(OSError, match="disk full"):
            ray.run(partial(Meeting, tmp_path, 1), range(8), resources=TWO, on_done=full)
    else:
        with pytest.raises(ValueError, match="task 0|task 1" if how == "task" else "cannot be made"):
            ray.run(unmade if how == "made" else lambda: fail, range(8), resources=TWO)  # type: ignore[arg-type]
    assert gone(first)
    assert not pids(meet(ray, tmp_path / "2")) & first


class Late(Meeting):
    """The second process to make it takes two seconds, by when the first has done all; it may fail at last."""

    fails = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 1)
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            (folder / f"late {os.getpid()}").touch()
            time.sleep(2)
            if self.fails:
                raise ValueError("too late") from None

    def __call__(self, task: int) -> tuple[int, int, int, str | None]:
        until = time.monotonic() + 60
        while not list(self.folder.glob("late *")) and time.monotonic() < until:
            time.sleep(0.02)
        return super().__call__(task)


class LateAndFailing(Late):
    fails = True


@pytest.mark.slow(kind="workers of Ray that are kept")
@pytest.mark.parametrize("kind", [Late, LateAndFailing])
def test_one_that_still_loads_when_the_run_ends(ray: Executor, kind: type[Late], tmp_path: Path) -> None:
    """It is kept, and takes part in the next run when it is done; if it fails, another one takes its place."""
    first = pids(meet(ray, tmp_path / "1"))
    (tmp_path / "2").mkdir()
    ray.run(partial(kind, tmp_path / "2"), range(2), resources=TWO)
    late = {int(file.name[5:]) for file in (tmp_path / "2").glob("late *")}
    said = meet(ray, tmp_path / "3")
    assert late < first
    assert {before for _, before, *_ in said} == {0}
    assert len(pids(said)) == 2
    assert pids(said) & first == (first - late if kind.fails else first)


def test_a_process_forgets_before_it_makes_anew(tmp_path: Path) -> None:
    """Also where it was not told to before."""
    process = WorkerProcess()
    for kind in (Meeting, MeetingInPhases, Meeting):
        process.load(cloudpickle.dumps(partial(kind, tmp_path, 1)), 1)
        answer = cloudpickle.loads(process.call(cloudpickle.dumps(0)))
        assert answer.error is None
        assert answer.result[1] == 0
        del answer
    process.unload()
    assert type(cloudpickle.loads(process.call(cloudpickle.dumps(0))).error).__name__ == "NotLoaded"


def test_memory_of_a_gpu_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """After what is garbage has been collected. A stand-in for torch: no GPU is needed."""
    told: list[str] = []

    class Cuda:
        is_initialized = staticmethod(lambda: True)
        empty_cache = staticmethod(lambda: told.append("emptied"))

    class Ring:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            told.append("collected")

    torch = ModuleType("torch")
    vars(torch)["cuda"] = Cuda
    monkeypatch.setitem(sys.modules, "torch", torch)
    gc.collect()
    Ring()
    give_back_memory()
    assert told == ["collected", "emptied"]
    monkeypatch.delitem(sys.modules, "torch")
    give_back_memory()


@pytest.mark.parametrize(("cluster", "told"), [("local", "rest"), ("slurm", "close")])
def test_others_give_back_what_they_hold_when_one_works(cluster: str, told: str) -> None:
    runner = object.__new__(Runner)
    runner.context = SimpleNamespace(config=SimpleNamespace(cluster=SimpleNamespace(kind=cluster)))  # type: ignore[assignment]
    runner.executors = {kind: Mock(spec=Executor) for kind in ("serial", "dask", "ray")}
    assert runner._alone("dask") is runner.executors["dask"]
    calls = {kind: [name for name, *_ in executor.method_calls] for kind, executor in runner.executors.items()}  # type: ignore[attr-defined]
    assert calls == {"serial": [told], "dask": [], "ray": [told]}
