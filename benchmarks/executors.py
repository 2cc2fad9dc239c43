"""What each executor costs: starting, a first worker, every task, stopping; and how well workers are kept busy.

    python -m bdflow.benchmarks.executors [--tasks 2000] [--workers 2] [--kinds serial dask ray] [--json FILE]

The reference is a bare loop over the same calls, run in the same sitting.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bdflow.cluster import Completed, Executor, Resources, open_executor


class Sleep:
    """A stand-in for work: as long as a network takes, without needing the core."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self, task: int) -> int:
        if self.seconds:
            time.sleep(self.seconds)
        return task


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(executor: Executor, seconds: float, tasks: Sequence[int], resources: Resources) -> float:
    """Wall seconds from the first task that is done to the last: without the start of the workers."""
    stamps: list[float] = []

    def stamp(done: Completed) -> None:
        stamps.append(time.perf_counter())

    executor.run(partial(Sleep, seconds), tasks, resources=resources, on_done=stamp)
    return stamps[-1] - stamps[0]


def efficiency(executor: Executor, pause: float, tasks: int, resources: Resources) -> float:
    """Work per worker and second, from when every worker has finished a task until the last are handed out."""
    stamps: list[float] = []
    seen: set[str] = set()

    def stamp(done: Completed) -> None:
        seen.add(done.worker)
        if len(seen) == resources.workers or executor.name == "serial":
            stamps.append(time.perf_counter())

    executor.run(partial(Sleep, pause), range(tasks), resources=resources, on_done=stamp)
    lanes = 1 if executor.name == "serial" else resources.workers
    steady = stamps[: len(stamps) - lanes + 1]
    return pause * (len(steady) - 1) / lanes / (steady[-1] - steady[0])


def measure(kind: str, tasks: int, workers: int, pause: float) -> dict[str, Any]:
    resources = Resources(workers=workers)
    executor = open_executor(kind)  # type: ignore[arg-type]
    first = timed(lambda: executor.run(Sleep, range(workers), resources=resources))
    again = timed(lambda: executor.run(Sleep, range(workers), resources=resources))
    trivial = run(executor, 0.0, range(tasks), resources) / (tasks - 1)
    busy = efficiency(executor, pause, 60 * workers, resources)
    stop = timed(executor.close)
    return {
        "executor": kind,
        "first_run_s": first,
        "next_run_s": again,
        "ms_a_task": 1e3 * trivial,
        "efficiency": busy,
        "stop_s": stop,
    }


def bare_loop(tasks: int) -> float:
    work = Sleep()
    return 1e3 * timed(lambda: [work(task) for task in range(tasks)]) / tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2000, help="trivial tasks")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds of a stand-in task, for efficiency")
    parser.add_argument("--kinds", nargs="+", default=["serial", "dask", "ray"])
    parser.add_argument("--json", type=Path, help="write the figures there too")
    asked = parser.parse_args()
    rows = [measure(kind, asked.tasks, asked.workers, asked.pause) for kind in asked.kinds]
    print(f"{asked.tasks} trivial tasks, {asked.workers} workers; bare loop {bare_loop(asked.tasks):.5f} ms a task")
    print(f"{'executor':10}{'first run':>12}{'next run':>12}{'a task':>12}{'efficiency':>12}{'stop':>10}")
    for row in rows:
        print(
            f"{row['executor']:10}{row['first_run_s']:>10.2f} s{row['next_run_s']:>10.3f} s"
            f"{row['ms_a_task']:>9.3f} ms{row['efficiency']:>12.3f}{row['stop_s']:>8.2f} s"
        )
    if asked.json:
        figures = {"tasks": asked.tasks, "workers": asked.workers, "pause_s": asked.pause, "executors": rows}
        asked.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
