"""Pictures as arrays in files: .npy, .npz, PyTorch's and safetensors' tensors, Zarr. No code of a file ever runs."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bdflow import npy
from bdflow.errors import InputError, counted, listed
from bdflow.scoring.pixels import ArrayLike, Scale
from bdflow.scoring.sources import ArrayImages
from bdflow.stores import Store, StoreError
from bdflow.stores.every_chunk import EveryChunk, NotStored
from bdflow.stores.metadata import RECORD
from bdflow.stores.paths import AnyPath, zarr_store

if TYPE_CHECKING:
    import zarr

    from bdflow.models.weights.checkpoint import Checkpoint

TENSORS = (".pt", ".pth", ".safetensors")
ARRAYS = (".npy", ".npz")
IDS = ("stimulus_id", "ids")
ZARR_IDS = ("stimulus_id", "stimulus")
_NONE = np.zeros(())
LONE = "tensor"
ZARR_MARKS = ("zarr.json", ".zarray", ".zgroup")


def is_zarr(path: AnyPath) -> bool:
    """Whether a Zarr array or group lies at a path."""
    return any((path / mark).is_file() for mark in ZARR_MARKS)


def divided(path: Path) -> tuple[Path, str]:
    """A path, and the name behind its last colon, of one of several arrays in the file; "" if there is none."""
    if path.exists() or ":" not in path.name:
        return path, ""
    name, _, array = path.name.rpartition(":")
    return path.with_name(name), array


def open_file(path: Path, name: str, scale: Scale | None, option: str) -> ArrayImages:
    """The pictures in a file of arrays; `name` says which of several.

    Raises
    ------
    InputError : a file that cannot be read, an array that is not there or not of pictures.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return ArrayImages(str(path), _npy(path), scale, option)
    if suffix == ".npz":
        return _npz(path, name, scale, option)
    return _tensors(path, name, scale, option)


def _npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as stream:
            npy.check(stream, path.stat().st_size)
        values: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise _unreadable(path, error) from error
    return values


def _npz(path: Path, name: str, scale: Scale | None, option: str) -> ArrayImages:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")]
            arrays = [member for member in members if member not in IDS]
            chosen = _chosen(path, name, arrays)
            values = npy.member(archive, chosen)
            ids = [npy.member(archive, member) for member in IDS if member in members]
    except (ValueError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise _unreadable(path, error) from error
    return ArrayImages(f"{path}:{chosen}", values, scale, option, _texts(str(path), ids[0]) if ids else None)


def _texts(where: str, ids: object) -> list[str]:
    values = np.asarray(ids)
    if values.ndim != 1 or values.dtype.kind not in "UTiu":
        raise InputError(
            where,
            found=f"ids of type {values.dtype} and {values.ndim} dimensions",
            expected="a list of texts or whole numbers, one for each row",
            action="write the ids as such an array",
        )
    return [str(item) for item in values.tolist()]


def _chosen(path: Path, name: str, there: list[str]) -> str:
    if name in there:
        return name
    if len(there) == 1 and not name:
        return there[0]
    raise InputError(
        path,
        found=f"no array {name!r}, but {listed(there)}" if name else f"{len(there)} arrays: {listed(there)}",
        expected="the name of one array of pictures",
        action=f"name it behind a colon: {path.name}:NAME",
    )


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        path,
        found=f"a file that cannot be read ({str(error)[:300] or type(error).__name__})",
        expected="an array of pictures as numpy.save or numpy.savez writes it",
        action="save the array again, as uint8 or float32",
    )


# --- tensors --------------------------------------------------------------------------------------------------


def _tensors(path: Path, name: str, scale: Scale | None, option: str) -> ArrayImages:
    from bdflow.models.weights.checkpoint import open_checkpoint

    opened = open_checkpoint(path, lone=LONE)
    chosen = _chosen(path, name, list(opened.tensors))
    where = str(path) if len(opened.tensors) == 1 else f"{path}:{chosen}"
    return ArrayImages(where, _values(opened, chosen), scale, option)


def _values(opened: Checkpoint, name: str) -> np.ndarray:
    """A tensor in the file's own bytes where numpy knows its type; otherwise read, as float32."""
    info = opened.tensors[name]
    if name in opened.held:
        held = opened.held[name].detach()
        found: np.ndarray = (held.float() if info.dtype == "bfloat16" else held).contiguous().numpy()
        return found
    if info.dtype == "bfloat16":
        import torch

        read: np.ndarray = opened.read([name], "cpu", torch.float32)[name].numpy()
        return read
    try:
        dtype = np.dtype(info.dtype).newbyteorder("<")
    except TypeError as error:
        raise InputError(
            opened.path,
            found=f"a tensor of type {info.dtype}",
            expected="uint8 or floating-point numbers",
            action="convert it",
        ) from error
    place = opened.places([name])[name]
    if opened.path.stat().st_size < place + info.nbytes:
        raise _unreadable(opened.path, EOFError("it ends inside the tensor"))
    if 0 in info.shape or not info.shape:
        return np.zeros(info.shape, dtype)
    return np.memmap(opened.path, dtype, "r", place, info.shape)


