"""Betas of a session out of an array (trial, voxel): only the chunks that hold voxels of the mask, a few at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from bdflow.datasets.arrays.hierarchy import Index, Variable
from bdflow.datasets.contract import SessionBetas

BLOCK = 64 * 1024 * 1024  # bytes of decoded chunks held at once; one chunk at least
_LARGE_CHUNK = 2**30
_MOST_CHUNKS = 100_000
_OFTEN = 4


def read_into(out: np.ndarray, beta: Variable, rows: slice, columns: np.ndarray, places: np.ndarray) -> None:
    """Read betas of a session into `out` (trial of the session, voxel of the mask).

    Parameters
    ----------
    rows : the session's in the array.
    columns : (n,) ascending: columns of the array to read; `places`: the column of `out` each goes to.
    """
    for block, part in _blocks(beta, rows, columns):
        some = columns[part]
        whole = len(some) == some[-1] - some[0] + 1
        index: Index = slice(int(some[0]), int(some[-1]) + 1) if whole else some
        out[block.start - rows.start : block.stop - rows.start, places[part]] = beta.read(block, index)


def _blocks(beta: Variable, rows: slice, columns: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Rows, and a part of `columns`, to read at once: whole chunks of at most `BLOCK` bytes. None is decoded twice."""
    if not columns.size:
        return
    tall, wide = beta.chunks
    most = max(1, BLOCK // (tall * wide * beta.dtype.itemsize))
    edges = [rows.start, *range((rows.start // tall + 1) * tall, rows.stop, tall), rows.stop]
    down = min(most, len(edges) - 1)
    starts = np.flatnonzero(np.diff(columns // wide, prepend=-1))
    across = max(1, most // down)
    for first in range(0, len(starts), across):
        stop = starts[first + across] if first + across < len(starts) else len(columns)
        for edge in range(0, len(edges) - 1, down):
            block = slice(edges[edge], edges[min(edge + down, len(edges) - 1)])
            yield block, slice(int(starts[first]), int(stop))


def whole_numbers(betas: np.ndarray, listed: np.ndarray, said: np.ndarray | None) -> SessionBetas:
    """Betas (trials, voxels) int16 of one session, and which are valid; the others become 0 in place.

    Parameters
    ----------
    listed : (voxels,) bool: which the dataset has betas of.
    said : (voxels,) bool: which the session measured; None where the dataset does not say. Then a voxel that has the
        same value in every trial of several was not measured.
    """
    if said is None:
        said = betas.min(axis=0) < betas.max(axis=0) if len(betas) > 1 else np.ones(betas.shape[1], bool)
    valid = said & listed
    betas[:, ~valid] = 0
    return SessionBetas(betas, np.repeat(valid[None], len(betas), axis=0))


def slow_reading(beta: Variable, sessions: Sequence[slice]) -> str | None:
    """What makes sessions of an array slow to read, or need much memory; None if nothing does."""
    tall, wide = beta.chunks
    size, count = (
        tall * wide * beta.dtype.itemsize,
        math.prod(-(-n // c) for n, c in zip(beta.shape, (tall, wide), strict=True)),
    )
    decoded = sum((-(-rows.stop // tall) - rows.start // tall) * tall for rows in sessions)
    if size > _LARGE_CHUNK:
        return f"a chunk holds {size / 2**30:.1f} GiB, and is decoded as a whole"
    if count > _MOST_CHUNKS and wide < 64:
        return f"{count:,} chunks, of {wide} voxels each"
    if decoded > _OFTEN * beta.shape[0]:
        return f"chunks of {tall} trials, which are decoded anew for each of the {len(sessions)} sessions they hold"
    return None
