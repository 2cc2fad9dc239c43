"""Ridge on single trials at full size: the covariance of voxels, within a limit on memory.

27,750 training trials and 15,724 voxels of one subject, 982 test stimuli: the system of voxels and its hat matrix, by
the workers of the stage `regress`, in a process of its own whose peak memory is read. The machine's sgemm is measured
before and after. Two rows of the hat matrix are compared with conjugate gradients in float64.

    python -m bdflow.benchmarks.trial_rows --memory 4
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bdflow.regression import memory_budget
from bdflow.regression.memory_budget import Extent, Plan
from bdflow.stages.regress.workers import Factoriser, SystemMaker
from bdflow.stores import Provenance, Store, Study, text
from bdflow.study import catalog
from bdflow.study.system import Solver, z_scored_blocks

GIB = 2**30
ALPHA = 60_000.0
VOXELS = 1024
REPEATS = 3
PAIR = ("subj01", "trials")


def fill(study: Study, trials: int, tests: int, voxels: int) -> Store:
    """Responses of random numbers: rows of a stimulus beside each other, test stimuli first."""
    stimuli = trials // REPEATS
    ids = np.concatenate([np.arange(tests), tests + np.repeat(np.arange(stimuli), REPEATS)])
    split = text(["test"] * tests + ["train"] * (stimuli * REPEATS))
    repeats = np.where(np.arange(len(ids)) < tests, REPEATS, 1)
    given = {"stimulus_id": ids, "split": split, "repeats": repeats, "trial": np.arange(len(ids))}
    sizes = {"row": len(ids), "voxel": voxels}
    store = study.declare(
        "responses",
        catalog.responses(VOXELS, "percent signal change", rows="trials"),
        sizes,
        given,
        Provenance("benchmark"),
    )
    train = ids >= tests
    for partition in store.missing():
        rng = np.random.default_rng(partition)
        region = store.spec.region(sizes, partition)["voxel"]
        values = rng.standard_normal((len(ids), region.stop - region.start), dtype=np.float32)
        mean, scale = values[train].mean(axis=0), values[train].std(axis=0, ddof=1)
        valid = np.ones(len(mean), "u1")
        data = {"response": values, "voxel_mean": mean, "voxel_scale": scale, "valid": valid}
        none = np.zeros(len(mean), "i4")
        store.write(partition, {**data, "missing_trials": none, "clipped_trials": none})
    store.seal()
    return store


def declared(study: Study, responses: Store) -> tuple[Store, Store]:
    """The system of voxels, and the decoder."""
    ids, split = responses.read("stimulus_id"), responses.read("split")
    p, train = responses.sizes["voxel"], np.unique(ids[split == "train"])
    sizes = {"voxel": p, "other_voxel": p, "any_voxel": p}
    given = {"used": np.ones(p, "u1"), "voxel": np.arange(p)}
    system = study.declare("system", catalog.systems(False, "trials"), sizes, given, Provenance("benchmark"))
    test = ids[split == "test"]
    given = {
        "alpha": np.array([ALPHA]),
        "space_alpha": np.array([ALPHA]),
        "space": text(["latents"]),
        "stimulus_id": test,
        "train_stimulus_id": train,
    }
    sizes = {"space": 1, "alpha": 1, "stimulus_id": len(test), "train_stimulus_id": len(train)}
    return system, study.declare("decoder", catalog.decoders(), sizes, given, Provenance("benchmark"))


def work(folder: Path, budget: int) -> dict[str, float]:
    """The two works of the stage, in this process. Seconds, and peak memory in bytes."""
    study = Study(folder)
    responses = study.store("responses")
    system, decoder = declared(study, responses)
    plan = planned(responses, budget)
    start = time.perf_counter()
    maker = SystemMaker({PAIR: responses}, {PAIR: system}, plan.whole)
    missing = system.missing()
    group = len(missing) if plan.whole else max(1, plan.kernel_rows // catalog.KERNEL_ROWS)
    for i in range(0, len(missing), group):
        maker((*PAIR, missing[i : i + group]))
    system.seal()
    made = time.perf_counter()
    solver = Solver(responses, system, plan, folder.with_name("scratch"))
    Factoriser({PAIR: solver}, {PAIR: decoder})(PAIR)
    decoder.seal()
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"system (s)": made - start, "hat matrix (s)": ended - made, "peak (B)": peak, "whole": float(plan.whole)}


def planned(responses: Store, budget: int) -> Plan:
    """How the stage goes about it within a limit on memory."""
    split = responses.read("split")
    trials, tests = int((split == "train").sum()), int((split == "test").sum())
    extent = Extent(trials, tests, responses.sizes["voxel"], 0, 1, False, trials // REPEATS)
    return memory_budget.plan({("subj01", "trials"): extent}, 4096, VOXELS, catalog.KERNEL_ROWS, budget, False)


def sgemm() -> float:
    """FLOP/s of a matrix product, median of three."""
    n, rates = 4096, []
    a = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        rates.append(2 * n**3 / (time.perf_counter() - start))
    return float(np.median(rates))


def error(study: Study, rows: int = 2) -> float:
    """Largest error of some rows of the hat matrix, relative to their largest element: against conjugate gradients."""
    responses, decoder = study.store("responses"), study.store("decoder")
    train = responses.read("split") == "train"
    x = np.concatenate([values[train] for _, values in z_scored_blocks(responses)], axis=1)
    tests = np.concatenate([values[~train][:rows] for _, values in z_scored_blocks(responses)], axis=1)
    right = tests.T.astype(float)
    solved, residual = np.zeros_like(right), right.copy()
    direction, norm = residual.copy(), (residual**2).sum(axis=0)
    for _ in range(40):
        product = (x.T @ (x @ direction.astype("f4"))).astype(float) + ALPHA * direction
        step = norm / (direction * product).sum(axis=0)
        solved += step * direction
        residual -= step * product
        new = (residual**2).sum(axis=0)
        direction, norm = residual + new / norm * direction, new
        if (norm < 1e-14 * (right**2).sum(axis=0)).all():
            break
    hat = (x @ solved.astype("f4")).T.astype(float)
    hat -= hat.mean(axis=1, keepdims=True)
    expected = hat.reshape(rows, -1, REPEATS).sum(axis=2)
    found = decoder.read("hat_matrix", {"stimulus_id": slice(0, rows)})[0]
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=27_750)
    parser.add_argument("--voxels", type=int, default=15_724)
    parser.add_argument("--tests", type=int, default=982)
    parser.add_argument("--memory", type=float, default=4.0, help="GiB that a worker may use")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    budget = int(options.memory * GIB)
    if options.child is not None:
        print(json.dumps(work(options.child, budget)))
        return
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "study.zarr"
        study = Study(folder)
        study.create("trial rows", {})
        fill(study, options.trials, options.tests, options.voxels)
        rates = [sgemm()]
        command = [
            sys.executable,
            "-m",
            "bdflow.benchmarks.trial_rows",
            "--child",
            str(folder),
            "--memory",
            str(options.memory),
        ]
        found = json.loads(subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout)
        rates.append(sgemm())
        found["error"] = error(study)
    n, p, m = options.trials // REPEATS * REPEATS, options.voxels, options.tests
    flop = p * p * n + p**3 / 3 + 2 * m * p * p + 2 * m * n * p
    rate = float(np.mean(rates))
    found["sgemm (FLOP/s)"] = rate
    found["fraction of sgemm"] = flop / (found["system (s)"] + found["hat matrix (s)"]) / rate
    print(f"{n:,} trials, {p:,} voxels, {m:,} test stimuli, limit {options.memory:g} GiB")
    print(f"system {found['system (s)']:.0f} s, hat matrix {found['hat matrix (s)']:.0f} s: {flop / 1e12:.1f} TFLOP")
    print(f"{found['fraction of sgemm']:.0%} of sgemm ({rates[0] / 1e9:.0f} and {rates[1] / 1e9:.0f} GFLOP/s)")
    print(f"peak {found['peak (B)'] / GIB:.2f} GiB, {'whole' if found['whole'] else 'block by block'}")
    print(f"largest error of a row of the hat matrix: {found['error']:.1e} of its largest element")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
