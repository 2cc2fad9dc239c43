"""Ridge on the GPU of this machine: is every path right, are failures seen, are copies safe, and how fast is it?

    python -m bdflow.benchmarks.gpu_ridge --json found.json

Needs CuPy, and of bdflow's dependencies what `bdflow.regression` loads. Exits with 1 if something is wrong. `--sizes
small` is for trying the script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bdflow.errors import InputError
from bdflow.regression import banded, cross_validation, out_of_core, principal, ridge, streaming
from bdflow.regression.copies import copies_of
from bdflow.regression.device import to_device, to_host
from bdflow.regression.grouping import Grouping

ALPHAS, T = (50.0, 500.0), 512
SIZES = {  # training stimuli, test stimuli, latents of a block, voxels
    "small": (300, 40, 64, 200),
    "paper": (8859, 982, 4096, 15724),
}


def gpu(values: Any) -> Any:
    """The array, or arrays, on the GPU."""
    if isinstance(values, list | tuple):
        return [gpu(one) for one in values]
    return to_device(np.ascontiguousarray(values), "cuda")


def error(found: Any, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest value; infinite where other values are not numbers."""
    found = to_host(found)
    if found.shape != expected.shape or not np.array_equal(np.isnan(found), np.isnan(expected)):
        return float("inf")
    return float(np.nanmax(np.abs(found - expected), initial=0) / np.nanmax(np.abs(expected), initial=1e-30))


# --- right? -----------------------------------------------------------------------------------------------------------


def differences(dual: tuple[int, int] = (600, 900), primal: tuple[int, int] = (900, 400)) -> dict[str, float]:
    """The largest relative error of each path of CuPy against NumPy, over both forms of the system.

    `dual`, `primal` : training stimuli and voxels of each.
    """
    found: dict[str, float] = {}
    for form, (n, p) in {"dual": dual, "primal": primal}.items():
        for name, a, b in _paths(form, n, p, 130):
            found[name] = max(found.get(name, 0.0), error(b, a))
    return found


