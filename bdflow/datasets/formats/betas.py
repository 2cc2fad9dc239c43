"""One session of single-trial betas, streamed from ``.nii.gz`` or ``.nii`` files, or NSD's ``.hdf5``.

A session (over 1 GB unpacked) is never held whole: NIfTI stores the trial axis last and slowest, so the
gzip stream is unpacked into one volume at a time; the HDF5 files store one chunk per voxel, so blocks of
voxels are read there.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from bdflow.datasets.formats.grids import Grid, affine_of, form_of
from bdflow.datasets.formats.hdf5 import OpenFile
from bdflow.errors import InputError
from bdflow.stores.paths import AnyPath, no_answer, place

if TYPE_CHECKING:
    import nibabel as nib

_PIECE = 512 * 1024  # packed bytes read at once
_BLOCK = 16 * 1024 * 1024  # bytes held at once when reading HDF5
_FETCH_AGAIN = "fetch the file again (an interrupted download looks like this), then rerun."


def _stream_errors() -> Any:
    from isal import igzip_lib

    return (EOFError, OSError, zlib.error, igzip_lib.IsalError)


class BetaSession(ABC):
    """The betas of one session; NSD's int16 are 1/300 percent signal change.

    Attributes
    ----------
    path : the file.
    shape : (x, y, z) of a volume.
    n_trials : number of volumes.
    dtype : of what is read, in native byte order: the file's, or float32 where the header scales values.
    affine : (4, 4) voxel to millimetre, or None where the file states none (HDF5; no form code).
    form : NIfTI's code of what the affine's millimetres are of; 0: not known.
    """

    path: AnyPath
    shape: tuple[int, int, int]
    n_trials: int
    dtype: np.dtype
    affine: np.ndarray | None
    form: int = 0

    @property
    def grid(self) -> Grid:
        """Where its voxels lie."""
        return Grid(self.path, self.shape, self.affine)

    @abstractmethod
    def iter_volumes(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (trial, volume (x, y, z)), trials ascending from 0.

        A volume is valid until the next is asked for. The file's own checksums are verified when the iterator
        is exhausted. Raises InputError where the file is damaged, naming the trial.
        """

    def read_masked(self, mask: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Betas of the voxels in `mask` (x, y, z) bool: (n_trials, n_voxels), in C order of (x, y, z).

        Written into `out` when given (same shape and dtype). Holds one volume or one block beside the
        result. NaN in floating-point files is kept. Raises InputError where the mask does not fit or the
        file is damaged.
        """
        mask = self._check_mask(mask)
        shape = (self.n_trials, int(mask.sum()))
        if out is None:
            out = np.empty(shape, self.dtype)
        elif out.shape != shape or out.dtype != self.dtype:
            raise ValueError(f"out is {out.dtype} {out.shape}; {self.path.name} gives {self.dtype} {shape}")
        self._fill(mask, out)
        return out

    @abstractmethod
    def _fill(self, mask: np.ndarray, out: np.ndarray) -> None: ...

    def _check_mask(self, mask: np.ndarray) -> np.ndarray:
        if mask.shape != self.shape:
            raise InputError(
                self.path,
                found=f"volumes of shape {self.shape}",
                expected=f"the mask's shape {tuple(mask.shape)}",
                meaning="Mask and betas are not of the same subject and space.",
                action="take both from one subject's folder and one space, e.g. func1pt8mm.",
            )
        if mask.dtype != bool:
            raise TypeError(f"mask has dtype {mask.dtype}; pass a boolean mask, e.g. voxel_mask(volume)")
        return mask


class NiftiSession(BetaSession):
    """A session in a NIfTI file; a gzip stream is unpacked with ISA-L and checked to its end.

    Attributes
    ----------
    form : NIfTI's code of what the affine's millimetres are of (1: the scanner's); 0: the header states none.
    """

    def __init__(self, path: str | AnyPath) -> None:
        self.path = place(path)
        with _stream(self.path) as stream:
            header = self._read_header(stream)
        shape = header.get_data_shape()
        if len(shape) != 4 or min(shape) < 1:
            raise InputError(
                self.path,
                found=f"an image of shape {tuple(shape)}",
                expected="four axes (x, y, z, trial)",
                action="point to a session's single-trial betas.",
            )
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.n_trials = int(shape[3])
        self.affine, self.form = affine_of(header), form_of(header)
        self._stored = np.dtype(header.get_data_dtype())
        if self._stored.kind not in "iuf":
            raise InputError(
                self.path,
                found=f"values of type {self._stored}",
                expected="integers or floating-point numbers",
                action="convert the betas to int16 (as NSD ships them) or float32.",
            )
        slope, intercept = header.get_slope_inter()
        self._scale: tuple[float, float] | None = None
        if slope is not None and (slope, intercept or 0.0) != (1.0, 0.0):
            self._scale = (float(slope), float(intercept or 0.0))
        self.dtype = np.dtype(np.float32) if self._scale else self._stored.newbyteorder("=")

    def iter_volumes(self) -> Iterator[tuple[int, np.ndarray]]:
        for trial, flat in self._iter_flat():
            yield trial, self._native(flat).reshape(self.shape, order="F")

    def _fill(self, mask: np.ndarray, out: np.ndarray) -> None:
        index = np.ravel_multi_index(np.nonzero(mask), self.shape, order="F")
        for trial, flat in self._iter_flat():
            out[trial] = self._native(flat[index])

    def _native(self, values: np.ndarray) -> np.ndarray:
        if self._scale is None:
            return values.astype(self.dtype, copy=False)
        slope, intercept = self._scale
        with np.errstate(over="ignore"):  # what becomes infinite is an outlier, and dealt with where betas are stored
            return (values * slope + intercept).astype(np.float32)

    def _iter_flat(self) -> Iterator[tuple[int, np.ndarray]]:
        """(trial, the volume as stored, flat in Fortran order) into one reused buffer; then the checks at
        the end.
        """
        buffer = bytearray(int(np.prod(self.shape)) * self._stored.itemsize)
        view = memoryview(buffer)
        flat = np.frombuffer(buffer, self._stored)
        with _stream(self.path) as stream:
            self._read_header(stream)
            for trial in range(self.n_trials):
                self._read_volume(stream, view, trial)
                yield trial, flat
            self._check_end(stream)

    def _read_volume(self, stream: "_Gunzip | _Plain", view: memoryview, trial: int) -> None:
        size, start, reason = len(view), stream.count, "the file ends"
        try:
            done = stream.readinto(view)
        except _stream_errors() as error:
            reason, done = f"the gzip stream breaks ({error})", stream.count - start
        if done < size:
            raise InputError(
                f"{self.path}, trial {trial} (of {self.n_trials}, counted from 0)",
                found=f"that {reason} after {trial * size + done:,} bytes of betas",
                expected=f"{self.n_trials * size:,} bytes, {size:,} a trial",
                meaning="The file is truncated or damaged; nothing of this session was kept.",
                action=_FETCH_AGAIN,
            )

    def _check_end(self, stream: "_Gunzip | _Plain") -> None:
        try:
            surplus = stream.readinto(memoryview(bytearray(1)))
        except _stream_errors() as error:
            raise InputError(
                f"{self.path}, after the last trial ({self.n_trials - 1})",
                found=f"a damaged end of the gzip stream ({error})",
                expected="a checksum and a length that match the betas, and nothing after them",
                meaning="The betas that were read cannot be trusted.",
                action=_FETCH_AGAIN,
            ) from error
        if surplus:
            raise InputError(
                self.path,
                found=f"data after the last of the {self.n_trials} trials",
                expected=f"the end of the file, as the header's shape {(*self.shape, self.n_trials)} says",
                meaning="Header and data do not belong together.",
                action=_FETCH_AGAIN,
            )

    def _read_header(self, stream: "_Gunzip | _Plain") -> "nib.Nifti1Header":
        """Parse the header and leave `stream` at the first volume."""
        import nibabel as nib

        try:
            block = stream.read(4)
            kind = nib.Nifti2Header if 540 in _both_orders(block) else nib.Nifti1Header
            block += stream.read(kind.template_dtype.itemsize - 4)
            header = kind(block)
            if bytes(header["magic"].item())[:2] != b"n+":
                raise ValueError(f"magic {header['magic'].item()!r}")
            stream.read(int(header["vox_offset"]) - len(block))
        except (*_stream_errors(), nib.spatialimages.HeaderDataError, ValueError, TypeError) as error:
            raise InputError(
                self.path,
                found=f"no readable header ({error})",
                expected="a single-file NIfTI image (.nii.gz or .nii)",
                action=_FETCH_AGAIN,
            ) from error
        return header


def _stream(path: AnyPath) -> "_Gunzip | _Plain":
    return _Gunzip(path) if path.name.endswith(".gz") else _Plain(path)


def _open_file(path: AnyPath) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            path, found=f"no readable file ({error})", expected="a session's betas", action=_FETCH_AGAIN
        ) from error


class _Plain:
    """A file that is not compressed, with the words of `_Gunzip`; it has no checksum."""

    def __init__(self, path: AnyPath) -> None:
        self._file, self.count = _open_file(path), 0

    def readinto(self, view: memoryview) -> int:
        done = 0
        while done < len(view) and (size := self._file.readinto(view[done:])):
            done += size
        self.count += done
        return done

    def read(self, size: int) -> bytes:
        content = bytearray(max(0, size))
        if self.readinto(memoryview(content)) < size:
            raise EOFError("the file ends in it")
        return bytes(content)

    def __enter__(self) -> "_Plain":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def _decompressor() -> Any:
    from isal import igzip_lib

    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


class _Gunzip:
    """A gzip file unpacked by ISA-L straight into a buffer, `count` bytes so far; a context manager.

    Unlike a buffered file it delivers every byte before the point where the stream breaks. Raises EOFError where
    the stream ends before its trailer, IsalError where it is damaged, OSError where other data follow it.
    """

    def __init__(self, path: AnyPath) -> None:
        self._file = _open_file(path)
        self._member = _decompressor()
        self._ahead, self._ended = b"", False
        self.count = 0

    def readinto(self, view: memoryview) -> int:
        """Fill `view`; less only at the end of the file. Then, and only then, checksum and length are verified."""
        done = 0
        while done < len(view) and not self._ended:
            packed, self._ahead = self._ahead, b""
            if not packed and self._member.needs_input:
                packed = self._file.read(_PIECE)
            if self._member.needs_input and not packed:
                if done:
                    break
                raise EOFError("it ends before its trailer, which holds the checksum")
            piece = self._member.decompress(packed, len(view) - done)
            view[done : done + len(piece)] = piece
            done += len(piece)
            self.count += len(piece)
            if self._member.eof:
                self._next_member()
        return done

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        content = bytearray(max(0, size))
        if self.readinto(memoryview(content)) < size:
            raise EOFError("the file ends in it")
        return bytes(content)

    def _next_member(self) -> None:
        rest = (self._member.unused_data + self._file.read(_PIECE)).lstrip(b"\0")
        if not rest:
            self._ended = True
        elif rest.startswith(b"\x1f\x8b"):
            self._member, self._ahead = _decompressor(), rest
        else:
            raise OSError(f"{rest[:8]!r} follow the end of the stream")

    def __enter__(self) -> "_Gunzip":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


class Hdf5Session(BetaSession):
    """A session in NSD's HDF5 layout: dataset ``betas`` (trial, z, y, x), stored as one chunk per voxel."""

    def __init__(self, path: str | AnyPath) -> None:
        self.path = place(path)
        self.affine = None
        with self._open() as betas:
            trials, nz, ny, nx = (int(n) for n in betas.shape)
            self.dtype = betas.dtype.newbyteorder("=")
        self.shape, self.n_trials = (nx, ny, nz), trials

    def iter_volumes(self) -> Iterator[tuple[int, np.ndarray]]:
        step = max(1, _BLOCK // (int(np.prod(self.shape)) * self.dtype.itemsize))
        with self._open() as betas:
            for start in range(0, self.n_trials, step):
                block = self._read(betas, np.s_[start : start + step])
                for offset, volume in enumerate(block):
                    yield start + offset, volume.T

    def _fill(self, mask: np.ndarray, out: np.ndarray) -> None:
        with self._open() as betas:
            by_voxel = betas.chunks is not None and betas.chunks[0] > 1
            if by_voxel:
                self._fill_by_voxel(betas, mask, out)
                return
        index = np.nonzero(mask.T)
        order = self._voxel_numbers(mask)[index]
        for trial, volume in self.iter_volumes():
            out[trial, order] = volume.T[index]

    def _fill_by_voxel(self, betas: h5py.Dataset, mask: np.ndarray, out: np.ndarray) -> None:
        """Read, slice by slice of z, only the rows of x that hold a voxel of the mask."""
        number = self._voxel_numbers(mask)
        for z in np.flatnonzero(mask.any(axis=(0, 1))):
            for y in np.flatnonzero(mask[:, :, z].any(axis=0)):
                xs = np.flatnonzero(mask[:, y, z])
                row_bytes = self.n_trials * self.dtype.itemsize
                for run in np.split(xs, np.flatnonzero(np.diff(xs) > 1) + 1):
                    for part in np.array_split(run, -(-run.size * row_bytes // _BLOCK)):
                        block = self._read(betas, np.s_[:, z, y, part[0] : part[-1] + 1])
                        out[:, number[z, y, part]] = block

    def _voxel_numbers(self, mask: np.ndarray) -> np.ndarray:
        """(z, y, x) int: the column of each voxel of the mask, in C order of (x, y, z); -1 elsewhere."""
        number = np.full(mask.shape, -1, np.int64)
        number[mask] = np.arange(int(mask.sum()))
        return number.T

    def _read(self, betas: h5py.Dataset, where: object) -> np.ndarray:
        try:
            return betas[where].astype(self.dtype, copy=False)
        except OSError as error:
            no_answer(self._file.source)
            raise InputError(
                f"{self.path}, betas[{where}]",
                found=f"data that cannot be read ({error})",
                expected=f"{self.n_trials} trials of {self.shape}",
                meaning="The file is truncated or damaged; nothing of this session was kept.",
                action=_FETCH_AGAIN,
            ) from error

    @contextmanager
    def _open(self) -> Iterator[h5py.Dataset]:
        with OpenFile(self.path, expected="a session's betas in HDF5", action=_FETCH_AGAIN) as self._file:
            dataset = self._file.dataset("betas")
            if dataset is None or dataset.ndim != 4 or dataset.dtype.kind not in "iuf":
                raise InputError(
                    self.path,
                    found=self._file.found("betas"),
                    expected="a numeric dataset 'betas' (trial, z, y, x)",
                    action="point to one of NSD's betas_sessionNN.hdf5.",
                )
            yield dataset


def open_session(path: str | AnyPath) -> BetaSession:
    """Open a session's betas, ``.nii.gz`` or ``.hdf5``; only its header is read. Raises InputError."""
    path = place(path)
    if path.name.endswith(".nii.gz"):
        return NiftiSession(path)
    if path.suffix == ".hdf5":
        return Hdf5Session(path)
    raise InputError(
        path,
        found=f"the ending {path.suffix!r}",
        expected=".nii.gz or .hdf5",
        action="use NSD's own beta files.",
    )


def _both_orders(block: bytes) -> tuple[int, int]:
    return int.from_bytes(block, "little"), int.from_bytes(block, "big")
