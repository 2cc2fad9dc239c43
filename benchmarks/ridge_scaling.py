"""How the cost of ridge grows: over a tenfold range of latents and of subjects, and from one worker to two.

    python benchmarks/ridge_scaling.py --json scaling.json

Every row runs the real stage through real stores of synthetic data. "per unit" is the time of the stage less what it
takes at size zero (a straight line through the rows), per latent or subject, relative to the largest row.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from ridge import Scale, run_stage

TRAIN, TEST, VOXELS, BASE = 3000, 500, 3000, 8192


def scale(subjects: int, latents: int) -> Scale:
    """Sizes of one row."""
    names = {f"subj{i + 1:02d}": VOXELS for i in range(subjects)}
    spaces = {"vdvae": (latents // 2,), "clip_vision": (latents // 3072, 768), "clip_text": (latents // 3072, 768)}
    return Scale(TRAIN, TEST, names, spaces, 512, 4096)


def seconds(root: Path, sizes: Scale, executor: str, workers: int, repeats: int) -> float:
    """Least seconds of the stage's works over some repeats."""
    found = []
    for _ in range(repeats):
        found.append(sum(run_stage(root, sizes, executor, workers, 1).values()))
    shutil.rmtree(root / "study.zarr", ignore_errors=True)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp("-bdflow-ridge", dir=options.dir))
    result: dict[str, dict[str, float]] = {"latents": {}, "subjects": {}, "workers": {}}
    try:
        for factor in (1, 2, 5, 10):
            took = seconds(root, scale(1, BASE * 3 * factor), "serial", 1, options.repeats)
            result["latents"][str(BASE * 3 * factor)] = took
        for subjects in (1, 2, 5, 10):
            took = seconds(root, scale(subjects, BASE * 3), "serial", 1, options.repeats)
            result["subjects"][str(subjects)] = took
        for workers in (1, 2):
            took = seconds(root, scale(2, BASE * 30), "dask", workers, options.repeats)
            result["workers"][str(workers)] = took
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for what in ("latents", "subjects"):
        x, y = (np.array([float(v) for v in values]) for values in (result[what], result[what].values()))
        slope, start = np.polyfit(x, y, 1)
        for size, took in zip(x, y, strict=True):
            print(f"{what:>9} {size:>8,.0f}  {took:7.2f} s   per unit {(took - start) / size / slope:.2f}")
        result[f"{what}, exponent"] = {"value": float(np.polyfit(np.log(x), np.log(y - max(start, 0)), 1)[0])}
        print(f"{what:>9} grows as size^{result[f'{what}, exponent']['value']:.2f} beside {max(start, 0):.2f} s")
    one, two = result["workers"]["1"], result["workers"]["2"]
    print(f"  workers  1: {one:.2f} s, 2: {two:.2f} s, {one / two:.2f} x")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
