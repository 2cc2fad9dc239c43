"""The far side: what runs inside a worker process. Answers are bytes, the same for every executor."""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.errors import ClusterError
from cluster.line import Line, is_phased
from cluster.meter import NOTHING, Meter, Used
from cluster.threads import limit


@dataclass(frozen=True)
class Answer:
    """A task's result and what it took, or what it raised and the traceback as text."""

    worker: str
    seconds: float
    result: Any = None
    error: BaseException | None = None
    trace: str = ""
    used: Used = NOTHING


class Seat:
    """One process's place in a run: the loaded worker object, used by one task at a time, or by one in each phase."""

    def __init__(self) -> None:
        self._work: Callable[[Any], Any] | None = None
        self._line: Line | None = None
        self._threads = 1
        self._one_at_a_time = threading.Lock()
        self._limited = threading.local()

    def hello(self) -> None:
        """Returns as soon as the process is up."""

    def load(self, make_worker: bytes, threads: int) -> bytes:
        """Make the worker object from the pickled `make_worker`; its answer says whether it has phases."""
        import cloudpickle

        def make(_: Any) -> bool:
            limit(threads)
            worker = cloudpickle.loads(make_worker)()
            limit(threads)
            if is_phased(worker):
                self._line = Line(worker, partial(limit, threads))
            else:
                self._work = worker
            return self._line is not None

        self._threads = threads
        self._limited.done = True
        with self._one_at_a_time:
            return answer(make, None)

    def call(self, task: bytes) -> bytes:
        """Work on a pickled task."""
        import cloudpickle

        line = self._line
        if line is not None:
            return answer(lambda data: _Timed(*line.call(cloudpickle.loads(data))), task)
        with self._one_at_a_time:
            if not getattr(self._limited, "done", False):
                limit(self._threads)
                self._limited.done = True
            work = self._work
            if work is None:
                return answer(_not_loaded, None)
            return answer(lambda data: work(cloudpickle.loads(data)), task)

    def free(self) -> None:
        """Let go of the worker object and its threads."""
        line, self._line, self._work = self._line, None, None
        if line is not None:
            line.close()


@dataclass(frozen=True)
class _Timed:
    """A result that brings its own time and use."""

    result: Any
    seconds: float
    used: Used


class NotLoaded(ClusterError):
    """A task reached a process that took the place of the one that had loaded the worker."""


def _not_loaded(_: Any) -> None:
    raise NotLoaded("no worker object here")


def this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def answer(work: Callable[[Any], Any], task: Any) -> bytes:
    """Call, time, and pickle what came out, also when that is an exception."""
    import cloudpickle

    meter = Meter()
    start = time.perf_counter()
    try:
        result = work(task)
        seconds = time.perf_counter() - start
        if isinstance(result, _Timed):
            return cloudpickle.dumps(Answer(this_process(), result.seconds, result.result, used=result.used))
        return cloudpickle.dumps(Answer(this_process(), seconds, result, used=meter.read()))
    except BaseException as error:
        trace = "".join(traceback.format_exception(error))
        return _pickle_failure(Answer(this_process(), time.perf_counter() - start, None, error, trace))


def _pickle_failure(failed: Answer) -> bytes:
    """Pickle with the exception itself if it survives the way, else with its parts put together anew."""
    import cloudpickle

    error = failed.error
    assert error is not None
    for carried in (error, _Parts(type(error), error.args, dict(error.__dict__))):
        try:
            data = cloudpickle.dumps(Answer(failed.worker, failed.seconds, None, carried, failed.trace))  # type: ignore[arg-type]
            back = cloudpickle.loads(data)
            if type(back.error) is type(error):
                return data
        except Exception:
            continue
    plain = ClusterError(
        f"A task raised {type(error).__name__}: {error}, which cannot be pickled and so not be raised here."
    )
    return cloudpickle.dumps(Answer(failed.worker, failed.seconds, None, plain, failed.trace))


class _Parts:
    """Stands in for an exception that pickles but cannot be made from its `args` alone."""

    def __init__(self, kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> None:
        self.parts = kind, args, state

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return _from_parts, self.parts


def _from_parts(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


_SEATS: dict[str, Seat] = {}
_OPENING = threading.Lock()


def load_seat(run: str, make_worker: bytes, threads: int) -> bytes:
    """`Seat.load` in a process that outlives the run (Dask's)."""
    with _OPENING:
        seat = _SEATS.setdefault(run, Seat())
    return seat.load(make_worker, threads)


def call_seat(run: str, task: bytes) -> bytes:
    """`Seat.call` in a process that outlives the run."""
    return _SEATS.get(run, _NOBODY).call(task)


def free_seat(run: str) -> None:
    """Let go of the run's worker object, and of the memory it held."""
    import gc

    seat = _SEATS.pop(run, None)
    if seat is not None:
        seat.free()
    del seat
    gc.collect()


_NOBODY = Seat()
