"""The one place where stages, stores and executors are wired: run, status, verify."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bdflow.cluster import Resources
from bdflow.cluster.progress import duration
from bdflow.config import Config
from bdflow.errors import InputError, counted, lines, listed
from bdflow.models.judges.weights import JUDGE_OF
from bdflow.runner import Runner, executor_options
from bdflow.stages.encode.stage import Encode
from bdflow.stages.evaluate import Evaluate, judged, weights_of
from bdflow.stages.features import EncodingFeatures, Features
from bdflow.stages.ingest import Ingest
from bdflow.stages.reconstruct.stage import Reconstruct
from bdflow.stages.regress.stage import Regress
from bdflow.stages.roi import Roi
from bdflow.stores import CorruptMetadata, Damage, NotReady, Provenance, State, Store, Study, checks
from bdflow.stores.inputs import remembered
from bdflow.stores.journal import Journal, entries
from bdflow.stores.locks import exclusive, lease
from bdflow.stores.paths import RemotePath
from bdflow.stores.provenance import grouped
from bdflow.study import keys
from bdflow.study.counts import StudyCounts
from bdflow.study.graph import Graph
from bdflow.study.keys import REGION_SETS, SHARED, kind
from bdflow.study.stage import Context, Stage
from bdflow.timings import Timing, timings

if TYPE_CHECKING:
    from bdflow.estimate.plan import Plan

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (Ingest(), Features(), Regress(), Reconstruct(), Evaluate(), Roi(), EncodingFeatures(), Encode())
}
ON_DEMAND = tuple(name for name, stage in STAGES.items() if stage.on_demand)
NAMES = (*(name for name in STAGES if name not in ON_DEMAND), "report")
SHORT = ("y", "x", "rgb")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One store in the status table. `remark` : what of its content a user should know."""

    path: str
    state: State
    shape: str
    nbytes: int
    remark: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a run did: partitions that were computed, seconds, and the report's page, if it wrote one."""

    partitions: int
    seconds: float
    report: Path | None = None


