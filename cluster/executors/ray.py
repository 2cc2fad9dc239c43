"""Work on Ray: an own local instance, or the cluster at an address. Each actor is one worker."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bdflow.cluster.access import ray_dashboard_warning
from bdflow.cluster.errors import ClusterError
from bdflow.cluster.limits import (
    devices_here,
    excess,
    gib,
    gpu_capacity,
    memory_here,
    refuse_excess,
    refuse_gpus,
    refuse_odd_gpus,
)
from bdflow.cluster.phases import DEPTH
from bdflow.cluster.ray_session import NO_METRICS, RaySession, environment_of_ray
from bdflow.cluster.scheduler import Answered, Backend, Event, Lost, PoolExecutor, WorkerStarted, uninterrupted
from bdflow.cluster.scratch import Scratch, nobody
from bdflow.cluster.threads import environment
from bdflow.cluster.types import Resources, SlurmSettings
from bdflow.cluster.worker import WorkerProcess, is_failure
from bdflow.errors import counted

if TYPE_CHECKING:
    from ray import ObjectRef

    from bdflow.cluster.clusters.slurm import Steps

log = logging.getLogger(__name__)
OBJECT_STORE = 100 * 2**20  # bytes; results are small and travel beside it


class RayExecutor(PoolExecutor):
    """See `cluster.open_executor`. Started at the first run, kept until `close`.

    Actors are kept for later runs that ask for the same threads, GPUs and memory, as many as the last run's `workers`.
    A run that did not end well leaves none: what failed may have spoilt a process.

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
        slurm: SlurmSettings | None = None,
        dashboard: str | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        super().__init__(address=address, total=total, attempts=attempts, start_timeout=start_timeout, slurm=slurm)
        self._dashboard, self._scratch = dashboard, scratch or nobody()
        self._session: RaySession | None = None
        self._failed = False
        self._of_nodes: dict[str, str] = {}
        self._nodes: Steps | None = None
        self._started = False
        self._actors: _Actors | None = None
        self._accepted: set[Resources] = set()

    def begin(self, make_worker: bytes, workers: int, resources: Resources) -> Backend:
        if not self._started:
            self._start(resources.workers)
        if self.address is not None:
            self._refuse_nodes(resources)
        elif self._slurm is not None:
            self._add_nodes(resources, self._slurm)
        if self._actors is None or not self._actors.fit(resources):
            self._drop_actors()
            alone = self.address is None and self._slurm is None
            ensure_running = self._nodes.ensure_running if self._nodes is not None else None
            self._actors = _Actors(resources, self._logs, shared=not alone, ensure_running=ensure_running)
        self._actors.use(make_worker, workers, resources.workers)
        return self._actors

    def check(self, resources: Resources) -> None:
        """See `Executor.check`. At an address, Ray's nodes are asked."""
        if self._slurm is not None:
            from bdflow.cluster.clusters.slurm import refuse_nodes

            refuse_nodes(resources, self._slurm)
        elif self.address is None:
            refuse_excess(resources, self._total)
        else:
            refuse_odd_gpus(resources)
            if not self._started:
                self._start(resources.workers)
            self._refuse_nodes(resources)

    def _refuse_nodes(self, resources: Resources) -> None:
        """Refuse what the nodes could not place when it was first asked for. Later a node may be lost: then those that
        are left do the work, and actors without a place wait for one."""
        if resources not in self._accepted:
            _refuse_nodes(resources)
            self._accepted.add(resources)

    def _add_nodes(self, resources: Resources, slurm: SlurmSettings) -> None:
        import ray

        from bdflow.cluster.clusters.slurm import Steps, ray_node, refuse_nodes

        if self._nodes is not None and self._nodes.need == resources:
            return
        refuse_nodes(resources, slurm)
        self._drop_nodes()
        with uninterrupted():
            address = ray.get_runtime_context().gcs_address
            self._nodes = Steps(slurm, ray_node(address, resources), resources, self._of_nodes)

    def _drop_nodes(self) -> None:
        if self._nodes is not None:
            self._drop_actors()
            self._nodes.stop()
            self._nodes = None

    def end(self, backend: Backend, clean: bool) -> None:
        assert isinstance(backend, _Actors)
        if clean:
            backend.keep()
        else:
            self._failed = True
            self._drop_actors()

    def rest(self) -> None:
        """See `Executor.rest`. Actors on a cluster at an address end, and those with GPUs; others of the own instance
        stay: idle, each holds the libraries that it has loaded."""
        if self.address is not None or (self._actors is not None and self._actors.size.gpus):
            self._drop_actors()

    def _drop_actors(self) -> None:
        if self._actors is not None:
            self._actors.kill()
            self._actors = None

    def close(self) -> None:
        """Stop the own instance, or leave the cluster at the address."""
        self._drop_actors()
        self._drop_nodes()
        if self._started:
            import ray

            self._started = False
            self._accepted.clear()
            ray.shutdown()
            if self._sigterm is not None:
                signal.signal(signal.SIGTERM, self._sigterm)
        self._drop_session()

    def _drop_session(self) -> None:
        if self._session is not None:
            self._session.close(keep=self._failed)
            self._session = None

    @property
    def _logs(self) -> str:
        """Where Ray's logs are, for messages."""
        return f"the logs below {self._session.logs}" if self._session else "Ray's logs (/tmp/ray/session_latest/logs)"

    def _start(self, workers: int) -> None:
        import ray
        import ray.exceptions

        if ray.is_initialized():
            raise ClusterError(
                "Ray",
                found="that it is already started in this process",
                expected="a process in which Ray is not started",
                meaning="Stopping it at the end would stop another's work.",
                action="close what uses Ray first, or call ray.shutdown()",
            )
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if self.address is None:
            total = self._total
            self._session, self._failed = RaySession(self._scratch), False
            options |= {
                "address": "local",
                **self._session.options,
                "num_cpus": max(os.cpu_count() or 1, total.workers if total is not None else workers),
                "num_gpus": int(total.gpus) if total is not None else len(devices_here()),
                "_memory": (total.memory if total is not None else None) or memory_here(),
                "object_store_memory": OBJECT_STORE,
                "include_dashboard": self._dashboard is not None,
                "dashboard_host": self._dashboard or "127.0.0.1",
            }
            if self._slurm is not None:
                from bdflow.cluster.clusters.slurm import host

                options |= {"num_cpus": 0, "num_gpus": 0, "_node_ip_address": host(self._slurm)}
        else:
            options["address"] = self.address
        metrics = NO_METRICS if self._dashboard is None else {}
        main = threading.current_thread() is threading.main_thread()
        self._sigterm = signal.getsignal(signal.SIGTERM) if main else None
        try:
            with uninterrupted(), environment_of_ray(own=self.address is None, more=metrics) as self._of_nodes:
                context = ray.init(**options)
        except Exception as error:  # a plain one where its node is not up after 30 s, whatever else the machine does
            where = f"at {self.address!r}" if self.address else "on this machine"
            logs, self._failed = self._logs, True
            self._drop_session()
            raise ClusterError(
                f"Ray {where}",
                found=f"that it did not start or answer ({type(error).__name__}: {error})",
                expected="a cluster that answers",
                action=f"check the address (`ray status`), and {logs}; on a busy machine, begin again",
            ) from error
        self._started = True
        if main and callable(self._sigterm):
            signal.signal(signal.SIGTERM, self._sigterm)  # Ray's own would end the process without this
        if self._dashboard is not None:
            log.info("Ray's dashboard: http://%s", context.dashboard_url)
            warning = ray_dashboard_warning(self._dashboard) if self.address is None else None
            if warning:
                log.warning("%s", warning)


