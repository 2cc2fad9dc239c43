"""How many bytes each store of a study will take, from the declarations it will be made with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from bdflow import ridge
from bdflow.config import SPACES, Config
from bdflow.plan_sizes import Networks, Sizes
from bdflow.stage import MEAN, decoded, painted
from stores import StoreSpec, catalog
from stores.spec import ArraySpec

CHECKSUM = 4
DTYPES = {"float16": "f2", "float32": "f4"}
WORD = 8  # bytes of a label


def array_bytes(array: ArraySpec, sizes: Mapping[str, int]) -> int:
    """Bytes of an array's chunks, edges as whole chunks, before compression, with their checksums."""
    shape, chunk = array.shape(sizes), array.chunk_shape(sizes)
    itemsize = WORD if array.dtype == "str" else int(array.dtype[1:])
    chunks = math.prod(math.ceil(n / c) for n, c in zip(shape, chunk, strict=True))
    return chunks * (math.prod(chunk) * itemsize + CHECKSUM)


def store_bytes(spec: StoreSpec, sizes: Mapping[str, int]) -> int:
    """Bytes of a store's arrays, before compression."""
    return sum(array_bytes(array, sizes) for array in spec.arrays)


Declared = tuple[str, str, StoreSpec, dict[str, int]]


def declared(config: Config, sizes: Sizes, networks: Networks) -> Iterator[Declared]:
    """(stage, path, declaration, sizes) of every store of `bdflow run`."""
    yield from _ingest(config, sizes)
    chunks = config.chunks
    for space in SPACES:
        shape = networks.spaces[space]
        spec = catalog.targets(shape, DTYPES[config.features.dtype], chunks.stimuli, chunks.columns)
        yield "features", f"targets/{space}", spec, {"stimulus": sizes.stimuli, **_dims(shape)}
    yield from _regress(config, sizes, networks)
    yield from _reconstruct(config, sizes, networks)
    yield from _evaluate(config, sizes)


def _dims(shape: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(catalog.space_dims(shape), shape, strict=True))


def _ingest(config: Config, sizes: Sizes) -> Iterator[Declared]:
    for name, of in sizes.subjects.items():
        axes = {"trial": of.trials * sizes.sessions, "voxel": of.voxels, "roi": sizes.regions}
        yield "ingest", f"betas/{name}", catalog.betas(of.trials), axes
        stimuli = {"stimulus": of.train + of.test, "voxel": of.voxels}
        yield "ingest", f"responses/{name}", catalog.responses(config.chunks.voxels), stimuli
    axes = {"stimulus": sizes.stimuli, "y": sizes.photo, "x": sizes.photo, "rgb": 3, "caption_number": sizes.captions}
    yield "ingest", "stimuli", catalog.stimuli(config.chunks.stimuli), axes


def alphas_of(config: Config) -> int:
    """The most penalties a decoder may have."""
    regress = config.regress
    if regress.choose == "per_target":
        return len(set(regress.grid))
    return len({getattr(regress.alpha, space) for space in SPACES}) if regress.choose == "fixed" else len(SPACES)


def validates(config: Config) -> bool:
    """Whether training stimuli are predicted from the others."""
    return config.regress.choose != "fixed" or config.reconstruct.standardise == "held_out"


def _regress(config: Config, sizes: Sizes, networks: Networks) -> Iterator[Declared]:
    chunks, settings = config.chunks, config.regress
    tried = len(set(settings.grid)) if settings.choose != "fixed" else alphas_of(config)
    for name, of in sizes.subjects.items():
        train = {"train_stimulus": of.train}
        dual = ridge.dual_is_cheaper(of.train, of.voxels, of.test)
        kernel = {"stimulus": of.train + of.test, **train}
        axes = kernel if dual else {"voxel": of.voxels, "other_voxel": of.voxels}
        yield "regress", f"systems/{name}", catalog.systems(dual), axes
        if validates(config):
            held = {"alpha": tried, "held_out_stimulus": min(settings.validation.stimuli, of.train), **train}
            yield "regress", f"validation/{name}", catalog.validation(), held
        hat = {"alpha": alphas_of(config), "stimulus": of.test, "space": len(SPACES), **train}
        yield "regress", f"decoders/{name}", catalog.decoders(), hat
        for space in SPACES:
            shape = networks.spaces[space]
            if settings.choose != "fixed":
                spec = catalog.selection(shape, chunks.columns)
                yield "regress", f"selection/{name}/{space}", spec, {"alpha": tried, **_dims(shape)}
            spec = catalog.predictions(shape, chunks.columns, held_out=config.reconstruct.standardise == "held_out")
            yield "regress", f"predictions/{name}/{space}", spec, {"stimulus": of.test, **_dims(shape)}
            if space in settings.weights:
                spec, axes = catalog.weights(shape, chunks.columns, chunks.voxels), {"voxel": of.voxels}
                yield "regress", f"weights/{name}/{space}", spec, {**axes, **_dims(shape)}
                yield "regress", f"importance/{name}/{space}", catalog.importance(chunks.voxels), axes


def pictures(config: Config, sizes: Sizes) -> dict[str, int]:
    """Test stimuli of everybody whose pictures are made; of the mean, at most."""
    names = painted(config, tuple(config.subjects))
    return {name: sizes.subjects[name].test if name in sizes.subjects else sizes.test for name in names}


def _reconstruct(config: Config, sizes: Sizes, networks: Networks) -> Iterator[Declared]:
    chunks = config.chunks
    if MEAN in decoded(config, tuple(config.subjects)):
        for space in SPACES:
            shape = networks.spaces[space]
            axes = {"stimulus": sizes.test, **_dims(shape)}
            yield "reconstruct", f"predictions/{MEAN}/{space}", catalog.predictions(shape, chunks.columns), axes
    for name, test in pictures(config, sizes).items():
        guess, image = ({"stimulus": test, "y": px, "x": px, "rgb": 3} for px in (networks.guess, networks.image))
        yield "reconstruct", f"guesses/{name}", catalog.guesses(chunks.images), guess
        for variant in config.reconstruct.variants:
            spec = catalog.reconstructions(chunks.images)
            yield "reconstruct", f"reconstructions/{name}/{variant}", spec, image


def _evaluate(config: Config, sizes: Sizes) -> Iterator[Declared]:
    metrics, variants = config.evaluate.metrics, len(config.reconstruct.variants)
    for name, test in pictures(config, sizes).items():
        axes = {"variant": variants, "metric": len(metrics), "stimulus": test, "photo": test}
        yield "evaluate", f"similarities/{name}", catalog.similarities(config.chunks.images), axes
        yield "evaluate", f"metrics/{name}", catalog.metrics(config.chunks.images), axes
