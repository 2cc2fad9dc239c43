"""What runs inside a worker process. Answers are bytes, the same for every executor."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from bdflow.cluster.errors import ClusterError
from bdflow.cluster.hardware import UNKNOWN, MadeOn, made_on
from bdflow.cluster.logs import Collector, Line
from bdflow.cluster.phases import PhasePipeline, is_phased
from bdflow.cluster.threads import limit
from bdflow.cluster.usage import NOTHING, UsageMeter, Used

T = TypeVar("T")
COLLECTOR = Collector()
LEAVING = 5.0  # seconds that threads of phases, idle by then, have to end


@dataclass(frozen=True)
class Answer:
    """A task's result and what it took, or what it raised and the traceback as text; and what was logged meanwhile."""

    worker: str
    seconds: float
    result: Any = None
    error: BaseException | None = None
    trace: str = ""
    used: Used = NOTHING
    logged: tuple[Line, ...] = ()
    made_on: MadeOn = UNKNOWN


class WorkerProcess:
    """One process in a run: the loaded worker object, used by one task at a time, or by one in each phase.

    Ray's lives on after a run: it is unloaded, and loaded again by a later one.
    """

    def __init__(self) -> None:
        self._work: Callable[[Any], object] | None = None
        self._pipeline: PhasePipeline[Any, Any, Any, Any] | None = None
        self._threads = 1
        self._one_at_a_time = threading.Lock()
        self._limited = threading.local()

    def hello(self) -> None:
        """Returns as soon as the process is up."""

    def load(self, make_worker: bytes, threads: int) -> bytes:
        """Make the worker object from the pickled `make_worker`; its answer says whether it has phases.

        An earlier one is let go before.
        """
        import cloudpickle

        def make(_: None) -> bool:
            if self._pipeline is not None or self._work is not None:
                self._let_go()
            limit(threads)
            worker = cloudpickle.loads(make_worker)()
            limit(threads)
            if is_phased(worker):
                self._pipeline = PhasePipeline(worker, partial(limit, threads))
            else:
                self._work = worker
            return self._pipeline is not None

        COLLECTOR.attach()
        with self._one_at_a_time:
            self._threads, self._limited = threads, threading.local()
            self._limited.done = True
            return answer(make, None)

    def call(self, task: bytes) -> bytes:
        """Work on a pickled task."""
        import cloudpickle

        pipeline = self._pipeline
        if pipeline is not None:
            return answer(lambda data: _Timed(*pipeline.call(cloudpickle.loads(data))), task)
        with self._one_at_a_time:
            if not getattr(self._limited, "done", False):
                limit(self._threads)
                self._limited.done = True
            work = self._work
            if work is None:
                return answer(_not_loaded, None)
            return answer(lambda data: work(cloudpickle.loads(data)), task)

    def unload(self) -> None:
        """Let go of the worker object and of the memory it held. No task may be in hand."""
        with self._one_at_a_time:
            self._let_go()

    def _let_go(self) -> None:
        self.free(LEAVING)
        give_back_memory()

    def free(self, timeout: float = 0.0) -> None:
        """Let go of the worker object and its threads; waits at most `timeout` seconds for each of these."""
        pipeline, self._pipeline, self._work = self._pipeline, None, None
        if pipeline is not None:
            pipeline.close(timeout)


@dataclass(frozen=True)
class _Timed:
    """A result that brings its own time and use."""

    result: Any
    seconds: float
    used: Used


def give_back_memory() -> None:
    """Collect what nothing refers to any more, and give back what torch, CuPy and the allocator keep for later."""
    gc.collect()
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if cupy is not None:
        cupy.get_default_memory_pool().free_all_blocks()
    with contextlib.suppress(OSError, AttributeError):  # glibc has it, others have not
        ctypes.CDLL(None).malloc_trim(0)


class NotLoaded(RuntimeError):
    """A task reached a process that took the place of the one that had loaded the worker."""


def _not_loaded(_: None) -> None:
    raise NotLoaded("no worker object here")


def _pickled(value: object) -> bytes:
    import cloudpickle

    data: bytes = cloudpickle.dumps(value)
    return data


def this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def answer(work: Callable[[T], object], task: T) -> bytes:
    """Call, time, and pickle what came out, also when that is an exception."""
    meter = UsageMeter()
    start = time.perf_counter()
    try:
        result = work(task)
        seconds = time.perf_counter() - start
        if isinstance(result, _Timed):
            done = Answer(this_process(), result.seconds, result.result, used=result.used)
        else:
            done = Answer(this_process(), seconds, result, used=meter.read())
        return _pickled(replace(done, logged=COLLECTOR.taken(), made_on=made_on()))
    except BaseException as error:
        trace = "".join(traceback.format_exception(error))
        failed = Answer(this_process(), time.perf_counter() - start, None, error, trace, logged=COLLECTOR.taken())
        return _pickle_failure(failed)


def is_failure(data: bytes) -> bool:
    """Whether a pickled answer brings an error."""
    import cloudpickle

    error: BaseException | None = cloudpickle.loads(data).error
    return error is not None


def _pickle_failure(failed: Answer) -> bytes:
    """Pickle with the exception itself if it survives the way, else with its parts put together anew."""
    import cloudpickle

    error = failed.error
    assert error is not None
    for carried in (error, _Parts(type(error), error.args, dict(error.__dict__))):
        try:
            data = _pickled(replace(failed, error=carried))  # type: ignore[arg-type]
            back = cloudpickle.loads(data)
            if type(back.error) is type(error):
                return data
        except Exception:
            continue
    plain = ClusterError(
        "a task",
        found=f"{type(error).__name__}: {error}",
        expected="that it is carried out",
        meaning="The error itself cannot be pickled, and so not be raised here.",
        action="see what it says; it came from the code that works on the task",
    )
    return _pickled(replace(failed, error=plain))


class _Parts:
    """Stands in for an exception that pickles but cannot be made from its `args` alone."""

    def __init__(self, kind: type[BaseException], args: tuple[object, ...], state: dict[str, object]) -> None:
        self.parts = kind, args, state

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return _from_parts, self.parts


def _from_parts(kind: type[BaseException], args: tuple[object, ...], state: dict[str, object]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


_PROCESSES: dict[str, WorkerProcess] = {}
_OPENING = threading.Lock()


def load_worker(run: str, make_worker: bytes, threads: int) -> bytes:
    """`WorkerProcess.load` in a process that outlives the run (Dask's)."""
    with _OPENING:
        process = _PROCESSES.setdefault(run, WorkerProcess())
    return process.load(make_worker, threads)


def call_worker(run: str, task: bytes) -> bytes:
    """`WorkerProcess.call` in a process that outlives the run."""
    return _PROCESSES.get(run, _UNLOADED).call(task)


def free_worker(run: str) -> None:
    """Let go of the run's worker object, and of the memory it held."""
    process = _PROCESSES.pop(run, None)
    if process is not None:
        process.free()
    del process
    gc.collect()


_UNLOADED = WorkerProcess()
