"""Work in three phases, each with a thread of its own: while one task is worked on, the next is prepared and the last
one finished.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Generic, ParamSpec, Protocol, TypeGuard, TypeVar

from bdflow.cluster.usage import UsageMeter, Used

DEPTH = 3  # tasks that a worker of phases has in hand: one in each


P = ParamSpec("P")
T = TypeVar("T")
Inputs = TypeVar("Inputs")
Made = TypeVar("Made")
R = TypeVar("R")
T_in = TypeVar("T_in", contravariant=True)
R_out = TypeVar("R_out", covariant=True)


class Phased(Protocol[T_in, Inputs, Made, R_out]):
    """A worker object whose task falls into reading, working and writing.

    Each phase is called by one thread at a time and for one task after the other, but different phases run at once:
    what they share must bear it.
    """

    def prepare(self, task: T_in) -> Inputs:
        """What the work on a task needs."""

    def work(self, inputs: Inputs) -> Made:
        """The work itself; nothing else keeps it waiting."""

    def finish(self, task: T_in, made: Made) -> R_out:
        """Put away what was made; returns the task's result."""


AnyPhased = Phased[Any, Any, Any, Any]


def is_phased(worker: object) -> TypeGuard[AnyPhased]:
    """Whether a worker object offers the three phases."""
    return all(callable(getattr(worker, name, None)) for name in ("prepare", "work", "finish"))


class PhaseThread:
    """A thread that does one job after the other, in the order they come. `begin` is its first.

    It never holds up the end of the process.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], object]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.send(begin).result()

    def send(self, job: Callable[[], R]) -> Future[R]:
        """Do a job when those before it are done; a cancelled one is left out."""
        future: Future[R] = Future()
        self._jobs.put((future, job))
        return future

    def close(self, timeout: float | None = None) -> None:
        """No more jobs; waits for the one that runs."""
        self._jobs.put(None)
        self._thread.join(timeout)

    def _serve(self) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
            del item, future, job  # nothing is held on to while it waits


def _timed(phase: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Callable[[], tuple[R, float]]:
    """The phase as a job that returns its result and the seconds it took."""

    def job() -> tuple[R, float]:
        start = perf_counter()
        return phase(*args, **kwargs), perf_counter() - start

    return job


class PhasePipeline(Generic[T, Inputs, Made, R]):
    """A worker of phases with a thread for each phase; `call` may be called from several threads at once."""

    def __init__(self, worker: Phased[T, Inputs, Made, R], begin: Callable[[], None]) -> None:
        self._worker = worker
        self._threads = [PhaseThread(begin) for _ in range(DEPTH)]
        self._meter = UsageMeter()

    def call(self, task: T) -> tuple[R, float, Used]:
        """Take a task through; its result, how long its phases took without waiting for their turns, and what the
        process used since the task before it was finished.
        """
        reading, working, writing = self._threads
        inputs, prepared = reading.send(_timed(self._worker.prepare, task)).result()
        made, worked = working.send(_timed(self._worker.work, inputs)).result()
        del inputs
        result, finished, used = writing.send(partial(self._finish, task, made)).result()
        return result, prepared + worked + finished, used

    def _finish(self, task: T, made: Made) -> tuple[R, float, Used]:
        result, seconds = _timed(self._worker.finish, task, made)()
        used, self._meter = self._meter.read(), UsageMeter()
        return result, seconds, used

    def close(self, timeout: float = 0.0) -> None:
        """Let the threads go; waits at most `timeout` seconds for each."""
        for thread in self._threads:
            thread.close(timeout)


def in_order(
    worker: Phased[T, Inputs, Made, R], tasks: Sequence[T], begin: Callable[[], None], timeout: float = 5.0
) -> Iterator[tuple[int, R, float, Used]]:
    """(index, result, seconds, used) of every task, as `PhasePipeline.call` gives them.

    This thread works, two others prepare and finish. A task is fetched when the one before it is about to be worked
    on. When it is left early, what is being written is waited for, at most `timeout` seconds.
    """
    reading, writing = PhaseThread(begin), PhaseThread(begin)
    coming: Future[tuple[Inputs, float]] | None = None
    leaving: tuple[int, Future[tuple[R, float]], float] | None = None
    meter = UsageMeter()

    def ended(index: int, future: Future[tuple[R, float]], before: float) -> tuple[int, R, float, Used]:
        nonlocal meter
        result, seconds = future.result()
        used, meter = meter.read(), UsageMeter()
        return index, result, before + seconds, used

    try:
        task = tasks[0]
        coming = reading.send(_timed(worker.prepare, task))
        for index in range(len(tasks)):
            inputs, prepared = coming.result()
            here = task
            if index + 1 < len(tasks):
                task = tasks[index + 1]
                coming = reading.send(_timed(worker.prepare, task))
            made, worked = _timed(worker.work, inputs)()
            del inputs
            if leaving is not None:
                yield ended(*leaving)
            leaving = index, writing.send(_timed(worker.finish, here, made)), prepared + worked
            del made
        if leaving is not None:
            yield ended(*leaving)
    finally:
        if coming is not None:
            coming.cancel()
        reading.close(timeout)
        writing.close(timeout)
