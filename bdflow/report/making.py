"""How a study was made, as tables: the time of its work, the versions of packages, fingerprints of stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bdflow.report.page import Row, Table
from bdflow.stores import Store
from bdflow.study.stage import Context


def time_table(journal: Sequence[Mapping[str, Any]]) -> Table:
    """Work of all runs, summed by stage and kind, in the order it first happened."""
    works: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in journal:
        works.setdefault((str(entry.get("stage", "")), str(entry["work"])), []).append(entry)
    rows = []
    for (stage, work), parts in works.items():
        tasks = sum(len(part["seconds"]) for part in parts)
        wall = sum(float(part["wall_seconds"]) for part in parts)
        busy = sum(float(part["seconds"].sum()) for part in parts)
        again = sum(int((part["attempts"] - 1).sum()) for part in parts)
        where = sorted({_where(part) for part in parts})
        rate = f"{tasks / wall:.3g} /s" if wall > 0 else "\u2013"
        unit = str(parts[0]["unit"])
        rows.append(
            Row([stage, work, ", ".join(where), f"{tasks} {unit}", duration(wall), duration(busy), rate, str(again)])
        )
    total = [duration(sum(float(e["wall_seconds"]) for e in journal))]
    total.append(duration(sum(float(e["seconds"].sum()) for e in journal)))
    rows.append(Row(["total", "", "", "", *total, "", ""], "total"))
    runs = len({entry["run"] for entry in journal})
    return Table(
        f"Time, over {runs} run{'s' * (runs > 1)}",
        ["stage", "work", "where", "done", "time", "worker time", "throughput", "retried"],
        [("", rows)],
        "Time is that of the clock; worker time sums over workers. What later runs computed again counts again.",
        texts=3,
    )


def _where(entry: Mapping[str, Any]) -> str:
    gpus = float(entry.get("gpus", 0))
    workers, threads = int(entry.get("workers", 1)), int(entry.get("threads", 1))
    parts = [f"{workers} worker{'s' * (workers > 1)}", f"{threads} thread{'s' * (threads > 1)}"]
    parts += [f"{gpus:g} GPU"] if gpus else []
    return f"{entry.get('executor', '')}: " + " × ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in words: 0.8 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def versions(stores: Mapping[str, Store]) -> list[tuple[str, str]]:
    """Versions recorded in the stores; several where stores were made with several."""
    found: dict[str, dict[str, None]] = {}
    for store in stores.values():
        for package, version in store.provenance.get("versions", {}).items():
            found.setdefault(package, {})[version] = None
    return [(package, " and ".join(sorted(several))) for package, several in found.items()]


def fingerprints(context: Context) -> Table:
    others = set(context.config.subjects) - set(context.subjects)
    rows = [
        Row([path, provenance.stage, provenance.fingerprint])
        for path, provenance in context.expected.items()
        if not others.intersection(path.split("/"))
    ]
    return Table(
        "What each store was made from",
        ["store", "stage", "fingerprint"],
        [("", rows)],
        "Equal fingerprints: made from the same settings, files and stores.",
        texts=3,
    )
