"""Predicted latents into pictures. The VDVAE's guess, then the reconstruction painted from it.

First the predictions of all subjects are averaged, if the configuration asks for the subject `mean`. One pass decodes
the guesses of every subject; a second paints every variant from the same guesses and predictions. Blocks of several
subjects go through the networks together, so that what is left over of each fills batches too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from bdflow.config import Config, content
from bdflow.models.painters import painter_kind
from bdflow.regression import average, ridge
from bdflow.stores import Store, StoreError
from bdflow.study import catalog, keys, parts
from bdflow.study.graph import Counts, StoreDecl
from bdflow.study.painting import (
    batch_painting,
    guess_inputs,
    guess_settings,
    packs,
    roles_of,
    spaces_of,
    variant_inputs,
)
from bdflow.study.parts import Joined
from bdflow.study.stage import MEAN, TRUE, Context, Stage, Step, Work, decoded, missing_in_any, painted

Pack = tuple[tuple[str, int], ...]  # (subject, partition) of blocks that fill batches together
Task = tuple[str, Pack]  # (variant, pack)


class Reconstruct(Stage):
    """Mean predictions, guesses, reconstructions."""

    name = "reconstruct"

    def stores(self, config: Config) -> Iterator[StoreDecl]:
        if MEAN in decoded(config, config.subjects):
            for space in config.spaces:
                settings = {"standardise": config.ridge_of(space).standardise}
                upstream = tuple(keys.predictions(subject, space) for subject in config.subjects)
                upstream = (*parts.targets(space, parts.of_pictures(config, MEAN)), *upstream)
                layout, chunks = partial(_mean, config, space), content(config.chunks, "predictions")
                yield StoreDecl(keys.predictions(MEAN, space), layout, settings, upstream=upstream, chunks=chunks)
        for painter in config.painters:
            for subject in painted(config, config.subjects):
                yield from self._pictures(config, painter, subject)

    def _pictures(self, config: Config, painter: str, subject: str) -> Iterator[StoreDecl]:
        roles, kind = spaces_of(config, painter), painter_kind(config, painter)
        common = {"networks": content(config.networks), **guess_settings(config, painter)}
        guesses = keys.guesses(painter, subject)

        def made_from(spaces: Iterable[str]) -> dict[str, object]:
            return {} if subject == TRUE else {s: config.ridge_of(s).standardise for s in spaces}

        if "guess" in roles:
            settings = {**common, "standardise": made_from([roles["guess"]])}
            layout, chunks = partial(_guesses, config, painter, subject), content(config.chunks, "guesses")
            upstream = latent_keys(config, subject, roles["guess"])
            inputs = partial(guess_inputs, config, painter)
            yield StoreDecl(guesses, layout, settings, inputs, upstream, chunks, kind.guess_arithmetic())
        for variant in config.painters[painter].variants:
            used = roles_of(config, painter, variant)
            settings = {
                **common,
                "standardise": made_from(used.values()),
                "variant": variant,
                "painting": kind.variant_settings(variant),
            }
            made = (latent_keys(config, subject, of) if role != "guess" else (guesses,) for role, of in used.items())
            upstream = tuple(chain.from_iterable(made))
            key, layout = keys.reconstructions(painter, subject, variant), partial(_images, config, painter, subject)
            chunks, inputs = (
                content(config.chunks, "reconstructions"),
                partial(variant_inputs, config, painter, variant),
            )
            yield StoreDecl(key, layout, settings, inputs, upstream, chunks, kind.arithmetic(variant))

    def steps(self, context: Context) -> Iterable[Step]:
        config = context.config
        predictions = tuple(keys.predictions(s, space) for s in context.subjects for space in config.spaces)
        if MEAN in context.decoded:
            means = tuple(keys.predictions(MEAN, space) for space in config.spaces)
            shown = parts.of_pictures(config, MEAN)
            needs: tuple[str, ...] = (*predictions, *(key for s in config.spaces for key in parts.targets(s, shown)))
            yield Step("mean predictions", "blocks of latents", needs, means, partial(_start_means, context))
        for painter, settings in config.painters.items():
            named = f" ({painter})" if len(config.painters) > 1 else ""
            roles = spaces_of(config, painter)
            latents = [k for s in context.painted for space in roles.values() for k in latent_keys(config, s, space)]
            guesses: tuple[str, ...] = ()
            if "guess" in roles:
                guesses = tuple(keys.guesses(painter, s) for s in context.painted)
                needs = tuple(key for s in context.painted for key in latent_keys(config, s, roles["guess"]))
                yield Step(f"guesses{named}", "tasks", needs, guesses, partial(_start_guesses, context, painter))
            images = tuple(keys.reconstructions(painter, s, v) for s in context.painted for v in settings.variants)
            needs = tuple(dict.fromkeys([*latents, *guesses]))
            yield Step(f"reconstructions{named}", "tasks", needs, images, partial(_start_images, context, painter))


def latent_keys(config: Config, subject: str, space: str) -> tuple[str, ...]:
    """The stores that hold the latents of a subject's pictures."""
    if subject == TRUE:
        return parts.targets(space, parts.of_pictures(config, TRUE))
    return (keys.predictions(subject, space),)


