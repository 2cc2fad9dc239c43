"""Takagi & Nishimoto's ridge at full size, by the stage `regress`, within a limit on memory.

24,980 single training trials of 8,859 stimuli, 982 averaged test stimuli, seven penalties, no intercept, a penalty for
each latent: z (6,400 latents) from 5,917 voxels, c (59,136) from 7,604, the numbers of subject 1. Each of the two is a
study of random numbers of its own, worked on in a process of its own, whose peak memory is read.

    python -m bdflow.benchmarks.ridge_trials --space z --method k_fold
    python -m bdflow.benchmarks.ridge_trials --space z c --method k_fold_rows --dir /scratch
    python -m bdflow.benchmarks.ridge_trials --scale small

`k_fold` leaves stimuli out (512 of them are predicted), `k_fold_rows` is the authors' RidgeCV. Printed beside it: the
machine's sgemm in the same run and, where himalaya is installed, the peak memory of its RidgeCV, measured on problems
that it can hold and carried on to this one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bdflow.benchmarks.given import context_of, provenances
from bdflow.benchmarks.machine import sgemm_rate
from bdflow.config import Config, parse
from bdflow.pipeline import STAGES
from bdflow.runner import Runner
from bdflow.stages.regress.stage import Regress
from bdflow.stores import Store, Study, text
from bdflow.stores.journal import Journal, entries
from bdflow.study import catalog, keys
from bdflow.study.keys import SHARED

GIB = 2**30
SUBJECT = "subj01"
GRID = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]


@dataclass(frozen=True)
class Size:
    """Trials and stimuli of the training set, test stimuli; voxels and shape of each space."""

    trials: int
    stimuli: int
    tests: int
    spaces: dict[str, tuple[int, tuple[int, ...]]]


SIZES = {
    "small": Size(2_500, 900, 100, {"z": (600, (640,)), "c": (800, (7, 768))}),
    "full": Size(24_980, 8_859, 982, {"z": (5_917, (6_400,)), "c": (7_604, (77, 768))}),
}


def configuration(root: Path, space: str, method: str, size: Size, threads: int, memory: str) -> Config:
    shape = size.spaces[space][1]
    latents = root / "shape.npz"
    np.savez(latents, stimulus_id=np.zeros(1, int), latent=np.zeros((1, *shape), "f4"))
    ridge = {
        "rows": "trials",
        "intercept": False,
        "choose": "per_target",
        "grid": GRID,
        "standardise": "none",
        "validation": {"method": method, "folds": 5},
    }
    return parse(
        {
            "study": str(root / "study.zarr"),
            "subjects": [SUBJECT],
            "dataset": {"root": str(root)},
            "spaces": {space: {"encoder": f"array:{latents}"}},
            "ridge": ridge,
            "report": {"path": str(root / "report")},
            "chunks": {"stimuli": 512, "columns": 4096},
            "execution": {"regress": {"threads": threads, "memory": memory}},
        }
    )


def given_keys(space: str) -> list[str]:
    """The stores that are made here."""
    return [keys.responses(SUBJECT, "trials"), *(keys.targets(space, part) for part in (SHARED, SUBJECT))]


def fill(config: Config, space: str, size: Size) -> None:
    """Responses and targets: a planted linear relation and noise, so that penalties differ."""
    study, known = Study(config.study), provenances(config, given_keys(space))
    study.create("ridge on single trials", {})
    rng = np.random.default_rng(0)
    voxels, shape = size.spaces[space]
    counts = np.full(size.stimuli, size.trials // size.stimuli)
    counts[: size.trials - counts.sum()] += 1
    train = size.tests + np.repeat(np.arange(size.stimuli), counts)
    ids = np.concatenate([np.arange(size.tests), train])
    presented = np.concatenate([np.zeros(size.tests, int), rng.permutation(size.trials)])
    given = {
        "stimulus_id": ids,
        "split": text(["test"] * size.tests + ["train"] * size.trials),
        "repeats": np.where(np.arange(len(ids)) < size.tests, 3, 1),
        "trial": presented,
    }
    key = keys.responses(SUBJECT, "trials")
    sizes = {"row": len(ids), "voxel": voxels}
    store = study.declare(
        key, catalog.responses(1024, "percent signal change", rows="trials"), sizes, given, known[key]
    )
    factors = rng.standard_normal((size.tests + size.stimuli, 64), dtype=np.float32)
    for partition in store.missing():
        region = store.spec.region(sizes, partition)["voxel"]
        own = region.stop - region.start
        signal = factors @ rng.standard_normal((64, own), dtype=np.float32) / 8
        values = signal[ids] + 2 * rng.standard_normal((len(ids), own), dtype=np.float32)
        rows, none = values[size.tests :], np.zeros(own, "i4")
        data = {"response": values, "voxel_mean": rows.mean(axis=0), "voxel_scale": rows.std(axis=0, ddof=1)}
        data |= {"valid": np.ones(own, "u1"), "missing_trials": none, "clipped_trials": none}
        store.write(partition, data)
    store.seal()
    spec = catalog.targets(shape, "f2", 512, 4096)
    for part, part_ids, split in (
        (SHARED, np.arange(size.tests), "test"),
        (SUBJECT, size.tests + np.arange(size.stimuli), "train"),
    ):
        key = keys.targets(space, part)
        sizes = {"stimulus_id": len(part_ids), **catalog.space_sizes(shape)}
        given = {"stimulus_id": part_ids, "split": text([split] * len(part_ids))}
        targets = study.declare(key, spec, sizes, given, known[key])
        mixing = np.random.default_rng(1).standard_normal((64, int(np.prod(shape))), dtype=np.float32) / 8
        for partition in targets.missing():
            rows = spec.region(sizes, partition)["stimulus_id"]
            latent = factors[part_ids[rows]] @ mixing
            latent += rng.standard_normal(latent.shape, dtype=np.float32)
            targets.write(partition, {"latent": latent.reshape(-1, *shape).astype("f2")})
        targets.seal()


def work(config: Config, space: str) -> dict[str, Any]:
    """The stage, in this process: seconds of each work, peak memory, the penalties chosen."""
    study, known = Study(config.study), provenances(config, given_keys(space))
    context = context_of(config, study, known, Regress())
    start = time.perf_counter()
    with ExitStack() as stack:
        Runner(STAGES, context, Journal(study.path, "benchmark"), stack).fill("regress")
    seconds = time.perf_counter() - start
    alphas = Store(study.path, keys.predictions(SUBJECT, space)).read("alpha")
    return {
        "seconds": seconds,
        "works": {entry["work"]: entry["wall_seconds"] for entry in entries(study.path)},
        "peak (B)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "penalties": {f"{alpha:g}": int((alphas == alpha).sum()) for alpha in np.unique(alphas)},
    }


HIMALAYA = """
import resource, sys
import numpy as np
from himalaya.ridge import RidgeCV
n, p, t = map(int, sys.argv[1:4])
rng = np.random.default_rng(0)
x, y = (rng.standard_normal((n, width), dtype=np.float32) for width in (p, t))
RidgeCV(alphas=[1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]).fit(x, y)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def himalaya_share() -> float | None:
    """Peak memory of himalaya's RidgeCV (defaults, seven penalties) a byte of float32 targets of all trials: the slope
    between 4,000 and 12,000 targets of 3,000 trials and 700 voxels. None where it is not installed.
    """
    if find_spec("himalaya") is None:
        return None
    n, p, few, many = 3_000, 700, 4_000, 12_000
    peaks = []
    for t in (few, many):
        command = [sys.executable, "-c", HIMALAYA, *map(str, (n, p, t))]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout))
    return (peaks[1] - peaks[0]) / (4 * n * (many - few))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SIZES, default="full")
    parser.add_argument("--space", choices=("z", "c"), nargs="+", default=["z", "c"])
    parser.add_argument("--method", choices=("k_fold", "k_fold_rows"), default="k_fold_rows")
    parser.add_argument("--memory", default="8 GiB", help="what the stage may use")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--dir", type=Path, default=None, help="where to build the stores (default: a temporary folder)"
    )
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size, found = SIZES[options.scale], {}
    if options.child is not None:
        (space,) = options.space
        made = configuration(options.child, space, options.method, size, options.threads, options.memory)
        print(json.dumps(work(made, space)))
        return
    share = himalaya_share()
    for space in options.space:
        with tempfile.TemporaryDirectory("-bdflow-trials", dir=options.dir) as root:
            config = configuration(Path(root), space, options.method, size, options.threads, options.memory)
            fill(config, space, size)
            before = sgemm_rate(options.threads)
            command = [
                sys.executable,
                "-m",
                "bdflow.benchmarks.ridge_trials",
                "--child",
                root,
                "--space",
                space,
                "--method",
                options.method,
            ]
            command += ["--scale", options.scale, "--memory", options.memory, "--threads", str(options.threads)]
            ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8")
            one = json.loads(ended.stdout.splitlines()[-1])
            one["sgemm (FLOP/s)"] = [before, sgemm_rate(options.threads)]
        voxels, shape = size.spaces[space]
        print(f"{space}: {size.trials:,} trials, {voxels:,} voxels, {int(np.prod(shape)):,} latents, {options.method}")
        print(f"  {one['seconds']:.0f} s: " + ", ".join(f"{name} {s:.0f} s" for name, s in one["works"].items()))
        print("  sgemm before and after: " + ", ".join(f"{r / 1e9:.0f} GFLOP/s" for r in one["sgemm (FLOP/s)"]))
        print(f"  peak {one['peak (B)'] / GIB:.2f} GiB of {options.memory}")
        if share is not None:
            held = share * 4 * size.trials * int(np.prod(shape)) / GIB
            print(
                f"  himalaya's RidgeCV: {share:.1f} bytes a byte of targets, so {held:.1f} GiB for these, and the rows"
            )
        print(f"  latents by penalty: {one['penalties']}")
        found[space] = one
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
