"""Ridge through the real stage and the real stores, against the machine's own limits measured in the same run.

    python benchmarks/ridge.py --scale small              a quick look
    python benchmarks/ridge.py --scale full --dir /scratch   the paper's size: 36,418 stimuli x 347,680 latents, four
                                                         subjects; about 40 GB of disk, removed afterwards

Prints a table and, with --json, writes it. The stage runs three times (--runs), each time between two measurements of
the rate of float32 matrix products on the same threads or GPUs: what is quoted is the median of the fractions that the
runs reach of the rate beside them. On GPUs, --workers 4 --gpus 0.25 has four workers share one. The arithmetic
counted is that of the method: Gram matrix n^2 p, a Cholesky n^3/3 for each alpha, the solves, and 2 m n t for the
predictions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from given import context_of, provenances
from ridge_stores import SCALES, Reader, Scale, Writer, build
from threadpoolctl import threadpool_limits

from bdflow.cluster import Resources, open_executor
from bdflow.config import Config, parse
from bdflow.pipeline import STAGES
from bdflow.regression import ridge
from bdflow.runner import Runner
from bdflow.stages.regress.stage import Regress
from bdflow.stores import Provenance, Store, Study
from bdflow.stores.journal import Journal, entries
from bdflow.study import catalog, keys, parts
from bdflow.study.keys import SHARED
from bdflow.study.parts import Joined

GIB = 2**30


def best(call: Callable[[], Any], repeats: int = 5) -> float:
    """Least seconds of several calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def sgemm_rate(threads: int, gpus: float = 0) -> float:
    """FLOP/s of a large float32 matrix product: on these threads, or, measured on one of them, on so many GPUs."""
    if gpus:
        import cupy

        a = cupy.random.standard_normal((16384, 16384), dtype=cupy.float32)

        def product() -> None:
            a @ a
            cupy.cuda.Device().synchronize()

        rate = gpus * 2 * a.shape[0] ** 3 / best(product)
        del a
        cupy.get_default_memory_pool().free_all_blocks()  # the workers share the GPU with this process
        return rate
    n = 5120
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, n, n), dtype=np.float32)
    with threadpool_limits(threads):
        return 2 * n**3 / best(lambda: a @ b)


