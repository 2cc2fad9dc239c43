"""Carries the work of stages to executors, seals their stores, and mends what is found damaged on the way."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from bdflow.cluster import ClusterError, Completed, Executor, Resources, open_executor
from bdflow.cluster.clusters import slurm
from bdflow.cluster.hardware import UNKNOWN, MadeOn
from bdflow.cluster.limits import devices_here, idle_gpus, workers_per_device
from bdflow.cluster.progress import Progress
from bdflow.cluster.scratch import Scratch
from bdflow.config import ClusterSettings, StageExecution
from bdflow.errors import InputError, NotAtHand, listed
from bdflow.stores import CorruptChunk, Store
from bdflow.stores.disk_space import space_warning
from bdflow.stores.journal import Journal, makers
from bdflow.stores.paths import AnyPath, RemotePath, scratch_folder
from bdflow.study.stage import Context, Stage, Step, Work

log = logging.getLogger(__name__)
MIXED = (
    "Another model of GPU, or another version of torch, may round otherwise, and one store then holds values of both. "
    "What to do: nothing, if such differences do not matter to you; else stop this run, delete the folders of these "
    "stores from the study, and run the same command again on one of the two."
)


class Runner:
    """Carries works to executors, seals their stores, and mends what is found damaged on the way.

    It is made under the study's lock: what killed runs of the study left on this machine is swept.
    """

    def __init__(self, stages: Mapping[str, Stage], context: Context, journal: Journal, stack: ExitStack) -> None:
        self.stages = stages
        self.context, self.journal, self.stack = context, journal, stack
        self.scratch = scratch_of(context.study.path)
        self.scratch.sweep()
        self.executors: dict[str, Executor] = {}
        self.partitions = 0
        self.mended: set[tuple[str, str, tuple[int, ...]]] = set()

    def fill(self, name: str) -> None:
        """Do all steps of one stage. A damaged chunk it reads is computed again, once."""
        while True:
            try:
                for step in self.stages[name].steps(self.context):
                    self._do(name, step)
                return
            except CorruptChunk as damage:
                key = (damage.store, damage.array, damage.chunk)
                if key in self.mended or damage.store not in self.context.expected:
                    raise
                self.repair([damage])

    def repair(self, damages: Sequence[CorruptChunk], lost: Sequence[str] = ()) -> None:
        """Forget damaged partitions and fill them again, and stores that are lost, in the order of the stages."""
        owners = {self.context.expected[path].stage for path in lost if path in self.context.expected}
        for damage in damages:
            self.mended.add((damage.store, damage.array, damage.chunk))
            log.warning("%s Computing it again.", damage.headline)
            store = self.context.study.store(damage.store)
            if damage.partition is not None:
                self.context.study.refuse_to_mix(damage.store, self.context.expected[damage.store])
                store.forget(damage.partition)
            owners.add(self.context.expected[damage.store].stage)
        for name in self.stages:
            if name in owners:
                self.fill(name)

    def _do(self, stage: str, step: Step) -> None:
        self.context.look_again()
        for key in step.needs:
            self.context.ready(key)
        try:
            work = step.start()
        except NotAtHand:
            if not step.fills or not all(self.context.is_sealed(key) for key in step.fills):
                raise
            work = Work()
        stores = [self.context.study.store(key) for key in step.fills]
        if work.tasks:
            settings = getattr(self.context.config.execution, stage)
            resources = resources_of(settings, self.context.config.cluster)
            warning = space_warning(stores, self.context.study.path)
            if warning:
                log.warning("%s", warning)
            done: list[Completed] = []
            makers_seen = _Makers(self, self.stages[stage], step, stores)
            start = time.perf_counter()
            try:
                with Progress(step.label, len(work.tasks), unit=step.unit) as progress:

                    def on_done(completed: Completed) -> None:
                        done.append(completed)
                        self.partitions += 1
                        makers_seen.note(completed.made_on)
                        progress.advance(completed)

                    try:
                        self._alone(settings.executor).run(
                            work.make_worker, work.tasks, resources=resources, on_done=on_done
                        )
                    except ClusterError as error:
                        error.inside(f"{step.label} ({settings.executor})")
                        raise
            finally:
                attrs = {"stage": stage, "unit": step.unit, "wall_seconds": time.perf_counter() - start}
                asked = {"workers": resources.workers, "gpus": resources.gpus}
                self._write_down(step, work, {**attrs, **settings.model_dump(), **asked}, done)
        for store in stores:
            if not store.sealed:
                store.seal()

    def _write_down(self, step: Step, work: Work, attrs: dict[str, object], done: Sequence[Completed]) -> None:
        """Journal what was finished, also of work that was stopped."""
        if done:
            costs: dict[str, Sequence[object]] = {
                "read": [d.used.read for d in done],
                "written": [d.used.written for d in done],
                "peak": [d.used.peak for d in done],
                "what": [str(work.tasks[d.index])[:120] for d in done],
            }
            columns = [d.seconds for d in done], [d.attempts for d in done], [d.worker for d in done]
            self.journal.record(step.label, attrs, *columns, costs)

    def check(self, stages: Sequence[str]) -> set[str]:
        """Refuse what the cluster cannot give to any stage that is not done yet, or what that stage cannot do here,
        before the first one starts. Returns the stages that are done.
        """
        done = {name for name in stages if name in self.stages and self._done(name)}
        asked: dict[str, Resources] = {}
        for name in stages:
            if name in self.stages and name not in done:
                self.stages[name].check(self.context)
                settings = getattr(self.context.config.execution, name)
                resources = resources_of(settings, self.context.config.cluster)
                if settings.executor != "serial" and resources.gpus:
                    asked[name] = resources
                try:
                    self._executor(settings.executor).check(resources)
                except ClusterError as error:
                    error.inside(f"execution.{name} ({settings.executor})")
                    raise
        idle = idle_gpus(asked, gpus_given(self.context.config.cluster)) if asked else ""
        if idle:
            log.warning("%s", idle)
        return done

    def _done(self, stage: str) -> bool:
        study, expected = self.context.study, self.context.expected
        mine = [path for path, provenance in expected.items() if provenance.stage == stage]
        return all(study.declared(path) and study.state(path, expected[path]).kind == "sealed" for path in mine)

    def _alone(self, kind: str) -> Executor:
        """The executor of a kind; the others first give back what this one may want. Under SLURM that is all they
        hold: idle, it costs as much."""
        under_slurm = self.context.config.cluster.kind == "slurm"
        for other, executor in self.executors.items():
            if other != kind:
                executor.close() if under_slurm else executor.rest()
        return self._executor(kind)

    def _executor(self, kind: str) -> Executor:
        if kind not in self.executors:
            options = executor_options(self.context.config.cluster, kind)
            options |= {"scratch": self.scratch} if kind != "serial" else {}
            self.executors[kind] = self.stack.enter_context(open_executor(kind, **options))  # type: ignore[arg-type]
        return self.executors[kind]


class _Makers:
    """Notes what the partitions of a step are made on, and warns where a store gets values of two GPUs or torches.

    A store's `arithmetic` refuses what is known to round otherwise; models of a GPU and versions of torch may. The
    journal has them from the first task that each of them finished, so that also a run that is killed has left it.
    """

    def __init__(self, runner: Runner, stage: Stage, step: Step, stores: Sequence[Store]) -> None:
        arithmetic = {store.path: runner.context.decls[store.path].arithmetic for store in stores}
        lack = {s.path: (len(s.missing()), s.n_partitions) for s in stores if arithmetic[s.path]}
        self.done = {path: total - missing for path, (missing, total) in lack.items() if missing}
        self.journal, self.label = runner.journal, step.label
        self.torch = stage.uses_torch
        self.gpu = any(arithmetic[path].get("device") != "cpu" for path in self.done)
        begun = makers(runner.context.study.path) if any(self.done.values()) else {}
        self.earlier = {path: {MadeOn(**one) for one in begun.get(path, ())} for path, n in self.done.items() if n}
        self.seen: list[MadeOn] = []

    def note(self, made_on: MadeOn) -> None:
        """A task was finished by a process that computes so."""
        now = MadeOn(made_on.gpu if self.gpu else "", made_on.torch if self.torch else "")
        if now == UNKNOWN or now in self.seen or not self.done:
            return
        for others, paths in self._otherwise(now).items():
            log.warning(
                "%s: found a part of the values made on %s; the rest is now made on %s. %s",
                listed(paths, 3),
                " or ".join(sorted(map(str, others))),
                now,
                MIXED,
            )
        if self.seen:
            here = " and ".join(sorted(map(str, self.seen)))
            log.warning("%s: found workers of this run on %s, and now on %s. %s", self.label, here, now, MIXED)
        empty = [path for path, n in self.done.items() if not n and not self.seen]
        made = {"gpu": now.gpu, "torch": now.torch}
        self.journal.note(self.label, {"made_on": made, "fills": list(self.done), "empty": empty})
        self.seen.append(now)

    def _otherwise(self, now: MadeOn) -> dict[frozenset[MadeOn], list[str]]:
        """Stores that hold values of earlier runs on something else, by what that is."""
        found: dict[frozenset[MadeOn], list[str]] = {}
        for path, earlier in self.earlier.items():
            if earlier - {now}:
                found.setdefault(frozenset(earlier - {now}), []).append(path)
        return found


def scratch_of(study: AnyPath) -> Scratch:
    """What workers on this machine keep while a study is run: in its scratch folder, if it is on this machine."""
    if isinstance(study, RemotePath):
        return Scratch.of(str(study))
    where = study.resolve()
    return Scratch.of(str(where), scratch_folder(where) / "workers")  # type: ignore[arg-type]


def resources_of(settings: StageExecution, cluster: ClusterSettings) -> Resources:
    """What one stage asks for. SLURM gives no part of a GPU: workers that would share one are one worker, which has it
    to itself.
    """
    workers, gpus = settings.workers, settings.gpus
    if cluster.kind == "slurm" and settings.executor != "serial" and 0 < gpus < 1:
        workers, gpus = math.ceil(workers / workers_per_device(gpus)), 1.0
    return Resources(workers, settings.threads, gpus, settings.memory)


def gpus_given(cluster: ClusterSettings) -> int:
    """GPUs that were given to this run: of this machine, or of the allocation; 0 where they are only asked for."""
    if cluster.kind in ("local", "cuda"):
        return len(devices_here())
    if cluster.kind == "slurm" and slurm.inside():
        return sum(node.gpus for node in slurm.nodes(cluster.slurm))
    return 0


def executor_options(cluster: ClusterSettings, kind: str) -> dict[str, Any]:
    """The arguments of `open_executor` for one kind of executor; raises InputError where its address lacks."""
    if kind == "serial":
        return {}
    chosen: dict[str, Any] = {"dashboard": cluster.dashboard_host if cluster.dashboard else None}
    chosen["start_timeout"] = cluster.start_timeout or (86_400.0 if cluster.kind == "slurm" else 60.0)
    if cluster.kind == "slurm":
        chosen["slurm"] = cluster.slurm
    if cluster.kind == "cuda" and kind == "dask":
        chosen["cuda"] = True
    if cluster.kind == "address":
        chosen["address"] = getattr(cluster.address, kind)
        if chosen["address"] is None:
            raise InputError(
                f"cluster.address.{kind}",
                found="nothing",
                expected=f"an address, since a stage runs on {kind} and cluster.kind is `address`",
                action=f"give `cluster.address.{kind}`, or set another `executor` of that stage",
            )
    return chosen
