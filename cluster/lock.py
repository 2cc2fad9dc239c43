"""One process at a time: an advisory lock on a directory, let go by the kernel when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import ClusterError

_HELD: set[int] = set()


def _let_go_in_child() -> None:
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of an existing directory; processes started meanwhile do not inherit it.

    Raises
    ------
    FileNotFoundError, NotADirectoryError : there is no such directory.
    ClusterError : another process holds it (named if it is on this machine), or its file system has no locks.
    """
    path = Path(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    _HELD.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ClusterError(
                f"{path} is in use by {_holder(descriptor)}; expected nobody, since two at once would "
                "write over each other.\n"
                "What to do: wait for it to end, or stop it, and run the same command again."
            ) from error
        except OSError as error:
            raise ClusterError(
                f"{path} cannot be locked ({error.strerror}); expected a file system with flock.\n"
                "What to do: have it mounted with locks (Lustre: the option flock), or choose another place."
            ) from error
        yield
    finally:
        if descriptor in _HELD:
            _HELD.discard(descriptor)
            os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who holds the flock, as far as this machine's kernel knows."""
    status = os.fstat(descriptor)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == f"{device}:{status.st_ino}" and int(fields[4]) > 0:
                return _named(int(fields[4]))
    return "another process (on another machine or in another container: the kernel here does not know it)"


def _named(pid: int) -> str:
    if pid == os.getpid():
        return "this very process"
    command = ""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        command = " ".join(os.fsdecode(word) for word in words).strip()
    return f"process {pid} on {socket.gethostname()}" + (f" ({command[:200]})" if command else "")
