"""The scores of a study as tables of numbers: means with intervals, differences with p values, one row an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np

from bdflow.config import Config
from bdflow.metrics import published
from bdflow.metrics.statistics import Difference, Estimate, difference, estimate, holm
from bdflow.scoring.result import as_csv
from bdflow.stores import Store
from bdflow.study import keys
from bdflow.study.painting import picture_label, pictures_of
from bdflow.study.stage import MEAN, TRUE

AVERAGE = "average"
LEVEL_OF_TESTS = 0.05
Stores = Mapping[str, Store]


def full_of(variant: str) -> str:
    """The variant `full` of the same painter."""
    painter, slash, _ = variant.rpartition("/")
    return f"{painter}{slash}full"


class Tested(NamedTuple):
    """Mean difference over `n`, its p value corrected over metrics, and whether it is an advantage beyond chance."""

    mean: float
    p: float
    n: int
    better: bool


@dataclass(frozen=True)
class Scores:
    """Every score of a study.

    Attributes
    ----------
    subjects : whose reconstructions are scored, people first, then `mean` and `true` if they are there.
    variants : kinds of pictures, `painter/variant` where there are several painters.
    metrics : as the metrics stores name them.
    missing : why a metric has no scores; empty if it has.
    stimulus_id : the test stimuli of any subject, (stimulus,).
    value : (subject, variant, metric, stimulus); not a number where there is no score.
    """

    subjects: tuple[str, ...]
    variants: tuple[str, ...]
    metrics: tuple[str, ...]
    missing: tuple[str, ...]
    stimulus_id: np.ndarray
    value: np.ndarray

    @classmethod
    def read(cls, stores: Stores, config: Config, subjects: Sequence[str]) -> Scores:
        """From the sealed metrics stores, by key, of every painter of the configuration."""
        found = {(p, s): stores[keys.metrics(p, s)] for p in config.painters for s in subjects}
        first = next(iter(found.values()))
        metrics, missing = (tuple(str(item) for item in first.read(name)) for name in ("metric", "missing"))
        labels = [picture_label(config, *picture) for picture in pictures_of(config)]
        ids = np.unique(np.concatenate([store.read("stimulus_id") for store in found.values()]))
        value = np.full((len(subjects), len(labels), len(metrics), len(ids)), np.nan)
        for (painter, subject), store in found.items():
            rows = [
                labels.index(picture_label(config, painter, str(variant))) for variant in store.read("variant").tolist()
            ]
            at = np.ix_(np.array(rows), np.arange(len(metrics)), np.searchsorted(ids, store.read("stimulus_id")))
            value[subjects.index(subject)][at] = store.read("value")
        return cls(tuple(subjects), tuple(labels), metrics, missing, ids, value)

    @property
    def known(self) -> tuple[str, ...]:
        """The metrics that have scores."""
        return tuple(metric for metric, why in zip(self.metrics, self.missing, strict=True) if not why)

    @property
    def people(self) -> tuple[str, ...]:
        """The subjects that were scanned."""
        return tuple(subject for subject in self.subjects if subject not in (MEAN, TRUE))

    @cached_property
    def average(self) -> np.ndarray:
        """(variant, metric, stimulus): the mean over scanned subjects; not a number where one has no score."""
        return self.value[: len(self.people)].mean(axis=0)

    def of(self, subject: str) -> np.ndarray:
        """(variant, metric, stimulus) of one subject, or of `average`."""
        return self.average if subject == AVERAGE else self.value[self.subjects.index(subject)]

    @property
    def rows(self) -> tuple[str, ...]:
        """Subjects, with the average over people where there are several."""
        people = self.people
        others = tuple(subject for subject in self.subjects if subject not in people)
        return (*people, *((AVERAGE,) if len(people) > 1 else ()), *others)

    def lower_is_better(self, metric: str) -> bool:
        return published.base(metric) in published.LOWER_IS_BETTER

    @cached_property
    def estimates(self) -> dict[tuple[str, str, str], Estimate]:
        """(row, variant, metric) -> mean and interval, for every row of `rows` and every metric that has scores."""
        return {
            (row, variant, metric): estimate(self.of(row)[v, m])
            for row in self.rows
            for v, variant in enumerate(self.variants)
            for m, metric in enumerate(self.metrics)
            if not self.missing[m]
        }

    @cached_property
    def ablations(self) -> dict[tuple[str, str, str], Difference]:
        """(row, variant, metric) -> how the variant differs from `full`; empty without `full`."""
        return {
            (row, variant, metric): difference(self.of(row)[v, m], self.of(row)[self.variants.index(full), m])
            for row in self.rows
            for v, variant in enumerate(self.variants)
            for full in [full_of(variant)]
            for m, metric in enumerate(self.metrics)
            if full in self.variants and variant != full and not self.missing[m]
        }

    @property
    def tested(self) -> tuple[tuple[str, str], ...]:
        """(variant, prior) of every painter with the control `prior`, whose pictures are those of its first variant."""
        found: dict[str, str] = {}
        for variant in self.variants:
            found.setdefault(variant.rpartition("/")[0], variant)
        priors = ((of, f"{painter}/prior" if painter else "prior") for painter, of in found.items())
        return tuple((of, prior) for of, prior in priors if prior in self.variants)

    @cached_property
    def beyond_prior(self) -> dict[tuple[str, str, str], Tested]:
        """(row, variant, metric) -> how the first variant of a painter differs from its `prior`; p values are corrected
        over the metrics. The row `average` is a test over subjects, of their means; the others are over stimuli.
        """
        found = {}
        for of, prior in self.tested:
            here, there = self.variants.index(of), self.variants.index(prior)
            for row in self.rows:
                if row == AVERAGE:
                    value = np.moveaxis(self.value[: len(self.people)], 0, -1)
                    with np.errstate(invalid="ignore"):
                        value = _mean(value)
                else:
                    value = self.of(row)
                if np.isnan(value[there]).all():
                    continue
                tests = [difference(value[here, m], value[there, m]) for m in range(len(self.metrics))]
                corrected = holm(np.array([test.p for test in tests]))
                for metric, missing, test, p in zip(self.metrics, self.missing, tests, corrected.tolist(), strict=True):
                    if not missing:
                        found[row, of, metric] = Tested(test.mean, p, test.n, self._better(metric, test.mean, p))
        return found

    def _better(self, metric: str, mean: float, p: float) -> bool:
        return p < LEVEL_OF_TESTS and (mean < 0 if self.lower_is_better(metric) else mean > 0)

    @property
    def systems(self) -> tuple[str, ...]:
        """The variant that stands for each painter: `full`, or its first; none where there is one painter alone."""
        by_painter: dict[str, str] = {}
        for variant in self.variants:
            painter, slash, name = variant.rpartition("/")
            if slash and (painter not in by_painter or name == "full"):
                by_painter[painter] = variant
        return tuple(by_painter.values()) if len(by_painter) > 1 else ()

    @cached_property
    def between_systems(self) -> dict[tuple[str, str, str, str], Difference]:
        """(row, system, other, metric) -> how two systems differ on the stimuli that both painted."""
        return {
            (row, a, b, metric): difference(
                self.of(row)[self.variants.index(a), m], self.of(row)[self.variants.index(b), m]
            )
            for row in self.rows
            for a, b in combinations(self.systems, 2)
            for m, metric in enumerate(self.metrics)
            if not self.missing[m]
        }

    @cached_property
    def contrasts(self) -> dict[tuple[str, str, str], Difference]:
        """(subject, other, metric) -> how two subjects differ in the first variant, on stimuli both have."""
        return {
            (a, b, metric): difference(self.of(a)[0, m], self.of(b)[0, m])
            for a, b in combinations(self.subjects, 2)
            for m, metric in enumerate(self.metrics)
            if not self.missing[m]
        }

    # --- files ------------------------------------------------------------------------------------------------

    def files(self) -> dict[str, str]:
        """CSV files by name: `scores`, `differences`, and every image's scores with its rank among the stimuli."""
        scores = [
            [row, variant, metric, *self._estimate(row, variant, metric), self.missing[m]]
            for row in self.rows
            for variant in self.variants
            for m, metric in enumerate(self.metrics)
        ]
        differences = [
            *[[row, v, row, full_of(v), metric, *found] for (row, v, metric), found in self.ablations.items()],
            *[[row, a, row, b, metric, *found] for (row, a, b, metric), found in self.between_systems.items()],
            *[[a, self.variants[0], b, self.variants[0], m, *found] for (a, b, m), found in self.contrasts.items()],
        ]
        beyond = [[*key, *found] for key, found in self.beyond_prior.items()]
        columns = ["subject", "variant", "metric", "mean_difference", "corrected_p", "n", "better"]
        return {
            **({"beyond_prior.csv": table(columns, beyond)} if beyond else {}),
            "scores.csv": table(["subject", "variant", "metric", "mean", "low", "high", "n", "missing"], scores),
            "differences.csv": table(
                ["subject", "variant", "other_subject", "other_variant", "metric", "mean_difference", "p", "n"],
                differences,
            ),
            "images.csv": table(
                ["stimulus_id", "subject", "variant", *self.metrics, *(f"rank of {m}" for m in self.metrics)],
                self._images(),
            ),
        }

    def _estimate(self, row: str, variant: str, metric: str) -> Sequence[object]:
        return self.estimates.get((row, variant, metric), ["", "", "", ""])

    def _images(self) -> Iterator[list[object]]:
        signs = np.array([-1.0 if self.lower_is_better(metric) else 1.0 for metric in self.metrics])
        for s, subject in enumerate(self.subjects):
            for v, variant in enumerate(self.variants):
                value = self.value[s, v]
                rank = ranks(value * signs[:, None])
                for i, stimulus_id in enumerate(self.stimulus_id.tolist()):
                    if np.isfinite(value[:, i]).any():
                        yield [stimulus_id, subject, variant, *value[:, i], *rank[:, i]]


def _mean(value: np.ndarray) -> np.ndarray:
    """Mean over the second last axis, the stimuli, of those that have a score; not a number where none has."""
    known = np.isfinite(value)
    count = known.sum(axis=-2)
    total = np.where(known, value, 0).sum(axis=-2)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def ranks(value: np.ndarray) -> np.ndarray:
    """Rank of each column in its row, 1 for the highest; ties share the better rank; not a number has none (nan)."""
    found = np.full(value.shape, np.nan)
    for row, out in zip(value, found, strict=True):
        known = np.isfinite(row)
        ordered = np.sort(row[known])
        out[known] = len(ordered) - np.searchsorted(ordered, row[known], side="right") + 1
    return found


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV text; numbers with six digits, what is not a number empty."""
    return as_csv(columns, rows, 6)
