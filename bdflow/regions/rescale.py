"""Latents of artificial patterns, brought to the size of a photo's latents (paper, section 5.2), pure.

Ridge is linear: a pattern of 1 in a region moves the prediction only a little away from the mean of the training
latents. Networks that have seen photos alone want latents as large as those of photos.
"""

from __future__ import annotations

import numpy as np

from bdflow.errors import InputError

RULES = ("training_norm", "deviation", "none")


def rescaled(
    latent: np.ndarray, train_mean: np.ndarray, train_std: np.ndarray, rule: str, strength: float = 1.0
) -> np.ndarray:
    """Latents of patterns `strength` times as strong, rescaled.

    Parameters
    ----------
    latent : (k, [tokens,] features) that ridge predicts for k patterns.
    train_mean, train_std : ([tokens,] features) of the training latents.
    rule : `training_norm`, the paper's: the latent gets the Euclidean norm of the training latents (their root mean
        square, sqrt(|mean|^2 + |std|^2)); `deviation`: its distance from the training mean gets `strength` times that
        of the training latents; `none`. A space with tokens is rescaled token by token, others whole.
    strength : what the pattern is multiplied with; the decoder being linear, that multiplies the distance of the latent
        from the training mean.

    Returns
    -------
    float32 of the shape of `latent`. A token that the pattern does not move at all stays at the mean (`deviation`).

    Raises
    ------
    InputError : another rule.
    """
    if rule not in RULES:
        raise InputError("rescale", found=repr(rule), expected=", ".join(RULES), action="choose one of these")
    mean, std = train_mean.astype(np.float64), train_std.astype(np.float64)
    moved = latent.astype(np.float64) - mean
    if rule == "deviation":
        moved = _to_norm(moved, np.linalg.norm(std, axis=-1))
    found = mean + strength * moved
    if rule == "training_norm":
        found = _to_norm(found, np.sqrt(np.square(mean).sum(axis=-1) + np.square(std).sum(axis=-1)))
    return found.astype(np.float32)


def _to_norm(values: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """`values` (..., features) with Euclidean norm `norm` (...); zeros stay."""
    now = np.linalg.norm(values, axis=-1)
    return values * np.divide(norm, now, out=np.zeros_like(now), where=now > 0)[..., None]


def stretched(image: np.ndarray, share: float = 0.01) -> np.ndarray:
    """Histogram stretching for display: (y, x, 3) uint8, from the `share` darkest to the `share` brightest values.

    All channels by one line, so that hues stay. A flat picture is returned as it is.
    """
    low, high = np.quantile(image, (share, 1 - share))
    if high <= low:
        return image
    return np.clip((image - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)
