"""The arrays of one store, each opened when it is asked for, by one read of its metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import zarr
from zarr.storage import StorePath

from bdflow.stores.metadata import FILE, Document, read_document
from bdflow.stores.paths import AnyPath, zarr_store
from bdflow.stores.spec import EVERY_CHUNK

if TYPE_CHECKING:
    from zarr.core.metadata.v3 import ArrayMetadataJSON_V3

    from bdflow.stores.spec import ZarrArray


class Arrays(Mapping[str, "ZarrArray"]):
    """The arrays of a store that are there, of those that it should have; `known`: metadata that was read, by file."""

    def __init__(self, study: AnyPath, path: str, names: Sequence[str], known: Mapping[str, Document]) -> None:
        self._study, self._backend, self._path, self._names = study, zarr_store(study), path, names
        self._known = known
        self._open: dict[str, ZarrArray] = {}

    def __getitem__(self, name: str) -> ZarrArray:
        if name not in self._open:
            if name not in self._names:
                raise KeyError(name)
            path = f"{self._path}/{name}"
            document = self._known.get(f"{name}/{FILE}") or read_document(self._study / path / FILE)
            if document is None or document.get("node_type") != "array":
                raise KeyError(name)
            where = StorePath(self._backend, path)
            self._open[name] = zarr.Array(zarr.AsyncArray(cast("ArrayMetadataJSON_V3", document), where, EVERY_CHUNK))
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
