"""Work on Dask: an own local cluster of processes, or the workers at a scheduler's address.

Each Dask worker is one worker process of `bdflow.cluster.scheduler`; its tasks are sent to it by name, so Dask
carries and shows them, while retries and what is in flight are counted in one place for every executor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

from bdflow.cluster.access import dask_dashboard_warning
from bdflow.cluster.clusters.local import LocalCluster
from bdflow.cluster.errors import ClusterError, WorkerLost
from bdflow.cluster.executors.silence import Silence
from bdflow.cluster.limits import devices_here, excess, gib, refuse_excess, refuse_odd_gpus
from bdflow.cluster.scheduler import Answered, Backend, Event, Lost, PoolExecutor, WorkerStarted, uninterrupted
from bdflow.cluster.scratch import Scratch, nobody
from bdflow.cluster.types import Resources, SlurmSettings
from bdflow.cluster.worker import call_worker, free_worker, load_worker
from bdflow.errors import counted

if TYPE_CHECKING:
    from distributed import Client, Future, Worker

    from bdflow.cluster.clusters.cuda import DaskOnCuda
    from bdflow.cluster.clusters.slurm import DaskOnSlurm

log = logging.getLogger(__name__)
POLL_INTERVAL = 0.5  # seconds between two questions which workers there are
PROFILED = (3, 11), (3, 11, 9)
"""Versions of Python, from the first to before the second, in which a worker may stop for ever while Dask's profiler
asks for the frames of all threads. Garbage is collected meanwhile; a `threading.local` in it, such as each request to
an object store leaves, is freed under a lock that the same thread already holds (CPython's issue 106883)."""


class DaskExecutor(PoolExecutor):
    """See `cluster.open_executor`. Started at the first run, reused by those with the same resources."""

    name = "dask"

    def __init__(
        self,
        *,
        address: str | None = None,
        total: Resources | None = None,
        attempts: int = 3,
        start_timeout: float = 60.0,
        slurm: SlurmSettings | None = None,
        cuda: bool = False,
        dashboard: str | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        super().__init__(address=address, total=total, attempts=attempts, start_timeout=start_timeout, slurm=slurm)
        self._cuda, self._dashboard, self._scratch = cuda, dashboard, scratch or nobody()
        self._client: Any = None
        self._warned = False
        self._own: LocalCluster | DaskOnSlurm | DaskOnCuda | None = None

    def begin(self, make_worker: bytes, workers: int, resources: Resources) -> Backend:
        if self.address is not None:
            return _Workers(self._connected(), make_worker, None, resources, self.address, None)
        if self._own is not None and self._own.resources != resources:
            self.close()
        if self._own is None:
            with uninterrupted():
                self._own = self._started(resources)
                self._client = self._own.client
            self._log_dashboard()
        return _Workers(self._client, make_worker, workers, resources, None, self._own)

    def check(self, resources: Resources) -> None:
        """See `Executor.check`. At an address, the scheduler's workers are asked."""
        if self._slurm is not None:
            from bdflow.cluster.clusters.slurm import refuse_nodes

            refuse_nodes(resources, self._slurm)
        elif self.address is None:
            refuse_excess(resources, self._total)
        else:
            refuse_odd_gpus(resources)
            backend = _Workers(self._connected(), b"", None, resources, self.address, None)
            backend.refuse_all(list(self._client.nthreads()))

    def _connected(self) -> Client:
        if self._client is None:
            assert self.address is not None
            self._client = _connect(self.address, self._start_timeout)
            self._log_dashboard()
        client: Client = self._client
        return client

    def _started(self, resources: Resources) -> LocalCluster | DaskOnSlurm | DaskOnCuda:
        """An own cluster; one of which a worker dies while it comes up is started anew."""
        for attempt in range(1, self._attempts + 1):
            try:
                return self._start(resources)
            except ClusterError:
                raise
            except RuntimeError as error:
                if attempt == self._attempts:
                    log_hint = "`dmesg` (lines of the OOM killer) and what the worker wrote to stderr"
                    raise WorkerLost(None, attempt, str(error), log_hint) from error
        raise AssertionError("at least one attempt")

    def _start(self, resources: Resources) -> LocalCluster | DaskOnSlurm | DaskOnCuda:
        if self._slurm is not None:
            from bdflow.cluster.clusters.slurm import DaskOnSlurm

            return DaskOnSlurm(resources, self._slurm, self._dashboard, self._scratch)
        if self._cuda and resources.gpus:
            from bdflow.cluster.clusters.cuda import DaskOnCuda

            return DaskOnCuda(resources, self._dashboard, self._scratch)
        return LocalCluster(resources, self._total, self._dashboard, self._scratch)

    def _log_dashboard(self) -> None:
        if self._dashboard is not None:
            log.info("Dask's dashboard: %s", self._client.dashboard_link)
            if self._own is not None and not self._warned:
                log.warning("%s", dask_dashboard_warning(self._dashboard))
                self._warned = True

    @property
    def dashboard_link(self) -> str | None:
        """Where the dashboard is; None when nothing runs or it was not asked for."""
        return self._client.dashboard_link if self._client is not None and self._dashboard else None

    def end(self, backend: Backend, clean: bool) -> None:
        assert isinstance(backend, _Workers)
        if not clean and self._own is not None:
            backend.forget()
            self._own.kill()
            self._own = self._client = None
        else:
            backend.finish()

    def rest(self) -> None:
        """See `Executor.rest`. The own cluster stays: idle, its workers hold the libraries that they have loaded."""

    def close(self) -> None:
        """Stop the own cluster, or leave the one at the address."""
        own, client, self._own, self._client = self._own, self._client, None, None
        if own is not None:
            own.stop()
        elif client is not None:
            client.close()


def _connect(address: str, timeout: float) -> Client:
    from distributed import Client

    try:
        return Client(address, timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"Dask's scheduler at {address}",
            found=f"no answer within {timeout:g} s ({error})",
            expected="a scheduler that answers",
            action="start one (`dask scheduler`, then `dask worker ADDRESS`), or correct the address",
        ) from error


class _Workers:
    """The backend: one Dask worker, one worker process."""

    def __init__(
        self,
        client: Client,
        make_worker: bytes,
        wanted: int | None,
        resources: Resources,
        address: str | None,
        own: LocalCluster | DaskOnSlurm | DaskOnCuda | None,
    ) -> None:
        self.client: Any = client
        self.make_worker, self.wanted = make_worker, wanted
        self.resources, self.address, self.own = resources, address, own
        self.run = uuid.uuid4().hex
        self.workers: dict[str, dict[int, Any]] = {}
        self.events: queue.SimpleQueue[tuple[str, int, bytes | BaseException]] = queue.SimpleQueue()
        self.polled = float("-inf")
        scheduler = None if own is None else own.cluster.scheduler
        self.silence = None if scheduler is None else Silence(scheduler)

    def send(self, worker: str, call: int, task: bytes | None) -> None:
        job: tuple[Any, ...] = (call_worker, self.run, task)
        if task is None:
            job = (load_worker, self.run, self.make_worker, self.resources.threads)
        future = self.client.submit(*job, key=(f"{job[0].__name__}-{self.run}", call), workers=[worker], pure=False)
        self.workers[worker][call] = future
        self.client.loop.add_callback(self._await, future, worker, call)

    async def _await(self, future: Future[bytes], worker: str, call: int) -> None:
        try:
            self.events.put((worker, call, await future))
        except (Exception, asyncio.CancelledError) as error:
            self.events.put((worker, call, error))

    def wait(self, timeout: float) -> list[Event]:
        events = self.poll() if time.monotonic() - self.polled > POLL_INTERVAL else []
        with contextlib.suppress(queue.Empty):
            if not events:
                events.extend(self.take(*self.events.get(timeout=timeout)))
            while True:
                events.extend(self.take(*self.events.get_nowait()))
        return events

    def take(self, worker: str, call: int, outcome: bytes | BaseException) -> list[Event]:
        if self.workers.get(worker, {}).pop(call, None) is None:
            return []
        if isinstance(outcome, bytes):
            return [Answered(worker, call, outcome)]
        raise ClusterError(
            f"Dask's worker {worker}",
            found=f"that a task could not be carried to it ({type(outcome).__name__}: {outcome})",
            expected="a scheduler that stays up, and workers that import the same packages as this process",
            action=f"compare the Python environments, and look at {self.log_hint()}",
        ) from outcome

    def poll(self) -> list[Event]:
        """Compare the workers in use with those that the scheduler has."""
        try:
            there = set(self.client.nthreads())
            fit = there if self.own is None else there & self.own.ready()
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                "Dask's scheduler",
                found=f"that it is gone ({error})",
                expected="that it stays up while work goes on",
                meaning="What is written stays valid.",
                action="look at its log, start it again, and run the same command",
            ) from error
        self.polled = time.monotonic()
        if self.silence is not None:
            self.silence.look(self.workers)
        events: list[Event] = []
        for worker in [worker for worker in self.workers if worker not in there]:
            self.drop(worker)
            events.append(Lost(worker, f"the worker at {worker} left the scheduler"))
        for worker in fit:
            if worker not in self.workers and (self.wanted is None or len(self.workers) < self.wanted):
                if self.address is not None:
                    self.refuse_less(worker)
                    self.client.run(_unprofiled, *PROFILED, workers=[worker], on_error="ignore")
                self.workers[worker] = {}
                events.append(WorkerStarted(worker))
        return events

    def refuse_all(self, workers: list[str]) -> None:
        """Refuse workers at an address of which any has too little, before anything runs on them."""
        for worker in workers:
            self.refuse_less(worker)

    def refuse_less(self, worker: str) -> None:
        """Refuse a worker at an address that has less than what is asked for."""
        need = self.resources
        if not need.gpus and need.memory is None:
            return
        found = self.client.run(_capacity, workers=[worker], on_error="ignore").get(worker)
        if found is None:
            return
        devices, memory = found
        action = "start the workers with more, or ask for less"
        if devices < need.gpus:
            raise excess(f"{counted(need.gpus, 'GPU')} a worker", f"{devices} on the Dask worker at {worker}", action)
        if need.memory and memory and memory < need.memory:
            raise excess(f"{gib(need.memory)} a worker", f"{gib(memory)} at {worker}", action)

    def drop(self, worker: str) -> None:
        for future in self.workers.pop(worker, {}).values():
            future.release()

    def no_worker(self, seconds: float) -> ClusterError:
        return ClusterError(
            f"Dask's scheduler at {self.address}" if self.address else "Dask's own cluster",
            found=f"no worker for {seconds:g} s",
            expected="at least one",
            action="start workers (`dask worker ADDRESS --nthreads 3`), or raise `cluster.start_timeout`",
        )

    def log_hint(self) -> str:
        if self.address:
            return "the logs of the Dask workers and of the scheduler's job, and `dmesg` on the worker's machine"
        return "`dmesg` (lines of the OOM killer) and what the worker wrote to stderr"

    def finish(self) -> None:
        """Cancel what is in flight and free the workers' memory; what already runs there runs to its end."""
        workers = list(self.workers)
        pending = [future for calls in self.workers.values() for future in calls.values()]
        self.workers = {}
        with contextlib.suppress(OSError, TimeoutError):
            if pending:
                self.client.cancel(pending, force=True)
            there = self.client.nthreads()
            self.client.run(free_worker, self.run, workers=[s for s in workers if s in there], on_error="ignore")

    def forget(self) -> None:
        for worker in list(self.workers):
            self.drop(worker)


def _capacity(dask_worker: Worker) -> tuple[int, int | None]:
    return len(devices_here()), dask_worker.memory_manager.memory_limit


def _unprofiled(first: tuple[int, ...], fixed: tuple[int, ...], dask_worker: Worker) -> None:
    """End the profiler of a worker that others have started, if its Python is from `first` to before `fixed`."""
    profiler = dask_worker.periodic_callbacks.get("profile")
    if profiler is not None and first <= sys.version_info[:3] < fixed:
        profiler.stop()