class Pipeline:
    """One configuration, bound to its study.

    Parameters
    ----------
    config : the configuration.
    subjects : those whose stores are filled, with what several subjects saw; all of the configuration's by default.
        Files of the others are not needed (`Config.of_subjects`) with `dataset.split: shared`. With other splits they
        are: a picture is compared with the test photos of all subjects, and these may be what one subject alone saw.
    """

    def __init__(self, config: Config, subjects: Sequence[str] = ()) -> None:
        chosen = config.of_subjects(subjects)
        self.config = chosen if config.dataset.split == SHARED else config
        self.study = Study(config.study)
        self.subjects = chosen.subjects

    def expected(self) -> dict[str, Provenance]:
        """What every store of this configuration should be made from, by path; see `graph`."""
        return self._provenances(self.graph())

    def graph(self, *, looking: bool = True) -> Graph:
        """Every store of this configuration, and what each is made from.

        Where inputs are not at hand, those are taken that the study's stores were made from. Unless it is only for
        looking, there have to be such stores.
        """
        return Graph(self.config, STAGES.values(), self.study, looking=looking)

    def _provenances(self, graph: Graph) -> dict[str, Provenance]:
        with remembered(self.study.path):
            found = graph.provenances()
        if graph.not_compared:
            keys, why = list(graph.not_compared), next(iter(graph.not_compared.values()))
            log.warning(
                "inputs of %s were not compared, since they are not at hand (%s). "
                "What the study records of them is taken as it is; to have them compared, make the files readable.",
                listed(keys, 3),
                why.rstrip("."),
            )
        return found

    def context(self, *, looking: bool = True) -> Context:
        """What stages and commands are told; see `graph`."""
        graph = self.graph(looking=looking)
        context = Context(self.config, self.study, self._provenances(graph), self.subjects, graph.decls)
        return replace(context, counts=StudyCounts(context))

    # --- run --------------------------------------------------------------------------------------------------

    def run(self, stages: Sequence[str] = NAMES, *, remake: bool = False, command: str = "") -> Outcome:
        """Fill what is missing, stage by stage; with `remake`, replace what was made from something else. Which stage
        begins is logged, with its number and the time so far.

        Raises
        ------
        NotReady : a store was made from something else (and `remake` is off), or a stage left out is not done.
        InputError, StoreError, ClusterError : as each says; what is written stays valid.
        """
        start = time.perf_counter()
        if not any(name in STAGES for name in stages):
            page = self._report(self.context())
            return Outcome(0, time.perf_counter() - start, page)
        self._say_whose_files_are_read()
        context = self.context(looking=False)
        with ExitStack() as stack:
            stack.enter_context(self._alone(command))
            self._restore(checks.damage_before_run(self.study) if self.study.exists else [])
            stale = self._stale(context, stages, remake)
            runner = Runner(STAGES, context, Journal(self.study.path, command), stack)
            done = runner.check(stages)
            for path, why in stale.items():
                log.info("%s: removed, to be made again (%s)", path, why[0])
                self.study.remove(path)
            self._begin()
            page = None
            for number, name in enumerate(stages, start=1):
                log.info("%s", _headline(name, number, len(stages), time.perf_counter() - start, done=name in done))
                if name in STAGES:
                    runner.fill(name)
                else:
                    self.study.consolidate()
                    page = self._report(context)
            if page is None:
                self.study.consolidate()
        return Outcome(runner.partitions, time.perf_counter() - start, page)

    def _say_whose_files_are_read(self) -> None:
        others = [subject for subject in self.config.subjects if subject not in self.subjects]
        if others:
            log.warning(
                "files of %s are read too, though only %s asked for: with `dataset.split` %s pictures are compared "
                "with the test photos of all subjects, and these may be what one subject alone saw. What to do where "
                "the files are not there: a study of its own whose `subjects` are %s alone, or `dataset.split: %s` "
                "(docs/subjects.md).",
                listed(others, 6),
                f"{listed(self.subjects, 6)} {'is' if len(self.subjects) == 1 else 'are'}",
                self.config.dataset.split,
                listed(self.subjects, 6),
                SHARED,
            )

    def _restore(self, damages: list[CorruptMetadata]) -> list[str]:
        """Write damaged metadata again; return the stores that are lost with it, and were removed."""
        for damage in damages:
            log.warning("%s Writing it again.", damage.headline)
        lost = checks.restore(self.study, damages)
        for path in lost:
            log.warning("%s: removed, since neither its metadata nor its copy is whole. A run makes it again.", path)
        if any(not damage.store for damage in damages):
            self._begin()
        return lost

    def _begin(self) -> None:
        self.study.create("bdflow study", {"configuration": self.config.science()})

    def _alone(self, command: str) -> AbstractContextManager[None]:
        """The lock of the study: of a directory the kernel's, in an object store an object. Who has it is sure of what
        it has read of the study."""
        path = self.study.path
        with ExitStack() as stack:
            if isinstance(path, RemotePath):
                stack.enter_context(lease(path, command))
            else:
                path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive(path))
            stack.enter_context(self.study.remembering())
            return cast("AbstractContextManager[None]", stack.pop_all())

    def _writable(self) -> bool:
        """Whether this user may write the study; of an object store that is not asked."""
        return isinstance(self.study.path, Path) and os.access(self.study.path, os.W_OK)

    def _report(self, context: Context) -> Path | None:
        if not self.config.painters:
            log.info("no report: the configuration has no painter, so there are no pictures to show")
            return None
        from bdflow.report import writer

        start = time.perf_counter()
        page = writer.write(context)
        log.info("report: %s in %.1f s", page, time.perf_counter() - start)
        return page

    def figures(self, folder: Path) -> list[Path]:
        """Figures for papers of a finished study, written into `folder`; see `bdflow.report.figures`."""
        from bdflow.report import figures

        return figures.write(self.context(), folder)

    def region_figures(self, folder: Path) -> list[Path]:
        """Figures of the regions that were painted, whose voxel counts are said."""
        from bdflow.report import region_figures
        from bdflow.study.region_patterns import voxel_counts

        for line in voxel_counts(self.context()):
            log.info("%s", line)
        return region_figures.write(self.context(), folder)

    def encoding_models(self) -> list[str]:
        """Paths of the encoding models of this run's subjects; how many of their voxels pass is said."""
        from bdflow.study.encoding_models import key_of, lines, models

        for line in lines(self.context()):
            log.info("%s", line)
        found = [key_of(self.config, subject, model) for subject in self.subjects for model in models(self.config)]
        return [str(self.study.path / key) for key in found]

    def maps(self, folder: Path) -> list[Path]:
        """Voxel maps as NIfTI, written into `folder`; see `bdflow.export.nifti`."""
        from bdflow.export import nifti

        return nifti.write(self.context(), folder)

    def pictures(self, folder: Path, *, photos: bool = False) -> Path:
        """Pictures and scores as plain files, written into `folder`; see `bdflow.export.pictures`."""
        from bdflow.export import pictures
        from bdflow.report.scores import Scores

        context = self.context()
        metrics = [keys.metrics(painter, subject) for painter in self.config.painters for subject in context.painted]
        scores = Scores.read({key: context.ready(key) for key in metrics}, self.config, context.painted)
        return pictures.write(context, folder, scores.files(), photos=photos)

    def plan(self, figures: Sequence[Path] = (), gpu: str | None = None) -> Plan:
        """Hours, GPU-hours, disk and memory of every stage, reckoned before it runs; see `bdflow.estimate.plan`."""
        from bdflow.cluster.limits import devices_here, memory_here
        from bdflow.estimate import devices, plan, sizes
        from bdflow.estimate.figures import check_files
        from bdflow.estimate.figures import figures as figures_of

        check_files(figures)
        config = self.config
        machine = plan.Machine(
            len(os.sched_getaffinity(0)), len(devices_here()), memory_here(), plan.free_bytes(config.study)
        )
        networks = sizes.networks_of(config)
        judges = judged(config, weights_of(config))
        running = [stage for stage in STAGES.values() if not stage.on_demand]
        return plan.plan(
            Graph(config, running),
            sizes.sizes_of(config),
            networks,
            figures_of(figures, config, networks, gpu, devices.gpu_here()),
            machine,
            tuple(metric for metric in judges if metric in JUDGE_OF),
        )

    def serve(self, **options: Any) -> None:
        """Pictures over HTTP from a finished study, until it is stopped; `options` as `ServeOptions`."""
        from bdflow.cluster.limits import devices_here, memory_here, refuse_excess
        from bdflow.cluster.threads import environment
        from bdflow.serve import service

        chosen = service.ServeOptions(**options)
        settings, address = (
            self.config.execution.reconstruct,
            executor_options(self.config.cluster, "ray").get("address"),
        )
        resources = Resources(settings.workers, settings.threads, settings.gpus, settings.memory)
        if address is None:
            refuse_excess(resources, None)
        place = service.Place(environment(settings.threads), len(devices_here()), memory_here(), address)
        service.run(self.context(), chosen, place)

    def _stale(self, context: Context, stages: Sequence[str], remake: bool) -> dict[str, list[str]]:
        """Stores of these stages that were made from something else, and why. Raises NotReady without `remake`."""
        stale = {}
        for path, provenance in context.expected.items():
            if provenance.stage in stages:
                state = self.study.state(path, provenance)
                if state.kind == "stale":
                    stale[path] = state.why
        if remake or not stale:
            return stale
        stale_lines = [f"{why}: {listed(paths)}" for why, paths in grouped(stale).items()]
        raise NotReady(
            self.study.path,
            found=f"{counted(len(stale), 'store')} made from something else:" + lines(stale_lines),
            expected="stores made from what this configuration says",
            meaning="Old and new results are never mixed.",
            action="replace these stores (remake), or choose another `study` to keep both",
            remedy="remake",
        )

    # --- look -------------------------------------------------------------------------------------------------

    def status(self) -> list[Row]:
        """Every store of this configuration (of stages on demand, those there are), and others in the study."""
        expected = self.expected()
        present = self.study.paths() if self.study.exists else []
        if self.config.everybody != self.config.subjects:
            everybody = Graph(self.config.of_everybody(), STAGES.values())
            present = [path for path in present if path in expected or path not in everybody]
        rows = []
        for path in [*expected, *(path for path in present if path not in expected)]:
            if path not in present and expected[path].stage in ON_DEMAND:
                continue
            if path not in present:
                rows.append(Row(path, State("absent"), "", 0))
                continue
            state, store = self.study.looked_at(path, expected.get(path))
            if state.kind == "damaged":
                rows.append(Row(path, state, "", 0))
                continue
            main = store.spec.data[0]
            shape = " x ".join(
                f"{store.sizes[dim]} {dim}" if dim not in SHORT else str(store.sizes[dim]) for dim in main.dims
            )
            if path not in expected:
                why = "regions that are not in `roi.sets`" if kind(path) == REGION_SETS else "not of this configuration"
                state = State("stale", state.done, state.total, [why])
            rows.append(Row(path, state, shape, store.nbytes_stored, _remark(store)))
        return rows

    def timings(self) -> list[Timing]:
        """What partitions took in all runs of the study, by stage and work."""
        return timings(entries(self.study.path) if self.study.exists else [])

    def verify(self, *, repair: bool = False, command: str = "") -> list[Damage]:
        """Compare every file of the study with what was written: metadata with its copy, chunks with their checksums.

        Returns
        -------
        list of Damage : what is not as it was written, and what is no part of the study. With `repair`, metadata was
            written again and chunks computed again; what is `Unexpected` is left where it is.
        """
        context = self.context()
        if not self.study.exists:
            self.study.root()
        with ExitStack() as stack:
            if repair or self._writable():
                stack.enter_context(self._alone(command))
            stack.enter_context(self.study.remembering())
            nodes = dict(self.study.nodes())
            damaged = checks.metadata_damage(self.study, nodes)
            found: list[Damage] = [*damaged, *checks.unexpected(self.study, nodes)]
            lost = self._restore(damaged) if repair else []
            unread = set() if repair else {damage.store for damage in damaged}
            chunks = [
                damage
                for path in self.study.paths()
                if path not in unread
                for damage in self.study.store(path).damage()
            ]
            if repair and (chunks or damaged):
                foreign = [damage for damage in chunks if damage.store not in context.expected]
                if foreign:
                    raise foreign[0]
                self._begin()
                runner = Runner(STAGES, context, Journal(self.study.path, command), stack)
                runner.repair(chunks, lost)
                self.study.consolidate()
        return [*found, *chunks]


