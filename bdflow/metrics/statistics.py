"""How sure a mean score is, and whether two differ: bootstrap and paired permutation tests, by SciPy; and which of many
correlations are more than chance. Pure functions.

What is resampled are test stimuli: the confidence is that of this subject, these networks and this noise, for other
stimuli of the same kind.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bdflow.errors import InputError

RESAMPLES = 1999
LEVEL = 0.95
BATCH_BYTES = 2**26
INTERVAL = f"{LEVEL:.0%} bootstrap interval over stimuli (scipy.stats.bootstrap, percentile, {RESAMPLES} resamples)"
PAIRED = (
    "paired permutation test over stimuli, two-sided (scipy.stats.permutation_test on the differences, "
    f"permutation_type='samples', {RESAMPLES} resamples, so p is at least {2 / (RESAMPLES + 1):.3f})"
)
TEST = f"{PAIRED}; p values are not corrected for their number"


class Estimate(NamedTuple):
    """A mean over stimuli and its confidence interval; `n` stimuli had a score."""

    mean: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """Mean of a - b over the `n` stimuli that have both, and the p value of no difference."""

    mean: float
    p: float
    n: int


def estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of the scores (n,) that are defined, with its bootstrap interval.

    Without two defined scores there is no interval, and of none there is no mean: these are not a number.
    """
    found = np.asarray(values, np.float64)
    found = found[np.isfinite(found)]
    n = len(found)
    if n < 2 or found.min() == found.max():
        mean = float(found.mean()) if n else float("nan")
        edge = mean if n >= 2 else float("nan")
        return Estimate(mean, edge, edge, n)
    from scipy import stats  # takes a second to load

    result = stats.bootstrap(
        (found,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        batch=_batch(n),
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Estimate(float(found.mean()), float(low), float(high), n)


def difference(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Difference:
    """Compare two scores (n,) of the same stimuli, paired.

    Raises
    ------
    ValueError : different numbers of stimuli.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise InputError(
            "paired scores",
            found=f"shapes {a.shape} and {b.shape}",
            expected="scores of the same stimuli, (n,) in the same order",
            action="select the stimuli that both have",
        )
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    n = len(a)
    if n < 2:
        return Difference(float((a - b).mean()) if n else float("nan"), float("nan"), n)
    from scipy import stats

    result = stats.permutation_test(
        (a - b,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_batch(n),
        rng=np.random.default_rng(seed),
    )
    return Difference(float(result.statistic), float(result.pvalue), n)


def correlation_p(r: np.ndarray, n: int) -> np.ndarray:
    """How often the correlation of two independent Gaussian vectors is at least `r`: one-sided p, exactly.

    r sqrt((n - 2) / (1 - r^2)) of such vectors has Student's t distribution of n - 2 degrees of freedom (R. A. Fisher
    1915). Only one of the two needs to be Gaussian: predictions may be what they are.

    Parameters
    ----------
    r : Pearson correlations, any shape, in [-1, 1].
    n : length of the vectors.

    Returns
    -------
    Float64 in the shape of `r`; not a number where r is none, and everywhere for n below 3, where r says nothing.
    """
    from scipy.special import stdtr

    r = np.asarray(r, np.float64)
    if n < 3:
        return np.full(r.shape, np.nan)
    with np.errstate(divide="ignore"):
        t = r * np.sqrt((n - 2) / np.maximum((1 - r) * (1 + r), 0))
    found: np.ndarray = stdtr(n - 2, -t)
    return found


def false_discovery_q(p: np.ndarray) -> np.ndarray:
    """q values of Benjamini & Hochberg (1995): to call all with q < 0.05 found makes 5% of these false, on average.

    Parameters
    ----------
    p : p values (n,); those that are not a number take no part.

    Returns
    -------
    (n,) float64, not a number where p is none.
    """
    p = np.asarray(p, np.float64)
    found, known = np.full(p.shape, np.nan), np.isfinite(p)
    if known.any():
        from scipy import stats

        found[known] = stats.false_discovery_control(p[known], method="bh")
    return found


def holm(p: np.ndarray) -> np.ndarray:
    """p values corrected for their number (S. Holm 1979): where those below 0.05 are believed, the chance that any of
    them is false stays below 0.05, whichever depend on which.

    Parameters
    ----------
    p : p values (n,); those that are not a number take no part.

    Returns
    -------
    (n,) float64, not a number where p is none.
    """
    p = np.asarray(p, np.float64)
    found, known = np.full(p.shape, np.nan), np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    found[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return found


def _batch(n: int) -> int:
    """Resamples at a time, so that memory stays bounded."""
    return max(1, BATCH_BYTES // (16 * n))
