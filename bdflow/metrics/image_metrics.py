"""Agreement between reconstructions and the photos that were shown (paper, Methods: evaluation). Pure functions.

PixCorr and SSIM compare pixels: the reconstruction is resized to the photo's 425 px (PIL, bicubic) and both are
divided by 255. The other six compare features that networks give (`bdflow.models.judges.networks`): by two-way
identification, or by their distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace
from PIL import Image

from bdflow.errors import InputError

GREY = np.array([0.2125, 0.7154, 0.0721])
SIGMA, RADIUS = 1.5, 5
WINDOW = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
WINDOW /= WINDOW.sum()
BLOCK_ROWS = 32
"""Rows of an image that are worked on at once, so that what is computed on the way stays in the processor's cache, and
no memory is asked of the system each time. No bit of a score depends on it."""
Array = Any


def at_size(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize one uint8 image (y, x, 3) by PIL's bicubic filter."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def pixcorr(truth: np.ndarray, reconstruction: np.ndarray) -> float:
    """Pearson correlation over all pixels and channels of two uint8 images (y, x, 3) of one size.

    Not a number if one of them is a single flat colour.
    """
    if any(image.min() == image.max() for image in (truth, reconstruction)):
        return float("nan")
    n, sums = truth.size, np.zeros(5)  # sums of whole numbers below 2^53: exact, and free of the 1/255
    for start in range(0, len(truth), BLOCK_ROWS):
        a, b = (image[start : start + BLOCK_ROWS].astype(np.float64).ravel() for image in (truth, reconstruction))
        sums += (a.sum(), b.sum(), a @ b, a @ a, b @ b)
    sum_a, sum_b, product, square_a, square_b = sums
    covariance = n * product - sum_a * sum_b
    return float(covariance / np.sqrt((n * square_a - sum_a**2) * (n * square_b - sum_b**2)))


def ssim(truth: np.ndarray, reconstruction: np.ndarray, protocol: str = "paper") -> float:
    """Structural similarity of the grey versions of two uint8 images (y, x, 3) of one size (Wang et al. 2004).

    Gaussian window of sigma 1.5 (11 px), population covariance, data range 1.

    Parameters
    ----------
    protocol : `paper`: the authors passed grey images as multichannel, so each column of pixels counted as a channel:
        the mean of one-dimensional SSIMs down the columns. `2d`: the usual two-dimensional SSIM.

    Raises
    ------
    ValueError : another protocol, or an image smaller than the window.
    """
    axes = {"paper": (0,), "2d": (0, 1)}.get(protocol)
    if axes is None:
        raise InputError("SSIM protocol", found=repr(protocol), expected="`paper` or `2d`", action="choose one of them")
    if min(truth.shape[axis] for axis in axes) <= 2 * RADIUS:
        raise InputError(
            "SSIM",
            found=f"images of {' x '.join(map(str, truth.shape[:2]))} pixels",
            expected=f"both sides above {2 * RADIUS} px, the window's size",
            action="hand in larger images",
        )
    inside = [side - 2 * RADIUS * (axis in axes) for axis, side in enumerate(truth.shape[:2])]
    found = np.empty(inside)
    for start in range(0, inside[0], BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS + 2 * RADIUS)
        found[start : start + BLOCK_ROWS] = _similarity(truth[rows], reconstruction[rows], axes)
    return float(found.mean())


def _similarity(truth: np.ndarray, reconstruction: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """SSIM at every pixel around which the whole window lies inside the image."""
    a, b = (image.astype(np.float64) @ (GREY / 255) for image in (truth, reconstruction))
    mean_a, mean_b, square_a, square_b, product = (_smooth(image, axes) for image in (a, b, a * a, b * b, a * b))
    mean_product, squares = mean_a * mean_b, mean_a**2 + mean_b**2
    covariance = product - mean_product
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean_product + c1) * (2 * covariance + c2)
    below = (squares + c1) * (square_a + square_b - squares + c2)
    similarity: np.ndarray = above / below
    return similarity


def _smooth(image: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Gaussian-weighted means along `axes`, where the whole window lies inside the image."""
    for axis in axes:
        inside = image.shape[axis] - 2 * RADIUS
        parts = [image[i : i + inside] if axis == 0 else image[:, i : i + inside] for i in range(2 * RADIUS + 1)]
        image = WINDOW[RADIUS] * parts[RADIUS]
        for i in range(RADIUS):
            image += WINDOW[i] * (parts[i] + parts[-1 - i])
    return image


