"""What does a brain area like to see? Patterns of regions, decoded by the stored decoders and painted (paper, 3.4).

Each set of regions becomes stores under `rois/<set>/<subject>`: `patterns`, the latents of each target space, `guesses`
and `images`. Nothing is fitted again. The subject `mean` is painted from the latents averaged over subjects, where all
subjects of the configuration have the set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from bdflow.config import Config, content
from bdflow.models.painters import painter_kind
from bdflow.regions.rescale import rescaled
from bdflow.stores import Store, StoreSpec, text
from bdflow.study import catalog, decoder, keys, region_catalog, region_patterns
from bdflow.study.coordinates import of_space
from bdflow.study.designs import averaged_design, design_of
from bdflow.study.graph import Counts, StoreDecl
from bdflow.study.painting import (
    Kernels,
    attention_keys,
    batch_painting,
    guess_inputs,
    guess_settings,
    kernels_of,
    packs,
    spaces_of,
    variant_inputs,
)
from bdflow.study.region_patterns import Key, averaged
from bdflow.study.stage import MEAN, Context, Stage, Step, Work

Pack = tuple[tuple[str, str, int], ...]  # (set, subject, region)
Pictures = dict[str, Mapping[Key, Store]]  # guesses and images, by set and subject


class Roi(Stage):
    """Patterns of regions, their latents, their pictures."""

    name = "roi"
    uses_torch = True
    on_demand = True

    def check(self, context: Context) -> None:
        for chosen, subject in region_patterns.keys_of(context):
            if subject in context.subjects and region_patterns.can_be_told(context, subject):
                region_patterns.made(context, subject, context.config.roi.sets[chosen])

    def stores(self, config: Config) -> Iterator[StoreDecl]:
        for chosen, regions in config.roi.sets.items():
            subjects = region_patterns.subjects_of(config, regions)
            for subject in subjects:
                yield from self._of_subject(config, chosen, subject)
            if averaged(config, subjects):
                for space in config.decoded_spaces:
                    upstream = tuple(keys.region_latents(chosen, subject, space) for subject in subjects)
                    layout = partial(_latents, config, chosen, space)
                    yield StoreDecl(keys.region_latents(chosen, MEAN, space), layout, upstream=upstream)
            for subject in (*subjects, *((MEAN,) if averaged(config, subjects) else ())):
                for painter in config.painters:
                    yield from self._pictures(config, chosen, painter, subject)

    def _of_subject(self, config: Config, chosen: str, subject: str) -> Iterator[StoreDecl]:
        regions, patterns = config.roi.sets[chosen], keys.region_patterns(chosen, subject)
        yield StoreDecl(
            patterns,
            partial(_patterns, config, chosen, subject),
            {"regions": list(regions), "seed": config.seed},
            partial(region_patterns.mask_inputs, config, regions, subject),
            (keys.betas(subject), keys.responses(subject, averaged_design(config).responses)),
        )
        for space in config.decoded_spaces:
            system = keys.system(subject, design_of(config, space).name)
            upstream = (patterns, keys.predictions(subject, space), system)
            layout = partial(_latents, config, chosen, space)
            yield StoreDecl(keys.region_latents(chosen, subject, space), layout, upstream=upstream)

    def _pictures(self, config: Config, chosen: str, painter: str, subject: str) -> Iterator[StoreDecl]:
        roles, kind = spaces_of(config, painter), painter_kind(config, painter)
        rescaling = {name: value for name, value in content(config.roi).items() if name != "sets"}
        settings = {**rescaling, "networks": content(config.networks), **guess_settings(config, painter)}
        latents = {role: keys.region_latents(chosen, subject, space) for role, space in roles.items()}
        guesses = keys.region_guesses(chosen, painter, subject)
        if "guess" in latents:
            layout, inputs = partial(_guesses, config, chosen, painter), partial(guess_inputs, config, painter)
            by_guess = {**settings, "networks": {**content(config.networks), "dtype": kind.guess_dtype}}
            yield StoreDecl(guesses, layout, by_guess, inputs, (latents["guess"],), {}, kind.guess_arithmetic())
        upstream = tuple(guesses if role == "guess" else key for role, key in latents.items())
        variant = full(config, painter)
        settings = {**settings, "painting": kind.variant_settings(variant)}
        key, layout = keys.region_images(chosen, painter, subject), partial(_images, config, chosen, painter)
        inputs = partial(variant_inputs, config, painter, variant)
        yield StoreDecl(key, layout, settings, inputs, upstream, {}, kind.arithmetic(variant))

    def steps(self, context: Context) -> Iterable[Step]:
        config, found = context.config, region_patterns.keys_of(context)
        own, means = [key for key in found if key[1] != MEAN], [key for key in found if key[1] == MEAN]
        subjects = list(dict.fromkeys(subject for _, subject in own))
        voxels = tuple(
            key
            for subject in subjects
            for key in (keys.betas(subject), keys.responses(subject, averaged_design(config).responses))
        )
        patterns = tuple(keys.region_patterns(*key) for key in own)
        latents, mean_latents = (
            tuple(keys.region_latents(*key, space) for key in some for space in config.decoded_spaces)
            for some in (own, means)
        )
        predictions = tuple(keys.predictions(subject, space) for subject in subjects for space in config.decoded_spaces)
        systems = tuple(
            keys.system(s, design_of(config, space).name) for s in subjects for space in config.decoded_spaces
        )
        yield Step("patterns of regions", "sets", voxels, patterns, partial(_start_patterns, context, own))
        needs = (*patterns, *predictions, *dict.fromkeys(systems))
        yield Step("latents of regions", "subjects", needs, latents, partial(_start_latents, context, own))
        yield Step("mean latents of regions", "sets", latents, mean_latents, partial(_start_means, context, means))
        for painter in config.painters:
            named = f" ({painter})" if len(config.painters) > 1 else ""
            fills = [keys.region_images(chosen, painter, subject) for chosen, subject in found]
            if "guess" in spaces_of(config, painter):
                fills += [keys.region_guesses(chosen, painter, subject) for chosen, subject in found]
            start = partial(_start_pictures, context, painter, found)
            needs = (*latents, *mean_latents, *attention_keys(config, painter))
            yield Step(f"pictures of regions{named}", "tasks", needs, tuple(fills), start)


def full(config: Config, painter: str) -> str:
    """The variant that uses every role of a painter's spaces: what regions are painted as."""
    kind, roles = painter_kind(config, painter), set(spaces_of(config, painter))
    found: str = next(variant for variant, used in kind.variants.items() if set(used) == roles)
    return found


