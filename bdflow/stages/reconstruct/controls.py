"""Controls: pictures that say how much of a score comes from the brain.

`prior` puts each picture of the first variant to another test stimulus: the painter's pictures, without what was
predicted of this one. `retrieval` shows training photos that are nearest to the prediction, `mean_image` the mean of
the training photos. All have as many pictures of a stimulus as the painter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bdflow import random
from bdflow.config import Config, content
from bdflow.errors import InputError, counted
from bdflow.stages.reconstruct.layouts import images_layout
from bdflow.stages.reconstruct.workers import rows_of
from bdflow.stores import Store
from bdflow.study import catalog, control_catalog, keys, parts
from bdflow.study.designs import design_of
from bdflow.study.graph import Counts, StoreDecl
from bdflow.study.parts import Joined
from bdflow.study.stage import MEAN, Context, Step, Work, decoded

BLOCK = 64  # photos at a time
Key = tuple[str, str]  # (subject, space)


def retrievals(config: Config) -> dict[str, int]:
    """How many neighbours are wanted of each space that `retrieval` looks in."""
    found: dict[str, int] = {}
    for settings in config.painters.values():
        space = settings.retrieval_space
        if "retrieval" in settings.controls and space is not None:
            found[space] = max(found.get(space, 0), settings.pictures)
    return found


def _space(config: Config, painter: str) -> str:
    """The space whose training stimuli a painter's controls show."""
    return config.painters[painter].retrieval_space or next(iter(config.decoded_spaces))


def members(config: Config, subject: str) -> tuple[str, ...]:
    """The subjects whose training stimuli are a subject's: its own; of the mean of predictions, everybody's."""
    return config.subjects if subject == MEAN else (subject,)


def trained_parts(config: Config, subject: str) -> tuple[str, ...]:
    """The parts that hold a subject's test and training stimuli."""
    return tuple(dict.fromkeys(part for of in members(config, subject) for part in parts.of_pictures(config, of)))


def _rows(config: Config, subject: str, space: str) -> tuple[str, ...]:
    """The stores that say which stimuli a subject's predictions of a space are trained on."""
    kind = design_of(config, space).responses
    return tuple(keys.responses(of, kind) for of in members(config, subject))


# --- stores and steps -------------------------------------------------------------------------------------------------


def neighbour_stores(config: Config) -> Iterator[StoreDecl]:
    """Which training stimuli are nearest, of every subject whose latents are predicted."""
    for subject in decoded(config, config.subjects):
        for space, count in retrievals(config).items():
            shown = parts.targets(space, trained_parts(config, subject))
            upstream = (keys.predictions(subject, space), *_rows(config, subject, space), *shown)
            layout = partial(_neighbours, subject, count)
            yield StoreDecl(keys.neighbours(subject, space), layout, {"neighbours": count}, upstream=upstream)


def _neighbours(subject: str, count: int, counts: Counts) -> catalog.Laid:
    n = counts.test_stimuli(subject)
    return control_catalog.neighbours(n), {"stimulus_id": n, "neighbour": count}


def control_stores(config: Config, painter: str, subject: str) -> Iterator[StoreDecl]:
    """The pictures of every control of a painter, of a subject whose latents are predicted."""
    settings = config.painters[painter]
    for control in settings.controls:
        about: dict[str, Any] = {"control": control, "pictures": settings.pictures}
        space = _space(config, painter)
        photos = (*parts.stimuli(trained_parts(config, subject)), *_rows(config, subject, space))
        upstream: tuple[str, ...] = (*photos, keys.predictions(subject, space))
        if control == "prior":
            about["seed"] = config.seed
            upstream = (keys.reconstructions(painter, subject, settings.variants[0]),)
        if control == "retrieval":
            upstream = (*photos, keys.neighbours(subject, space))
        layout, cut = partial(images_layout, config, painter, subject), content(config.chunks, "reconstructions")
        yield StoreDecl(keys.reconstructions(painter, subject, control), layout, about, upstream=upstream, chunks=cut)


def neighbour_step(context: Context) -> Iterator[Step]:
    """Finds nearest training stimuli, where `retrieval` wants them."""
    config, wanted = context.config, retrievals(context.config)
    pairs = [(subject, space) for subject in context.decoded for space in wanted]
    if not pairs:
        return
    needs = [key for pair in pairs for key in (keys.predictions(*pair), *_rows(config, *pair))]
    needs += [key for s, space in pairs for key in parts.targets(space, trained_parts(config, s))]
    fills = tuple(keys.neighbours(*pair) for pair in pairs)
    start = partial(_start_neighbours, context, pairs)
    yield Step("nearest training stimuli", "spaces", tuple(dict.fromkeys(needs)), fills, start)


def control_step(context: Context, painter: str, named: str) -> Iterator[Step]:
    """Shows the pictures of controls."""
    config, settings = context.config, context.config.painters[painter]
    if not settings.controls:
        return
    decls = [decl for subject in context.decoded for decl in control_stores(config, painter, subject)]
    needs = tuple(dict.fromkeys(key for decl in decls for key in decl.upstream))
    fills = tuple(decl.key for decl in decls)
    yield Step(f"controls{named}", "controls", needs, fills, partial(_start_controls, context, painter))


