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
from typing import Any

from cluster.dask_local import LocalCluster
from cluster.errors import ClusterError
from cluster.executor import Resources
from cluster.limits import devices_here, excess, gib
from cluster.pool import Answered, Backend, Event, Joined, Lost, PoolExecutor, uninterrupted
from cluster.worker import call_seat, free_seat, load_seat

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
        dashboard: bool = False,
    ) -> None:
        super().__init__(address=address, total=total, attempts=attempts, start_timeout=start_timeout)
        self._dashboard = dashboard
        self._client: Any = None
        self._local: LocalCluster | None = None

    def begin(self, make_worker: bytes, seats: int, resources: Resources) -> Backend:
        if self.address is not None:
            if self._client is None:
                self._client = _connect(self.address, self._start_timeout)
            return _Workers(self._client, make_worker, None, resources, self.address, None)
        if self._local is not None and self._local.resources != resources:
            self.close()
        if self._local is None:
            with uninterrupted():
                self._local = LocalCluster(resources, self._total, self._dashboard)
                self._client = self._local.client
        return _Workers(self._client, make_worker, seats, resources, None, self._local)

    @property
    def dashboard_link(self) -> str | None:
        """Where the dashboard is; None when nothing runs or it was not asked for."""
        return self._client.dashboard_link if self._client is not None and self._dashboard else None

    def end(self, backend: Backend, clean: bool) -> None:
        assert isinstance(backend, _Workers)
        if not clean and self._local is not None:
            backend.forget()
            self._local.kill()
            self._local = self._client = None
        else:
            backend.finish()

    def close(self) -> None:
        """Stop the own cluster, or leave the one at the address."""
        local, client, self._local, self._client = self._local, self._client, None, None
        if local is not None:
            local.stop()
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
        local: LocalCluster | None,
    ) -> None:
        self.client, self.make_worker, self.wanted = client, make_worker, wanted
        self.resources, self.address, self.local = resources, address, local
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
            fit = there if self.local is None else there & self.local.ready()
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
        where = f"the scheduler at {self.address}" if self.address else "the local cluster"
        return (
            f"Found no Dask worker at {where} for {seconds:g} s; expected at least one.\n"
            "What to do: start workers (`dask worker ADDRESS --nthreads 1`), or give a longer start_timeout."
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