# --- what the stores look like ----------------------------------------------------------------------------------------


def _patterns(config: Config, chosen: str, subject: str, counts: Counts) -> catalog.Laid:
    return region_catalog.patterns(), {"region": len(config.roi.sets[chosen]), "voxel": counts.voxels(subject)}


def _latents(config: Config, chosen: str, space: str, counts: Counts) -> catalog.Laid:
    shape = counts.shape(space)
    places = of_space(counts, space)
    return region_catalog.latents(shape, places), {"region": len(config.roi.sets[chosen]), **catalog.space_sizes(shape)}


def _pixels(config: Config, chosen: str, spec: StoreSpec, pixels: int) -> catalog.Laid:
    settings = config.roi
    sizes = {"region": len(settings.sets[chosen]), "strength": len(settings.strengths), "noise": settings.seeds}
    return spec, {**sizes, "y": pixels, "x": pixels, "rgb": 3}


def _guesses(config: Config, chosen: str, painter: str, counts: Counts) -> catalog.Laid:
    return _pixels(config, chosen, region_catalog.guesses(), counts.guess_size(painter))


def _images(config: Config, chosen: str, painter: str, counts: Counts) -> catalog.Laid:
    return _pixels(config, chosen, region_catalog.images(), counts.image_size(painter))


# --- steps ------------------------------------------------------------------------------------------------------------


def _named(context: Context, chosen: str) -> dict[str, np.ndarray]:
    return {"region": text(context.config.roi.sets[chosen])}


def _start_patterns(context: Context, own: Sequence[Key]) -> Work:
    found = {key: region_patterns.made(context, key[1], context.config.roi.sets[key[0]]) for key in own}
    for key, values in found.items():
        context.declare(keys.region_patterns(*key), _named(context, key[0])).write(0, values)
    return Work()


def _start_latents(context: Context, own: Sequence[Key]) -> Work:
    patterns = {key: context.ready(keys.region_patterns(*key)) for key in own}
    latents = {
        (*key, space): context.declare(keys.region_latents(*key, space), _named(context, key[0]))
        for key in own
        for space in context.config.decoded_spaces
    }
    waiting = dict.fromkeys(subject for (_, subject, _), store in latents.items() if store.missing())
    return Work(list(waiting), partial(Decoder, context, patterns, latents))


def _start_means(context: Context, means: Sequence[Key]) -> Work:
    for chosen, _ in means:
        for space in context.config.decoded_spaces:
            store = context.declare(keys.region_latents(chosen, MEAN, space), _named(context, chosen))
            if store.missing():
                subjects = sorted(context.subjects)
                _average(store, [context.ready(keys.region_latents(chosen, s, space)) for s in subjects])
    return Work()


def _start_pictures(context: Context, painter: str, found: Sequence[Key]) -> Work:
    config, settings = context.config, context.config.roi
    latents = {
        (*key, space): context.ready(keys.region_latents(*key, space))
        for key in found
        for space in config.decoded_spaces
    }

    def declared(key_of: Callable[[str, str, str], str]) -> dict[Key, Store]:
        extra = {"strength": np.array(settings.strengths), "noise": np.arange(settings.seeds)}
        return {
            (chosen, subject): context.declare(key_of(chosen, painter, subject), {**_named(context, chosen), **extra})
            for chosen, subject in found
        }

    pictures: Pictures = {}
    if "guess" in spaces_of(config, painter):
        pictures["guesses"] = declared(keys.region_guesses)
    pictures["images"] = declared(keys.region_images)
    each = len(settings.strengths) * settings.seeds
    blocks = [
        ((*key, region), each)
        for key in found
        for region in sorted({region for stores in pictures.values() for region in stores[key].missing()})
    ]
    packed = packs(blocks, config.painters[painter].batch_size)
    return Work(packed, partial(RegionPainter, config, painter, kernels_of(context, painter), latents, pictures))


