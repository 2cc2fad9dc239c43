"""Workers of three phases: they overlap, in bounded number; errors, deaths and an early end are as for any worker."""

import heapq
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

from bdflow.cluster import ClusterError, Completed, Executor, Resources, WorkerLost, open_executor, phases
from bdflow.cluster.phases import DEPTH, in_order
from bdflow.cluster.scheduler import Answered, WorkerStarted, schedule
from bdflow.cluster.worker import Answer

from .test_run import Lazily, Odd

cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(sys.modules[Lazily.__module__])
TWO = Resources(workers=2)


class Sleepy:
    """Each phase sleeps its time; the result says when each began and ended, and in which thread."""

    def __init__(self, prepare: float = 0.0, work: float = 0.0, finish: float = 0.0) -> None:
        self.pauses = {"prepare": prepare, "work": work, "finish": finish}

    def pause(self, phase: str) -> dict:
        start = time.monotonic()
        time.sleep(self.pauses[phase])
        threads = os.environ.get("OMP_NUM_THREADS")
        return {phase: (start, time.monotonic(), threading.get_ident(), threads)}

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


class Meeting(Sleepy):
    """Work on a task waits until another one is being prepared, and putting it away until another one is worked on:
    where phases of different tasks do not run at once, nobody ever comes."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks, self.begun, self.changed = tasks, dict.fromkeys(self.pauses, 0), threading.Condition()

    def meet(self, phase: str, before: str | None) -> dict:
        with self.changed:
            self.begun[phase] += 1
            self.changed.notify_all()
            wanted = min(self.begun[phase] + 1, self.tasks)
            if before is not None:
                come = self.changed.wait_for(lambda: self.begun[before] >= wanted, 60)
                assert come, f"no other {before} begins during {phase}: {self.begun}"
        return self.pause(phase)

    def prepare(self, task: int) -> dict:
        return self.meet("prepare", None)

    def work(self, inputs: dict) -> dict:
        return inputs | self.meet("work", "prepare")

    def finish(self, task: int, made: dict) -> dict:
        return made | self.meet("finish", "work")


def test_the_three_phases_run_at_once_each_in_its_thread(executor: Executor) -> None:
    found = windows(executor, partial(Meeting, 30), 30, Resources())
    ((_, rows),) = found.items()
    for phase in ("prepare", "work", "finish"):
        spans = sorted(row[phase][:2] for row in rows)
        assert all(a[1] <= b[0] for a, b in pairwise(spans)), f"{phase}: one at a time"
        assert len({row[phase][2] for row in rows}) == 1, f"{phase}: in one thread"


@pytest.mark.slow(kind="executors")
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


@pytest.mark.parametrize("phase", ["prepare", pytest.param("work", marks=pytest.mark.slow), "finish"])
def test_an_error_in_any_phase_comes_back_as_itself(executor: Executor, tmp_path: Path, phase: str) -> None:
    with pytest.raises(Odd) as caught:
        executor.run(partial(Adder, tmp_path, phase), range(1000), resources=TWO)
    assert (caught.value.where, caught.value.task) == (phase, 7)
    assert max(int(line) for line in (tmp_path / "prepare").read_text().split()) < 50
    executor.run(Adder, range(4), resources=TWO)


class Simulated:
    """A backend of workers with phases, in simulated time: what is sent arrives `delay` seconds later, each phase of a
    worker takes its time for one task after the other, and the driver needs `cost` seconds for whatever happens."""

    def __init__(self, workers: int, phases: tuple[float, float, float], delay: float = 0.0, cost: float = 0.0) -> None:
        self.phases, self.delay, self.cost, self.now, self.count = phases, delay, cost, 0.0, 0
        self.events: list[tuple[float, int, object]] = []
        self.free = {str(worker): [0.0, 0.0, 0.0] for worker in range(workers)}
        self.worked: dict[str, list[tuple[float, float]]] = {worker: [] for worker in self.free}
        for worker in self.free:
            self.at(0.0, WorkerStarted(worker))

    def at(self, when: float, event: object) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, event))

    def send(self, worker: str, call: int, task: bytes | None) -> None:
        when = self.now + self.delay
        if task is not None:
            for phase, seconds in enumerate(self.phases):
                begin = max(when, self.free[worker][phase])
                when = self.free[worker][phase] = begin + seconds
                if phase == 1:
                    self.worked[worker].append((begin, when))
        answer = Answer(worker, sum(self.phases), result=True)
        self.at(when + self.delay, Answered(worker, call, cloudpickle.dumps(answer)))

    def wait(self, timeout: float) -> list:
        when, _, event = heapq.heappop(self.events)
        self.now = max(self.now, when) + self.cost
        return [event]

    def drop(self, worker: str) -> None:
        raise AssertionError("no worker is replaced")

    def no_worker(self, seconds: float) -> ClusterError:
        raise AssertionError("all workers are there")

    def log_hint(self) -> str:
        raise AssertionError("no worker is lost")


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_few_tasks_are_shared_out(workers: int) -> None:
    """Late in a run no task waits behind another while a worker is idle."""
    for tasks in range(1, 4 * workers):
        backend = Simulated(workers, (0, 0.3, 0))
        schedule(backend, range(tasks), on_done=None, attempts=3, start_timeout=1, workers=workers)
        shares = [len(spans) for spans in backend.worked.values()]
        assert sum(shares) == tasks
        assert max(shares) <= -(-tasks // workers), (tasks, shares)


def test_64_simulated_actors_are_kept_busy() -> None:
    """Each works 95% of the time between its first task and its last, if a driver takes 2 ms for each of its events and
    messages travel for 50 ms."""
    backend = Simulated(64, (0.3, 3.0, 0.3), delay=0.05, cost=0.002)
    schedule(backend, range(64 * 7), on_done=None, attempts=3, start_timeout=1, workers=64)
    lanes = list(backend.worked.values())
    worked = sum(b - a for spans in lanes for a, b in spans)
    assert worked / sum(spans[-1][1] - spans[0][0] for spans in lanes) >= 0.95
    assert {len(spans) for spans in lanes} == {7}


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


@pytest.mark.slow
def test_the_task_that_kills_is_named_not_its_neighbours(remote: Executor, tmp_path: Path) -> None:
    with pytest.raises(WorkerLost) as caught:
        remote.run(partial(Mortal, tmp_path, (11,), 99), range(30), resources=TWO)
    assert (caught.value.index, caught.value.attempts) == (11, 3)


@pytest.mark.slow
def test_one_attempt_means_one_task_in_hand(tmp_path: Path) -> None:
    lost = pytest.raises(WorkerLost, match="task 2: found that it died 1 time in a row")
    with open_executor("dask", attempts=1) as dask, lost:
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


def test_the_time_of_a_task_leaves_out_waiting_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that each thread has for itself, and that its phases alone advance."""
    clock = threading.local()
    monkeypatch.setattr(phases, "perf_counter", lambda: getattr(clock, "now", 0.0))

    class Ticking(Sleepy):
        def pause(self, phase: str) -> dict:
            clock.now = getattr(clock, "now", 0.0) + {"prepare": 2, "work": 5, "finish": 3}[phase]
            return super().pause(phase)

    pipeline = phases.PhasePipeline(Ticking(0.01, 0.02, 0.01), lambda: None)
    seconds: list[float] = []
    callers = [threading.Thread(target=lambda: seconds.append(pipeline.call(0)[1])) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    pipeline.close()
    assert seconds == [10] * 6


class Together(Sleepy):
    """The first task of each worker waits until as many workers are at theirs as there are."""

    def __init__(self, folder: Path, workers: int) -> None:
        super().__init__()
        self.folder, self.workers = folder, workers

    def work(self, inputs: dict) -> dict:
        (self.folder / str(os.getpid())).touch()
        until = time.monotonic() + 600
        while len(list(self.folder.iterdir())) < self.workers:
            assert time.monotonic() < until, "not all workers came"
            time.sleep(0.2)
        return super().work(inputs) | {"gpu": os.environ["CUDA_VISIBLE_DEVICES"]}


@pytest.mark.integration(kind="devices of workers")
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("no_ray")
def test_actors_on_logical_gpus_share_the_tasks(tmp_path: Path) -> None:
    """All 16 come up, have a GPU each, and get work; how busy the driver keeps 64 is told by simulated ones."""
    total = Resources(workers=16, gpus=16)
    with open_executor("ray", total=total, start_timeout=600) as ray:
        found = windows(ray, partial(Together, tmp_path, 16), 16 * 4, Resources(workers=16, gpus=1))
    assert len(found) == 16
    assert min(len(rows) for rows in found.values()) >= 1
    gpus = [{row["gpu"] for row in rows} for rows in found.values()]
    assert sorted(int(gpu) for mine in gpus for gpu in mine) == list(range(16)), "one each, and always the same one"


@pytest.mark.slow(kind="many kills in one run")
@pytest.mark.timeout(600)
def test_many_kills_in_one_run(remote: Executor, tmp_path: Path) -> None:
    deadly = tuple(range(0, 400, 8))
    done: list[Completed] = []
    remote.run(partial(Mortal, tmp_path, deadly, 1), range(400), resources=Resources(workers=3), on_done=done.append)
    assert sorted((c.index, c.result) for c in done) == [(i, i + 100) for i in range(400)]
    assert {c.index for c in done if c.attempts >= 2} >= set(deadly)
    assert max(c.attempts for c in done) <= 3
