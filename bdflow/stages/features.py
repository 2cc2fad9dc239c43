"""The latents of every stimulus in every target space (Brain-Diffuser: Methods, feature extraction)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from bdflow.config import Config, content
from bdflow.models.encoders import Encoder, Stimuli, encoder_class, encoder_of, encoder_settings
from bdflow.stores import Store, StoreError
from bdflow.study import catalog, keys
from bdflow.study.graph import Counts, StoreDecl
from bdflow.study.stage import Context, Stage, Step, Work, missing_in_any

DTYPES = {"float16": "f2", "float32": "f4"}


class Features(Stage):
    """Every space's latents, all spaces in one walk through the stimuli."""

    name = "features"

    def stores(self, config: Config) -> Iterator[StoreDecl]:
        for space in config.spaces:
            settings = {
                "features": content(config.features, "targets"),
                **encoder_settings(config, space),
            }
            yield StoreDecl(
                keys.targets(space),
                partial(_targets, config, space),
                settings,
                partial(_inputs, config, space),
                (keys.STIMULI,),
                content(config.chunks, "targets"),
                encoder_class(config, space)[0].arithmetic(config.networks, config.features.batch_size),
            )

    def steps(self, context: Context) -> Iterable[Step]:
        fills = tuple(keys.targets(space) for space in context.config.spaces)
        return (Step("features", "blocks of stimuli", (keys.STIMULI,), fills, partial(_start, context)),)


def _inputs(config: Config, space: str) -> dict[str, str]:
    return dict(encoder_of(config, space).inputs())


def _targets(config: Config, space: str, counts: Counts) -> catalog.Laid:
    shape, chunks = counts.shape(space), config.chunks
    layers = counts.layers(space)
    spec = catalog.targets(shape, DTYPES[config.features.dtype], chunks.stimuli, chunks.columns, layers)
    return spec, {"stimulus": counts.stimuli(), **catalog.space_sizes(shape)}


def _start(context: Context) -> Work:
    stimuli = context.ready(keys.STIMULI)
    given = {name: stimuli.read(name) for name in ("nsd_id", "split")}
    stores = {space: context.declare(keys.targets(space), given) for space in context.config.spaces}
    return Work(missing_in_any(stores.values()), partial(Extractor, context.config, stimuli, stores))


class Extractor:
    """Loads each encoder when it is first needed; a task is one block of stimuli."""

    def __init__(self, config: Config, stimuli: Store, stores: dict[str, Store]) -> None:
        self.stimuli, self.stores = stimuli, stores
        self.encoders = {space: encoder_of(config, space) for space in stores}
        for space in self._lacking(stores):
            self.encoders[space].load()

    def _lacking(self, stores: dict[str, Store]) -> list[str]:
        return [space for space, store in stores.items() if store.missing()]

    def prepare(self, partition: int) -> dict[str, Any]:
        wanted = {s: self.encoders[s] for s, store in self.stores.items() if not store.markers()[partition]}
        stimuli = self._read(partition, {part for encoder in wanted.values() for part in encoder.takes})
        return {space: encoder.prepare(stimuli) for space, encoder in wanted.items()}

    def work(self, prepared: dict[str, Any]) -> dict[str, np.ndarray]:
        return {space: self.encoders[space].work(inputs) for space, inputs in prepared.items()}

    def finish(self, partition: int, made: dict[str, np.ndarray]) -> None:
        for space, latent in made.items():
            store = self.stores[space]
            self._check(space, self.encoders[space], latent, partition)
            stored = latent.astype(store.arrays["latent"].dtype)
            if not np.isfinite(stored).all():
                row = int(np.flatnonzero(~np.isfinite(stored).reshape(len(stored), -1).all(axis=1))[0])
                nsd_id = self.stimuli.read("nsd_id", self._region(partition))[row]
                raise StoreError(
                    f"{store.path}: the latent of nsd_id {nsd_id} is not finite in {stored.dtype}; "
                    "expected numbers.\n"
                    "The network overflowed, or the latent does not fit the stored dtype.\n"
                    "What to do: set `features.dtype: float32`, and `networks.dtype: float32` if it persists."
                )
            store.write(partition, {"latent": stored})

    def _check(self, space: str, encoder: Encoder, latent: np.ndarray, partition: int) -> None:
        rows = self._region(partition)["stimulus"]
        expected = (rows.stop - rows.start, *self.stores[space].arrays["latent"].shape[1:])
        if latent.shape != expected:
            raise StoreError(
                f"{self.stores[space].path}: {type(encoder).__name__} returned latents of shape {latent.shape}; "
                f"expected {expected}, one of the encoder's `shape` for each stimulus.\n"
                "What to do: correct `work` or `shape` of the encoder."
            )

    def _read(self, partition: int, parts: set[str]) -> Stimuli:
        region = self._region(partition)
        ids = self.stimuli.read("nsd_id", region)
        images = self.stimuli.read("image", region) if "image" in parts else np.zeros((len(ids), 0, 0, 3), np.uint8)
        captions = self.stimuli.read("caption", region) if "captions" in parts else [()] * len(ids)
        return Stimuli(ids, images, [[text for text in row if text] for row in captions])

    def _region(self, partition: int) -> dict[str, slice]:
        first = next(iter(self.stores.values()))
        return first.spec.region(first.sizes, partition)
