"""Noise ceilings, converted in one place: ncsnr, and the share of variance that models can explain (Allen et al. 2022).

Of a mean over n trials the explainable share is s^2 / (s^2 + 1/n), with s = ncsnr, the SD of the signal over the SD of
one trial's noise.
"""

from __future__ import annotations

import numpy as np

from bdflow.datasets.contract import NoiseCeiling
from bdflow.errors import InputError, counted

_LIMITS = {"ncsnr": (np.inf, "0 or more"), "percent": (100.0, "0 to 100"), "fraction": (1.0, "0 to 1")}


def noise_ceiling(ncsnr: np.ndarray, n_repeats: float) -> np.ndarray:
    """Percent of variance of means over `n_repeats` trials that a model can explain: float64, of the shape of `ncsnr`;
    NaN where that is.
    """
    with np.errstate(divide="ignore", over="ignore"):  # of tiny ncsnr, whose ceiling is 0
        return 100 / (1 + 1 / (n_repeats * np.square(ncsnr, dtype=np.float64)))


def ncsnr_of(ceiling: NoiseCeiling, mask: np.ndarray, subject: str) -> np.ndarray:
    """ncsnr of the voxels of a mask (x, y, z): (voxels,) float32; infinite where all variance can be explained, NaN
    where it is not known.

    Raises InputError for values that are none of the ceiling's unit, and for a share without its number of repeats.
    """
    values = np.asarray(ceiling.values, np.float64)[mask]
    most, allowed = _LIMITS[ceiling.unit]
    bad = (values < 0) | (values > most) | np.isinf(values)
    if bad.any():
        raise InputError(
            f"noise ceiling of {subject}",
            found=f"{counted(int(bad.sum()), 'value')} such as {values[bad][0]:g}",
            expected=f"{allowed} ({ceiling.unit}), or NaN",
            action="correct the file, or say in which unit it is",
        )
    if ceiling.unit == "ncsnr":
        return values.astype(np.float32)
    if not ceiling.repeats:
        raise InputError(
            f"noise ceiling of {subject}",
            found=f"a share of variance ({ceiling.unit}) without its number of repeats",
            expected="how many trials a stimulus it is for",
            action="say for how many repeats it is",
        )
    share = values / most
    with np.errstate(divide="ignore"):
        return np.sqrt(share / (1 - share) / ceiling.repeats).astype(np.float32)
