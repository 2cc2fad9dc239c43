"""The images and captions of NSD's stimuli, read by 0-based nsd_id."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bdflow import npy
from bdflow.datasets.formats.hdf5 import OpenFile
from bdflow.datasets.formats.identity import missing
from bdflow.errors import InputError
from bdflow.stores.paths import AnyPath, no_answer, place


class Stimuli:
    """The images of an ``nsd_stimuli.hdf5``: ``imgBrick`` (stimulus, y, x, rgb) uint8; a context manager.

    Attributes
    ----------
    count : number of stimuli (NSD: 73,000).
    shape : (y, x, rgb) of an image (NSD: 425, 425, 3).
    """

    def __init__(self, path: str | AnyPath) -> None:
        self.path = place(path)
        if not self.path.is_file():
            raise missing(self.path, "NSD's stimuli")
        self._file = OpenFile(self.path, expected="NSD's stimuli", action="fetch the file again.")
        brick = self._file.dataset("imgBrick")
        if brick is None or brick.ndim != 4 or brick.shape[-1] != 3 or brick.dtype != np.uint8:
            found = self._file.found("imgBrick")
            self._file.close()
            raise InputError(
                self.path,
                found=found,
                expected="a dataset imgBrick (stimulus, y, x, 3) of uint8",
                action="use NSD's own nsd_stimuli.hdf5.",
            )
        self._brick = brick
        self.count = int(brick.shape[0])
        self.shape = (int(brick.shape[1]), int(brick.shape[2]), 3)

    def read(self, nsd_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images (n, y, x, 3) uint8 in the order of `nsd_ids` (0-based, also repeated). Raises InputError."""
        ids = _check_ids(nsd_ids, self.count, self.path)
        images = np.empty((ids.size, *self.shape), np.uint8)
        unique = np.unique(ids)
        for run in np.split(unique, np.flatnonzero(np.diff(unique) > 1) + 1):
            for start in range(0, run.size, 64):
                part = run[start : start + 64]
                try:
                    block = self._brick[part[0] : part[-1] + 1]
                except OSError as error:
                    no_answer(self._file.source)
                    raise InputError(
                        f"{self.path}, images {part[0]} to {part[-1]}",
                        found=f"data that cannot be read ({error})",
                        expected=f"{self.count} images",
                        action="fetch the file again.",
                    ) from error
                rows = np.flatnonzero((ids >= part[0]) & (ids <= part[-1]))
                images[rows] = block[ids[rows] - part[0]]
        return images

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Stimuli":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Captions:
    """Captions of the stimuli, a ``.npy`` of unicode (stimulus, caption), unused ones empty; memory-mapped, or read
    whole from an object store.

    Attributes
    ----------
    count : number of stimuli.
    per_stimulus : most captions a stimulus can have (NSD: 5).
    """

    def __init__(self, path: str | AnyPath, *, count: int | None = None) -> None:
        self.path = place(path)
        if not self.path.is_file():
            raise missing(self.path, "the captions")
        try:
            if isinstance(self.path, Path):
                with self.path.open("rb") as stream:
                    npy.check(stream, self.path.stat().st_size)
            self._array: Any = (
                np.load(self.path, mmap_mode="r", allow_pickle=False)
                if isinstance(self.path, Path)
                else _array_of(self.path.read_bytes())
            )
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                self.path,
                found=f"no plain array ({error})",
                expected="unicode text (stimulus, caption)",
                meaning="Pickled objects are not loaded: they can run code.",
                action="save the captions as a numpy array of type str.",
            ) from error
        if not isinstance(self._array, np.ndarray) or self._array.ndim != 2 or self._array.dtype.kind != "U":
            kind = getattr(self._array, "dtype", type(self._array).__name__)
            raise InputError(
                self.path,
                found=f"{kind} of shape {getattr(self._array, 'shape', '?')}",
                expected="unicode text (stimulus, caption)",
                action="save the captions as a two-dimensional numpy array of type str.",
            )
        if count is not None and len(self._array) != count:
            raise InputError(
                self.path,
                found=f"captions of {len(self._array)} stimuli",
                expected=f"{count}, as many as there are stimuli",
                meaning="Captions and images cannot be matched.",
                action="use captions and stimuli of one dataset.",
            )
        self.count, self.per_stimulus = (int(n) for n in self._array.shape)

    def read(self, nsd_ids: Sequence[int] | np.ndarray) -> list[list[str]]:
        """Captions of each of `nsd_ids` (0-based), in that order, empty ones dropped. Raises InputError."""
        ids = _check_ids(nsd_ids, self.count, self.path)
        return [[str(text) for text in self._array[i] if text.strip()] for i in ids]


def _array_of(content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    npy.check(stream, len(content))
    values: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    return values


def _check_ids(nsd_ids: Sequence[int] | np.ndarray, count: int, path: AnyPath) -> np.ndarray:
    ids = np.asarray(nsd_ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise InputError(
            f"{path}, nsd_ids",
            found=f"{ids.dtype} of shape {ids.shape}",
            expected="a list of whole numbers",
            action="hand in one nsd_id for each stimulus",
        )
    ids = ids.astype(np.int64)
    outside = ids[(ids < 0) | (ids >= count)]
    if outside.size:
        raise InputError(
            f"{path}, nsd_id {outside[0]}",
            found=f"an id outside the {count} stimuli",
            expected=f"0 to {count - 1}",
            action="use design, stimuli and captions of one dataset.",
        )
    return ids
