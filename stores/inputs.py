"""Identity of an input file: a digest of all it holds, taken once and remembered beside the journal of a study.

The same content is the same input wherever it lies and whatever it is called. Files are read whole, in pieces, by
several threads. What was found is remembered by path, size, times of change and inode, so that a file is read again
only when one of these differs: in the process, and by `remembered` in a study. The memory is no part of a study's
content: where it cannot be written, files are read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import zarr

from bdflow.stores import metadata
from bdflow.stores.errors import StoreError
from bdflow.stores.journal import INPUTS
from bdflow.stores.paths import AnyPath, RemotePath, zarr_store

log = logging.getLogger(__name__)
DIGESTS = f"{INPUTS}/digests"
SMALL = 128 * 1024  # bytes; read quicker than remembered
PIECE = 64 * 2**20
STEP = 4 * 2**20
LARGE = 2**30  # bytes; said, since it takes a while
SETTLED = 2e9  # nanoseconds since the last change after which another one has another time
MOST = 20_000  # files that are remembered


class _Memory:
    """What is known of files: by path, a stamp and the identity of what the file held when it had it.

    Of a study, or of this process alone, as long as it lives.
    """

    def __init__(self, study: AnyPath | None = None) -> None:
        self.study, self.changed = study, False
        self.known: dict[str, tuple[list[object], str]] = {}
        if study is None:
            return
        with contextlib.suppress(ValueError, TypeError, OSError, StoreError):
            for name, (stamp, found) in json.loads(metadata.read_string(study / DIGESTS) or "{}").items():
                self.known[name] = (list(stamp), str(found))

    def find(self, name: str, stamp: list[object]) -> str | None:
        known = self.known.get(name)
        return known[1] if known is not None and known[0] == stamp else None

    def keep(self, name: str, stamp: list[object], found: str) -> None:
        self.known.pop(name, None)
        self.known[name] = (stamp, found)
        self.changed = True
        while len(self.known) > MOST:
            del self.known[next(iter(self.known))]

    def save(self) -> None:
        if self.study is None or not self.changed or not (self.study / INPUTS / metadata.COPY_CHUNK).is_file():
            return
        try:
            array = zarr.open_array(zarr_store(self.study), path=DIGESTS, mode="r+", zarr_format=3)
            metadata.write_string(array, json.dumps(self.known))
        except (StoreError, OSError, ValueError) as error:
            log.debug("digests of inputs are not remembered: %s", error)


_process = _Memory()
_memory = _process


@contextlib.contextmanager
def remembered(study: AnyPath) -> Iterator[None]:
    """Remember identities of files in a study, as far as it can be written, and know what it remembers."""
    global _memory
    before, _memory = _memory, _Memory(study)
    try:
        yield
    finally:
        _memory.save()
        _memory = before


def create(study: AnyPath) -> None:
    """Make the place in a study where identities are remembered, if it is not there."""
    if (study / INPUTS / metadata.COPY_CHUNK).is_file():
        return
    backend = zarr_store(study)
    zarr.open_group(backend, path=INPUTS, mode="w", zarr_format=3)
    array = metadata.create_text(backend, INPUTS, "digests", "digests of input files, by path: no part of the content")
    metadata.write_string(array, "{}")
    metadata.finish(backend, INPUTS, {}, {"digests": array})


def identity(path: AnyPath) -> str:
    """Size, and a digest of all a file holds: `SIZE:HEX`. Of an object too large to be read at once, its ETag.

    Raises
    ------
    OSError : no such file, or it cannot be read. StoreError : its object store does not answer; the file changes while
        it is read.
    """
    return _of_object(path) if isinstance(path, RemotePath) else _of_file(path)


def _find(name: str, stamp: list[object]) -> str | None:
    known = _memory.find(name, stamp)
    if known is None and (known := _process.find(name, stamp)) is not None:
        _memory.keep(name, stamp, known)
    return known


def _keep(name: str, stamp: list[object], found: str) -> None:
    for memory in (_memory, _process):
        memory.keep(name, stamp, found)


def _of_object(path: RemotePath) -> str:
    size, tag = path.version()
    if size > PIECE:
        return f"{size}:etag:{tag}"
    stamp: list[object] = [size, tag]
    known = _find(str(path), stamp) if size > SMALL and tag else None
    if known is not None:
        return known
    content = path.read_bytes()
    found = f"{len(content)}:{hashlib.blake2b(content, digest_size=16).hexdigest()}"
    if size > SMALL and tag:
        _keep(str(path), stamp, found)
    return found


def _of_file(path: Path) -> str:
    for _ in range(3):
        stamp, settled = _stamp(path)
        size = int(str(stamp[0]))
        if size <= SMALL:
            content = path.read_bytes()
            return f"{len(content)}:{hashlib.blake2b(content, digest_size=16).hexdigest()}"
        name = str(path.resolve())
        known = _find(name, stamp)
        if known is not None:
            return known
        if size >= LARGE:
            log.info("%s: read whole for its digest (%.1f GiB), once", path, size / 2**30)
        found = f"{size}:{_digest(path, size)}"
        if _stamp(path)[0] == stamp:
            if settled:
                _keep(name, stamp, found)
            return found
    raise StoreError(
        path,
        found="a file that changes while it is read",
        expected="an input that stays as it is",
        action="wait until whatever writes this file is done, then run the same again",
    )


def _stamp(path: Path) -> tuple[list[object], bool]:
    """What changes when a file does; and whether its last change is long enough ago for the next to be seen."""
    status = path.stat()
    last = max(status.st_mtime_ns, status.st_ctime_ns)
    stamp: list[object] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return stamp, time.time_ns() - last > SETTLED


def _digest(path: Path, size: int) -> str:
    """Of a file up to one piece, the digest of its bytes; of a longer one, that of its pieces' digests."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        starts = range(0, size, PIECE)
        if len(starts) == 1:
            return _piece(descriptor, size, 0).hex()
        with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as threads:
            pieces = threads.map(partial(_piece, descriptor, size), starts)
            return hashlib.blake2b(b"".join(pieces), digest_size=16).hexdigest()
    finally:
        os.close(descriptor)


def _piece(descriptor: int, size: int, start: int) -> bytes:
    digest, at, stop = hashlib.blake2b(digest_size=16), start, min(start + PIECE, size)
    while at < stop:
        part = os.pread(descriptor, min(STEP, stop - at), at)
        if not part:
            break
        digest.update(part)
        at += len(part)
    return digest.digest()
