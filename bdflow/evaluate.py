"""Stage 5: how well each reconstruction agrees with the photo that was shown, kept image by image.

Three passes. Judging networks look at the test photos, once for all subjects (`judges/<metric>`); then at every
reconstruction, which is correlated with all photos (`similarities/<subject>`); from these correlations, and from the
pixels themselves, come the metrics (`metrics/<subject>`). Where a network's weights are not here its metrics are
recorded as missing, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bdflow import metrics
from bdflow.config import Config, Variant
from bdflow.models.bundle import open_bundle
from bdflow.models.judge_weights import BUNDLE_CLIP, DISTANCES, JUDGE_OF, JUDGES, Weights, find_weights
from bdflow.nsd import identity
from bdflow.stage import Context, Expected, Work, missing_in_any, painted
from stores import Provenance, Store, catalog, text

if TYPE_CHECKING:
    from bdflow.models.judges import Panel

NAME = "evaluate"
PIXELS = ("PixCorr", "SSIM")
ALONE = {*PIXELS, *DISTANCES}  # metrics that need no other photo


def full_name(metric: str, config: Config) -> str:
    """A metric with its protocol where that is not the paper's, or where there are several to keep apart."""
    if metric == "SSIM":
        return f"SSIM ({config.evaluate.ssim})"
    if metric in PIXELS or metric in DISTANCES or config.evaluate.distractors == "photos":
        return metric
    return f"{metric} (among reconstructions)"


def slug(metric: str) -> str:
    """A metric as part of a path: `AlexNet(2)` is `alexnet_2`."""
    return metric.lower().replace(" (", "_").replace("(", "_").replace(")", "").replace("-", "_")


# --- which judges there are -----------------------------------------------------------------------------------


def weights_of(config: Config) -> dict[str, Weights]:
    """The judges that the configured metrics need, by name, with their weights or why there are none."""
    needed = {JUDGE_OF[metric] for metric in config.evaluate.metrics if metric in JUDGE_OF}
    return {name: find_weights(name, config.evaluate.weights) for name in JUDGES if name in needed}


def judged(config: Config, weights: Mapping[str, Weights]) -> list[str]:
    """Those of the configured metrics that a network judges whose weights are here."""
    return [
        metric
        for metric in config.evaluate.metrics
        if metric == BUNDLE_CLIP or (metric in JUDGE_OF and not weights[JUDGE_OF[metric]].missing)
    ]


def missing(config: Config, weights: Mapping[str, Weights]) -> dict[str, str]:
    """Why metrics are missing, by metric."""
    return {
        metric: weights[JUDGE_OF[metric]].missing
        for metric in config.evaluate.metrics
        if metric in JUDGE_OF and weights[JUDGE_OF[metric]].missing
    }


def provenances(config: Config, known: Expected) -> dict[str, Provenance]:
    weights = weights_of(config)
    seen = judged(config, weights)
    found = {}
    chunk = {"chunk": config.chunks.images}
    for metric in seen:
        if metric == BUNDLE_CLIP:
            inputs = {"bundle": open_bundle(config.networks.bundle).fingerprint}
        else:
            inputs = {file.name: identity(file) for file in weights[JUDGE_OF[metric]].files}
        upstream = {"stimuli": known["stimuli"].fingerprint}
        found[f"judges/{slug(metric)}"] = Provenance(NAME, {"metric": metric, **chunk}, inputs, upstream)
    variants = list(config.reconstruct.variants)
    for subject in painted(config, config.subjects):
        paths = [f"reconstructions/{subject}/{variant}" for variant in variants]
        pictures = {path: known[path].fingerprint for path in paths}
        if seen:
            judges = {f"judges/{slug(metric)}": found[f"judges/{slug(metric)}"].fingerprint for metric in seen}
            settings: dict[str, Any] = {"variants": variants, "metrics": seen, **chunk}
            found[f"similarities/{subject}"] = Provenance(NAME, settings, upstream={**pictures, **judges})
        upstream = {"stimuli": known["stimuli"].fingerprint, **pictures}
        if seen:
            upstream[f"similarities/{subject}"] = found[f"similarities/{subject}"].fingerprint
        settings = {
            "variants": variants,
            "metrics": list(config.evaluate.metrics),
            "ssim": config.evaluate.ssim,
            "distractors": config.evaluate.distractors,
            "missing": missing(config, weights),
            **chunk,
        }
        found[f"metrics/{subject}"] = Provenance(NAME, settings, upstream=upstream)
    return found


# --- the passes -----------------------------------------------------------------------------------------------


