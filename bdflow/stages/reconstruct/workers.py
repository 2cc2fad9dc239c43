"""What the workers of `reconstruct` do: average predictions, decode guesses, paint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bdflow.config import Config
from bdflow.models.diffusion.kernels import BACKENDS, PARTS, TORCH, said
from bdflow.models.painters import painter_kind
from bdflow.regression import average, ridge
from bdflow.stores import Store, StoreError
from bdflow.study.painting import Kernels, batch_painting, roles_of, spaces_of
from bdflow.study.parts import Joined

Pack = tuple[tuple[str, int], ...]  # (subject, partition) of blocks that fill batches together
Task = tuple[str, Pack]  # (variant, pack)


def shared_ids(ids: Sequence[np.ndarray]) -> np.ndarray:
    """The stimuli that are in all of these, in the order of the first."""
    found = ids[0]
    for others in ids[1:]:
        found = found[np.isin(found, others)]
    return found


def ids_of(store: Store, partition: int) -> np.ndarray:
    """stimulus_id of the pictures of a partition."""
    return store.read("stimulus_id", {"stimulus_id": rows_of(store, partition)})


def rows_of(store: Store, partition: int) -> slice:
    """Positions of the pictures of a partition."""
    return store.spec.region(store.sizes, partition)["stimulus_id"]


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
        block, ids = store.spec.region(store.sizes, partition), store.read("stimulus_id")
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
    rows = store.rows("stimulus_id", ids)
    order = np.argsort(rows)
    latent = store.read("latent", {"stimulus_id": rows[order], **(block or {})})
    return latent[np.argsort(order)].astype(np.float32)


@dataclass(frozen=True)
class Latents:
    """The latents one subject's pictures are made from, by space: its predictions, re-standardised by the space's rule,
    or the targets (rule None).
    """

    stores: Mapping[str, Joined]
    rules: Mapping[str, str | None]

    def test_ids(self) -> np.ndarray:
        """stimulus_id of the test stimuli, in the order of the pictures."""
        found = []
        for space, store in self.stores.items():
            ids = store.read("stimulus_id")
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
                store.path,
                found="latents that are not finite",
                expected="numbers",
                action="look at `r2` and `train_std` of this store, and at the targets that it was made from",
            )
        return latent


class Measurer:
    """Loads a painter, and measures which kernels compute its attention fastest: the only task."""

    def __init__(self, config: Config, painter: str, store: Store) -> None:
        self.painting: Any = batch_painting(config, painter, dict.fromkeys(PARTS, TORCH))
        self.store = store

    def __call__(self, task: int) -> list[str]:
        times = self.painting.measure_attention()
        rows = np.array([[times[part][name] for name in BACKENDS] for part in PARTS], np.float32)
        self.store.write(task, {"milliseconds": rows})
        return [said({part: dict(zip(BACKENDS, row, strict=True)) for part, row in zip(PARTS, rows, strict=True)})]


class Guesser:
    """Loads what guesses are made by; a task is a pack of blocks of test stimuli, each with its subject."""

    def __init__(
        self,
        config: Config,
        painter: str,
        kernels: Kernels,
        latents: dict[str, Latents],
        stores: dict[str, Store],
    ) -> None:
        self.painting = batch_painting(config, painter, kernels)
        self.space = spaces_of(config, painter)["guess"]
        self.latents, self.stores = latents, stores

    def prepare(self, pack: Pack) -> Any:
        parts = []
        for subject, partition in pack:
            ids = ids_of(self.stores[subject], partition)
            latents = self.latents[subject].read(self.space, ids)
            parts.append(self.painting.guess_inputs(latents, subject, ids.tolist()))
        return parts[0].join(parts)

    def work(self, inputs: object) -> np.ndarray:
        return self.painting.decode_guesses(inputs)

    def finish(self, pack: Pack, made: np.ndarray) -> None:
        _write([(self.stores[subject], partition) for subject, partition in pack], made)


class Reconstructor:
    """Loads a painter; a task is a variant and a pack of blocks of test stimuli, each with its subject."""

    def __init__(
        self,
        config: Config,
        painter: str,
        kernels: Kernels,
        latents: dict[str, Latents],
        guesses: dict[str, Store],
        stores: Mapping[tuple[str, str], Store],
    ) -> None:
        self.painting = batch_painting(config, painter, kernels)
        self.roles = {variant: roles_of(config, painter, variant) for variant in config.painters[painter].variants}
        self.enlarges, self.pictures = painter_kind(config, painter).enlarges, config.painters[painter].pictures
        self.latents, self.guesses, self.stores = latents, guesses, stores

    def prepare(self, task: Task) -> Any:
        variant, pack = task
        parts: list[Any] = []
        pictures: list[np.ndarray] = []
        for subject, partition in pack:
            store = self.stores[subject, variant]
            ids = ids_of(store, partition)
            given: dict[str, np.ndarray] = {}
            for role, space in self.roles[variant].items():
                if role == "guess":
                    given[role] = self.guesses[subject].read("image", {"stimulus_id": rows_of(store, partition)})
                else:
                    given[role] = self.latents[subject].read(space, ids)
            if variant in self.enlarges:
                pictures.append(np.repeat(self.painting.enlarged(given["guess"], len(ids)).numpy(), self.pictures, 0))
            else:
                many = {role: np.repeat(value, self.pictures, 0) for role, value in given.items()}
                guess, vision, text = (many.get(role) for role in ("guess", "vision", "text"))
                each, numbers = np.repeat(ids, self.pictures).tolist(), [*range(self.pictures)] * len(ids)
                parts.append(self.painting.paint_inputs(guess, vision, text, subject, each, numbers))
        return parts[0].join(parts) if parts else np.concatenate(pictures)

    def work(self, inputs: object) -> np.ndarray:
        return inputs if isinstance(inputs, np.ndarray) else self.painting.paint_prepared(inputs)

    def finish(self, task: Task, made: np.ndarray) -> None:
        variant, pack = task
        by_item = made.reshape(-1, self.pictures, *made.shape[1:])
        _write([(self.stores[subject, variant], partition) for subject, partition in pack], by_item)


def _write(places: Sequence[tuple[Store, int]], images: np.ndarray) -> None:
    """Pictures of several blocks, one block after the other, each into its place."""
    start = 0
    for store, partition in places:
        count = len(ids_of(store, partition))
        store.write(partition, {"image": images[start : start + count]})
        start += count
