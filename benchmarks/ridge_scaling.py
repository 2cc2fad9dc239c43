"""How the cost of ridge grows: over a tenfold range of latents and of subjects, and from one worker to two.

    python -m bdflow.benchmarks.ridge_scaling --json scaling.json

Every row runs the real stage through real stores of synthetic data. "per unit" is the time of the stage less what it
takes at size zero (a straight line through the rows), per latent or subject, relative to the largest row.

A worker reads the next piece on a second thread while it multiplies, so that one worker alone uses more than one core
where there are more; "a core each" keeps the one worker, and everything beside it, to one core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from bdflow.benchmarks.machine import sgemm_rate
from bdflow.benchmarks.ridge import Scale, run_stage

SIZE = (3000, 500, 3000)  # training stimuli, test stimuli, voxels: of the rows that grow
PAPER = (8859, 982, 12682)  # and of those of the workers
BASE = 24576  # latents


def scale(subjects: int, latents: int, size: tuple[int, int, int] = SIZE) -> Scale:
    """Sizes of one row."""
    train, test, voxels = size
    names = {f"subj{i + 1:02d}": voxels for i in range(subjects)}
    spaces = {"vdvae": (latents // 2,), "clip_vision": (latents // 3072, 768), "clip_text": (latents // 3072, 768)}
    return Scale(train, test, names, spaces, 512, 4096)


def products(workers: int) -> float:
    """FLOP/s of float32 matrix products in so many processes of one thread at once."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
        list(processes.map(sgemm_rate, [1] * workers))
        return sum(processes.map(sgemm_rate, [1] * workers))


def seconds(root: Path, sizes: Scale, executor: str, workers: int, repeats: int) -> float:
    """Least seconds of the stage's works over some repeats."""
    found = []
    for _ in range(repeats):
        found.append(sum(run_stage(root, sizes, executor, workers, 1).values()))
    shutil.rmtree(root / "study.zarr", ignore_errors=True)
    return min(found)


ROWS: dict[str, tuple[tuple[int, ...], Callable[[int], Scale], str, Callable[[int], int]]] = {
    "latents": ((BASE, 2 * BASE, 5 * BASE, 10 * BASE), lambda n: scale(1, n), "serial", lambda n: 1),
    "subjects": ((1, 2, 5, 10), lambda n: scale(n, BASE), "serial", lambda n: 1),
    "workers": ((1, 2), lambda n: scale(2, 4 * BASE, PAPER), "dask", lambda n: n),
    "workers, a core each": ((1, 2), lambda n: scale(2, 4 * BASE, PAPER), "dask", lambda n: n),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*ROWS, []], default=list(ROWS))
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp("-bdflow-ridge", dir=options.dir))
    result: dict[str, dict[str, float]] = {}
    cores = sorted(os.sched_getaffinity(0))
    try:
        for what in options.what:
            rows, sizes, executor, workers = ROWS[what]
            result[what] = {}
            for row in rows:
                if what == "workers, a core each":
                    os.sched_setaffinity(0, cores[:row])
                result[what][str(row)] = seconds(root, sizes(row), executor, workers(row), options.repeats)
                os.sched_setaffinity(0, cores)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for what in [what for what in result if not what.startswith("workers")]:
        x, y = (np.array([float(v) for v in values]) for values in (result[what], result[what].values()))
        slope, start = np.polyfit(x, y, 1)
        for size, took in zip(x, y, strict=True):
            print(f"{what:>9} {size:>8,.0f}  {took:7.2f} s   per unit {(took - start) / size / slope:.2f}")
        exponent = float(np.polyfit(np.log(x), np.log(y - max(start, 0)), 1)[0])
        result[what]["exponent"] = exponent
        print(f"{what:>9} grows as size^{exponent:.2f} beside {max(start, 0):.2f} s")
    for what in [what for what in result if what.startswith("workers")]:
        one, two = (result[what][n] for n in "12")
        print(f"  {what}: 1: {one:.2f} s, 2: {two:.2f} s, {one / two:.2f} x")
    limit = result["sgemm"] = {"two processes to one": products(2) / products(1)}
    print(f"  sgemm in two processes to one: {limit['two processes to one']:.2f} x")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
