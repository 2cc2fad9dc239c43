"""HDF5 files on a disk or in an object store, opened so that a process can always end."""

import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import h5py

from bdflow.errors import InputError, listed
from bdflow.stores.paths import AnyPath, no_answer, readable


class OpenFile:
    """An HDF5 file open for reading; a context manager.

    It is closed when this object goes, and at the end of the process at the latest; one that could not be opened is let
    go at once. HDF5 calls Python when it frees a file in an object store, and crashes if Python has ended by then.

    Parameters
    ----------
    path : the file. Raises InputError if it is none, StoreError if the object store does not answer.
    expected : what the file should be, and `action`, what to do about it, for the error.
    """

    def __init__(self, path: AnyPath, *, expected: str, action: str) -> None:
        self.path, self._expected, self._action = path, expected, action
        self.source = readable(path)
        with self._readable():
            self.file = h5py.File(self.source, "r")
        self._end = weakref.finalize(self, self.file.close)

    def dataset(self, name: str) -> h5py.Dataset | None:
        """The dataset of that name, None if there is none; raises as opening does."""
        with self._readable():
            found = self.file.get(name)
        return found if isinstance(found, h5py.Dataset) else None

    def found(self, name: str) -> str:
        """What the file holds, for an error about its dataset `name`."""
        dataset = self.dataset(name)
        return (
            f"the datasets {listed(sorted(self.file)) or 'none'}"
            if dataset is None
            else f"{name} {dataset.dtype} {dataset.shape}"
        )

    def close(self) -> None:
        """Close the file; once more does nothing."""
        self._end()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            # h5py's frames hold what HDF5 has of the file for as long as the error lives
            traceback.clear_frames(error.__traceback__)
            if not isinstance(error, OSError):
                raise
            no_answer(self.source)
            found = f"no readable HDF5 file ({error})"
            raise InputError(self.path, found=found, expected=self._expected, action=self._action) from error

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
