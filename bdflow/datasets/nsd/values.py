"""A session's betas as they are stored: int16 of 1/300 percent signal change, and which of them are measurements."""

from __future__ import annotations

import numpy as np

from bdflow.datasets.contract import SessionBetas
from bdflow.errors import InputError, counted
from bdflow.stores.casts import misfits

BETA_SCALE = 300
LOWEST, HIGHEST = -32768, 32767
"""What int16 holds. NSD's files have these values where a beta was larger: measurements that are cut off."""


def as_stored(
    betas: np.ndarray,
    path: object,
    mask: np.ndarray,
    *,
    outliers: str = "refuse",
    not_a_number: str = "refuse",
    measured: np.ndarray | None = None,
) -> SessionBetas:
    """Betas of one session as NSD stores them, and which are valid.

    Parameters
    ----------
    betas : (trials, voxels): integers of 1/300 percent, or floating-point numbers of percent signal change.
    path : the file, for errors.
    mask : (x, y, z) bool, whose voxels these are.
    outliers : of betas beyond what int16 holds, infinite ones too: `refuse`; `clip`, as NSD did; `invalid`.
    not_a_number : of betas that are NaN: `refuse`, or `invalid`.
    measured : (voxels,) bool: what the dataset says of the session, if it says anything.

    A voxel that is 0 in every trial of the session (but for NaN), or is not `measured`, has no valid beta in it; of one
    that is not `measured` nothing is refused. Invalid betas are stored as 0.

    Raises
    ------
    InputError : outliers or NaN that are refused. It says how many, names the first and the options.
    """
    asked = np.ones(betas.shape[1], bool) if measured is None else measured
    missing = np.isnan(betas) if betas.dtype.kind == "f" else np.zeros(betas.shape, bool)
    present = asked & ((betas != 0) & ~missing).any(axis=0)
    valid = np.broadcast_to(present, betas.shape)
    if betas.dtype == np.int16:
        return SessionBetas(np.where(valid, betas, np.int16(0)), valid.copy())
    if betas.dtype.kind == "f":
        missing &= asked
        if missing.any() and not_a_number == "refuse":
            raise _refused(
                path,
                mask,
                missing,
                f"{counted(int(missing.sum()), 'beta')} that {'is' if missing.sum() == 1 else 'are'} not a number",
                "numbers",
                "set `dataset.not_a_number: invalid` to leave such betas out of means, or correct the file",
            )
        valid = valid & ~missing
        scaled = np.rint(np.where(valid, betas, 0).astype(np.float64) * BETA_SCALE)
    else:
        scaled = np.where(valid, betas, 0)
    beyond = misfits(scaled, np.int16)
    if beyond.any():
        if outliers == "refuse":
            extreme = scaled[beyond][np.abs(scaled[beyond].astype(np.float64)).argmax()] / BETA_SCALE
            raise _refused(
                path,
                mask,
                beyond,
                f"{counted(int(beyond.sum()), 'beta')} too large, up to {extreme:g} percent signal change",
                f"{LOWEST / BETA_SCALE:.5g} to {HIGHEST / BETA_SCALE:.5g}, what int16 of 1/300 percent holds (integer "
                "files are in 1/300 percent, floating-point ones in percent)",
                "check the units of this file; set `dataset.outliers: clip` to cut such betas off as NSD does, or "
                "`dataset.outliers: invalid` to leave them out of means",
            )
        if outliers == "invalid":
            valid = valid & ~beyond
            scaled, beyond = np.where(beyond, 0, scaled), np.zeros_like(beyond)
    values = np.where(beyond, np.where(scaled > 0, HIGHEST, LOWEST), scaled).astype(np.int16)
    return SessionBetas(values, np.array(valid))


def clipped(values: np.ndarray) -> np.ndarray:
    """Which stored betas are cut off, bool."""
    found: np.ndarray = (values == LOWEST) | (values == HIGHEST)
    return found


def _refused(path: object, mask: np.ndarray, bad: np.ndarray, found: str, expected: str, action: str) -> InputError:
    trials, voxels = np.nonzero(bad)
    i, j, k = (int(axis[voxels[0]]) for axis in np.nonzero(mask))
    whole = np.flatnonzero(bad.all(axis=1))
    more = f"; every beta of trial {whole[0]}" if whole.size else ""
    return InputError(
        path,
        found=f"{found}, in {counted(np.unique(voxels).size, 'voxel')} and {counted(np.unique(trials).size, 'trial')}, "
        f"the first in trial {trials[0]} (counted from 0) at ({i}, {j}, {k}){more}",
        expected=expected,
        meaning="Nothing of this session was kept.",
        action=action,
    )
