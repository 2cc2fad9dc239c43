"""What a task costs its process: bytes through files, and memory at its highest. As far as Linux tells; else zeros."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

IO, STATUS, RESET = Path("/proc/self/io"), Path("/proc/self/status"), Path("/proc/self/clear_refs")
HIGHEST = "5"  # what, written to RESET, sets the highest memory back to the present one


@dataclass(frozen=True)
class Used:
    """Bytes that a process read and wrote during a task, and its resident memory at its highest; 0 if unknown."""

    read: int = 0
    written: int = 0
    peak: int = 0


NOTHING = Used()


class UsageMeter:
    """Begins to measure this process when it is made."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            RESET.write_text(HIGHEST, encoding="utf-8")
        self._before = _bytes()

    def read(self) -> Used:
        """What was used since."""
        read, written = _bytes()
        return Used(read - self._before[0], written - self._before[1], _highest())


def _bytes() -> tuple[int, int]:
    try:
        fields = dict(line.split(": ") for line in IO.read_text(encoding="utf-8").splitlines())
    except OSError:
        return 0, 0
    return int(fields["rchar"]), int(fields["wchar"])


def _highest() -> int:
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
