"""Scores against how like a test stimulus is to the nearest training stimulus: what was seen before scores higher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from bdflow.config import Config
from bdflow.report import palette
from bdflow.report.page import number
from bdflow.report.plots import Line, Plot, lines
from bdflow.report.scores import Scores
from bdflow.stores import Store
from bdflow.study import keys
from bdflow.study.painting import picture_label, shown_of
from bdflow.study.stage import Context

BINS = 5
LEAST = 3  # test stimuli in a bin


def space_of(config: Config, painter: str) -> str | None:
    """The space in which a painter's training stimuli were searched; None where they were not."""
    settings = config.painters[painter]
    return settings.retrieval_space if "retrieval" in settings.controls else None


def names(config: Config) -> list[str]:
    """What the plots show, in the order of their colours: first variants, and controls."""
    found = []
    for painter, settings in config.painters.items():
        if space_of(config, painter) is not None:
            found += [settings.variants[0], *settings.controls]
    return list(dict.fromkeys(found))


def look(config: Config, name: str) -> palette.Look:
    """How what a plot shows is drawn."""
    return palette.pictures(names(config).index(name))


def paths(context: Context) -> list[str]:
    """The stores of neighbours that there are, of every subject that was scanned."""
    spaces = dict.fromkeys(space for p in context.config.painters if (space := space_of(context.config, p)))
    return [keys.neighbours(subject, space) for space in spaces for subject in context.decoded]


def plots(context: Context, stores: Mapping[str, Store], scores: Scores) -> Iterator[Plot]:
    """A plot for each painter whose training stimuli were searched, and each metric: mean score of test stimuli that
    are more or less like the nearest training stimulus, of the painter's first variant and of its controls.
    """
    for painter in context.config.painters:
        space = space_of(context.config, painter)
        if space is None:
            continue
        near = _similarity(stores, scores, space)
        first = context.config.painters[painter].variants[0]
        shown = [v for v in (first, *context.config.painters[painter].controls) if v in _everybodys(context, painter)]
        for m, metric in enumerate(scores.metrics):
            if not scores.missing[m]:
                yield _plot(context.config, painter, space, metric, shown, near, scores)


def _everybodys(context: Context, painter: str) -> tuple[str, ...]:
    return shown_of(context.config, painter, context.subjects[0])


def _similarity(stores: Mapping[str, Store], scores: Scores, space: str) -> np.ndarray:
    """(people, stimulus) cosine with the nearest training stimulus; not a number where a subject has none."""
    found = np.full((len(scores.people), len(scores.stimulus_id)), np.nan)
    for row, subject in enumerate(scores.people):
        store = stores[keys.neighbours(subject, space)]
        at = np.searchsorted(scores.stimulus_id, store.read("stimulus_id"))
        found[row, at] = store.read("similarity")[:, 0]
    return found


def _plot(
    config: Config, painter: str, space: str, metric: str, shown: Sequence[str], near: np.ndarray, scores: Scores
) -> Plot:
    m, series, said = scores.metrics.index(metric), [], []
    for variant in shown:
        label = picture_label(config, painter, variant)
        value = scores.value[: len(scores.people), scores.variants.index(label), m]
        x, y = binned(near.ravel(), value.ravel())
        series.append(Line(variant, x.tolist(), y.tolist(), look(config, variant)))
        rho = correlation(near.ravel(), value.ravel())
        said.append(f"{variant} {number(rho, 2)}")
    several = f"{painter}, " if len(config.painters) > 1 else ""
    return lines(
        f"{several}{metric}, and likeness to training",
        series,
        f"cosine with the nearest training stimulus, in {space}",
        "mean score",
        note=f"Test stimuli of all subjects in {BINS} bins of as many. Spearman's rho: {', '.join(said)}.",
    )


def binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median of `x` and mean of `y` in up to `BINS` bins of as many pairs each, in ascending `x`; of pairs where both
    are finite. Fewer bins, where one would have fewer than `LEAST` pairs.
    """
    known = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[known], kind="stable")
    x, y = x[known][order], y[known][order]
    parts = max(1, min(BINS, len(x) // LEAST))
    pairs = [(a, b) for a, b in zip(np.array_split(x, parts), np.array_split(y, parts), strict=True) if a.size]
    return np.array([np.median(a) for a, _ in pairs]), np.array([b.mean() for _, b in pairs])


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rho over pairs where both are finite; not a number where it is not defined."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 3 or (x == x[0]).all() or (y == y[0]).all():
        return float("nan")
    return float(spearmanr(x, y).statistic)