def _paths(form: str, n: int, p: int, m: int) -> Iterator[tuple[str, np.ndarray, Any]]:
    rng = np.random.default_rng(n)
    x, other = rng.normal(size=(n, p)).astype("f4"), rng.normal(size=(m, p)).astype("f4")
    y, true = rng.normal(3, 1, (n, T)).astype("f2"), rng.normal(3, 1, (m, T)).astype("f2")
    true[:, 5] = 2
    cpu, dev = ridge.z_score(x, other), ridge.z_score(gpu(x), gpu(other))
    yield from (("z-scores", a, b) for a, b in zip(cpu, dev, strict=True))
    hats, on_gpu = (list(ridge.hat_matrices(*z[:2], ALPHAS)) for z in (cpu, dev))
    yield from (("hat matrices", a, b) for a, b in zip(hats, on_gpu, strict=True))
    make: Callable[[Any], ridge.System] = ridge.Primal if form == "primal" else lambda z: ridge.Dual(z @ z.T)
    a, b = make(cpu[0]), make(dev[0])
    rows, fold = np.sort(rng.choice(n, 40, replace=False)), np.arange(n) % 5
    grouping = Grouping(np.repeat(np.arange(n // 3), 3))
    groups = list(grouping.groups(np.arange(20)))
    left_out = [list(cross_validation.leave_one_out(s, rows, ALPHAS)) for s in (a, b)]
    yield from (("leave-one-out", u, v) for u, v in zip(*left_out, strict=True))
    for name, function in {
        "leave-group-out": lambda s: cross_validation.leave_group_out(s, groups, ALPHAS),
        "folds": lambda s: cross_validation.k_fold(s, rows, ALPHAS, fold),
        "folds of rows": lambda s: cross_validation.k_fold_errors(s, ALPHAS, fold, Grouping(np.arange(n))),
    }.items():
        for u, v in zip(function(a), function(b), strict=True):
            yield name, u, v
            yield f"{name}, summed", grouping.sum_columns(u), grouping.sum_columns(v)
    pieces, true_pieces = [y[: n // 3], y[n // 3 :]], [true]
    for which, count in ((None, 1), (rng.integers(0, 2, T), 2)):
        for held_out in (0, 40):
            matrices = [
                np.concatenate([h, v]) if held_out else h for h, v in zip(hats[:count], left_out[0], strict=False)
            ]
            expected = streaming.predict_block(matrices, pieces, true_pieces, which=which, held_out=held_out)
            block = streaming.predict_block(
                gpu(matrices), copies_of("cuda").pieces(pieces), gpu(true_pieces), which=which, held_out=held_out
            )
            for name, u, v in zip(expected._fields, expected, block, strict=True):
                if u is not None:
                    yield f"block, {name}", u, v
    yield (
        "scores",
        streaming.validate_block(left_out[0], rows, pieces),
        streaming.validate_block(left_out[1], rows, gpu(pieces)),
    )
    kernels, crosses = [cpu[0] @ cpu[0].T], [cpu[1] @ cpu[0].T]
    for u, v in zip(
        principal.components(kernels[0], crosses[0], 20)[:2],
        principal.components(gpu(kernels[0]), gpu(crosses[0]), 20)[:2],
        strict=True,
    ):
        yield "components", u, v
    best = [banded.Banded(T, 1) for _ in range(2)]
    for models, put in zip(best, (lambda v: v, gpu), strict=True):
        for candidate in banded.candidates(put(kernels), put(crosses), np.ones((1, 1)), ALPHAS, rows):
            shown, tested = put(y.astype("f4")), put(true.astype("f4"))
            models.consider(candidate, rows, shown, tested, np.ones(T, bool))
    yield "bands", best[0].joint.r2, best[1].joint.r2
    yield "panels", *_panels(kernels[0], crosses[0].T)


def _panels(kernel: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, Any]:
    solved = []
    for put in (np.array, gpu):
        panels: list[Any] = []
        width = len(kernel) // 3
        for start in out_of_core.starts(len(kernel), width):
            columns = put(kernel[start : start + width])
            panels.append((start, out_of_core.factor_panel(start, columns, 50.0, panels)))
        values = put(right)
        out_of_core.solve(lambda panels=panels: panels, lambda panels=panels: reversed(panels), values)
        solved.append(values)
    return solved[0], solved[1]


def failures_seen() -> bool:
    """Whether a system that is not positive definite is refused."""
    kernel = gpu(-np.eye(200, dtype="f4"))
    try:
        list(ridge.Dual(kernel).hat_matrices(kernel[:3, :], [0.5]))
    except InputError:
        return True
    return False


def wrong_sums(pieces: int = 40, n: int = 2048, t: int = 4096) -> int:
    """How many pieces were not read as they are, while long products keep the GPU's arithmetic behind its copies."""
    import cupy

    copies = copies_of("cuda")
    scratch = copies.scratch()
    busy = cupy.ones((n, n), dtype=cupy.float32)

    def read() -> Iterator[np.ndarray]:
        left = [copies.left(), copies.left()]
        for number in range(pieces):
            left[number % 2]()
            piece = scratch.array(f"piece {number % 2}", (n, t), "f4")
            piece[:] = number % 7
            yield piece
            left[number % 2] = copies.left()

    sums = []
    for piece in copies.pieces(read()):
        for _ in range(8):
            busy @ busy
        sums.append(piece.sum(dtype=cupy.float64))
    return sum(float(total) != number % 7 * n * t for number, total in enumerate(sums))


# --- fast? ------------------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds until the GPU has done it, after a first time."""
    import cupy

    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        cupy.cuda.Device().synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def rates(n: int, m: int, t: int, p: int) -> dict[str, float]:
    """Copies in GB/s; seconds of a block of a subject, of the kernel, of three hat matrices."""
    rng, copies = np.random.default_rng(0), copies_of("cuda")
    plain = rng.standard_normal((n, t), dtype="f4").astype("f2")
    pinned = copies.scratch().array("piece", plain.shape, "f2")
    pinned[:] = plain
    hat, true = gpu(rng.standard_normal((m, n), dtype="f4")), gpu(plain[:m])

    def block(*pieces: np.ndarray) -> Any:
        return streaming.predict_block([hat], copies.pieces(pieces), [true])

    found = {
        "copy in, pageable (GB/s)": plain.nbytes / 1e9 / seconds(lambda: to_device(plain, "cuda")),
        "copy in, pinned (GB/s)": plain.nbytes / 1e9 / seconds(lambda: list(copies.pieces([pinned]))),
        "block of a subject, copy included (s)": seconds(lambda: block(pinned)),
        "block of four subjects (s)": seconds(lambda: [block(pinned) for _ in range(4)]),
    }
    values = {name: value for name, value in block(pinned)._asdict().items() if value is not None}
    found["results to the host (s)"] = seconds(lambda: copies.sent(values)())
    rows = gpu(rng.standard_normal((n, p), dtype="f4"))
    found["kernel (s)"] = seconds(lambda: rows @ rows.T, 2)
    system, cross = ridge.Dual(rows @ rows.T), rows[:m, :] @ rows.T
    found["three hat matrices (s)"] = seconds(lambda: list(system.hat_matrices(cross, [5e4, 6e4, 1e5])), 2)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=SIZES, default="paper")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {"relative error": differences()}
    wrong = [name for name, value in found["relative error"].items() if not value < 2e-3]
    found |= {"failures are seen": failures_seen(), "pieces read wrongly": wrong_sums(), "wrong": wrong}
    found["rates"] = rates(*SIZES[options.sizes])
    for name, value in found.items():
        for line, number in value.items() if isinstance(value, dict) else [("", value)]:
            print(f"{name:<20} {line:<40} {number:.3g}" if isinstance(number, float) else f"{name:<20} {line} {number}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if wrong or found["pieces read wrongly"] or not found["failures are seen"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
