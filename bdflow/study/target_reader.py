"""Blocks of columns of a target store, read in pieces of rows, one piece ahead of its use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import numpy as np

from bdflow.regression.device import to_device
from bdflow.regression.streaming import Scratch
from bdflow.stores import Store
from bdflow.study.catalog import LAYERS

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
        self.store, self.rows, self.per_piece = store, rows, max(1, per_piece)
        self.run = len(rows) > 0 and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
        self.chunk = store.arrays["latent"].chunks[0]

    def requests(self, region: Region, scratch: Scratch, lead: int | None = None) -> list[Callable[[str], np.ndarray]]:
        """Each reads one piece of a block, (k, t), into the buffer of that name; the first has `lead` rows at most, so
        that there is soon something to work on while the next is read.
        """
        return [partial(self._read, piece, region, scratch) for piece in self._pieces(lead or self.per_piece)]

    def _pieces(self, lead: int) -> Iterator[slice | np.ndarray]:
        at, rows = 0, self.rows
        while at < len(rows):
            length = min(self.per_piece, len(rows) - at) if at else min(lead, self.per_piece, len(rows))
            if not self.run:
                yield rows[at : at + length]
            else:
                start, over = int(rows[at]), (int(rows[at]) + length) % self.chunk
                if at + length < len(rows) and over < length:
                    length -= over
                yield slice(start, start + length)
            at += length

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


def ahead(requests: Sequence[Callable[[str], np.ndarray]], device: str = "cpu") -> Iterator[Any]:
    """The answers in order, on the device; the next is read, and copied to a GPU, while one is used. Each stays valid
    until the next but one is taken.
    """
    with ThreadPoolExecutor(1) as reader:
        waiting = None
        for number, request in enumerate(requests):
            coming = reader.submit(
                lambda read, name: to_device(read(name), device), request, f"piece {number % BUFFERS}"
            )
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


def layers_of(targets: Store) -> list[tuple[int, ...]]:
    """Shapes (channel, y, x) of the layers whose values follow one another in a latent; empty if there are none."""
    found = targets.arrays["latent"].attrs.get(LAYERS, [])
    return [tuple(layer) for layer in cast(list[list[int]], found)]
