"""What does a brain area like to see? Patterns of regions, decoded by the stored decoders and painted (paper, 3.4).

Each set of regions becomes stores under `rois/<set>/<subject>`: `patterns`, the latents of each target space, `guesses`
and `images`. Nothing is fitted again. The subject `mean` is painted from the latents averaged over subjects, where all
subjects of the configuration have the set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bdflow import decode, roi_patterns
from bdflow.config import SPACES, Config
from bdflow.models.bundle import open_bundle
from bdflow.nsd import identity
from bdflow.painting import Remarks, batch_painter, packs, painting_settings
from bdflow.rescale import rescaled
from bdflow.roi_patterns import Key, averaged, keys, place
from bdflow.stage import MEAN, Context, Expected, Work
from stores import Provenance, Store, StoreSpec, catalog, text

if TYPE_CHECKING:
    from bdflow.models.painter import GuessInputs, PaintInputs

NAME = "roi"
Pack = tuple[tuple[str, str, int], ...]  # (set, subject, region)
PICTURES = ("guesses", "images")


def provenances(config: Config, known: Expected) -> dict[str, Provenance]:
    found: dict[str, Provenance] = {}
    for chosen, regions in config.roi.sets.items():
        subjects = roi_patterns.subjects_of(config, regions)
        for subject in subjects:
            found |= _of_subject(config, known, chosen, subject)
        if averaged(config, subjects):
            for space in SPACES:
                paths = [place(chosen, subject, space) for subject in subjects]
                upstream = {path: found[path].fingerprint for path in paths}
                found[place(chosen, MEAN, space)] = Provenance(NAME, upstream=upstream)
            found |= _pictures(config, found, chosen, MEAN)
    return found


def _of_subject(config: Config, known: Expected, chosen: str, subject: str) -> dict[str, Provenance]:
    regions = config.roi.sets[chosen]
    files = roi_patterns.masks_used(config, regions, subject)
    path = place(chosen, subject, "patterns")
    found = {
        path: Provenance(
            NAME,
            {"regions": list(regions), "seed": config.seed},
            {f"mask {name}": identity(file) for name, file in files.items()},
            {name: known[name].fingerprint for name in (f"betas/{subject}", f"responses/{subject}")},
        )
    }
    for space in SPACES:
        upstream = {name: known[name].fingerprint for name in (f"predictions/{subject}/{space}", f"systems/{subject}")}
        found[place(chosen, subject, space)] = Provenance(NAME, upstream={path: found[path].fingerprint, **upstream})
    return found | _pictures(config, found, chosen, subject)


def _pictures(config: Config, known: Expected, chosen: str, subject: str) -> dict[str, Provenance]:
    settings = {
        **config.roi.model_dump(include={"rescale", "strengths", "seeds"}),
        "network_dtype": config.networks.dtype,
        "seed": config.seed,
    }
    inputs = {"bundle": open_bundle(config.networks.bundle).fingerprint}
    latents = {space: known[place(chosen, subject, space)].fingerprint for space in SPACES}
    guess = Provenance(NAME, settings, inputs, {"vdvae": latents.pop("vdvae")})
    upstream = {"guesses": guess.fingerprint, **latents}
    image = Provenance(NAME, {**settings, **painting_settings(config)}, inputs, upstream)
    return {place(chosen, subject, name): made for name, made in zip(PICTURES, (guess, image), strict=True)}


def works(context: Context) -> Iterator[Work]:
    config = context.config
    of_subjects = [key for key in keys(context) if key[1] != MEAN]
    found = {key: roi_patterns.made(context, key[1], config.roi.sets[key[0]]) for key in of_subjects}
    patterns = {key: _declare_patterns(context, *key) for key in of_subjects}
    for key, store in patterns.items():
        store.write(0, found[key])
    yield Work("patterns of regions", "sets", list(patterns.values()))

    patterns = {key: context.ready(place(*key, "patterns")) for key in of_subjects}
    latents = {(*key, space): _declare_latents(context, *key, space) for key in of_subjects for space in SPACES}
    waiting = dict.fromkeys(subject for (_, subject, _), store in latents.items() if store.missing())
    yield Work(
        "latents of regions",
        "subjects",
        list(latents.values()),
        list(waiting),
        partial(Decoder, context, patterns, latents),
    )

    means = [key for key in keys(context) if key[1] == MEAN]
    averages = {(*key, space): _declare_latents(context, *key, space) for key in means for space in SPACES}
    for (chosen, _, space), store in averages.items():
        if store.missing():
            _average(store, [context.ready(place(chosen, subject, space)) for subject in context.subjects])
    yield Work("mean latents of regions", "sets", list(averages.values()))

    latents = {(*key, space): context.ready(place(*key, space)) for key in keys(context) for space in SPACES}
    pictures = {(*key, name): _declare_pictures(context, *key, name) for key in keys(context) for name in PICTURES}
    each = len(config.roi.strengths) * config.roi.seeds
    blocks = [
        ((*key, region), each)
        for key in keys(context)
        for region in sorted({region for name in PICTURES for region in pictures[*key, name].missing()})
    ]
    yield Work(
        "pictures of regions",
        "tasks",
        list(pictures.values()),
        packs(blocks, config.reconstruct.batch_size),
        partial(RegionPainter, config, latents, pictures),
    )


def _declare_patterns(context: Context, chosen: str, subject: str) -> Store:
    regions = context.config.roi.sets[chosen]
    sizes = {"region": len(regions), "voxel": context.ready(f"betas/{subject}").sizes["voxel"]}
    given = {"region": text(regions)}
    return context.declare(place(chosen, subject, "patterns"), catalog.patterns(), sizes, given)


def _declare_latents(context: Context, chosen: str, subject: str, space: str) -> Store:
    regions = context.config.roi.sets[chosen]
    shape = context.ready(f"targets/{space}").arrays["latent"].shape[1:]
    sizes = {"region": len(regions), **dict(zip(catalog.space_dims(shape), shape, strict=True))}
    given = {"region": text(regions)}
    return context.declare(place(chosen, subject, space), catalog.region_latents(shape), sizes, given)


def _declare_pictures(context: Context, chosen: str, subject: str, name: str) -> Store:
    settings, bundle = context.config.roi, open_bundle(context.config.networks.bundle)
    regions = settings.sets[chosen]
    spec: StoreSpec = catalog.region_guesses() if name == "guesses" else catalog.region_images()
    pixels = bundle.guess_size if name == "guesses" else bundle.image_size
    sizes = {"region": len(regions), "strength": len(settings.strengths), "noise": settings.seeds}
    given = {"region": text(regions), "strength": np.array(settings.strengths), "noise": np.arange(settings.seeds)}
    return context.declare(place(chosen, subject, name), spec, {**sizes, "y": pixels, "x": pixels, "rgb": 3}, given)


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
        for space in SPACES:
            sets = [c for (c, s, at), store in self.latents.items() if (s, at) == (subject, space) and store.missing()]
            if not sets:
                continue
            patterns = [self.patterns[chosen, subject].read("pattern") for chosen in sets]
            found = decode.decode(self.context, subject, np.concatenate(patterns), space)
            ends = np.cumsum([len(pattern) for pattern in patterns])[:-1]
            predictions = self.context.ready(f"predictions/{subject}/{space}")
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
    """Loads the networks that paint; a task is a pack of regions, each of one set and subject, in every strength and
    seed.

    The noise depends on subject and seed alone: pictures of two regions differ by what was decoded alone.
    """

    def __init__(
        self,
        config: Config,
        latents: Mapping[tuple[str, str, str], Store],
        pictures: Mapping[tuple[str, str, str], Store],
    ) -> None:
        self.settings, self.latents, self.pictures = config.roi, latents, pictures
        self.remarks = Remarks()
        self.painter = batch_painter(config, self.remarks)

    def prepare(self, pack: Pack) -> tuple[GuessInputs, PaintInputs]:
        guessed, painted = [], []
        settings = self.settings
        seeds = np.tile(np.arange(settings.seeds), len(settings.strengths)).tolist()
        for chosen, subject, region in pack:
            stores = {space: self.latents[chosen, subject, space] for space in SPACES}
            latents = RegionLatents(stores, settings.rescale)
            parts = {space: latents.read(space, region, settings.strengths, settings.seeds) for space in SPACES}
            name = f"roi {subject}"
            guessed.append(self.painter.guess_inputs(parts["vdvae"], name, seeds))
            painted.append(self.painter.paint_inputs(None, parts["clip_vision"], parts["clip_text"], name, seeds))
        return guessed[0].join(guessed), painted[0].join(painted)

    def work(self, inputs: tuple[GuessInputs, PaintInputs]) -> tuple[np.ndarray, np.ndarray]:
        guess, paint = inputs
        guesses = self.painter.decode_guesses(guess)
        return guesses, self.painter.paint_prepared(
            replace(paint, guesses=self.painter.enlarged(guesses, len(guesses)))
        )

    def finish(self, pack: Pack, made: tuple[np.ndarray, np.ndarray]) -> list[str]:
        for kind, pictures in zip(PICTURES, made, strict=True):
            shape = (1, len(self.settings.strengths), self.settings.seeds, *pictures.shape[1:])
            for place_of, images in zip(pack, np.split(pictures, len(pack)), strict=True):
                chosen, subject, region = place_of
                self.pictures[chosen, subject, kind].write(region, {"image": images.reshape(shape)})
        return self.remarks.taken()