# --- what the stores look like ----------------------------------------------------------------------------------------


def _mean(config: Config, space: str, counts: Counts) -> catalog.Laid:
    shape = counts.shape(space)
    sizes = {"stimulus": counts.test_stimuli(MEAN), **catalog.space_sizes(shape)}
    return catalog.predictions(shape, config.chunks.columns), sizes


def _guesses(config: Config, painter: str, subject: str, counts: Counts) -> catalog.Laid:
    pixels = counts.guess_size(painter)
    sizes = {"stimulus": counts.test_stimuli(subject), "y": pixels, "x": pixels, "rgb": 3}
    return catalog.guesses(config.chunks.images), sizes


def _images(config: Config, painter: str, subject: str, counts: Counts) -> catalog.Laid:
    pixels = counts.image_size(painter)
    sizes = {"stimulus": counts.test_stimuli(subject), "y": pixels, "x": pixels, "rgb": 3}
    return catalog.reconstructions(config.chunks.images), sizes


# --- steps ------------------------------------------------------------------------------------------------------------


def _latents(context: Context, painter: str) -> dict[str, Latents]:
    """The latents of every subject's pictures."""
    config = context.config
    spaces = dict.fromkeys(spaces_of(config, painter).values())
    return {
        subject: Latents(
            {space: parts.joined(context, latent_keys(config, subject, space)) for space in spaces},
            {space: _rule(config, subject, space) for space in spaces},
        )
        for subject in context.painted
    }


def _start_guesses(context: Context, painter: str) -> Work:
    config, latents = context.config, _latents(context, painter)
    stores = {
        subject: context.declare(keys.guesses(painter, subject), {"nsd_id": latents[subject].test_ids()})
        for subject in context.painted
    }
    blocks = [((subject, p), n) for subject, store in stores.items() for p, n in _missing(store)]
    return Work(packs(blocks, config.painters[painter].batch_size), partial(Guesser, config, painter, latents, stores))


def _start_images(context: Context, painter: str) -> Work:
    config, latents, settings = context.config, _latents(context, painter), context.config.painters[painter]
    guesses = {}
    if "guess" in spaces_of(config, painter):
        guesses = {subject: context.ready(keys.guesses(painter, subject)) for subject in context.painted}
    stores = {
        (subject, variant): context.declare(
            keys.reconstructions(painter, subject, variant), {"nsd_id": latents[subject].test_ids()}
        )
        for subject in context.painted
        for variant in settings.variants
    }
    tasks: list[Task] = []
    for variant in settings.variants:
        blocks = [((s, p), n) for (s, v), store in stores.items() if v == variant for p, n in _missing(store)]
        tasks += [(variant, pack) for pack in packs(blocks, settings.batch_size)]
    return Work(tasks, partial(Reconstructor, config, painter, latents, guesses, stores))


