"""Which trials of a subject, and which of their betas, are measurements: what the betas store says of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bdflow.datasets.nsd import BETA_SCALE, HIGHEST, LOWEST
from bdflow.errors import counted
from bdflow.stores import Store


def usable(betas: Store) -> np.ndarray:
    """(trial,) bool: whether any voxel has a valid beta. Others are as if they had not been shown."""
    found: np.ndarray = betas.read("valid_voxels") > 0
    return found


def shown(betas: Store) -> np.ndarray:
    """nsd_id of each usable trial, in the order of the scan."""
    found: np.ndarray = betas.read("nsd_id")[usable(betas)]
    return found


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

    @classmethod
    def read(cls, betas: Store, responses: Store) -> Account:
        """From a subject's betas and the rows that were made of them."""
        known, everything = usable(betas), betas.read("nsd_id")
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
        )

    def lines(self) -> list[str]:
        """In words, a line for each thing that there is."""
        low, high = LOWEST / BETA_SCALE, HIGHEST / BETA_SCALE
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
                f"{_are(self.clipped_betas)} cut off at {low:.1f} or {high:.1f} percent signal change, and used so"
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
