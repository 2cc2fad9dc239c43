"""Copies between the host and a GPU beside the GPU's arithmetic; on the CPU there is nothing to copy.

A GPU works through streams: what is put into one is done in order, and nothing is known between two of them. Arithmetic
runs in the current stream of the thread that asks for it. Copies in have one stream, copies out another: a result that
waits for its arithmetic must not hold up the piece that this arithmetic waits for. Events say who waits for whom:

- A place on the GPU is filled again when the arithmetic that read it is done.
- Arithmetic reads a place when its copy is done.
- Memory of the host is written again when the copies from it are done (`left`), and read when the copies to it are.

Host memory is page-locked and used again, as are the places, so that no copy waits for memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from bdflow.regression.device import cupy_module
from bdflow.regression.ridge import Array
from bdflow.regression.streaming import Scratch

PLACES = 2  # on the GPU: one is filled while the other is read


class Copies(Protocol):
    """Ways in and out of where arithmetic runs, for one worker."""

    def scratch(self) -> Scratch:
        """Memory of the host, used again, that pieces are read into."""

    def pieces(self, pieces: Iterable[np.ndarray]) -> Iterator[Array]:
        """The pieces in order, where arithmetic runs. Each stays valid until the next is taken; what the current stream
        was asked to do with it until then counts.
        """

    def left(self) -> Callable[[], None]:
        """A function that returns when all pieces taken so far have left the host's memory."""

    def sent(self, values: Mapping[str, Array]) -> Callable[[], dict[str, np.ndarray]]:
        """A function that gives results as NumPy arrays, each valid until the next but one is asked for; it may be
        called by another thread, one at a time.
        """


def copies_of(device: str) -> Copies:
    """For "cpu" or "cuda". Raises InputError if there is no CuPy."""
    return OnHost() if device == "cpu" else OnGpu()


class OnHost:
    """See `Copies`: arithmetic reads the host's memory itself."""

    def scratch(self) -> Scratch:
        return Scratch()

    def pieces(self, pieces: Iterable[np.ndarray]) -> Iterator[Array]:
        yield from pieces

    def left(self) -> Callable[[], None]:
        return _at_once

    def sent(self, values: Mapping[str, Array]) -> Callable[[], dict[str, np.ndarray]]:
        return lambda: dict(values)


def _at_once() -> None:
    pass


class Pinned(Scratch):
    """Page-locked memory: copies from it and to it run beside the host's own work."""

    def empty(self, size: int, dtype: DTypeLike) -> np.ndarray:
        from cupyx import empty_pinned

        found: np.ndarray = empty_pinned((size,), dtype)
        return found


class _Place:
    """Memory of the GPU that pieces are copied to, one after the other."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self.memory: Array = None
        self.source: np.ndarray | None = None
        self.filled, self.freed = (cupy.cuda.Event(disable_timing=True) for _ in range(2))

    def fill(self, piece: np.ndarray, copying: Any, computing: Any) -> Array:
        """Have the piece copied; `computing` will wait for it."""
        if self.source is not None:
            self.filled.synchronize()  # so long the last piece is kept
        self.source = piece = np.ascontiguousarray(piece)
        if self.memory is None or self.memory.nbytes < piece.nbytes:
            # Work that was asked for may still read what lay there, in this memory or before it was given out.
            self.memory = self.cupy.empty((piece.nbytes,), dtype=self.cupy.uint8)
            self.freed.record(computing)
        copying.wait_event(self.freed)
        values = self.memory[: piece.nbytes].view(piece.dtype).reshape(piece.shape)
        values.set(piece, stream=copying)
        self.filled.record(copying)
        computing.wait_event(self.filled)
        return values


class OnGpu:
    """See `Copies`. One of its iterators of pieces is in use at a time."""

    def __init__(self) -> None:
        self.cupy = cupy_module()
        self._in, self._out = (self.cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        self._places = [_Place(self.cupy) for _ in range(PLACES)]
        self._results, self._turn = [Pinned(), Pinned()], 0

    def scratch(self) -> Scratch:
        return Pinned()

    def pieces(self, pieces: Iterable[np.ndarray]) -> Iterator[Array]:
        for number, piece in enumerate(pieces):
            place, computing = self._places[number % PLACES], self.cupy.cuda.get_current_stream()
            try:
                yield place.fill(piece, self._in, computing)
            finally:
                place.freed.record(computing)

    def left(self) -> Callable[[], None]:
        copied = self.cupy.cuda.Event(disable_timing=True)
        copied.record(self._in)
        wait: Callable[[], None] = copied.synchronize
        return wait

    def sent(self, values: Mapping[str, Array]) -> Callable[[], dict[str, np.ndarray]]:
        done = self.cupy.cuda.Event(disable_timing=True)
        done.record(self.cupy.cuda.get_current_stream())

        def taken() -> dict[str, np.ndarray]:
            self._turn = 1 - self._turn
            into = self._results[self._turn]
            self._out.wait_event(done)
            with self._out:  # also where CuPy has to make an array contiguous first
                found = {
                    name: value.get(out=into.array(name, value.shape, value.dtype.str[1:]))
                    for name, value in values.items()
                }
            self._out.synchronize()
            return found

        return taken
