"""Workers of three phases: they overlap, in bounded number; errors, deaths and an early end are as for any worker."""

import os
import signal
import sys
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import cloudpickle
import pytest

from cluster import Completed, Executor, Resources, WorkerLost, open_executor
from cluster.line import DEPTH, Line, in_order

from .test_run import Lazily, Odd

cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(sys.modules[Lazily.__module__])
TWO = Resources(workers=2)


class Sleepy:
    """Each phase sleeps its time; the result says when each began and ended, and in which thread."""

    def __init__(self, prepare: float = 0.0, work: float = 0.0, finish: float = 0.0) -> None:
        self.pauses = {"prepare": prepare, "work": work, "finish": finish}

    def pause(self, phase: str) -> dict:
        start = time.time()
        time.sleep(self.pauses[phase])
        threads = os.environ.get("OMP_NUM_THREADS")
        return {phase: (start, time.time(), threading.get_ident(), threads)}

    def prepare(self, task: int) -> dict:
        return self.pause("prepare")

    def work(self, inputs: dict) -> dict:
        return inputs | self.pause("work")

    def finish(self, task: int, made: dict) -> dict:
        return made | self.pause("finish")


def windows(executor: Executor, make, tasks: int, resources: Resources) -> dict[str, list[dict]]:
    """Results by worker, in the order in which they were worked on."""
    done: list[Completed] = []
    executor.run(make, range(tasks), resources=resources, on_done=done.append)
    assert sorted(c.index for c in done) == list(range(tasks))
    found: dict[str, list[dict]] = {}
    for completed in done:
        found.setdefault(completed.worker, []).append(completed.result)
    return {worker: sorted(rows, key=lambda row: row["work"]) for worker, rows in found.items()}


def test_the_middle_phase_alone_sets_the_pace(executor: Executor) -> None:
    found = windows(executor, partial(Sleepy, 0.04, 0.06, 0.04), 30, Resources())
    ((_, rows),) = found.items()
    took = rows[-1]["work"][1] - rows[0]["work"][0]
    assert took < 1.25 * 30 * 0.06, "one after the other would take 30 x 0.14 s"
    for phase in ("prepare", "work", "finish"):
        spans = sorted(row[phase][:2] for row in rows)
        assert all(a[1] <= b[0] for a, b in pairwise(spans)), f"{phase}: one at a time"
        assert len({row[phase][2] for row in rows}) == 1, f"{phase}: in one thread"


@pytest.mark.storm
def test_threads_are_limited_in_every_phase(executor: Executor) -> None:
    for rows in windows(executor, Sleepy, 6, Resources(workers=2, threads=2)).values():
        assert {row[phase][3] for row in rows for phase in ("prepare", "work", "finish")} == {"2"}


class Adder:
    def __init__(self, log: Path | None = None, bad: str = "") -> None:
        self.log, self.bad = log, bad

    def phase(self, name: str, task: int) -> None:
        if self.log is not None:
            with (self.log / name).open("a") as file:
                file.write(f"{task}\n")
        if self.bad == name and task == 7:
            raise Odd(name, task=task)

    def prepare(self, task: int) -> int:
        self.phase("prepare", task)
        return task

    def work(self, inputs: int) -> int:
        self.phase("work", inputs)
        return inputs + 100

    def finish(self, task: int, made: int) -> int:
        self.phase("finish", task)
        return made


def test_in_flight_is_bounded_and_fetched_lazily(executor: Executor) -> None:
    tasks = Lazily(200)
    results: list[int] = []

    def see(done: Completed) -> None:
        tasks.completed(done)
        results.append(done.result)

    executor.run(Adder, tasks, resources=TWO, on_done=see)
    assert sorted(results) == list(range(100, 300))
    assert tasks.fetched == 200
    assert tasks.ahead <= DEPTH * (1 if executor.name == "serial" else 2)


@pytest.mark.parametrize("phase", ["prepare", pytest.param("work", marks=pytest.mark.storm), "finish"])
def test_an_error_in_any_phase_comes_back_as_itself(executor: Executor, tmp_path: Path, phase: str) -> None:
    with pytest.raises(Odd) as caught:
        executor.run(partial(Adder, tmp_path, phase), range(1000), resources=TWO)
    assert (caught.value.where, caught.value.task) == (phase, 7)
    assert max(int(line) for line in (tmp_path / "prepare").read_text().split()) < 50
    executor.run(Adder, range(4), resources=TWO)


