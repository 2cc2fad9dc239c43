"""How stages get at the networks that paint: one way for predictions of photos and for patterns of regions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bdflow.config import Config

if TYPE_CHECKING:
    from bdflow.models.latents import Painter

NOT_PAINTING = {"variants", "standardise", "batch_size", "upper_bound", "subject_mean"}


def painting_settings(config: Config) -> dict[str, Any]:
    """The settings of `reconstruct` that shape how a picture is painted from latents."""
    return config.reconstruct.model_dump(exclude=NOT_PAINTING)


def painter(config: Config) -> Painter:
    """The networks of the bundle, loaded when they are first needed."""
    from bdflow.models.latents import Painter
    from bdflow.models.versatile import PaintOptions

    return Painter(
        config.networks.bundle,
        device=config.networks.device,
        dtype=config.networks.dtype,
        seed=config.seed,
        options=PaintOptions(**painting_settings(config)),
    )
