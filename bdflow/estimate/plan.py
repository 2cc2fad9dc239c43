"""Hours, GPU-hours, disk and memory of every stage, told before anything runs.

Arithmetic of the method over the rates of the machine; what is assumed and what was measured is said of each rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bdflow.config import Config, StageExecution
from bdflow.errors import InputError, counted
from bdflow.estimate.devices import GPUS, known
from bdflow.estimate.rates import Figures
from bdflow.estimate.sizes import Networks, Sizes
from bdflow.estimate.stores import PlannedCounts, bytes_by_stage, pictures
from bdflow.models.encoders import encoder_settings
from bdflow.regression import ridge
from bdflow.regression.memory_budget import BASE, Extent
from bdflow.regression.memory_budget import plan as ridge_plan
from bdflow.study import catalog
from bdflow.study.designs import by_rows, candidates, designs, held_out_spaces, validates
from bdflow.study.graph import Graph
from bdflow.study.system import fold_count, folds

GIB = 2**30
TORCH = 1.0 * GIB  # a worker with torch and its networks' code, beside their weights
JUDGING = 3.3 * GIB + 0.75 * GIB  # docs/benchmarks.md: all five networks, and what they saw in 982 photos
GPU_ITEM = 1.0 * GIB  # a guess: GPU memory of one picture in a batch of the UNet, both halves of guidance
WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes
PIXELS = 512 * 512
JUDGES = ("AlexNet(2)", "AlexNet(5)", "Inception", "CLIP", "EffNet-B", "SwAV")


@dataclass(frozen=True)
class Machine:
    """What is here: cores, GPUs, bytes of memory, bytes free where the study goes (None: nobody knows)."""

    cores: int
    gpus: int
    memory: int
    free: int | None


@dataclass(frozen=True)
class StagePlan:
    """One row. `memory` and `gpu_memory` are bytes of one worker; `disk` before compression; `least_hours` and
    `most_hours` if every rate is at its best, or at its worst.
    """

    stage: str
    work: str
    rate: str
    where: str
    hours: float
    gpu_hours: float
    disk: int
    memory: int
    gpu_memory: int
    least_hours: float = 0.0
    most_hours: float = 0.0


@dataclass(frozen=True)
class Plan:
    """All stages, what they were reckoned with, and what is short."""

    stages: tuple[StagePlan, ...]
    sizes: Sizes
    networks: Networks
    figures: Figures
    warnings: tuple[str, ...]

    @property
    def hours(self) -> float:
        return sum(stage.hours for stage in self.stages)

    @property
    def range(self) -> tuple[float, float]:
        """Hours if everything goes at its best, and at its worst."""
        return sum(stage.least_hours for stage in self.stages), sum(stage.most_hours for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def disk(self) -> int:
        return sum(stage.disk for stage in self.stages)

    def as_json(self) -> dict[str, object]:
        """Everything as JSON values: hours, bytes, FLOP."""
        return {
            "stages": [asdict(stage) for stage in self.stages],
            "total": {
                "hours": self.hours,
                "least_hours": self.range[0],
                "most_hours": self.range[1],
                "gpu_hours": self.gpu_hours,
                "disk": self.disk,
            },
            "sizes": asdict(self.sizes),
            "networks": asdict(self.networks),
            "rates": {name: asdict(rate) for name, rate in self.figures.rates.items()},
            "image": asdict(self.figures.image) if self.figures.image else None,
            "gpu": {"name": self.figures.gpu, "source": self.figures.why_gpu},
            "notes": list(self.figures.notes),
            "warnings": list(self.warnings),
        }


def plan(
    graph: Graph, sizes: Sizes, networks: Networks, figures: Figures, machine: Machine, judges: tuple[str, ...]
) -> Plan:
    """Reckon every stage of a run.

    Parameters
    ----------
    graph : every store of the configuration.
    judges : metrics that a network judges and whose weights are here; others cost nothing.
    """
    reckoning = _Reckoning(graph, sizes, networks, figures, machine, judges)
    best, likely, worst = (reckoning.stages(figures.at(pace)) for pace in (1, 0, -1))
    stages = tuple(
        replace(row, least_hours=least.hours, most_hours=most.hours)
        for row, least, most in zip(likely, best, worst, strict=True)
    )
    return Plan(stages, sizes, networks, figures, tuple(reckoning.warnings(stages)))


def ridge_flop(config: Config, counts: PlannedCounts) -> float:
    """Operations of the stage `regress`: Gram matrices, factors, solves, predictions; validation and weights if asked.

    n training rows and m test stimuli, p voxels, t latents: n^2 p + 2 m n p + a (n^3 / 3 + 2 m n^2) + 2 m n t, with a
    penalties; for each penalty tried, a factor, s rows, and 2 s n operations a latent that votes; of weights 2 p n^2
    and 2 p n a latent. Predictions, votes and weights take as many rows as there are training stimuli. Folds of rows:
    a system and a factor for each fold and penalty, 2 n^2 p for predictions of all rows, and 2 n k^2 for their errors.
    """
    settings, total = config.ridge.validation, 0.0
    lengths = {space: math.prod(counts.shape(space)) for space in config.decoded_spaces}
    for subject in config.subjects:
        m, k = counts.test_stimuli(subject), counts.train_stimuli(subject)
        for design, spaces in designs(config).items():
            n, p = counts.train_rows(subject, design.rows), counts.design_voxels(subject, design)
            kept, latents = counts.decoder_alphas(subject, design), sum(lengths[space] for space in spaces)
            if ridge.dual_is_cheaper(n, p, m):
                total += n * n * p + 2 * m * n * p + kept * (n**3 / 3 + 2 * m * n * n)
            else:
                total += p * p * n + kept * (p**3 / 3 + 2 * m * p * p + 2 * m * n * p)
            total += 2 * m * k * latents
            if validates(config, spaces) and by_rows(config):
                fold = n**3 / 3 + 2 * n**3 if ridge.dual_is_cheaper(n, p, m) else p * p * n + p**3 / 3
                errors = 2 * n * n * p + 2 * n * k * k
                total += len(candidates(config, spaces)) * (settings.folds * fold + errors)
            elif validates(config, spaces):
                s = min(settings.stimuli, k)
                folds = 1 if settings.method == "leave_one_out" else settings.folds
                total += len(candidates(config, spaces)) * (folds * n**3 / 3 + 2 * s * n * n)
            for space in spaces:
                of = config.ridge_of(space)
                if validates(config, (space,)):
                    s = k if by_rows(config) else min(settings.stimuli, k)
                    tried = len(candidates(config, (space,)))
                    voting = min(settings.columns, lengths[space]) if of.choose == "per_space" else lengths[space]
                    total += 2 * s * k * (tried * voting if of.choose != "fixed" else lengths[space])
                if of.weights:
                    total += 2 * p * n * n + 2 * p * k * lengths[space]
    return total


class _Reckoning:
    def __init__(
        self,
        graph: Graph,
        sizes: Sizes,
        networks: Networks,
        figures: Figures,
        machine: Machine,
        judges: tuple[str, ...],
    ) -> None:
        self.config, self.sizes, self.networks = graph.config, sizes, networks
        self.figures, self.machine, self.judges = figures, machine, judges
        self.counts = PlannedCounts(graph.config, sizes, networks)
        self.latents = sum(math.prod(self.counts.shape(space)) for space in graph.config.decoded_spaces)
        self.disk = bytes_by_stage(graph, self.counts)

    def stages(self, figures: Figures) -> tuple[StagePlan, ...]:
        """Every stage with these rates."""
        self.figures = figures
        return tuple(
            make() for make in (self.ingest, self.features, self.regress, self.reconstruct, self.evaluate)
        )  # fmt: skip

    def rate(self, name: str) -> float:
        return self.figures.rates[name].value

    def here(self, settings: StageExecution) -> bool:
        """Whether a stage runs on this machine alone, not at an address."""
        cluster = self.config.cluster
        if settings.executor == "serial" or cluster.kind in ("local", "cuda"):
            return True
        return cluster.kind == "address" and getattr(cluster.address, settings.executor) is None

    def cores(self, stage: str) -> int:
        """Cores that work at once: on this machine no more than it has."""
        settings = getattr(self.config.execution, stage)
        asked = settings.threads * (1 if settings.executor == "serial" else settings.workers)
        return min(asked, self.machine.cores) if self.here(settings) else asked

    def parallel(self, stage: str) -> int:
        """Workers that work at once."""
        settings = getattr(self.config.execution, stage)
        workers = 1 if settings.executor == "serial" else settings.workers
        return workers if settings.gpus else min(workers, self.cores(stage))

    def row(
        self, stage: str, work: str, rate: str, seconds: float, memory: float, gpu_memory: float = 0.0
    ) -> StagePlan:
        settings = getattr(self.config.execution, stage)
        if f"start {stage}" in self.figures.rates:
            seconds += self.rate(f"start {stage}")
        elif settings.executor != "serial":
            seconds += self.rate("start")
        gpus = settings.workers * settings.gpus
        where = f"{settings.executor}, {settings.workers} x {settings.threads} threads"
        if gpus:
            where += f", {counted(gpus, 'GPU')}"
        hours = seconds / 3600
        return StagePlan(
            stage, work, rate, where, hours, hours * gpus, self.disk.get(stage, 0), int(memory), int(gpu_memory)
        )

    def speed(self, stage: str, gpu: Callable[[], float], cpu: Callable[[], float]) -> tuple[float, str]:
        """FLOP/s of a stage's devices together."""
        settings = getattr(self.config.execution, stage)
        if settings.gpus:
            found = settings.workers * settings.gpus * gpu()
            return found, f"{found / 1e12:,.0f} TFLOP/s"
        found = self.cores(stage) * cpu()
        return found, f"{found / 1e9:,.0f} GFLOP/s"

    def ingest(self) -> StagePlan:
        subjects, sizes = self.sizes.subjects.values(), self.sizes
        betas = sum(sizes.beta_bytes * of.volume * of.trials for of in subjects)
        photos = 3 * sizes.stimuli * sizes.pixels
        averaged = sum((1 + sizes.beta_bytes) * of.trials * of.voxels for of in subjects)
        at_once = self.parallel("ingest")
        seconds = (betas / self.rate("unpack") + photos / self.rate("photos")) / at_once
        seconds += averaged / self.rate("read")
        chunks = self.config.chunks
        memory = max(
            max((4 + sizes.beta_bytes) * of.most_trials * of.voxels + 4 * of.volume for of in subjects),
            2 * 3 * chunks.stimuli * sizes.pixels,
            max(16 * of.trials * min(chunks.voxels, of.voxels) for of in subjects),
        )
        work = f"{betas / 1e9:,.1f} GB of betas unpacked, {sizes.stimuli:,} photos"
        return self.row("ingest", work, f"{at_once * self.rate('unpack') / 1e9:.2f} GB/s", seconds, BASE + memory)

    def features(self) -> StagePlan:
        networks = self.families(self.networks.encoder(of.encoder) for of in self.config.decoded_spaces.values())
        denoised = self.denoised()
        flop = self.sizes.stimuli * (sum(of.features for of in networks) + sum(denoised.values()))
        own = self.sizes.stimuli * sum(of.vdvae.encoding for of in networks if of.vdvae)
        seconds, text = self.computed("features", "features on gpu", flop, own)
        seconds = max(seconds, self.disk["features"] / self.rate("write"))
        gpu = self.config.execution.features.gpus
        weights = sum(self.weight_bytes(of.extracting_parameters, of) for of in networks)
        if denoised and self.networks.stable is not None:
            weights += self.weight_bytes(len(denoised) * self.networks.stable.painting_parameters)
        batch = self.config.features.batch_size * (12 * PIXELS + max(map(self.vdvae_item, networks)))
        held = 3 * self.config.chunks.stimuli * self.sizes.pixels
        memory = TORCH + weights + held + self.config.chunks.stimuli * 4 * self.latents
        work = f"{self.sizes.stimuli:,} photos, {flop / 1e12:,.1f} TFLOP"
        return self.row("features", work, text, seconds, memory, weights + batch + TORCH if gpu else 0)

    def denoised(self) -> dict[tuple[object, ...], float]:
        """FLOP a photo of each pass in which photos are denoised (`SDDenoisingEncoder`), which spaces share."""
        found: dict[tuple[object, ...], float] = {}
        for space, settings in self.config.decoded_spaces.items():
            if settings.encoder != "sd_denoising":
                continue
            options: Any = encoder_settings(self.config, space)["options"]
            run, of = int(options["strength"] * options["steps"]), self.networks.encoder(settings.encoder)
            step = run if options["step"] is None else int(options["step"])
            shared = tuple(options[name] for name in ("strength", "steps", "guidance_scale", "noise_index", "latent"))
            found[shared] = max(found.get(shared, 0.0), of.encoding + 2 * step * of.step)
        return found

    def regress(self) -> StagePlan:
        flop = ridge_flop(self.config, self.counts)
        speed, text = self.speed(
            "regress", lambda: self.rate("gpu ridge"), lambda: self.rate("core") * self.rate("ridge")
        )
        reading = self.disk["features"] / self.rate("read")
        written = self.disk["regress"] / self.rate("write")
        work = f"{flop / 1e12:,.1f} TFLOP, {self.disk['features'] / 1e9:,.1f} GB of targets read"
        bound = "arithmetic" if flop / speed > reading else "reading"
        seconds = max(flop / speed, reading) + written
        settings = self.config.execution.regress
        needs = self.ridge_memory(settings.memory and int(settings.memory))
        return self.row("regress", work, f"{text} ({bound})", seconds, needs, needs if settings.gpus else 0)

    def ridge_memory(self, budget: int | None) -> int:
        """What a worker needs, within its limit if there is one; without one if it cannot be kept."""
        config, counts, extents = self.config, self.counts, {}
        for subject in config.subjects:
            m, k = counts.test_stimuli(subject), counts.train_stimuli(subject)
            for design, spaces in designs(config).items():
                n, p = counts.train_rows(subject, design.rows), counts.design_voxels(subject, design)
                held = min(config.ridge.validation.stimuli, k) * math.ceil(n / k)
                if by_rows(config):
                    held = min(n, k)
                held = held if validates(config, spaces) else 0
                dual, tried = ridge.dual_is_cheaper(n, p, m), len(candidates(config, spaces))
                below, of_rows = bool(held_out_spaces(config, spaces)), by_rows(config)
                sizes = (n, m, p, held, tried, dual, k, of_rows, below, fold_count(config))
                extents[subject, design.name] = Extent(*sizes)
        columns = 0
        for space in config.decoded_spaces:
            shape = counts.shape(space)
            ((_, length),) = catalog.column_blocks(shape, config.chunks.columns).items()
            columns = max(columns, math.prod(shape) * length // shape[0])
        given = (extents, columns, config.chunks.voxels, catalog.KERNEL_ROWS)
        column_bytes = self.sizes.stimuli * np.dtype(config.features.dtype).itemsize
        try:
            return max(ridge_plan(*given, budget, folds(config), column_bytes).needs.values())
        except InputError:
            return max(ridge_plan(*given, None, folds(config), column_bytes).needs.values())

    @staticmethod
    def families(networks: Iterable[Networks]) -> list[Networks]:
        """Each once: the networks of one system are loaded, and run over a photo, for all spaces or painters of it."""
        return list({id(of): of for of in networks}.values())

    def weight_bytes(self, parameters: float, networks: Networks | None = None) -> float:
        """Bytes of parameters; the VDVAE's, if `networks` have one, in a precision of its own."""
        own = networks.vdvae.parameters if networks and networks.vdvae else 0.0
        of = self.config.networks
        return (parameters - own) * WIDTH[of.dtype] + own * WIDTH[of.vdvae_dtype]

    def vdvae_item(self, networks: Networks) -> float:
        """Bytes of one picture in a batch of the VDVAE."""
        return networks.vdvae.values * WIDTH[self.config.networks.vdvae_dtype] if networks.vdvae else 0.0

    def computed(self, stage: str, share: str, flop: float, own: float) -> tuple[float, str]:
        """Seconds of a stage's networks at a share of the GPU's rate, and the rate of all but the VDVAE, whose `own`
        FLOP of these are at the rate of its own precision.
        """
        cpu = self.rate("core") * self.rate("networks on cpu")
        speed, text = self.speed(stage, lambda: self.rate("gpu") * self.rate(share), lambda: cpu)
        vdvae, _ = self.speed(stage, lambda: self.rate("gpu vdvae") * self.rate(share), lambda: cpu)
        return (flop - own) / speed + own / vdvae, text

    def reconstruct(self) -> StagePlan:
        painters = self.config.painters
        networks = self.families(self.networks.painter(of.kind) for of in painters.values())
        tests = sum(pictures(self.config, self.sizes).values())
        if not painters:
            return self.row("reconstruct", "no painter", "", 0.0, BASE)
        painted, flop, measured, guessed = 0, 0.0, 0.0, 0.0
        for settings in painters.values():
            painted += settings.pictures * len([variant for variant in settings.variants if variant != "only_vdvae"])
            of = self.networks.painter(settings.kind)
            an_image = sum(of.painting(v, settings.steps, settings.strength) for v in settings.variants)
            flop += tests * (of.guessing + settings.pictures * an_image)
            guessed += tests * of.guessing if of.vdvae else 0.0
            measured += tests * settings.pictures * an_image if settings.kind != "stable_diffusion" else 0.0
        seconds, text = self.computed("reconstruct", "painting on gpu", flop, guessed)
        if self.figures.image is not None:  # of Brain-Diffuser's networks; others are reckoned by their FLOP
            devices = self.parallel("reconstruct") * (self.config.execution.reconstruct.gpus or 1)
            seconds, _ = self.computed("reconstruct", "painting on gpu", flop - measured, guessed)
            seconds += measured * self.figures.image.value / self.figures.flop / devices
            text = f"{self.figures.image.value:.3g} s an image a device"
        gpu = self.config.execution.reconstruct.gpus
        weights = sum(self.weight_bytes(of.painting_parameters, of) for of in networks)
        largest, image = max(p.batch_size for p in painters.values()), max(of.image for of in networks)
        item = max(GPU_ITEM * image**2 / PIXELS, *map(self.vdvae_item, networks))
        on_gpu = self.figures.peak_bytes or weights + largest * item
        batch = self.config.chunks.images * (3 * image**2 + 4 * self.latents)
        memory = TORCH + weights + 4 * batch + (0 if gpu else largest * item)
        work = f"{tests * painted:,} images, {flop / 1e12:,.1f} TFLOP"
        return self.row("reconstruct", work, text, seconds, memory, on_gpu if gpu else 0)

    def evaluate(self) -> StagePlan:
        tests = sum(pictures(self.config, self.sizes).values())
        painters = self.config.painters.values()
        made = tests * sum(len(of.variants) * (of.pictures if of.select == "all" else 1) for of in painters)
        looked = (made + self.sizes.test) * len(self.judges) / len(JUDGES)
        settings, at_once = self.config.execution.evaluate, self.parallel("evaluate")
        if settings.gpus:
            judging = self.rate("judging on gpu") * settings.workers * settings.gpus
        else:
            judging = self.rate("judging") / 2 * self.cores("evaluate")
        pixels = self.rate("pixels") * at_once * PIXELS / max(self.networks.image**2, self.sizes.pixels)
        seconds = looked / judging + made / pixels
        memory = TORCH + (JUDGING if self.judges else 0)
        work = f"{made:,} pictures, {len(self.judges)} metrics of {len(JUDGES)} judged"
        return self.row("evaluate", work, f"{judging:,.2g} pictures/s judged", seconds, memory)

    def warnings(self, stages: tuple[StagePlan, ...]) -> Iterator[str]:
        execution, machine = self.config.execution, self.machine
        for stage in stages:
            settings = getattr(execution, stage.stage)
            key = f"execution.{stage.stage}"
            if settings.memory and stage.memory > settings.memory:
                yield (
                    f"{key}.memory is {settings.memory / GIB:.1f} GiB; a worker needs about "
                    f"{stage.memory / GIB:.1f} GiB: raise it"
                )
            if not self.here(settings):
                continue
            if settings.workers * stage.memory > machine.memory:
                yield (
                    f"{key}: {settings.workers} workers need about {settings.workers * stage.memory / GIB:.1f} GiB; "
                    f"this machine has {machine.memory / GIB:.1f} GiB: take fewer workers"
                )
            gpus, gpu = settings.workers * settings.gpus, known(self.figures.gpu)
            if gpu and settings.gpus * GPUS[gpu].memory < stage.gpu_memory:
                yield (
                    f"{key}: a worker needs about {stage.gpu_memory / GIB:.1f} GiB of its GPU; {settings.gpus:g} of an "
                    f"{GPUS[gpu].name} has {settings.gpus * GPUS[gpu].memory / GIB:.1f} GiB: take a smaller batch_size"
                )
            if gpus > machine.gpus:
                yield f"{key}: {counted(gpus, 'GPU')} asked for; this machine has {machine.gpus}"
        total = sum(stage.disk for stage in stages)
        if machine.free is not None and total > machine.free:
            yield (
                f"disk: up to {total / 1e9:,.0f} GB are needed; {machine.free / 1e9:,.0f} GB are free where the study "
                "goes"
            )


def free_bytes(study: Path | str) -> int | None:
    """Bytes free on the file system that a path, existing or not, lies on; None for a URL."""
    import shutil

    if isinstance(study, str):
        return None
    path = study
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