def works(context: Context) -> Iterator[Work]:
    config, variants = context.config, context.config.reconstruct.variants
    weights = weights_of(config)
    seen = judged(config, weights)
    stimuli = context.ready("stimuli")
    images = {
        (subject, variant): context.ready(f"reconstructions/{subject}/{variant}")
        for subject in context.painted
        for variant in variants
    }
    ids = {subject: images[subject, variants[0]].read("nsd_id") for subject in context.painted}
    judges: dict[str, Store] = {}
    similarities: dict[str, Store] = {}
    if seen:
        load = partial(_load_panel, config, {JUDGE_OF[m]: weights[JUDGE_OF[m]] for m in seen if m in JUDGE_OF})
        judges |= _declare_judges(context, stimuli, seen)
        yield Work(
            "photos judged",
            "blocks of photos",
            list(judges.values()),
            missing_in_any(list(judges.values())),
            partial(PhotoJudge, load, stimuli, judges),
        )
        judges = {metric: context.ready(store.path) for metric, store in judges.items()}
        similarities |= _declare_similarities(context, ids, seen)
        yield Work(
            "similarities",
            "blocks of images",
            list(similarities.values()),
            [(subject, partition) for subject, store in similarities.items() for partition in store.missing()],
            partial(Comparer, load, variants, judges, images, similarities),
        )
        similarities = {subject: context.ready(f"similarities/{subject}") for subject in context.painted}
    stores = _declare_metrics(context, ids, missing(config, weights))
    yield Work(
        "metrics",
        "blocks of images",
        list(stores.values()),
        [(subject, partition) for subject, store in stores.items() for partition in store.missing()],
        partial(Scorer, config, stimuli, images, similarities, stores),
    )


def _declare_judges(context: Context, stimuli: Store, seen: Sequence[str]) -> dict[str, Store]:
    ids = stimuli.read("nsd_id")[stimuli.read("split") == "test"]
    widths = {metric: width for judge in JUDGES.values() for metric, (_, width) in judge.layers.items()}
    widths[BUNDLE_CLIP] = open_bundle(context.config.networks.bundle).spaces["clip_vision"][-1]
    return {
        metric: context.declare(
            f"judges/{slug(metric)}",
            catalog.judges(metric, context.config.chunks.images),
            {"stimulus": len(ids), "feature": widths[metric]},
            {"nsd_id": ids},
        )
        for metric in seen
    }


def _declare_similarities(context: Context, ids: Mapping[str, np.ndarray], seen: Sequence[str]) -> dict[str, Store]:
    variants = context.config.reconstruct.variants
    return {
        subject: context.declare(
            f"similarities/{subject}",
            catalog.similarities(context.config.chunks.images),
            {"variant": len(variants), "metric": len(seen), "stimulus": len(own), "photo": len(own)},
            {"variant": text(variants), "metric": text(seen), "nsd_id": own, "photo_nsd_id": own},
        )
        for subject, own in ids.items()
    }


def _declare_metrics(context: Context, ids: Mapping[str, np.ndarray], why: Mapping[str, str]) -> dict[str, Store]:
    config, variants = context.config, context.config.reconstruct.variants
    names = config.evaluate.metrics
    stores = {}
    for subject, own in ids.items():
        lonely = {m: "two-way identification needs at least two photos" for m in names if m not in ALONE}
        gaps = (lonely if len(own) < 2 else {}) | dict(why)
        stores[subject] = context.declare(
            f"metrics/{subject}",
            catalog.metrics(config.chunks.images),
            {"variant": len(variants), "metric": len(names), "stimulus": len(own)},
            {
                "variant": text(variants),
                "metric": text(full_name(metric, config) for metric in names),
                "missing": text(gaps.get(metric, "") for metric in names),
                "nsd_id": own,
            },
        )
    return stores


def _load_panel(config: Config, weights: Mapping[str, Weights]) -> Panel:
    from bdflow.models.judges import load_panel

    bundle = config.networks.bundle if BUNDLE_CLIP in config.evaluate.metrics else None
    return load_panel(weights, bundle, config.networks.device)


class PhotoJudge:
    """Loads the judging networks; a task is one block of test photos."""

    def __init__(self, load: Callable[[], Panel], stimuli: Store, stores: Mapping[str, Store]) -> None:
        self.panel, self.stimuli, self.stores = load(), stimuli, stores

    def __call__(self, partition: int) -> None:
        first = next(iter(self.stores.values()))
        ids = first.read("nsd_id", first.spec.region(first.sizes, partition))
        seen = self.panel(self.stimuli.read("image", {"stimulus": self.stimuli.rows("nsd_id", ids)}))
        for metric, store in self.stores.items():
            store.write(partition, {"feature": seen[metric].cpu().numpy()})


