"""Work on Dask: an own local cluster of processes, or the workers at a scheduler's address.

Each worker process is one seat of the pool (see `cluster.pool`); its tasks are sent to it by name, so Dask
carries and shows them, while retries and what is in flight are counted in one place for every executor.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.dask_local import LocalCluster
from cluster.errors import ClusterError, WorkerLost
from cluster.executor import Resources
from cluster.limits import devices_here, excess, gib, refuse_excess, refuse_odd_gpus
from cluster.pool import Answered, Backend, Event, Joined, Lost, PoolExecutor, uninterrupted
from cluster.worker import call_seat, free_seat, load_seat

if TYPE_CHECKING:
    from cluster.on_cuda import DaskOnCuda
    from cluster.on_slurm import DaskOnSlurm, Slurm

LOOK = 0.5  # seconds between two looks at which workers there are


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
        slurm: Slurm | None = None,
        cuda: bool = False,
        dashboard: str | None = None,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(address=address, total=total, attempts=attempts, start_timeout=start_timeout, slurm=slurm)
        self._cuda, self._dashboard, self._announce = cuda, dashboard, announce
        self._client: Any = None
        self._own: LocalCluster | DaskOnSlurm | DaskOnCuda | None = None

    def begin(self, make_worker: bytes, seats: int, resources: Resources) -> Backend:
        if self.address is not None:
            return _Workers(self._connected(), make_worker, None, resources, self.address, None)
        if self._own is not None and self._own.resources != resources:
            self.close()
        if self._own is None:
            with uninterrupted():
                self._own = self._started(resources)
                self._client = self._own.client
            self._tell()
        return _Workers(self._client, make_worker, seats, resources, None, self._own)

    def check(self, resources: Resources) -> None:
        """See `Executor.check`. At an address, the scheduler's workers are asked."""
        if self._slurm is not None:
            from cluster.on_slurm import refuse_nodes

            refuse_nodes(resources, self._slurm)
        elif self.address is None:
            refuse_excess(resources, self._total)
        else:
            refuse_odd_gpus(resources)
            backend = _Workers(self._connected(), b"", None, resources, self.address, None)
            backend.refuse_all(list(self._client.nthreads()))

    def _connected(self) -> Any:
        if self._client is None:
            assert self.address is not None
            self._client = _connect(self.address, self._start_timeout)
            self._tell()
        return self._client

    def _started(self, resources: Resources) -> LocalCluster | DaskOnSlurm | DaskOnCuda:
        """An own cluster; one of which a worker dies while it comes up is started anew."""
        for attempt in range(1, self._attempts + 1):
            try:
                return self._start(resources)
            except ClusterError:
                raise
            except RuntimeError as error:
                if attempt == self._attempts:
                    look_at = "`dmesg` (lines of the OOM killer) and what the worker wrote to stderr"
                    raise WorkerLost(None, attempt, str(error), look_at) from error
        raise AssertionError("at least one attempt")

    def _start(self, resources: Resources) -> LocalCluster | DaskOnSlurm | DaskOnCuda:
        if self._slurm is not None:
            from cluster.on_slurm import DaskOnSlurm

            return DaskOnSlurm(resources, self._slurm, self._dashboard)
        if self._cuda and resources.gpus:
            from cluster.on_cuda import DaskOnCuda

            return DaskOnCuda(resources, self._dashboard)
        return LocalCluster(resources, self._total, self._dashboard)

    def _tell(self) -> None:
        if self._announce is not None and self._dashboard is not None:
            self._announce(f"Dask's dashboard: {self._client.dashboard_link}")

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

    def close(self) -> None:
        """Stop the own cluster, or leave the one at the address."""
        own, client, self._own, self._client = self._own, self._client, None, None
        if own is not None:
            own.stop()
        elif client is not None:
            client.close()


def _connect(address: str, timeout: float) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"No Dask scheduler answered at {address!r} within {timeout:g} s ({error}).\n"
            "What to do: start one (`dask scheduler`, `dask worker ADDRESS`) or correct the address."
        ) from error


