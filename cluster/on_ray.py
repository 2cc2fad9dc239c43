"""Work on Ray: an own local instance, or the cluster at an address. Each actor is one seat of the pool."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cluster.errors import ClusterError
from cluster.executor import Resources
from cluster.limits import (
    devices_here,
    excess,
    gib,
    gpu_places,
    memory_here,
    refuse_excess,
    refuse_gpus,
    refuse_odd_gpus,
)
from cluster.line import DEPTH
from cluster.pool import Answered, Backend, Event, Joined, Lost, PoolExecutor, uninterrupted
from cluster.threads import TRIM, environment, untrimmed
from cluster.worker import Seat

if TYPE_CHECKING:
    from cluster.on_slurm import Slurm, Steps

OBJECT_STORE = 100 * 2**20  # bytes; results are small and travel beside it
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class RayExecutor(PoolExecutor):
    """See `cluster.open_executor`. Started at the first run, kept until `close`; actors live for one run.

    At an address an actor takes `threads` of Ray's CPUs; the own instance serves nobody else, so there only
    GPUs and memory are counted, and more workers than CPUs are allowed. Under SLURM the own instance's head, here, has
    no CPU to give, and each actor lives on a node of its own size.
    """

    name = "ray"

    def __init__(
        self,
        *,
        address: str | None = None,
        total: Resources | None = None,
        attempts: int = 3,
        start_timeout: float = 60.0,
        slurm: Slurm | None = None,
        dashboard: str | None = None,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(address=address, total=total, attempts=attempts, start_timeout=start_timeout, slurm=slurm)
        self._dashboard, self._announce = dashboard, announce
        self._nodes: Steps | None = None
        self._started = False

    def begin(self, make_worker: bytes, seats: int, resources: Resources) -> Backend:
        if not self._started:
            self._start(resources.workers)
        if self.address is not None:
            _refuse_nodes(resources)
        elif self._slurm is not None:
            self._add_nodes(resources, self._slurm)
        alone = self.address is None and self._slurm is None
        tend = self._nodes.tend if self._nodes is not None else None
        return _Actors(make_worker, seats, resources, shared=not alone, tend=tend)

    def check(self, resources: Resources) -> None:
        """See `Executor.check`. At an address, Ray's nodes are asked."""
        if self._slurm is not None:
            from cluster.on_slurm import refuse_nodes

            refuse_nodes(resources, self._slurm)
        elif self.address is None:
            refuse_excess(resources, self._total)
        else:
            refuse_odd_gpus(resources)
            if not self._started:
                self._start(resources.workers)
            _refuse_nodes(resources)

    def _add_nodes(self, resources: Resources, slurm: Slurm) -> None:
        import ray

        from cluster.on_slurm import Steps, ray_node, refuse_nodes

        if self._nodes is not None and self._nodes.need == resources:
            return
        refuse_nodes(resources, slurm)
        self._drop_nodes()
        with uninterrupted():
            address = ray.get_runtime_context().gcs_address
            self._nodes = Steps(slurm, ray_node(address, resources), resources)

    def _drop_nodes(self) -> None:
        if self._nodes is not None:
            self._nodes.stop()
            self._nodes = None

    def end(self, backend: Backend, clean: bool) -> None:
        assert isinstance(backend, _Actors)
        backend.kill()

    def close(self) -> None:
        """Stop the own instance, or leave the cluster at the address."""
        self._drop_nodes()
        if self._started:
            import ray

            self._started = False
            ray.shutdown()
            if self._sigterm is not None:
                signal.signal(signal.SIGTERM, self._sigterm)

    def _start(self, workers: int) -> None:
        import ray

        if ray.is_initialized():
            raise ClusterError(
                "Found Ray already started in this process; expected none, since stopping it at the end "
                "would stop another's work.\nWhat to do: close that executor first, or call ray.shutdown()."
            )
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if self.address is None:
            total = self._total
            options |= {
                "address": "local",
                "num_cpus": max(os.cpu_count() or 1, total.workers if total is not None else workers),
                "num_gpus": int(total.gpus) if total is not None else len(devices_here()),
                "_memory": (total.memory if total is not None else None) or memory_here(),
                "object_store_memory": OBJECT_STORE,
                "include_dashboard": self._dashboard is not None,
                "dashboard_host": self._dashboard or "127.0.0.1",
            }
            if self._slurm is not None:
                from cluster.on_slurm import host

                options |= {"num_cpus": 0, "num_gpus": 0, "_node_ip_address": host(self._slurm)}
        else:
            options["address"] = self.address
        main = threading.current_thread() is threading.main_thread()
        self._sigterm = signal.getsignal(signal.SIGTERM) if main else None
        try:
            with uninterrupted(), _variables(QUIET):
                context = ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"at {self.address!r}" if self.address else "on this machine"
            raise ClusterError(
                f"Ray did not start or answer {where} ({type(error).__name__}: {error}).\n"
                "What to do: check the address (`ray status`), and the logs below "
                "/tmp/ray/session_latest/logs."
            ) from error
        self._started = True
        if main and callable(self._sigterm):
            signal.signal(signal.SIGTERM, self._sigterm)  # Ray's own would end the process without this
        if self._announce is not None and self._dashboard is not None:
            self._announce(f"Ray's dashboard: http://{context.dashboard_url}")


