"""Stage 2: the latents of every stimulus in the three target spaces (paper, Methods: feature extraction)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bdflow.config import SPACES, Config
from bdflow.models.bundle import open_bundle
from bdflow.painting import Remarks
from bdflow.stage import Context, Expected, Work, missing_in_any
from stores import Provenance, Store, StoreError, catalog

if TYPE_CHECKING:
    from bdflow.models.latents import FeatureInputs

NAME = "features"
DTYPES = {"float16": "f2", "float32": "f4"}


def provenances(config: Config, known: Expected) -> dict[str, Provenance]:
    settings = {
        "bundle": config.networks.bundle,
        "dtype": config.features.dtype,
        "network_dtype": config.networks.dtype,
        "chunk": [config.chunks.stimuli, config.chunks.columns],
    }
    inputs = {"bundle": open_bundle(config.networks.bundle).fingerprint}
    upstream = {"stimuli": known["stimuli"].fingerprint}
    sampled = {"vdvae_latent": config.features.vdvae_latent, "seed": config.seed}
    return {
        f"targets/{space}": Provenance(NAME, {**settings, **(sampled if space == "vdvae" else {})}, inputs, upstream)
        for space in SPACES
    }


def works(context: Context) -> Iterator[Work]:
    config = context.config
    stimuli = context.ready("stimuli")
    shapes = open_bundle(config.networks.bundle).spaces
    stores = {}
    for space in SPACES:
        shape = shapes[space]
        spec = catalog.targets(shape, DTYPES[config.features.dtype], config.chunks.stimuli, config.chunks.columns)
        sizes = {
            "stimulus": stimuli.sizes["stimulus"],
            **dict(zip(catalog.space_dims(shape), shape, strict=True)),
        }
        given = {name: stimuli.read(name) for name in ("nsd_id", "split")}
        stores[space] = context.declare(f"targets/{space}", spec, sizes, given)
    yield Work(
        "features",
        "blocks of stimuli",
        list(stores.values()),
        missing_in_any(list(stores.values())),
        partial(Extractor, config, stimuli, stores),
    )


class Extractor:
    """Loads the three encoders; a task is one block of stimuli."""

    def __init__(self, config: Config, stimuli: Store, stores: dict[str, Store]) -> None:
        from bdflow.models.latents import FeatureExtractor

        self.stimuli, self.stores = stimuli, stores
        self.remarks = Remarks()
        self.extractor = FeatureExtractor(
            config.networks.bundle,
            device=config.networks.device,
            dtype=config.networks.dtype,
            seed=config.seed,
            vdvae_latent=config.features.vdvae_latent,
            batch_size=config.features.batch_size,
            tell=self.remarks,
        )

    def prepare(self, partition: int) -> FeatureInputs:
        region = self._region(partition)
        captions = [[text for text in row if text] for row in self.stimuli.read("caption", region)]
        ids = self.stimuli.read("nsd_id", region)
        return self.extractor.inputs(self.stimuli.read("image", region), captions, ids.tolist())

    def work(self, inputs: FeatureInputs) -> dict[str, np.ndarray]:
        return self.extractor.extract(inputs)

    def finish(self, partition: int, made: dict[str, np.ndarray]) -> list[str]:
        for space, store in self.stores.items():
            latent = made[space]
            stored = latent.astype(store.arrays["latent"].dtype)
            if not np.isfinite(stored).all():
                row = int(np.flatnonzero(~np.isfinite(stored).reshape(len(stored), -1).all(axis=1))[0])
                nsd_id = self.stimuli.read("nsd_id", self._region(partition))[row]
                raise StoreError(
                    f"targets/{space}: the latent of nsd_id {nsd_id} is not finite in {stored.dtype}; "
                    "expected numbers.\n"
                    "The network overflowed, or the latent does not fit the stored dtype.\n"
                    "What to do: set `features.dtype: float32`, and `networks.dtype: float32` if it persists."
                )
            store.write(partition, {"latent": stored})
        return self.remarks.taken()

    def _region(self, partition: int) -> dict[str, slice]:
        first = next(iter(self.stores.values()))
        return first.spec.region(first.sizes, partition)
