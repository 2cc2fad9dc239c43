"""Work in this very process, one task after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import Any

from bdflow.cluster.hardware import made_on
from bdflow.cluster.limits import refuse_excess
from bdflow.cluster.phases import in_order, is_phased
from bdflow.cluster.threads import limit, limited
from bdflow.cluster.types import DEFAULT, Completed, OnDone, R, Resources, T, Worker
from bdflow.cluster.usage import UsageMeter
from bdflow.cluster.worker import this_process


class SerialExecutor:
    """The driver is the worker, whatever `resources.workers` says; tasks are done in their order.

    For a worker of phases two threads beside it prepare the next task and finish the last.
    """

    name = "serial"

    def __init__(self, *, total: Resources | None = None) -> None:
        self._total = total

    def run(
        self,
        make_worker: Callable[[], Worker[T, R]],
        tasks: Sequence[T],
        *,
        resources: Resources = DEFAULT,
        on_done: OnDone | None = None,
    ) -> None:
        """See `Executor.run`. `threads` holds during the run; what the work raises is raised as it is."""
        refuse_excess(resources, self._total)
        if not len(tasks):
            return
        me = this_process()
        with limited(resources.threads):
            work: Any = make_worker()
            limit(resources.threads)
            if is_phased(work):
                for index, result, seconds, used in in_order(work, tasks, partial(limit, resources.threads)):
                    if on_done is not None:
                        on_done(Completed(index, result, seconds, me, 1, used, made_on()))
                return
            for index in range(len(tasks)):
                meter = UsageMeter()
                start = perf_counter()
                result = work(tasks[index])
                seconds = perf_counter() - start
                if on_done is not None:
                    on_done(Completed(index, result, seconds, me, 1, meter.read(), made_on()))

    def check(self, resources: Resources) -> None:
        """See `Executor.check`."""
        refuse_excess(resources, self._total)

    def rest(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing to stop."""

    def __enter__(self) -> SerialExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
