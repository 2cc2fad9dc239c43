"""The one place where stages, stores and executors are wired: run, status, verify."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdflow import encode, evaluate, features, ingest, reconstruct, regress, roi
from bdflow.config import ClusterSettings, Config, StageExecution
from bdflow.errors import InputError
from bdflow.stage import Context, Work
from bdflow.timings import Timing, timings
from cluster import ClusterError, Completed, Executor, Resources, exclusive, open_executor
from cluster.on_slurm import Slurm
from cluster.progress import Progress
from stores import CorruptChunk, NotReady, Provenance, State, Study
from stores.journal import Journal, entries
from stores.lease import lease
from stores.place import RemotePath
from stores.space import look

if TYPE_CHECKING:
    from bdflow.plan import Plan

STAGES: dict[str, Any] = {
    stage.NAME: stage for stage in (ingest, features, regress, reconstruct, evaluate, roi, encode)
}
ON_DEMAND = ("roi", "encode")
NAMES = (*(name for name in STAGES if name not in ON_DEMAND), "report")
SHORT = ("y", "x", "rgb")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One store in the status table."""

    path: str
    state: State
    shape: str
    nbytes: int


class Pipeline:
    """One configuration, bound to its study.

    Parameters
    ----------
    config : the configuration.
    subjects : those whose stores are filled; all of the configuration's by default. Stores that serve all subjects
        (stimuli, targets) are always whole.
    say : called with a line of text when something is worth knowing.
    """

    def __init__(self, config: Config, subjects: Sequence[str] = (), say: Say = print) -> None:
        unknown = [subject for subject in subjects if subject not in config.subjects]
        if unknown:
            raise InputError(
                "--subjects",
                found=", ".join(unknown),
                expected="subjects of the configuration: " + ", ".join(config.subjects),
                action="add them to `subjects` in the configuration, or choose among these",
            )
        self.config, self.say = config, say
        self.study = Study(config.study)
        self.subjects = tuple(s for s in config.subjects if not subjects or s in subjects)

    def expected(self) -> dict[str, Provenance]:
        """What every store of this configuration should be made from, by path."""
        known: dict[str, Provenance] = {}
        for stage in STAGES.values():
            known |= stage.provenances(self.config, known)
        return known

    def context(self) -> Context:
        return Context(self.config, self.study, self.expected(), self.subjects)

    # --- run --------------------------------------------------------------------------------------------------

    def run(self, stages: Sequence[str] = NAMES, *, remake: bool = False, command: str = "") -> None:
        """Fill what is missing, stage by stage; with `remake`, replace what was made from something else.

        Raises
        ------
        NotReady : a store was made from something else (and `remake` is off), or a stage left out is not done.
        InputError, StoreError, ClusterError : as each says; what is written stays valid.
        """
        context = self.context()
        with ExitStack() as stack:
            stack.enter_context(self._alone(command))
            self._clear_stale(context, stages, remake)
            self.study.create("bdflow study", {"configuration": self.config.science()})
            filler = _Filler(context, Journal(self.study.path, command), self.say, stack)
            filler.check(stages)
            for name in stages:
                if name in STAGES:
                    filler.fill(name)
            self.study.consolidate()
            if "report" in stages:
                self._report(context)

    def _alone(self, command: str) -> AbstractContextManager[None]:
        """The lock of the study: of a directory the kernel's, in an object store an object."""
        path = self.study.path
        if isinstance(path, RemotePath):
            return lease(path, command)
        path.mkdir(parents=True, exist_ok=True)
        return exclusive(path)

    def _report(self, context: Context) -> None:
        from bdflow import report

        start = time.perf_counter()
        page = report.write(context)
        self.say(f"report: {page} in {time.perf_counter() - start:.1f} s")

    def figures(self, folder: Path) -> list[Path]:
        """Figures for papers of a finished study, written into `folder`; see `bdflow.figures.write`."""
        from bdflow import figures

        return figures.write(self.context(), folder)

    def region_figures(self, folder: Path) -> list[Path]:
        """Figures of the regions that were painted, whose voxel counts are said; see `bdflow.roi_figures.write`."""
        from bdflow import roi_figures
        from bdflow.roi_patterns import voxel_counts

        for line in voxel_counts(self.context()):
            self.say(line)
        return roi_figures.write(self.context(), folder)

    def maps(self, folder: Path) -> list[Path]:
        """Voxel maps as NIfTI, written into `folder`; see `bdflow.maps.write`."""
        from bdflow import maps

        return maps.write(self.context(), folder)

    def plan(self, figures: Sequence[Path] = ()) -> Plan:
        """Hours, GPU-hours, disk and memory of every stage, reckoned before it runs; see `bdflow.plan`."""
        from bdflow import plan, plan_rates, plan_sizes
        from cluster.limits import devices_here, memory_here

        config = self.config
        machine = plan.Machine(
            len(os.sched_getaffinity(0)), len(devices_here()), memory_here(), plan.free_bytes(config.study)
        )
        judges = evaluate.judged(config, evaluate.weights_of(config))
        return plan.plan(
            config,
            plan_sizes.sizes_of(config),
            plan_sizes.networks_of(config),
            plan_rates.figures(figures, config),
            machine,
            tuple(metric for metric in judges if metric in plan.JUDGES),
        )

    def serve(self, **options: Any) -> None:
        """Pictures over HTTP from a finished study, until it is stopped; `options` as `bdflow.serve.ServeOptions`."""
        from bdflow import serve
        from cluster.limits import devices_here, memory_here, refuse_excess
        from cluster.threads import environment

        chosen = serve.ServeOptions(**options)
        settings, address = self.config.execution.reconstruct, where(self.config.cluster, "ray").get("address")
        resources = Resources(settings.workers, settings.threads, settings.gpus, settings.memory)
        if address is None:
            refuse_excess(resources, None)
        place = serve.Place(environment(settings.threads), len(devices_here()), memory_here(), address)
        serve.run(self.context(), chosen, place, self.say)

    def _clear_stale(self, context: Context, stages: Sequence[str], remake: bool) -> None:
        stale = {}
        for path, provenance in context.expected.items():
            if provenance.stage in stages:
                state = self.study.state(path, provenance)
                if state.kind == "stale":
                    stale[path] = state.why
        if not stale:
            return
        if remake:
            for path in stale:
                self.say(f"{path}: removed, to be made again ({stale[path][0]})")
                self.study.remove(path)
            return
        lines = [f"  {path}: {'; '.join(why)}" for path, why in stale.items()]
        raise NotReady(
            f"{self.study.path}: found {len(stale)} stores that were made from something else:\n"
            + "\n".join(lines)
            + "\nOld and new results are never mixed.\nWhat to do: add --remake to replace these stores, or choose "
            "another `study` to keep both."
        )

    # --- look -------------------------------------------------------------------------------------------------

    def status(self) -> list[Row]:
        """Every store of this configuration (of stages on demand, those there are), and others in the study."""
        expected = self.expected()
        present = self.study.paths() if self.study.exists else []
        rows = []
        for path in [*expected, *(path for path in present if path not in expected)]:
            if path not in present and expected[path].stage in ON_DEMAND:
                continue
            if path not in present:
                rows.append(Row(path, State("absent"), "", 0))
                continue
            store = self.study.store(path)
            main = store.spec.data[0]
            shape = " x ".join(
                f"{store.sizes[dim]} {dim}" if dim not in SHORT else str(store.sizes[dim]) for dim in main.dims
            )
            if path in expected:
                state = self.study.state(path, expected[path])
            else:
                total = store.n_partitions
                why = "regions that are not in `roi.sets`" if path.startswith("rois/") else "not of this configuration"
                state = State("stale", total - len(store.missing()), total, [why])
            rows.append(Row(path, state, shape, store.nbytes_stored))
        return rows

    def timings(self) -> list[Timing]:
        """What partitions took in all runs of the study, by stage and work."""
        return timings(entries(self.study.path) if self.study.exists else [])

    def verify(self, *, repair: bool = False, command: str = "") -> list[CorruptChunk]:
        """Read every chunk of the study; return what is damaged, after computing it again with `repair`."""
        context = self.context()
        if not self.study.exists:
            self.study.root()
        with ExitStack() as stack:
            stack.enter_context(self._alone(command))
            found = [damage for path in self.study.paths() for damage in self.study.store(path).damage()]
            if repair and found:
                foreign = [damage for damage in found if damage.store not in context.expected]
                if foreign:
                    raise foreign[0]
                filler = _Filler(context, Journal(self.study.path, command), self.say, stack)
                filler.repair(found)
                self.study.create("bdflow study", {"configuration": self.config.science()})
                self.study.consolidate()
        return found


