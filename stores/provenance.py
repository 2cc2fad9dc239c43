"""What a store was made from: settings, input files, upstream stores, versions; and the fingerprint of it all."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from bdflow.stores.metadata import fingerprint_of

if TYPE_CHECKING:
    from zarr.core.common import JSON

FORMAT = 4
PACKAGES = (
    "bdflow",
    "numpy",
    "scipy",
    "zarr",
    "xarray",
    "dask",
    "ray",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
)


@dataclass(frozen=True)
class Provenance:
    """Everything that decides the content of a store.

    Attributes
    ----------
    stage : the stage that fills the store.
    settings : the settings that shape its content (JSON values); how and where work ran is not among them.
    inputs : content identity of every file read, by name.
    upstream : fingerprint of every store read, by path in the study.
    method : number of the way in which the stage computes it; it rises when a mistake in the stage is mended.
    chunks : settings that shape how the store is cut, never its values (JSON values).
    arithmetic : what decides how values round, such as the kind of device (JSON values). It is recorded, and no part
        of the fingerprint: a finished store stays as it is. One that is half filled is not gone on with otherwise.
    """

    stage: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    upstream: Mapping[str, str] = field(default_factory=dict)
    method: int = 1
    chunks: Mapping[str, Any] = field(default_factory=dict)
    arithmetic: Mapping[str, Any] = field(default_factory=dict)

    def _content(self) -> dict[str, JSON]:
        content = {
            "format": FORMAT,
            "stage": self.stage,
            "method": self.method,
            "settings": dict(self.settings),
            "inputs": dict(self.inputs),
            "upstream": dict(self.upstream),
            "chunks": dict(self.chunks),
        }
        found: dict[str, JSON] = json.loads(json.dumps(content, sort_keys=True))
        return found

    @property
    def fingerprint(self) -> str:
        """Hex digest of all of the above; package versions are recorded but do not make a store stale."""
        return fingerprint_of(self._content())

    @property
    def content(self) -> str:
        """Fingerprint of the values alone, however they are cut: what stores that are made from it depend on."""
        return replace(self, chunks={}).fingerprint

    def attrs(self) -> dict[str, JSON]:
        """The record kept in the store's attributes."""
        arithmetic = json.loads(json.dumps(dict(self.arithmetic), sort_keys=True))
        return {
            **self._content(),
            "fingerprint": self.fingerprint,
            "arithmetic": arithmetic,
            "versions": versions(),
        }


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that computed the study."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def differences(recorded: Mapping[str, object], expected: Provenance) -> list[str]:
    """What changed between a store's record and what is expected now, one line each; empty if nothing."""
    if recorded.get("fingerprint") == expected.fingerprint:
        return []
    now = expected._content()
    lines: list[str] = []
    for section in ("format", "stage", "method", "settings", "inputs", "upstream", "chunks"):
        for key, old, new in _changes(recorded.get(section), now[section], ""):
            name = f"{section}{key}"
            if section == "upstream":
                lines.append(f"{_UPSTREAM}{key.lstrip('.')} was made differently")
            elif section == "method":
                lines.append(f"made by method {old} of the stage, which is now at {new}: a mistake was mended")
            elif section == "inputs":
                lines.append(f"input {key.lstrip('.')} is another file now")
            else:
                lines.append(f"{name}: made with {_short(old)}, now {_short(new)}")
    return lines or ["its record is damaged"]


def grouped(why: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Stores by what changed: `why` are the lines of `differences` by store. Stores that have only come out otherwise
    because those that they are made from did are one group.
    """
    found: dict[str, list[str]] = {}
    for path, reasons in why.items():
        own = [reason for reason in reasons if not reason.startswith(_UPSTREAM)]
        found.setdefault("; ".join(own) or "made from stores that were made differently", []).append(path)
    return found


def other_arithmetic(recorded: Mapping[str, object], expected: Provenance) -> list[str]:
    """How values would round otherwise than those that a store holds, one line each; empty if they would not."""
    now = expected.attrs()["arithmetic"]
    return [
        f"{key.lstrip('.')}: begun with {_short(old)}, now {_short(new)}; one store does not hold both"
        for key, old, new in _changes(recorded.get("arithmetic", {}), now, "")
    ]


_ABSENT = object()
_UPSTREAM = "upstream store "


def _changes(old: object, new: object, key: str) -> Iterator[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from _changes(old.get(name, _ABSENT), new.get(name, _ABSENT), f"{key}.{name}")
    elif old != new:
        yield key, old, new


def _short(value: object) -> str:
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
