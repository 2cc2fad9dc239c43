"""A crash at every write boundary, without killing anything: what a disk holds there is recorded while a run goes on.

Whatever changes files (`os.mkdir`, `os.replace`, `os.unlink`, ..., files opened for writing) is preceded by a record of
all there is below a folder; a write is recorded also when half of its bytes are there. A process killed there leaves
exactly that, since nothing of it runs any more: no handler, no `finally`. The state after a step is that before the
next one, so that these are all that a kill between steps or half-way in a write can leave; a test starts from each.
"""

from __future__ import annotations

import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore

Files = dict[str, bytes | None]
"""Content by name below the folder; None is a folder."""


@dataclass
class Crash:
    """What is left if the process dies just before `step`; `phase` is what the run was at, as it said itself."""

    step: str
    phase: str
    files: Files

    def __str__(self) -> str:
        return f"{self.phase}: {self.step}"


@dataclass
class Recorder:
    """The distinct states that a run passed through, in their order; the run may say what it is at in `phase`."""

    look: Callable[[], Files]
    phase: str = ""
    crashes: list[Crash] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def record(self, step: str) -> None:
        files = self.look()
        if not self.crashes or (self.crashes[-1].files, self.crashes[-1].phase) != (files, self.phase):
            self.crashes.append(Crash(step, self.phase, files))


# --- a directory ----------------------------------------------------------------------------------------------


def read_folder(root: Path) -> Files:
    """All files and folders below."""
    found: Files = {}
    for folder, folders, files in os.walk(root):
        inside = os.path.relpath(folder, root)
        found |= {os.path.normpath(f"{inside}/{name}"): None for name in folders}
        for name in files:
            found[os.path.normpath(f"{inside}/{name}")] = Path(folder, name).read_bytes()
    return found


def write_folder(root: Path, files: Files) -> None:
    """Make a folder what was recorded, and nothing else."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name in sorted(files):
        content = files[name]
        if content is None:
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)


STEPS = ("mkdir", "rename", "replace", "link", "unlink", "remove", "rmdir", "truncate")
"""Functions of `os` that change what is on a disk; pathlib, shutil and zarr go through them."""


class _HalfWritten(io.BufferedWriter):
    """A file whose writes are recorded when half of their bytes have reached the disk."""

    recorder: Recorder

    def write(self, content: Any) -> int:
        data = memoryview(content).cast("B")
        with self.recorder.lock:
            self.recorder.record(f"write {self.raw.name}")  # type: ignore[attr-defined]
            super().write(data[: len(data) // 2])
            self.flush()
            self.recorder.record(f"second half of write {self.raw.name}")  # type: ignore[attr-defined]
            super().write(data[len(data) // 2 :])
            self.flush()
        return len(data)


@contextmanager
def recorded_folder(root: Path) -> Iterator[Recorder]:
    """Record what is in a folder before every change of it that this process makes."""
    recorder = Recorder(lambda: read_folder(root))
    real = {name: getattr(os, name) for name in STEPS}
    real_open, below = io.open, str(root)

    def concerned(path: Any, options: dict[str, Any]) -> bool:
        return "dir_fd" in options or (isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(below))

    def stepping(name: str) -> Callable[..., Any]:
        def step(path: Any, *arguments: Any, **options: Any) -> Any:
            if not concerned(path, options) or (name == "mkdir" and Path(path).is_dir()):
                return real[name](path, *arguments, **options)
            with recorder.lock:
                recorder.record(f"{name} {path}")
                return real[name](path, *arguments, **options)

        return step

    def opening(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+") or not concerned(file, {}):
            return real_open(file, mode, *arguments, **options)
        assert "b" in mode, f"{file}: written as text, which is not recorded"
        with recorder.lock:
            recorder.record(f"open {file}")
            opened = _HalfWritten(io.FileIO(file, mode.replace("b", "")))
            opened.recorder = recorder
            return opened

    try:
        for name in STEPS:
            setattr(os, name, stepping(name))
        io.open = opening  # type: ignore[assignment]
        yield recorder
    finally:
        for name, function in real.items():
            setattr(os, name, function)
        io.open = real_open


# --- an object store ------------------------------------------------------------------------------------------


def read_bucket(store: Any) -> Files:
    """All objects of an obstore store."""
    names = sorted(meta["path"] for meta in obstore.list(store).collect())
    return {name: obstore.get(store, name).bytes().to_bytes() for name in names}


def write_bucket(store: Any, files: Files) -> None:
    """Make a store what was recorded, and nothing else."""
    for name in read_bucket(store).keys() - files.keys():
        obstore.delete(store, name)
    for name, content in files.items():
        assert content is not None
        obstore.put(store, name, content, use_multipart=False)


@contextmanager
def recorded_bucket(store: Any) -> Iterator[Recorder]:
    """Record the objects of a store before every request that changes them: one writes an object whole or not at all,
    and a request that deletes many may have deleted only the first of them.
    """
    recorder = Recorder(lambda: read_bucket(store))
    real = {name: getattr(obstore, name) for name in ("put", "put_async", "delete", "delete_async")}

    def putting(where: Any, name: str, *arguments: Any, **options: Any) -> Any:
        with recorder.lock:
            recorder.record(f"put {name}")
            return real["put"](where, name, *arguments, **options)

    def deleting(where: Any, names: Any) -> None:
        with recorder.lock:
            for name in [names] if isinstance(names, str) else names:
                recorder.record(f"delete {name}")
                real["delete"](where, name)

    async def putting_async(*arguments: Any, **options: Any) -> Any:
        return putting(*arguments, **options)

    async def deleting_async(*arguments: Any) -> None:
        deleting(*arguments)

    functions = {"put": putting, "put_async": putting_async, "delete": deleting, "delete_async": deleting_async}
    try:
        for name, function in functions.items():
            setattr(obstore, name, function)
        yield recorder
    finally:
        for name, function in real.items():
            setattr(obstore, name, function)
