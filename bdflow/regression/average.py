"""The mean of several subjects' predictions (the paper's subject average), pure: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mean_prediction(
    predictions: Sequence[np.ndarray],
    train_mean: Sequence[np.ndarray],
    train_std: Sequence[np.ndarray],
    true: np.ndarray,
) -> dict[str, np.ndarray]:
    """Average predictions of the same stimuli and score the average.

    Parameters
    ----------
    predictions : of each subject, (m, ...), re-standardised as its own pictures are.
    train_mean, train_std : of each subject's training targets, (...).
    true : the stimuli's own latents, (m, ...).

    Returns
    -------
    The arrays of a predictions store, float32: `latent` (m, ...); `train_mean`, `train_std`, the averages over
    subjects, to which the average is re-standardised in its turn, for averaging takes variance away; `prediction_mean`,
    `prediction_std` over the m stimuli; `r2`, `pearson_r`, not a number where the true latent (for r also the
    predicted one) is constant. Sums are taken in float64.
    """
    latent = np.mean([np.asarray(values, np.float64) for values in predictions], axis=0).astype(np.float32)
    p, y = latent.astype(np.float64), np.asarray(true, np.float64)
    mean_p, mean_y = p.mean(axis=0), y.mean(axis=0)
    spread_p, spread_y = np.square(p - mean_p).sum(axis=0), np.square(y - mean_y).sum(axis=0)
    covariance = ((p - mean_p) * (y - mean_y)).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(spread_y > 0, 1 - np.square(y - p).sum(axis=0) / spread_y, np.nan)
        both = np.sqrt(spread_p * spread_y)
        r = np.where(both > 0, covariance / both, np.nan)
    found = {
        "latent": latent,
        "train_mean": np.mean([np.asarray(values, np.float64) for values in train_mean], axis=0),
        "train_std": np.mean([np.asarray(values, np.float64) for values in train_std], axis=0),
        "prediction_mean": mean_p,
        "prediction_std": np.sqrt(spread_p / len(p)),
        "r2": r2,
        "pearson_r": r,
    }
    return {name: values.astype(np.float32) for name, values in found.items()}
