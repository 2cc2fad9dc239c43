"""One session of betas in GLMsingle's own files, streamed: the whole of it is never held.

The file of a whole volume holds (x, y, z, trial); of a fit of masked voxels (voxel, 1, 1, trial) or (voxel, trial).
MATLAB's files have these axes reversed, in HDF5 and in Fortran's order alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import h5py
import numpy as np

from bdflow.datasets.formats.grids import Grid
from bdflow.datasets.formats.hdf5 import OpenFile
from bdflow.datasets.glmsingle.patterns import option
from bdflow.datasets.glmsingle.pickles import Array, Place, read_dictionary
from bdflow.errors import InputError, listed
from bdflow.stores.paths import AnyPath, no_answer

HDF5 = {".hdf5": "betasmd", ".h5": "betasmd", ".mat": "modelmd"}
NPY = ".npy"
_BLOCK = 16 * 1024 * 1024  # bytes held at once, where the file lets one choose
_AGAIN = "write or copy the file again; a file in the middle of being written looks like this"
Block = tuple[slice, ...]


@dataclass(frozen=True)
class FitMask:
    """Which voxels were fitted, and in which order they stand in the file.

    Attributes
    ----------
    path : the file.
    values : (x, y, z) bool.
    order : of (x, y, z): `C` or `F`; None: not said.
    """

    path: AnyPath
    values: np.ndarray
    order: Literal["C", "F"] | None


class FitSession:
    """The betas of one session in a `.npy`, `.hdf5` or `.mat` of GLMsingle. Only the description is read.

    Attributes
    ----------
    path : the file.
    n_trials : of it.
    dtype : in native byte order.
    masked : the number of voxels, where a fit of masked voxels holds no volumes; else None.
    volume : (x, y, z) of the file's volumes; None where `masked`.
    """

    def __init__(self, path: AnyPath) -> None:
        self.path, self.by_matlab = path, path.suffix == ".mat"
        with self._open() as stored:
            shape, dtype = tuple(int(n) for n in stored.shape), stored.dtype
            self.trial_first = self.by_matlab or stored.trial_first
        name = HDF5.get(path.suffix, "betasmd")
        if dtype.kind != "f" or len(shape) not in (2, 4) or min(shape) < 1:
            raise InputError(
                path,
                found=f"{name} {dtype} {shape}",
                expected="floating-point numbers (x, y, z, trial), or (voxel, 1, 1, trial) of masked voxels",
                action=f"let {option('betas')} name a file of GLMsingle's single-trial models (types B to D)",
            )
        self.dtype = dtype.newbyteorder("=")
        self.n_trials = shape[0] if self.trial_first else shape[-1]
        space = shape[:0:-1] if self.trial_first else shape[:-1]
        flat = len(space) == 1 or space[1:] == (1, 1)
        self.masked = space[0] if flat else None
        self.volume = None if flat else (space[0], space[1], space[2])

    def grid(self, fitted: FitMask | None) -> Grid:
        """Where its voxels lie; of masked ones, the grid of the mask. No affine: the file states none."""
        if self.volume is not None:
            return Grid(self.path, self.volume, None)
        return Grid(self.path, self._placed(fitted).values.shape, None)

    def read_masked(self, mask: np.ndarray, fitted: FitMask | None) -> np.ndarray:
        """Betas of the voxels in `mask` (x, y, z) bool: (trials, voxels), in C order of (x, y, z).

        NaN in voxels that were not fitted. Holds one block beside the result.

        Raises
        ------
        InputError : a mask of another shape, a fit of masked voxels whose number is not that of `fitted`, a damaged
            file.
        """
        shape = self.grid(fitted).shape
        if mask.shape != shape:
            raise InputError(
                self.path,
                found=f"volumes of shape {shape}",
                expected=f"the mask's shape {tuple(mask.shape)}",
                meaning="Mask and betas are not of the same subject and space.",
                action="take both from one subject and one space",
            )
        if mask.dtype != bool:
            raise TypeError(f"mask has dtype {mask.dtype}; pass a boolean mask")
        out = np.full((self.n_trials, int(mask.sum())), np.nan, self.dtype)
        with self._open() as stored:
            space = stored.shape[1:] if self.trial_first else stored.shape[:-1]
            columns = self._columns(mask, fitted, space)
            for block in _blocks(stored):
                within = columns[block[1:] if self.trial_first else block[:-1]]
                wanted = within >= 0
                if wanted.any():
                    values = stored.read(block)
                    if self.trial_first:
                        out[block[0], within[wanted]] = values[:, wanted]
                    else:
                        out[block[-1], within[wanted]] = values[wanted].T
        return out

    def _columns(self, mask: np.ndarray, fitted: FitMask | None, space: tuple[int, ...]) -> np.ndarray:
        """Of every voxel of the file, along its axes (`space`), its column in the result; -1: not in the mask."""
        number = np.full(mask.shape, -1, np.int64)
        number[mask] = np.arange(int(mask.sum()))
        if self.masked is not None:
            placed = self._placed(fitted)
            number = number.T[placed.values.T] if placed.order == "F" else number[placed.values]
            return number.reshape(space)
        return number.T if self.trial_first else number

    def _placed(self, fitted: FitMask | None) -> FitMask:
        action = f"name the mask whose voxels were fitted by {option('fit_mask')} (or {option('mask')})"
        what = f"betas of {self.masked:,} voxels without their places"
        if fitted is None:
            raise InputError(self.path, found=what, expected="a mask that says where they are", action=action)
        if int(fitted.values.sum()) != self.masked:
            raise InputError(
                self.path,
                found=what,
                expected=f"{int(fitted.values.sum()):,}, as many as the mask {fitted.path} has",
                meaning="The fit was of other voxels than those of this mask.",
                action=action,
            )
        if fitted.order is None and self.by_matlab:
            raise InputError(
                self.path,
                found=what,
                expected="to know the order in which the mask's voxels were fitted: MATLAB's own is F",
                action=f"set {option('fit_order')} to F (`data(mask)` in MATLAB) or C (`data[mask]` in numpy)",
            )
        return fitted

    @contextmanager
    def _open(self) -> Iterator[_Pickled | _InHdf5]:
        if self.path.suffix == NPY:
            yield _Pickled(self.path)
            return
        name = HDF5[self.path.suffix]
        action = f"{_AGAIN}; of MATLAB's files those of version 7.3 are read" if self.by_matlab else _AGAIN
        with OpenFile(self.path, expected=f"GLMsingle's output in HDF5, with {name}", action=action) as file:
            found = file.dataset(name)
            if found is None:
                raise InputError(
                    self.path,
                    found=file.found(name),
                    expected=f"a dataset {name}",
                    action=f"let {option('betas')} name a file of GLMsingle's single-trial models (types B to D)",
                )
            yield _InHdf5(self.path, file, found)


class _InHdf5:
    """Betas in an HDF5 file that is open."""

    def __init__(self, path: AnyPath, file: OpenFile, dataset: h5py.Dataset) -> None:
        self.path, self._file, self._dataset = path, file, dataset
        self.shape, self.dtype, self.chunks = dataset.shape, dataset.dtype, dataset.chunks
        self.trial_first = False

    def read(self, block: Block) -> np.ndarray:
        try:
            found: np.ndarray = self._dataset[block]
        except OSError as error:
            no_answer(self._file.source)
            raise InputError(
                self.path,
                found=f"data that cannot be read ({error})",
                expected=f"betas of shape {self.shape}",
                meaning="The file is truncated or damaged; nothing of this session was kept.",
                action=_AGAIN,
            ) from error
        return found


class _Pickled:
    """Betas in a pickled dictionary: their bytes lie in the file one after the other."""

    chunks = None

    def __init__(self, path: AnyPath) -> None:
        content = read_dictionary(path, "GLMsingle's output")
        found = content.get("betasmd")
        if not isinstance(found, Array) or isinstance(found.content, list):
            raise InputError(
                path,
                found=f"a dictionary of {listed(sorted(content)) or 'nothing'}",
                expected="an array betasmd",
                action=f"let {option('betas')} name a file of GLMsingle's single-trial models (types B to D)",
            )
        self.path, self._content, self.dtype = path, found.content, found.dtype
        self.trial_first = found.fortran
        self.shape = found.shape[::-1] if found.fortran else found.shape

    def read(self, block: Block) -> np.ndarray:
        """A block whose bytes lie together: all of the axes after the first of which it is but a part."""
        shape = tuple(part.stop - part.start for part in block)
        start = sum(part.start * math.prod(self.shape[axis + 1 :]) for axis, part in enumerate(block))
        start, size = start * self.dtype.itemsize, math.prod(shape) * self.dtype.itemsize
        if isinstance(self._content, Place):
            with self.path.open("rb") as stream:
                stream.seek(self._content.start + start)
                content = stream.read(size)
        else:
            content = self._content[start : start + size]
        return np.frombuffer(content, self.dtype).reshape(shape)


def _blocks(stored: _Pickled | _InHdf5) -> Iterator[Block]:
    """Parts of an array that are read at once: its chunks, or pieces of the first axis (of the second, where one piece
    would be too large) that lie together.
    """
    shape, item = stored.shape, stored.dtype.itemsize
    steps: tuple[Any, ...] = stored.chunks or _steps(shape, item)
    parts = [
        [slice(start, min(start + step, length)) for start in range(0, length, step)]
        for length, step in zip(shape, steps, strict=True)
    ]
    return itertools.product(*parts)


def _steps(shape: tuple[int, ...], item: int) -> tuple[int, ...]:
    first = math.prod(shape[1:]) * item
    if first <= _BLOCK:
        return (_BLOCK // first, *shape[1:])
    second = math.prod(shape[2:]) * item
    return (1, max(1, _BLOCK // second), *shape[2:])
