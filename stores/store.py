"""One declared store: write partitions, seal, read, and find what is damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype

from bdflow.errors import counted, lines
from bdflow.stores.arrays import Arrays
from bdflow.stores.entries import Kind, strangers
from bdflow.stores.errors import CorruptChunk, StoreError, Unexpected, disk_full_as_error
from bdflow.stores.every_chunk import EveryChunkOfStudy, NotStored, divided, every_chunk, unwritten
from bdflow.stores.metadata import COPY, FILE, Document, read_document, unfolded
from bdflow.stores.paths import AnyPath, RemotePath, place, remove_leftovers, sizes_below, zarr_store
from bdflow.stores.spec import PROGRESS, ArraySpec, StoreSpec

if TYPE_CHECKING:
    import xarray

    from bdflow.stores.spec import ZarrArray

NDBuffer = default_buffer_prototype().nd_buffer
Selection = Mapping[str, slice | np.ndarray]


class Store:
    """A declared store at `path` in the study at `study`; everything about it is read from its own metadata.

    Instances are light and picklable: workers get one and open the arrays they touch. `known` is metadata that was just
    read, by file, and is not read again; whether the store is sealed always is.
    """

    def __init__(self, study: str | Path | RemotePath, path: str, known: Mapping[str, Document] | None = None) -> None:
        self.study, self.path, self._known = place(study), path, known or {}
        self._whole: dict[str, ZarrArray] = {}

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return type(self), (self.study, self.path)

    def __repr__(self) -> str:
        return f"Store({str(self.study)!r}, {self.path!r})"

    # --- what it is -------------------------------------------------------------------------------------------

    def _group(self, mode: str = "r") -> zarr.Group:
        backend = zarr_store(self.study)
        return zarr.open_group(backend, path=self.path, mode=mode, use_consolidated=False, zarr_format=3)  # type: ignore[arg-type]

    def _attributes(self) -> dict[str, Any]:
        document = read_document(self.study / self.path / FILE)
        if document is None or "attributes" not in document:
            return unfolded(dict(self._group().attrs))
        return unfolded(document["attributes"])

    @cached_property
    def attrs(self) -> dict[str, Any]:
        return unfolded(self._known[FILE]["attributes"]) if FILE in self._known else self._attributes()

    @cached_property
    def arrays(self) -> Mapping[str, ZarrArray]:
        """Every array by name, for reading and writing; each is opened when it is asked for."""
        return Arrays(self.study, self.path, [*self.attrs["data"], *self.attrs["given"], PROGRESS], self._known)

    def _readable(self, name: str) -> ZarrArray:
        """An array of which a chunk that is not there raises NotStored."""
        if name not in self._whole:
            self._whole[name] = every_chunk(self.arrays[name])
        return self._whole[name]

    @cached_property
    def spec(self) -> StoreSpec:
        """The declaration, as far as the metadata on disk holds it."""
        arrays = []
        for name, array in self.arrays.items():
            if name == PROGRESS:
                continue
            dims = self.dims(name)
            arrays.append(
                ArraySpec(
                    name,
                    dims,
                    "str" if array.dtype.kind == "T" else array.dtype.str,
                    str(array.attrs.get("long_name", "")),
                    chunks=dict(zip(dims, array.chunks, strict=True)),
                    role="data" if name in self.attrs["data"] else "given",
                )
            )
        return StoreSpec(self.attrs["title"], tuple(arrays), self.attrs["partition"])

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Length of every dimension."""
        found: dict[str, int] = {}
        for name, array in self.arrays.items():
            found.update(zip(self.dims(name), array.shape, strict=True))
        return found

    def dims(self, name: str) -> tuple[str, ...]:
        return tuple(getattr(self.arrays[name].metadata, "dimension_names", None) or ())

    @property
    def provenance(self) -> dict[str, Any]:
        found: dict[str, Any] = self.attrs["provenance"]
        return found

    @property
    def n_partitions(self) -> int:
        return self.arrays[PROGRESS].shape[0]

    @property
    def nbytes_stored(self) -> int:
        """Bytes on disk."""
        return sum(sizes_below(self.study / self.path).values())

    # --- fill -------------------------------------------------------------------------------------------------

    def markers(self) -> np.ndarray:
        """The progress array; a damaged marker counts as not written."""
        progress = self.arrays[PROGRESS]
        try:
            return np.asarray(progress[:])
        except StoreError:
            raise
        except (ValueError, RuntimeError):
            return np.array([self.marker(i) for i in range(progress.shape[0])], progress.dtype)

    def marker(self, partition: int) -> int:
        """The mark of one partition: 0 while it is not written."""
        try:
            return int(np.asarray(self.arrays[PROGRESS][partition]))
        except StoreError:
            raise
        except (ValueError, RuntimeError):
            return 0

    def missing(self) -> list[int]:
        """Partitions that are not written."""
        return [int(i) for i in np.flatnonzero(self.markers() == 0)]

    def write(self, partition: int, data: Mapping[str, np.ndarray]) -> None:
        """Write one partition, then mark it. One already written is left as it is.

        Raises StoreError for a wrong array, shape or dtype, before anything is written, and for a full disk.
        """
        if self.marker(partition):
            return
        region = self.spec.region(self.sizes, partition)
        problems = [f"{name}: not given" for name in self.attrs["data"] if name not in data]
        problems += [f"{name}: not an array of this store" for name in data if name not in self.attrs["data"]]
        selections = {}
        for name in self.attrs["data"]:
            if name not in data:
                continue
            array, value = self.arrays[name], data[name]
            selections[name] = tuple(region.get(dim, slice(0, self.sizes[dim])) for dim in self.dims(name))
            shape = tuple(part.stop - part.start for part in selections[name])
            if value.shape != shape:
                problems.append(f"{name}: shape {value.shape}, expected {shape}")
            if value.dtype != array.dtype and not (value.dtype.kind == "U" and array.dtype.kind == "T"):
                problems.append(f"{name}: dtype {value.dtype}, expected {array.dtype}")
        if problems:
            raise StoreError(
                f"{self.path}, partition {partition}",
                found="arrays that do not fit into the store:" + lines(problems),
                expected="the arrays that were declared",
                meaning="Nothing of this partition was written. It is a mistake in the code that made the arrays.",
                action="correct that code, such as an encoder or painter of your own",
            )
        with disk_full_as_error(self.study / self.path):
            for name in self.attrs["data"]:
                # zarr's codec for text reads the buffer as it lies, whatever its strides
                self.arrays[name][selections[name]] = np.ascontiguousarray(data[name], self.arrays[name].dtype)
            self.arrays[PROGRESS][partition] = digest([data[name] for name in self.attrs["data"]])

    def forget(self, partition: int) -> None:
        """Take a partition's mark away, so that it is computed again; the store is no longer sealed."""
        self._seal(False)
        self.arrays[PROGRESS][partition] = 0

    # --- seal -------------------------------------------------------------------------------------------------

    @property
    def sealed(self) -> bool:
        return bool(self._attributes().get("sealed", False))

    def seal(self) -> None:
        """Declare the store complete, and delete what killed writers left in it.

        Raises StoreError if a partition is missing.
        """
        missing = self.missing()
        if missing:
            raise StoreError(
                self.path,
                found=f"{counted(len(missing), 'partition')} of {self.n_partitions} not written yet",
                expected="every partition, before the store is sealed",
                action="run the pipeline, which fills what is missing",
                remedy="run",
            )
        remove_leftovers(self.study / self.path)
        self._seal(True)

    def _seal(self, value: bool) -> None:
        with disk_full_as_error(self.study / self.path):
            self._group("r+").attrs["sealed"] = int(value)

    # --- read -------------------------------------------------------------------------------------------------

    def read(self, name: str, selection: Selection | None = None) -> np.ndarray:
        """Values of an array as stored (no scaling), for slices or sorted index arrays by dimension; text as numpy's
        `U`. Raises CorruptChunk, naming the chunk, if one of those it needs is lost, does not decode or fails its
        checksum; NotReady if its partition is not written yet.
        """
        array, index = self._readable(name), self._index(name, selection)
        with self._damage_named(name, index):
            whole = all(isinstance(part, slice) for part in index)
            found = np.asarray(array[index] if whole else array.oindex[index])
        return np.array(found.tolist(), dtype=str).reshape(found.shape) if found.dtype.kind == "T" else found

    def read_into(self, out: np.ndarray, name: str, selection: Selection | None = None) -> np.ndarray:
        """`read` for slices, into `out`, a C-contiguous array of their shape: memory touched before is read into at
        twice the rate of fresh memory. Returns `out`; raises as `read`, and ValueError for another shape or dtype.
        """
        array, index = self._readable(name), self._index(name, selection)
        shape = tuple(len(range(*part.indices(size))) for part, size in zip(index, array.shape, strict=True))  # type: ignore[union-attr]
        if out.shape != shape or out.dtype != array.dtype:
            raise ValueError(f"{self.path}/{name}: {shape} of {array.dtype} do not go into {out.shape} of {out.dtype}")
        with self._damage_named(name, index):
            array.get_basic_selection(index, out=NDBuffer.from_numpy_array(out))  # type: ignore[arg-type]
        return out

    def _index(self, name: str, selection: Selection | None) -> tuple[slice | np.ndarray, ...]:
        wanted, dims = selection or {}, self.dims(name)
        if unknown := sorted(dim for dim in wanted if dim not in dims and dim not in self.sizes):
            raise ValueError(f"{self.path}: no dimension {unknown[0]}; it has {', '.join(self.sizes)}")
        return tuple(wanted.get(dim, slice(None)) for dim in dims)

    @contextmanager
    def _damage_named(self, name: str, index: Sequence[slice | np.ndarray]) -> Iterator[None]:
        """Where reading fails, name the chunk."""
        try:
            yield
        except StoreError:
            raise
        except NotStored as lost:
            raise self._not_there(name, divided(lost.key)[1]) from None
        except (ValueError, RuntimeError):
            for chunk in self._chunks_under(name, index):
                why = self._chunk_damage(name, chunk)
                if why:
                    raise CorruptChunk(self.path, name, chunk, self._owner(name, chunk), why) from None
            raise

    def _not_there(self, name: str, chunk: tuple[int, ...]) -> StoreError:
        owner = self._owner(name, chunk)
        if owner is None or self.marker(owner):
            return CorruptChunk(self.path, name, chunk, owner, "no file")
        return unwritten(self.path, name, chunk, f"in partition {owner}, which is not written")

    def rows(self, name: str, values: np.ndarray) -> np.ndarray:
        """Positions of `values` along a coordinate without repeats, such as `stimulus_id`: how stores are joined.

        Raises StoreError naming the first value that is not there.
        """
        return positions(self.path, name, self.read(name), values)

    def dataset(self) -> xarray.Dataset:
        """The store as a lazy xarray dataset, values as stored. A chunk that is not there raises when it is read."""
        import xarray

        found: xarray.Dataset = xarray.open_zarr(
            EveryChunkOfStudy(zarr_store(self.study)),
            group=self.path,
            consolidated=False,
            mask_and_scale=False,
            zarr_format=3,
        )
        return found

    # --- integrity --------------------------------------------------------------------------------------------

    def _chunk_grid(self, name: str) -> list[range]:
        array = self.arrays[name]
        return [range(-(-size // chunk)) for size, chunk in zip(array.shape, array.chunks, strict=True)]

    def _chunks_under(self, name: str, index: Sequence[slice | np.ndarray]) -> Iterator[tuple[int, ...]]:
        array = self.arrays[name]
        ranges = []
        for part, size, chunk in zip(index, array.shape, array.chunks, strict=True):
            positions = np.arange(size)[part]
            ranges.append(np.unique(positions // chunk).tolist())
        yield from product(*ranges)

    def _owner(self, name: str, chunk: tuple[int, ...]) -> int | None:
        if name not in self.attrs["data"]:
            return None
        array, dims, grid, position = self.arrays[name], self.dims(name), [], []
        for dim, length in self.attrs["partition"].items():
            axis = dims.index(dim)
            grid.append(-(-array.shape[axis] // length))
            position.append(chunk[axis] * array.chunks[axis] // length)
        return int(np.ravel_multi_index(position, grid)) if grid else 0

    def _chunk_damage(self, name: str, chunk: tuple[int, ...]) -> str | None:
        """What is wrong with one chunk, or None."""
        array = self._readable(name)
        selection = tuple(slice(i * c, (i + 1) * c) for i, c in zip(chunk, array.chunks, strict=True))
        try:
            array[selection]
        except StoreError:
            raise
        except NotStored:
            return "no file"
        except (ValueError, RuntimeError) as err:
            failed = "checksum do not match" in str(err)
            return "bytes that do not match their checksum" if failed else f"bytes that do not decode ({err})"
        return None

    def given_damage(self, name: str) -> list[CorruptChunk]:
        """Damaged chunks of an array written at declaration."""
        grid = self._chunk_grid(name)
        chunks = [(name, chunk) for chunk in product(*grid)] or [(name, (0,) * len(grid))]
        return self._damage_of([name], {}, chunks, self.attrs["given"][name], None)

    def _damage_of(
        self,
        names: Sequence[str],
        region: Selection,
        chunks: Sequence[tuple[str, tuple[int, ...]]],
        expected: int,
        owner: int | None,
    ) -> list[CorruptChunk]:
        """Damaged ones of `chunks`, those of a region of arrays with this digest. Whole ones are read once."""
        try:
            if digest([np.asarray(self._readable(name)[self._index(name, region)]) for name in names]) == expected:
                return []
        except StoreError:
            raise
        except (NotStored, ValueError, RuntimeError):
            pass
        found = [(name, chunk, why) for name, chunk in chunks if (why := self._chunk_damage(name, chunk))]
        found = found or [(*chunks[0], "other values than were written")]
        return [CorruptChunk(self.path, name, chunk, owner, why) for name, chunk, why in found]

    def missing_chunks(self, written: np.ndarray | None = None) -> list[CorruptChunk]:
        """Chunks of `written` partitions (those with a mark) whose file is gone; cheap, nothing is decoded."""
        written = self.markers() != 0 if written is None else written
        there = self._files()
        found = []
        for name in self.attrs["data"]:
            array = self.arrays[name]
            for chunk in product(*self._chunk_grid(name)):
                owner = self._owner(name, chunk)
                key = f"{name}/{array.metadata.encode_chunk_key(chunk)}"
                if owner is not None and written[owner] and not there(key):
                    found.append(CorruptChunk(self.path, name, chunk, owner, "no file"))
        return found

    def _files(self) -> Callable[[str], bool]:
        """Whether a file of the store is there; an object store is asked once for all of them."""
        where: AnyPath = self.study / self.path
        if isinstance(where, RemotePath):
            return set(where.bucket.sizes()).__contains__
        return lambda name: (where / name).is_file()

    def damage(self) -> Iterator[CorruptChunk]:
        """Read everything that was written; yield every chunk that is not what was written."""
        for name in self.attrs["given"]:
            yield from self.given_damage(name)
        sealed = self.sealed
        for partition, marker in enumerate(self.markers()):
            if marker:
                region, data = self.spec.region(self.sizes, partition), self.spec.data
                chunks = [(spec.name, c) for spec in data for c in self.spec.chunks_of(self.sizes, spec, partition)]
                yield from self._damage_of([spec.name for spec in data], region, chunks, int(marker), partition)
            elif sealed:
                why = self._chunk_damage(PROGRESS, (partition,)) or "no mark, though the store is sealed"
                yield CorruptChunk(self.path, PROGRESS, (partition,), partition, why)

    def unexpected(self) -> list[Unexpected]:
        """What is in the store's folder and is no part of it, or stands where another kind of thing belongs."""
        grids = {name: tuple(map(len, self._chunk_grid(name))) for name in self.arrays} | {COPY: (1,)}

        def belongs(parts: tuple[str, ...]) -> Kind | None:
            if parts == (FILE,):
                return "file"
            grid = grids.get(parts[0])
            if grid is None or len(parts) > len(grid) + 2:
                return None
            if len(parts) == 1:
                return "folder"
            if parts[1] != "c":
                return "file" if parts[1:] == (FILE,) else None
            at = parts[2:]
            if all(_is_index(part, size) for part, size in zip(at, grid, strict=False)):
                return "file" if len(at) == len(grid) else "folder"
            return None

        return [Unexpected(self.path, name, why) for name, why in strangers(self.study / self.path, belongs)]


def _is_index(text: str, size: int) -> bool:
    return text.isascii() and text.isdecimal() and str(int(text)) == text and int(text) < size


def digest(values: Sequence[np.ndarray]) -> int:
    """1 + crc32c over arrays of one partition, in the order of their declaration."""
    crc = 0
    for value in values:
        if value.dtype.kind in "TUO":
            text = "\x00".join(str(item) for item in value.ravel())
            data = np.frombuffer(text.encode(), "u1")
        else:
            data = np.ascontiguousarray(value).reshape(-1).view("u1")
        crc = google_crc32c.extend(crc, data)
    return 1 + crc


def positions(path: str, name: str, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where `values` stand among `known`, which has no repeats: the coordinate `name` of the store at `path`.

    Raises StoreError naming the first value that is not there.
    """
    order = np.argsort(known, kind="stable")
    at = np.minimum(np.searchsorted(known, values, sorter=order), max(len(known) - 1, 0))
    found = order[at] if len(known) else np.zeros(len(values), np.intp)
    absent = np.flatnonzero(known[found] != values) if len(known) else np.arange(len(values))
    if absent.size:
        raise StoreError(
            path,
            found=f"no {name} {values[absent[0]]} ({absent.size:,} of the {len(values):,} asked for are absent)",
            expected="all of them",
            action="look at the status of the study: it shows which store is not of this configuration",
            remedy="status",
        )
    return found


def text(values: Iterable[object]) -> np.ndarray:
    """Strings as the variable-length array that stores hold."""
    return np.array([str(value) for value in values], dtype=np.dtypes.StringDType())
