"""Stage 4: predicted latents into pictures. The VDVAE's guess, then the reconstruction painted from it.

First the predictions of all subjects are averaged, if the configuration asks for the subject `mean`. One pass decodes
the guesses of every subject; a second paints every variant from the same guesses and predictions. Blocks of several
subjects go through the networks together, so that what is left over of each fills batches too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bdflow import average, ridge
from bdflow.config import SPACES, Config, Variant
from bdflow.models.bundle import open_bundle
from bdflow.painting import Remarks, batch_painter, packs, painting_settings
from bdflow.stage import MEAN, TRUE, Context, Expected, Work, decoded, missing_in_any, painted
from stores import Provenance, Store, StoreError, StoreSpec, catalog

if TYPE_CHECKING:
    from bdflow.models.painter import GuessInputs, PaintInputs

NAME = "reconstruct"
Pack = tuple[tuple[str, int], ...]  # (subject, partition) of blocks that fill batches together
Task = tuple[Variant, Pack]
USES: dict[str, tuple[str, ...]] = {
    "full": ("vdvae", "clip_vision", "clip_text"),
    "only_vdvae": ("vdvae",),
    "no_vdvae": ("clip_vision", "clip_text"),
    "no_clip_text": ("vdvae", "clip_vision"),
    "no_clip_vision": ("vdvae", "clip_text"),
}


def provenances(config: Config, known: Expected) -> dict[str, Provenance]:
    found = _mean_provenances(config, known)
    known = {**known, **found}
    inputs = {"bundle": open_bundle(config.networks.bundle).fingerprint}
    common = {"network_dtype": config.networks.dtype, "seed": config.seed, "chunk": config.chunks.images}
    painting = painting_settings(config)
    for subject in painted(config, config.subjects):
        shared = common if subject == TRUE else {**common, "standardise": config.reconstruct.standardise}
        latents = {space: {path: known[path].fingerprint} for space, path in latent_stores(subject).items()}
        guess = found[f"guesses/{subject}"] = Provenance(NAME, shared, inputs, latents["vdvae"])
        for variant in config.reconstruct.variants:
            upstream = {f"guesses/{subject}": guess.fingerprint} if "vdvae" in USES[variant] else {}
            for space in USES[variant]:
                if space != "vdvae":
                    upstream |= latents[space]
            settings = {**shared, "variant": variant, **({} if variant == "only_vdvae" else painting)}
            found[f"reconstructions/{subject}/{variant}"] = Provenance(NAME, settings, inputs, upstream)
    return found


def _mean_provenances(config: Config, known: Expected) -> dict[str, Provenance]:
    if MEAN not in decoded(config, config.subjects):
        return {}
    settings = {"standardise": config.reconstruct.standardise, "chunk": config.chunks.columns}
    found = {}
    for space in SPACES:
        paths = [f"targets/{space}", *(f"predictions/{subject}/{space}" for subject in config.subjects)]
        upstream = {path: known[path].fingerprint for path in paths}
        found[f"predictions/{MEAN}/{space}"] = Provenance(NAME, settings, upstream=upstream)
    return found


def latent_stores(subject: str) -> dict[str, str]:
    """The store that holds the latents of a subject's pictures, by target space."""
    return {
        space: f"targets/{space}" if subject == TRUE else f"predictions/{subject}/{space}" for space in USES["full"]
    }


def works(context: Context) -> Iterator[Work]:
    config, bundle = context.config, open_bundle(context.config.networks.bundle)
    per_partition, batch = config.chunks.images, config.reconstruct.batch_size
    if MEAN in context.decoded:
        yield _mean_work(context)
    latents = {
        subject: Latents(
            {space: context.ready(path) for space, path in latent_stores(subject).items()},
            _rule(config, subject),
        )
        for subject in context.painted
    }

    def declare(path: str, spec: StoreSpec, subject: str, pixels: int) -> Store:
        ids = latents[subject].test_ids()
        sizes = {"stimulus": len(ids), "y": pixels, "x": pixels, "rgb": 3}
        return context.declare(path, spec, sizes, {"nsd_id": ids})

    guesses = {
        subject: declare(f"guesses/{subject}", catalog.guesses(per_partition), subject, bundle.guess_size)
        for subject in context.painted
    }
    yield Work(
        "guesses",
        "tasks",
        list(guesses.values()),
        packs([((subject, p), n) for subject, store in guesses.items() for p, n in _missing(store)], batch),
        partial(Guesser, config, latents, guesses),
    )

    guesses = {subject: context.ready(f"guesses/{subject}") for subject in context.painted}
    stores = {
        (subject, variant): declare(
            f"reconstructions/{subject}/{variant}",
            catalog.reconstructions(per_partition),
            subject,
            bundle.image_size,
        )
        for subject in context.painted
        for variant in config.reconstruct.variants
    }
    tasks: list[Task] = []
    for variant in config.reconstruct.variants:
        blocks = [((s, p), n) for (s, v), store in stores.items() if v == variant for p, n in _missing(store)]
        tasks += [(variant, pack) for pack in packs(blocks, batch)]
    yield Work(
        "reconstructions",
        "tasks",
        list(stores.values()),
        tasks,
        partial(Reconstructor, config, latents, guesses, stores),
    )


