"""Reading tensors out of files with all cores at hand, into memory of their own.

Cold files come at the speed of the disk; what is left to lose is the time in which the disk waits (`ReadAhead`)
and the first touch of new memory (`room`, `read_pieces`).
"""

import mmap
import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

CHUNK_BYTES = 4 * 2**20
SHARE_BYTES = 4 * 2**20
MOST_READERS = 4
ALIGNMENT = 64
AHEAD_BUFFER = 256 * 2**10
AHEAD_BUFFERS = 128


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def room(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Uninitialised flat tensors of so many elements. On the CPU they lie in one mapping, which goes when its last
    tensor does; the readers touch it for the first time, side by side.
    """
    sizes = [torch.Size(shape).numel() for shape in shapes]
    if torch.device(device).type != "cpu":
        return [torch.empty(size, dtype=dtype, device=device) for size in sizes]
    begins, end = [], 0
    for size in sizes:
        begins.append(end)
        end += -(-size * dtype.itemsize // ALIGNMENT) * ALIGNMENT
    memory = mmap.mmap(-1, max(end, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return [
        torch.frombuffer(memory, dtype=dtype, count=size, offset=begin) if size else torch.empty(0, dtype=dtype)
        for begin, size in zip(begins, sizes, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a file: `place` and `nbytes` in bytes, elements of type `stored`, and the flat tensor that they
    fill. `direct` is that tensor's memory where they need no change on their way into it.
    """

    place: int
    nbytes: int
    stored: torch.dtype
    target: Tensor
    direct: memoryview | None


def pieces_of(place: int, stored: torch.dtype, target: Tensor) -> list[Piece]:
    """A tensor's stretch in pieces of at most CHUNK_BYTES."""
    size = stored.itemsize
    step = CHUNK_BYTES // size
    whole = target.numel()
    direct: memoryview | None = None
    if stored == target.dtype and target.device.type == "cpu" and whole:
        direct = memoryview(target.view(torch.uint8).numpy())  # type: ignore[arg-type]
        if whole <= step:
            return [Piece(place, whole * size, stored, target, direct)]
    pieces = []
    for start in range(0, whole, step):
        end = min(start + step, whole)
        view = None if direct is None else direct[start * size : end * size]
        pieces.append(Piece(place + start * size, (end - start) * size, stored, target[start:end], view))
    return pieces


def read_pieces(path: Path, pieces: Sequence[Piece]) -> None:
    """Fill the targets of all pieces of a file, by several threads. Raises EOFError when the file ends too early."""
    shares: deque[list[Piece]] = deque()
    taken = SHARE_BYTES
    for piece in pieces:
        if taken >= SHARE_BYTES:
            shares.append([])
            taken = 0
        shares[-1].append(piece)
        taken += piece.nbytes

    def work() -> None:
        scratch = memoryview(bytearray(CHUNK_BYTES))
        with path.open("rb", buffering=0) as file:
            while shares:
                try:
                    share = shares.popleft()
                except IndexError:  # another thread took the last one
                    return
                for piece in share:
                    _read(file.fileno(), piece, scratch)

    readers = max(1, min(MOST_READERS, cores(), len(shares)))
    with ThreadPoolExecutor(readers) as pool:
        for done in [pool.submit(work) for _ in range(readers)]:
            done.result()


def _read(file: int, piece: Piece, scratch: memoryview) -> None:
    if piece.direct is not None:
        _fill(file, piece.direct, piece.place)
        return
    view = scratch[: piece.nbytes]
    _fill(file, view, piece.place)
    piece.target.copy_(_widened(torch.frombuffer(view, dtype=piece.stored), piece.target.dtype))


def _fill(file: int, view: memoryview, place: int) -> None:
    while view:
        count = os.preadv(file, [view], place)
        if not count:
            raise EOFError("it ends within a tensor")
        view, place = view[count:], place + count


def _widened(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Through float32 from one 16-bit type to the other: exact, and several times faster on a CPU."""
    return values.float() if values.dtype != dtype and values.element_size() == dtype.itemsize == 2 else values


class ReadAhead:
    """While this context is open, a thread reads stretches (file, place, bytes) into the system's page cache,
    one after the other, and throws them away: the disk works while modules are built. With one core it does nothing.
    """

    def __init__(self, stretches: Iterable[tuple[Path, int, int]]) -> None:
        self.stretches = list(stretches)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="bdflow-read-ahead", daemon=True)

    def __enter__(self) -> "ReadAhead":
        if cores() > 1:
            self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        if self.thread.ident is not None:
            self.thread.join()

    def _run(self) -> None:
        # One buffer many times over: a call then reads 32 MiB without asking for Python's lock, which the
        # main thread holds most of the time.
        buffer = bytearray(AHEAD_BUFFER)
        for path, place, size in self.stretches:
            try:
                with path.open("rb", buffering=0) as file:
                    end = place + size
                    while place < end and not self.stop.is_set():
                        buffers = [buffer] * min(AHEAD_BUFFERS, -(-(end - place) // AHEAD_BUFFER))
                        count = os.preadv(file.fileno(), buffers, place)
                        if not count:
                            break
                        place += count
            except OSError:
                return  # the reading proper meets the same error, and says so
