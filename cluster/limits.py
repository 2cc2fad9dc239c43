"""What this machine has, and refusing what it has not before anything starts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from bdflow.cluster.errors import ClusterError
from bdflow.cluster.types import Resources
from bdflow.errors import counted


def devices_here() -> list[str]:
    """CUDA devices this process may use: `CUDA_VISIBLE_DEVICES` if set, else those nvidia-smi lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    listed = subprocess.run(
        [smi, "--list-gpus"],
        capture_output=True,
        timeout=60,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    return [str(n) for n, _ in enumerate(x for x in listed.stdout.splitlines() if x.startswith("GPU "))]


def memory_here() -> int:
    """Bytes of memory this process may use: the machine's, or its control group's limit if that is less."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        file = Path(name)
        text = file.read_text(encoding="utf-8").strip() if file.exists() else ""
        if text.isdigit():
            size = min(size, int(text))
    return size


def workers_per_device(gpus: float) -> int:
    """How many workers share one device (1 for whole devices)."""
    return int(1 / gpus + 1e-9) if gpus < 1 else 1


def gpu_capacity(gpus: float, devices: float) -> int:
    """How many workers of `gpus` each fit on one node's devices; a fraction never spans two devices."""
    if gpus < 1:
        return int(devices) * workers_per_device(gpus)
    return int(devices / gpus + 1e-9)


def devices_of(worker: int, gpus: float, devices: list[str]) -> list[str]:
    """The devices of the worker with that number."""
    if gpus < 1:
        return [devices[worker // workers_per_device(gpus)]] if gpus else []
    first = worker * int(gpus)
    return devices[first : first + int(gpus)]


def refuse_excess(resources: Resources, total: Resources | None) -> None:
    """Refuse what this machine, or the `total` it was limited to, can never give.

    Raises
    ------
    ClusterError : naming what was asked for and what there is.
    """
    refuse_odd_gpus(resources)
    if total is not None and resources.workers > total.workers:
        raise excess(
            counted(resources.workers, "worker"), f"{counted(total.workers, 'worker')} at most", "ask for fewer workers"
        )
    if total is not None and resources.threads > total.threads:
        raise excess(
            f"{counted(resources.threads, 'thread')} a worker", f"{total.threads} at most", "ask for fewer threads"
        )
    if resources.gpus:
        devices = total.gpus if total is not None else len(devices_here())
        refuse_gpus(resources, gpu_capacity(resources.gpus, devices), devices)
    if resources.memory:
        have = (total.memory if total is not None else None) or memory_here()
        if resources.workers * resources.memory > have:
            need = f"{counted(resources.workers, 'worker')} x {gib(resources.memory)}"
            raise excess(need, f"{gib(have)} of memory", "ask for fewer workers or less memory")


def refuse_odd_gpus(resources: Resources) -> None:
    """Refuse 1.5 GPUs a worker; raises ClusterError."""
    if resources.gpus > 1 and resources.gpus != int(resources.gpus):
        raise ClusterError(
            "GPUs of a worker",
            found=f"{resources.gpus:g}",
            expected="a whole number, or a fraction below 1",
            action="choose one of them",
        )


def refuse_gpus(resources: Resources, capacity: int, devices: float) -> None:
    """Refuse more workers than the GPUs are enough for; raises ClusterError with both numbers."""
    if resources.workers > capacity:
        gpus = resources.workers * resources.gpus
        need = f"{counted(resources.workers, 'worker')} x {counted(resources.gpus, 'GPU')} = {counted(gpus, 'GPU')}"
        raise excess(
            need,
            f"{counted(devices, 'GPU')} (enough for {capacity} such workers)",
            "ask for fewer workers, a smaller fraction of a GPU, or gpus=0 to work on the CPU",
        )


def idle_gpus(asked: Mapping[str, Resources], given: int) -> str:
    """A warning where stages leave GPUs idle that a run was given, with the number of workers that uses all of them;
    empty where none is idle.
    """
    wanted = {}
    for stage, need in asked.items():
        most = gpu_capacity(need.gpus, given)
        if need.workers < most:
            wanted[stage] = most
    if not wanted:
        return ""
    changes = ", ".join(f"execution.{stage}.workers={workers}" for stage, workers in wanted.items())
    used = max(int(asked[stage].workers * asked[stage].gpus + 0.999) for stage in wanted)
    return (
        f"{counted(given, 'GPU')} given, and no more than {used} used by {', '.join(wanted)}: the others stay idle. "
        f"To use all of them: {changes}"
    )


def excess(asked: str, found: str, action: str) -> ClusterError:
    """The error of asking for more than there is."""
    return ClusterError(
        "resources",
        found=found,
        expected=f"what is asked for: {asked}",
        meaning="Workers without their resources would wait for ever: none was started.",
        action=action,
    )


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