def _missing(store: Store) -> list[tuple[int, int]]:
    """(partition, pictures in it) of every partition that is not written yet."""
    return [(partition, len(_ids(store, partition))) for partition in store.missing()]


def _ids(store: Store, partition: int) -> np.ndarray:
    return store.read("nsd_id", {"stimulus": _rows_of(store, partition)})


def _rows_of(store: Store, partition: int) -> slice:
    return store.spec.region(store.sizes, partition)["stimulus"]


def _rule(config: Config, subject: str) -> str | None:
    """How a subject's predictions are re-standardised. The mean has no held-out predictions of its own, since each
    subject has its own training stimuli: the average of what its members' rule gives is taken as it is."""
    if subject == TRUE:
        return None
    return (
        "none" if subject == MEAN and config.reconstruct.standardise == "held_out" else config.reconstruct.standardise
    )


def _mean_work(context: Context) -> Work:
    """Predictions of the subject `mean`, of the stimuli that every subject was tested with."""
    stores, sources = {}, {}
    for space in SPACES:
        sources[space] = [context.ready(f"predictions/{subject}/{space}") for subject in context.subjects]
        targets = context.ready(f"targets/{space}")
        ids = sources[space][0].read("nsd_id")
        for source in sources[space][1:]:
            ids = ids[np.isin(ids, source.read("nsd_id"))]
        if not len(ids):
            raise StoreError(
                f"predictions/{MEAN}/{space}: found no stimulus that all of {', '.join(context.subjects)} were tested "
                "with; expected some: the mean is taken over the predictions of one stimulus.\n"
                "What to do: set `reconstruct.subject_mean: false`, or choose another test set (`nsd.test`)."
            )
        shape = targets.arrays["latent"].shape[1:]
        stores[space] = context.declare(
            f"predictions/{MEAN}/{space}",
            catalog.predictions(shape, context.config.chunks.columns),
            {"stimulus": len(ids), **dict(zip(catalog.space_dims(shape), shape, strict=True))},
            {"nsd_id": ids},
        )
        sources[space].append(targets)
    tasks = [(space, partition) for space, store in stores.items() for partition in missing_in_any([store])]
    rule = context.config.reconstruct.standardise
    return Work(
        "mean predictions", "blocks of latents", [*stores.values()], tasks, partial(Averager, rule, sources, stores)
    )


class Averager:
    """Averages one block of latents over subjects a task; `sources` are their predictions, then the targets."""

    def __init__(self, rule: str, sources: Mapping[str, Sequence[Store]], stores: Mapping[str, Store]) -> None:
        self.rule, self.sources, self.stores = rule, sources, stores

    def __call__(self, task: tuple[str, int]) -> None:
        space, partition = task
        store, (*predictions, targets) = self.stores[space], self.sources[space]
        block, ids = store.spec.region(store.sizes, partition), store.read("nsd_id")
        latents = []
        for source in predictions:
            statistics = {name: source.read(name, block) for name in ridge.RULES[self.rule]}
            latents.append(ridge.restandardise(_rows(source, ids, block), self.rule, statistics))
        means, scales, alphas = (
            [source.read(name, block) for source in predictions] for name in ("train_mean", "train_std", "alpha")
        )
        found = average.mean_prediction(latents, means, scales, _rows(targets, ids, block))
        same = np.all([alpha == alphas[0] for alpha in alphas], axis=0)
        store.write(partition, {**found, "alpha": np.where(same, alphas[0], np.float32(np.nan))})


