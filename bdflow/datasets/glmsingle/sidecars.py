"""What a file's JSON sidecar says of its values, as BIDS has it; and the words of units."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, TypeVar

from bdflow.datasets.contract import Units
from bdflow.errors import InputError
from bdflow.stores.paths import AnyPath

UNITS: Mapping[str, Units] = {
    "percent signal change": "percent signal change",
    "% signal change": "percent signal change",
    "percent": "percent signal change",
    "%": "percent signal change",
    "psc": "percent signal change",
    "z": "z",
    "z-score": "z",
    "z-scores": "z",
    "zscore": "z",
    "arbitrary": "arbitrary",
    "arbitrary units": "arbitrary",
    "a.u.": "arbitrary",
    "au": "arbitrary",
}
"""Units of betas by what a sidecar may say, in small letters."""

CeilingUnit = Literal["ncsnr", "percent", "fraction"]
CEILINGS: Mapping[str, CeilingUnit] = {
    "ncsnr": "ncsnr",
    "noise ceiling snr": "ncsnr",
    "percent": "percent",
    "%": "percent",
    "percent of variance": "percent",
    "% of variance": "percent",
    "percent variance explained": "percent",
    "fraction": "fraction",
    "fraction of variance": "fraction",
    "proportion of variance": "fraction",
}
"""Units of noise ceilings by what a sidecar may say, in small letters."""


def sidecar_path(path: AnyPath) -> AnyPath:
    """The JSON file of the same name."""
    name = path.name.removesuffix(".gz").rpartition(".")[0]
    return path.with_name(f"{name}.json")


def sidecar(path: AnyPath) -> dict[str, object]:
    """What the sidecar of a file says; nothing where there is none. Raises InputError for a damaged one."""
    place = sidecar_path(path)
    if not place.is_file():
        return {}
    try:
        found = json.loads(place.read_bytes())
    except ValueError as error:
        raise InputError(
            place, found=f"no JSON ({error})", expected="JSON in UTF-8", action="write the file again"
        ) from error
    if not isinstance(found, dict):
        raise InputError(
            place, found="JSON without keys", expected="an object with keys", action="write the file again"
        )
    return found


U = TypeVar("U", Units, CeilingUnit)


def unit_in(
    said: Mapping[str, object], words: Mapping[str, U], path: AnyPath, action: str, *, needed: bool
) -> U | None:
    """The unit that a sidecar states; None if it states none. Raises InputError for one that is not known, if it is
    `needed`.
    """
    unit = said.get("Units")
    if unit is None:
        return None
    found = words.get(" ".join(unit.lower().split())) if isinstance(unit, str) else None
    if found is None and needed:
        raise InputError(
            f"{sidecar_path(path)}, Units",
            found=f"{unit!r:.200}",
            expected=", ".join(words),
            action=action,
        )
    return found
