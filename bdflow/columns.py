"""Blocks of columns of a target store, read in pieces of rows, one piece ahead of its use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from bdflow.ridge_blocks import Scratch
from stores import Store

Region = dict[str, slice]
BUFFERS = 3


class Columns:
    """The latents of some stimuli of one target store.

    Parameters
    ----------
    store : a target store, `latent` (stimulus, ...).
    rows : positions of the stimuli in it, in the order they are wanted.
    per_piece : rows read at a time; where rows follow each other, pieces end where chunks end.
    """

    def __init__(self, store: Store, rows: np.ndarray, per_piece: int) -> None:
        self.store = store
        run = len(rows) > 0 and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
        chunk = store.arrays["latent"].chunks[0]
        self.pieces: list[slice | np.ndarray] = []
        at = 0
        while at < len(rows):
            if run:
                stop = int(rows[at]) + max(1, per_piece)
                if stop % chunk and stop - stop % chunk > rows[at]:
                    stop -= stop % chunk
                length = min(stop - int(rows[at]), len(rows) - at)
                self.pieces.append(slice(int(rows[at]), int(rows[at]) + length))
            else:
                length = min(max(1, per_piece), len(rows) - at)
                self.pieces.append(rows[at : at + length])
            at += length

    def requests(self, region: Region, scratch: Scratch) -> list[Callable[[str], np.ndarray]]:
        """Each reads one piece of a block, (k, t), into the buffer of that name."""
        return [partial(self._read, piece, region, scratch) for piece in self.pieces]

    def _read(self, piece: slice | np.ndarray, region: Region, scratch: Scratch, buffer: str) -> np.ndarray:
        if not isinstance(piece, slice):
            order = np.argsort(piece)
            values = self.store.read("latent", {"stimulus": piece[order], **region})[np.argsort(order)]
            return values.reshape(len(values), -1)
        array = self.store.arrays["latent"]
        lengths = {dim: part.stop - part.start for dim, part in region.items()}
        rest = [lengths.get(dim, self.store.sizes[dim]) for dim in self.store.dims("latent")[1:]]
        out = scratch.array(buffer, (piece.stop - piece.start, *rest), array.dtype.str[1:])
        return self.store.read_into(out, "latent", {"stimulus": piece, **region}).reshape(len(out), -1)


def ahead(requests: Sequence[Callable[[str], np.ndarray]]) -> Iterator[np.ndarray]:
    """The answers in order; the next is read while one is used, which stays valid until the next but one is taken."""
    with ThreadPoolExecutor(1) as reader:
        waiting = None
        for number, request in enumerate(requests):
            coming = reader.submit(request, f"piece {number % BUFFERS}")
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()
