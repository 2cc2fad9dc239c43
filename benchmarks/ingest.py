"""How fast a session of betas is read and masked, against merely unpacking the same file.

    bdflow bench ingest [--trials 750] [--shape 81 104 83] [--voxels 15724] [--json]

Writes a session like NSD's (int16 noise inside a brain, zeros outside), then, taking turns so that the machine's
moods cost both alike, unpacks it with each unzipper there is in the process and reads it with `read_masked`; the
best of several rounds counts. Both run in this process, on one core.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from isal import igzip, igzip_lib

from bdflow.datasets.formats.betas import open_session
from bdflow.simulation.files import write_hdf5, write_nifti


def unpack_zlib(path: Path) -> None:
    """zlib, the standard library's."""
    member = zlib.decompressobj(wbits=31)
    with path.open("rb") as file:
        while packed := file.read(512 * 1024):
            member.decompress(packed)


def unpack_isal_file(path: Path) -> None:
    """ISA-L through a file object, into one reused buffer."""
    buffer = bytearray(1 << 20)
    with igzip.open(path, "rb") as file:
        while file.readinto(buffer):
            pass


def unpack_isal(path: Path) -> None:
    """ISA-L's decompressor."""
    member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    with path.open("rb") as file:
        while not member.eof:
            member.decompress(file.read(512 * 1024) if member.needs_input else b"", 1 << 20)


def write_session(path: Path, shape: tuple[int, int, int], trials: int) -> None:
    """A session: an ellipsoid of int16 noise, different per trial."""
    axes = [np.linspace(-1.15, 1.15, n).reshape([-1 if a == k else 1 for a in range(3)]) for k, n in enumerate(shape)]
    brain = sum(axis**2 for axis in axes) < 1
    rng = np.random.default_rng(0)
    pool = rng.normal(100, 500, (16, int(brain.sum()))).astype(np.int16)

    def volumes():
        for trial in range(trials):
            volume = np.zeros(shape, np.int16)
            volume[brain] = np.roll(pool[trial % 16], 7 * trial)
            yield volume

    write = write_hdf5 if path.suffix == ".hdf5" else write_nifti
    write(path, (*shape, trials), np.dtype(np.int16), volumes())


def seconds(work: Callable[[], object]) -> float:
    """Wall time of `work`."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100, help="of the session (NSD: 750)")
    parser.add_argument("--shape", type=int, nargs=3, default=(81, 104, 83), help="of a volume")
    parser.add_argument("--voxels", type=int, default=15724, help="in the mask")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hdf5", action="store_true", help="also an HDF5 session")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    shape = tuple(options.shape)
    mask = _mask(shape, options.voxels)
    size = int(np.prod(shape)) * 2 * options.trials
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "betas_session01.nii.gz"
        _apart(write_session, path, shape, options.trials)
        session = open_session(path)
        out = np.empty((options.trials, int(mask.sum())), session.dtype)
        out[:] = 0
        before = peak_mib()
        session.read_masked(mask, out)
        grown = peak_mib() - before
        works = {
            "zlib": lambda: unpack_zlib(path),
            "isal file": lambda: unpack_isal_file(path),
            "isal decompressor": lambda: unpack_isal(path),
            "read_masked": lambda: session.read_masked(mask, out),
        }
        times = {name: min(t) for name, t in _rounds(works, options.rounds).items()}
        result = {
            "trials": options.trials,
            "shape": shape,
            "voxels": int(mask.sum()),
            "unpacked MB": size / 1e6,
            "packed MB": path.stat().st_size / 1e6,
            "MB/s": {name: size / 1e6 / t for name, t in times.items()},
            "peak MiB beside the result": grown,
            "one volume MiB": size / options.trials / 2**20,
        }
        fastest = min(t for name, t in times.items() if name != "read_masked")
        result["read_masked / fastest unzipper"] = fastest / times["read_masked"]
        if options.hdf5:
            other = Path(folder) / "betas_session01.hdf5"
            _apart(write_session, other, shape, options.trials)
            hdf5 = open_session(other)
            result["hdf5 read_masked s"] = min(seconds(lambda: hdf5.read_masked(mask, out)) for _ in range(2))
    if options.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key}: {value}")


def _apart(work: Callable[..., None], *args: object) -> None:
    """Do `work` in a process of its own, so that this one's peak memory is the reader's."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=args)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("the session could not be written")


def _mask(shape: tuple[int, int, int], voxels: int) -> np.ndarray:
    """`voxels` drawn from the back third, scattered like cortex: hard on a reader's locality."""
    third = (shape[0], shape[1] // 3, shape[2])
    chosen = np.random.default_rng(1).permutation(int(np.prod(third))) < voxels
    mask = np.zeros(shape, bool)
    mask[:, : third[1]] = chosen.reshape(third)
    return mask


def _rounds(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return times


if __name__ == "__main__":
    main()
