"""Blocks of columns of targets: read in pieces of rows, one ahead of its use, or whole and once for all subjects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from bdflow.regression.copies import Copies, OnHost
from bdflow.regression.streaming import Scratch
from bdflow.stores import Store
from bdflow.study.coordinates import LAYER, PLACES, layers_from
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
                if here.stop < store.sizes["stimulus_id"] and at + length < len(rows) and over < length:
                    length -= over
                yield slice(start, start + length)
            at += length

    def _read(self, piece: slice | np.ndarray, region: Region, scratch: Scratch, buffer: str) -> np.ndarray:
        if not isinstance(piece, slice):
            order = np.argsort(piece)
            values = self.targets.read("latent", {"stimulus_id": piece[order], **region})[np.argsort(order)]
            return values.reshape(len(values), -1)
        store, rows = self.targets.run(piece)
        lengths = {dim: part.stop - part.start for dim, part in region.items()}
        rest = [lengths.get(dim, store.sizes[dim]) for dim in store.dims("latent")[1:]]
        out = scratch.array(buffer, (rows.stop - rows.start, *rest), store.arrays["latent"].dtype.str[1:])
        return store.read_into(out, "latent", {"stimulus_id": rows, **region}).reshape(len(out), -1)


def ahead(requests: Sequence[Callable[[str], np.ndarray]], copies: Copies | None = None) -> Iterator[Any]:
    """The answers in order, where arithmetic runs; the next is read while one is used. Each stays valid until the next
    is taken; on the CPU until the next but one.

    Parameters
    ----------
    requests : each reads a piece into the buffer of the name that it is given.
    copies : the way to the GPU; None: pieces stay where they are.
    """
    copies = copies or OnHost()

    def pieces() -> Iterator[np.ndarray]:
        earlier = copies.left()  # of the same buffers, before this call
        left: dict[str, Callable[[], None]] = {}
        with ThreadPoolExecutor(1) as reader:
            waiting: tuple[str, Future[np.ndarray]] | None = None
            for number, request in enumerate(requests):
                name = f"piece {number % BUFFERS}"
                coming = reader.submit(_read_when_left, request, name, left.pop(name, earlier))
                if waiting is not None:
                    yield waiting[1].result()
                    left[waiting[0]] = copies.left()
                waiting = name, coming
            if waiting is not None:
                yield waiting[1].result()

    return copies.pieces(pieces())


def _read_when_left(request: Callable[[str], np.ndarray], name: str, left: Callable[[], None]) -> np.ndarray:
    left()
    return request(name)


class SharedBlocks:
    """Blocks of columns, each read once, whatever number of subjects wants rows of it.

    Parameters
    ----------
    targets : the stores of a space's targets, `latent` (stimulus, ...).
    wanted : positions of stimuli in them, (k,), by whoever wants them, in the order they are wanted.
    per_piece : rows of a piece.
    """

    def __init__(self, targets: Joined, wanted: Mapping[str, np.ndarray], per_piece: int) -> None:
        self.targets, self.per_piece = targets, max(1, per_piece)
        self.rows = np.unique(np.concatenate(list(wanted.values())))
        self._places = {name: np.searchsorted(self.rows, rows) for name, rows in wanted.items()}
        self._keys = {name: rows.tobytes() for name, rows in wanted.items()}

    def read(self, region: Region, scratch: Scratch, buffer: str) -> np.ndarray:
        """A block of all rows that anybody wants, (k, t), in the buffer of that name."""
        lengths = {dim: part.stop - part.start for dim, part in region.items()}
        first = self.targets.first
        rest = [lengths.get(dim, first.sizes[dim]) for dim in first.dims("latent")[1:]]
        out = scratch.array(buffer, (len(self.rows), *rest), first.arrays["latent"].dtype.str[1:])
        at = 0
        for store, rows in self.targets.cut(self.rows):
            here = as_slice(rows)
            into = out[at : at + len(rows)]
            if isinstance(here, slice):
                store.read_into(into, "latent", {"stimulus_id": here, **region})
            else:
                into[...] = store.read("latent", {"stimulus_id": here, **region})
            at += len(rows)
        return out.reshape(len(out), -1)

    def key(self, name: str) -> bytes:
        """The same for all who want the same stimuli in the same order."""
        return self._keys[name]

    def pieces(self, block: np.ndarray, name: str) -> list[np.ndarray]:
        """The rows of a block that somebody wants, in pieces; no copy is made of rows that follow each other."""
        places = self._places[name]
        cut = [places[start : start + self.per_piece] for start in range(0, len(places), self.per_piece)]
        return [block[as_slice(piece)] for piece in cut]


def as_slice(rows: np.ndarray) -> slice | np.ndarray:
    """The same rows as a slice where they are one run: no copy is made of what a slice takes."""
    run = len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
    return slice(int(rows[0]), int(rows[0]) + len(rows)) if run else rows


def layers_of(targets: Store) -> list[tuple[int, ...]]:
    """Shapes (channel, y, x) of the layers whose values follow one another in a latent; empty if there are none."""
    return layers_from([targets.read(name) for name in PLACES]) if LAYER in targets.arrays else []
