"""Identity of a file of a dataset: all it holds counts, and of compressed volumes not all need be read."""

from __future__ import annotations

import hashlib
import math
import struct
import zlib

from bdflow.errors import NotAtHand
from bdflow.stores import inputs
from bdflow.stores.paths import AnyPath, RemotePath, place

EDGE = 64 * 1024
HEADER = 348  # bytes of a NIfTI-1 header


def identity(path: str | AnyPath) -> str:
    """Identity of a file's content; the same content is the same wherever it lies.

    A ``.nii.gz`` ends with the CRC32 and the length of all it holds. Where that length is the one its header asks for,
    these cover every voxel, and its size and both ends (64 KiB each) identify it. Any other file is read whole, or
    known from before (`bdflow.stores.inputs`).

    Raises
    ------
    NotAtHand : no such file, or it cannot be read.
    """
    path = place(path)
    try:
        if path.name.endswith(".nii.gz"):
            size = path.stat().st_size
            head, tail = _ends(path, size)
            if size > 2 * EDGE and _covered(head, tail):
                return f"{size}:{hashlib.blake2b(head + tail, digest_size=16).hexdigest()}"
        return inputs.identity(path)
    except OSError as error:
        raise missing(path, "an input file", f"({error.strerror})") from error


def _ends(path: AnyPath, size: int) -> tuple[bytes, bytes]:
    if isinstance(path, RemotePath):
        head = path.read_range(0, min(size, EDGE)) if size else b""
        return head, path.read_range(max(EDGE, size - EDGE), size) if size > EDGE else b""
    with path.open("rb") as file:
        head = file.read(EDGE)
        file.seek(max(len(head), size - EDGE))
        return head, file.read()


def _covered(head: bytes, tail: bytes) -> bool:
    """Whether the length at the end is that of the whole volume: one gzip stream, with nothing before it."""
    try:
        header = zlib.decompressobj(31).decompress(head, HEADER)
    except zlib.error:
        return False
    if len(header) < HEADER:
        return False
    order = next((order for order in "<>" if struct.unpack_from(f"{order}i", header) == (HEADER,)), None)
    if order is None:
        return False
    dims = struct.unpack_from(f"{order}8h", header, 40)
    (bits,), (offset,) = struct.unpack_from(f"{order}h", header, 72), struct.unpack_from(f"{order}f", header, 108)
    if not (1 <= dims[0] <= 7 and math.isfinite(offset)):
        return False
    length = int(offset) + math.prod(dims[1 : dims[0] + 1]) * bits // 8
    return struct.unpack("<I", tail[-4:]) == (length % 2**32,)


def missing(path: AnyPath, what: str, more: str = "") -> NotAtHand:
    """The error of a file that is not there."""
    return NotAtHand(
        path,
        found=f"nothing there{more}",
        expected=what,
        action="fetch it, or correct the dataset's root in the configuration.",
    )
