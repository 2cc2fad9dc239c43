"""Stage 5: how well each reconstruction agrees with the photo that was shown, kept image by image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from bdflow import metrics
from bdflow.config import Config, Variant
from bdflow.stage import Context, Expected, Work, painted
from stores import Provenance, Store, catalog, text

NAME = "evaluate"


def provenances(config: Config, known: Expected) -> dict[str, Provenance]:
    variants = list(config.reconstruct.variants)
    settings = {"ssim": config.evaluate.ssim, "variants": variants, "chunk": config.chunks.images}
    found = {}
    for subject in painted(config, config.subjects):
        paths = ["stimuli", *(f"reconstructions/{subject}/{variant}" for variant in variants)]
        upstream = {path: known[path].fingerprint for path in paths}
        found[f"metrics/{subject}"] = Provenance(NAME, settings, upstream=upstream)
    return found


def works(context: Context) -> Iterator[Work]:
    config, variants = context.config, context.config.reconstruct.variants
    stimuli = context.ready("stimuli")
    names = list(metrics.pixel_metrics(config.evaluate.ssim))
    stores, images = {}, {}
    for subject in context.painted:
        for variant in variants:
            images[subject, variant] = context.ready(f"reconstructions/{subject}/{variant}")
        ids = images[subject, variants[0]].read("nsd_id")
        stores[subject] = context.declare(
            f"metrics/{subject}",
            catalog.metrics(config.chunks.images),
            {"variant": len(variants), "metric": len(names), "stimulus": len(ids)},
            {"variant": text(variants), "metric": text(names), "nsd_id": ids},
        )
    yield Work(
        "metrics",
        "blocks of images",
        list(stores.values()),
        [(subject, partition) for subject, store in stores.items() for partition in store.missing()],
        partial(Judge, config, stimuli, images, stores),
    )


class Judge:
    """Scores one block of reconstructions of one subject and variant a task."""

    def __init__(
        self, config: Config, stimuli: Store, images: Mapping[tuple[str, Variant], Store], stores: dict[str, Store]
    ) -> None:
        self.metrics = metrics.pixel_metrics(config.evaluate.ssim)
        self.stimuli, self.images, self.stores = stimuli, images, stores
        self.variants = config.reconstruct.variants

    def __call__(self, task: tuple[str, int]) -> None:
        subject, partition = task
        store = self.stores[subject]
        region = store.spec.region(store.sizes, partition)
        variant = self.variants[region["variant"].start]
        rows = {"stimulus": region["stimulus"]}
        ids = store.read("nsd_id", rows)
        truths = self.stimuli.read("image", {"stimulus": self.stimuli.rows("nsd_id", ids)})
        height, width = truths.shape[1:3]
        pictures = [
            metrics.at_size(image, height, width) for image in self.images[subject, variant].read("image", rows)
        ]
        values = [
            [score(truth, picture) for truth, picture in zip(truths, pictures, strict=True)]
            for score in self.metrics.values()
        ]
        store.write(partition, {"value": np.array([values], dtype=np.float32)})
