"""Declarations: what every array of a store is called, what it holds, and how it is cut.

One declaration serves the metadata on disk, the checks before every write, and the documentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.api.asynchronous import create_array
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore, StorePath

from bdflow.errors import counted
from bdflow.stores.errors import StoreError

if TYPE_CHECKING:
    from zarr.core.array_spec import ArrayConfigParams
    from zarr.core.common import JSON
    from zarr.core.metadata.v3 import ArrayV3Metadata as Metadata

    ZarrArray = zarr.Array[Any]

EVERY_CHUNK: ArrayConfigParams = {"write_empty_chunks": True}
"""How every array is opened: chunks of fill values are written, too."""
PROGRESS = "written"
"""The array of a store that says which partitions are written."""
Sizes = Mapping[str, int]
Region = dict[str, slice]


@dataclass(frozen=True)
class ArraySpec:
    """One array.

    Attributes
    ----------
    name, dims : its name and the names of its dimensions.
    dtype : a numpy dtype string ("i2", "f4", ...) or "str".
    doc, units : written as `long_name` and `units`; without units there is none.
    chunks : chunk length by dimension; a dimension not named is one chunk long.
    codec : "raw" (latents: random floats do not compress) or "zstd".
    role : "data" is filled by partitions; "given" and "coordinate" are written when the store is declared.
    attrs : further attributes (`scale_factor`, `flag_meanings`, ...): numbers, text and flat lists, as in netCDF.
    values : of a coordinate that follows from the sizes of the store, such as a picture's `y`; others are given.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    doc: str
    units: str = ""
    chunks: Mapping[str, int] = field(default_factory=dict)
    codec: Literal["raw", "zstd"] = "raw"
    role: Literal["data", "given", "coordinate"] = "data"
    attrs: Mapping[str, Any] = field(default_factory=dict)
    values: Callable[[Sizes], np.ndarray] | None = None

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return tuple(sizes[dim] for dim in self.dims)

    def chunk_shape(self, sizes: Sizes) -> tuple[int, ...]:
        return tuple(max(1, min(self.chunks.get(dim, sizes[dim]), sizes[dim])) for dim in self.dims)

    def attributes(self) -> dict[str, JSON]:
        return {"long_name": self.doc, **({"units": self.units} if self.units else {}), **self.attrs}

    async def metadata(self, sizes: Sizes) -> Metadata:
        """The metadata of the array; every chunk will carry a crc32c checksum, and chunks of fill values are written
        too, so that a chunk without a file is always a damaged one.
        """
        codecs: list[Any] = [ZstdCodec(level=1)] if self.codec == "zstd" else []
        array = await create_array(
            MemoryStore(),  # where it will lie, Zarr would ask for every group above it, array by array
            name=self.name,
            shape=self.shape(sizes),
            chunks=self.chunk_shape(sizes),
            dtype="string" if self.dtype == "str" else self.dtype,
            dimension_names=self.dims,
            compressors=[*codecs, Crc32cCodec()],
            attributes=self.attributes(),
        )
        return cast("Metadata", array.metadata)

    def check(self, array: ZarrArray, sizes: Sizes) -> Iterator[str]:
        """Every way in which `array` on disk differs from this declaration."""
        metadata = array.metadata
        found = {
            "dims": tuple(getattr(metadata, "dimension_names", None) or ()),
            "shape": tuple(array.shape),
            "chunks": tuple(array.chunks),
            "dtype": "str" if array.dtype.kind == "T" else array.dtype.str.lstrip("<>|="),
        }
        expected = {
            "dims": self.dims,
            "shape": self.shape(sizes),
            "chunks": self.chunk_shape(sizes),
            "dtype": "str" if self.dtype == "str" else np.dtype(self.dtype).str.lstrip("<>|="),
        }
        for what, value in expected.items():
            if found[what] != value:
                yield f"{self.name}: {what} {found[what]}, expected {value}"
        for key, wanted in self.attributes().items():
            if array.attrs.get(key) != wanted:
                yield f"{self.name}: attribute {key} {array.attrs.get(key)!r}, expected {wanted!r}"
        codecs = getattr(metadata, "codecs", ())
        if not any(isinstance(codec, Crc32cCodec) for codec in codecs):
            yield f"{self.name}: no crc32c checksum on its chunks"