@contextlib.contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (*values, TRIM)}
    os.environ.update({name: value for name, value in values.items() if before[name] is None})
    untrimmed()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _refuse_nodes(resources: Resources) -> None:
    """Refuse what no node of the cluster could place."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    need = {"CPU": resources.threads, "memory": resources.memory or 0}
    if resources.gpus:
        devices = sum(node.get("GPU", 0.0) for node in nodes)
        refuse_gpus(resources, sum(gpu_places(resources.gpus, n.get("GPU", 0.0)) for n in nodes), devices)
    for name, amount in need.items():
        places = sum(int(node.get(name, 0.0) // amount) for node in nodes) if amount else resources.workers
        if places < resources.workers:
            have = sum(node.get(name, 0.0) for node in nodes)
            asked, found = f"{amount} CPUs", f"{have:g} CPUs"
            if name == "memory":
                asked, found = gib(amount), f"{gib(have)} of memory"
            raise excess(
                f"{resources.workers} workers x {asked}",
                f"{found} on {len(nodes)} nodes (room for {places} such workers)",
                "ask for fewer workers or less for each, or add nodes",
            )


class _Actors:
    """The backend: one seat an actor, which takes as many calls at once as there are phases; its seat orders them."""

    def __init__(
        self,
        make_worker: bytes,
        seats: int,
        resources: Resources,
        *,
        shared: bool,
        tend: Callable[[], None] | None = None,
    ) -> None:
        import ray

        self.make_worker, self.threads, self.tend = make_worker, resources.threads, tend
        variables = environment(resources.threads)
        if not resources.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ""
        self.actor = ray.remote(Seat).options(
            num_cpus=resources.threads if shared else 0,
            num_gpus=resources.gpus,
            memory=resources.memory,
            max_concurrency=DEPTH,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": variables},
        )
        self.made = 0
        self.actors: dict[str, Any] = {}
        self.pending: dict[Any, tuple[str, int]] = {}
        for _ in range(seats):
            self.spawn()

    def spawn(self) -> None:
        self.made += 1
        name = f"actor {self.made}"
        self.actors[name] = self.actor.remote()
        self.pending[self.actors[name].hello.remote()] = (name, 0)

    def send(self, seat: str, flight: int, task: bytes | None) -> None:
        actor = self.actors[seat]
        if task is None:
            ref = actor.load.remote(self.make_worker, self.threads)
        else:
            ref = actor.call.remote(task)
        self.pending[ref] = (seat, flight)

    def wait(self, timeout: float) -> list[Event]:
        import ray

        if self.tend is not None:
            self.tend()
        ready, _ = ray.wait(list(self.pending), num_returns=1, timeout=timeout)
        if ready:
            ready, _ = ray.wait(list(self.pending), num_returns=len(self.pending), timeout=0)
        events = []
        for ref in sorted(ready, key=lambda ref: self.pending[ref][1]):
            if ref in self.pending:
                events.append(self.take(ref))
        return events

    def take(self, ref: Any) -> Event:
        import ray
        from ray import exceptions

        seat, flight = self.pending.pop(ref)
        gone = (
            exceptions.RayActorError,
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.ObjectLostError,
            exceptions.OutOfMemoryError,
        )
        try:
            data = ray.get(ref)
        except gone as error:
            self.drop(seat)
            self.spawn()
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return Lost(seat, " ".join(lines)[:600])
        except exceptions.RayError as error:
            raise ClusterError(
                f"Ray could not carry a task to {seat} ({type(error).__name__}: {error}).\n"
                "Expected: the cluster stays up, and workers import the same packages as this process.\n"
                f"What to do: compare the environments, and look at {self.look_at()}."
            ) from error
        return Answered(seat, flight, data) if flight else Joined(seat)

    def drop(self, seat: str) -> None:
        import ray

        actor = self.actors.pop(seat)
        self.pending = {ref: where for ref, where in self.pending.items() if where[0] != seat}
        ray.kill(actor)

    def nobody(self, seconds: float) -> str:
        import ray

        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU", "memory")}
        return (
            f"Ray started no actor for {seconds:g} s; expected at least one. Free now: {free}.\n"
            "What to do: wait for others' work to end, ask for less, or give a longer start_timeout."
        )

    def look_at(self) -> str:
        return "`dmesg` (lines of the OOM killer) and the logs below /tmp/ray/session_latest/logs on its machine"

    def kill(self) -> None:
        for seat in list(self.actors):
            self.drop(seat)
