"""An own Dask cluster on this machine, quiet, on the loopback, and gone without a trace when stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import tempfile
import time
from typing import Any

from cluster.executor import Resources
from cluster.limits import devices_here, devices_of
from cluster.line import DEPTH
from cluster.threads import TRIM, environment, untrimmed

LOOPBACK = "127.0.0.1:0"  # for the HTTP server of health and metrics, which Dask always starts
GIVEN_UP = 3.0  # seconds without a process after which a nanny is taken for useless


def _without_spans(extensions: dict[str, Any]) -> dict[str, Any]:
    # Spans keep a record of every task ever sent for as long as the scheduler lives.
    return {name: extension for name, extension in extensions.items() if name != "spans"}


def scheduler_options(host: str, dashboard: str | None) -> dict[str, Any]:
    """Of an own scheduler on an address of this machine; `dashboard` is the address to show it on, if any."""
    return {
        "host": host,
        "protocol": "tcp://",
        "dashboard": dashboard is not None,
        "dashboard_address": f"{dashboard}:0" if dashboard is not None else LOOPBACK,
    }


class LocalCluster:
    """Scheduler in this process, workers in their own, each under a nanny that replaces it when it dies."""

    def __init__(self, resources: Resources, total: Resources | None, dashboard: str | None) -> None:
        import dask
        from distributed import Client, Nanny, Scheduler, SpecCluster
        from distributed import scheduler as scheduling
        from distributed import worker as working

        self.resources = resources
        self._down: dict[int, float] = {}
        self._closing: set[asyncio.Future[Any]] = set()
        self._scratch = tempfile.mkdtemp(prefix="dask-")
        spawned = {**dask.config.get("distributed.nanny.pre-spawn-environ"), **environment(resources.threads)}
        spawned.pop(TRIM, None)
        self._changed = {name: os.environ.get(name) for name in (*spawned, "PYTHONHASHSEED", TRIM)}
        untrimmed()
        devices = devices_here() if total is None else [str(n) for n in range(int(total.gpus))]
        options = {
            "nthreads": DEPTH,
            "memory_limit": resources.memory or 0,
            "host": "127.0.0.1",
            "protocol": "tcp://",
            "dashboard": False,
            "dashboard_address": LOOPBACK,
            "local_directory": self._scratch,
            "silence_logs": logging.CRITICAL,
            "extensions": _without_spans(working.DEFAULT_EXTENSIONS),
        }
        workers = {}
        for number in range(resources.workers):
            mine = ",".join(devices_of(number, resources.gpus, devices))
            workers[number] = {"cls": Nanny, "options": {**options, "env": {"CUDA_VISIBLE_DEVICES": mine}}}
        extensions = _without_spans(scheduling.DEFAULT_EXTENSIONS)
        where = scheduler_options("127.0.0.1", dashboard)
        scheduler = {"cls": Scheduler, "options": {**where, "extensions": extensions}}
        settings = {
            "distributed.nanny.pre-spawn-environ": spawned,
            "distributed.scheduler.worker-ttl": None,
        }
        # Threads and processes inherit the mask: a Ctrl-C reaches this process, which then ends the workers.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with dask.config.set({"distributed.nanny.pre-spawn-environ": None}), dask.config.set(settings):
                self.cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
        except BaseException:
            self._undo()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self.client = Client(self.cluster, set_as_default=False, direct_to_workers=True)

    def ready(self) -> set[str]:
        """Addresses of the workers that are up; a nanny that gave its worker up is replaced."""
        return self.cluster.sync(self._ready)

    async def _ready(self) -> set[str]:
        # A worker that dies while its nanny still waits for its first words is not started again by it.
        up, now = set(), time.monotonic()
        for name, nanny in list(self.cluster.workers.items()):
            process = nanny.process
            if process is not None and process.pid is not None:
                self._down.pop(name, None)
                if process.status.name == "running":
                    up.add(nanny.worker_address)
            elif now - self._down.setdefault(name, now) > GIVEN_UP:
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
        async def kill(nanny: Any) -> None:
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
        shutil.rmtree(self._scratch, ignore_errors=True)
        for name, value in self._changed.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
