"""Reading tensors out of files with all cores at hand, into memory of their own.

Cold files come at the speed of the disk; what is left to lose is the time in which the disk waits while modules are
built, the first touch of new memory, and a call for each of thousands of small tensors (`filling`).
"""

import mmap
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

CHUNK_BYTES = 4 * 2**20
SHARE_BYTES = 64 * 2**20
MOST_READERS = 4
ALIGNMENT = 64
MOST_VIEWS = 1000  # the system takes 1,024


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


class FileEnds(EOFError):
    """A file that ends before its last piece."""

    def __init__(self, path: Path) -> None:
        super().__init__("it ends within a tensor")
        self.path = path


@contextmanager
def filling(files: Sequence[tuple[Path, Sequence[Piece]]]) -> Iterator[None]:
    """Fill the targets of all pieces of some files, by several threads, while the body runs; when it is left, all are
    filled. With one core they are read after the body. An exception in the body stops the reading.

    Raises FileEnds when a file ends too early.
    """
    shares = deque((path, share) for path, pieces in files for share in _shares(pieces))
    readers = max(1, min(MOST_READERS, cores(), len(shares)))
    stop = threading.Event()

    def work() -> None:
        scratch = memoryview(bytearray(CHUNK_BYTES))
        while not stop.is_set():
            try:
                path, share = shares.popleft()
            except IndexError:
                return
            with path.open("rb", buffering=0) as file:
                try:
                    _read(file.fileno(), share, scratch)
                except EOFError:
                    raise FileEnds(path) from None

    with ThreadPoolExecutor(readers, thread_name_prefix="bdflow-read") as pool:
        jobs = [pool.submit(work) for _ in range(readers)] if cores() > 1 else []
        try:
            yield
        except BaseException:
            stop.set()
            raise
        for job in jobs or [pool.submit(work)]:
            job.result()


def _shares(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Runs of pieces of SHARE_BYTES or a little more: what one thread takes at a time."""
    shares: list[list[Piece]] = []
    taken = SHARE_BYTES
    for piece in pieces:
        if taken >= SHARE_BYTES:
            shares.append([])
            taken = 0
        shares[-1].append(piece)
        taken += piece.nbytes
    return shares


def _read(file: int, share: Sequence[Piece], scratch: memoryview) -> None:
    """Pieces that need no change and lie close to each other come in one call, what is between them in `scratch`."""
    views: list[memoryview] = []
    begin = end = 0
    for piece in share:
        gap = piece.place - end
        if views and (piece.direct is None or not 0 <= gap <= len(scratch) or len(views) > MOST_VIEWS):
            _fill(file, views, begin)
            views = []
        if piece.direct is None:
            view = scratch[: piece.nbytes]
            _fill(file, [view], piece.place)
            piece.target.copy_(_widened(torch.frombuffer(view, dtype=piece.stored), piece.target.dtype))
            continue
        if not views:
            begin = piece.place
        elif gap:
            views.append(scratch[:gap])
        views.append(piece.direct)
        end = piece.place + piece.nbytes
    _fill(file, views, begin)


def _fill(file: int, views: list[memoryview], place: int) -> None:
    while views:
        count = os.preadv(file, views, place)
        if not count:
            raise EOFError
        place += count
        done = 0
        while done < len(views) and count >= len(views[done]):
            count -= len(views[done])
            done += 1
        views = views[done:]
        if count:
            views[0] = views[0][count:]


def _widened(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Through float32 from one 16-bit type to the other: exact, and several times faster on a CPU."""
    return values.float() if values.dtype != dtype and values.element_size() == dtype.itemsize == 2 else values