class Comparer:
    """Loads the judging networks and what they saw in the photos; a task is one block of one subject and variant.

    Memory: the networks, and 4 bytes for each feature of each test photo.
    """

    def __init__(
        self,
        load: Callable[[], Panel],
        variants: Sequence[Variant],
        judges: Mapping[str, Store],
        images: Mapping[tuple[str, Variant], Store],
        stores: Mapping[str, Store],
    ) -> None:
        self.panel, self.variants, self.images, self.stores = load(), variants, images, stores
        self.judges = judges
        self.photos = {metric: self._unit_features(store) for metric, store in judges.items()}
        self.subject, self.rows = "", np.zeros(0, int)

    def _unit_features(self, store: Store) -> Any:
        import torch

        shape = (store.sizes["stimulus"], store.sizes["feature"])
        rows = torch.empty(shape, device=self.panel.device)
        for partition in range(store.n_partitions):
            block = store.spec.region(store.sizes, partition)
            feature = torch.from_numpy(store.read("feature", block)).to(self.panel.device)
            rows[block["stimulus"]] = metrics.unit(feature)
        return rows

    def __call__(self, task: tuple[str, int]) -> None:
        subject, partition = task
        store = self.stores[subject]
        if subject != self.subject:
            judge = next(iter(self.judges.values()))
            self.subject, self.rows = subject, judge.rows("nsd_id", store.read("photo_nsd_id"))
        region = store.spec.region(store.sizes, partition)
        variant = self.variants[region["variant"].start]
        seen = self.panel(self.images[subject, variant].read("image", {"stimulus": region["stimulus"]}))
        correlation = [
            (metrics.unit(seen[metric]) @ self.photos[metric].T).cpu().numpy()[:, self.rows] for metric in self.judges
        ]
        store.write(partition, {"correlation": np.array([correlation], dtype=np.float32)})


class Scorer:
    """Scores one block of reconstructions of one subject and variant a task."""

    def __init__(
        self,
        config: Config,
        stimuli: Store,
        images: Mapping[tuple[str, Variant], Store],
        similarities: Mapping[str, Store],
        stores: Mapping[str, Store],
    ) -> None:
        self.config, self.stimuli, self.images = config, stimuli, images
        self.similarities, self.stores = similarities, stores
        self.variants = config.reconstruct.variants

    def __call__(self, task: tuple[str, int]) -> None:
        subject, partition = task
        store = self.stores[subject]
        region = store.spec.region(store.sizes, partition)
        pixels = self._pixel_scores(subject, region)
        gaps = store.read("missing").tolist()
        rows = []
        for metric, gap in zip(self.config.evaluate.metrics, gaps, strict=True):
            if gap:
                rows.append(np.full(len(pixels["PixCorr"]), np.nan))
            elif metric in PIXELS:
                rows.append(pixels[metric])
            else:
                rows.append(self._network_score(subject, metric, region))
        store.write(partition, {"value": np.array([rows], dtype=np.float32)})

    def _pixel_scores(self, subject: str, region: Mapping[str, slice]) -> dict[str, np.ndarray]:
        rows = {"stimulus": region["stimulus"]}
        ids = self.stores[subject].read("nsd_id", rows)
        scores: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
            "PixCorr": metrics.pixcorr,
            "SSIM": partial(metrics.ssim, protocol=self.config.evaluate.ssim),
        }
        wanted = {name: score for name, score in scores.items() if name in self.config.evaluate.metrics}
        found = {name: np.full(len(ids), np.nan) for name in scores}
        if wanted:
            truths = self.stimuli.read("image", {"stimulus": self.stimuli.rows("nsd_id", ids)})
            pictures = self.images[subject, self.variants[region["variant"].start]].read("image", rows)
            for i, (truth, picture) in enumerate(zip(truths, pictures, strict=True)):
                resized = metrics.at_size(picture, *truth.shape[:2])
                for name, score in wanted.items():
                    found[name][i] = score(truth, resized)
        return found

    def _network_score(self, subject: str, metric: str, region: Mapping[str, slice]) -> np.ndarray:
        store = self.similarities[subject]
        at = store.read("metric").tolist().index(metric)
        which = {"variant": region["variant"], "metric": slice(at, at + 1)}
        rows = region["stimulus"]
        if metric in DISTANCES:
            return 1 - np.diagonal(store.read("correlation", {**which, "stimulus": rows, "photo": rows})[0, 0])
        correlation = store.read("correlation", which)[0, 0]
        return metrics.identification(correlation, self.config.evaluate.distractors)[rows]
