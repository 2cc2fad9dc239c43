"""Ridge through the real stage and the real stores, against the machine's own limits measured in the same run.

    bdflow bench ridge                               a quick look (--scale small)
    bdflow bench ridge --scale full --dir /scratch   the paper's size: 36,418 stimuli x 347,680 latents, four subjects;
                                                     about 45 GB of disk, removed afterwards

Prints a table and, with --json, writes it for `bdflow plan --figures`. The stage runs three times (--runs), each time
between two measurements of the rate of float32 matrix products on the same threads or GPUs: what is quoted is the
median of the fractions that the runs reach of the rate beside them. It also runs with fewer target spaces (--sizes): a
line through the times tells its start-up (processes, imports, files) from its rate. On GPUs, --workers 4 --gpus 0.25
has four workers share one. The arithmetic counted is that of the method: Gram matrix n^2 p, a Cholesky n^3/3 for each
alpha, the solves, and 2 m n t for the predictions.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bdflow.benchmarks import machine
from bdflow.benchmarks.given import context_of, provenances
from bdflow.benchmarks.machine import GIB, Needs, PeakMemory, ProcessorTime, announce, disk_rates, sgemm_rate
from bdflow.benchmarks.ridge_comparison import compare
from bdflow.benchmarks.ridge_stores import SCALES, Reader, Scale, Writer, build
from bdflow.cluster import Resources, open_executor
from bdflow.cluster.progress import Progress
from bdflow.config import Config, parse
from bdflow.pipeline import STAGES
from bdflow.regression import memory_budget, ridge
from bdflow.runner import Runner
from bdflow.stages.regress.stage import Regress
from bdflow.stores import Provenance, Store, Study
from bdflow.stores.journal import Journal, entries
from bdflow.study import catalog, keys, parts
from bdflow.study.keys import SHARED
from bdflow.study.parts import Joined


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


def alphas_of(scale: Scale) -> dict[str, int]:
    """Penalty of each of its spaces."""
    return {name: ALPHAS[name] for name in scale.spaces}


def smaller(scale: Scale, sizes: int) -> list[Scale]:
    """The scale with one space, with two, ..., with all of them last: so many sizes."""
    names = sorted(scale.spaces, key=lambda name: math.prod(scale.spaces[name]))
    counts = range(1, len(names) + 1) if sizes == len(names) else [*range(1, sizes), len(names)]
    return [replace(scale, spaces={name: scale.spaces[name] for name in names[:count]}) for count in counts]


def needs(scale: Scale, options: argparse.Namespace) -> Needs:
    """What it will take, by a short measurement of matrix products and the sizes alone."""
    n, m, latents = scale.train, scale.test, scale.latents
    stimuli = m + len(scale.voxels) * n
    disk = 2.05 * stimuli * latents + sum(4 * (n + m) * p for p in scale.voxels.values())
    disk += len(scale.voxels) * (5.0 * m * latents + 8 * n * n + 12 * m * n) + probe_bytes(scale)
    extents = {
        (s, "averaged"): memory_budget.Extent(n, m, p, 0, 1, ridge.dual_is_cheaper(n, p, m))
        for s, p in scale.voxels.items()
    }
    planned = memory_budget.plan(extents, scale.columns, 1024, catalog.KERNEL_ROWS, None, False, 2 * stimuli)
    rate = sgemm_rate(options.workers * options.threads, n=1024)
    runs = options.runs * sum(arithmetic(one) for one in smaller(scale, options.sizes))
    # reached of sgemm: 85% at best at the paper's size, a fifth where starting workers weighs most (docs/benchmarks.md)
    least, most = disk / 1e9 + runs / rate / 0.85, 3 * disk / 0.4e9 + runs / rate / 0.2
    most += 10 * options.runs * options.sizes + (0 if options.no_comparison else 120 * min(1, n / 2500))
    if options.gpus:
        least, most = 3 * disk / 2e9, 3 * disk / 0.4e9 + 20 * options.runs * options.sizes
    return Needs(options.workers * max(planned.needs.values()), disk, (least, most))


def probe_bytes(scale: Scale) -> int:
    """Of the file by which the disk is measured."""
    return GIB if scale.train > 1000 else 2**26


def arithmetic(scale: Scale) -> float:
    """FLOP of the method for all subjects."""
    n, m, t = scale.train, scale.test, scale.latents
    total = 0.0
    for p in scale.voxels.values():
        total += n * n * p + 2 * m * n * p + len(scale.spaces) * (n**3 / 3 + 2 * m * n * n) + 2 * m * n * t
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
            "spaces": {name: {"encoder": name, "ridge": {"alpha": alpha}} for name, alpha in alphas_of(scale).items()},
            "report": {"path": str(root / "report")},
            "chunks": {"stimuli": scale.stimuli, "columns": scale.columns},
            "execution": {"regress": where},
        }
    )


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        "bdflow bench ridge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--scale", choices=SCALES, default="small")
    found.add_argument("--dir", type=Path, default=None, help="where to build the stores (default: a temporary folder)")
    found.add_argument("--executor", choices=("serial", "dask"), default="dask")
    found.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    found.add_argument("--threads", type=int, default=1, help="BLAS threads of each worker")
    found.add_argument("--gpus", type=float, default=0, help="of each worker (with CuPy); 0.25: four share one")
    found.add_argument("--runs", type=int, default=3, help="of the stage; the median is quoted")
    found.add_argument("--sizes", type=int, choices=(1, 2, 3), default=3, help="with so many numbers of target spaces")
    found.add_argument("--json", type=Path, default=None, help="write the figures, for `bdflow plan --figures`")
    found.add_argument("--no-comparison", action="store_true", help="leave scikit-learn and himalaya out")
    found.add_argument("--keep", action="store_true", help="keep responses and targets in --dir for another run")
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was found."""
    options = parser().parse_args(arguments)
    scale = SCALES[options.scale]
    if options.executor == "serial":
        options.workers = 1
    if options.keep and options.dir is None:
        parser().error("--keep needs --dir")
    machine.check_output(options.json)
    if options.dir is not None:
        options.dir.mkdir(parents=True, exist_ok=True)
    title = (
        f"ridge, scale {options.scale}: {scale.train:,} + {scale.test:,} stimuli, {len(scale.voxels)} subjects, "
        f"{scale.latents:,} latents"
    )
    announce(title, needs(scale, options), options.dir or Path(tempfile.gettempdir()))
    root = options.dir / options.scale if options.keep else Path(tempfile.mkdtemp("-bdflow-ridge", dir=options.dir))
    root.mkdir(parents=True, exist_ok=True)
    try:
        result = measure(root, scale, options)
    finally:
        if not options.keep:
            shutil.rmtree(root, ignore_errors=True)
    show(result)
    machine.write_json(options.json, result)
    return result


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
        *(key for s in scale.spaces for key in targets_of(scale, s)),
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


