"""The driver's side, the same for Dask and Ray: who works on what, what is lost, what is tried again.

A backend offers worker processes and says what happened to them; `schedule` keeps them busy. When a
worker dies, every task it was sent counts an attempt, and each of them then travels alone: a second death names the
one that kills. Workers of phases (`bdflow.cluster.phases`) have up to three tasks in hand: they overlap in the process.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from bdflow.cluster.errors import ClusterError, WorkerLost
from bdflow.cluster.limits import refuse_excess, refuse_odd_gpus
from bdflow.cluster.logs import Line
from bdflow.cluster.phases import DEPTH
from bdflow.cluster.types import DEFAULT, Completed, OnDone, R, Resources, SlurmSettings, T, Worker
from bdflow.cluster.worker import Answer, NotLoaded

SHORT_TASK = 2.0  # seconds; longer tasks do not queue behind another, the way to a worker costs them nothing
POLL_INTERVAL = 0.5  # seconds between two checks that workers are still there


@dataclass(frozen=True)
class WorkerStarted:
    """A process is up and takes work."""

    worker: str


@dataclass(frozen=True)
class Answered:
    """A pickled `Answer` to what was sent as `call`."""

    worker: str
    call: int
    data: bytes


@dataclass(frozen=True)
class Lost:
    """A process is gone, with all it was sent and did not answer."""

    worker: str
    reason: str


Event = WorkerStarted | Answered | Lost


class Backend(Protocol):
    """What a kind of cluster has to offer for a run."""

    def send(self, worker: str, call: int, task: bytes | None) -> None:
        """Have the worker work on a pickled task, or (None) load the worker first. Does not wait."""

    def wait(self, timeout: float) -> list[Event]:
        """What happened; waits for a first event, at most `timeout` seconds. Replaces workers that are lost."""

    def drop(self, worker: str) -> None:
        """Forget a worker whose process was replaced unnoticed; it may start again."""

    def no_worker(self, seconds: float) -> ClusterError:
        """The error when no process turned up in that time."""

    def log_hint(self) -> str:
        """Where a dead worker may have left messages."""


@dataclass
class _Task:
    index: int
    data: bytes
    attempts: int = 0


@dataclass
class _WorkerState:
    loading: int
    loaded: bool = False
    phased: bool = False
    calls: dict[int, _Task] = field(default_factory=dict)


def schedule(
    backend: Backend,
    tasks: Sequence[object],
    *,
    on_done: OnDone | None,
    attempts: int,
    start_timeout: float,
    workers: int = 1,
) -> None:
    """Give `workers` expected workers tasks until all are done; raises what `Executor.run` says."""
    _Schedule(backend, tasks, on_done, attempts, start_timeout, workers).run()


class _Schedule:
    def __init__(
        self,
        backend: Backend,
        tasks: Sequence[object],
        on_done: OnDone | None,
        attempts: int,
        start_timeout: float,
        workers: int,
    ) -> None:
        self.backend, self.tasks, self.on_done = backend, tasks, on_done
        self.attempts, self.start_timeout, self.expected = attempts, start_timeout, workers
        self.total, self.fetched, self.done = len(tasks), 0, 0
        self.again: deque[_Task] = deque()
        self.workers: dict[str, _WorkerState] = {}
        self.calls = 0
        self.lost_starting = 0
        self.logged: set[Line] = set()
        self.typical: float | None = None  # seconds a task takes, a moving average

    def run(self) -> None:
        alone_since = time.monotonic()
        while self.done < self.total:
            for event in self.backend.wait(POLL_INTERVAL):
                self.handle(event)
            now = time.monotonic()
            if self.workers:
                alone_since = now
            elif now - alone_since > self.start_timeout:
                raise self.backend.no_worker(self.start_timeout)

    def handle(self, event: Event) -> None:
        if isinstance(event, WorkerStarted):
            self.workers[event.worker] = _WorkerState(loading=self.next_call())
            self.backend.send(event.worker, self.workers[event.worker].loading, None)
        elif isinstance(event, Lost):
            self.handle_lost(event)
        else:
            self.handle_answer(event)

    def handle_answer(self, event: Answered) -> None:
        import cloudpickle

        worker = self.workers.get(event.worker)
        if worker is None:
            return
        answer: Answer = cloudpickle.loads(event.data)
        self.log(answer.logged)
        if isinstance(answer.error, NotLoaded):
            self.backend.drop(event.worker)
            self.handle_lost(Lost(event.worker, f"a new process took the place of the one at {event.worker}"))
            return
        if event.call == worker.loading:
            _raise_remote(answer, "while a worker was made")
            worker.loaded, worker.phased, self.lost_starting = True, bool(answer.result), 0
        else:
            task = worker.calls.pop(event.call)
            _raise_remote(answer, f"in task {task.index}")
            self.done += 1
            seconds = answer.seconds
            self.typical = seconds if self.typical is None else 0.9 * self.typical + 0.1 * seconds
            if self.on_done is not None:
                self.on_done(
                    Completed(
                        task.index,
                        answer.result,
                        seconds,
                        answer.worker,
                        task.attempts,
                        answer.used,
                        answer.made_on,
                    )
                )
        self.feed(event.worker)

    def log(self, lines: Sequence[Line]) -> None:
        """Log what workers logged; what several of them say, once."""
        for line in lines:
            if line not in self.logged:
                self.logged.add(line)
                line.log()

    def feed(self, name: str) -> None:
        worker = self.workers[name]
        while worker.loaded and len(worker.calls) < self.depth(worker):
            if worker.calls and (self.again or any(task.attempts > 1 for task in worker.calls.values())):
                return
            task = self.next_task()
            if task is None:
                return
            task.attempts += 1
            call = self.next_call()
            worker.calls[call] = task
            self.backend.send(name, call, task.data)

    def depth(self, worker: _WorkerState) -> int:
        """How many tasks a worker may have in hand now: one in each phase, but towards the end no more than its share,
        so that none waits behind another while a worker is idle."""
        if self.attempts == 1:
            return 1
        if not worker.phased:
            return 2 if self.typical is not None and self.typical < SHORT_TASK else 1
        left = self.total - self.fetched + len(self.again)
        return min(DEPTH, 1 + left // max(self.expected, len(self.workers)))

    def next_task(self) -> _Task | None:
        import cloudpickle

        if self.again:
            return self.again.popleft()
        if self.fetched == self.total:
            return None
        index = self.fetched
        self.fetched += 1
        return _Task(index, cloudpickle.dumps(self.tasks[index]))

    def next_call(self) -> int:
        self.calls += 1
        return self.calls

    def handle_lost(self, event: Lost) -> None:
        worker = self.workers.pop(event.worker, None)
        if worker is None or not worker.loaded:
            self.lost_starting += 1
            if self.lost_starting >= self.attempts:
                raise WorkerLost(None, self.lost_starting, event.reason, self.backend.log_hint())
            return
        for task in worker.calls.values():
            if task.attempts >= self.attempts:
                raise WorkerLost(task.index, task.attempts, event.reason, self.backend.log_hint())
        self.again.extend(worker.calls.values())
        for name in list(self.workers):
            self.feed(name)


def _raise_remote(answer: Answer, where: str) -> None:
    if answer.error is not None:
        answer.error.add_note(f"Raised {where} on worker {answer.worker}; there:\n\n{answer.trace}")
        raise answer.error


def pickle_maker(make_worker: Callable[[], object]) -> bytes:
    """Pickled once for all processes; raises ClusterError when it cannot be."""
    import cloudpickle

    try:
        pickled: bytes = cloudpickle.dumps(make_worker)
    except Exception as error:
        raise ClusterError(
            f"{make_worker!r}",
            found=f"that it cannot be pickled ({error})",
            expected="what travels to worker processes",
            action="give functools.partial(YourClass, plain arguments), and load what is heavy in its __init__",
        ) from error
    return pickled


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until this is over (only the main thread can hold it back)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
        if pressed:
            signal.raise_signal(signal.SIGINT)


class PoolExecutor(ABC):
    """What the executors with worker processes share: the order of a run, and of its end."""

    name = "pool"

    def __init__(
        self,
        *,
        address: str | None,
        total: Resources | None,
        attempts: int,
        start_timeout: float,
        slurm: SlurmSettings | None = None,
    ) -> None:
        self.address, self._total, self._slurm = address, total, slurm
        self._attempts, self._start_timeout = attempts, start_timeout

    def refuse(self, resources: Resources) -> None:
        """Refuse at once what is odd or more than there is, as far as it is known without asking anybody."""
        if self.address is None and self._slurm is None:
            refuse_excess(resources, self._total)
        else:
            refuse_odd_gpus(resources)

    @abstractmethod
    def begin(self, make_worker: bytes, workers: int, resources: Resources) -> Backend:
        """Start what is missing and offer workers."""

    @abstractmethod
    def end(self, backend: Backend, clean: bool) -> None:
        """Free what the run held; if not `clean`, stop what still runs."""

    @abstractmethod
    def rest(self) -> None:
        """See `Executor.rest`."""

    @abstractmethod
    def close(self) -> None:
        """Stop every process this executor started. May be called twice; a later `run` starts anew."""

    def run(
        self,
        make_worker: Callable[[], Worker[T, R]],
        tasks: Sequence[T],
        *,
        resources: Resources = DEFAULT,
        on_done: OnDone | None = None,
    ) -> None:
        """See `Executor.run`."""
        self.refuse(resources)
        if not len(tasks):
            return
        pickled = pickle_maker(make_worker)
        try:
            workers = min(resources.workers, len(tasks))
            backend = self.begin(pickled, workers, resources)
            clean = False
            try:
                schedule(
                    backend,
                    tasks,
                    on_done=on_done,
                    attempts=self._attempts,
                    start_timeout=self._start_timeout,
                    workers=workers,
                )
                clean = True
            finally:
                with uninterrupted():
                    self.end(backend, clean)
        except KeyboardInterrupt:
            with uninterrupted():
                self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with uninterrupted():
            self.close()
