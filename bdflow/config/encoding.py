"""The settings of encoding models."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from bdflow.config.base import NOT_CONTENT, Section, shapes
from bdflow.config.values import Count, Name, Penalties


class EncodeSettings(Section):
    """Encoding models, from latents to voxels: from which target spaces (null: all), and among which penalties each
    voxel's is chosen, by how well `stimuli` training stimuli are predicted from all others.

    spaces : which target spaces, one model each; null: all.
    grid : the penalties that are tried, by voxel.
    stimuli : training stimuli that are predicted, drawn at random, to choose by.
    sets : named sets of two or more spaces, each one model (banded ridge) with the unique variance of each space.
    components : spaces that are reduced to so many principal components of their z-scored latents, fitted on each
        subject's training stimuli; the others keep all latents.
    share_steps : the shares of a set's spaces are chosen for each voxel among all multiples of 1 / share_steps that sum
        to 1, with the penalty.
    """

    spaces: Annotated[tuple[str, ...] | None, NOT_CONTENT] = None
    sets: Annotated[dict[Name, Annotated[tuple[str, ...], Field(min_length=2)]], NOT_CONTENT] = Field(
        default_factory=dict
    )
    grid: Penalties = (
        0.1, 0.3, 1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4,
    )  # fmt: skip
    stimuli: Count = 512
    components: Annotated[dict[str, Count], NOT_CONTENT] = Field(default_factory=dict)
    share_steps: Annotated[Count, shapes("encoding_sets")] = 4

    @field_validator("sets")
    @classmethod
    def _spaces_differ(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, spaces in value.items():
            if len(set(spaces)) < len(spaces):
                raise ValueError(f"{name}: found {', '.join(spaces)}; expected each space once")
        return value
