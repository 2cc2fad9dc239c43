"""Takagi & Nishimoto's ridge at full size, by the stage `regress`, in one run and within a limit on memory.

24,980 single training trials of 8,859 stimuli, 982 averaged test stimuli, seven penalties, no intercept, a penalty for
each latent: z (6,400 latents) from the 5,917 voxels of early areas, c (59,136) from the 7,604 of ventral ones, the
numbers of subject 1, for each of four subjects. Random numbers with a planted linear relation. The stage runs in a
process of its own, whose peak memory is read.

    python -m bdflow.benchmarks.ridge_trials --method k_fold --dir /scratch
    python -m bdflow.benchmarks.ridge_trials --method k_fold_rows --subjects 1
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
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bdflow.benchmarks.given import context_of, provenances
from bdflow.benchmarks.machine import sgemm_rate
from bdflow.config import Config, parse
from bdflow.datasets.contract import Encoding, Units
from bdflow.pipeline import STAGES
from bdflow.runner import Runner
from bdflow.stages.regress.stage import Regress
from bdflow.stores import Store, StoreSpec, Study, text
from bdflow.stores.journal import Journal, entries
from bdflow.study import catalog, keys
from bdflow.study.keys import SHARED

UNITS: Units = "percent signal change"
REGIONS = {"z": "early", "c": "ventral"}
GRID = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
FACTORS = 64


@dataclass(frozen=True)
class Size:
    """Trials and stimuli of each training set, test stimuli; voxels and shape of each space."""

    trials: int
    stimuli: int
    tests: int
    spaces: dict[str, tuple[int, tuple[int, ...]]]

    def latents(self, space: str) -> int:
        return int(np.prod(self.spaces[space][1]))


SIZES = {
    "tiny": Size(250, 90, 12, {"z": (60, (64,)), "c": (80, (3, 32))}),
    "small": Size(2_500, 900, 100, {"z": (600, (640,)), "c": (800, (7, 768))}),
    "full": Size(24_980, 8_859, 982, {"z": (5_917, (6_400,)), "c": (7_604, (77, 768))}),
}


@dataclass(frozen=True)
class Problem:
    """What is run: of which size, for how many subjects, which spaces, how validated, within what."""

    scale: str
    subjects: int
    spaces: tuple[str, ...]
    method: str
    threads: int
    memory: str

    @property
    def size(self) -> Size:
        return SIZES[self.scale]

    @property
    def names(self) -> list[str]:
        return [f"subj{i + 1:02d}" for i in range(self.subjects)]

    def configuration(self, root: Path) -> Config:
        spaces = {}
        for space in self.spaces:
            latents, shape = root / f"{space}.npz", self.size.spaces[space][1]
            np.savez(latents, stimulus_id=np.zeros(1, int), latent=np.zeros((1, *shape), "f4"))
            spaces[space] = {"encoder": f"array:{latents}", "ridge": {"regions": REGIONS[space]}}
        ridge = {
            "rows": "trials",
            "intercept": False,
            "choose": "per_target",
            "grid": GRID,
            "standardise": "none",
            "validation": {"method": self.method, "folds": 5},
        }
        return parse(
            {
                "study": str(root / "study.zarr"),
                "subjects": self.names,
                "dataset": {"root": str(root), "mask": "streams"},
                "spaces": spaces,
                "ridge": ridge,
                "report": {"path": str(root / "report")},
                "chunks": {"stimuli": 512, "columns": 4096},
                "execution": {"regress": {"threads": self.threads, "memory": self.memory}},
            }
        )

    def given_keys(self) -> list[str]:
        """The stores that are made here."""
        return [
            *(key for s in self.names for key in (keys.betas(s), *(keys.responses(s, rows) for rows in ROWS))),
            *(keys.targets(space, part) for space in self.spaces for part in (SHARED, *self.names)),
        ]


ROWS = ("averaged", "trials")


class Filler:
    """Makes the stores that the stage reads: a planted linear relation and noise, so that penalties differ."""

    def __init__(self, problem: Problem, root: Path) -> None:
        self.problem, self.size = problem, problem.size
        config = problem.configuration(root)
        self.study, self.known = Study(config.study), provenances(config, problem.given_keys())
        self.study.create("ridge on single trials", {})
        self.rng = np.random.default_rng(0)
        size = self.size
        self.factors = self.rng.standard_normal((size.tests + problem.subjects * size.stimuli, FACTORS), dtype="f4")

    def fill(self) -> None:
        for number, subject in enumerate(self.problem.names):
            first = self.size.tests + number * self.size.stimuli
            self.region_labels(subject)
            self.responses(subject, first)
        for space in self.problem.spaces:
            self.targets(space)

    def declare(self, key: str, spec: StoreSpec, sizes: dict[str, int], given: dict[str, Any]) -> Store:
        return self.study.declare(key, spec, sizes, given, self.known[key])

    def region_labels(self, subject: str) -> None:
        """Betas and averaged responses of one trial: the stage reads their labels of voxels alone. Voxels of the
        regions lie among each other, as they do in a brain.
        """
        counts = [self.size.spaces[space][0] for space in REGIONS]
        voxels = sum(counts)
        region = self.rng.permutation(np.repeat(np.arange(len(counts)), counts))
        given: dict[str, Any] = {
            "stimulus_id": np.zeros(1, int),
            "session": text(["1"]),
            "run": np.ones(1, int),
            "condition": text([""]),
            **{axis: np.arange(voxels) for axis in "ijk"},
            "grid": np.full(3, voxels),
            "affine": np.eye(4),
            "affine_form": np.zeros(1, int),
            "region": text([f"streams/{name}" for name in REGIONS.values()]),
            "roi": np.stack([region == i for i in range(len(counts))]).astype("u1"),
            "ncsnr": np.zeros(voxels, "f4"),
        }
        units = Encoding("int16", "percent signal change", 300, True)
        spec, sizes = catalog.betas(1, units), {"trial": 1, "voxel": voxels, "region": len(counts)}
        self.zeros(
            self.declare(keys.betas(subject), spec, {**sizes, "world": 4, "index": 4, "axis": 3, "code": 1}, given)
        )
        given = {"stimulus_id": np.zeros(1, int), "split": text(["test"]), "repeats": [1], "trial": [0]}
        sizes = {"stimulus_id": 1, "voxel": voxels}
        self.zeros(self.declare(keys.responses(subject, "averaged"), catalog.responses(1024, UNITS), sizes, given))

    def zeros(self, store: Store) -> None:
        for partition in store.missing():
            region = store.spec.region(store.sizes, partition)
            data = {}
            for spec in store.spec.data:
                dims = store.dims(spec.name)
                shape = [region[d].stop - region[d].start if d in region else store.sizes[d] for d in dims]
                data[spec.name] = np.full(shape, spec.name == "valid", store.arrays[spec.name].dtype)
            store.write(partition, data)
        store.seal()

    def responses(self, subject: str, first: int) -> None:
        size, rng = self.size, self.rng
        counts = np.full(size.stimuli, size.trials // size.stimuli)
        counts[: size.trials - counts.sum()] += 1
        ids = np.concatenate([np.arange(size.tests), first + np.repeat(np.arange(size.stimuli), counts)])
        given = {
            "stimulus_id": ids,
            "split": text(["test"] * size.tests + ["train"] * size.trials),
            "repeats": np.where(np.arange(len(ids)) < size.tests, 3, 1),
            "trial": np.concatenate([np.zeros(size.tests, int), rng.permutation(size.trials)]),
        }
        sizes = {"row": len(ids), "voxel": sum(size.spaces[space][0] for space in REGIONS)}
        spec = catalog.responses(1024, UNITS, rows="trials")
        store = self.declare(keys.responses(subject, "trials"), spec, sizes, given)
        for partition in store.missing():
            region = store.spec.region(sizes, partition)["voxel"]
            own = region.stop - region.start
            signal = self.factors @ rng.standard_normal((FACTORS, own), dtype="f4") / 8
            values = signal[ids] + 2 * rng.standard_normal((len(ids), own), dtype="f4")
            rows, none = values[size.tests :], np.zeros(own, "i4")
            data = {"response": values, "voxel_mean": rows.mean(axis=0), "voxel_scale": rows.std(axis=0, ddof=1)}
            data |= {"valid": np.ones(own, "u1"), "ncsnr_repeats": np.zeros(own, "f4")}
            store.write(partition, data | {"missing_trials": none, "clipped_trials": none})
        store.seal()

    def targets(self, space: str) -> None:
        size, shape = self.size, self.size.spaces[space][1]
        spec = catalog.targets(shape, "f2", 512, 4096)
        mixing = self.rng.standard_normal((FACTORS, size.latents(space)), dtype="f4") / 8
        own = {subject: size.tests + i * size.stimuli for i, subject in enumerate(self.problem.names)}
        parts = {SHARED: (np.arange(size.tests), "test")}
        parts |= {subject: (first + np.arange(size.stimuli), "train") for subject, first in own.items()}
        for part, (ids, split) in parts.items():
            sizes = {"stimulus_id": len(ids), **catalog.space_sizes(shape)}
            given = {"stimulus_id": ids, "split": text([split] * len(ids))}
            store = self.declare(keys.targets(space, part), spec, sizes, given)
            for partition in store.missing():
                latent = self.factors[ids[spec.region(sizes, partition)["stimulus_id"]]] @ mixing
                latent += self.rng.standard_normal(latent.shape, dtype="f4")
                store.write(partition, {"latent": latent.reshape(-1, *shape).astype("f2")})
            store.seal()


def work(problem: Problem, root: Path) -> dict[str, Any]:
    """The stage, in this process: seconds of each work, peak memory, the penalties chosen."""
    config = problem.configuration(root)
    study, known = Study(config.study), provenances(config, problem.given_keys())
    context = context_of(config, study, known, Regress())
    start = time.perf_counter()
    with ExitStack() as stack:
        Runner(STAGES, context, Journal(study.path, "benchmark"), stack).fill("regress")
    seconds = time.perf_counter() - start
    penalties = {}
    for space in problem.spaces:
        alphas = np.concatenate([Store(study.path, keys.predictions(s, space)).read("alpha") for s in problem.names])
        penalties[space] = {f"{alpha:g}": int((alphas == alpha).sum()) for alpha in np.unique(alphas)}
    return {
        "seconds": seconds,
        "works": {entry["work"]: entry["wall_seconds"] for entry in entries(study.path)},
        "peak (B)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "penalties": penalties,
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


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was found."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SIZES, default="full")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--spaces", choices=tuple(REGIONS), nargs="+", default=list(REGIONS))
    parser.add_argument("--method", choices=("k_fold", "k_fold_rows"), default="k_fold_rows")
    parser.add_argument("--memory", default="8 GB", help="what the stage may use")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dir", type=Path, help="where to build the stores (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    problem = Problem(given.scale, given.subjects, tuple(given.spaces), given.method, given.threads, given.memory)
    if given.child is not None:
        found = work(problem, given.child)
        print(json.dumps(found))
        return found
    with tempfile.TemporaryDirectory("-bdflow-trials", dir=given.dir) as root:
        Filler(problem, Path(root)).fill()
        before = sgemm_rate(problem.threads)
        command = [sys.executable, "-m", "bdflow.benchmarks.ridge_trials", *words, "--child", root]
        ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8")
    found = json.loads(ended.stdout.splitlines()[-1])
    found["sgemm (FLOP/s)"] = [before, sgemm_rate(problem.threads)]
    found["himalaya (B a B of targets)"] = himalaya_share()
    show(problem, found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def show(problem: Problem, found: dict[str, Any]) -> None:
    """Print the figures, beside the machine's own."""
    size = problem.size
    print(f"{problem.method}: {size.trials:,} trials of each of {problem.subjects} subjects, {len(GRID)} penalties")
    for space in problem.spaces:
        chosen = ", ".join(f"{alpha}: {count:,}" for alpha, count in found["penalties"][space].items())
        print(f"  {space}: {size.spaces[space][0]:,} voxels, {size.latents(space):,} latents; by penalty {chosen}")
    print(f"  {found['seconds']:.0f} s: " + ", ".join(f"{name} {s:.0f} s" for name, s in found["works"].items()))
    print("  sgemm before and after: " + ", ".join(f"{r / 1e9:.0f} GFLOP/s" for r in found["sgemm (FLOP/s)"]))
    print(f"  peak {found['peak (B)'] / 1e9:.2f} GB of {problem.memory}")
    share = found["himalaya (B a B of targets)"]
    if share is not None:
        held = share * 4 * size.trials * sum(size.latents(space) for space in problem.spaces) / 1e9
        print(f"  himalaya's RidgeCV: {share:.1f} bytes a byte of targets, so {held:.1f} GB a subject, and the rows")


if __name__ == "__main__":
    main()
