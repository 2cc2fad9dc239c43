"""What partitions took, from the journal: seconds, bytes, memory, retries, by stage and work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Timing:
    """All partitions of one kind of work, over all runs. Bytes and memory are None where no journal has them."""

    stage: str
    work: str
    partitions: int
    total: float
    median: float
    longest: float
    read: int | None
    written: int | None
    peak: int | None
    retries: int
    workers: int


def timings(journal: Sequence[Mapping[str, object]]) -> list[Timing]:
    """Sum up the entries of a journal (`bdflow.stores.journal.entries`), in the order in which works first happened."""
    works: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in journal:
        works.setdefault((str(entry.get("stage", "")), str(entry["work"])), []).append(entry)
    return [_summed(stage, work, parts) for (stage, work), parts in works.items()]


def _summed(stage: str, work: str, parts: Sequence[Mapping[str, object]]) -> Timing:
    def column(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(part[name]) for part in parts if name in part] or [np.zeros(0, "i8")])

    seconds, peak = column("seconds"), column("peak")
    known = bool((peak > 0).any())
    return Timing(
        stage,
        work,
        len(seconds),
        float(seconds.sum()),
        float(np.median(seconds)) if len(seconds) else 0.0,
        float(seconds.max(initial=0.0)),
        int(column("read").sum()) if known else None,
        int(column("written").sum()) if known else None,
        int(peak.max()) if known else None,
        int((column("attempts") - 1).sum()),
        len(set(column("worker").tolist())),
    )
