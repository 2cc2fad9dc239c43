"""Files of `numpy.save`, read without trust: a header is believed only as far as the bytes behind it go."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from bdflow.errors import InputError

REAL = "fiu"
"""Kinds of dtypes that are real numbers."""


def header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran's order, and dtype of the array that begins here. Raises ValueError."""
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream)
    except Exception as error:  # numpy's parser raises whatever Python's own does
        raise ValueError(f"no header of an .npy file: {type(error).__name__}: {error}") from error
    if any(isinstance(n, bool) or not 0 <= n < 2**63 for n in shape) or len(shape) > 32:
        raise ValueError(f"an impossible shape {str(shape)[:200]}")
    return shape, fortran, dtype


def check(stream: IO[bytes], size: int) -> None:
    """Refuse what is not one whole array of plain values in a file of `size` bytes; leaves the stream at its
    beginning. Raises ValueError.
    """
    if stream.read(4) == b"PK\x03\x04":
        raise ValueError("several arrays: an .npz file")
    stream.seek(0)
    shape, _, dtype = header(stream)
    if dtype.hasobject:
        raise ValueError("Python objects, which can run code when they are loaded")
    if dtype.kind == "V":
        raise ValueError(f"records ({str(dtype)[:200]}), not plain values")
    expected, found = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if expected != found:
        raise ValueError(f"{found:,} bytes for {dtype} of shape {shape}, which takes {expected:,}")
    stream.seek(0)


def load(path: Path) -> np.ndarray:
    """The one array of a file. Raises OSError, and ValueError for what `check` refuses."""
    with path.open("rb") as stream:
        check(stream, path.stat().st_size)
        values: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    return values


def member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an .npz file. Raises KeyError if there is none, ValueError for two and for what `check` refuses."""
    if archive.namelist().count(f"{name}.npy") > 1:
        raise ValueError(f"two arrays {name}")
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as stream:
        check(stream, info.file_size)
        values: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    return values


def real(where: object, values: np.ndarray, expected: str) -> np.ndarray:
    """The array, if it holds real numbers. Raises InputError for complex ones, truths, text and everything else."""
    if values.dtype.kind not in REAL:
        raise InputError(
            where,
            found=f"{values.dtype} of shape {values.shape}",
            expected=expected,
            action="convert it to real numbers, such as float32",
        )
    return values