def _start_means(context: Context) -> Work:
    """Predictions of the subject `mean`, of the stimuli that every subject was tested with."""
    config = context.config
    stores: dict[str, Store] = {}
    sources: dict[str, tuple[list[Store], Joined]] = {}
    rules = {}
    for space in config.spaces:
        predictions = [context.ready(keys.predictions(subject, space)) for subject in sorted(context.subjects)]
        ids = shared_ids([source.read("nsd_id") for source in predictions])
        if not len(ids):
            raise StoreError(
                f"{keys.predictions(MEAN, space)}: found no stimulus that all of {', '.join(context.subjects)} were "
                "tested with; expected some: the mean is taken over the predictions of one stimulus.\n"
                "What to do: set `reconstruct.subject_mean: false`, or choose another test set (`dataset.split`)."
            )
        stores[space] = context.declare(keys.predictions(MEAN, space), {"nsd_id": ids})
        targets = parts.targets(space, parts.of_pictures(config, MEAN))
        sources[space] = (predictions, parts.joined(context, targets))
        rules[space] = config.ridge_of(space).standardise
    tasks = [(space, partition) for space, store in stores.items() for partition in missing_in_any([store])]
    return Work(tasks, partial(Averager, rules, sources, stores))


def shared_ids(ids: Sequence[np.ndarray]) -> np.ndarray:
    """The stimuli that are in all of these, in the order of the first."""
    found = ids[0]
    for others in ids[1:]:
        found = found[np.isin(found, others)]
    return found


def _missing(store: Store) -> list[tuple[int, int]]:
    """(partition, pictures in it) of every partition that is not written yet."""
    return [(partition, len(_ids(store, partition))) for partition in store.missing()]


def _ids(store: Store, partition: int) -> np.ndarray:
    return store.read("nsd_id", {"stimulus": _rows_of(store, partition)})


def _rows_of(store: Store, partition: int) -> slice:
    return store.spec.region(store.sizes, partition)["stimulus"]


def _rule(config: Config, subject: str, space: str) -> str | None:
    """How a subject's predictions are re-standardised. The mean has no held-out predictions of its own, since each
    subject has its own training stimuli: the average of what its members' rule gives is taken as it is."""
    rule = config.ridge_of(space).standardise
    if subject == TRUE:
        return None
    return "none" if subject == MEAN and rule == "held_out" else rule


class Averager:
    """Averages one block of latents over subjects a task; `sources` are their predictions, and the targets."""

    def __init__(
        self,
        rules: Mapping[str, str],
        sources: Mapping[str, tuple[Sequence[Store], Joined]],
        stores: Mapping[str, Store],
    ) -> None:
        self.rules, self.sources, self.stores = rules, sources, stores

    def __call__(self, task: tuple[str, int]) -> None:
        space, partition = task
        store, (predictions, targets) = self.stores[space], self.sources[space]
        rule = self.rules[space]
        block, ids = store.spec.region(store.sizes, partition), store.read("nsd_id")
        latents = []
        for source in predictions:
            statistics = {name: source.read(name, block) for name in ridge.RULES[rule]}
            latents.append(ridge.restandardise(_rows(source, ids, block), rule, statistics))
        means, scales, alphas = (
            [source.read(name, block) for source in predictions] for name in ("train_mean", "train_std", "alpha")
        )
        found = average.mean_prediction(latents, means, scales, _rows(targets, ids, block))
        same = np.all([alpha == alphas[0] for alpha in alphas], axis=0)
        store.write(partition, {**found, "alpha": np.where(same, alphas[0], np.float32(np.nan))})


def _rows(store: Store | Joined, ids: np.ndarray, block: Mapping[str, slice] | None = None) -> np.ndarray:
    """Latents of some stimuli in the order asked for, float32; `block` cuts the other dimensions."""
    rows = store.rows("nsd_id", ids)
    order = np.argsort(rows)
    latent = store.read("latent", {"stimulus": rows[order], **(block or {})})
    return latent[np.argsort(order)].astype(np.float32)


