"""Which trials of a subject, and which of their betas, are measurements: what the betas store says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bdflow.datasets.contract import Encoding
from bdflow.errors import counted
from bdflow.stores import Store
from bdflow.study.catalog import UNITS

LOWEST, HIGHEST = -32768, 32767
"""Ends of int16: what is there was larger, where betas are cut off."""


def encoding_of(betas: Store) -> Encoding:
    """How a store of betas holds them."""
    array = betas.arrays["beta"]
    units = {of: name for name, of in UNITS.items()}[str(array.attrs.get("units", ""))]
    dtype: Literal["int16", "float32"] = "int16" if array.dtype == np.int16 else "float32"
    return Encoding(dtype, units, float(str(array.attrs["divisor"])), bool(array.attrs["cut_off"]))


def cut_off(values: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Which stored betas are cut off, bool."""
    if not encoding.cut_off:
        return np.zeros(values.shape, bool)
    found: np.ndarray = (values == LOWEST) | (values == HIGHEST)
    return found


def usable(betas: Store) -> np.ndarray:
    """(trial,) bool: whether any voxel has a valid beta. Others are as if they had not been shown."""
    found: np.ndarray = betas.read("valid_voxels") > 0
    return found


def shown(betas: Store) -> np.ndarray:
    """stimulus_id of each usable trial, in the order of the scan; empty where none was shown."""
    found: np.ndarray = betas.read("stimulus_id")[usable(betas)]
    return found


def session_z_scored(betas: np.ndarray, session: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Betas by mean and SD (ddof 0) of each voxel over the valid trials of its session.

    Parameters
    ----------
    betas : (trials, voxels).
    session : (trials,) the session of each.
    valid : (trials, voxels) bool: which are measurements.

    Returns
    -------
    values : (trials, voxels) float64, 0 where not valid.
    valid : as given, without the trials of sessions in which a voxel is constant: these have no z-score.
    """
    values, valid = np.where(valid, betas, 0).astype(np.float64), valid.copy()
    for number in np.unique(session):
        rows = session == number
        part, known = values[rows], valid[rows]
        whole = known.all(axis=0)
        part -= part.mean(axis=0)
        scale = part.std(axis=0)
        if not whole.all():
            some, of = np.where(known, values[rows], 0)[:, ~whole], known[:, ~whole]
            counted = np.maximum(of.sum(axis=0), 1)
            some = np.where(of, some - some.sum(axis=0) / counted, 0)
            part[:, ~whole] = some
            scale[~whole] = np.sqrt(np.square(some).sum(axis=0) / counted)
        values[rows] = np.divide(part, scale, out=np.zeros_like(part), where=scale > 0)
        valid[rows] = known & (scale > 0)
    return values, valid


@dataclass(frozen=True)
class Account:
    """What of a subject's betas is missing or cut off, and which voxels that costs.

    Attributes
    ----------
    voxels, betas : of the mask; in all usable trials.
    missing_voxels, missing_betas : voxels without a valid beta in some usable trials, and these betas.
    clipped_voxels, clipped_betas : voxels with betas that are cut off, and these betas.
    lost_trials : trials without a valid beta in any voxel.
    lost_stimuli : stimuli that were shown in such trials alone.
    incomplete : voxels that are not decoded from, because some stimulus has no valid beta.
    constant : those that are not, because they do not vary over the training stimuli.
    limits, units : where betas are cut off, and in which unit.
    """

    voxels: int
    betas: int
    missing_voxels: int
    missing_betas: int
    clipped_voxels: int
    clipped_betas: int
    lost_trials: int
    lost_stimuli: int
    incomplete: int
    constant: int
    limits: tuple[float, float] = (0.0, 0.0)
    units: str = ""

    @classmethod
    def read(cls, betas: Store, responses: Store) -> Account:
        """From a subject's betas and the rows that were made of them."""
        known, everything, encoding = usable(betas), betas.read("stimulus_id"), encoding_of(betas)
        missing, clipped = responses.read("missing_trials") - (~known).sum(), responses.read("clipped_trials")
        dropped, incomplete = responses.read("valid") == 0, np.isnan(responses.read("voxel_mean"))
        return cls(
            missing.size,
            missing.size * int(known.sum()),
            int(np.count_nonzero(missing)),
            int(missing.sum(dtype=np.int64)),
            int(np.count_nonzero(clipped)),
            int(clipped.sum(dtype=np.int64)),
            int((~known).sum()),
            int(np.setdiff1d(everything, everything[known]).size),
            int(incomplete.sum()),
            int((dropped & ~incomplete).sum()),
            (LOWEST / encoding.divisor, HIGHEST / encoding.divisor),
            {"z": "SDs", "arbitrary": "arbitrary units"}.get(encoding.units, encoding.units),
        )

    def lines(self) -> list[str]:
        """In words, a line for each thing that there is."""
        low, high = self.limits
        found = []
        if self.missing_betas:
            found.append(
                f"{self.missing_voxels:,} of {counted(self.voxels, 'voxel')} {_have(self.missing_voxels)} no "
                f"measurement in some trials ({self.missing_betas:,} of {self.betas:,} betas); means leave these out"
            )
        if self.lost_trials:
            found.append(
                f"{counted(self.lost_trials, 'trial')} {_have(self.lost_trials)} no measurement in any voxel and "
                f"{_are(self.lost_trials)} left out, and with {'it' if self.lost_trials == 1 else 'them'} "
                f"{counted(self.lost_stimuli, 'stimulus that was', 'stimuli that were')} shown in no other"
            )
        if self.clipped_betas:
            found.append(
                f"{counted(self.clipped_betas, 'beta')} of {counted(self.clipped_voxels, 'voxel')} "
                f"{_are(self.clipped_betas)} cut off at {low:.1f} or {high:.1f} {self.units}, and used so"
            )
        return found

    def dropped(self) -> list[str]:
        """Why voxels are not decoded from, a line for each reason that there is."""
        found = []
        if self.incomplete:
            which = f"{self.incomplete:,} of {counted(self.voxels, 'voxel')}, which {_have(self.incomplete)}"
            found.append(f"{which} no measurement of some stimulus")
        if self.constant:
            which = f"{self.constant:,} of {counted(self.voxels, 'voxel')}"
            verb = "does" if self.constant == 1 else "do"
            found.append(f"{which}, which {verb} not vary over the training stimuli")
        return found


def _have(n: int) -> str:
    return "has" if n == 1 else "have"


def _are(n: int) -> str:
    return "is" if n == 1 else "are"
