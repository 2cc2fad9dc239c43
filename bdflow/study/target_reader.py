"""Blocks of columns of targets, read in pieces of rows, one piece ahead of its use."""

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
from bdflow.study.parts import Joined

Region = dict[str, slice]
BUFFERS = 3


class Columns:
    """The latents of some stimuli of a space.

    Parameters
    ----------
    targets : the stores of its targets, `latent` (stimulus, ...).
    rows : positions of the stimuli in them, in the order they are wanted.
    per_piece : rows read at a time; where rows follow each other, pieces end where chunks and stores end.
    """

    def __init__(self, targets: Joined, rows: np.ndarray, per_piece: int) -> None:
        self.targets, self.rows, self.per_piece = targets, rows, max(1, per_piece)
        self.run = len(rows) > 0 and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))

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
                start = int(rows[at])
                store, here = self.targets.run(slice(start, start + length))
                length, over = here.stop - here.start, here.stop % store.arrays["latent"].chunks[0]
                if here.stop < store.sizes["stimulus"] and at + length < len(rows) and over < length:
                    length -= over
                yield slice(start, start + length)
            at += length

    def _read(self, piece: slice | np.ndarray, region: Region, scratch: Scratch, buffer: str) -> np.ndarray:
        if not isinstance(piece, slice):
            order = np.argsort(piece)
            values = self.targets.read("latent", {"stimulus": piece[order], **region})[np.argsort(order)]
            return values.reshape(len(values), -1)
        store, rows = self.targets.run(piece)
        lengths = {dim: part.stop - part.start for dim, part in region.items()}
        rest = [lengths.get(dim, store.sizes[dim]) for dim in store.dims("latent")[1:]]
        out = scratch.array(buffer, (rows.stop - rows.start, *rest), store.arrays["latent"].dtype.str[1:])
        return store.read_into(out, "latent", {"stimulus": rows, **region}).reshape(len(out), -1)


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
