"""Masks, regions and noise ceilings of a lab's tree: `_mask`, `_dseg` and `_statmap` files, as BIDS has them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bdflow.datasets.contract import NoiseCeiling
from bdflow.datasets.formats.tables import read_table
from bdflow.datasets.formats.volumes import Volume, read_volume
from bdflow.datasets.glmsingle.options import VOLUMES, GLMsingleSettings
from bdflow.datasets.glmsingle.patterns import Found, Pattern, absent, option
from bdflow.datasets.glmsingle.sidecars import CEILINGS, CeilingUnit, sidecar, sidecar_path, unit_in
from bdflow.datasets.glmsingle.trials import NOTHING
from bdflow.errors import InputError, counted, listed
from bdflow.stores.paths import AnyPath

log = logging.getLogger(__name__)

SINGLE = "masks"
"""Collection of the regions of `_mask` files whose names state none."""


@dataclass(frozen=True)
class RegionFile:
    """A file of regions.

    Attributes
    ----------
    path : the volume.
    table : names of its labels; None: one region, whose voxels are 1.
    collection : name.
    labels : name of each label above and below 0; of one region, its name by 1.
    """

    path: AnyPath
    table: AnyPath | None
    collection: str
    labels: Mapping[int, str]


def region_files(root: AnyPath, subject: str, settings: GLMsingleSettings) -> list[RegionFile]:
    """The files of a subject's regions, without reading volumes.

    Raises
    ------
    InputError : a `_dseg` file without a table of names, two regions of one name.
    """
    found: list[RegionFile] = []
    for text in settings.regions:
        for file in Pattern("regions", text, {"subject": subject}).find(root):
            found.append(_region_file(root, file, subject, settings))
    places: dict[str, AnyPath] = {}
    for one in found:
        for name in one.labels.values():
            key = f"{one.collection}/{name}"
            if key in places:
                raise InputError(
                    one.path,
                    found=f"a second region {key}, beside that of {places[key]}",
                    expected="each region once",
                    action=f"write {option('regions')} so that it fits one of the files alone",
                )
            places[key] = one.path
    return found


def _region_file(root: AnyPath, file: Found, subject: str, settings: GLMsingleSettings) -> RegionFile:
    collection = file.values.get("collection", SINGLE)
    if "region" in file.values:
        return RegionFile(file.path, None, collection, {1: file.values["region"]})
    if settings.region_tables is None:
        name = next(file.path.name.removesuffix(ending) for ending in VOLUMES if file.path.name.endswith(ending))
        table = file.path.with_name(f"{name}.tsv")
        if not table.is_file():
            raise absent(table, f"names of the regions in {file.path} (columns index, name)", "region_tables")
    else:
        pattern = Pattern("region_tables", settings.region_tables, {"subject": subject, "collection": collection})
        table = pattern.need(root, f"names of the regions in {file.path} (columns index, name)")
    return RegionFile(file.path, table, collection, _labels(table))


def _labels(path: AnyPath) -> dict[int, str]:
    """Names of labels; 0 is no region, whatever the table calls it."""
    table = read_table(path, "names of regions", ("index", "name"))
    found: dict[int, str] = {}
    for index, name in zip(table.whole("index"), table.column("name"), strict=True):
        if name in NOTHING or index in found or (index and name in found.values()):
            raise InputError(
                path,
                found=f"the index {index} with {'no name' if name in NOTHING else f'the name {name!r}'}"
                + ("" if name in NOTHING else ", one of which is there before"),
                expected="each index once, with a name of its own",
                action="correct the table",
            )
        if index:
            found[index] = name
    return found


def read_regions(file: RegionFile) -> Iterator[tuple[str, np.ndarray]]:
    """Each region of a file: `collection/name`, (x, y, z) bool.

    Raises
    ------
    InputError : a damaged file, labels that are not whole, labels without a name, a mask of several values.
    """
    if file.table is None:
        (name,) = file.labels.values()
        yield f"{file.collection}/{name}", read_mask(file.path, empty=True)
        return
    data = _whole(volume(file.path, "a volume of labels", "regions"))
    unknown = sorted(set(np.unique(data).tolist()) - {0, *file.labels})
    if unknown:
        raise InputError(
            file.path,
            found=f"the labels {listed(unknown)}",
            expected=f"labels that {file.table} names: {listed(sorted(file.labels))}",
            meaning="Which regions these voxels belong to is not said",
            action="complete the table, or take volume and table from the same atlas",
        )
    for index, name in file.labels.items():
        yield f"{file.collection}/{name}", data == index


def read_mask(path: AnyPath, *, empty: bool = False) -> np.ndarray:
    """(x, y, z) bool of a mask. Raises InputError for several values beside 0, and for none of them unless `empty`."""
    data = _whole(volume(path, "a mask", "mask"))
    values = sorted(set(np.unique(data).tolist()) - {0})
    if len(values) > 1 or (values and values[0] < 0) or not (values or empty):
        raise InputError(
            path,
            found=f"the values {listed([0, *values])}" if values else "no voxel above 0",
            expected="a mask: 0 outside and 1 inside",
            meaning="A file of several labels is no mask" if values else "No voxel is in the mask",
            action="choose another file, or write it as `_dseg` with a table of its labels",
        )
    return data > 0


def volume(path: AnyPath, what: str, name: str) -> Volume:
    """A volume whose place an option says. Raises InputError."""
    return read_volume(path, f"{what} in NIfTI", f"write the file again, or correct {option(name)}")


def _whole(found: Volume) -> np.ndarray:
    """(x, y, z) int64. Raises InputError for values that are not whole."""
    data = found.data
    with np.errstate(invalid="ignore"):
        bad = ~np.isfinite(data) | (data != np.round(data)) | (np.abs(data) > 2**31)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            found.path,
            found=f"{data[at]:.10g} at {at}",
            expected="whole numbers: 0 outside, and the label of a region inside",
            meaning="It is a map of values, which is neither a mask nor a volume of labels",
            action="make a mask of 0 and 1 by a threshold of your choice, or choose another file",
        )
    return data.astype(np.int64)


def read_ceiling(path: AnyPath, settings: GLMsingleSettings) -> NoiseCeiling:
    """A map of noise ceilings, with the unit and the repeats that its sidecar or the settings say.

    Raises
    ------
    InputError : neither says the unit or, of a percentage or fraction, the repeats; values that are none in the unit.
    """
    data, said = volume(path, "a map of noise ceilings", "noise_ceiling").data, sidecar(path)
    action = f"set {option('noise_ceiling_unit')} to ncsnr, percent or fraction"
    stated = unit_in(said, CEILINGS, path, action, needed=settings.noise_ceiling_unit is None)
    unit = settings.noise_ceiling_unit or stated
    if unit is None:
        raise InputError(
            path,
            found=f"values without a unit ({sidecar_path(path)} has no `Units`, or is not there)",
            expected="the unit of the noise ceiling",
            action=action,
        )
    repeats = _repeats(said, settings, path) if unit != "ncsnr" else None
    for what, was, now in (("Units", stated, unit), ("Repeats", said.get("Repeats"), repeats)):
        if was is not None and now is not None and was != now:
            log.warning(
                "%s says %s of `%s`; the configuration says %s, and counts.", sidecar_path(path), was, what, now
            )
    _check_ceiling(data, unit, path)
    return NoiseCeiling(data, unit, repeats)


def _repeats(said: Mapping[str, object], settings: GLMsingleSettings, path: AnyPath) -> int:
    repeats = settings.noise_ceiling_repeats
    found = said.get("Repeats") if repeats is None else repeats
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise InputError(
            f"{sidecar_path(path)}, Repeats",
            found="nothing" if found is None else f"{found!r:.200}",
            expected="how many trials of a stimulus the noise ceiling is for the mean of",
            meaning="A share of explainable variance is another one for each number of repeats",
            action=f"say it there, or set {option('noise_ceiling_repeats')}",
        )
    return found


def _check_ceiling(data: np.ndarray, unit: CeilingUnit, path: AnyPath) -> None:
    known = data[~np.isnan(data)]
    most = {"fraction": 1.0, "percent": 100.0, "ncsnr": np.inf}[unit]
    beyond = known[~np.isfinite(known) | (known > most * (1 + 1e-6)) | ((unit == "ncsnr") & (known < 0))]
    if beyond.size:
        raise InputError(
            path,
            found=f"{counted(beyond.size, 'voxel')} with values such as {beyond[0]:g}",
            expected={"ncsnr": "numbers from 0", "percent": "at most 100", "fraction": "at most 1"}[unit]
            + f", as the unit is {unit}",
            action=f"correct the file, or its unit ({option('noise_ceiling_unit')})",
        )