def _average(store: Store, sources: Sequence[Store]) -> None:
    """Mean latents of the same regions over subjects, and of the statistics that rescale them."""
    found = {name: [source.read(name) for source in sources] for name in store.attrs["data"]}
    store.write(0, {name: np.mean(values, axis=0, dtype=np.float64).astype("f4") for name, values in found.items()})


class Decoder:
    """Decodes the patterns of all sets of one subject a task, with one walk through the targets of each space."""

    def __init__(
        self, context: Context, patterns: Mapping[Key, Store], latents: Mapping[tuple[str, str, str], Store]
    ) -> None:
        self.context, self.patterns, self.latents = context, patterns, latents

    def __call__(self, subject: str) -> None:
        for space in self.context.config.decoded_spaces:
            sets = [c for (c, s, at), store in self.latents.items() if (s, at) == (subject, space) and store.missing()]
            if not sets:
                continue
            patterns = [self.patterns[chosen, subject].read("pattern") for chosen in sets]
            found = decoder.decode(self.context, subject, np.concatenate(patterns), space)
            ends = np.cumsum([len(pattern) for pattern in patterns])[:-1]
            predictions = self.context.ready(keys.predictions(subject, space))
            statistics = {name: predictions.read(name) for name in ("train_mean", "train_std")}
            for chosen, latent in zip(sets, np.split(found, ends), strict=True):
                self.latents[chosen, subject, space].write(0, {"latent": latent, **statistics})


@dataclass(frozen=True)
class RegionLatents:
    """The latents of one set and subject, rescaled as the configuration says."""

    stores: Mapping[str, Store]
    rule: str

    def read(self, space: str, region: int, strengths: Sequence[float], seeds: int) -> np.ndarray:
        """(strengths * seeds, ...) float32 of one region, every seed of the first strength first."""
        store = self.stores[space]
        latent = store.read("latent", {"region": slice(region, region + 1)})
        mean, std = store.read("train_mean"), store.read("train_std")
        found = [rescaled(latent, mean, std, self.rule, strength) for strength in strengths]
        return np.repeat(np.concatenate(found), seeds, axis=0)


class RegionPainter:
    """Loads a painter; a task is a pack of regions, each of one set and subject, in every strength and seed.

    The noise depends on subject and seed alone: pictures of two regions differ by what was decoded alone.
    """

    def __init__(
        self,
        config: Config,
        painter: str,
        kernels: Kernels,
        latents: Mapping[tuple[str, str, str], Store],
        pictures: Pictures,
    ) -> None:
        self.settings, self.latents, self.pictures = config.roi, latents, pictures
        self.roles = spaces_of(config, painter)
        self.painting = batch_painting(config, painter, kernels)

    def prepare(self, pack: Pack) -> tuple[Any, Any]:
        guessed, painted = [], []
        settings = self.settings
        seeds = np.tile(np.arange(settings.seeds), len(settings.strengths)).tolist()
        for chosen, subject, region in pack:
            stores = {space: self.latents[chosen, subject, space] for space in self.roles.values()}
            latents = RegionLatents(stores, settings.rescale)
            parts = {
                role: latents.read(space, region, settings.strengths, settings.seeds)
                for role, space in self.roles.items()
            }
            name = f"roi {subject}"
            if "guess" in parts:
                guessed.append(self.painting.guess_inputs(parts["guess"], name, seeds))
            vision, text = parts.get("vision"), parts.get("text")
            painted.append(self.painting.paint_inputs(None, vision, text, name, seeds))
        return guessed[0].join(guessed) if guessed else None, painted[0].join(painted)

    def work(self, inputs: tuple[Any, Any]) -> dict[str, np.ndarray]:
        guess, paint = inputs
        if guess is None:
            return {"images": self.painting.paint_prepared(paint)}
        guesses = self.painting.decode_guesses(guess)
        enlarged = self.painting.enlarged(guesses, len(guesses))
        return {"guesses": guesses, "images": self.painting.paint_prepared(replace(paint, guesses=enlarged))}

    def finish(self, pack: Pack, made: dict[str, np.ndarray]) -> None:
        for kind, pictures in made.items():
            shape = (1, len(self.settings.strengths), self.settings.seeds, *pictures.shape[1:])
            for place_of, images in zip(pack, np.split(pictures, len(pack)), strict=True):
                chosen, subject, region = place_of
                self.pictures[kind][chosen, subject].write(region, {"image": images.reshape(shape)})
