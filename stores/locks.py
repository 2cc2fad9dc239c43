"""One run at a time. In a directory: an advisory lock of the kernel, let go when its holder dies (`exclusive`). In an
object store: an object that is made only if it is not there, and renewed while it is held (`lease`).

No two machines' clocks are compared: a lock is abandoned when its holder is known here to be dead, or when it has not
changed while it was watched for `STALE` seconds.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, cast

from bdflow.stores.errors import StoreError
from bdflow.stores.paths import RemotePath
from bdflow.stores.remote import Bucket, answers

log = logging.getLogger(__name__)
RENEW_INTERVAL = 10.0
STALE = 45.0
Version = Mapping[str, object]


class Holder(TypedDict, total=False):
    """What a lock in an object store says of the run that holds it."""

    key: str
    host: str
    pid: int
    machine: str
    process: str
    command: str
    started: str
    beats: int


@contextlib.contextmanager
def lease(where: RemotePath, command: str = "") -> Iterator[None]:
    """Hold the lock of `where`, the object `<where>.lock` beside it, while the body runs.

    Raises
    ------
    StoreError : another run holds it; it was taken away, because it could not be renewed; or the object store cannot
        keep two from making the same object.
    """
    lock = _Lock(where, command)
    lock.acquire()
    lock.objects.patience = replace(lock.objects.patience, attempts=2)
    thread = threading.Thread(target=lock.renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if lock.lost:
            raise lock.taken() from None
        raise
    finally:
        lock.stopped.set()
        thread.join()
        lock.release()


class _Lock:
    def __init__(self, where: RemotePath, command: str) -> None:
        self.where, self.name = where, where.name + ".lock"
        self.objects = Bucket(where.parent.url)
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.record: Holder = {
            "key": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(),
            "process": _identity(os.getpid()), "command": command, "started": started, "beats": 0,
        }  # fmt: skip
        self.version: Version | None = None
        self.lost = ""
        self.stopped = threading.Event()

    def acquire(self) -> None:
        watched, seen = 0.0, None
        while not self._put("create"):
            holder = self._holder()
            if holder is None:
                continue
            found, version = holder
            if found["key"] == self.record["key"]:
                self.version = version
                break
            if _dead(found) or watched >= STALE:
                if self._put(version):
                    break
                continue
            if _alive(found) or (seen is not None and version["e_tag"] != seen):
                raise self._in_use(found)
            seen = version["e_tag"]
            time.sleep(RENEW_INTERVAL / 4)
            watched += RENEW_INTERVAL / 4
        if self._put("create"):
            self.release()
            raise StoreError(
                self.where,
                found="an object store that makes the same object twice",
                expected="that it refuses the second time (If-None-Match)",
                meaning="Without that, two runs could fill one study at once and spoil it.",
                action="use an object store with conditional writes (AWS S3, Google, MinIO, Ceph of 2024 and later)",
            )

    def _put(self, mode: str | Version | None) -> bool:
        try:
            self.version = self.objects.write(self.name, json.dumps(self.record).encode(), mode)
        except answers():
            return False
        return True

    def _holder(self) -> tuple[Holder, Version] | None:
        before = self.objects.head(self.name)
        content = self.objects.read(self.name) if before else None
        if before is None or content is None:
            return None
        version: Version = {"e_tag": before["e_tag"], "version": before["version"]}
        try:
            return cast(Holder, {"key": "", "beats": 0, **json.loads(content)}), version
        except ValueError:
            return {"key": "", "beats": 0, "host": "an unknown host"}, version

    def renew(self) -> None:
        while not self.stopped.wait(RENEW_INTERVAL):
            self.record["beats"] += 1
            try:
                if self._put(self.version):
                    continue
                holder = self._holder()
            except StoreError:
                continue
            if holder is not None and holder[0]["key"] == self.record["key"]:
                self.version = holder[1]
                continue
            self.lost = _named(holder[0]) if holder else "nobody (it was deleted)"
            ignored = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None)
            if ignored:
                log.error("%s", self.taken())
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM if ignored else signal.SIGINT)
            return

    def taken(self) -> StoreError:
        return StoreError(
            self.where,
            found=f"the lock of this study taken over by {self.lost}",
            expected="to hold it to the end of this run",
            meaning=f"It could not be renewed for {STALE:.0f} s, so that this run was taken for dead; it stopped now. "
            "Nothing that is marked as written is lost.",
            action="leave the study to the other run; where there is none, run the same again",
        )

    def release(self) -> None:
        """Give it back; where the object store does not answer now, it goes stale."""
        with contextlib.suppress(StoreError):
            holder = self._holder()
            if holder is not None and holder[0]["key"] == self.record["key"]:
                self.objects.delete(self.name)

    def _in_use(self, found: Holder) -> StoreError:
        return StoreError(
            self.where,
            found=f"a study in use by {_named(found)}",
            expected="that nobody else uses it",
            meaning="Two runs at once would write over each other.",
            action=f"wait for that run to end, or stop it, then run the same again. The lock is {self.where}.lock",
        )


def _named(found: Holder) -> str:
    command = f" ({found['command'][:200]})" if found.get("command") else ""
    since = f", since {found['started']}" if found.get("started") else ""
    return f"process {found.get('pid', '?')} on {found.get('host', '?')}{command}{since}"


def _machine() -> str:
    """This boot of this machine, and who counts processes here: what makes a process number mean one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8", errors="replace").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116
    except OSError:
        return ""


def _identity(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty if there is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if status[0] in "ZX" else status[19]


def _here(found: Holder) -> bool:
    return bool(found.get("machine")) and found["machine"] == _machine() and isinstance(found.get("pid"), int)


def _alive(found: Holder) -> bool:
    return _here(found) and _identity(found["pid"]) == found.get("process")


def _dead(found: Holder) -> bool:
    return _here(found) and not _alive(found)


# --- a directory ------------------------------------------------------------------------------------------------

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
    StoreError : another process holds it (named if it is on this machine), or its file system has no locks.
    """
    path = Path(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    _HELD.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                path,
                found=f"a directory in use by {_holder(descriptor)}",
                expected="that nobody else uses it",
                meaning="Two runs at once would write over each other.",
                action="wait for that run to end, or stop it, then run the same again",
            ) from error
        except OSError as error:
            raise StoreError(
                path,
                found=f"a directory that cannot be locked ({error.strerror})",
                expected="a file system with locks (flock)",
                meaning="Without a lock, two runs could fill one study at once and spoil it.",
                action="have it mounted with locks (Lustre: the option flock), or choose another place",
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
        for line in Path("/proc/locks").read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == f"{device}:{status.st_ino}" and int(fields[4]) > 0:
                return _process(int(fields[4]))
    return "another process (on another machine or in another container: the kernel here does not know it)"


def _process(pid: int) -> str:
    if pid == os.getpid():
        return "this very process"
    command = ""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        command = " ".join(os.fsdecode(word) for word in words).strip()
    return f"process {pid} on {socket.gethostname()}" + (f" ({command[:200]})" if command else "")
