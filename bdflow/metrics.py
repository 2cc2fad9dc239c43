"""Agreement between reconstructions and the photos that were shown (paper, Methods: evaluation). Pure functions.

PixCorr and SSIM compare pixels: the reconstruction is resized to the photo's 425 px (PIL, bicubic) and both are
divided by 255.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter1d

GREY = np.array([0.2125, 0.7154, 0.0721])
SIGMA, TRUNCATE = 1.5, 3.5
RADIUS = int(TRUNCATE * SIGMA + 0.5)


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
    a, b = (image.astype(np.float64).ravel() / 255 for image in (truth, reconstruction))
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


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
        raise ValueError(f"SSIM protocol {protocol!r}: there are `paper` and `2d`")
    if min(truth.shape[axis] for axis in axes) <= 2 * RADIUS:
        raise ValueError(f"SSIM needs images above {2 * RADIUS} px, not {truth.shape[:2]}")
    a, b = (image.astype(np.float64) / 255 @ GREY for image in (truth, reconstruction))

    def smooth(image: np.ndarray) -> np.ndarray:
        for axis in axes:
            image = gaussian_filter1d(image, SIGMA, axis=axis, truncate=TRUNCATE, mode="reflect")
        return image

    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    inside = tuple(slice(RADIUS, -RADIUS) if axis in axes else slice(None) for axis in (0, 1))
    return float(similarity[inside].mean())


def two_way(truth: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Two-way identification of each reconstruction by its features (paper, Methods; chance is 0.5).

    Parameters
    ----------
    truth, reconstruction : features of the same n >= 2 images, shape (n, ...), flattened.

    Returns
    -------
    shape (n,): of the n - 1 other photos, the share whose features correlate strictly less with the reconstruction's
    than its own photo's do. The metric is the mean.

    Raises
    ------
    ValueError : fewer than two images, or shapes that differ.
    """
    if truth.shape != reconstruction.shape or len(truth) < 2:
        raise ValueError(f"two-way identification of {reconstruction.shape} features among {truth.shape}")
    a, b = (values.reshape(len(values), -1).astype(np.float64) for values in (truth, reconstruction))
    a, b = (values - values.mean(axis=1, keepdims=True) for values in (a, b))
    a, b = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (a, b))
    correlation = a @ b.T
    return (correlation < np.diag(correlation)).sum(axis=0) / (len(truth) - 1)


def pixel_metrics(ssim_protocol: str = "paper") -> dict[str, Callable[[np.ndarray, np.ndarray], float]]:
    """The two pixel metrics by the names they carry in the metrics store."""
    return {
        "PixCorr": pixcorr,
        f"SSIM ({ssim_protocol})": lambda truth, reconstruction: ssim(truth, reconstruction, ssim_protocol),
    }
