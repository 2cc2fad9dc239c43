"""Floating-point betas of a session: which of them are measurements."""

from __future__ import annotations

import numpy as np

from bdflow.datasets.contract import SessionBetas
from bdflow.errors import InputError, counted


def measured(betas: np.ndarray, path: object, said: np.ndarray | None = None) -> SessionBetas:
    """Betas (trials, voxels) of one session, and which are valid: numbers, in voxels that the session measured.

    Parameters
    ----------
    betas : floating-point numbers; NaN = no value.
    path : the file, for errors.
    said : (voxels,) bool: which voxels the session measured; None where the dataset does not say. Then a voxel that has
        the same value in every trial of several was not measured.

    Raises
    ------
    InputError : infinite betas, or larger ones than float32 holds, in voxels that were measured.
    """
    there = ~np.isnan(betas)
    if said is None:
        low = np.min(betas, axis=0, initial=np.inf, where=there)
        said = (low < np.max(betas, axis=0, initial=-np.inf, where=there)) | (len(betas) == 1)
    valid = there & said
    with np.errstate(over="ignore"):
        values = np.where(valid, betas, 0).astype(np.float32, copy=False)
    beyond = ~np.isfinite(values)
    if beyond.any():
        trial, voxel = (int(at) for at in np.argwhere(beyond)[0])
        raise InputError(
            path,
            found=f"{counted(int(beyond.sum()), 'beta')} that {'is' if beyond.sum() == 1 else 'are'} not finite in "
            f"float32, the first in trial {trial} (counted from 0), voxel {voxel} of the mask: {betas[trial, voxel]:g}",
            expected="numbers, or NaN where there is no value",
            meaning="Nothing of this session was kept.",
            action="correct the file, or write NaN there",
        )
    return SessionBetas(values, valid)