def _rows(store: Store, ids: np.ndarray, block: Mapping[str, slice] | None = None) -> np.ndarray:
    """Latents of some stimuli in the order asked for, float32; `block` cuts the other dimensions."""
    rows = store.rows("nsd_id", ids)
    order = np.argsort(rows)
    latent = store.read("latent", {"stimulus": rows[order], **(block or {})})
    return latent[np.argsort(order)].astype(np.float32)


@dataclass(frozen=True)
class Latents:
    """The latents one subject's pictures are made from, by space: its predictions, or the targets (`rule` None)."""

    stores: Mapping[str, Store]
    rule: str | None

    def test_ids(self) -> np.ndarray:
        """nsd_id of the test stimuli, in the order of the pictures."""
        store = self.stores["vdvae"]
        ids = store.read("nsd_id")
        return ids[store.read("split") == "test"] if self.rule is None else ids

    def read(self, space: str, ids: np.ndarray) -> np.ndarray:
        """Latents (n, ...) float32 of some stimuli; predictions are re-standardised by `rule`.

        Raises StoreError if they are not finite.
        """
        store = self.stores[space]
        latent = _rows(store, ids)
        if self.rule is not None:
            statistics = {name: store.read(name) for name in ridge.RULES[self.rule]}
            latent = ridge.restandardise(latent, self.rule, statistics).astype(np.float32)
        if not np.isfinite(latent).all():
            raise StoreError(
                f"{store.path}: found latents that are not finite; expected numbers.\n"
                "What to do: look at `r2` and `train_std` of this store, and at the targets it was made from."
            )
        return latent


class Guesser:
    """Loads the VDVAE decoder; a task is a pack of blocks of test stimuli, each with its subject."""

    def __init__(self, config: Config, latents: dict[str, Latents], stores: dict[str, Store]) -> None:
        self.remarks = Remarks()
        self.painter = batch_painter(config, self.remarks)
        self.latents, self.stores = latents, stores

    def prepare(self, pack: Pack) -> GuessInputs:
        parts = []
        for subject, partition in pack:
            ids = _ids(self.stores[subject], partition)
            latents = self.latents[subject].read("vdvae", ids)
            parts.append(self.painter.guess_inputs(latents, subject, ids.tolist()))
        return parts[0].join(parts)

    def work(self, inputs: GuessInputs) -> np.ndarray:
        return self.painter.decode_guesses(inputs)

    def finish(self, pack: Pack, made: np.ndarray) -> list[str]:
        _write([(self.stores[subject], partition) for subject, partition in pack], made)
        return self.remarks.taken()


class Reconstructor:
    """Loads the diffusion model; a task is a variant and a pack of blocks of test stimuli, each with its subject."""

    def __init__(
        self,
        config: Config,
        latents: dict[str, Latents],
        guesses: dict[str, Store],
        stores: Mapping[tuple[str, Variant], Store],
    ) -> None:
        self.remarks = Remarks()
        self.painter = batch_painter(config, self.remarks)
        self.latents, self.guesses, self.stores = latents, guesses, stores

    def prepare(self, task: Task) -> PaintInputs | np.ndarray:
        variant, pack = task
        parts: list[PaintInputs] = []
        pictures: list[np.ndarray] = []
        for subject, partition in pack:
            store = self.stores[subject, variant]
            ids = _ids(store, partition)
            given: dict[str, np.ndarray] = {}
            for space in USES[variant]:
                if space == "vdvae":
                    given[space] = self.guesses[subject].read("image", {"stimulus": _rows_of(store, partition)})
                else:
                    given[space] = self.latents[subject].read(space, ids)
            guess, vision, text = (given.get(space) for space in USES["full"])
            if variant == "only_vdvae":
                pictures.append(self.painter.enlarged(given["vdvae"], len(ids)).numpy())
            else:
                parts.append(self.painter.paint_inputs(guess, vision, text, subject, ids.tolist()))
        return parts[0].join(parts) if parts else np.concatenate(pictures)

    def work(self, inputs: PaintInputs | np.ndarray) -> np.ndarray:
        return inputs if isinstance(inputs, np.ndarray) else self.painter.paint_prepared(inputs)

    def finish(self, task: Task, made: np.ndarray) -> list[str]:
        variant, pack = task
        _write([(self.stores[subject, variant], partition) for subject, partition in pack], made)
        return self.remarks.taken()


def _write(places: Sequence[tuple[Store, int]], images: np.ndarray) -> None:
    """Pictures of several blocks, one block after the other, each into its place."""
    start = 0
    for store, partition in places:
        count = len(_ids(store, partition))
        store.write(partition, {"image": images[start : start + count]})
        start += count
