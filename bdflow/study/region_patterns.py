"""Voxel patterns of a subject's regions, as the study holds them, and from a user's own files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

import numpy as np

from bdflow import npy
from bdflow.config import Config
from bdflow.datasets.formats.grids import Grid, check_same_grid, stated
from bdflow.datasets.formats.identity import identity
from bdflow.datasets.formats.volumes import labelled, read_volume
from bdflow.datasets.reader import open_dataset
from bdflow.errors import InputError, NotAtHand, counted
from bdflow.regions.language import Atlas, Vocabulary
from bdflow.stores import Store
from bdflow.study import keys
from bdflow.study.decoder import read_array
from bdflow.study.designs import Design, averaged_design
from bdflow.study.stage import MEAN, Context

log = getLogger(__name__)

Key = tuple[str, str]


def vocabulary(config: Config) -> Vocabulary:
    """The names that regions may have: those of the dataset, aggregates, and the configuration's masks.

    Raises InputError for a name with two meanings.
    """
    data = open_dataset(config)
    return Vocabulary(data.known_regions(), data.mask_name, tuple(config.roi.masks))


def masks_used(config: Config, regions: Sequence[str], subject: str) -> dict[str, Path]:
    """The configuration's masks that these regions name, and their files for the subject (those it has).

    Raises InputError for a file that is not there, and for an expression that cannot be read.
    """
    words = vocabulary(config)
    named = {name for region in regions for name in words.check(region)}
    files = {name: of[subject] for name, of in config.roi.masks.items() if name in named and subject in of}
    for name, file in files.items():
        if not file.is_file():
            raise NotAtHand(
                file,
                found="no such file",
                expected=f"the mask {name} of {subject}: NIfTI, or a .npy vector",
                action="correct the path",
            )
    return files


def subjects_of(config: Config, regions: Sequence[str]) -> list[str]:
    """The subjects that have every mask these regions name. Raises InputError if none has."""
    words = vocabulary(config)
    named = {name for region in regions for name in words.check(region)}
    used = [of for name, of in config.roi.masks.items() if name in named]
    found = [subject for subject in config.everybody if all(subject in of for of in used)]
    if not found:
        raise InputError(
            "roi.masks",
            found=f"no subject with every mask that {', '.join(regions)} names",
            expected="a file for at least one of " + ", ".join(config.everybody),
            action="add the missing files, or leave the region out",
        )
    return [subject for subject in found if subject in config.subjects]


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
                "mask",
                found=counted(len(subjects), "subject"),
                expected="the one subject whose voxels the mask is of",
                action="name one subject, such as subj01",
            )
        name = re.sub(r"\W", "_", mask.name.split(".")[0])
        name = name if re.match("[A-Za-z]", name) else f"mask_{name}"
        masks[name] = {subjects[0]: mask}
        regions = regions or [name]
    chosen = re.sub(r"\W+", "_", " ".join(regions), flags=re.ASCII).strip("_")[:40]
    digest = hashlib.blake2b("\n".join(regions).encode(errors="backslashreplace"), digest_size=3).hexdigest()
    roi = config.roi.model_copy(update={"sets": {f"{chosen}_{digest}": tuple(regions)}, "masks": masks})
    return config.model_copy(update={"roi": roi})


def averaged(config: Config, subjects: Sequence[str]) -> bool:
    """Whether these are all subjects of the study, and several: then their mean is painted too."""
    return len(subjects) > 1 and set(subjects) == set(config.everybody)


def keys_of(context: Context) -> list[Key]:
    """(set, subject) of all that this run makes; the mean comes last, where every subject takes part."""
    found = []
    for chosen, regions in context.config.roi.sets.items():
        subjects = [s for s in subjects_of(context.config, regions) if s in context.subjects]
        found += [(chosen, subject) for subject in subjects]
        if averaged(context.config, subjects):
            found.append((chosen, MEAN))
    return found


def atlas(context: Context, subject: str, masks: dict[str, Path]) -> Atlas:
    """The regions of a subject over the voxels of its betas. Raises InputError for a mask that does not fit."""
    betas = context.ready(keys.betas(subject))
    responses = context.ready(keys.responses(subject, averaged_design(context.config).responses))
    regions = dict(zip(betas.read("region").tolist(), betas.read("roi") == 1, strict=True))
    return Atlas(
        vocabulary(context.config),
        regions,
        responses.read("valid") == 1,
        subject,
        context.config.seed,
        {name: _from_file(subject, path, betas) for name, path in masks.items()},
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
        subjects = [subject for name, subject in keys_of(context) if name == chosen and subject != MEAN]
        counts = {s: context.ready(keys.region_patterns(chosen, s)).read("voxels") for s in subjects}
        for number, region in enumerate(regions):
            found = ", ".join(f"{subject} {count[number]}" for subject, count in counts.items())
            lines.append(f"{region}: {found} voxels")
    return lines


def _from_file(subject: str, path: Path, betas: Store) -> np.ndarray:
    """(voxels,) float32 of a NIfTI mask (1 where its label is above 0) or of a vector in a .npy file.

    Raises InputError for a mask on another grid, or with values that are no labels.
    """
    at = tuple(betas.read(axis) for axis in "ijk")
    if path.suffix == ".npy":
        return _vector(path, len(at[0]))
    expected = "a NIfTI mask, or a .npy vector over the voxels of the mask"
    volume = labelled(read_volume(path, expected, "correct the path, or write the file again"))
    affine = stated(betas.read("affine"), int(betas.read("affine_form")[0]))
    grid = Grid(betas.path, tuple(betas.read("grid").tolist()), affine)
    check_same_grid((grid, volume.grid), f"{subject} and the mask")
    if volume.stated is None and grid.affine is not None:
        log.warning("%s: its header says nothing of its axes; voxels are matched by their index.", path)
    return (volume.data[at] > 0).astype(np.float32)


def _vector(path: Path, voxels: int) -> np.ndarray:
    values = read_array(path, f"a vector of {voxels} values")
    values = values.astype(np.float32) if values.dtype == bool else values
    npy.real(path, values, f"({voxels},): a number, or a truth, for each voxel of the mask")
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if values.shape != (voxels,) or not np.isfinite(found).all():
        raise InputError(
            path,
            found=f"shape {values.shape}" + ("" if values.shape != (voxels,) else " with values that are not finite"),
            expected=f"({voxels},): a finite number for each voxel of the mask, in the order of the betas store",
            action="give a z-scored response for every voxel, 0 where there is none",
        )
    return found


def mask_inputs(config: Config, regions: Sequence[str], subject: str) -> dict[str, str]:
    """Digests of the masks that these regions name, by name."""
    return {f"mask {name}": identity(file) for name, file in masks_used(config, regions, subject).items()}


def can_be_told(context: Context, subject: str, *responses: str) -> bool:
    """Whether the study holds what says which voxels a subject's regions have, in the valid ones of these responses."""
    needed = {*responses, averaged_design(context.config).responses}
    return all(context.is_sealed(key) for key in (keys.betas(subject), *(keys.responses(subject, of) for of in needed)))


def used_voxels(context: Context, subject: str, design: Design) -> np.ndarray:
    """(voxels,) bool: those that a design is fitted on, valid and in its regions.

    Raises
    ------
    InputError : an expression that is not of the language of regions, or gives voxels a negative weight; no voxel.
    """
    valid: np.ndarray = context.ready(keys.responses(subject, design.responses)).read("valid") == 1
    if design.regions is None:
        return valid
    pattern = made(context, subject, [design.regions])["pattern"][0]
    if (pattern < 0).any():
        raise InputError(
            f"regions {design.regions!r}",
            found="voxels with a negative weight",
            expected="a set of voxels",
            meaning="`-` subtracts patterns; to leave voxels out, use `\\`.",
            action="correct `regions` of the space, or of `ridge`",
        )
    used: np.ndarray = valid & (pattern > 0)
    if not used.any():
        raise InputError(
            f"regions {design.regions!r} of {subject}",
            found="no voxel of the mask that varies over the training stimuli",
            expected="voxels to decode from",
            action="choose other regions, or a larger mask",
        )
    return used
