"""Voxel patterns of a subject's regions, from NSD's labels as the study holds them and from a user's own files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bdflow.config import Config
from bdflow.decode import read_array
from bdflow.errors import InputError
from bdflow.nsd import NSD, ROI_LABELS, read_volume
from bdflow.regions import Atlas, Vocabulary
from bdflow.stage import MEAN, Context

Key = tuple[str, str]


def vocabulary(config: Config) -> Vocabulary:
    """The names that regions may have: those of NSD's files, aggregates, and the configuration's masks."""
    labels = {config.nsd.mask: (config.nsd.mask,), **ROI_LABELS}
    del labels["streams"]
    words = Vocabulary(labels, tuple(config.roi.masks))
    taken = [name for name in words.more if name.casefold() in {known.casefold() for known in words.names()}]
    if taken:
        raise InputError(
            "roi.masks",
            found=f"the name {taken[0]!r}",
            expected="a name that is not one of NSD's",
            action="give the mask another name",
        )
    return words


def masks_used(config: Config, regions: Sequence[str], subject: str) -> dict[str, Path]:
    """The configuration's masks that these regions name, and their files for the subject (those it has).

    Raises InputError for a file that is not there.
    """
    words = vocabulary(config)
    named = {text for region in regions for kind, text in words.tokens(region) if kind == "name"}
    files = {name: of[subject] for name, of in config.roi.masks.items() if name in named and subject in of}
    for name, file in files.items():
        if not file.is_file():
            raise InputError(
                file,
                found="no such file",
                expected=f"the mask {name} of {subject}: NIfTI, or a .npy vector",
                action="correct the path",
            )
    return files


def subjects_of(config: Config, regions: Sequence[str]) -> list[str]:
    """The subjects that have every mask these regions name. Raises InputError if none has."""
    words = vocabulary(config)
    named = {text for region in regions for kind, text in words.tokens(region) if kind == "name"}
    used = [of for name, of in config.roi.masks.items() if name in named]
    found = [subject for subject in config.subjects if all(subject in of for of in used)]
    if not found:
        raise InputError(
            "roi.masks",
            found=f"no subject with every mask that {', '.join(regions)} names",
            expected="a file for at least one of " + ", ".join(config.subjects),
            action="add the missing files, or leave the region out",
        )
    return found


def on_demand(config: Config, regions: Sequence[str], mask: Path | None, subjects: Sequence[str]) -> Config:
    """The configuration with one set, of these regions, in place of its own sets.

    `mask` is a further name, that of the file, for the one subject it is of; without regions it is the region. The
    set's name is made from its regions, so that the same regions are the same set.

    Raises InputError if a mask comes without its subject.
    """
    masks = dict(config.roi.masks)
    if mask is not None:
        if len(subjects) != 1:
            raise InputError(
                "--mask",
                found=f"{len(subjects)} subjects",
                expected="the one subject whose voxels the mask is of",
                action="add --subject, such as --subject subj01",
            )
        name = re.sub(r"\W", "_", mask.name.split(".")[0])
        name = name if name[:1].isalpha() else f"mask_{name}"
        masks[name] = {subjects[0]: mask}
        regions = regions or [name]
    chosen = re.sub(r"\W+", "_", " ".join(regions)).strip("_")[:40]
    digest = hashlib.blake2b("\n".join(regions).encode(), digest_size=3).hexdigest()
    sections = config.model_dump()
    sections["roi"] |= {"sets": {f"{chosen}_{digest}": tuple(regions)}, "masks": masks}
    return Config.model_validate(sections)


def place(chosen: str, subject: str, name: str = "") -> str:
    """The path of a store of a set and a subject."""
    return "/".join(["rois", chosen, subject, name]).rstrip("/")


def averaged(config: Config, subjects: Sequence[str]) -> bool:
    """Whether these are all subjects of the configuration, and several: then their mean is painted too."""
    return len(subjects) > 1 and set(subjects) == set(config.subjects)


def keys(context: Context) -> list[Key]:
    """(set, subject) of all that this run makes; the mean comes last, where every subject takes part."""
    found = []
    for chosen, regions in context.config.roi.sets.items():
        subjects = [s for s in subjects_of(context.config, regions) if s in context.subjects]
        found += [(chosen, subject) for subject in subjects]
        if averaged(context.config, subjects):
            found.append((chosen, MEAN))
    return found


def atlas(context: Context, subject: str, masks: dict[str, Path]) -> Atlas:
    """The regions of a subject over the voxels of `betas/<subject>`. Raises InputError for a mask that does not fit."""
    betas, responses = context.ready(f"betas/{subject}"), context.ready(f"responses/{subject}")
    labels = dict(zip(betas.read("roi").tolist(), betas.read("roi_label"), strict=True))
    at = tuple(betas.read(axis) for axis in "ijk")
    return Atlas(
        vocabulary(context.config),
        labels,
        responses.read("valid") == 1,
        subject,
        context.config.seed,
        {name: _from_file(context.config, subject, path, at) for name, path in masks.items()},
    )


def made(context: Context, subject: str, regions: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of a patterns store: `pattern` (region, voxel) float32, `voxels` (region,) int32."""
    of = atlas(context, subject, masks_used(context.config, regions, subject))
    patterns = np.stack([of.pattern(region) for region in regions])
    return {"pattern": patterns, "voxels": np.count_nonzero(patterns, axis=1).astype(np.int32)}


def voxel_counts(context: Context) -> list[str]:
    """For each region that was painted, its number of voxels in every subject, a line each."""
    lines = []
    for chosen, regions in context.config.roi.sets.items():
        subjects = [subject for name, subject in keys(context) if name == chosen and subject != MEAN]
        counts = {s: context.ready(place(chosen, s, "patterns")).read("voxels") for s in subjects}
        for number, region in enumerate(regions):
            found = ", ".join(f"{subject} {count[number]}" for subject, count in counts.items())
            lines.append(f"{region}: {found} voxels")
    return lines


def _from_file(config: Config, subject: str, path: Path, at: tuple[np.ndarray, ...]) -> np.ndarray:
    """(voxels,) float32 of a NIfTI mask (1 where it is above 0) or of a vector in a .npy file."""
    if path.suffix == ".npy":
        return _vector(path, len(at[0]))
    grid = NSD(config.nsd.root, space=config.nsd.space, preparation=config.nsd.preparation).roi(
        subject, config.nsd.mask
    )
    expected = "a NIfTI mask, or a .npy vector over the voxels of the mask"
    values, affine = read_volume(path, expected, "correct the path, or write the file again")
    if values.shape != grid.data.shape or not np.allclose(affine, grid.affine, atol=1e-3):
        same = values.shape == grid.data.shape
        raise InputError(
            path,
            found=f"a volume of shape {values.shape}" + (f" with the affine {affine.tolist()}" if same else ""),
            expected=f"the grid of {grid.path}: {grid.data.shape}" + (f", {grid.affine.tolist()}" if same else ""),
            meaning=f"Its voxels are not those of {subject}'s betas.",
            action=f"bring the mask into {subject}'s {config.nsd.space} space",
        )
    return (values[at] > 0).astype(np.float32)


def _vector(path: Path, voxels: int) -> np.ndarray:
    values = read_array(path, f"a vector of {voxels} values")
    if values.shape != (voxels,) or not np.isfinite(values).all():
        raise InputError(
            path,
            found=f"shape {values.shape}" + ("" if values.shape != (voxels,) else " with values that are not finite"),
            expected=f"({voxels},): a finite number for each voxel of the mask, in the order of the betas store",
            action="give a z-scored response for every voxel, 0 where there is none",
        )
    return values.astype(np.float32)
