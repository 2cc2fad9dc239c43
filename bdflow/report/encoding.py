"""The report's table of encoding models: how many voxels of each region pass, and how well they are predicted."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bdflow.report.page import Cell, Row, Table, number
from bdflow.study import region_patterns
from bdflow.study.encoding_models import FALSE_DISCOVERIES, key_of, models, passes
from bdflow.study.stage import Context

AREAS = ("V1", "V2", "V3", "hV4", "faces", "words", "places", "bodies")
"""The columns where the mask's own labels are not few."""
FEW = 8


def tables(context: Context) -> list[Table]:
    """One table of all models of the run's subjects, for those that there are; none without any."""
    regions = {subject: _regions(context, subject) for subject in context.subjects}
    names = [name for name in _columns(context) if any(name in of for of in regions.values())]
    groups = []
    for subject in context.subjects:
        rows = []
        for model in models(context.config):
            key = key_of(context.config, subject, model)
            if context.is_sealed(key):
                store = context.ready(key)
                p, r = store.read("p"), store.read("pearson_r")
                places = [np.isfinite(p), *(regions[subject].get(name) for name in names)]
                rows.append(Row([model, *(_cell(passes(p), r, place) for place in places)]))
        if rows:
            groups.append((subject, rows))
    if not groups:
        return []
    return [
        Table(
            "Encoding models: voxels that pass",
            ["model", "all voxels", *names],
            groups,
            f"Of each region, the share of voxels that pass at a false discovery rate of {FALSE_DISCOVERIES:.0%} over "
            "all voxels of a model, of how many, and the median r of those that pass. One-sided p of Pearson's r on "
            "the test set against correlations of independent Gaussian vectors of as many stimuli; Benjamini-Hochberg.",
        )
    ]


def _columns(context: Context) -> Iterable[str]:
    """The regions of the mask if they are few, or the paper's areas, or else the dataset's collections."""
    words = region_patterns.vocabulary(context.config)
    of_mask = [region.partition("/")[2] for region in words.regions if region.partition("/")[0] == words.mask]
    if 1 < len(of_mask) <= FEW:
        return of_mask
    if all(name in words.names() for name in AREAS):
        return AREAS
    return list(dict.fromkeys(region.partition("/")[0] for region in words.regions))[:FEW]


def _regions(context: Context, subject: str) -> dict[str, np.ndarray]:
    """(voxels,) bool of each column of which the subject has voxels."""
    atlas = region_patterns.atlas(context, subject, {})
    counts = atlas.counts()
    return {name: atlas.pattern(name) > 0 for name in _columns(context) if counts.get(name)}


def _cell(here: np.ndarray, r: np.ndarray, place: np.ndarray | None) -> Cell:
    """Share that passes and of how many; below it the median r of those."""
    if place is None or not place.any():
        return number(float("nan"))
    passed = here & place
    median = f"r {number(float(np.median(r[passed])), 2)}" if passed.any() else ""
    return f"{passed.sum() / place.sum():.0%} of {place.sum():,}", median
