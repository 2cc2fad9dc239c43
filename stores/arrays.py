"""The arrays of one store, each opened when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import zarr

from bdflow.stores.paths import AnyPath, zarr_store

if TYPE_CHECKING:
    from bdflow.stores.spec import ZarrArray


class Arrays(Mapping[str, "ZarrArray"]):
    """The arrays of a store that are there, of those that it should have."""

    def __init__(self, study: AnyPath, path: str, names: Sequence[str]) -> None:
        self._backend, self._path, self._names = zarr_store(study), path, names
        self._open: dict[str, ZarrArray] = {}

    def __getitem__(self, name: str) -> ZarrArray:
        if name not in self._open:
            if name not in self._names:
                raise KeyError(name)
            try:
                array = zarr.open_array(self._backend, path=f"{self._path}/{name}", mode="r+", zarr_format=3)
            except FileNotFoundError:
                raise KeyError(name) from None
            self._open[name] = every_chunk(array)
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def every_chunk(array: ZarrArray) -> ZarrArray:
    """The array, set to write chunks of fill values too, so that a chunk without a file is always a damaged one."""
    return array.with_config({"write_empty_chunks": True})