def create_arrays(backend: ZarrStore, path: str, arrays: Iterable[tuple[ArraySpec, Sizes]]) -> dict[str, ZarrArray]:
    """Write the metadata of arrays in the group at `path`, one after the other; the arrays by name."""

    async def create() -> dict[str, ZarrArray]:
        created: dict[str, ZarrArray] = {}
        for spec, sizes in arrays:
            found, where = await spec.metadata(sizes), StorePath(backend, f"{path}/{spec.name}")
            for file, content in found.to_buffer_dict(default_buffer_prototype()).items():
                await (where / file).set(content)
            created[spec.name] = zarr.Array(zarr.AsyncArray(found, where, EVERY_CHUNK))
        return created

    return sync(create())


@dataclass(frozen=True)
class StoreSpec:
    """One store: its arrays, and how its filling is cut into partitions.

    `partition` gives the length of a partition along each dimension that is cut; the partitions are the product of
    these blocks, in row-major order. Without it the store is one partition. Every data array must have all cut
    dimensions, and a partition must own whole chunks: both are checked when the store is declared. Only dimensions of
    `may_be_empty` may have no length.
    """

    title: str
    arrays: tuple[ArraySpec, ...]
    partition: Mapping[str, int] = field(default_factory=dict)
    may_be_empty: tuple[str, ...] = ()

    @property
    def data(self) -> tuple[ArraySpec, ...]:
        return tuple(spec for spec in self.arrays if spec.role == "data")

    def given(self, sizes: Sizes, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is written when the store is declared: what is given, and what follows from its sizes."""
        return {**{spec.name: spec.values(sizes) for spec in self.arrays if spec.values}, **given}

    def problems(self, sizes: Sizes) -> list[str]:
        """Every violation of the rules above for these sizes."""
        found = []
        for spec in self.arrays:
            found += [f"{spec.name}: no size for dimension {dim}" for dim in spec.dims if dim not in sizes]
        if found:
            return found
        found += [f"{dim} has size {size}" for dim, size in sizes.items() if size < (dim not in self.may_be_empty)]
        for spec in self.data:
            chunk = dict(zip(spec.dims, spec.chunk_shape(sizes), strict=True))
            for dim, length in self.partition.items():
                if dim not in spec.dims:
                    found.append(f"{spec.name}: lacks {dim}, along which the store is cut")
                elif length < sizes[dim] and length % chunk[dim]:
                    found.append(f"{spec.name}: a partition of {length} {dim} cuts chunks of {chunk[dim]}")
        return found

    def grid(self, sizes: Sizes) -> tuple[int, ...]:
        """Number of partitions along each cut dimension."""
        return tuple(math.ceil(sizes[dim] / length) for dim, length in self.partition.items())

    def n_partitions(self, sizes: Sizes) -> int:
        return math.prod(self.grid(sizes))

    def region(self, sizes: Sizes, partition: int) -> Region:
        """The slices that a partition owns, by dimension (dimensions not cut are absent)."""
        grid = self.grid(sizes)
        if not 0 <= partition < math.prod(grid):
            raise StoreError(
                self.title,
                found=f"partition {partition} asked for",
                expected=f"0 to {math.prod(grid) - 1}: a store is filled in {counted(math.prod(grid), 'partition')}",
                action="ask for one of these",
            )
        position = np.unravel_index(partition, grid) if grid else ()
        return {
            dim: slice(int(i) * length, min((int(i) + 1) * length, sizes[dim]))
            for i, (dim, length) in zip(position, self.partition.items(), strict=True)
        }

    def chunks_of(self, sizes: Sizes, spec: ArraySpec, partition: int) -> Iterator[tuple[int, ...]]:
        """Indices of the chunks of one data array that a partition owns."""
        region = self.region(sizes, partition)
        ranges = []
        for dim, chunk in zip(spec.dims, spec.chunk_shape(sizes), strict=True):
            owned = region.get(dim, slice(0, sizes[dim]))
            ranges.append(range(owned.start // chunk, math.ceil(owned.stop / chunk)))
        yield from product(*ranges)


def progress_spec(spec: StoreSpec, sizes: Sizes) -> ArraySpec:
    cut = ", ".join(f"{length} {dim}" for dim, length in spec.partition.items()) or "the whole store"
    return ArraySpec(
        PROGRESS,
        ("partition",),
        "u8",
        f"1 + crc32c of each partition's data ({cut} each, row-major), 0 while it is missing",
        chunks={"partition": 1},
    )
