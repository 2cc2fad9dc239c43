"""What the executors add to painting: the stage `reconstruct` against a bare loop, and actors that only sleep.

Used by `bdflow bench diffusion` (`--runtime`, `--actors`).
"""

import gc
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch

from bdflow.cluster import Completed, Resources, open_executor
from bdflow.config import parse
from bdflow.pipeline import Pipeline
from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.stages.reconstruct.stage import Reconstruct

IMAGES_A_TASK = 32
KINDS = ("serial", "dask", "ray")


class Watched:
    """A worker of phases that also says when it worked, and how many CPU seconds that took."""

    def __init__(self, make: Any) -> None:
        self.inner = make()
        self.windows: list[tuple[float, float, float]] = []

    def prepare(self, task: Any) -> Any:
        return self.inner.prepare(task)

    def work(self, inputs: Any) -> Any:
        start, cpu = time.time(), time.thread_time()
        made = self.inner.work(inputs)
        return made, (start, time.time(), time.thread_time() - cpu)

    def finish(self, task: Any, made: Any) -> Any:
        self.inner.finish(task, made[0])
        return made[1]


def overhead(n_test: int = 64, batch: int = 8, steps: int = 20) -> list[dict[str, Any]]:
    """The real stage on simulated brains, one worker of one thread, against its own networks called in a loop on the
    same inputs in memory. The window lasts from when the first task is worked on to when the last one is done; the
    start of processes and the loading of networks lie before it.
    """
    rows = []
    with tempfile.TemporaryDirectory() as root:
        config = _study(Path(root), n_test, batch, steps)
        for kind in KINDS:
            work = _work(config)
            tasks = work.tasks
            worker = work.make_worker()
            inputs = [worker.prepare(task) for task in tasks]
            torch.set_num_threads(1)
            worker.work(inputs[0])
            bare = _bare(worker, inputs)
            done: list[Completed] = []
            with open_executor(kind) as executor:  # type: ignore[arg-type]
                executor.run(partial(Watched, work.make_worker), tasks, on_done=done.append)
            again = _bare(worker, inputs)
            windows = sorted(completed.result for completed in done)[1:]  # the first loads what it needs
            span = windows[-1][1] - windows[0][0]
            busy = sum(end - start for start, end, _ in windows)
            loop = (bare[0] + again[0]) / 2 * len(windows) / len(tasks)
            cpu = sum(used for _, _, used in windows) / ((bare[1] + again[1]) / 2 * len(windows) / len(tasks))
            row = {
                "executor": kind,
                "images": n_test * 2,
                "bare_loop_s": loop,
                "stage_s": span,
                "over_bare_loop": span / loop - 1,
                "network_idle": 1 - busy / span,
                "cpu_of_the_network_over_bare": cpu - 1,
            }
            rows.append(row)
            print(
                f"{kind:8} stage {span:.2f} s, bare loop {loop:.2f} s: {row['over_bare_loop']:+.1%}; the network "
                f"waited {row['network_idle']:.1%} of it; its own CPU time {row['cpu_of_the_network_over_bare']:+.1%}",
                flush=True,
            )
            del worker, inputs
            gc.collect()
    return rows


def _bare(worker: Any, inputs: list[Any]) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.thread_time()
    for one in inputs:
        worker.work(one)
    return time.perf_counter() - start, time.thread_time() - cpu


def _study(root: Path, n_test: int, batch: int, steps: int) -> Any:
    subjects = ["subj01", "subj02"]
    simulate(
        root / "nsd",
        SimulateOptions(
            subjects=tuple(subjects), n_shared=n_test, n_own=40, volume_shape=(14, 16, 12), stimulus_size=64,
            trials_per_session=n_test + 40,
        ),
    )  # fmt: skip
    config = parse(
        {
            "study": str(root / "study.zarr"),
            "subjects": subjects,
            "dataset": {"root": str(root / "nsd"), "sessions": 3},
            "spaces": {name: {"encoder": name} for name in ("vdvae", "clip_vision", "clip_text")},
            "painters": {"brain_diffuser": {"steps": steps, "batch_size": batch}},
            "report": {"path": str(root / "report")},
            "chunks": {"stimuli": 64, "voxels": 256, "columns": 512, "images": 8},
        }
    )
    Pipeline(config).run(("ingest", "features", "regress"))
    return config


def _work(config: Any) -> Any:
    """The work that paints, with the guesses made and nothing painted."""
    import shutil

    shutil.rmtree(config.study / "reconstructions", ignore_errors=True)
    context = Pipeline(config).context()
    for step in Reconstruct().steps(context):
        work = step.start()
        if step.label == "reconstructions":
            return work
        if work.tasks:
            with open_executor("serial") as executor:
                executor.run(work.make_worker, work.tasks)
        for key in step.fills:
            store = context.study.store(key)
            if not store.sealed:
                store.seal()
    raise AssertionError("the stage paints")


class Sleepy:
    """A stand-in for the network: as long as it takes, without needing the core; reading and writing take a tenth."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def prepare(self, task: int) -> int:
        time.sleep(self.seconds / 10)
        return task

    def work(self, inputs: int) -> tuple[float, float]:
        start = time.time()
        time.sleep(self.seconds)
        return start, time.time()

    def finish(self, task: int, made: tuple[float, float]) -> tuple[float, float]:
        time.sleep(self.seconds / 10)
        return made


def scaling(
    actors: list[int], pause: float, rounds: int = 8, gpus: int = 64, share: float = 1.0
) -> list[dict[str, Any]]:
    """Efficiency of so many Ray actors on logical GPUs, `rounds` tasks each.

    The part of the time that actors worked, each counted from when its first task is worked on to when its last one is
    done: actors start one after the other, and the last tasks run out. A fraction for `share` puts several on a GPU.
    """
    rows = []
    for count in actors:
        total = Resources(workers=count, gpus=gpus)
        done: list[Completed] = []
        sizes: list[float] = []

        def see(completed: Completed, done: list[Completed] = done, sizes: list[float] = sizes) -> None:
            done.append(completed)
            sizes.append(psutil.Process().memory_info().rss / 2**20)

        start = time.perf_counter()
        with open_executor("ray", total=total, start_timeout=300) as executor:
            resources = Resources(workers=count, gpus=share)
            executor.run(partial(Sleepy, pause), range(rounds * count), resources=resources, on_done=see)
        row = {"actors": count, "gpus_each": share, "pause_s": pause, **_steady(done)}
        row |= {"wall_s": time.perf_counter() - start, "driver_MiB": (sizes[len(sizes) // 4], max(sizes))}
        rows.append(row)
        print(
            f"{count:3} actors of {share:g} GPU, {rounds * count} batches of {pause:g} s: efficiency "
            f"{row['efficiency']:.3f} (longest wait {row['longest_wait_s']:.2f} s), driver {row['driver_MiB'][0]:.0f} "
            f"to {row['driver_MiB'][1]:.0f} MiB",
            flush=True,
        )
    return rows


def _steady(done: list[Completed]) -> dict[str, float]:
    """The part of their time that actors worked, and the longest an actor waited between two tasks."""
    lanes: dict[str, list[tuple[float, float]]] = {}
    for completed in done:
        lanes.setdefault(completed.worker, []).append(completed.result)
    for spans in lanes.values():
        spans.sort()
    worked = sum(b - a for spans in lanes.values() for a, b in spans)
    there = sum(spans[-1][1] - spans[0][0] for spans in lanes.values())
    waits = [b[0] - a[1] for spans in lanes.values() for a, b in pairwise(spans)]
    return {"efficiency": worked / there, "longest_wait_s": max(waits, default=0.0)}