@pytest.mark.storm
def test_few_tasks_are_shared_out(remote: Executor) -> None:
    """Late in a run no task waits behind another while a worker is idle."""
    for tasks, most in ((2, 1), (4, 2)):
        found = windows(remote, partial(Sleepy, 0, 0.3, 0), tasks, TWO)
        if remote.name == "ray":  # its actors start together; Dask's are up already, or one comes late
            assert max(len(rows) for rows in found.values()) <= most


class Mortal(Adder):
    """Dies in the midst of some tasks, the first `times` times each."""

    def __init__(self, folder: Path, deadly: tuple[int, ...], times: int, pause: float = 0.0) -> None:
        self.folder, self.deadly, self.times, self.wait = folder, deadly, times, pause
        super().__init__()

    def work(self, inputs: int) -> int:
        with (self.folder / str(inputs)).open("a") as file:
            file.write("x")
        time.sleep(self.wait)
        if inputs in self.deadly and (self.folder / str(inputs)).stat().st_size <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return inputs + 100


def test_tasks_of_a_dead_worker_are_done_again(remote: Executor, tmp_path: Path) -> None:
    done: list[Completed] = []
    remote.run(partial(Mortal, tmp_path, (5, 20), 1, 0.01), range(40), resources=TWO, on_done=done.append)
    assert sorted((c.index, c.result) for c in done) == [(i, i + 100) for i in range(40)]
    again = {c.index for c in done if c.attempts > 1}
    assert {5, 20} <= again
    assert len(again) <= 2 * DEPTH, "the killers, and what was in hand with them"
    assert max(c.attempts for c in done) == 2


@pytest.mark.storm
def test_the_task_that_kills_is_named_not_its_neighbours(remote: Executor, tmp_path: Path) -> None:
    with pytest.raises(WorkerLost) as caught:
        remote.run(partial(Mortal, tmp_path, (11,), 99), range(30), resources=TWO)
    assert (caught.value.index, caught.value.attempts) == (11, 3)


@pytest.mark.storm
def test_one_attempt_means_one_task_in_hand(tmp_path: Path) -> None:
    with open_executor("dask", attempts=1) as dask, pytest.raises(WorkerLost, match="task 2, 1 times"):
        dask.run(partial(Mortal, tmp_path, (2,), 99), range(9))


def test_left_early_what_is_being_written_is_waited_for() -> None:
    ended: list[int] = []

    class Writer(Adder):
        def finish(self, task: int, made: int) -> int:
            time.sleep(0.2)
            ended.append(task)
            return made

        def work(self, inputs: int) -> int:
            if inputs == 1:
                raise KeyboardInterrupt
            return inputs

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        list(in_order(Writer(), range(9), lambda: None))
    assert ended == [0]
    assert threading.active_count() == before


def test_the_time_of_a_task_leaves_out_waiting_for_its_turn() -> None:
    line = Line(Sleepy(0.02, 0.05, 0.02), lambda: None)
    seconds: list[float] = []
    callers = [threading.Thread(target=lambda: seconds.append(line.call(0)[1])) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    line.close()
    assert len(seconds) == 6
    assert all(0.09 <= s < 0.2 for s in seconds), seconds


@pytest.mark.siege
@pytest.mark.timeout(900)
def test_64_actors_on_logical_gpus_are_kept_busy() -> None:
    """Each works 95% of the time between its first task and its last, in the best of three runs: other work on the
    machine only ever costs."""
    best = 0.0
    for _ in range(3):
        best = max(best, _efficiency_of_64())
        if best >= 0.95:
            break
    assert best >= 0.95


def _efficiency_of_64() -> float:
    total = Resources(workers=64, gpus=64)
    with open_executor("ray", total=total, start_timeout=300) as ray:
        found = windows(ray, partial(Sleepy, 0.3, 3.0, 0.3), 64 * 7, Resources(workers=64, gpus=1))
    lanes = [[row["work"][:2] for row in rows] for rows in found.values()]
    worked = sum(b - a for spans in lanes for a, b in spans)
    efficiency = worked / sum(spans[-1][1] - spans[0][0] for spans in lanes)
    print(f"efficiency of {len(lanes)} actors: {efficiency:.3f}")
    return float(efficiency) if len(lanes) == 64 else 0.0  # some came too late to get a task


@pytest.mark.storm
@pytest.mark.timeout(600)
def test_a_storm_of_kills(remote: Executor, tmp_path: Path) -> None:
    deadly = tuple(range(0, 400, 8))
    done: list[Completed] = []
    remote.run(partial(Mortal, tmp_path, deadly, 1), range(400), resources=Resources(workers=3), on_done=done.append)
    assert sorted((c.index, c.result) for c in done) == [(i, i + 100) for i in range(400)]
    assert {c.index for c in done if c.attempts == 2} >= set(deadly)
    assert max(c.attempts for c in done) <= 3