def _start_neighbours(context: Context, pairs: Sequence[Key]) -> Work:
    config = context.config
    predictions = {pair: context.ready(keys.predictions(*pair)) for pair in pairs}
    targets = {(s, space): parts.joined(context, parts.targets(space, trained_parts(config, s))) for s, space in pairs}
    trained = {pair: _trained(context, *pair) for pair in pairs}
    stores = {}
    for pair, predicted in predictions.items():
        stores[pair] = context.declare(keys.neighbours(*pair), {"stimulus_id": predicted.read("stimulus_id")})
        asked = stores[pair].sizes["neighbour"]
        if len(trained[pair]) < asked:
            raise InputError(
                f"controls: retrieval, {pair[0]}",
                found=counted(len(trained[pair]), "training stimulus", "training stimuli"),
                expected=f"{asked} at least, one for each of `pictures`",
                action="leave out `retrieval`, or ask for fewer pictures",
            )
    worker = partial(Finder, config, predictions, targets, trained, stores)
    return Work([pair for pair, store in stores.items() if store.missing()], worker)


def _trained(context: Context, subject: str, space: str) -> np.ndarray:
    """stimulus_ids of a subject's training stimuli, each once, ascending."""
    rows = [context.ready(key) for key in _rows(context.config, subject, space)]
    return np.unique(np.concatenate([of.read("stimulus_id")[of.read("split") != "test"] for of in rows]))


def _start_controls(context: Context, painter: str) -> Work:
    config, settings = context.config, context.config.painters[painter]
    stores: dict[Key, Store] = {}
    sources: dict[str, Source] = {}
    space = _space(config, painter)
    for subject in context.decoded:
        first = context.ready(keys.reconstructions(painter, subject, settings.variants[0]))
        ids = first.read("stimulus_id")
        if "prior" in settings.controls and len(ids) < 2:
            raise InputError(
                f"painters.{painter}.controls, prior, {subject}",
                found="one test stimulus",
                expected="two at least: a picture is put to another stimulus",
                action="leave out `prior`, or test more stimuli",
            )
        photos, trained, neighbours = None, np.zeros(0, int), None
        if set(settings.controls) - {"prior"}:
            photos = parts.joined(context, parts.stimuli(trained_parts(config, subject)))
            trained = _trained(context, subject, space)
        if "retrieval" in settings.controls:
            neighbours = context.ready(keys.neighbours(subject, space))
        sources[subject] = Source(first, photos, trained, neighbours)
        for control in settings.controls:
            key = keys.reconstructions(painter, subject, control)
            stores[subject, control] = context.declare(key, {"stimulus_id": ids})
    tasks = [key for key, store in stores.items() if store.missing()]
    return Work(tasks, partial(Controls, config.seed, sources, stores))


def holds_the_mean(config: Config, subject: str, space: str) -> bool:
    """Whether stored predictions are around the mean of the training latents, and not around 0: by the intercept, or,
    since those of `mean` are averaged after they were re-standardised, by that.
    """
    averaged = subject == MEAN and config.ridge_of(space).standardise != "none"
    return averaged or design_of(config, space).intercept


# --- workers ----------------------------------------------------------------------------------------------------------


