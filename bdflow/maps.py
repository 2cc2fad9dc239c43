"""Voxel maps as NIfTI in the subject's own volumes, for nilearn, FSLeyes and the like.

Noise ceiling, voxels decoded from, regions, patterns that were decoded, importance and R^2 per target space: what the
stores hold by voxel. How much a target space depends on a voxel is its importance, which `regress.weights` keeps; how
well a voxel is predicted from a target space is the R^2 of `encode`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bdflow import roi_patterns
from bdflow.config import SPACES
from bdflow.nsd import NSD, Volume, noise_ceiling
from bdflow.stage import Context

REPEATS = 3  # NSD states its noise ceilings for three trials a stimulus


def write(context: Context, folder: Path) -> list[Path]:
    """Write every map of every subject of the run below `folder`/<subject>; return the files.

    Raises
    ------
    NotReady : `ingest` is not done, or the mask in NSD's files is not the one the betas were read with.
    """
    import nibabel

    files = []
    for subject in context.subjects:
        volume = mask_volume(context, subject)
        at = positions(context, subject)
        (folder / subject).mkdir(parents=True, exist_ok=True)
        for name, values in voxel_maps(context, subject).items():
            filled = in_volume(values, at, volume.data.shape)
            image = nibabel.Nifti1Image(filled, volume.affine)
            image.header.set_xyzt_units("mm")
            files.append(folder / subject / f"{name}.nii.gz")
            nibabel.save(image, files[-1])
    return files


def mask_volume(context: Context, subject: str) -> Volume:
    """The subject's mask: its grid and affine are those of every map."""
    settings = context.config.nsd
    return NSD(settings.root, space=settings.space, preparation=settings.preparation).roi(subject, settings.mask)


def positions(context: Context, subject: str) -> tuple[np.ndarray, ...]:
    """i, j, k of each voxel of the betas store."""
    betas = context.ready(f"betas/{subject}")
    return tuple(betas.read(axis) for axis in "ijk")


def in_volume(values: np.ndarray, at: tuple[np.ndarray, ...], shape: tuple[int, ...]) -> np.ndarray:
    """(x, y, z) with `values` (voxels,) at their places; elsewhere 0, or not a number among floating-point values."""
    outside = np.nan if values.dtype.kind == "f" else 0
    found = np.full(shape, outside, values.dtype)
    found[at] = values
    return found


def voxel_maps(context: Context, subject: str) -> dict[str, np.ndarray]:
    """Every map there is of a subject by name, each (voxels,) in the order of the betas store.

    `noise_ceiling` in percent of variance, of averages over three trials as NSD states it; `decoded_from` 1 or 0;
    `region_<name>` 1 or 0 for every name of NSD's files that has voxels; `pattern_<set>_<region>` of the sets of `roi`
    that were decoded; `importance_<space>` in SD of the latent per SD of the voxel, where weights were kept;
    `r2_<space>` on the test set, where encoding models were fitted.
    """
    betas, responses = context.ready(f"betas/{subject}"), context.ready(f"responses/{subject}")
    found = {
        "noise_ceiling": noise_ceiling(betas.read("ncsnr"), REPEATS).astype(np.float32),
        "decoded_from": responses.read("valid"),
    }
    regions = roi_patterns.atlas(context, subject, {})
    for name, count in regions.counts().items():
        if count:
            found[f"region_{file_name(name)}"] = regions.pattern(name).astype(np.uint8)
    for path, pattern in _patterns(context, subject):
        found[f"pattern_{path}"] = pattern
    return found | by_space(context, subject)


def by_space(context: Context, subject: str) -> dict[str, np.ndarray]:
    """`importance_<space>` and `r2_<space>` of the target spaces for which there are any, each (voxels,)."""
    found = {}
    for name, folder, array in (("importance", "importance", "importance"), ("r2", "encoding", "r2")):
        for space in SPACES:
            path = f"{folder}/{subject}/{space}"
            if path in context.expected and context.study.state(path, context.expected[path]).kind == "sealed":
                found[f"{name}_{space}"] = context.ready(path).read(array)
    return found


def _patterns(context: Context, subject: str) -> Iterator[tuple[str, np.ndarray]]:
    for chosen, regions in context.config.roi.sets.items():
        path = roi_patterns.place(chosen, subject, "patterns")
        if path in context.expected and context.study.state(path, context.expected[path]).kind == "sealed":
            values = context.ready(path).read("pattern")
            for number, (region, pattern) in enumerate(zip(regions, values, strict=True), start=1):
                yield f"{chosen}_{number:02d}_{file_name(region)}", pattern


def file_name(region: str) -> str:
    """A region's name as part of a file's name."""
    words = {">": " above ", "+": " plus ", "|": " or ", "&": " and ", "\\": " without ", " - ": " minus "}
    for sign, word in words.items():
        region = region.replace(sign, word)
    return re.sub(r"[^\w.-]+", "_", region).strip("_")