def _refuse_nodes(resources: Resources) -> None:
    """Refuse what no node of the cluster could place."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    need = {"CPU": resources.threads, "memory": resources.memory or 0}
    if resources.gpus:
        devices = sum(node.get("GPU", 0.0) for node in nodes)
        refuse_gpus(resources, sum(gpu_capacity(resources.gpus, n.get("GPU", 0.0)) for n in nodes), devices)
    for name, amount in need.items():
        capacity = sum(int(node.get(name, 0.0) // amount) for node in nodes) if amount else resources.workers
        if capacity < resources.workers:
            have = sum(node.get(name, 0.0) for node in nodes)
            asked, found = counted(amount, "CPU"), counted(have, "CPU")
            if name == "memory":
                asked, found = gib(amount), f"{gib(have)} of memory"
            raise excess(
                f"{counted(resources.workers, 'worker')} x {asked}",
                f"{found} on {counted(len(nodes), 'node')} (enough for {capacity} such workers)",
                "ask for fewer workers or less for each, or add nodes",
            )


class _Actors:
    """Actors of one size, each a worker, kept from run to run; the backend of the run that uses them.

    An actor takes as many calls at once as there are phases and orders them. After a run it lets go of the worker
    object. One that still starts by then, or loads for the run that ended without it, does so first, and is offered to
    the next run after that. A kept actor that is found dead or spoilt is replaced without a word: it had no task.
    """

    def __init__(
        self, resources: Resources, logs: str, *, shared: bool, ensure_running: Callable[[], None] | None = None
    ) -> None:
        import ray

        self.size, self.logs, self.ensure_running = replace(resources, workers=1), logs, ensure_running
        variables = environment(resources.threads)
        if not resources.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ""
        self.actor = ray.remote(WorkerProcess).options(
            num_cpus=resources.threads if shared else 0,
            num_gpus=resources.gpus,
            memory=resources.memory,
            max_concurrency=DEPTH,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": variables},
        )
        self.make_worker = b""
        self.made = 0
        self.actors: dict[str, Any] = {}
        self.pending: dict[Any, tuple[str, int]] = {}
        self.used: set[str] = set()
        self.kept: set[str] = set()

    def fit(self, resources: Resources) -> bool:
        """Whether these actors are what is asked for, but for their number."""
        return self.size == replace(resources, workers=1)

    def use(self, make_worker: bytes, workers: int, most: int) -> None:
        """Offer `workers` actors to a run, those that are ready first; at most `most` are kept."""
        self.make_worker = make_worker
        behind = self.unanswered()
        names = sorted(self.actors, key=lambda name: behind.count(name))
        for name in names[most:]:
            self.drop(name)
        self.used = set(names[:workers])
        for _ in range(workers - len(self.used)):
            self.spawn()

    def unanswered(self) -> list[str]:
        """The actor of each call that is not answered yet."""
        import ray

        if not self.pending:
            return []
        _, open_calls = ray.wait(list(self.pending), num_returns=len(self.pending), timeout=0)
        return [self.pending[ref][0] for ref in open_calls]

    def keep(self) -> None:
        """Have the actors of a run that ended well let go of its worker object, and wait for the next run."""
        self.pending = {ref: (name, 0) for ref, (name, _) in self.pending.items()}
        for name in self.used:
            self.pending[self.actors[name].unload.remote()] = (name, 0)
        self.kept, self.used = set(self.actors), set()

    def spawn(self) -> None:
        self.made += 1
        name = f"actor {self.made}"
        self.actors[name] = self.actor.remote()
        self.used.add(name)
        self.pending[self.actors[name].hello.remote()] = (name, 0)

    def send(self, worker: str, call: int, task: bytes | None) -> None:
        actor = self.actors[worker]
        if task is None:
            ref = actor.load.remote(self.make_worker, self.size.threads)
        else:
            ref = actor.call.remote(task)
        self.pending[ref] = (worker, call)

    def wait(self, timeout: float) -> list[Event]:
        import ray

        if self.ensure_running is not None:
            self.ensure_running()
        refs = [ref for ref, (worker, _) in self.pending.items() if worker in self.used]
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout)
        if ready:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        events = []
        for ref in sorted(ready, key=lambda ref: self.pending[ref][1]):
            event = self.take(ref) if ref in self.pending else None
            if event is not None:
                events.append(event)
        return events

    def take(self, ref: ObjectRef[bytes | None]) -> Event | None:
        import ray
        from ray import exceptions

        worker, call = self.pending.pop(ref)
        kept = worker in self.kept
        gone = (
            exceptions.RayActorError,
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.ObjectLostError,
            exceptions.OutOfMemoryError,
        )
        try:
            data = ray.get(ref)
        except exceptions.RayError as error:
            if kept or isinstance(error, gone):
                self.drop(worker)
                self.spawn()
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                return None if kept else Lost(worker, " ".join(lines)[:600])
            raise ClusterError(
                f"Ray's {worker}",
                found=f"that a task could not be carried to it ({type(error).__name__}: {error})",
                expected="a cluster that stays up, and workers that import the same packages as this process",
                action=f"compare the Python environments, and look at {self.log_hint()}",
            ) from error
        if call:
            assert data is not None
            return Answered(worker, call, data)
        if data is not None and is_failure(data):  # it could not load for the run before
            self.drop(worker)
            self.spawn()
            return None
        if (worker, 0) in self.pending.values():
            return None
        self.kept.discard(worker)
        return WorkerStarted(worker)

    def drop(self, worker: str) -> None:
        import ray

        actor = self.actors.pop(worker)
        self.used.discard(worker)
        self.kept.discard(worker)
        self.pending = {ref: where for ref, where in self.pending.items() if where[0] != worker}
        ray.kill(actor)

    def no_worker(self, seconds: float) -> ClusterError:
        import ray

        there = ray.available_resources()
        free = [counted(there.get("CPU", 0), "CPU"), counted(there.get("GPU", 0), "GPU"), gib(there.get("memory", 0))]
        return ClusterError(
            "Ray",
            found=f"no worker started for {seconds:g} s (free now: {', '.join(free)})",
            expected="at least one",
            action="wait for others' work to end, ask for fewer workers or less for each, or raise "
            "`cluster.start_timeout`",
        )

    def log_hint(self) -> str:
        return f"`dmesg` (lines of the OOM killer) and {self.logs} on its machine"

    def kill(self) -> None:
        for worker in list(self.actors):
            self.drop(worker)
