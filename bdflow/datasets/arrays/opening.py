"""A prepared dataset opened: from metadata alone, with all that is wrong in them named at once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np

from bdflow.datasets.arrays.forms import SPLITS, STIMULI, SUBJECT, is_number, misfits
from bdflow.datasets.arrays.hierarchy import METADATA, Group, Variable, children, open_group
from bdflow.datasets.contract import Encoding, Units
from bdflow.errors import InputError, NotAtHand, counted, lines, listed
from bdflow.stores.paths import AnyPath

VERSION = 1
PAGE = "docs/arrays.md"
CEILING_UNITS = ("ncsnr", "percent", "fraction")
_WHOLE = 1e-9  # relative difference of a divisor to a whole number that rounding of its inverse explains


@dataclass(frozen=True)
class Hierarchy:
    """A prepared dataset whose groups and arrays have the right form.

    Attributes
    ----------
    root : where it lies.
    stimuli, splits : their groups; no splits: None.
    subjects : the group of each subject, by name, ascending.
    encoding : how betas of all subjects are stored.
    """

    root: AnyPath
    stimuli: Group
    splits: Group | None
    subjects: Mapping[str, Group]
    encoding: Encoding


def open_hierarchy(root: AnyPath) -> Hierarchy:
    """Open a prepared dataset.

    Raises
    ------
    NotAtHand : nothing there. InputError : no dataset of this format, listing all that is wrong with its metadata.
    """
    _require(root)
    found = open_group(root, "")
    wrong = list(_heading(found.attrs))
    there = children(root)
    for name, near in (("stimulus", "stimuli"), ("split", "splits"), ("subject", "subjects")):
        if name in there and near not in there:
            wrong.append(f"{name}: a name that means nothing; did you mean {near}?")
    wrong += [f"no group {name}" for name in ("stimuli", "subjects") if name not in there]
    stimuli = open_group(root, "stimuli", STIMULI) if "stimuli" in there else None
    splits = open_group(root, "splits", SPLITS) if "splits" in there else None
    subjects = {}
    if "subjects" in there:
        open_group(root, "subjects")
        subjects = {name: open_group(root, f"subjects/{name}", SUBJECT) for name in children(root / "subjects")}
        if not subjects:
            wrong.append("subjects: no group in it; expected one for each subject")
    if stimuli is not None:
        wrong += [*misfits(stimuli, STIMULI), *_pictures(stimuli)]
    if splits is not None:
        wrong += misfits(splits, SPLITS)
    for group in subjects.values():
        wrong += [*misfits(group, SUBJECT), *_belonging(group), *_space(group), *_ceiling(group)]
    encodings = {}
    for name, group in subjects.items():
        if "beta" in group:
            problems = list(_coded(group["beta"]))
            wrong += problems
            if not problems:
                encodings[name] = encoding_of(group["beta"])
    wrong += _unlike(encodings)
    refuse(root, wrong)
    assert stimuli is not None
    return Hierarchy(root, stimuli, splits, subjects, next(iter(encodings.values())))


def refuse(where: object, wrong: list[str]) -> None:
    """Raise InputError if there is something in the list."""
    if wrong:
        raise InputError(
            where,
            found=wrong[0] if len(wrong) == 1 else f"{counted(len(wrong), 'thing')} wrong:{lines(wrong)}",
            expected=f"a dataset as {PAGE} describes it",
            meaning="Nothing of it was used.",
            action=f"correct what writes the dataset, write it again, and compare with {PAGE}",
        )


def _require(root: AnyPath) -> None:
    if root.is_file():
        raise InputError(
            root,
            found="a file",
            expected="the folder of a Zarr v3 hierarchy",
            action="unpack it, or correct `dataset.root`",
        )
    if (root / METADATA).is_file():
        return
    if (root / ".zgroup").is_file():
        raise InputError(
            root, found="Zarr v2", expected="Zarr v3", action=f"write it again with `zarr_format=3` ({PAGE})"
        )
    if not root.is_dir():
        raise NotAtHand(
            root,
            found="nothing there",
            expected="a dataset in arrays",
            action=f"correct `dataset.root`, or write the dataset ({PAGE})",
        )
    raise InputError(
        root,
        found=f"a folder without {METADATA}",
        expected="the root of a Zarr v3 hierarchy",
        action=f"correct `dataset.root`, or write the dataset ({PAGE})",
    )


def _heading(attrs: Mapping[str, object]) -> Iterator[str]:
    version, name = attrs.get("bdflow_dataset"), attrs.get("name")
    if isinstance(version, bool) or version != VERSION:
        found = "no attribute bdflow_dataset" if version is None else f"the attribute bdflow_dataset = {version!s:.40}"
        yield f"{found}; expected {VERSION}, the version of the format"
    if not isinstance(name, str) or not name.strip():
        yield "no attribute name; expected the name of the dataset"


def _pictures(group: Group) -> Iterator[str]:
    given = [name for name in ("image", "image_file") if name in group]
    if len(given) != 1:
        yield f"stimuli: {' and '.join(given) or 'neither image nor image_file'}; expected one of the two"
    if "image" in group and len(group["image"].shape) == 4:
        shape = group["image"].shape
        if shape[3] not in (0, 3):
            yield f"stimuli/image: {shape[3]} along rgb; expected 3"


def _belonging(group: Group) -> Iterator[str]:
    """Arrays that mean something only together."""
    for name, other in (("roi", "region"), ("region", "roi"), ("valid", "session_name")):
        if name in group and other not in group:
            yield f"{group.name}: {name} without {other}"
    some = [name for name in "ijk" if name in group]
    if 0 < len(some) < 3:
        yield f"{group.name}: {' and '.join(some)} alone; expected i, j and k, or none of them"


def _space(group: Group) -> Iterator[str]:
    shape, affine = group.attrs.get("shape"), group.attrs.get("affine")
    form = group.attrs.get("affine_form")
    if not any(name in group for name in "ijk"):
        for name in ("shape", "affine", "affine_form"):
            if name in group.attrs:
                yield f"{group.name}: an attribute {name} without i, j and k"
        return
    sizes = shape if isinstance(shape, list) else []
    whole = [size for size in sizes if isinstance(size, int) and not isinstance(size, bool) and size > 0]
    if len(sizes) != 3 or len(whole) != 3:
        found = "no attribute shape" if shape is None else f"the attribute shape = {shape!s:.80}"
        yield f"{group.name}: {found}; expected the numbers of voxels along i, j and k"
    if affine is not None and not _is_affine(affine):
        yield f"{group.name}: the attribute affine = {affine!s:.120}; expected 4 x 4 numbers, voxel to millimetre"
    if form is not None and (affine is None or isinstance(form, bool) or form not in range(1, 6)):
        yield f"{group.name}: the attribute affine_form = {form!s:.40}; expected NIfTI's code, 1 to 5, of an affine"


def _is_affine(value: object) -> bool:
    rows = value if isinstance(value, list) else []
    if len(rows) != 4 or not all(isinstance(row, list) and len(row) == 4 and all(map(is_number, row)) for row in rows):
        return False
    affine = np.array(rows, np.float64)
    return bool((affine[3] == [0, 0, 0, 1]).all() and abs(np.linalg.det(affine[:3, :3])) > 0)


def _ceiling(group: Group) -> Iterator[str]:
    if "noise_ceiling" not in group:
        return
    variable = group["noise_ceiling"]
    unit, repeats = variable.attrs.get("units"), variable.attrs.get("repeats")
    if unit not in CEILING_UNITS:
        found = "no attribute units" if unit is None else f"the attribute units = {unit!s:.40}"
        yield f"{variable.name}: {found}; expected {', '.join(CEILING_UNITS[:-1])} or {CEILING_UNITS[-1]}"
    elif repeats is None and unit != "ncsnr":
        yield f"{variable.name}: no attribute repeats; expected how many trials a stimulus the {unit} is for"
    if repeats is not None and (not is_number(repeats) or repeats < 1 or repeats != int(repeats)):
        yield f"{variable.name}: the attribute repeats = {repeats!s:.40}; expected a whole number, 1 or more"


# --- betas ----------------------------------------------------------------------------------------------------


def _coded(beta: Variable) -> Iterator[str]:
    """What is wrong with how betas are stored."""
    attrs, whole = beta.attrs, beta.dtype.kind == "i"
    units, saturates = attrs.get("units"), attrs.get("saturates")
    if units not in get_args(Units):
        found = "no attribute units" if units is None else f"the attribute units = {units!s:.40}"
        yield f"{beta.name}: {found}; expected {', '.join(get_args(Units)[:-1])} or {get_args(Units)[-1]}"
    if saturates is not None and saturates not in (0, 1):
        yield f"{beta.name}: the attribute saturates = {saturates!s:.40}; expected true or false"
    elif saturates and not whole:
        yield f"{beta.name}: an attribute saturates; expected none: only int16 ends at -32768 and 32767"
    scale = attrs.get("scale_factor", 1)
    if whole and not (is_number(scale) and scale > 0 and math.isfinite(1 / scale)):
        yield f"{beta.name}: the attribute scale_factor = {scale!s:.40}; expected a number above 0"


def encoding_of(beta: Variable) -> Encoding:
    """How betas are stored, of an array whose attributes are right: a value times `scale_factor` is in the unit."""
    units: Units = beta.attrs["units"]
    if beta.dtype.kind == "f":
        return Encoding("float32", units)
    divisor = 1 / float(beta.attrs.get("scale_factor", 1))
    whole = round(divisor)
    if whole and abs(divisor - whole) <= _WHOLE * whole:
        divisor = float(whole)
    return Encoding("int16", units, divisor, bool(beta.attrs.get("saturates", False)))


def _unlike(encodings: Mapping[str, Encoding]) -> Iterator[str]:
    """That subjects' betas are stored in more than one way, and which in which."""
    groups = defaultdict(list)
    for subject, encoding in encodings.items():
        groups[encoding].append(subject)
    if len(groups) > 1:
        ways = "; ".join(f"{listed(subjects)}: {_in_words(encoding)}" for encoding, subjects in groups.items())
        yield f"betas that are stored in {len(groups)} ways ({ways}); expected one type, unit and scale for all"


def _in_words(encoding: Encoding) -> str:
    scale = "" if encoding.divisor == 1 else f" / {encoding.divisor:.10g}"
    ends = ", saturates" if encoding.cut_off else ""
    return f"{encoding.dtype}{scale}, {encoding.units}{ends}"