def measure(root: Path, scale: Scale, options: argparse.Namespace) -> dict[str, Any]:
    config = configuration(root, scale, options.executor, options.workers, options.threads, options.gpus)
    study, _, stores = prepare(config, scale)
    cores, gpus = options.workers * options.threads, options.workers * options.gpus
    result = machine.head("ridge", "gpu" if gpus else "cpu", _gpu_name() if gpus else None, gpus or cores)
    result |= {"scale": options.scale, "executor": options.executor, "workers": options.workers, "dtype": "float32"}
    machine.say("measuring the disk and memory ...")
    result["disk write, disk read (B/s)"] = disk_rates(root, probe_bytes(scale))
    result["memory copy (B/s)"] = machine.copy_rate(min(2**28, probe_bytes(scale)))
    resources = Resources(workers=options.workers, threads=options.threads)
    with open_executor("dask" if options.executor == "dask" and find_spec("distributed") else "serial") as executor:
        missing = [(path, i) for path, store in stores.items() for i in store.missing()]
        with Progress("stores written", len(missing)) as progress:
            every = Resources(workers=os.cpu_count() or 1)
            executor.run(partial(Writer, stores), missing, resources=every, on_done=progress.advance)
        for store in stores.values():
            if not store.sealed:
                store.seal()
        os.sync()
        targets = {space: Joined([stores[key] for key in targets_of(scale, space)]) for space in scale.spaces}
        blocks = [(space, i) for space, shape in scale.spaces.items() for i in range(_n_blocks(shape, scale.columns))]
        sizes: list[int] = []
        reader = partial(Reader, targets, scale.columns)
        executor.run(reader, blocks[:2], resources=resources)
        start = time.perf_counter()
        with Progress("targets merely read", len(blocks), unit="blocks") as progress:

            def read(done: Any) -> None:
                sizes.append(done.result)
                progress.advance()

            executor.run(reader, blocks, resources=resources, on_done=read)
        seconds = time.perf_counter() - start
    result["target bytes"] = sum(sizes)
    result["plain store reading (B/s)"] = sum(sizes) / seconds
    result["runs"], result["sizes"] = [], []
    for number, size in enumerate(smaller(scale, options.sizes)):  # the whole size last
        of = configuration(root, size, options.executor, options.workers, options.threads, options.gpus)
        if not number and options.sizes > 1:
            machine.say(f"{size.latents:,} latents, a run that does not count: it loads what is needed")
            run_works(of, *prepare(of, size)[:2])
        result["runs"] = []
        for number in range(options.runs):
            machine.say(f"{size.latents:,} latents, run {number + 1} of {options.runs}")
            result["runs"].append(one_run(of, size, cores, gpus, sum(sizes)))
        at_size = {"latents": size.latents, "arithmetic (FLOP)": arithmetic(size)}
        result["sizes"].append(at_size | {"seconds": median(result["runs"], "seconds")})
    result |= {name: median(result["runs"], name) for name in ("fraction of sgemm", "seconds", "sgemm (FLOP/s)")}
    result["works"] = {
        work: median([run["works"] for run in result["runs"]], work) for work in result["runs"][0]["works"]
    }
    result["start (s)"], result["rate (FLOP/s)"] = 0.0, arithmetic(scale) / result["seconds"]
    if len(result["sizes"]) > 1:
        sized = result["sizes"]
        result["start (s)"], result["rate (FLOP/s)"] = machine.fitted(
            [one["arithmetic (FLOP)"] for one in sized], [one["seconds"] for one in sized]
        )
    shares = [run["processors"] for run in result["runs"]]
    result["processors"] = {name: median(shares, name) for name in shares[0]}
    result["peak memory (B)"] = max(run["peak memory (B)"] for run in result["runs"])
    result["arithmetic (FLOP)"] = arithmetic(scale)
    rate = result["target bytes"] / result["works"]["predictions"]
    result["fraction of plain reading"] = rate / result["plain store reading (B/s)"]
    result["error against float64"] = error_against_float64(study.path, config.subjects[0], ALPHAS["vdvae"])
    if not options.no_comparison:
        machine.say("comparing with scikit-learn and himalaya ...")
        result["comparison (s)"] = compare(cores, scale)
    return result