class _Filler:
    """Carries works to executors, seals their stores, and mends what is found damaged on the way."""

    def __init__(self, context: Context, journal: Journal, say: Say, stack: ExitStack) -> None:
        self.context, self.journal, self.say, self.stack = context, journal, say, stack
        self.executors: dict[str, Executor] = {}
        self.mended: set[tuple[str, str, tuple[int, ...]]] = set()

    def fill(self, name: str) -> None:
        """Do all works of one stage. A damaged chunk it reads is computed again, once."""
        while True:
            try:
                for work in STAGES[name].works(self.context):
                    self._do(name, work)
                return
            except CorruptChunk as damage:
                key = (damage.store, damage.array, damage.chunk)
                if key in self.mended or damage.store not in self.context.expected:
                    raise
                self.repair([damage])

    def repair(self, damages: Sequence[CorruptChunk]) -> None:
        """Forget damaged partitions and fill them again, in the order of the stages."""
        owners = set()
        for damage in damages:
            self.mended.add((damage.store, damage.array, damage.chunk))
            self.say(str(damage).splitlines()[0] + " Computing it again.")
            store = self.context.study.store(damage.store)
            if damage.partition is not None:
                store.forget(damage.partition)
            owners.add(self.context.expected[damage.store].stage)
        for name in STAGES:
            if name in owners:
                self.fill(name)

    def _do(self, stage: str, work: Work) -> None:
        if work.tasks:
            settings = getattr(self.context.config.execution, stage)
            resources = resources_of(settings)
            warning = look(work.stores, self.context.study.path)
            if warning:
                self.say(warning)
            done: list[Completed] = []
            remarks: set[str] = set()
            start = time.perf_counter()
            try:
                with Progress(work.label, len(work.tasks), unit=work.unit) as progress:

                    def on_done(completed: Completed) -> None:
                        done.append(completed)
                        for line in completed.result or ():
                            if line not in remarks:
                                remarks.add(line)
                                self.say(line)
                        progress.advance(completed)

                    self._alone(settings.executor).run(
                        work.make_worker, work.tasks, resources=resources, on_done=on_done
                    )
            finally:
                attrs = {"stage": stage, "unit": work.unit, "wall_seconds": time.perf_counter() - start}
                self._write_down(work, {**attrs, **settings.model_dump()}, done)
        for store in work.stores:
            if not store.sealed:
                store.seal()

    def _write_down(self, work: Work, attrs: dict[str, Any], done: Sequence[Completed]) -> None:
        """Journal what was finished, also of work that was stopped."""
        if done:
            costs: dict[str, Sequence[Any]] = {
                "read": [d.used.read for d in done],
                "written": [d.used.written for d in done],
                "peak": [d.used.peak for d in done],
                "what": [str(work.tasks[d.index])[:120] for d in done],
            }
            columns = [d.seconds for d in done], [d.attempts for d in done], [d.worker for d in done]
            self.journal.record(work.label, attrs, *columns, costs)

    def check(self, stages: Sequence[str]) -> None:
        """Refuse what the cluster cannot give to any stage that is not done yet, before the first one starts."""
        for name in stages:
            if name in STAGES and not self._done(name):
                settings = getattr(self.context.config.execution, name)
                try:
                    self._executor(settings.executor).check(resources_of(settings))
                except ClusterError as error:
                    raise ClusterError(f"execution.{name} ({settings.executor}): {error}") from error

    def _done(self, stage: str) -> bool:
        study, expected = self.context.study, self.context.expected
        mine = [path for path, provenance in expected.items() if provenance.stage == stage]
        return all(study.declared(path) and study.state(path, expected[path]).kind == "sealed" for path in mine)

    def _alone(self, kind: str) -> Executor:
        """The executor of a kind; under SLURM the others first give back what they hold: idle, it costs as much."""
        if self.context.config.cluster.kind == "slurm":
            for other, executor in self.executors.items():
                if other != kind:
                    executor.close()
        return self._executor(kind)

    def _executor(self, kind: str) -> Executor:
        if kind not in self.executors:
            options = where(self.context.config.cluster, kind)
            self.executors[kind] = self.stack.enter_context(open_executor(kind, announce=self.say, **options))  # type: ignore[arg-type]
        return self.executors[kind]


