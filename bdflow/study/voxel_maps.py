"""Voxel maps of a subject: what the stores hold by voxel.

Noise ceiling, voxels decoded from, regions, patterns that were decoded, importance per target space, scores of encoding
models: what the stores hold by voxel. How much a target space depends on a voxel is its importance, which
`ridge.weights` keeps; how well a voxel is predicted from a target space, or a set of them, is what `encode` scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bdflow.datasets.ceilings import noise_ceiling
from bdflow.study import encoding_models, keys, region_patterns
from bdflow.study.designs import averaged_design
from bdflow.study.noise_ceilings import ceiling_of
from bdflow.study.stage import Context

REPEATS = 3  # NSD states its noise ceilings for three trials a stimulus


@dataclass(frozen=True)
class MapGrid:
    """The grid of a subject's volumes and so of every map: shape (x, y, z), affine (4, 4), and NIfTI's code of what the
    affine's millimetres are of (0: not known)."""

    shape: tuple[int, ...]
    affine: np.ndarray
    form: int


def grid_of(context: Context, subject: str) -> MapGrid:
    """The grid of the subject's maps."""
    betas = context.ready(keys.betas(subject))
    return MapGrid(tuple(betas.read("grid").tolist()), betas.read("affine"), int(betas.read("affine_form")[0]))


def positions(context: Context, subject: str) -> tuple[np.ndarray, ...]:
    """i, j, k of each voxel of the betas store."""
    betas = context.ready(keys.betas(subject))
    return tuple(betas.read(axis) for axis in "ijk")


def in_volume(values: np.ndarray, at: tuple[np.ndarray, ...], shape: tuple[int, ...]) -> np.ndarray:
    """(x, y, z) with `values` (voxels,) at their places; elsewhere 0, or not a number among floating-point values."""
    outside = np.nan if values.dtype.kind == "f" else 0
    found = np.full(shape, outside, values.dtype)
    found[at] = values
    return found


def voxel_maps(context: Context, subject: str) -> dict[str, np.ndarray]:
    """Every map there is of a subject by name, each (voxels,) in the order of the betas store.

    `noise_ceiling` in percent of variance, of averages over three trials (the dataset's, or estimated from repeats);
    `decoded_from` 1 or 0;
    `region_<name>` 1 or 0 for every name that has voxels; `pattern_<set>_<region>` of the sets of `roi`
    that were decoded; `importance_<space>` in SD of the latent per SD of the voxel, where weights were kept;
    and of encoding models, where they were fitted, `<kind>_<model>` and `<kind>_<set>-<space>` (`ModelMap`).
    """
    responses = context.ready(keys.responses(subject, averaged_design(context.config).responses))
    found = {
        "noise_ceiling": noise_ceiling(ceiling_of(context, subject).ncsnr, REPEATS).astype(np.float32),
        "decoded_from": responses.read("valid"),
    }
    regions = region_patterns.atlas(context, subject, {})
    for name, count in regions.counts().items():
        if count:
            found[f"region_{file_name(name)}"] = regions.pattern(name).astype(np.uint8)
    for path, pattern in _patterns(context, subject):
        found[f"pattern_{path}"] = pattern
    found |= importance(context, subject)
    return found | {one.name: one.values for one in encoding_models.maps(context, subject)}


def importance(context: Context, subject: str) -> dict[str, np.ndarray]:
    """`importance_<space>` of the target spaces for which weights were kept, each (voxels,)."""
    found = {}
    for space in context.config.decoded_spaces:
        key = keys.importance(subject, space)
        if context.is_sealed(key):
            found[f"importance_{space}"] = context.ready(key).read("importance")
    return found


def _patterns(context: Context, subject: str) -> Iterator[tuple[str, np.ndarray]]:
    for chosen, regions in context.config.roi.sets.items():
        key = keys.region_patterns(chosen, subject)
        if context.is_sealed(key):
            values = context.ready(key).read("pattern")
            for number, (region, pattern) in enumerate(zip(regions, values, strict=True), start=1):
                yield f"{chosen}_{number:02d}_{file_name(region)}", pattern


def file_name(region: str) -> str:
    """A region's name as part of a file's name."""
    words = {">": " above ", "+": " plus ", "|": " or ", "&": " and ", "\\": " without ", " - ": " minus "}
    for sign, word in words.items():
        region = region.replace(sign, word)
    return re.sub(r"[^\w.-]+", "_", region).strip("_")
