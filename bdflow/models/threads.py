"""The same work on several items, over the threads that this process may take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def allowed() -> int:
    """Threads that this process may take: `OMP_NUM_THREADS`, which a worker's `threads` sets, else its cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def over_threads(work: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """`work` of each item, in their order. It pays where the work lets other threads run: NumPy's draws, PIL."""
    given = list(items)
    count = min(allowed(), len(given))
    if count < 2:
        return [work(item) for item in given]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, given))
