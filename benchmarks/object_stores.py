"""What Zarr reads and writes through s3fs and through obstore, against moto's S3 server on loopback.

Run with the environment that tests of object stores use (`make install`), from the repository's root:

    PYTHONPATH=. .venv/s3/bin/python -m bdflow.benchmarks.object_stores

Each row: MB/s or operations a second as the wall clock has it, and the processor's seconds of the client alone, which
the server does not blur. Ways take turns; the median of the rounds is printed.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

from obstore.store import S3Store
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.storage import FsspecStore, ObjectStore

PORT = 45901
URL = f"http://127.0.0.1:{PORT}"
AT_ONCE = 10
MIB = 1024 * 1024


async def many(jobs: list[Callable[[], Awaitable]]) -> None:
    """All jobs, ten at a time, as Zarr does."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(job: Callable[[], Awaitable]) -> None:
        async with turn:
            await job()

    await asyncio.gather(*(one(job) for job in jobs))


def stores() -> dict:
    from bdflow.stores.remote import Bucket, RemoteStore

    keys = {"key": "loopback", "secret": "loopback", "client_kwargs": {"endpoint_url": URL, "region_name": "us-east-1"}}
    given = {"access_key_id": "loopback", "secret_access_key": "loopback", "region": "us-east-1", "endpoint": URL}
    return {
        "s3fs": FsspecStore.from_url("s3://bench/s3fs", storage_options=keys),
        "obstore": ObjectStore(S3Store("bench", prefix="obstore", client_options={"allow_http": True}, **given)),
        "obstore, as bdflow uses it": RemoteStore(Bucket("s3://bench/ours")),
    }


async def measure(store, size: int, count: int) -> dict[str, tuple[float, float]]:
    """Seconds (wall, processor) for writing, reading and looking for `count` objects of `size` bytes."""
    prototype = default_buffer_prototype()
    values = [cpu.Buffer.from_bytes(os.urandom(size)) for _ in range(count)]
    names = [f"{size}/c/{i}" for i in range(count)]
    jobs = {
        "write": [lambda n=n, v=v: store.set(n, v) for n, v in zip(names, values, strict=True)],
        "read": [lambda n=n: store.get(n, prototype) for n in names],
        "look": [lambda n=n: store.exists(n) for n in [*names, *(n + "x" for n in names)]],
    }
    found = {}
    for what, todo in jobs.items():
        wall, processor = time.perf_counter(), time.process_time()
        await many(todo)
        found[what] = (time.perf_counter() - wall, time.process_time() - processor)
    return found


async def rounds(number: int, total: int) -> None:
    ways = stores()
    sizes = {1 * MIB: total, 4 * MIB: total // 4, 16 * MIB: total // 16, 64: 400}
    for size, count in sizes.items():
        taken: dict = {way: [] for way in ways}
        for _ in range(number):
            for way, store in ways.items():
                taken[way].append(await measure(store, size, count))
        for way, each in taken.items():
            cells = []
            for what in ("write", "read", "look"):
                wall, processor = (statistics.median(one[what][i] for one in each) for i in (0, 1))
                n = 2 * count if what == "look" else count
                rate = f"{n / wall:6.0f} /s" if what == "look" or size < MIB else f"{n * size / wall / 1e6:6.0f} MB/s"
                cells.append(f"{what} {rate} ({1e3 * processor / n:5.2f} ms each)")
            print(f"{size:>9} B x {count:<4} {way:28} {'; '.join(cells)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--total", type=int, default=96, help="MiB of large objects")
    options = parser.parse_args()
    os.environ.update(
        AWS_ACCESS_KEY_ID="loopback", AWS_SECRET_ACCESS_KEY="loopback", AWS_REGION="us-east-1", AWS_ENDPOINT_URL=URL
    )
    command = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(URL, timeout=2).close()
                break
            except OSError:
                time.sleep(0.1)
        urllib.request.urlopen(urllib.request.Request(f"{URL}/bench", method="PUT"), timeout=30).close()
        asyncio.run(rounds(options.rounds, options.total))
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
