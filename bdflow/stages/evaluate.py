"""How well each reconstruction agrees with the photo that was shown, kept image by image.

Three passes. Judging networks look at the test photos, once for all subjects (`judges`); then at every
reconstruction, which is correlated with all photos (`similarities`); from these correlations, and from the
pixels themselves, come the metrics (`metrics`). Where a network's weights are not here its metrics are
recorded as missing, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bdflow.config import Config, content
from bdflow.datasets.formats.identity import identity
from bdflow.errors import NotAtHand
from bdflow.metrics import image_metrics
from bdflow.models.judges.weights import (
    BUNDLE_CLIP,
    DISTANCES,
    JUDGE_OF,
    JUDGES,
    Weights,
    find_weights,
)
from bdflow.models.weights.bundle import open_bundle
from bdflow.scoring import measure
from bdflow.scoring.measure import ALONE, PIXELS
from bdflow.stores import Store, Study, text
from bdflow.study import catalog, keys, parts, score_catalog
from bdflow.study.graph import Counts, StoreDecl
from bdflow.study.painting import shown_of
from bdflow.study.parts import Joined
from bdflow.study.selection import Selected, selected, stores_of_pictures
from bdflow.study.stage import TRUE, Context, Stage, Step, Work, missing_in_any, painted, pairs

if TYPE_CHECKING:
    from torch import Tensor

    from bdflow.models.judges.networks import Panel


def full_name(metric: str, config: Config) -> str:
    """A metric with its protocol, see `bdflow.scoring.measure.full_name`."""
    return measure.full_name(metric, config.evaluate.ssim, config.evaluate.distractors)


# --- which judges there are -----------------------------------------------------------------------------------


def weights_of(config: Config) -> dict[str, Weights]:
    """The judges that the configured metrics need, by name, with their weights or why there are none.

    A judge whose photos the study holds counts, without files, though its weights are not here any more.
    """
    needed = {JUDGE_OF[metric]: metric for metric in config.evaluate.metrics if metric in JUDGE_OF}
    found = {name: find_weights(name, config.evaluate.weights) for name in JUDGES if name in needed}
    study = Study(config.study)
    for name, weights in found.items():
        if weights.missing and study.declared(keys.judge(needed[name])):
            found[name] = Weights()
    return found


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


class Evaluate(Stage):
    """Judged photos, similarities, metrics."""

    name = "evaluate"
    method = 2
    uses_torch = True

    def stores(self, config: Config) -> Iterator[StoreDecl]:
        if not config.painters:
            return
        weights = weights_of(config)
        seen, rounding = judged(config, weights), config.networks.arithmetic(dtype="float32")
        settings: dict[str, Any]
        for metric in seen:
            about, chunks = {"metric": metric}, content(config.chunks, "judges")
            inputs = partial(_judge_inputs, config, metric, weights)
            layout = partial(_judge, config, metric)
            shown = parts.stimuli(parts.of_tests(config))
            yield StoreDecl(keys.judge(metric), layout, about, inputs, shown, chunks, rounding)
        for painter, of in config.painters.items():
            for subject in painted(config, config.subjects):
                pictures = tuple(stores_of_pictures(config, painter, subject))
                similarities = keys.similarities(painter, subject)
                if seen:
                    settings = {
                        "variants": list(shown_of(config, painter, subject)),
                        "metrics": seen,
                        "select": content(of, "similarities").get("select"),
                    }
                    upstream = (*pictures, *(keys.judge(metric) for metric in seen))
                    layout = partial(_similarities, config, painter, subject, len(seen))
                    chunks = content(config.chunks, "similarities")
                    yield StoreDecl(
                        similarities, layout, settings, upstream=upstream, chunks=chunks, arithmetic=rounding
                    )
                settings = {
                    "variants": list(shown_of(config, painter, subject)),
                    "evaluate": content(config.evaluate, "metrics"),
                    "missing": missing(config, weights),
                    "select": content(of, "metrics").get("select"),
                }
                shown = parts.stimuli(parts.of_pictures(config, subject))
                upstream = (*shown, *pictures, *((similarities,) if seen else ()))
                layout = partial(_metrics, config, painter, subject)
                chunks = content(config.chunks, "metrics")
                yield StoreDecl(keys.metrics(painter, subject), layout, settings, upstream=upstream, chunks=chunks)

    def steps(self, context: Context) -> Iterable[Step]:
        config = context.config
        if not config.painters:
            return
        seen = judged(config, weights_of(config))
        judges = tuple(keys.judge(metric) for metric in seen)
        if seen:
            shown = parts.stimuli(parts.of_tests(config))
            yield Step("photos judged", "blocks of photos", shown, judges, partial(_start_judges, context))
        for painter in config.painters:
            named = f" ({painter})" if len(config.painters) > 1 else ""
            pictures = tuple(key for s in context.painted for key in stores_of_pictures(config, painter, s))
            similarities = tuple(keys.similarities(painter, s) for s in context.painted) if seen else ()
            if seen:
                yield Step(
                    f"similarities{named}",
                    "blocks of images",
                    (*pictures, *judges),
                    similarities,
                    partial(_start_similarities, context, painter),
                )
            yield Step(
                f"metrics{named}",
                "blocks of images",
                (*_shown(context), *pictures, *similarities),
                tuple(keys.metrics(painter, s) for s in context.painted),
                partial(_start_metrics, context, painter),
            )


def _shown(context: Context) -> tuple[str, ...]:
    """The stimuli that the pictures of this run show."""
    config = context.config
    return parts.stimuli(dict.fromkeys(part for s in context.painted for part in parts.of_pictures(config, s)))


def _judge_inputs(config: Config, metric: str, weights: Mapping[str, Weights]) -> dict[str, str]:
    if metric == BUNDLE_CLIP:
        return open_bundle(config.networks.bundle).digests("clip_vision")
    files = weights[JUDGE_OF[metric]].files
    if not files:
        raise _not_at_hand(metric, config)
    return {file.name: identity(file) for file in files}


def _not_at_hand(metric: str, config: Config) -> NotAtHand:
    return NotAtHand(
        f"evaluate.metrics, {metric}",
        found=find_weights(JUDGE_OF[metric], config.evaluate.weights).missing,
        expected="the weights that the photos of this study were judged with",
        action="put them where `evaluate.weights` says; to look at what is made already they are not needed.",
    )


# --- what the stores look like --------------------------------------------------------------------------------


def _judge(config: Config, metric: str, counts: Counts) -> catalog.Laid:
    sizes = {"stimulus_id": counts.test_stimuli(TRUE), "feature": counts.judge_width(metric)}
    return score_catalog.judges(metric, config.chunks.images), sizes


def _similarities(config: Config, painter: str, subject: str, seen: int, counts: Counts) -> catalog.Laid:
    own = counts.test_stimuli(subject)
    sizes = {
        "variant": len(shown_of(config, painter, subject)),
        "metric": seen,
        "stimulus_id": own,
        "photo_stimulus_id": own,
    }
    return score_catalog.similarities(config.chunks.images), sizes


def _metrics(config: Config, painter: str, subject: str, counts: Counts) -> catalog.Laid:
    variants, metrics = shown_of(config, painter, subject), config.evaluate.metrics
    sizes = {"variant": len(variants), "metric": len(metrics), "stimulus_id": counts.test_stimuli(subject)}
    return score_catalog.metrics(config.chunks.images), sizes


# --- steps ----------------------------------------------------------------------------------------------------


def _load(config: Config) -> Callable[[], Panel]:
    weights = weights_of(config)
    wanted = {JUDGE_OF[m]: weights[JUDGE_OF[m]] for m in judged(config, weights) if m in JUDGE_OF}
    return partial(_load_panel, config, wanted)


def _start_judges(context: Context) -> Work:
    stimuli = parts.joined(context, parts.stimuli(parts.of_tests(context.config)))
    ids = stimuli.read("stimulus_id")[stimuli.read("split") == "test"]
    seen = judged(context.config, weights_of(context.config))
    stores = {metric: context.declare(keys.judge(metric), {"stimulus_id": ids}) for metric in seen}
    return Work(missing_in_any(stores.values()), partial(PhotoJudge, _load(context.config), stimuli, stores))


def _images_of(context: Context, painter: str) -> dict[tuple[str, str], Selected]:
    return {
        (subject, variant): selected(context.config, context.ready, painter, subject, variant)
        for subject in context.painted
        for variant in shown_of(context.config, painter, subject)
    }


def _start_similarities(context: Context, painter: str) -> Work:
    config, images = context.config, _images_of(context, painter)
    variants = {subject: shown_of(config, painter, subject) for subject in context.painted}
    judges = {metric: context.ready(keys.judge(metric)) for metric in judged(config, weights_of(config))}
    stores = {}
    for subject in context.painted:
        own = images[subject, variants[subject][0]].images.read("stimulus_id")
        given = {
            "variant": text(variants[subject]),
            "metric": text(judges),
            "stimulus_id": own,
            "photo_stimulus_id": own,
        }
        stores[subject] = context.declare(keys.similarities(painter, subject), given)
    return Work(pairs(stores), partial(Comparer, _load(config), variants, judges, images, stores))


def _start_metrics(context: Context, painter: str) -> Work:
    config, images = context.config, _images_of(context, painter)
    variants = {subject: shown_of(config, painter, subject) for subject in context.painted}
    names = config.evaluate.metrics
    weights = weights_of(config)
    similarities = {}
    if judged(config, weights):
        similarities = {subject: context.ready(keys.similarities(painter, subject)) for subject in context.painted}
    stores = {}
    for subject in context.painted:
        own = images[subject, variants[subject][0]].images.read("stimulus_id")
        lonely = {m: "two-way identification needs at least two photos" for m in names if m not in ALONE}
        gaps = (lonely if len(own) < 2 else {}) | missing(config, weights)
        given = {
            "variant": text(variants[subject]),
            "metric": text(full_name(metric, config) for metric in names),
            "missing": text(gaps.get(metric, "") for metric in names),
            "stimulus_id": own,
        }
        stores[subject] = context.declare(keys.metrics(painter, subject), given)
    stimuli = parts.joined(context, _shown(context))
    return Work(pairs(stores), partial(Scorer, config, variants, stimuli, images, similarities, stores))


def _load_panel(config: Config, weights: Mapping[str, Weights]) -> Panel:
    from bdflow.models.judges.networks import load_panel

    for name, found in weights.items():
        if not found.files:
            raise _not_at_hand(next(metric for metric, judge in JUDGE_OF.items() if judge == name), config)
    bundle = config.networks.bundle if BUNDLE_CLIP in config.evaluate.metrics else None
    return load_panel(weights, bundle, config.networks.device)


class PhotoJudge:
    """Loads the judging networks; a task is one block of test photos."""

    def __init__(self, load: Callable[[], Panel], stimuli: Joined, stores: Mapping[str, Store]) -> None:
        self.panel, self.stimuli, self.stores = load(), stimuli, stores

    def __call__(self, partition: int) -> None:
        first = next(iter(self.stores.values()))
        ids = first.read("stimulus_id", first.spec.region(first.sizes, partition))
        seen = self.panel(self.stimuli.read("image", {"stimulus_id": self.stimuli.rows("stimulus_id", ids)}))
        for metric, store in self.stores.items():
            store.write(partition, {"feature": seen[metric].cpu().numpy()})


class Comparer:
    """Loads the judging networks and what they saw in the photos; a task is one block of one subject and variant.

    Memory: the networks, and 4 bytes for each feature of each test photo.
    """

    def __init__(
        self,
        load: Callable[[], Panel],
        variants: Mapping[str, Sequence[str]],
        judges: Mapping[str, Store],
        images: Mapping[tuple[str, str], Selected],
        stores: Mapping[str, Store],
    ) -> None:
        self.panel, self.variants, self.images, self.stores = load(), variants, images, stores
        self.judges = judges
        self.photos = {metric: self._unit_features(store) for metric, store in judges.items()}
        self.subject, self.rows = "", np.zeros(0, int)

    def _unit_features(self, store: Store) -> Tensor:
        import torch

        shape = (store.sizes["stimulus_id"], store.sizes["feature"])
        rows = torch.empty(shape, device=self.panel.device)
        for partition in range(store.n_partitions):
            block = store.spec.region(store.sizes, partition)
            feature = torch.from_numpy(store.read("feature", block)).to(self.panel.device)
            rows[block["stimulus_id"]] = image_metrics.unit(feature)
        return rows

    def __call__(self, task: tuple[str, int]) -> None:
        subject, partition = task
        store = self.stores[subject]
        if subject != self.subject:
            judge = next(iter(self.judges.values()))
            self.subject, self.rows = subject, judge.rows("stimulus_id", store.read("photo_stimulus_id"))
        region = store.spec.region(store.sizes, partition)
        variant = self.variants[subject][region["variant"].start]
        pictures = self.images[subject, variant].read(region["stimulus_id"])
        correlation = measure.correlations(self.panel, [list(each) for each in pictures], self.photos, self.rows)
        store.write(partition, {"correlation": correlation[None]})


class Scorer:
    """Scores one block of reconstructions of one subject and variant a task."""

    def __init__(
        self,
        config: Config,
        variants: Mapping[str, Sequence[str]],
        stimuli: Joined,
        images: Mapping[tuple[str, str], Selected],
        similarities: Mapping[str, Store],
        stores: Mapping[str, Store],
    ) -> None:
        self.config, self.stimuli, self.images = config, stimuli, images
        self.similarities, self.stores = similarities, stores
        self.variants = variants

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
        rows = {"stimulus_id": region["stimulus_id"]}
        ids = self.stores[subject].read("stimulus_id", rows)
        wanted = [name for name in PIXELS if name in self.config.evaluate.metrics]
        found = {name: np.full(len(ids), np.nan) for name in PIXELS}
        if wanted:
            truths = self.stimuli.read("image", {"stimulus_id": self.stimuli.rows("stimulus_id", ids)})
            pictures = self.images[subject, self.variants[subject][region["variant"].start]].read(region["stimulus_id"])
            for i, (truth, several) in enumerate(zip(truths, pictures, strict=True)):
                for name, score in measure.pixel_scores(
                    truth, list(several), wanted, self.config.evaluate.ssim
                ).items():
                    found[name][i] = score
        return found

    def _network_score(self, subject: str, metric: str, region: Mapping[str, slice]) -> np.ndarray:
        store = self.similarities[subject]
        at = store.read("metric").tolist().index(metric)
        which = {"variant": region["variant"], "metric": slice(at, at + 1)}
        rows = region["stimulus_id"]
        rule = self.config.evaluate.distractors
        if metric in DISTANCES:
            own = store.read("correlation", {**which, "stimulus_id": rows, "photo_stimulus_id": rows})[0, 0]
            return measure.network_scores(metric, own, rule)
        return measure.network_scores(metric, store.read("correlation", which)[0, 0], rule)[rows]
