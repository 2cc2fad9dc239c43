"""How targets are best kept: codec, dtype and chunks of a store of latents, by what reading and writing them costs.

    python -m bdflow.benchmarks.chunk_codecs --dir /scratch

Gaussian latents are written once in each layout and read as the ridge stage reads them: a block of columns, 9,728 rows
at a time, into memory that is used again. Rates are in GB of latents a second of CPU time, and of the clock, from the
page cache: what the processor has to do, beside which the disk's own rate stands.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype

N, T, BLOCK = 9728, 16384, 4096
CRC = Crc32cCodec()
LAYOUTS: list[tuple[str, str, tuple[int, int], list[object]]] = [
    ("raw", "f2", (512, 4096), []),
    ("crc32c (bdflow's)", "f2", (512, 4096), [CRC]),
    ("crc32c", "f4", (512, 4096), [CRC]),
    ("crc32c", "f2", (256, 1024), [CRC]),
    ("crc32c", "f2", (2048, 4096), [CRC]),
    ("crc32c", "f2", (N, 1024), [CRC]),
    ("blosc lz4 + crc32c", "f2", (512, 4096), [BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"), CRC]),
    ("blosc zstd + crc32c", "f2", (512, 4096), [BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), CRC]),
    ("zstd 1 + crc32c", "f2", (512, 4096), [ZstdCodec(level=1), CRC]),
]


def best(call: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """Least CPU seconds and least seconds of several calls."""
    cpu, wall = [], []
    for _ in range(repeats):
        before = time.process_time(), time.perf_counter()
        call()
        cpu.append(time.process_time() - before[0])
        wall.append(time.perf_counter() - before[1])
    return min(cpu), min(wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=None)
    root = Path(tempfile.mkdtemp("-bdflow-codecs", dir=parser.parse_args().dir))
    nd = default_buffer_prototype().nd_buffer
    try:
        print("| codec | dtype | chunk | read GB/CPU s | read GB/s | write GB/CPU s | stored / raw |")
        print("|---|---|---|---|---|---|---|")
        for number, (codec, dtype, chunk, codecs) in enumerate(LAYOUTS):
            values = np.random.default_rng(0).standard_normal((N, T), dtype=np.float32).astype(dtype)
            path = root / f"{number}.zarr"
            array = zarr.create_array(path, shape=(N, T), chunks=chunk, dtype=dtype, compressors=codecs or None)
            out = np.empty((N, BLOCK), dtype)

            def write(array: zarr.Array = array, values: np.ndarray = values) -> None:
                array[...] = values

            def read(array: zarr.Array = array, out: np.ndarray = out) -> None:
                for start in range(0, T, BLOCK):
                    array.get_basic_selection((slice(None), slice(start, start + BLOCK)), out=nd.from_numpy_array(out))

            written = best(write, 2)
            read_cpu, read_wall = best(read)
            stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            gb = values.nbytes / 1e9
            print(
                f"| {codec} | {dtype} | {chunk[0]} x {chunk[1]} | {gb / read_cpu:.2f} | {gb / read_wall:.2f} "
                f"| {gb / written[0]:.2f} | {stored / values.nbytes:.2f} |"
            )
            shutil.rmtree(path)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