def disk_rates(folder: Path, nbytes: int = GIB) -> tuple[float, float]:
    """Bytes/s of writing a file to the disk, and of reading it back from there and not from memory."""
    block, file = np.random.default_rng(0).bytes(2**26), folder / "disk.bin"
    start = time.perf_counter()
    with file.open("wb") as out:
        for _ in range(nbytes // len(block)):
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    written = nbytes / (time.perf_counter() - start)
    with file.open("rb", buffering=0) as back:
        os.posix_fadvise(back.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while back.read(2**26):
            pass
        read = nbytes / (time.perf_counter() - start)
    file.unlink()
    return written, read


class PeakMemory(threading.Thread):
    """Largest proportional set size of this process and all it started, with what it was before."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.stopped = 0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.2):
            me, total = psutil.Process(), 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.peak = max(self.peak, total)

    def __enter__(self) -> PeakMemory:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopped.set()
        self.join()


# --- the competition ------------------------------------------------------------------------------------------------


def compare(threads: int, scale: Scale) -> dict[str, float]:
    """Seconds for the same predictions at a common size: hat matrix, the authors' loop, himalaya."""
    from sklearn.linear_model import Ridge

    n, m, p, tokens, width = min(scale.train, 2500), min(scale.test, 300), 4000, 257, 768
    tokens = tokens if scale.train > 1000 else 8
    p = min(p, max(scale.voxels.values()))
    rng = np.random.default_rng(1)
    x, other = (rng.standard_normal((k, p), dtype=np.float32) for k in (n, m))
    y = rng.standard_normal((n, tokens, width), dtype=np.float32)
    with threadpool_limits(threads):

        def hat() -> np.ndarray:
            train, test, _, _ = ridge.z_score(x, other)
            (matrix,) = ridge.hat_matrices(train, test, [60_000.0])
            return ridge.predict(matrix, y.reshape(n, -1))

        ours = best(hat, 3)
        train, test, _, _ = ridge.z_score(x.astype(np.float64), other.astype(np.float64))
        sample = 3

        def loop() -> None:
            for token in range(sample):
                Ridge(alpha=60_000).fit(train, y[:, token].astype(np.float64)).predict(test)

        authors = best(loop, 1) / sample * tokens
        found = {"n": n, "p": p, "m": m, "t": tokens * width, "hat matrix": ours, "authors' loop": authors}
        try:
            from himalaya.kernel_ridge import KernelRidge
        except ImportError:
            return found
        narrow, other_narrow = train.astype(np.float32), test.astype(np.float32)

        def himalaya() -> None:
            KernelRidge(alpha=60_000, kernel="linear", fit_intercept=True).fit(narrow, y.reshape(n, -1)).predict(
                other_narrow
            )

        found["himalaya"] = best(himalaya, 1)
    return found


def error_against_float64(study: Path, subject: str, alpha: float) -> float:
    """Largest error of stored predictions against float64, relative to the largest prediction, on 64 latents."""
    responses, predictions = Store(study, f"responses/{subject}/averaged"), Store(study, f"predictions/{subject}/vdvae")
    targets = Joined([Store(study, keys.targets("vdvae", part)) for part in (SHARED, subject)])
    test = responses.read("split") == "test"
    x = responses.read("response").astype(np.float64)
    train, other, _, _ = ridge.z_score(x[~test], x[test])
    columns = {"feature": slice(0, 64)}
    y = targets.read(
        "latent", {"stimulus_id": targets.rows("stimulus_id", responses.read("stimulus_id")[~test]), **columns}
    )
    (hat,) = ridge.hat_matrices(train, other, [alpha])
    reference = ridge.predict(hat, y.astype(np.float64))
    return float(np.abs(predictions.read("latent", columns) - reference).max() / np.abs(reference).max())


ALPHAS = {"vdvae": 50_000, "clip_vision": 60_000, "clip_text": 100_000}


def arithmetic(scale: Scale) -> float:
    """FLOP of the method for all subjects."""
    n, m, t = scale.train, scale.test, scale.latents
    total = 0.0
    for p in scale.voxels.values():
        total += n * n * p + 2 * m * n * p + len(ALPHAS) * (n**3 / 3 + 2 * m * n * n) + 2 * m * n * t
    return total


def configuration(
    root: Path, scale: Scale, executor: str, workers: int, threads: int, gpus: float = 0, memory: str | None = None
) -> Config:
    where = {"executor": executor, "workers": workers, "threads": threads, "gpus": gpus, "memory": memory}
    return parse(
        {
            "study": str(root / "study.zarr"),
            "subjects": list(scale.voxels),
            "dataset": {"root": str(root)},
            "spaces": {name: {"encoder": name, "ridge": {"alpha": alpha}} for name, alpha in ALPHAS.items()},
            "report": {"path": str(root / "report")},
            "chunks": {"stimuli": scale.stimuli, "columns": scale.columns},
            "execution": {"regress": where},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument(
        "--dir", type=Path, default=None, help="where to build the stores (default: a temporary folder)"
    )
    parser.add_argument("--executor", choices=("serial", "dask"), default="dask")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads of each worker")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker (with CuPy); 0.25: four share one")
    parser.add_argument("--runs", type=int, default=3, help="of the stage; the median is quoted")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--no-comparison", action="store_true", help="leave scikit-learn and himalaya out")
    parser.add_argument("--keep", action="store_true", help="keep responses and targets in --dir for another run")
    options = parser.parse_args()
    scale = SCALES[options.scale]
    cores = options.workers * options.threads
    if options.keep and options.dir is None:
        parser.error("--keep needs --dir")
    root = options.dir / options.scale if options.keep else Path(tempfile.mkdtemp("-bdflow-ridge", dir=options.dir))
    root.mkdir(parents=True, exist_ok=True)
    try:
        result = measure(root, scale, options, cores)
    finally:
        if not options.keep:
            shutil.rmtree(root, ignore_errors=True)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def prepare(config: Config, scale: Scale) -> tuple[Study, dict[str, Provenance], dict[str, Store]]:
    """A study with declared responses and targets, taken up if they are there, and nothing that follows from them."""
    study = Study(config.study)
    study.create("ridge benchmark", {})
    for path in study.paths():
        if not path.startswith(("responses/", "targets/")):
            study.remove(path)
    shutil.rmtree(study.path / "runs", ignore_errors=True)
    known = provenances(config, given(scale))
    return study, known, build(study, scale, known)


def given(scale: Scale) -> list[str]:
    """The stores that are made here: responses and targets."""
    return [
        *(keys.responses(s, "averaged") for s in scale.voxels),
        *(key for s in ALPHAS for key in targets_of(scale, s)),
    ]


def targets_of(scale: Scale, space: str) -> tuple[str, ...]:
    """Keys of a space's targets."""
    return parts.targets(space, (SHARED, *scale.voxels))


def run_works(config: Config, study: Study, known: dict[str, Provenance]) -> dict[str, float]:
    """Run the stage; seconds of each of its works."""
    context = context_of(config, study, known, Regress())
    with ExitStack() as stack:
        Runner(STAGES, context, Journal(study.path, "benchmark"), stack).fill("regress")
    return {entry["work"]: entry["wall_seconds"] for entry in entries(study.path)}


def run_stage(root: Path, scale: Scale, executor: str, workers: int, threads: int) -> dict[str, float]:
    """Build what is missing and run the stage; seconds of each of its works."""
    config = configuration(root, scale, executor, workers, threads)
    study, known, stores = prepare(config, scale)
    for path, store in stores.items():
        writer = Writer({path: store}) if store.missing() else None
        for partition in store.missing():
            assert writer is not None
            writer((path, partition))
        store.seal()
    os.sync()
    return run_works(config, study, known)


def measure(root: Path, scale: Scale, options: argparse.Namespace, cores: int) -> dict[str, Any]:
    config = configuration(root, scale, options.executor, options.workers, options.threads, options.gpus)
    study, _, stores = prepare(config, scale)
    result: dict[str, Any] = {"scale": options.scale, "executor": options.executor, "cores": cores}
    result["disk write, disk read (B/s)"] = disk_rates(root)
    resources = Resources(workers=options.workers, threads=options.threads)
    with open_executor("dask" if find_spec("distributed") else "serial") as executor:
        executor.run(
            partial(Writer, stores),
            [(path, i) for path, store in stores.items() for i in store.missing()],
            resources=Resources(workers=os.cpu_count() or 1),
        )
        for store in stores.values():
            if not store.sealed:
                store.seal()
        os.sync()
        targets = {space: Joined([stores[key] for key in targets_of(scale, space)]) for space in ALPHAS}
        blocks = [(space, i) for space, shape in scale.spaces.items() for i in range(_n_blocks(shape, scale.columns))]
        sizes: list[int] = []
        executor.run(partial(Reader, targets, scale.columns), blocks[:2], resources=resources)
        start = time.perf_counter()
        executor.run(
            partial(Reader, targets, scale.columns),
            blocks,
            resources=resources,
            on_done=lambda done: sizes.append(done.result),
        )
        seconds = time.perf_counter() - start
    result["target bytes"] = sum(sizes)
    result["plain store reading (B/s)"] = sum(sizes) / seconds
    result["runs"] = [
        one_run(config, scale, cores, options.gpus * options.workers, sum(sizes)) for _ in range(options.runs)
    ]
    result |= {name: median(result["runs"], name) for name in ("fraction of sgemm", "seconds", "sgemm (FLOP/s)")}
    result["works"] = {
        work: median([run["works"] for run in result["runs"]], work) for work in result["runs"][0]["works"]
    }
    result["peak memory (B)"] = max(run["peak memory (B)"] for run in result["runs"])
    result["arithmetic (FLOP)"] = arithmetic(scale)
    rate = result["target bytes"] / result["works"]["predictions"]
    result["fraction of plain reading"] = rate / result["plain store reading (B/s)"]
    result["error against float64"] = error_against_float64(study.path, config.subjects[0], ALPHAS["vdvae"])
    if not options.no_comparison:
        result["comparison (s)"] = compare(cores, scale)
    return result


def one_run(config: Config, scale: Scale, cores: int, gpus: float, target_bytes: int) -> dict[str, Any]:
    """The stage from nothing but responses and targets, between two measurements of matrix products."""
    study, known, _ = prepare(config, scale)
    before = sgemm_rate(cores, gpus)
    with PeakMemory() as memory:
        start = time.perf_counter()
        works = run_works(config, study, known)
        seconds = time.perf_counter() - start
    after = sgemm_rate(cores, gpus)
    rate = statistics.mean([before, after])
    return {
        "seconds": seconds,
        "works": works,
        "peak memory (B)": memory.peak,
        "sgemm before, after (FLOP/s)": (before, after),
        "sgemm (FLOP/s)": rate,
        "fraction of sgemm": arithmetic(scale) / seconds / rate,
        "targets while predicting (B/s)": target_bytes / works["predictions"],
    }


def median(runs: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def _n_blocks(shape: tuple[int, ...], columns: int) -> int:
    ((dim, length),) = catalog.column_blocks(shape, columns).items()
    return -(-shape[0] // length) if dim in ("token", "feature") else 0


def show(result: dict[str, Any]) -> None:
    gemm = result["sgemm (FLOP/s)"]
    rows = [
        ("scale, executor, cores", f"{result['scale']}, {result['executor']}, {result['cores']}"),
        ("whole stage, median of the runs", f"{result['seconds']:.1f} s"),
        *((f"  {work}", f"{seconds:.1f} s") for work, seconds in result["works"].items()),
        ("arithmetic", f"{result['arithmetic (FLOP)'] / 1e12:.2f} TFLOP"),
        ("sgemm of this machine, median", f"{gemm / 1e9:.0f} GFLOP/s"),
        ("fraction of sgemm reached, median", f"{result['fraction of sgemm']:.0%}"),
        *(
            (
                f"  run {number}",
                f"{run['fraction of sgemm']:.0%} in {run['seconds']:.1f} s; sgemm before, after: "
                + ", ".join(f"{rate / 1e9:.0f}" for rate in run["sgemm before, after (FLOP/s)"]),
            )
            for number, run in enumerate(result["runs"], 1)
        ),
        ("targets read", f"{result['target bytes'] / GIB:.2f} GiB"),
        ("plain store reading", f"{result['plain store reading (B/s)'] / 1e9:.2f} GB/s"),
        ("  of it while predicting", f"{result['fraction of plain reading']:.0%}"),
        ("disk write, read", " ".join(f"{rate / 1e9:.2f}" for rate in result["disk write, disk read (B/s)"]) + " GB/s"),
        ("peak memory, all processes", f"{result['peak memory (B)'] / GIB:.2f} GiB"),
        ("error against float64", f"{result['error against float64']:.1e}"),
    ]
    if "comparison (s)" in result:
        compared = dict(result["comparison (s)"])
        size = ", ".join(f"{name} {int(compared.pop(name)):,}" for name in ("n", "p", "m", "t"))
        rows.append(("common size", size))
        ours = compared["hat matrix"]
        rows += [(f"  {name}", f"{seconds:.2f} s, {seconds / ours:.0f} x") for name, seconds in compared.items()]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
