"""The stores of regions of interest: patterns, their latents, their pictures; all other stores are in `catalog`."""

from __future__ import annotations

from collections.abc import Sequence

from bdflow.stores.spec import ArraySpec, StoreSpec
from bdflow.study import catalog
from bdflow.study.coordinates import PIXELS

REGION = ArraySpec("region", ("region",), "str", "region, in bdflow's language of regions", role="coordinate")


def patterns() -> StoreSpec:
    return StoreSpec(
        "Patterns: voxels of regions of interest, to be decoded",
        (
            ArraySpec("pattern", ("region", "voxel"), "f4", "z-scored response that is decoded"),
            ArraySpec("voxels", ("region",), "i4", "number of voxels that are not 0"),
            REGION,
        ),
    )


def latents(shape: Sequence[int], coordinates: catalog.Coordinates = ()) -> StoreSpec:
    dims = catalog.space_dims(shape)
    return StoreSpec(
        "Latents of regions: what ridge predicts for their patterns, raw; the statistics rescale them",
        (
            ArraySpec("latent", ("region", *dims), "f4", "predicted latent"),
            ArraySpec("train_mean", dims, "f4", catalog.STATISTICS["train_mean"]),
            ArraySpec("train_std", dims, "f4", catalog.STATISTICS["train_std"]),
            REGION,
            *coordinates,
        ),
    )


def pictures(title: str) -> StoreSpec:
    dims, chunks = ("region", "strength", "noise", "y", "x", "rgb"), {"region": 1, "strength": 1, "noise": 1}
    return StoreSpec(
        title,
        (
            ArraySpec("image", dims, "u1", catalog.PICTURE, chunks=chunks, codec="zstd"),
            *PIXELS,
            REGION,
            ArraySpec("strength", ("strength",), "f8", "what the pattern is multiplied with", role="coordinate"),
            ArraySpec(
                "noise", ("noise",), "i4", "number of the draw of noise, the same for every region", role="coordinate"
            ),
        ),
        {"region": 1},
    )


def guesses() -> StoreSpec:
    return pictures("Guesses of regions: the pictures that painting starts from")


def images() -> StoreSpec:
    return pictures("Pictures of regions: what a painter made of them")
