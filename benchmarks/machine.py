"""The machine itself: what a benchmark will take of it, told before it begins, and the limits beside its figures.

Limits are the best of several tries, since whatever else runs only makes them smaller. Figures are medians.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bdflow.cluster.progress import duration
from bdflow.errors import InputError
from bdflow.version import __version__

if TYPE_CHECKING:
    import psutil

GIB = 2**30


def best(call: Callable[[], Any], repeats: int = 5) -> float:
    """Least seconds of several calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


# --- limits -----------------------------------------------------------------------------------------------------------


def sgemm_rate(threads: int, gpus: float = 0, n: int = 5120) -> float:
    """FLOP/s of a float32 matrix product: of n x n on these threads, or, measured on one of them, on so many GPUs."""
    if gpus:
        import cupy

        a = cupy.random.standard_normal((16384, 16384), dtype=cupy.float32)

        def product() -> None:
            a @ a
            cupy.cuda.Device().synchronize()

        rate = gpus * 2 * a.shape[0] ** 3 / best(product)
        del a
        cupy.get_default_memory_pool().free_all_blocks()  # the workers share the GPU with this process
        return float(rate)
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, n, n), dtype=np.float32)
    with threadpool_limits(threads):
        return 2 * n**3 / best(lambda: a @ b)


def copy_rate(nbytes: int = 2**28) -> float:
    """Bytes/s at which one thread copies memory to memory."""
    source = np.ones(nbytes, np.uint8)
    target = np.empty_like(source)
    target[:] = 0
    return nbytes / best(lambda: np.copyto(target, source))


