"""The journal of a study: what each run did, task by task, with times; no result depends on it."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from stores.place import RemotePath, place, zarr_store
from stores.spec import ArraySpec
from stores.store import no_space, text

ROOT = "runs"
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

    def record(
        self,
        work: str,
        attrs: Mapping[str, Any],
        seconds: Sequence[float],
        attempts: Sequence[int],
        workers: Sequence[str],
        costs: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Write down finished tasks; `costs` are the columns of `COSTS`, all of them or none."""
        with no_space(self.study):
            root = zarr.open_group(zarr_store(self.study), mode="r+", use_consolidated=False, zarr_format=3)
            run = root.require_group(ROOT).require_group(self.name)
            run.attrs.put(self.attrs)
            self.count += 1
            group = run.require_group(f"{self.count:02d}-{work.replace(' ', '-')}")
            values: dict[str, Sequence[Any]] = {"seconds": seconds, "attempts": attempts, "worker": workers}
            values |= costs or {}
            for spec in (*COLUMNS, *(COSTS if costs else ())):
                value = values[spec.name]
                column = text(value) if spec.dtype == "str" else np.array(value, spec.dtype)
                spec.create(group, {"task": len(seconds)})[...] = column
            group.attrs.put({"work": work, **attrs})


def entries(study: str | Path | RemotePath) -> list[dict[str, Any]]:
    """Every piece of work of every run, oldest first: its attributes, `run`, and the columns as arrays.

    Journals of early versions lack the columns of `COSTS`.
    """
    found = []
    root = zarr.open_group(zarr_store(place(study)), mode="r", use_consolidated=False, zarr_format=3)
    if ROOT not in root:
        return []
    runs = root[ROOT]
    assert isinstance(runs, zarr.Group)
    for name, run in sorted(runs.groups()):
        for _, group in sorted(run.groups()):
            arrays = dict(group.arrays())
            known = (spec.name for spec in (*COLUMNS, *COSTS) if spec.name in arrays)
            columns = {name: np.asarray(arrays[name][...]) for name in known}
            if all(spec.name in columns for spec in COLUMNS) and "work" in group.attrs:
                found.append({"run": name, **dict(group.attrs), **columns})
    return found
