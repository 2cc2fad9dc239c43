"""Noise ceilings: the dataset's own, or estimated from the repeats of stimuli by NSD's definition (Allen et al. 2022).

ncsnr is the SD of the signal over the SD of one trial's noise. The noise variance is the variance over the repeats of a
stimulus, pooled over stimuli; the signal variance is what is left of the variance of all trials, at least 0. NSD
z-scores betas by session before. Here they are on the footing of the rows that are decoded from: z-scored where
`ridge.session_zscore` says so, as they are where it does not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bdflow.study import keys
from bdflow.study.designs import averaged_design
from bdflow.study.stage import Context

_BLOCK = 512  # voxels at once


class Ceiling(NamedTuple):
    """Noise-ceiling SNR of each voxel of a subject, (voxels,) float32; and where it is from, in words."""

    ncsnr: np.ndarray
    source: str


def ceiling_of(context: Context, subject: str) -> Ceiling:
    """The dataset's noise ceiling, or, where it has none, that of the repeats."""
    given = context.ready(keys.betas(subject)).read("ncsnr")
    if not np.isnan(given).all():
        return Ceiling(given, "the dataset's")
    design = averaged_design(context.config)
    found = context.ready(keys.responses(subject, design.responses)).read("ncsnr_repeats")
    footing = "z-scored by session" if design.session_zscore else "not z-scored"
    return Ceiling(found, f"estimated from repeated stimuli, betas {footing}")


def ncsnr_of_repeats(values: np.ndarray, valid: np.ndarray, stimulus: np.ndarray) -> np.ndarray:
    """Noise-ceiling SNR of each voxel from repeated stimuli.

    Parameters
    ----------
    values : (trials, voxels) betas, in any unit.
    valid : (trials, voxels) bool: which are measurements.
    stimulus : (trials,) which stimulus each shows.

    Returns
    -------
    (voxels,) float32: 0 where repeats differ as much as stimuli do, infinite where they do not differ at all; NaN where
    no stimulus has two valid trials, or nothing varies.
    """
    order = np.argsort(stimulus, kind="stable")
    ordered = stimulus[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else np.zeros(0, int)
    found = np.full(values.shape[1], np.nan, np.float32)
    for start in range(0, values.shape[1] if len(starts) else 0, _BLOCK):
        block = slice(start, start + _BLOCK)
        there = valid[order, block]
        count = there.sum(axis=0)
        centre = np.where(there, values[order, block], 0).astype(np.float64).sum(axis=0) / np.maximum(count, 1)
        x = np.where(there, values[order, block] - centre, 0)
        n = np.add.reduceat(there, starts, axis=0, dtype=np.int64)
        sums = np.add.reduceat(x, starts, axis=0)
        squares = np.square(x).sum(axis=0)
        within = squares - (np.square(sums) / np.maximum(n, 1)).sum(axis=0)
        freedom = np.maximum(n - 1, 0).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            total = (squares - np.square(x.sum(axis=0)) / count) / (count - 1)
            tiny = within <= 1e-12 * squares
            noise = np.where(freedom > 0, np.where(tiny, 0, within) / freedom, np.nan)
            ratio = np.sqrt(np.maximum(total - noise, 0) / noise)
        found[block] = np.where((total > 0) & (freedom > 0), ratio, np.nan)
    return found
