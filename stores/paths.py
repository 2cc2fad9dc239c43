"""Where things are: a path, or the URL of an object store, which then answers to the same words."""

from __future__ import annotations

import fnmatch
import io
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore

from bdflow.stores.errors import StoreError
from bdflow.stores.remote import SCHEMES, Bucket, RemoteStore, split_url

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SHORT, LONG = 256 * 1024, 8 * 1024 * 1024
KEPT = 8


class RemotePath:
    """A place in an object store, `s3://bucket/folder/name`, with those words of `pathlib.Path` that readers use."""

    def __init__(self, url: str) -> None:
        scheme, bucket, inside = split_url(url)
        self.root = f"{scheme}://{bucket}"
        self.url = f"{self.root}/{inside}".rstrip("/")

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"RemotePath({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __lt__(self, other: RemotePath) -> bool:
        return self.url < other.url

    def __truediv__(self, name: object) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    def __reduce__(self) -> tuple[type[RemotePath], tuple[str]]:
        return RemotePath, (self.url,)

    @property
    def name(self) -> str:
        return self.url.removeprefix(self.root).rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.root + self.url.removeprefix(self.root).rpartition("/")[0])

    @property
    def parents(self) -> list[RemotePath]:
        found = [self.parent]
        while found[-1].url != self.root:
            found.append(found[-1].parent)
        return found

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    @cached_property
    def bucket(self) -> Bucket:
        """The objects below this place."""
        return Bucket(self.url)

    @cached_property
    def _siblings(self) -> Bucket:
        return Bucket(self.parent.url)

    def is_file(self) -> bool:
        return bool(self.name) and self._siblings.head(self.name) is not None

    def is_dir(self) -> bool:
        return any(self.bucket.children())

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def stat(self) -> SimpleNamespace:
        """`st_size`. Raises FileNotFoundError."""
        meta = self._siblings.head(self.name)
        if meta is None:
            raise FileNotFoundError(2, "No such object", self.url)
        return SimpleNamespace(st_size=meta["size"])

    def version(self) -> tuple[int, str]:
        """Its size, and its ETag ("" if it has none). Raises FileNotFoundError."""
        meta = self._siblings.head(self.name)
        if meta is None:
            raise FileNotFoundError(2, "No such object", self.url)
        return int(meta["size"]), str(meta["e_tag"] or "")

    def read_bytes(self) -> bytes:
        """All of it. Raises FileNotFoundError."""
        content = self._siblings.read(self.name)
        if content is None:
            raise FileNotFoundError(2, "No such object", self.url)
        return content

    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`, which must be there. Raises FileNotFoundError."""
        return self._siblings.read_range(self.name, start, stop)

    def write_bytes(self, content: bytes) -> int:
        self._siblings.write(self.name, content)
        return len(content)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Its bytes, read where and when they are asked for. Raises FileNotFoundError."""
        if mode != "rb":
            raise ValueError(f"{self.url}: mode {mode!r}; objects are opened for reading bytes")
        return io.BufferedReader(RemoteFile(self._siblings, self.name), 8 * 1024)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Places below that match, folders included; `*` does not cross a slash."""
        first, _, rest = pattern.partition("/")
        if not any(sign in first for sign in "*?["):
            below = self / first
            if rest:
                yield from below.glob(rest)
            elif below.exists():
                yield below
            return
        folders, objects = self.bucket.children()
        for name in fnmatch.filter(folders if rest else [*folders, *objects], first):
            if rest:
                yield from (self / name).glob(rest)
            else:
                yield self / name


class RemoteFile(io.RawIOBase):
    """An object as a file that can be read and sought. It comes in pieces, of which the last used are kept: short ones
    where reading begins or jumps, longer ones as it goes on.

    Attributes
    ----------
    failed : what the object store's last answer was if it was none; libraries that read may say something else.
    """

    def __init__(self, bucket: Bucket, name: str) -> None:
        meta = bucket.head(name)
        if meta is None:
            raise FileNotFoundError(2, "No such object", f"{bucket.url}/{name}")
        self.bucket, self.key, self.size, self.at = bucket, name, int(meta["size"]), 0
        self.failed: StoreError | None = None
        self._pieces: list[tuple[int, bytes]] = []
        self._next, self._length = -1, SHORT

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence])
        return self.at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        length = min(len(view), self.size - self.at)
        if length <= 0:
            return 0
        start, piece = self._piece(length)
        length = min(length, start + len(piece) - self.at)
        view[:length] = piece[self.at - start : self.at - start + length]
        self.at += length
        return length

    def _piece(self, length: int) -> tuple[int, bytes]:
        for number, (start, piece) in enumerate(self._pieces):
            if start <= self.at < start + len(piece):
                self._pieces.append(self._pieces.pop(number))
                return start, piece
        self._length = min(2 * self._length, LONG) if self.at == self._next else SHORT
        stop = min(self.at + max(length, self._length), self.size)
        try:
            piece = self.bucket.read_range(self.key, self.at, stop)
        except StoreError as error:
            self.failed = error
            raise
        self._next = stop
        self._pieces = [*self._pieces[-KEPT:], (self.at, piece)]
        return self._pieces[-1]


AnyPath = Path | RemotePath


def place(location: str | Path | RemotePath) -> AnyPath:
    """A local path, or a place in an object store. Raises StoreError for a URL of another kind."""
    if isinstance(location, (Path, RemotePath)):
        return location
    if "://" not in location:
        return Path(location)
    scheme, bucket, _ = split_url(location)
    if scheme not in SCHEMES or not bucket:
        raise StoreError(
            location,
            found="a URL of an unknown kind",
            expected="a path, s3://BUCKET/..., gs://BUCKET/... or memory://NAME/...",
            action="correct the URL; a server of your own is s3:// with AWS_ENDPOINT_URL",
        )
    return RemotePath(location)


def scratch_folder(study: str | AnyPath) -> AnyPath:
    """Where a study's runs keep what they need while they go on; no part of the study."""
    path = place(study)
    return path.with_name(path.name + ".scratch")


def readable(where: AnyPath) -> Path | io.BufferedReader:
    """What libraries that read files take: the path, or the object as an open file."""
    return where.open("rb") if isinstance(where, RemotePath) else where


def no_answer(source: object) -> None:
    """Raise what the object store said where a library failed to read from `readable`; a path raises nothing."""
    failed = getattr(getattr(source, "raw", None), "failed", None)
    if failed is not None:
        raise failed


def zarr_store(where: AnyPath) -> ZarrStore:
    """The place as Zarr sees it."""
    return RemoteStore(where.bucket) if isinstance(where, RemotePath) else LocalStore(where)


def remove_tree(where: AnyPath) -> None:
    """Delete all that is there, if there is anything."""
    if isinstance(where, RemotePath):
        where.bucket.delete_below("")
    elif where.exists():
        shutil.rmtree(where)


def remove_leftovers(where: AnyPath, *, below: bool = True) -> None:
    """Delete the files that interrupted writes left in a folder (and below it); in an object store they leave nothing.
    Directories of such a name are none of theirs.
    """
    if isinstance(where, RemotePath):
        return
    for leftover in where.rglob("*.partial") if below else where.glob("*.partial"):
        if leftover.is_symlink() or not leftover.is_dir():
            leftover.unlink(missing_ok=True)


def sizes_below(where: AnyPath) -> dict[str, int]:
    """Bytes of every file below, by its name from there."""
    if isinstance(where, RemotePath):
        return where.bucket.sizes()
    return {str(file.relative_to(where)): file.stat().st_size for file in where.rglob("*") if file.is_file()}