def disk_rates(folder: Path, nbytes: int = GIB) -> tuple[float, float]:
    """Bytes/s of writing a file to the disk, and of reading it back from there and not from memory."""
    block, file = np.random.default_rng(0).bytes(min(nbytes, 2**26)), folder / "disk.bin"
    start = time.perf_counter()
    with file.open("wb") as out:
        for _ in range(nbytes // len(block)):
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    written = nbytes / (time.perf_counter() - start)
    with file.open("rb", buffering=0) as back:
        os.posix_fadvise(back.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while back.read(2**26):
            pass
        read = nbytes / (time.perf_counter() - start)
    file.unlink()
    return written, read


class PeakMemory(threading.Thread):
    """Largest proportional set size of a process and all it started; pages that several share count once.

    To add these sizes up takes the system about 9 ms a GiB, and what is measured would wait for it. So resident sizes,
    which cost microseconds, are looked at five times a second, and pages are counted only where their sum is larger by
    a hundredth than when pages were counted last.

    Parameters
    ----------
    process : None: this one.
    """

    def __init__(self, process: psutil.Process | None = None) -> None:
        import psutil

        super().__init__(daemon=True)
        self.process = psutil.Process() if process is None else process
        self.peak, self.stopped = 0, threading.Event()
        self._highest = 0

    def run(self) -> None:
        while True:
            members = self.members()  # asks for all processes of the machine: once in ten looks
            for _ in range(10):
                self.look(members)
                if self.stopped.wait(0.2):
                    return

    def members(self) -> list[psutil.Process]:
        """The process and all it started; none when it has ended."""
        import psutil

        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def look(self, members: Sequence[psutil.Process]) -> None:
        """Compare what they hold now."""
        resident = _sum(members, lambda member: int(member.memory_info().rss))
        if resident > 1.01 * self._highest:
            self._highest = resident
            self.peak = max(self.peak, _sum(members, lambda member: int(member.memory_full_info().pss)))

    def __enter__(self) -> PeakMemory:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopped.set()
        self.join()


def _sum(members: Sequence[psutil.Process], size: Callable[[psutil.Process], int]) -> int:
    import psutil

    total = 0
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += size(member)
    return total


class ProcessorTime:
    """What the processors of this machine did while it was entered, whoever asked for it.

    Attributes
    ----------
    shares : of their time, 1 in all: `programs`; `system`, which the kernel took for files, memory and the network;
        `host`, which a virtual machine was not given; `idle`.
    """

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}

    def __enter__(self) -> ProcessorTime:
        self._before = self._seconds()
        return self

    def __exit__(self, *exc: object) -> None:
        spent = {name: after - self._before[name] for name, after in self._seconds().items()}
        total = sum(spent.values()) or 1.0
        self.shares = {name: seconds / total for name, seconds in spent.items()}

    @staticmethod
    def _seconds() -> dict[str, float]:
        import psutil

        times = psutil.cpu_times()
        parts = {
            "programs": ("user", "nice"),
            "system": ("system", "irq", "softirq"),
            "host": ("steal",),
            "idle": ("idle", "iowait"),
        }
        return {name: sum(getattr(times, field, 0.0) for field in fields) for name, fields in parts.items()}


# --- before it begins -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    """Bytes of memory of all processes, bytes of disk, and the least and most seconds that a benchmark is thought to
    take.
    """

    memory: float
    disk: float
    seconds: tuple[float, float]


def announce(title: str, needs: Needs, folder: Path) -> None:
    """Print what a benchmark will take.

    Parameters
    ----------
    title : what is measured, with its sizes.
    folder : existing, where its files go.

    Raises
    ------
    InputError : less disk or memory is free than it needs. Nothing has been written then.
    """
    import psutil

    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(folder).free
    short, long = (duration(seconds) for seconds in needs.seconds)
    print(title)
    print(f"  memory  about {needs.memory / GIB:.1f} GiB of {memory / GIB:.1f} GiB free")
    if needs.disk:
        print(f"  disk    about {needs.disk / 1e9:.1f} GB of {disk / 1e9:.1f} GB free at {folder}")
    print(f"  time    {short} to {long}, by a quick look at this machine", flush=True)
    if needs.disk > disk:
        raise InputError(
            folder,
            found=f"{disk / 1e9:.1f} GB free",
            expected=f"the {needs.disk / 1e9:.1f} GB that this benchmark writes",
            action="free some space, name a folder of another disk with --dir, or take a smaller --scale",
        )
    if needs.memory > memory:
        raise InputError(
            "memory of this machine",
            found=f"{memory / GIB:.1f} GiB free",
            expected=f"the {needs.memory / GIB:.1f} GiB that this benchmark needs",
            action="end other programs, or take smaller sizes",
        )


def check_output(file: Path | None) -> None:
    """Raise InputError, before anything is measured, if results could not be written to a file."""
    if file is None:
        return
    folder = file.absolute().parent
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(
            file,
            found="a folder" if file.is_dir() else f"no folder {folder} that this user may write into",
            expected="the name of a file in a folder that is there",
            action="make the folder, or name another file",
        )


def say(text: str) -> None:
    """A line on stderr: what is done now."""
    print(text, file=sys.stderr, flush=True)


# --- results ----------------------------------------------------------------------------------------------------------


def cpu_name() -> str:
    """The processor's model, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def head(benchmark: str, device: str = "cpu", name: str | None = None, count: float = 1) -> dict[str, Any]:
    """What every file of figures begins with: the benchmark, and the device it was measured on.

    Parameters
    ----------
    device : `cpu` or `gpu`. name : of the device; None for this machine's processor. count : cores, or GPUs.
    """
    return {
        "benchmark": benchmark,
        "bdflow": __version__,
        "device": {"kind": device, "name": name or cpu_name(), "count": count},
    }


def fitted(work: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Start-up seconds and rate of `seconds = start + work / rate`, neither below 0, in relative least squares.

    Parameters
    ----------
    work : amounts of at least two sizes. seconds : that each took.
    """
    from scipy.optimize import nnls

    amounts, took = np.asarray(work, float), np.asarray(seconds, float)
    scale = amounts.max()
    rows = np.stack([1 / took, amounts / scale / took], axis=1)
    (start, slope), _ = nnls(rows, np.ones(len(took)))
    if slope == 0:  # larger sizes were not slower: noise; no start-up can be told apart
        return 0.0, float(np.median(amounts / took))
    return float(start), float(scale / slope)


Line = tuple[str, str, str, float | None]
"""A figure, its value, the machine's limit beside it, and the ratio of both."""


def table(lines: Sequence[Line]) -> str:
    """Figures beside limits, in columns; at most 80 characters wide where names are short."""
    rows = [("", "measured", "limit of the machine", "ratio")]
    rows += [(name, value, limit, "" if ratio is None else f"{ratio:.0%}") for name, value, limit, ratio in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def write_json(file: Path | None, found: object) -> None:
    """Write results whole or not at all."""
    if file is None:
        return
    part = file.with_name(f"{file.name}.partial")
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(file)
    print(f"figures {file}   (bdflow plan CONFIG --figures {file})")
