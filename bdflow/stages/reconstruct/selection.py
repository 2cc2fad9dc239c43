"""Which of several pictures of a stimulus agrees most with what was predicted of it; the photo is not looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bdflow.config import Config
from bdflow.metrics.image_metrics import unit
from bdflow.models.encoders import Stimuli, encoder_of
from bdflow.stages.reconstruct.workers import Latents
from bdflow.stores import Store


class Selector:
    """Loads the encoder of a space; a task is one block of stimuli of one subject and variant."""

    def __init__(
        self,
        config: Config,
        space: str,
        variants: Mapping[str, Sequence[str]],
        latents: Mapping[str, Latents],
        images: Mapping[tuple[str, str], Store],
        stores: Mapping[str, Store],
    ) -> None:
        self.encoder = encoder_of(config, space)
        self.encoder.load()
        self.space, self.variants = space, variants
        self.latents, self.images, self.stores = latents, images, stores

    def prepare(self, task: tuple[str, int]) -> Any:
        subject, partition = task
        store = self.stores[subject]
        region = store.spec.region(store.sizes, partition)
        rows = {"stimulus_id": region["stimulus_id"]}
        pictures = self.images[subject, self.variants[subject][region["variant"].start]].read("image", rows)
        n, k = pictures.shape[:2]
        ids = np.repeat(store.read("stimulus_id", rows), k)
        shown = Stimuli(ids, pictures.reshape(n * k, *pictures.shape[2:]), [[]] * (n * k))
        return self.encoder.prepare(shown)

    def work(self, prepared: object) -> np.ndarray:
        return self.encoder.work(prepared)

    def finish(self, task: tuple[str, int], made: np.ndarray) -> None:
        subject, partition = task
        store = self.stores[subject]
        rows = {"stimulus_id": store.spec.region(store.sizes, partition)["stimulus_id"]}
        predicted = self.latents[subject].read(self.space, store.read("stimulus_id", rows))
        found = agreement(made, predicted)
        store.write(partition, {"agreement": found[None].astype(np.float32), "best": best(found)[None]})


def agreement(pictures: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pearson correlation, (n, k), of the latents of k pictures of each stimulus, (n * k, ...), with the predicted
    latents (n, ...); not a number where one of both is constant.
    """
    wanted = unit(predicted.astype(np.float64))
    with np.errstate(invalid="ignore"):
        of_each = unit(pictures.astype(np.float64)).reshape(len(wanted), -1, wanted.shape[1])
    found: np.ndarray = np.einsum("nkf,nf->nk", of_each, wanted)
    return found


def best(found: np.ndarray) -> np.ndarray:
    """Number of the picture (n,) int16 with the highest agreement (n, k), the first of equals; one without an agreement
    is chosen only where none has any.
    """
    return np.nan_to_num(found, nan=-2.0).argmax(axis=1).astype(np.int16)