@dataclass(frozen=True)
class Latents:
    """The latents one subject's pictures are made from, by space: its predictions, re-standardised by the space's rule,
    or the targets (rule None).
    """

    stores: Mapping[str, Joined]
    rules: Mapping[str, str | None]

    def test_ids(self) -> np.ndarray:
        """nsd_id of the test stimuli, in the order of the pictures."""
        found = []
        for space, store in self.stores.items():
            ids = store.read("nsd_id")
            found.append(ids[store.read("split") == "test"] if self.rules[space] is None else ids)
        return shared_ids(found)

    def read(self, space: str, ids: np.ndarray) -> np.ndarray:
        """Latents (n, ...) float32 of some stimuli; predictions are re-standardised.

        Raises StoreError if they are not finite.
        """
        store, rule = self.stores[space], self.rules[space]
        latent = _rows(store, ids)
        if rule is not None:
            statistics = {name: store.read(name) for name in ridge.RULES[rule]}
            latent = ridge.restandardise(latent, rule, statistics).astype(np.float32)
        if not np.isfinite(latent).all():
            raise StoreError(
                f"{store.path}: found latents that are not finite; expected numbers.\n"
                "What to do: look at `r2` and `train_std` of this store, and at the targets it was made from."
            )
        return latent


class Guesser:
    """Loads what guesses are made by; a task is a pack of blocks of test stimuli, each with its subject."""

    def __init__(self, config: Config, painter: str, latents: dict[str, Latents], stores: dict[str, Store]) -> None:
        self.painting = batch_painting(config, painter)
        self.space = spaces_of(config, painter)["guess"]
        self.latents, self.stores = latents, stores

    def prepare(self, pack: Pack) -> Any:
        parts = []
        for subject, partition in pack:
            ids = _ids(self.stores[subject], partition)
            latents = self.latents[subject].read(self.space, ids)
            parts.append(self.painting.guess_inputs(latents, subject, ids.tolist()))
        return parts[0].join(parts)

    def work(self, inputs: Any) -> np.ndarray:
        return self.painting.decode_guesses(inputs)

    def finish(self, pack: Pack, made: np.ndarray) -> None:
        _write([(self.stores[subject], partition) for subject, partition in pack], made)


class Reconstructor:
    """Loads a painter; a task is a variant and a pack of blocks of test stimuli, each with its subject."""

    def __init__(
        self,
        config: Config,
        painter: str,
        latents: dict[str, Latents],
        guesses: dict[str, Store],
        stores: Mapping[tuple[str, str], Store],
    ) -> None:
        self.painting = batch_painting(config, painter)
        self.roles = {variant: roles_of(config, painter, variant) for variant in config.painters[painter].variants}
        self.enlarges = painter_kind(config, painter).enlarges
        self.latents, self.guesses, self.stores = latents, guesses, stores

    def prepare(self, task: Task) -> Any:
        variant, pack = task
        parts: list[Any] = []
        pictures: list[np.ndarray] = []
        for subject, partition in pack:
            store = self.stores[subject, variant]
            ids = _ids(store, partition)
            given: dict[str, np.ndarray] = {}
            for role, space in self.roles[variant].items():
                if role == "guess":
                    given[role] = self.guesses[subject].read("image", {"stimulus": _rows_of(store, partition)})
                else:
                    given[role] = self.latents[subject].read(space, ids)
            if variant in self.enlarges:
                pictures.append(self.painting.enlarged(given["guess"], len(ids)).numpy())
            else:
                guess, vision, text = (given.get(role) for role in ("guess", "vision", "text"))
                parts.append(self.painting.paint_inputs(guess, vision, text, subject, ids.tolist()))
        return parts[0].join(parts) if parts else np.concatenate(pictures)

    def work(self, inputs: Any) -> np.ndarray:
        return inputs if isinstance(inputs, np.ndarray) else self.painting.paint_prepared(inputs)

    def finish(self, task: Task, made: np.ndarray) -> None:
        variant, pack = task
        _write([(self.stores[subject, variant], partition) for subject, partition in pack], made)


def _write(places: Sequence[tuple[Store, int]], images: np.ndarray) -> None:
    """Pictures of several blocks, one block after the other, each into its place."""
    start = 0
    for store, partition in places:
        count = len(_ids(store, partition))
        store.write(partition, {"image": images[start : start + count]})
        start += count
