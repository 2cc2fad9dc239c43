"""Scores of sets of pictures: photos are judged once, then each set, in blocks, by the arithmetic of `evaluate`."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bdflow.config import PUBLISHED_METRICS, TAKAGI_METRICS
from bdflow.errors import BdflowError, InputError, counted, listed
from bdflow.metrics import image_metrics
from bdflow.metrics.statistics import estimate
from bdflow.models.judges.weights import BUNDLE_CLIP, JUDGE_OF, JUDGES, Weights, find_weights
from bdflow.scoring import measure
from bdflow.scoring.measure import ALONE, PIXELS
from bdflow.scoring.opening import Matched, Set
from bdflow.scoring.result import Scores, SetScores

if TYPE_CHECKING:
    from torch import Tensor

    from bdflow.models.judges.networks import Panel

log = logging.getLogger(__name__)
KNOWN = (*PIXELS, *JUDGE_OF, BUNDLE_CLIP)
LOOKED_AT = 64
SELECTED = {"all": "all", "first": "the first", "best": "the best by a predicted space"}
"""Stimuli, to tell whether red and blue are exchanged."""
GROUPS = {"published": PUBLISHED_METRICS, "takagi": TAKAGI_METRICS}


def chosen_metrics(given: str | Sequence[str], bundle: bool) -> tuple[str, ...]:
    """Names of metrics, in order, each once, of names and of groups of them; with a bundle also its CLIP."""
    names = [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else list(given)
    every = [metric for name in names for metric in GROUPS.get(name, (name,))]
    return tuple(dict.fromkeys([*every, *([BUNDLE_CLIP] if bundle else [])]))


@dataclass(frozen=True)
class Options:
    """How pictures are scored: see `bdflow.score`."""

    metrics: tuple[str, ...] = PUBLISHED_METRICS
    ssim: Literal["paper", "2d"] = "paper"
    distractors: Literal["photos", "reconstructions"] = "photos"
    select: Literal["all", "first"] = "all"
    duplicates: bool = False
    size: int | None = None
    weights: Path | None = None
    bundle: str | Path | None = None
    device: str = "cpu"
    batch_size: int = 16
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for option, given, allowed in (
            *(("metrics", metric, KNOWN) for metric in self.metrics),
            ("ssim", self.ssim, ("paper", "2d")),
            ("distractors", self.distractors, ("photos", "reconstructions")),
            ("select", self.select, ("all", "first")),
        ):
            if given not in allowed:
                groups = f"; or {' or '.join(GROUPS)}, which are several" if option == "metrics" else ""
                expected = ", ".join(allowed) + groups
                raise InputError(option, found=repr(given), expected=expected, action="choose among these")
        if not self.metrics:
            raise InputError("metrics", found="none", expected="at least one", action="name some, or leave them out")
        for option, number in (("batch_size", self.batch_size), ("threads", self.threads), ("size", self.size)):
            if number is not None and number < 1:
                raise InputError(option, found=str(number), expected="1 or more", action=f"correct {option}")
        if (BUNDLE_CLIP in self.metrics) != (self.bundle is not None):
            raise InputError(
                "bundle",
                found=f"{'the' if BUNDLE_CLIP in self.metrics else 'no'} metric {BUNDLE_CLIP} and "
                f"{'no bundle' if self.bundle is None else 'a bundle'}",
                expected="both or none: this metric is the CLIP of a bundle of weights",
                action=f"name the bundle, or leave out {BUNDLE_CLIP}",
            )


def score(matched: Matched, options: Options) -> Scores:
    """Score every set of pictures.

    Raises
    ------
    InputError : fewer than two stimuli for two-way identification, photos that are the same, pictures that cannot be
        read or are smaller than SSIM's window, weights that are not what their name says, a device that is not there.
    """
    files = _weights(options)
    missing = {m: files[JUDGE_OF[m]].missing for m in options.metrics if m in JUDGE_OF and files[JUDGE_OF[m]].missing}
    _check_numbers(matched, options)
    seen = tuple(m for m in options.metrics if m not in PIXELS and m not in missing)
    with _threads(options.threads):
        panel = _panel(options, files, seen)
        run = _Run(matched, options, panel, seen)
        sets = {one.name: run.scores(one) for one in matched.sets}
    named = {m: measure.full_name(m, options.ssim, options.distractors) for m in options.metrics}
    return Scores(
        sets, {named[m]: why for m, why in missing.items()}, tuple(run.notices(sets)), _protocol(matched, options)
    )


def _weights(options: Options) -> dict[str, Weights]:
    needed = {JUDGE_OF[metric] for metric in options.metrics if metric in JUDGE_OF}
    where = "the folder of weights" if options.weights is None else str(options.weights)
    if options.weights is not None and not options.weights.is_dir():
        raise InputError(
            options.weights,
            found="no folder",
            expected="the folder with the judging networks' published weights",
            action="correct the path",
        )
    return {judge: find_weights(judge, options.weights, where) for judge in JUDGES if judge in needed}


def _check_numbers(matched: Matched, options: Options) -> None:
    pairs = [metric for metric in options.metrics if metric not in ALONE]
    for one in matched.sets:
        if len(one.rows) < (2 if pairs else 1):
            raise InputError(
                one.images.where,
                found=counted(len(one.rows), "stimulus", "stimuli"),
                expected="two or more",
                meaning=f"Two-way identification ({listed(pairs, 3)}) compares a picture with other photos."
                if pairs
                else "",
                action="add stimuli, or ask for metrics that need one alone: " + ", ".join(sorted(ALONE)),
            )


def _panel(options: Options, files: dict[str, Weights], seen: Sequence[str]) -> Panel | None:
    if not seen:
        return None
    import torch

    from bdflow.models.judges.networks import load_panel

    kind = options.device.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise InputError(
            "device",
            found=repr(options.device),
            expected=f"a device of this machine: {', '.join(name for name, is_there in there.items() if is_there)}",
            action="choose one of these",
        )
    judges = {JUDGE_OF[metric] for metric in seen if metric in JUDGE_OF}
    log.info("loading judges: %s", ", ".join([*sorted(judges), *([BUNDLE_CLIP] if options.bundle else [])]))
    return load_panel({judge: files[judge] for judge in JUDGES if judge in judges}, options.bundle, options.device)


class _Run:
    """Photos, looked at once; then the scores of each set.

    Memory: the judges, four bytes for each feature of each photo, and for each metric of judges a square of float32
    over the stimuli of a set.
    """

    def __init__(self, matched: Matched, options: Options, panel: Panel | None, seen: Sequence[str]) -> None:
        self.matched, self.options, self.panel, self.seen = matched, options, panel, seen
        self.digests: dict[int, str] = {}
        self.same: dict[str, int] = defaultdict(int)
        self.exchanged: dict[str, list[float]] = defaultdict(list)
        self.features: dict[str, Tensor] = {}
        used = sorted({row for one in matched.sets for row in one.photos})
        self.column = {row: i for i, row in enumerate(used)}
        found: dict[str, list[Any]] = {metric: [] for metric in seen}
        for rows in self._blocks(used, "photos"):
            images = [images[0] for images in matched.photos.read(rows)]
            self.digests |= {row: _digest(image) for row, image in zip(rows, images, strict=True)}
            if panel is not None:
                for metric, features in measure.unit_features(panel, images, seen).items():
                    found[metric].append(features)
        self._check_photos()
        if panel is not None:
            import torch

            self.features = {metric: torch.cat(parts) for metric, parts in found.items()}

    def _blocks(self, rows: Sequence[int], what: str) -> Iterator[list[int]]:
        size, told = self.options.batch_size, 0
        for start in range(0, len(rows), size):
            yield list(rows[start : start + size])
            done = min(start + size, len(rows))
            if done * 10 // len(rows) > told:
                told = done * 10 // len(rows)
                log.info("%s: %d of %d", what, done, len(rows))

    def _check_photos(self) -> None:
        alike: dict[str, list[str]] = defaultdict(list)
        for row, digest in self.digests.items():
            alike[digest].append(self.matched.ids[row])
        twice = [" = ".join(ids) for ids in alike.values() if len(ids) > 1]
        self.same_photos = len(twice)
        if twice and not self.options.duplicates:
            raise InputError(
                self.matched.photos.where,
                found=f"photos that are the same, pixel by pixel: {listed(twice)}",
                expected="each photo once",
                meaning="Two-way identification cannot tell them apart: each counts against the other's picture.",
                action="take them out, or say --duplicates to score them all the same",
            )

    def scores(self, one: Set) -> SetScores:
        """Every score of one set, in the order of the photos."""
        options, n = self.options, len(one.rows)
        several = 1 if options.select == "first" else one.images.several
        columns = np.array([self.column[row] for row in one.photos])
        pixels = {metric: np.full(n, np.nan) for metric in PIXELS if metric in options.metrics}
        correlation = np.empty((len(self.seen), n, n), np.float32)
        alike = 0
        looks = set()
        for block in self._blocks(range(n), one.name or "pictures"):
            photos = self.matched.photos.read([one.photos[i] for i in block])
            pictures = [images[:several] for images in one.images.read([one.rows[i] for i in block])]
            for i, (photo,), images in zip(block, photos, pictures, strict=True):
                digest = _digest(images[0])
                looks.add(digest)
                alike += digest == self.digests[one.photos[i]]
                if "PixCorr" in pixels and len(self.exchanged[one.name]) < LOOKED_AT:
                    self.exchanged[one.name].append(_gain_of_exchange(photo, images[0]))
                for metric, value in self._pixels(photo, images, list(pixels), i, one).items():
                    pixels[metric][i] = value
            if self.panel is not None:
                correlation[:, block] = measure.correlations(self.panel, pictures, self.features, columns)
        self.same[f"{one.name}/photo"], self.same[f"{one.name}/other"] = alike, n - len(looks)
        values: dict[str, np.ndarray] = {}
        for metric in options.metrics:
            name = measure.full_name(metric, options.ssim, options.distractors)
            if metric in pixels:
                values[name] = pixels[metric]
            elif metric in self.seen:
                own = measure.network_scores(metric, correlation[self.seen.index(metric)], options.distractors)
                values[name] = own.astype(np.float64)
        stimuli = tuple(self.matched.ids[row] for row in one.photos)
        return SetScores(stimuli, several, values, {m: estimate(v, options.seed) for m, v in values.items()})

    def _pixels(
        self, photo: np.ndarray, images: Sequence[np.ndarray], metrics: Sequence[str], i: int, one: Set
    ) -> dict[str, float]:
        if self.options.size is not None:
            photo = image_metrics.at_size(photo, self.options.size, self.options.size)
        try:
            return measure.pixel_scores(photo, images, metrics, self.options.ssim)
        except BdflowError as error:
            error.inside(f"{self.matched.photos.where}, {self.matched.ids[one.photos[i]]}")
            raise

    def notices(self, sets: dict[str, SetScores]) -> Iterator[str]:
        """What a reader of the scores should know."""
        if self.matched.left_out:
            yield f"{counted(self.matched.left_out, 'photo')} without a picture left out"
        if self.same_photos:
            yield f"{counted(self.same_photos, 'photo')} more than once: identification counts them against each other"
        if len({one.stimuli for one in sets.values()}) > 1:
            yield "the sets do not show the same stimuli: their scores are means over different ones"
        for painter, chosen in self.matched.selects.items():
            several = max((s.images.several for s in self.matched.sets if s.name.startswith(f"{painter}/")), default=1)
            if several > 1 and chosen != self.options.select:
                yield (
                    f"of {several} pictures of a stimulus by {painter} the study scored {SELECTED[chosen]}, here "
                    f"{SELECTED[self.options.select]} count: these are not the study's scores"
                    + ("; --select first makes them so" if chosen == "first" else "")
                )
        yield from self._alike("photo", "are their photos, pixel by pixel", sets)
        yield from self._alike("other", "are the same as another picture", sets)
        for name, one in sets.items():
            of = f" of {name}" if name else ""
            gains = np.array([gain for gain in self.exchanged[name] if np.isfinite(gain)])
            if gains.size > 1 and (gains > 0).mean() >= 0.9 and gains.mean() > 0.02:
                yield (
                    f"with red and blue exchanged, the pictures{of} would agree better with the photos: is one of the "
                    "two in BGR?"
                )
            for metric, values in one.values.items():
                gaps = int((~np.isfinite(values)).sum())
                if gaps:
                    yield (
                        f"{metric}{of} is not defined for {gaps} of {len(values)} stimuli (pictures of one flat "
                        "colour): its mean is over the others"
                    )

    def _alike(self, what: str, words: str, sets: dict[str, SetScores]) -> Iterator[str]:
        """One line for all sets in which pictures are like something."""
        counts = {name: self.same[f"{name}/{what}"] for name in sets if self.same[f"{name}/{what}"]}
        if counts:
            low, high = min(counts.values()), max(counts.values())
            n = max(len(sets[name].stimuli) for name in counts)
            which = listed([name for name in counts if name], 5)
            number = f"{low} to {high}" if low < high else str(low)
            yield f"{number} of {n} pictures{f' in {which}' if which else ''} {words}"


def _gain_of_exchange(photo: np.ndarray, picture: np.ndarray) -> float:
    """By how much PixCorr rises if red and blue of the picture are exchanged."""
    picture = image_metrics.at_size(picture, *photo.shape[:2])
    return image_metrics.pixcorr(photo, picture[..., ::-1]) - image_metrics.pixcorr(photo, picture)


def _digest(image: np.ndarray) -> str:
    return f"{image.shape}:{hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()}"


def _protocol(matched: Matched, options: Options) -> dict[str, str]:
    several = sorted({one.images.several for one in matched.sets})
    return {
        "photos": matched.places[0],
        "pictures": matched.places[1],
        "pixel metrics": "at each photo's size" if options.size is None else f"at {options.size} px",
        "SSIM": options.ssim,
        "two-way identification": f"among {options.distractors}"
        + (" (Takagi's: among reconstructions)" if any(m.startswith("Takagi") for m in options.metrics) else ""),
        "pictures of a stimulus": f"{', '.join(map(str, several))}"
        + ("" if several == [1] else "; the first is scored" if options.select == "first" else "; all are scored"),
    }


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """At most n threads for arithmetic, in torch and in the libraries below NumPy."""
    if n is None:
        yield
        return
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        with threadpool_limits(n):
            yield
    finally:
        torch.set_num_threads(before)
