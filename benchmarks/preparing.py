"""What a worker prepares on its threads for a GPU: noise of guesses drawn, and pictures resized.

    python -m bdflow.benchmarks.preparing --threads 1 2 4 8

The draws are those of the published VDVAE's prior, a normal number for every latent value of every block and place; the
pictures go from 425 to 512 pixels, as photos do that the autoencoder encodes. Beside each figure is the limit of the
machine on as many threads: NumPy's normals drawn into memory that is there already, or Pillow's resizing alone, each
thread at work by itself with nothing shared. Figures are medians of three, limits the best of three.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from bdflow.benchmarks import machine
from bdflow.errors import counted
from bdflow.models.config import VDVAEConfig
from bdflow.models.diffusion.draws import draws_of
from bdflow.models.resizing import resize
from bdflow.models.vdvae import VDVAE
from bdflow.models.weights.networks import outlines

PHOTO, SIZE = 425, 512
REPEATS = 3


def prior_shapes() -> list[tuple[int, ...]]:
    """Of the published VDVAE's draws of one guess."""
    with outlines():
        return [tuple(shape) for shape in VDVAE(VDVAEConfig()).prior_shapes]


def drawing(shapes: Sequence[tuple[int, ...]], count: int) -> Callable[[], object]:
    ids = [f"{number:05d}" for number in range(count)]
    return lambda: draws_of(shapes, 0, "vdvae prior", ("subj01",), ids)


def plain_drawing(shapes: Sequence[tuple[int, ...]], count: int, threads: int) -> Callable[[], object]:
    numbers = sum(int(np.prod(shape)) for shape in shapes)
    generators = [np.random.Generator(np.random.Philox(seed)) for seed in range(threads)]
    buffers = [np.zeros(numbers, np.float32) for _ in range(threads)]

    def work(thread: int) -> None:
        for _ in range(thread, count, threads):
            generators[thread].standard_normal(dtype=np.float32, out=buffers[thread])

    return lambda: each(work, threads)


def resizing(count: int) -> Callable[[], object]:
    photos = np.random.default_rng(0).integers(0, 256, (count, PHOTO, PHOTO, 3), dtype=np.uint8)
    return lambda: resize(photos, SIZE, Image.Resampling.BICUBIC)


def plain_resizing(count: int, threads: int) -> Callable[[], object]:
    values = np.random.default_rng(0).integers(0, 256, (threads, PHOTO, PHOTO, 3), dtype=np.uint8)
    photos = [Image.fromarray(one) for one in values]

    def work(thread: int) -> None:
        for _ in range(thread, count, threads):
            photos[thread].resize((SIZE, SIZE), Image.Resampling.BICUBIC)

    return lambda: each(work, threads)


def each(work: Callable[[int], None], threads: int) -> None:
    """`work` on so many threads at once."""
    others = [threading.Thread(target=work, args=(thread,)) for thread in range(1, threads)]
    for other in others:
        other.start()
    work(0)
    for other in others:
        other.join()


def seconds(work: Callable[[], object]) -> list[tuple[float, float]]:
    """Of several calls, after one that does not count: of the clock, and of the processor in all threads."""
    work()
    found = []
    for _ in range(REPEATS):
        start, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - start, time.process_time() - cpu))
    return found


def measured(threads: int, count: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds a picture on so many threads, of the clock and of the processor, by what is prepared: `figure`, and
    the `limit` of the machine.
    """
    shapes = prior_shapes()
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # as a worker's `threads` does
    try:
        works = {
            "draws of a guess": (drawing(shapes, count), plain_drawing(shapes, count, threads)),
            f"a photo resized to {SIZE} px": (resizing(count), plain_resizing(count, threads)),
        }
        return {
            name: {
                "figure": [1e3 * statistics.median(taken) / count for taken in zip(*seconds(figure), strict=True)],
                "limit": [1e3 * min(taken) / count for taken in zip(*seconds(limit), strict=True)],
            }
            for name, (figure, limit) in works.items()
        }
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--pictures", type=int, default=16, help="in a batch")
    asked = parser.parse_args(arguments)
    if min(asked.threads) < 1 or asked.pictures < max(asked.threads):
        parser.error("threads are at least 1, and pictures no fewer than threads")
    rows = {threads: measured(threads, asked.pictures) for threads in asked.threads}
    lines: list[machine.Line] = [
        (
            f"{name}, {counted(threads, 'thread')}{where}",
            f"{of['figure'][i]:.1f} ms",
            f"{of['limit'][i]:.1f} ms",
            of["limit"][i] / of["figure"][i],
        )
        for threads, row in rows.items()
        for name, of in row.items()
        for i, where in enumerate(("", ", of the processor"))
    ]
    print(f"{asked.pictures} pictures a batch, {machine.cpu_name()}, {os.cpu_count()} cores\n\n{machine.table(lines)}")
    return {"pictures": asked.pictures, "threads": rows}


if __name__ == "__main__":
    main()