def resources_of(settings: StageExecution) -> Resources:
    """What one stage asks for."""
    return Resources(settings.workers, settings.threads, settings.gpus, settings.memory)


def where(cluster: ClusterSettings, kind: str) -> dict[str, Any]:
    """The arguments of `open_executor` for one kind of executor; raises InputError where its address lacks."""
    if kind == "serial":
        return {}
    chosen: dict[str, Any] = {"dashboard": cluster.dashboard_host if cluster.dashboard else None}
    chosen["start_timeout"] = cluster.start_timeout or (86_400.0 if cluster.kind == "slurm" else 60.0)
    if cluster.kind == "slurm":
        chosen["slurm"] = Slurm(**{**cluster.slurm.model_dump(), "logs": str(cluster.slurm.logs)})
    if cluster.kind == "cuda" and kind == "dask":
        chosen["cuda"] = True
    if cluster.kind == "address":
        chosen["address"] = getattr(cluster.address, kind)
        if chosen["address"] is None:
            raise InputError(
                f"cluster.address.{kind}",
                found="nothing",
                expected=f"an address, since a stage runs on {kind} and cluster.kind is `address`",
                action="give it, or run that stage on another executor",
            )
    return chosen


def stages_until(last: str) -> Iterator[str]:
    """The stages up to and including `last`."""
    for name in NAMES:
        yield name
        if name == last:
            return
