"""From pictures and photos to scores: the arithmetic that a study's evaluation and `bdflow score` have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdflow.metrics import image_metrics
from bdflow.models.judges.weights import AMONG_RECONSTRUCTIONS, DISTANCES, distractors_of

if TYPE_CHECKING:
    from torch import Tensor

    from bdflow.models.judges.networks import Panel

PIXELS = ("PixCorr", "SSIM")
ALONE = frozenset({*PIXELS, *DISTANCES})
"""Metrics that need no other photo: all others are two-way identification."""


def full_name(metric: str, ssim: str, distractors: str) -> str:
    """A metric with its protocol where that is not the paper's, or where there are several to keep apart."""
    if metric == "SSIM":
        return f"SSIM ({ssim})"
    if metric in ALONE or metric in AMONG_RECONSTRUCTIONS or distractors == "photos":
        return metric
    return f"{metric} (among reconstructions)"


def pixel_scores(
    photo: np.ndarray, pictures: Sequence[np.ndarray], metrics: Sequence[str], ssim: str
) -> dict[str, float]:
    """PixCorr and SSIM of one stimulus, those of `metrics`, each the mean over its pictures.

    Parameters
    ----------
    photo : (y, x, 3) uint8. pictures : each (y, x, 3) uint8, of any size: brought to the photo's by PIL's bicubic
        filter.
    """
    resized = [image_metrics.at_size(picture, *photo.shape[:2]) for picture in pictures]
    found: dict[str, float] = {}
    if "PixCorr" in metrics:
        found["PixCorr"] = float(np.mean([image_metrics.pixcorr(photo, picture) for picture in resized]))
    if "SSIM" in metrics:
        found["SSIM"] = float(np.mean([image_metrics.ssim(photo, picture, ssim) for picture in resized]))
    return found


def unit_features(panel: Panel, images: Sequence[np.ndarray], metrics: Sequence[str]) -> dict[str, Tensor]:
    """By metric, what its judge sees in images, each (y, x, 3) uint8: rows of mean 0 and length 1, (n, F) float32.

    Neighbours of one size are shown to the judges at once.
    """
    import torch

    runs: list[list[np.ndarray]] = []
    for image in images:
        if runs and runs[-1][0].shape == image.shape:
            runs[-1].append(image)
        else:
            runs.append([image])
    parts: dict[str, list[Tensor]] = {metric: [] for metric in metrics}
    for run in runs:
        seen = panel(np.stack(run))
        for metric in metrics:
            parts[metric].append(image_metrics.unit(seen[metric]))
    return {metric: rows[0] if len(rows) == 1 else torch.cat(rows) for metric, rows in parts.items()}


def correlations(
    panel: Panel, pictures: Sequence[Sequence[np.ndarray]], photos: Mapping[str, Tensor], columns: np.ndarray
) -> np.ndarray:
    """Pearson correlations of the features of pictures with those of photos, averaged over pictures of a stimulus.

    Parameters
    ----------
    pictures : of each of n stimuli as many, each (y, x, 3) uint8.
    photos : metric -> what `unit_features` gave for the photos. columns : which photos, (photo,).

    Returns
    -------
    (metric, n, photo) float32, in the order of `photos`.
    """
    of_each = []
    for images in zip(*pictures, strict=True):
        seen = unit_features(panel, images, list(photos))
        found = [(seen[metric] @ photos[metric].T).cpu().numpy()[:, columns] for metric in photos]
        of_each.append(np.stack(found))
    return np.stack(of_each).mean(axis=0, dtype=np.float64).astype(np.float32)


def network_scores(metric: str, correlation: np.ndarray, distractors: str) -> np.ndarray:
    """The score of each stimulus by correlations (n, n) of pictures (rows) with photos (columns): a distance, or the
    share of distractors that two-way identification beats.
    """
    if metric in DISTANCES:
        return np.asarray(1 - np.diagonal(correlation))
    return image_metrics.identification(correlation, distractors_of(metric, distractors))