class _Workers:
    """The backend: one seat a worker process."""

    def __init__(
        self,
        client: Any,
        make_worker: bytes,
        wanted: int | None,
        resources: Resources,
        address: str | None,
        own: LocalCluster | DaskOnSlurm | DaskOnCuda | None,
    ) -> None:
        self.client, self.make_worker, self.wanted = client, make_worker, wanted
        self.resources, self.address, self.own = resources, address, own
        self.run = uuid.uuid4().hex
        self.seats: dict[str, dict[int, Any]] = {}
        self.events: queue.SimpleQueue[tuple[str, int, bytes | BaseException]] = queue.SimpleQueue()
        self.looked = float("-inf")

    def send(self, seat: str, flight: int, task: bytes | None) -> None:
        job: tuple[Any, ...] = (call_seat, self.run, task)
        if task is None:
            job = (load_seat, self.run, self.make_worker, self.resources.threads)
        future = self.client.submit(*job, key=(f"{job[0].__name__}-{self.run}", flight), workers=[seat], pure=False)
        self.seats[seat][flight] = future
        self.client.loop.add_callback(self._await, future, seat, flight)

    async def _await(self, future: Any, seat: str, flight: int) -> None:
        try:
            self.events.put((seat, flight, await future))
        except (Exception, asyncio.CancelledError) as error:
            self.events.put((seat, flight, error))

    def wait(self, timeout: float) -> list[Event]:
        events = self.look() if time.monotonic() - self.looked > LOOK else []
        with contextlib.suppress(queue.Empty):
            if not events:
                events.extend(self.take(*self.events.get(timeout=timeout)))
            while True:
                events.extend(self.take(*self.events.get_nowait()))
        return events

    def take(self, seat: str, flight: int, outcome: bytes | BaseException) -> list[Event]:
        if self.seats.get(seat, {}).pop(flight, None) is None:
            return []
        if isinstance(outcome, bytes):
            return [Answered(seat, flight, outcome)]
        raise ClusterError(
            f"Dask could not carry a task to {seat} ({type(outcome).__name__}: {outcome}).\n"
            "Expected: the scheduler stays up, and workers import the same packages as this process.\n"
            f"What to do: compare the environments, and look at {self.look_at()}."
        ) from outcome

    def look(self) -> list[Event]:
        """Compare the seats with the workers the scheduler has."""
        try:
            there = set(self.client.nthreads())
            fit = there if self.own is None else there & self.own.ready()
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                f"The Dask scheduler is gone ({error}).\n"
                "What to do: look at its log, start it again and run the same command."
            ) from error
        self.looked = time.monotonic()
        events: list[Event] = []
        for seat in [seat for seat in self.seats if seat not in there]:
            self.drop(seat)
            events.append(Lost(seat, f"the worker at {seat} left the scheduler"))
        for seat in fit:
            if seat not in self.seats and (self.wanted is None or len(self.seats) < self.wanted):
                if self.address is not None:
                    self.refuse_less(seat)
                self.seats[seat] = {}
                events.append(Joined(seat))
        return events

    def refuse_all(self, seats: list[str]) -> None:
        """Refuse workers at an address of which any has too little, before anything runs on them."""
        for seat in seats:
            self.refuse_less(seat)

    def refuse_less(self, seat: str) -> None:
        """Refuse a worker at an address that has less than what is asked for."""
        need = self.resources
        if not need.gpus and need.memory is None:
            return
        found = self.client.run(_offer, workers=[seat], on_error="ignore").get(seat)
        if found is None:
            return
        devices, memory = found
        action = "start the workers with more, or ask for less"
        if devices < need.gpus:
            raise excess(f"{need.gpus:g} GPUs a worker", f"{devices} on the Dask worker at {seat}", action)
        if need.memory and memory and memory < need.memory:
            raise excess(f"{gib(need.memory)} a worker", f"{gib(memory)} at {seat}", action)

    def drop(self, seat: str) -> None:
        for future in self.seats.pop(seat, {}).values():
            future.release()

    def nobody(self, seconds: float) -> str:
        where = f"the scheduler at {self.address}" if self.address else "the own cluster"
        return (
            f"Found no Dask worker at {where} for {seconds:g} s; expected at least one.\n"
            "What to do: start workers (`dask worker ADDRESS --nthreads 3`), or give a longer start_timeout."
        )

    def look_at(self) -> str:
        if self.address:
            return "the logs of the Dask workers and of the scheduler's job, and `dmesg` on the worker's machine"
        return "`dmesg` (lines of the OOM killer) and what the worker wrote to stderr"

    def finish(self) -> None:
        """Cancel what is in flight and free the workers' memory; what already runs there runs to its end."""
        seats = list(self.seats)
        pending = [future for flights in self.seats.values() for future in flights.values()]
        self.seats = {}
        with contextlib.suppress(OSError, TimeoutError):
            if pending:
                self.client.cancel(pending, force=True)
            there = self.client.nthreads()
            self.client.run(free_seat, self.run, workers=[s for s in seats if s in there], on_error="ignore")

    def forget(self) -> None:
        for seat in list(self.seats):
            self.drop(seat)


def _offer(dask_worker: Any) -> tuple[int, int | None]:
    return len(devices_here()), dask_worker.memory_manager.memory_limit
