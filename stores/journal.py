"""The journal of a study: what each run did, task by task, with times; no result depends on it."""

from __future__ import annotations

import datetime
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from bdflow.stores import metadata
from bdflow.stores.entries import Kind
from bdflow.stores.entries import entries as entries_of
from bdflow.stores.errors import StoreError, disk_full_as_error
from bdflow.stores.paths import AnyPath, RemotePath, place, zarr_store
from bdflow.stores.spec import ArraySpec, create_arrays
from bdflow.stores.store import text

log = logging.getLogger(__name__)

# of a part of the journal that cannot be read
ONLY_JOURNAL = "It is of the journal, which holds times and memory and no results; delete it to see this no more."
ROOT = "runs"
INPUTS = f"{ROOT}/inputs"
COLUMNS = (
    ArraySpec("seconds", ("task",), "f8", "time the worker took", "s"),
    ArraySpec("attempts", ("task",), "i2", "workers that tried"),
    ArraySpec("worker", ("task",), "str", "host and process"),
)
COSTS = (
    ArraySpec("read", ("task",), "i8", "bytes the worker read from files meanwhile; 0 if unknown", "byte"),
    ArraySpec("written", ("task",), "i8", "bytes the worker wrote to files meanwhile; 0 if unknown", "byte"),
    ArraySpec("peak", ("task",), "i8", "the worker's resident memory at its highest; 0 if unknown", "byte"),
    ArraySpec("what", ("task",), "str", "the task"),
)


_RUN = re.compile(r"\d{8}T\d{6}\.\d{6}-\d+")
_ENTRY = re.compile(r"\d{2,}-.+")


def belongs(parts: tuple[str, ...]) -> Kind | None:
    """What belongs at a place below `runs`, given as parts of its name; None for nothing."""
    if parts[-1] == metadata.FILE:
        return "file" if len(parts) == 1 or (belongs(parts[:-1]) == "folder" and "c" not in parts[2:]) else None
    digests = parts[0] == INPUTS.rpartition("/")[2]
    if not digests and not (_RUN.fullmatch(parts[0]) and (len(parts) == 1 or _ENTRY.fullmatch(parts[1]))):
        return None
    array = parts[1:] if digests else parts[2:]
    if not array:
        return "folder"
    known = {metadata.COPY, *(("digests",) if digests else (spec.name for spec in (*COLUMNS, *COSTS)))}
    if array[0] not in known or array[1:2] not in ((), ("c",)):
        return None
    return "folder" if len(array) < 3 else "file" if len(array) == 3 and array[2].isdecimal() else None


class Journal:
    """One run of one study; each piece of work becomes a group `runs/<run>/<n>-<work>`."""

    def __init__(self, study: str | Path | RemotePath, command: str) -> None:
        self.study = place(study)
        self.started = datetime.datetime.now(datetime.UTC)
        self.name = f"{self.started:%Y%m%dT%H%M%S.%f}-{os.getpid()}"
        self.attrs: dict[str, Any] = {
            "command": command,
            "host": socket.gethostname(),
            "started": self.started.isoformat(),
        }
        self.count = 0

    def note(self, work: str, attrs: Mapping[str, object]) -> None:
        """Write down something about a piece of work while it goes on, as an entry without columns."""
        about: dict[str, Any] = {**self.attrs, "work": work, **attrs}
        with disk_full_as_error(self.study):
            shown = metadata.folded({"title": work}, about)
            metadata.finish(zarr_store(self.study), self._entry(f"{work} note"), shown)

    def _entry(self, work: str) -> str:
        """Path in the study of a new group."""
        self.count += 1
        path = f"{ROOT}/{self.name}/{self.count:02d}-{work.replace(' ', '-')}"
        metadata.groups_down_to(zarr_store(self.study), self.study, path)
        return path

    def record(
        self,
        work: str,
        attrs: Mapping[str, object],
        seconds: Sequence[float],
        attempts: Sequence[int],
        workers: Sequence[str],
        costs: Mapping[str, Sequence[object]] | None = None,
    ) -> None:
        """Write down finished tasks; `costs` are the columns of `COSTS`, all of them or none."""
        with disk_full_as_error(self.study):
            name = self._entry(work)
            values: dict[str, Sequence[object]] = {"seconds": seconds, "attempts": attempts, "worker": workers}
            values |= costs or {}
            specs = (*COLUMNS, *(COSTS if costs else ()))
            sizes = {"task": len(seconds)}
            arrays = create_arrays(zarr_store(self.study), name, [(spec, sizes) for spec in specs])
            for spec in specs:
                value = values[spec.name]
                arrays[spec.name][...] = text(value) if spec.dtype == "str" else np.array(value, spec.dtype)
            about: dict[str, Any] = {**self.attrs, "work": work, **attrs}
            metadata.finish(zarr_store(self.study), name, metadata.folded({"title": work}, about), arrays)


def groups(study: AnyPath) -> Iterator[str]:
    """Path of every entry of the journal, oldest first."""
    for run, kind in entries_of(study / ROOT).items():
        if kind == "folder" and f"{ROOT}/{run}" != INPUTS:
            yield from (f"{ROOT}/{run}/{name}" for name, of in entries_of(study / ROOT / run).items() if of == "folder")


def makers(study: str | Path | RemotePath) -> dict[str, list[dict[str, str]]]:
    """What the partitions of each store were made on, by its path: `made_on` of the notes since it was empty."""
    where = place(study)
    found: dict[str, list[dict[str, str]]] = {}
    for path in groups(where):
        try:
            attrs = metadata.attributes_of(metadata.read_document(where / path / metadata.FILE))
        except metadata.Unreadable:
            continue
        if not isinstance(attrs.get("made_on"), dict):
            continue
        for store in attrs.get("fills", ()):
            earlier = [] if store in attrs.get("empty", ()) else found.get(store, [])
            found[store] = [*earlier, attrs["made_on"]]
    return found


def entries(study: str | Path | RemotePath) -> list[dict[str, Any]]:
    """Every piece of work of every run, oldest first: its attributes, `run`, and the columns as arrays.

    Journals of early versions lack the columns of `COSTS`. What is damaged is left out, with a warning.
    """
    where, found = place(study), []
    for path in groups(where):
        damage = next(iter(metadata.damage_of_group(where, path, required=False)), None)
        if damage is not None:
            log.warning("%s: left out, since its metadata is damaged (%s). %s", path, damage.file, ONLY_JOURNAL)
            continue
        try:
            group = zarr.open_group(zarr_store(where), path=path, mode="r", use_consolidated=False, zarr_format=3)
            arrays = dict(group.arrays())
            known = (spec.name for spec in (*COLUMNS, *COSTS) if spec.name in arrays)
            columns = {name: np.asarray(arrays[name][...]) for name in known}
            about = metadata.unfolded(dict(group.attrs))
        except StoreError:
            raise
        except (ValueError, RuntimeError, OSError) as error:
            log.warning("%s: left out, since it cannot be read (%s). %s", path, error, ONLY_JOURNAL)
            continue
        if all(spec.name in columns for spec in COLUMNS) and "work" in about:
            found.append({"run": path.split("/")[1], **about, **columns})
    return found
