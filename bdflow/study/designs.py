"""The rows and voxels that ridge is fitted on. Spaces with the same ones share a system and its hat matrices."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from bdflow.config import Config


@dataclass(frozen=True)
class Design:
    """What ridge is fitted on.

    Attributes
    ----------
    rows : `averaged`, one row a training stimulus, or `trials`, one a training trial.
    session_zscore : whether voxels are z-scored within each session first.
    regions : an expression of the language of regions, or None for every voxel of the mask.
    intercept : whether predictions get the mean of the training targets.
    """

    rows: str
    session_zscore: bool
    regions: str | None
    intercept: bool

    @property
    def responses(self) -> str:
        """Name of the rows, in the key of their store."""
        return self.rows + ("_zscored" if self.session_zscore else "")

    @property
    def name(self) -> str:
        """Name of the design, in the keys of its stores."""
        rows = self.responses + ("" if self.intercept else "_no_intercept")
        if self.regions is None:
            return rows
        readable = re.sub(r"\W+", "_", self.regions).strip("_")[:24]
        digest = hashlib.blake2b(self.regions.encode(errors="backslashreplace"), digest_size=3).hexdigest()
        return f"{rows}-{readable}_{digest}"


def design_of(config: Config, space: str) -> Design:
    """What a space is decoded from."""
    ridge = config.ridge_of(space)
    return Design(ridge.rows, ridge.session_zscore, ridge.regions, ridge.intercept)


def designs(config: Config) -> dict[Design, tuple[str, ...]]:
    """Every design of a configuration, and the spaces decoded by it."""
    found: dict[Design, tuple[str, ...]] = {}
    for space in config.decoded_spaces:
        design = design_of(config, space)
        found[design] = (*found.get(design, ()), space)
    return found


def averaged_design(config: Config) -> Design:
    """Averaged rows of all voxels: what encoding models predict, and what maps and regions are of."""
    return Design("averaged", config.ridge.session_zscore, None, True)


def response_kinds(config: Config) -> dict[str, Design]:
    """Every kind of rows, by its name in keys; the design that stands for it says rows and z-scoring."""
    return {design.responses: design for design in (averaged_design(config), *designs(config))}


def chosen_spaces(config: Config, spaces: tuple[str, ...]) -> list[str]:
    """Those of the spaces whose penalty is chosen by cross-validation."""
    return [space for space in spaces if config.ridge_of(space).choose != "fixed"]


def held_out_spaces(config: Config, spaces: tuple[str, ...]) -> list[str]:
    """Those of the spaces that are re-standardised by held-out predictions."""
    return [space for space in spaces if config.ridge_of(space).standardise == "held_out"]


def validates(config: Config, spaces: tuple[str, ...]) -> bool:
    """Whether training stimuli are predicted from the others: to choose penalties, or for held-out statistics."""
    return bool(chosen_spaces(config, spaces)) or bool(held_out_spaces(config, spaces))


def by_rows(config: Config) -> bool:
    """Whether cross-validation leaves rows out, whichever stimulus they are of, and scores by mean squared errors."""
    return config.ridge.validation.method == "k_fold_rows"


def candidates(config: Config, spaces: tuple[str, ...]) -> list[float]:
    """The penalties that these spaces may get, ascending."""
    found: set[float] = set()
    for space in spaces:
        ridge = config.ridge_of(space)
        found |= {float(ridge.alpha)} if ridge.choose == "fixed" else {float(alpha) for alpha in ridge.grid}
    return sorted(found)
