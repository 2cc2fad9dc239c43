"""A Zarr v3 hierarchy: its groups and arrays, read in part. A chunk without a file is an error, not a fill value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store as ZarrStore

from bdflow.errors import InputError
from bdflow.stores.errors import StoreError
from bdflow.stores.every_chunk import EveryChunk, NotStored
from bdflow.stores.paths import AnyPath, sizes_below, zarr_store

METADATA = "zarr.json"
Index = slice | np.ndarray


@dataclass(frozen=True)
class Variable:
    """An array of a group.

    Attributes
    ----------
    where : the hierarchy and the array's place in it, for errors; `name` below the root.
    array : Zarr's.
    dims : names of its dimensions; None for one without a name.
    """

    where: str
    name: str
    array: Any
    dims: tuple[str | None, ...]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.array.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Of the smallest part that can be decoded alone: within a shard, if there are shards."""
        return tuple(int(n) for n in self.array.chunks)

    @property
    def attrs(self) -> Mapping[str, Any]:
        return dict(self.array.attrs)

    def read(self, *index: Index) -> np.ndarray:
        """Its values, of these indices along each of the first axes. Decodes only the chunks that hold some.

        Raises
        ------
        InputError : a chunk that is not stored, or is damaged. StoreError : the object store does not answer.
        """
        with self._readable():
            whole = (*index, *(slice(None),) * (self.array.ndim - len(index)))
            return np.asarray(self.array.oindex[whole])

    def text(self, *index: Index) -> np.ndarray:
        """As `read`, of an array of text: numpy's str."""
        values = self.read(*index)
        return values if values.dtype.kind == "U" else np.array(values.tolist(), dtype=str).reshape(values.shape)

    def truths(self, *index: Index) -> np.ndarray:
        """As `read`, of an array of truths, or of 0 and 1: bool. Raises InputError for other values."""
        values = self.read(*index)
        wrong = values[(values != 0) & (values != 1)] if values.dtype.kind != "b" else values[:0]
        if wrong.size:
            raise InputError(
                self.where,
                found=f"the value {wrong[0]}",
                expected="true and false, or 1 and 0",
                action='write it as bool, such as `(labels > 0)`; a region has a row of its own in "roi"',
            )
        return values.astype(bool)

    def keys(self, *index: slice) -> Iterator[str]:
        """Names, below the array's folder, of what is stored of these slices along the first axes."""
        sizes = self.array.shards or self.array.chunks
        ranges = [
            range(part.start // size, -(-part.stop // size))
            for part, size in zip([*index, *(slice(0, n) for n in self.shape[len(index) :])], sizes, strict=True)
        ]
        encode = self.array.metadata.chunk_key_encoding.encode_chunk_key
        for place in np.ndindex(*(len(one) for one in ranges)):
            yield encode(tuple(one[at] for one, at in zip(ranges, place, strict=True)))

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (StoreError, MemoryError):
            raise
        except NotStored as error:
            fill = self.array.metadata.fill_value
            raise InputError(
                self.where,
                found=f"no file of the chunk {error.key.removeprefix(self.name + '/')}",
                expected="every chunk",
                meaning=f"A lost file cannot be told from a chunk that holds nothing but {fill!s:.20} "
                "and was left out when it was written.",
                action="copy the hierarchy again; or, if nothing was lost, write it again so that such chunks are "
                "written too: `to_zarr(..., write_empty_chunks=True)`",
            ) from error
        except Exception as error:
            raise InputError(
                self.where,
                found=f"data that cannot be read ({type(error).__name__}: {error})",
                expected=f"an array of {self.dtype.name}, shape {self.shape}",
                meaning="A chunk is damaged, or cut short.",
                action="copy the hierarchy again, or write it again",
            ) from error


@dataclass(frozen=True)
class Group:
    """A group, and those of its arrays that were asked for and are there.

    Attributes
    ----------
    where : the hierarchy and the group's place in it, for errors; `name` below the root.
    folder : where it lies.
    others : names of what else it holds.
    """

    where: str
    name: str
    folder: AnyPath
    attrs: Mapping[str, Any]
    arrays: Mapping[str, Variable]
    others: Sequence[str]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Variable:
        return self.arrays[name]

    def files(self) -> list[str]:
        """Names of every file below, ascending, from here."""
        return sorted(sizes_below(self.folder))


def children(folder: AnyPath) -> list[str]:
    """Names of the groups and arrays directly below a group, ascending."""
    return sorted(found.parent.name for found in folder.glob(f"*/{METADATA}"))


def open_group(root: AnyPath, name: str, arrays: Iterable[str] = ()) -> Group:
    """A group of a hierarchy, and these of its arrays that are there. Metadata alone are read, those of each group and
    array themselves: copies of them in groups above (consolidated metadata) may be older.

    Raises
    ------
    InputError : no group, or metadata that cannot be read, naming the group or array.
    """
    store, folder = EveryChunk(zarr_store(root)), root / name if name else root
    with _opening(folder, "a Zarr v3 group"):
        group = zarr.open_group(store, path=name, mode="r", zarr_format=3, use_consolidated=False)
        attrs = dict(group.attrs)
    there = children(folder)
    wanted = set(arrays)
    return Group(
        str(folder),
        name,
        folder,
        attrs,
        {one: _open_array(store, folder, name, one) for one in there if one in wanted},
        [one for one in there if one not in wanted],
    )


def _open_array(store: ZarrStore, folder: AnyPath, group: str, name: str) -> Variable:
    path = f"{group}/{name}"
    with _opening(folder / name, "a Zarr v3 array"):
        array = zarr.open_array(store, path=path, mode="r", zarr_format=3)
        dims = tuple(getattr(array.metadata, "dimension_names", None) or (None,) * array.ndim)
    return Variable(str(folder / name), path, array, dims)


@contextmanager
def _opening(folder: AnyPath, expected: str) -> Iterator[None]:
    try:
        yield
    except (StoreError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            folder,
            found=f"metadata that cannot be read ({type(error).__name__}: {error})",
            expected=expected,
            action="copy the hierarchy again, or write it again with `zarr_format=3` (docs/arrays.md)",
        ) from error
