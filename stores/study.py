"""A study: one Zarr hierarchy that holds every store of one configuration. Only the driver declares and removes."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.core.sync import sync

from stores import journal
from stores.errors import NotReady, StoreError
from stores.place import AnyPath, RemotePath, place, remove_leftovers, remove_tree, zarr_store
from stores.provenance import FORMAT, Provenance, differences
from stores.spec import ArraySpec, Sizes, StoreSpec
from stores.store import PROGRESS, Store, digest, every_chunk, no_space

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """How far a store is: `absent`, `partial`, `sealed` or `stale` (made from something else; `why` says what)."""

    kind: Literal["absent", "partial", "sealed", "stale"]
    done: int = 0
    total: int = 0
    why: list[str] = field(default_factory=list)


class Study:
    """A study at `location`: a directory, or a URL (s3://, gs://, memory://) of an object store; created by `create`,
    found by everything else.

    Raises
    ------
    StoreError : the location is a URL of another kind, or holds something that is not a study.
    """

    def __init__(self, location: str | Path | RemotePath) -> None:
        self.path: AnyPath = place(location)
        if isinstance(self.path, RemotePath) and not self.path.name:
            raise StoreError(
                f"{self.path}: found a whole bucket; expected a place in it, such as {self.path}/study.zarr.\n"
                "The lock of a study lies beside it.\nWhat to do: correct `study` in the configuration."
            )

    @property
    def _backend(self) -> ZarrStore:
        return zarr_store(self.path)

    @property
    def exists(self) -> bool:
        return (self.path / "zarr.json").is_file()

    def create(self, title: str, attrs: Mapping[str, Any]) -> None:
        """Make the root group, or renew its attributes; forget consolidated metadata until `consolidate`."""
        if not self.exists and self._occupied():
            raise StoreError(
                f"{self.path}: found a directory with other files; expected a study or nothing.\n"
                "What to do: choose another `study` in the configuration, or empty that directory."
            )
        with no_space(self.path):
            if isinstance(self.path, Path):
                self.path.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path, below=False)
            root = (
                zarr.open_group(self._backend, mode="r+", use_consolidated=False, zarr_format=3)
                if self.exists
                else zarr.create_group(self._backend, zarr_format=3)
            )
            root.attrs.put({"title": title, "format": FORMAT, **attrs})

    def _occupied(self) -> bool:
        if isinstance(self.path, RemotePath):
            return self.path.is_dir()
        return self.path.exists() and any(self.path.iterdir())

    def root(self) -> zarr.Group:
        if not self.exists:
            raise NotReady(
                f"{self.path}: found no study there.\nWhat to do: `bdflow run CONFIG` makes it; "
                "if it exists elsewhere, correct `study` in the configuration."
            )
        return zarr.open_group(self._backend, mode="r", use_consolidated=False, zarr_format=3)

    def consolidate(self) -> None:
        """Collect all metadata at the root, so that xarray opens the study with one read."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            zarr.consolidate_metadata(self._backend)

    def _metadata(self, path: str) -> dict[str, Any] | None:
        file = self.path / path / "zarr.json"
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return json.loads(content)
        except ValueError as err:
            raise StoreError(
                f"{file}: found metadata that is not JSON ({err}).\nThe file was damaged after it was written.\n"
                f"What to do: `bdflow run CONFIG --remake` makes {path} again, or restore the file from a copy."
            ) from err

    def paths(self) -> list[str]:
        """Every declared store, in alphabetical order."""
        return sorted(self._walk(""))

    def _walk(self, path: str) -> Iterator[str]:
        for file in (self.path / path).glob("*/zarr.json"):
            child = f"{path}/{file.parent.name}".lstrip("/")
            if child == journal.ROOT:
                continue
            metadata = self._metadata(child) or {}
            if metadata.get("node_type") != "group":
                continue
            if "provenance" in metadata.get("attributes", {}):
                yield child
            else:
                yield from self._walk(child)

    def declared(self, path: str) -> bool:
        metadata = self._metadata(path)
        return metadata is not None and "provenance" in metadata.get("attributes", {})

    def store(self, path: str) -> Store:
        """A declared store. Raises NotReady if there is none."""
        if not self.declared(path):
            raise NotReady(f"{path}: not in the study {self.path}.\nWhat to do: `bdflow run CONFIG` makes it.")
        return Store(self.path, path)

    def state(self, path: str, expected: Provenance) -> State:
        """How far the store is, against what it should be made from."""
        if not self.declared(path):
            return State("absent")
        store = Store(self.path, path)
        total = store.n_partitions
        done = total - len(store.missing())
        why = differences(store.provenance, expected)
        if why:
            return State("stale", done, total, why)
        return State("sealed" if store.sealed else "partial", done, total)

    def sealed(self, path: str, expected: Provenance) -> Store:
        """The store, ready to be read. Raises NotReady, saying what is missing and the command that makes it."""
        state = self.state(path, expected)
        if state.kind == "sealed":
            return Store(self.path, path)
        found = {
            "absent": "no such store",
            "partial": f"{state.done} of {state.total} partitions",
            "stale": "a store made from something else:\n  " + "\n  ".join(state.why),
        }[state.kind]
        action = f"`bdflow run CONFIG --only {expected.stage}`" + (
            " --remake replaces it (or choose another `study` to keep both)." if state.kind == "stale" else " makes it."
        )
        raise NotReady(f"{path}: found {found}; expected a sealed store.\nWhat to do: {action}")

    def declare(
        self,
        path: str,
        spec: StoreSpec,
        sizes: Sizes,
        given: Mapping[str, np.ndarray],
        provenance: Provenance,
    ) -> Store:
        """Write a store's metadata, coordinates and other given arrays; or take up the one that is there.

        Raises StoreError if the store there was made from something else, or differs from the declaration.
        """
        problems = spec.problems(sizes)
        if problems:
            raise StoreError(f"{path}: its declaration contradicts itself:\n  " + "\n  ".join(problems))
        with no_space(self.path / path):
            if self.declared(path):
                return self._take_up(path, spec, sizes, given, provenance)
            self.remove(path)
            group = self._groups_down_to(path)
            for array in spec.arrays:
                array.create(group, sizes)
            progress_spec(spec, sizes).create(group, {"partition": spec.n_partitions(sizes)})
            digests = {}
            for array in spec.arrays:
                if array.role != "data":
                    digests[array.name] = _write_given(group, array, given[array.name], path)
            group.attrs.put(
                {
                    "title": spec.title,
                    "coordinates": " ".join(a.name for a in spec.arrays if a.role == "coordinate"),
                    "partition": dict(spec.partition),
                    "data": [a.name for a in spec.data],
                    "given": digests,
                    "provenance": provenance.attrs(),
                    "sealed": False,
                }
            )
        return Store(self.path, path)

    def _take_up(
        self,
        path: str,
        spec: StoreSpec,
        sizes: Sizes,
        given: Mapping[str, np.ndarray],
        provenance: Provenance,
    ) -> Store:
        remove_leftovers(self.path / path)
        store = Store(self.path, path)
        why = differences(store.provenance, provenance)
        if why:
            raise StoreError(
                f"{path}: found a store made from something else:\n  " + "\n  ".join(why) + "\n"
                "Old and new results are never mixed.\n"
                "What to do: `bdflow run CONFIG --remake` replaces what is stale, or choose "
                "another `study` in the configuration to keep both."
            )
        problems = [
            line
            for array in spec.arrays
            for line in (
                array.check(store.arrays[array.name], sizes) if array.name in store.arrays else [f"{array.name}: gone"]
            )
        ]
        if problems:
            raise StoreError(
                f"{path}: differs from its declaration:\n  " + "\n  ".join(problems) + "\n"
                "What to do: `bdflow run CONFIG --remake` after removing the store, or restore it from a copy."
            )
        group = zarr.open_group(self._backend, path=path, mode="r+", use_consolidated=False, zarr_format=3)
        for array in spec.arrays:
            if array.role == "data":
                continue
            for damage in store.given_damage(array.name):
                log.warning("%s Writing it again.", str(damage).splitlines()[0])
                _write_given(group, array, given[array.name], path)
        return store

    def _groups_down_to(self, path: str) -> zarr.Group:
        group = zarr.open_group(self._backend, mode="r+", use_consolidated=False, zarr_format=3)
        folder = self.path
        for name in path.split("/"):
            group, folder = group.require_group(name), folder / name
            remove_leftovers(folder, below=False)
        return group

    def remove(self, path: str) -> None:
        """Delete a store, its metadata first, so that a half-deleted store is never taken for one."""
        sync(self._backend.delete(f"{path}/zarr.json"))
        remove_tree(self.path / path)


def progress_spec(spec: StoreSpec, sizes: Sizes) -> ArraySpec:
    cut = ", ".join(f"{length} {dim}" for dim, length in spec.partition.items()) or "the whole store"
    return ArraySpec(
        PROGRESS,
        ("partition",),
        "u8",
        f"1 + crc32c of each partition's data ({cut} each, row-major), 0 while it is missing",
        chunks={"partition": 1},
    )


def _write_given(group: zarr.Group, spec: ArraySpec, value: np.ndarray, path: str) -> int:
    array = group[spec.name]
    assert isinstance(array, zarr.Array)
    value = np.asarray(value)
    if value.shape != array.shape:
        raise StoreError(f"{path}/{spec.name}: given shape {value.shape}, declared {array.shape}")
    value = np.ascontiguousarray(value.astype(array.dtype))
    every_chunk(array)[...] = value
    return digest([value])
