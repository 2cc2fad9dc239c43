"""The driver's side, the same for Dask and Ray: who works on what, what is lost, what is tried again.

A backend offers seats (processes) and says what happened to them; `drive` keeps them fed. When a
seat dies, every task it was sent counts an attempt, and each of them then travels alone: a second death names the
one that kills. Workers of phases (`cluster.line`) have up to three tasks in hand: they overlap in the process.
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
from typing import TYPE_CHECKING, Any, Protocol, Self

from cluster.errors import ClusterError, WorkerLost
from cluster.executor import DEFAULT, Completed, OnDone, R, Resources, T
from cluster.limits import refuse_excess, refuse_odd_gpus
from cluster.line import DEPTH, Phased
from cluster.worker import Answer, NotLoaded

if TYPE_CHECKING:
    from cluster.on_slurm import Slurm

SHORT = 2.0  # seconds; longer tasks do not queue behind another, the way to a worker costs them nothing
TICK = 0.5  # seconds between two looks at whether somebody is still there


@dataclass(frozen=True)
class Joined:
    """A process is up and takes work."""

    seat: str


@dataclass(frozen=True)
class Answered:
    """A pickled `Answer` to what was sent as `flight`."""

    seat: str
    flight: int
    data: bytes


@dataclass(frozen=True)
class Lost:
    """A process is gone, with all it was sent and did not answer."""

    seat: str
    reason: str


Event = Joined | Answered | Lost


class Backend(Protocol):
    """What a kind of cluster has to offer for a run."""

    def send(self, seat: str, flight: int, task: bytes | None) -> None:
        """Have the seat work on a pickled task, or (None) load the worker first. Does not wait."""

    def wait(self, timeout: float) -> list[Event]:
        """What happened; waits for a first event, at most `timeout` seconds. Replaces seats that are lost."""

    def drop(self, seat: str) -> None:
        """Forget a seat whose process was replaced unnoticed; it may join again."""

    def nobody(self, seconds: float) -> str:
        """The message when no process turned up in that time."""

    def look_at(self) -> str:
        """Where a dead worker may have left words."""


@dataclass
class _Task:
    index: int
    data: bytes
    attempts: int = 0


@dataclass
class _Seat:
    loading: int
    loaded: bool = False
    phased: bool = False
    flights: dict[int, _Task] = field(default_factory=dict)


def drive(
    backend: Backend,
    tasks: Sequence[Any],
    *,
    on_done: OnDone | None,
    attempts: int,
    start_timeout: float,
    seats: int = 1,
) -> None:
    """Feed the backend's seats until every task is done; raises what `Executor.run` says. `seats` are to join."""
    _Drive(backend, tasks, on_done, attempts, start_timeout, seats).run()