# --- Zarr -----------------------------------------------------------------------------------------------------


def open_zarr(path: AnyPath, scale: Scale | None, option: str, *, shown: bool) -> ArrayImages:
    """The pictures in a Zarr array, or in the array `image` (or the only one with pictures' dimensions) of a group.

    Beside the array, `stimulus_id` gives the ids. With `shown`, of a store with `split` the test stimuli are taken.

    Raises
    ------
    InputError : no such array; a store of a study that is not sealed; an array that cannot be read or lacks chunks; ids
        that are not one for each row. StoreError : chunks of a study's store that are lost or damaged; an object store
        that does not answer.
    """
    import zarr

    try:
        opened: Any = zarr.open(EveryChunk(zarr_store(path)), mode="r")
        if isinstance(opened, zarr.Array):
            folder, name = path.parent, path.name
            group: Any = zarr.open(EveryChunk(zarr_store(folder)), mode="r") if is_zarr(folder) else {}
        else:
            folder, group = path, opened
            found = {name: item for name, item in opened.arrays() if item.ndim in (4, 5)}
            name = "image" if "image" in found else _only(path, sorted(found))
        attributes: Mapping[str, Any] = getattr(group, "attrs", {})
        there = [key for key in (*ZARR_IDS, "split") if key in group]
        values: Any = _Whole(opened if isinstance(opened, zarr.Array) else group[name], path)
    except (InputError, StoreError):
        raise
    except Exception as error:  # zarr raises whatever its codecs do
        raise _damaged(path, error) from error
    if RECORD in attributes:
        if not attributes.get("sealed"):
            raise InputError(
                path,
                found="a store that is not finished",
                expected="a sealed store",
                meaning="Pictures that are not there yet would be black.",
                action="finish the study, then score it",
            )
        store = Store(folder.parent, folder.name)
        for lost in store.missing_chunks():
            raise lost
        values = _Stored(store, name)
        beside = {key: store.read(key) for key in there}
    else:
        beside = {key: _Whole(group[key], folder / key)[:] for key in there if group[key].ndim}
    n = values.shape[0]
    named = [key for key in ZARR_IDS if key in beside]
    ids = next((_texts(str(path), beside[key]) for key in named if beside[key].shape == (n,)), None)
    if named and ids is None:
        raise InputError(
            folder / named[0],
            found=f"ids of shape {beside[named[0]].shape}",
            expected=f"one for each of the {counted(n, 'row')} of {name}",
            meaning="Without them, pictures and photos would be matched by their order.",
            action="write the ids of these rows beside them",
        )
    split = beside.get("split", _NONE)
    if shown and ids is not None and split.shape == (n,) and "test" in split.tolist():
        tested = np.flatnonzero(split == "test")
        values, ids = _Rows(values, tested), [ids[row] for row in tested]
    return ArrayImages(str(path), values, scale, option, ids)


def _only(path: AnyPath, arrays: list[str]) -> str:
    if len(arrays) == 1:
        return arrays[0]
    raise InputError(
        path,
        found=f"{len(arrays)} arrays of four or five dimensions{': ' + listed(arrays) if arrays else ''}",
        expected="one array of pictures, or one named image",
        action="name the path of the array or of the group that holds it",
    )


def _damaged(path: AnyPath, error: Exception) -> InputError:
    if isinstance(error, NotStored):
        return InputError(
            path,
            found=f"no file of the chunk {error.key}",
            expected="every chunk",
            meaning="Zarr takes one value, such as 0, for all of it: a lost file cannot be told from a chunk of zeros "
            "that was left out when it was written.",
            action="copy it again; or, if nothing was lost, write it again so that such chunks are written too "
            "(`write_empty_chunks=True`)",
        )
    return InputError(
        path,
        found=f"Zarr that cannot be read ({type(error).__name__}: {str(error)[:300]})",
        expected="an array of pictures in Zarr",
        action="write it again; of a study, let it be verified and repaired",
    )


class _Whole:
    """An array whose damaged chunks are named."""

    def __init__(self, array: zarr.Array, path: AnyPath) -> None:
        self.array, self.path = array, path
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)

    def __getitem__(self, rows: slice) -> np.ndarray:
        try:
            return np.asarray(self.array[rows])
        except StoreError:
            raise
        except Exception as error:  # zarr raises whatever its codecs do
            raise _damaged(self.path, error) from error


class _Stored:
    """An array of a study's store, which knows what is missing in it."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        array = store.arrays[name]
        self.dim, self.shape, self.dtype = store.dims(name)[0], tuple(array.shape), np.dtype(array.dtype)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.asarray(self.store.read(self.name, {self.dim: rows}))


class _Rows:
    """Some rows of an array."""

    def __init__(self, values: ArrayLike, rows: np.ndarray) -> None:
        self.values, self.rows = values, rows
        self.shape, self.dtype = (len(rows), *values.shape[1:]), values.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.concatenate([np.asarray(self.values[int(row) : int(row) + 1]) for row in self.rows[rows]])
