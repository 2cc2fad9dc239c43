"""Work in three phases, each with a thread of its own: while one task is worked on, the next is prepared and the last
one finished.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Protocol, TypeGuard

from cluster.meter import Meter, Used

DEPTH = 3  # tasks that a worker of phases has in hand: one in each


class Phased(Protocol):
    """A worker object whose task falls into reading, working and writing.

    Each phase is called by one thread at a time and for one task after the other, but different phases run at once:
    what they share must bear it.
    """

    def prepare(self, task: Any) -> Any:
        """What the work on a task needs."""

    def work(self, inputs: Any) -> Any:
        """The work itself; nothing else keeps it waiting."""

    def finish(self, task: Any, made: Any) -> Any:
        """Put away what was made; returns the task's result."""


def is_phased(worker: object) -> TypeGuard[Phased]:
    """Whether a worker object offers the three phases."""
    return all(callable(getattr(worker, name, None)) for name in ("prepare", "work", "finish"))


class Station:
    """A thread that does one job after the other, in the order they come. `begin` is its first.

    It never holds up the end of the process.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.send(begin).result()

    def send(self, job: Callable[..., Any], *args: Any) -> Future[Any]:
        """Do a job when those before it are done; a cancelled one is left out."""
        future: Future[Any] = Future()
        self._jobs.put((future, job, args))
        return future

    def close(self, timeout: float | None = None) -> None:
        """No more jobs; waits for the one that runs."""
        self._jobs.put(None)
        self._thread.join(timeout)

    def _serve(self) -> None:
        while (item := self._jobs.get()) is not None:
            future, job, args = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job(*args))
            except BaseException as error:
                future.set_exception(error)
            del item, future, job, args  # nothing is held on to while it waits


class Line:
    """A worker of phases behind three stations; `call` may be called from several threads at once."""

    def __init__(self, worker: Phased, begin: Callable[[], None]) -> None:
        self._worker = worker
        self._stations = [Station(begin) for _ in range(DEPTH)]
        self._meter = Meter()

    def call(self, task: Any) -> tuple[Any, float, Used]:
        """Take a task through; its result, how long its phases took without waiting for their turns, and what the
        process used since the task before it was finished.
        """
        seconds = 0.0

        def timed(phase: Callable[..., Any], *args: Any) -> Any:
            nonlocal seconds
            start = perf_counter()
            out = phase(*args)
            seconds += perf_counter() - start
            return out

        reading, working, writing = self._stations
        inputs = reading.send(timed, self._worker.prepare, task).result()
        made = working.send(timed, self._worker.work, inputs).result()
        del inputs
        result, used = writing.send(self._finished, timed, task, made).result()
        return result, seconds, used

    def _finished(self, timed: Callable[..., Any], task: Any, made: Any) -> tuple[Any, Used]:
        result, used = timed(self._worker.finish, task, made), self._meter.read()
        self._meter = Meter()
        return result, used

    def close(self) -> None:
        """Let the threads go."""
        for station in self._stations:
            station.close(timeout=0)


def in_order(
    worker: Phased, tasks: Sequence[Any], begin: Callable[[], None], patience: float = 5.0
) -> Iterator[tuple[int, Any, float, Used]]:
    """(index, result, seconds, used) of every task, as `Line.call`: this thread works, two others prepare and finish.

    A task is fetched when the one before it is about to be worked on. When it is left early, what is being written is
    waited for, at most `patience` seconds.
    """
    reading, writing = Station(begin), Station(begin)
    coming: Future[Any] | None = None
    leaving: tuple[int, Future[Any], float] | None = None
    meter = Meter()

    def timed(phase: Callable[..., Any], *args: Any) -> tuple[Any, float]:
        start = perf_counter()
        return phase(*args), perf_counter() - start

    def ended(index: int, future: Future[Any], before: float) -> tuple[int, Any, float, Used]:
        nonlocal meter
        result, seconds = future.result()
        used, meter = meter.read(), Meter()
        return index, result, before + seconds, used

    try:
        task = tasks[0]
        coming = reading.send(timed, worker.prepare, task)
        for index in range(len(tasks)):
            inputs, prepared = coming.result()
            here = task
            if index + 1 < len(tasks):
                task = tasks[index + 1]
                coming = reading.send(timed, worker.prepare, task)
            made, worked = timed(worker.work, inputs)
            del inputs
            if leaving is not None:
                yield ended(*leaving)
            leaving = index, writing.send(timed, worker.finish, here, made), prepared + worked
            del made
        if leaving is not None:
            yield ended(*leaving)
    finally:
        if coming is not None:
            coming.cancel()
        reading.close(patience)
        writing.close(patience)