def stages_until(last: str) -> Iterator[str]:
    """The stages up to and including `last`."""
    for name in NAMES:
        yield name
        if name == last:
            return


def _headline(stage: str, number: int, of: int, seconds: float, *, done: bool) -> str:
    """The line that says which stage begins."""
    named = f"stage {number} of {of}, {stage}"
    if done:
        return f"{named}: up to date"
    return named if seconds < 1 else f"{named} (after {duration(seconds)})"


def _remark(store: Store) -> str:
    """What of a store's content a user should know, from its metadata alone."""
    gone = store.sizes.get("left_out", 0)
    return f"{counted(gone, 'stimulus', 'stimuli')} without a caption left out (`without_caption`)" if gone else ""


def chosen_stages(until: str, only: str) -> tuple[str, ...]:
    """The stages up to and including `until`, or `only` one; all where both are empty. InputError for no stage."""
    for option, value, names in (("until", until, NAMES), ("only", only, (*NAMES, *ON_DEMAND))):
        if value and value not in names:
            raise InputError(
                option, found=repr(value), expected="a stage: " + ", ".join(names), action="choose one of these"
            )
    if until and only:
        raise InputError(
            "until, only",
            found="both",
            expected="one of them",
            meaning="`until` stops after a stage; `only` runs one stage alone.",
            action="leave one of them out",
        )
    return (only,) if only else tuple(stages_until(until or NAMES[-1]))
