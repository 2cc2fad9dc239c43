"""An own Dask cluster on this machine, quiet, on the loopback, and gone without a trace when stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bdflow.cluster.access import NO_PAGES, dask_security
from bdflow.cluster.limits import devices_here, devices_of
from bdflow.cluster.phases import DEPTH
from bdflow.cluster.scratch import Scratch
from bdflow.cluster.threads import TRIM, environment, untrimmed
from bdflow.cluster.types import Resources

if TYPE_CHECKING:
    from distributed import Nanny, Security

LOOPBACK = "127.0.0.1:0"  # for the HTTP server of health and metrics, which Dask always starts
LEFT_BY_DASK = ("PYTHONHASHSEED", "__DASK_PARENT_PID", TRIM)  # in the environment of a process that starts a nanny
NANNY_TIMEOUT = 3.0  # seconds without a process after which a nanny is replaced
UNWATCHED: dict[str, object] = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
}
"""What Dask does beside the work. Its profiler may stop a worker for ever (see `PROFILED`
of `bdflow.cluster.executors.dask`). By default schedulers, nannies and workers look 52 times a second whether their
event loop answers, and what their process uses: for two workers on two cores that is 6% of both.
"""


def _without_spans(extensions: Mapping[str, object]) -> dict[str, object]:
    # Spans keep a record of every task ever sent for as long as the scheduler lives.
    return {name: extension for name, extension in extensions.items() if name != "spans"}


def scheduler_options(host: str, dashboard: str | None, security: Security) -> dict[str, object]:
    """Of an own scheduler on an address of this machine; `dashboard` is the address to show it on, if any."""
    return {
        "host": host,
        "protocol": "tls://",
        "security": security,
        "dashboard": dashboard is not None,
        "dashboard_address": f"{dashboard}:0" if dashboard is not None else LOOPBACK,
    }


class Spawning:
    """What the processes of an own cluster on this machine find in their environment; undone when it is stopped.

    A nanny leaves what it gives its worker in this process too, where it is started.
    """

    def __init__(self, threads: int) -> None:
        import dask

        spawned = {**dask.config.get("distributed.nanny.pre-spawn-environ"), **environment(threads)}
        spawned.pop(TRIM, None)
        self.variables: dict[str, str] = spawned
        self._changed = {name: os.environ.get(name) for name in (*spawned, *LEFT_BY_DASK)}
        untrimmed()

    @contextlib.contextmanager
    def starting(self, dashboard: str | None) -> Iterator[None]:
        """Around the start of a cluster. Undone at once if that fails."""
        import dask

        settings = {
            "distributed.nanny.pre-spawn-environ": self.variables,
            "distributed.scheduler.worker-ttl": None,  # silent workers may be busy: `bdflow.cluster.executors.silence`
            **UNWATCHED,
            **(NO_PAGES if dashboard is None else {}),
        }
        # Threads and processes inherit the mask: a Ctrl-C reaches this process, which then ends the workers.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        for name in self.variables:  # what this process has would count more than Dask's settings
            os.environ.pop(name, None)
        try:
            with dask.config.set({"distributed.nanny.pre-spawn-environ": None}), dask.config.set(settings):
                yield
        except BaseException:
            self.undo()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def undo(self) -> None:
        """Give this process its environment back."""
        for name, value in self._changed.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class LocalCluster:
    """Scheduler in this process, workers in their own, each under a nanny that replaces it when it dies."""

    def __init__(self, resources: Resources, total: Resources | None, dashboard: str | None, scratch: Scratch) -> None:
        from distributed import Client, Nanny, Scheduler, SpecCluster
        from distributed import scheduler as scheduling
        from distributed import worker as working

        self.resources = resources
        self._down: dict[int, float] = {}
        self._closing: set[asyncio.Future[Any]] = set()
        self._owner, self._scratch = scratch, scratch.make()
        self._names = contextlib.ExitStack()
        self._names.enter_context(scratch.named_semaphores())
        self._spawning = Spawning(resources.threads)
        security = dask_security()
        devices = devices_here() if total is None else [str(n) for n in range(int(total.gpus))]
        options = {
            "nthreads": DEPTH,
            "memory_limit": resources.memory or 0,
            "host": "127.0.0.1",
            "protocol": "tls://",
            "security": security,
            "dashboard": False,
            "dashboard_address": LOOPBACK,
            "local_directory": str(self._scratch),
            "silence_logs": logging.CRITICAL,
            "extensions": _without_spans(working.DEFAULT_EXTENSIONS),
            "config": UNWATCHED,  # of nannies that replace others too
        }
        workers = {}
        for number in range(resources.workers):
            mine = ",".join(devices_of(number, resources.gpus, devices))
            workers[number] = {"cls": Nanny, "options": {**options, "env": {"CUDA_VISIBLE_DEVICES": mine}}}
        extensions = _without_spans(scheduling.DEFAULT_EXTENSIONS)
        where = scheduler_options("127.0.0.1", dashboard, security)
        scheduler = {"cls": Scheduler, "options": {**where, "extensions": extensions}}
        try:
            with self._spawning.starting(dashboard):
                self.cluster = SpecCluster(
                    workers=workers, scheduler=scheduler, security=security, silence_logs=logging.CRITICAL
                )
        except BaseException:
            self._undo()
            raise
        self.client = Client(self.cluster, set_as_default=False, direct_to_workers=True)

    def ready(self) -> set[str]:
        """Addresses of the workers that are up; a nanny that gave its worker up is replaced."""
        up: set[str] = self.cluster.sync(self._ready)
        return up

    async def _ready(self) -> set[str]:
        # A worker that dies while its nanny still waits for its first message is not started again by it.
        up, now = set(), time.monotonic()
        for name, nanny in list(self.cluster.workers.items()):
            process = nanny.process
            if process is not None and process.pid is not None:
                self._down.pop(name, None)
                if process.status.name == "running":
                    up.add(nanny.worker_address)
            elif now - self._down.setdefault(name, now) > NANNY_TIMEOUT:
                del self._down[name]
                del self.cluster.workers[name]
                closing = asyncio.ensure_future(nanny.close(timeout=1))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
        if len(self.cluster.workers) < len(self.cluster.worker_spec):
            self.cluster.scale(len(self.cluster.worker_spec))
        return up

    def kill(self) -> None:
        """Stop at once, whatever the workers are busy with."""
        self.cluster.sync(self._kill_workers)
        self.stop()

    async def _kill_workers(self) -> None:
        async def kill(nanny: Nanny) -> None:
            nanny.close_gracefully()
            await nanny.kill(timeout=0.2)

        nannies = list(self.cluster.workers.values())
        await asyncio.gather(*(kill(nanny) for nanny in nannies), return_exceptions=True)

    def stop(self) -> None:
        """Stop scheduler and workers; what starting them changed in this process is undone."""
        self.client.close()
        self.cluster.close()
        self._undo()

    def _undo(self) -> None:
        self._owner.remove(self._scratch)
        self._names.close()
        self._spawning.undo()