class _Drive:
    def __init__(
        self,
        backend: Backend,
        tasks: Sequence[Any],
        on_done: OnDone | None,
        attempts: int,
        start_timeout: float,
        seats: int,
    ) -> None:
        self.backend, self.tasks, self.on_done = backend, tasks, on_done
        self.attempts, self.start_timeout, self.expected = attempts, start_timeout, seats
        self.total, self.fetched, self.done = len(tasks), 0, 0
        self.again: deque[_Task] = deque()
        self.seats: dict[str, _Seat] = {}
        self.flights = 0
        self.lost_starting = 0
        self.typical: float | None = None  # seconds a task takes, a moving average

    def run(self) -> None:
        alone_since = time.monotonic()
        while self.done < self.total:
            for event in self.backend.wait(TICK):
                self.handle(event)
            now = time.monotonic()
            if self.seats:
                alone_since = now
            elif now - alone_since > self.start_timeout:
                raise ClusterError(self.backend.nobody(self.start_timeout))

    def handle(self, event: Event) -> None:
        if isinstance(event, Joined):
            self.seats[event.seat] = _Seat(loading=self.next_flight())
            self.backend.send(event.seat, self.seats[event.seat].loading, None)
        elif isinstance(event, Lost):
            self.lose(event)
        else:
            self.take(event)

    def take(self, event: Answered) -> None:
        import cloudpickle

        seat = self.seats.get(event.seat)
        if seat is None:
            return
        answer: Answer = cloudpickle.loads(event.data)
        if isinstance(answer.error, NotLoaded):
            self.backend.drop(event.seat)
            self.lose(Lost(event.seat, f"a new process took the place of the one at {event.seat}"))
            return
        if event.flight == seat.loading:
            _raise_remote(answer, "while a worker was made")
            seat.loaded, seat.phased, self.lost_starting = True, bool(answer.result), 0
        else:
            task = seat.flights.pop(event.flight)
            _raise_remote(answer, f"in task {task.index}")
            self.done += 1
            seconds = answer.seconds
            self.typical = seconds if self.typical is None else 0.9 * self.typical + 0.1 * seconds
            if self.on_done is not None:
                done = Completed(task.index, answer.result, seconds, answer.worker, task.attempts, answer.used)
                self.on_done(done)
        self.feed(event.seat)

    def feed(self, name: str) -> None:
        seat = self.seats[name]
        while seat.loaded and len(seat.flights) < self.depth(seat):
            if seat.flights and (self.again or any(task.attempts > 1 for task in seat.flights.values())):
                return
            task = self.next_task()
            if task is None:
                return
            task.attempts += 1
            flight = self.next_flight()
            seat.flights[flight] = task
            self.backend.send(name, flight, task.data)

    def depth(self, seat: _Seat) -> int:
        """How many tasks a seat may have in hand now: one in each phase, but towards the end no more than its share, so
        that none waits behind another while a seat is idle."""
        if self.attempts == 1:
            return 1
        if not seat.phased:
            return 2 if self.typical is not None and self.typical < SHORT else 1
        left = self.total - self.fetched + len(self.again)
        return min(DEPTH, 1 + left // max(self.expected, len(self.seats)))

    def next_task(self) -> _Task | None:
        import cloudpickle

        if self.again:
            return self.again.popleft()
        if self.fetched == self.total:
            return None
        index = self.fetched
        self.fetched += 1
        return _Task(index, cloudpickle.dumps(self.tasks[index]))

    def next_flight(self) -> int:
        self.flights += 1
        return self.flights

    def lose(self, event: Lost) -> None:
        seat = self.seats.pop(event.seat, None)
        if seat is None or not seat.loaded:
            self.lost_starting += 1
            if self.lost_starting >= self.attempts:
                raise WorkerLost(None, self.lost_starting, event.reason, self.backend.look_at())
            return
        for task in seat.flights.values():
            if task.attempts >= self.attempts:
                raise WorkerLost(task.index, task.attempts, event.reason, self.backend.look_at())
        self.again.extend(seat.flights.values())
        for name in list(self.seats):
            self.feed(name)


def _raise_remote(answer: Answer, where: str) -> None:
    if answer.error is not None:
        answer.error.add_note(f"Raised {where} on worker {answer.worker}; there:\n\n{answer.trace}")
        raise answer.error


def pickle_maker(make_worker: Callable[[], Any]) -> bytes:
    """Pickled once for all processes; raises ClusterError when it cannot be."""
    import cloudpickle

    try:
        return cloudpickle.dumps(make_worker)
    except Exception as error:
        raise ClusterError(
            f"{make_worker!r} cannot be pickled ({error}); expected what travels to worker processes.\n"
            "What to do: give functools.partial(YourClass, plain arguments), and load what is heavy in it."
        ) from error


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
        slurm: Slurm | None = None,
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
    def begin(self, make_worker: bytes, seats: int, resources: Resources) -> Backend:
        """Bring up what is missing and offer seats."""

    @abstractmethod
    def end(self, backend: Backend, clean: bool) -> None:
        """Free what the run held; if not `clean`, stop what still runs."""

    @abstractmethod
    def close(self) -> None:
        """Stop every process this executor started. May be called twice; a later `run` starts anew."""

    def run(
        self,
        make_worker: Callable[[], Callable[[T], R] | Phased],
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
            seats = min(resources.workers, len(tasks))
            backend = self.begin(pickled, seats, resources)
            clean = False
            try:
                drive(
                    backend,
                    tasks,
                    on_done=on_done,
                    attempts=self._attempts,
                    start_timeout=self._start_timeout,
                    seats=seats,
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