def unit(features: Array) -> Array:
    """Features (n, ...) as rows (n, F) of mean 0 and length 1, so that products of rows are Pearson correlations.

    NumPy or torch, in the dtype given. Rows that are constant have no correlation: they become not a number.
    """
    xp = array_namespace(features)
    rows = xp.reshape(features, (features.shape[0], -1))
    constant = xp.max(rows, axis=1, keepdims=True) == xp.min(rows, axis=1, keepdims=True)
    rows = rows - xp.mean(rows, axis=1, keepdims=True)  # of a constant row rounding may leave something
    length = xp.sqrt(xp.sum(rows * rows, axis=1, keepdims=True))
    return rows / xp.where(constant, xp.full_like(length, float("nan")), length)


def identification(correlation: np.ndarray, distractors: str = "photos") -> np.ndarray:
    """Two-way identification from all correlations (paper, Methods: evaluation; chance is 0.5).

    Parameters
    ----------
    correlation : (n, n), of each reconstruction (row) with each photo (column); its own photo is on the diagonal.
    distractors : `photos` (the paper): a reconstruction is compared with the n - 1 other photos. `reconstructions`
        (as others do): a photo is compared with the n - 1 other reconstructions.

    Returns
    -------
    shape (n,): the share of distractors whose correlation is strictly lower than that of the true pair. Distractors
    without a correlation (one of the two has constant features) do not count; not a number where the true pair has
    none, or no distractor has one. The metric is the mean.

    Raises
    ------
    ValueError : another rule, fewer than two images, or not a square.
    """
    axis = {"photos": 1, "reconstructions": 0}.get(distractors)
    if axis is None:
        raise InputError(
            "distractors",
            found=repr(distractors),
            expected="`photos` or `reconstructions`",
            action="choose one of them",
        )
    n = len(correlation)
    if correlation.shape != (n, n) or n < 2:
        raise InputError(
            "two-way identification",
            found=f"correlations of shape {correlation.shape}",
            expected="(n, n): every reconstruction with every photo, n at least 2",
            action="hand in such a matrix",
        )
    own = np.diagonal(correlation)
    lower = correlation < (own[:, None] if axis else own[None, :])
    known = (~np.isnan(correlation)).sum(axis=axis) - 1
    return np.where(np.isnan(own) | (known < 1), np.nan, lower.sum(axis=axis) / np.maximum(known, 1))


def two_way(truth: np.ndarray, reconstruction: np.ndarray, distractors: str = "photos") -> np.ndarray:
    """Two-way identification by features of the same n >= 2 images, shape (n, ...): see `identification`.

    There may be k reconstructions of each photo, shape (n, k, ...): their correlations are averaged. With
    `distractors="reconstructions"` this is the protocol of Takagi & Nishimoto (2023).

    Raises
    ------
    ValueError : fewer than two images, or shapes that differ.
    """
    return identification(correlations(truth, reconstruction), distractors)


def correlation_distance(truth: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """1 - Pearson correlation of the features (n, ...) of each reconstruction and its photo, shape (n,).

    Raises
    ------
    ValueError : shapes that differ.
    """
    if truth.shape != reconstruction.shape:
        raise InputError(
            "distances",
            found=f"features of shapes {reconstruction.shape} and {truth.shape}",
            expected="the same shape (n, features)",
            action="hand in the features of the same images, in the same order",
        )
    a, b = (unit(np.asarray(values, dtype=np.float64)) for values in (truth, reconstruction))
    return 1 - (a * b).sum(axis=1)


def correlations(truth: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Pearson correlation of the features of each reconstruction (row) with those of each photo (column), (n, n).

    Parameters
    ----------
    truth : (n, ...), n >= 2.
    reconstruction : (n, ...), or (n, k, ...) for k reconstructions of each photo, over which the mean is taken.

    Raises
    ------
    ValueError : fewer than two images, or shapes that differ.
    """
    several = reconstruction.ndim == truth.ndim + 1 and reconstruction.shape[1] > 0
    one = reconstruction[:, 0] if several else reconstruction
    if truth.shape != one.shape or len(truth) < 2:
        raise InputError(
            "two-way identification",
            found=f"features of shape {reconstruction.shape} among {truth.shape}",
            expected="the same shape (n, features), n at least 2",
            action="hand in the features of the same images, in the same order",
        )
    photos = unit(np.asarray(truth, dtype=np.float64))
    of_each = np.moveaxis(reconstruction, 1, 0) if several else [reconstruction]
    found: np.ndarray = np.mean([unit(np.asarray(each, dtype=np.float64)) @ photos.T for each in of_each], axis=0)
    return found