class Finder:
    """Finds the training stimuli nearest to the predictions, and to the test stimuli, of one subject and space a task.

    Latents are z-scored by the training stimuli, in blocks of columns; the cosines of all pairs are in memory, 8 bytes
    for each test and training stimulus.
    """

    def __init__(
        self,
        config: Config,
        predictions: Mapping[Key, Store],
        targets: Mapping[Key, Joined],
        trained: Mapping[Key, np.ndarray],
        stores: Mapping[Key, Store],
    ) -> None:
        self.config, self.predictions, self.targets = config, predictions, targets
        self.trained, self.stores = trained, stores

    def __call__(self, key: Key) -> None:
        predicted, targets, trained, store = (
            self.predictions[key],
            self.targets[key],
            self.trained[key],
            self.stores[key],
        )
        ids, centred = store.read("stimulus_id"), not holds_the_mean(self.config, *key)
        own = Cosines(len(ids), len(trained))
        of_predictions = Cosines(len(ids), len(trained))
        for there, here, made in self._blocks(predicted, targets, trained, ids):
            mean, scale = there.mean(axis=0), there.std(axis=0)
            scale = np.where(scale > 0, scale, np.inf)
            z_scored = (there - mean) / scale
            own.add((here - mean) / scale, z_scored)
            of_predictions.add((made if centred else made - mean) / scale, z_scored)
        found: dict[str, np.ndarray] = {}
        for name, values, cosines in (
            ("train_stimulus_id", "agreement", of_predictions.read()),
            ("similar_stimulus_id", "similarity", own.read()),
        ):
            order = np.argsort(-cosines, axis=1, kind="stable")[:, : store.sizes["neighbour"]]
            found[name] = trained[order]
            found[values] = np.take_along_axis(cosines, order, axis=1).astype(np.float32)
        store.write(0, found)

    def _blocks(
        self, predicted: Store, targets: Joined, trained: np.ndarray, ids: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Latents of training and of test stimuli, and predictions, (n, columns) float64, block by block."""
        dims = targets.first.dims("latent")[1:]
        ((dim, step),) = catalog.column_blocks(
            [targets.sizes[name] for name in dims], self.config.chunks.columns
        ).items()
        there, here = (targets.rows("stimulus_id", wanted) for wanted in (trained, ids))
        for start in range(0, targets.sizes[dim], step):
            region = {dim: slice(start, min(start + step, targets.sizes[dim]))}
            made = predicted.read("latent", region)
            yield (
                _columns(targets, there, region),
                _columns(targets, here, region),
                made.reshape(len(made), -1).astype(np.float64),
            )


def _columns(targets: Joined, rows: np.ndarray, region: dict[str, slice]) -> np.ndarray:
    order = np.argsort(rows)
    latent = targets.read("latent", {"stimulus_id": rows[order], **region})[np.argsort(order)]
    return latent.reshape(len(rows), -1).astype(np.float64)


class Cosines:
    """Cosines between two sets of vectors, from blocks of their columns."""

    def __init__(self, n: int, m: int) -> None:
        self.inner = np.zeros((n, m))
        self.left, self.right = np.zeros(n), np.zeros(m)

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        """Some columns of both: (n, k) and (m, k)."""
        self.inner += left @ right.T
        self.left += (left**2).sum(axis=1)
        self.right += (right**2).sum(axis=1)

    def read(self) -> np.ndarray:
        """(n, m); 0 where a vector is 0."""
        lengths = np.sqrt(self.left[:, None] * self.right[None, :])
        return np.divide(self.inner, lengths, out=np.zeros_like(self.inner), where=lengths > 0)


@dataclass(frozen=True)
class Source:
    """What a subject's controls are made from.

    Attributes
    ----------
    first : the pictures of the first variant.
    photos, trained : photos, and stimulus_ids of the training stimuli; None and none where no control shows photos.
    neighbours : the nearest training stimuli.
    """

    first: Store
    photos: Joined | None
    trained: np.ndarray
    neighbours: Store | None


class Controls:
    """Writes all pictures of one control of one subject a task, (subject, control)."""

    def __init__(self, seed: int, sources: Mapping[str, Source], stores: Mapping[Key, Store]) -> None:
        self.seed, self.sources, self.stores = seed, sources, stores

    def __call__(self, key: Key) -> None:
        subject, control = key
        store, source = self.stores[key], self.sources[subject]
        pixels, count = store.sizes["y"], store.sizes["picture"]
        if control == "prior":
            order = others(store.sizes["stimulus_id"], self.seed, subject)
        if control == "mean_image":
            mean = mean_photo(self._photos(source, pixels), len(source.trained))
        for partition in store.missing():
            rows = rows_of(store, partition)
            n = rows.stop - rows.start
            if control == "prior":
                image = np.concatenate(
                    [source.first.read("image", {"stimulus_id": slice(i, i + 1)}) for i in order[rows]]
                )
            elif control == "mean_image":
                image = np.broadcast_to(mean, (n, count, *mean.shape))
            else:
                assert source.neighbours is not None
                ids = source.neighbours.read("train_stimulus_id", {"stimulus_id": rows, "neighbour": slice(0, count)})
                image = np.stack([next(self._photos(source, pixels, of)) for of in ids])
            store.write(partition, {"image": np.ascontiguousarray(image)})

    @staticmethod
    def _photos(source: Source, pixels: int, wanted: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Training photos (n, y, x, 3) at the size of pictures, in blocks; those of some ids in one, in their order."""
        from PIL import Image

        from bdflow.models.resizing import resize

        assert source.photos is not None
        ids = source.trained if wanted is None else wanted
        for start in range(0, len(ids), BLOCK):
            rows = source.photos.rows("stimulus_id", ids[start : start + BLOCK])
            order = np.argsort(rows)
            photos = source.photos.read("image", {"stimulus_id": rows[order]})[np.argsort(order)]
            yield resize(photos, pixels, Image.Resampling.LANCZOS)


def others(n: int, seed: int, subject: str) -> np.ndarray:
    """Of n stimuli, another one for each, every one once: along a random circle through all."""
    circle = random.generator(seed, "prior", subject).permutation(n)
    found = np.empty(n, int)
    found[circle] = np.roll(circle, 1)
    return found


def mean_photo(blocks: Iterable[np.ndarray], n: int) -> np.ndarray:
    """Mean (y, x, 3) uint8 of n photos, rounded."""
    total: Any = 0
    for block in blocks:
        total = total + block.sum(axis=0, dtype=np.float64)
    return np.rint(total / n).astype(np.uint8)