def _gpu_name() -> str:
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())


def one_run(config: Config, scale: Scale, cores: int, gpus: float, target_bytes: int) -> dict[str, Any]:
    """The stage from nothing but responses and targets, between two measurements of matrix products."""
    study, known, _ = prepare(config, scale)
    product = 5120 if scale.train > 1000 else 1024
    before = sgemm_rate(cores, gpus, product)
    with PeakMemory() as memory, ProcessorTime() as processors:
        start = time.perf_counter()
        works = run_works(config, study, known)
        seconds = time.perf_counter() - start
    after = sgemm_rate(cores, gpus, product)
    rate = statistics.mean([before, after])
    return {
        "seconds": seconds,
        "works": works,
        "processors": processors.shares,
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
    """Print figures beside limits, then the rest."""
    gemm, plain = result["sgemm (FLOP/s)"], result["plain store reading (B/s)"]
    write, read = result["disk write, disk read (B/s)"]
    flop, copy = result["arithmetic (FLOP)"], result["memory copy (B/s)"]
    reading = result["target bytes"] / result["works"]["predictions"]
    product = f"sgemm {gemm / 1e9:,.0f} GFLOP/s"
    lines: list[machine.Line] = [
        ("whole stage", f"{flop / result['seconds'] / 1e9:,.3g} GFLOP/s", product, result["fraction of sgemm"]),
        ("less its start", f"{result['rate (FLOP/s)'] / 1e9:,.3g} GFLOP/s", product, result["rate (FLOP/s)"] / gemm),
        ("while predicting", f"{reading / 1e9:.3g} GB/s", f"plain reading {plain / 1e9:.3g} GB/s", reading / plain),
        ("plain reading", f"{plain / 1e9:.3g} GB/s", f"memory copy {copy / 1e9:.3g} GB/s", plain / copy),
        ("disk write", f"{write / 1e9:.3g} GB/s", "", None),
        ("disk read", f"{read / 1e9:.3g} GB/s", "", None),
    ]
    device = result["device"]
    print(f"\n{device['name']}, {device['count']:g} {'cores' if device['kind'] == 'cpu' else 'GPUs'}")
    print(machine.table(lines) + "\n")
    runs = ", ".join(f"{run['seconds']:.1f}" for run in result["runs"])
    rows = [("stage, median", f"{result['seconds']:.1f} s of {runs}; {flop / 1e12:.2f} TFLOP")]
    rows += [(f"  {work}", f"{seconds:.1f} s") for work, seconds in result["works"].items()]
    rows += [(f"  {one['latents']:,} latents", f"{one['seconds']:.1f} s") for one in result["sizes"][:-1]]
    rows += [
        ("start-up", f"{result['start (s)']:.1f} s" if len(result["sizes"]) > 1 else "not told apart (--sizes 1)"),
        (
            "processors",
            "{programs:.0%} programs, {system:.0%} system, {host:.0%} host, {idle:.0%} idle".format_map(
                result["processors"]
            ),
        ),
        ("targets", f"{result['target bytes'] / GIB:.2f} GiB"),
        ("peak memory", f"{result['peak memory (B)'] / GIB:.2f} GiB, all processes"),
        ("error", f"{result['error against float64']:.1e} of the largest prediction, against float64"),
    ]
    if "comparison (s)" in result:
        compared = dict(result["comparison (s)"])
        size = ", ".join(f"{name} {int(compared.pop(name)):,}" for name in ("n", "p", "m", "t"))
        ours = compared["hat matrix"]
        rows.append(("same predictions", size))
        rows += [(f"  {name}", f"{seconds:.2f} s, {seconds / ours:.0f} x") for name, seconds in compared.items()]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
