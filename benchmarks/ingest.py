"""How fast a session of betas is read and masked, against merely unpacking the same file.

    bdflow bench ingest [--trials 750] [--shape 81 104 83] [--voxels 15724] [--json ingest.json]

Writes sessions like NSD's (int16 noise inside a brain, zeros outside), of a quarter, a half and all of the trials.
Then, taking turns so that the machine's moods cost all alike, unpacks the longest with each unzipper there is in the
process and reads all with `read_masked`; the median of several rounds counts. A line through the times of the three
lengths tells what opening a session takes from the rate. All runs in this process, on one core.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip, igzip_lib

from bdflow.benchmarks import machine
from bdflow.cluster.progress import Progress
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


def write_sessions(paths: Sequence[Path], shape: tuple[int, int, int], trials: Sequence[int]) -> None:
    """A session of each length."""
    for path, count in zip(paths, trials, strict=True):
        write_session(path, shape, count)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of `work`."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        "bdflow bench ingest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--trials", type=int, default=100, help="of the longest session, at least 4 (NSD: 750)")
    found.add_argument("--shape", type=int, nargs=3, default=(81, 104, 83), help="of a volume")
    found.add_argument("--voxels", type=int, default=15724, help="in the mask")
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--hdf5", action="store_true", help="also an HDF5 session")
    found.add_argument("--dir", type=Path, default=None, help="where the sessions go (default: a temporary folder)")
    found.add_argument("--json", type=Path, default=None, help="write the figures, for `bdflow plan --figures`")
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was found."""
    options = parser().parse_args(arguments)
    if options.trials < 4 or options.rounds < 1 or options.voxels < 1:
        parser().error("at least 4 trials, 1 round and 1 voxel are needed")
    machine.check_output(options.json)
    shape, folder = tuple(options.shape), options.dir or Path(tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = int(np.prod(shape)) * 2 * options.trials
    memory = 2e8 + 2 * options.trials * options.voxels + 16 * 2 * np.prod(shape)
    seconds_a_round = unpacked / 0.5e9 + 2 * unpacked / 1.2e9  # zlib; ISA-L, and both shorter sessions
    took = options.rounds * seconds_a_round * _slowness() + unpacked / 20e6
    title = f"ingest: sessions of up to {options.trials:,} trials, {unpacked / 1e6:,.3g} MB unpacked"
    machine.announce(title, machine.Needs(memory, 2 * unpacked, (took / 3, 3 * took + 5)), folder)
    with tempfile.TemporaryDirectory("-bdflow-ingest", dir=options.dir) as place:
        result = measure(Path(place), shape, options)
    show(result)
    machine.write_json(options.json, result)
    return result


def _slowness() -> float:
    """How much slower than two copies of 5 GB/s this machine copies memory: a quick look, 1 at least."""
    return max(1.0, 5e9 / machine.copy_rate(2**26))


def measure(folder: Path, shape: tuple[int, int, int], options: argparse.Namespace) -> dict[str, Any]:
    mask = _mask(shape, options.voxels)
    counts = [options.trials // 4, options.trials // 2, options.trials]
    paths = [folder / f"betas_session{number:02d}.nii.gz" for number in range(1, 4)]
    machine.say("writing three sessions ...")
    _apart(write_sessions, paths, shape, counts)
    machine.say("measuring the disk and memory ...")
    disk, copy = machine.disk_rates(folder, 2**26)[1], machine.copy_rate(2**26)
    path, out = paths[-1], np.zeros((options.trials, int(mask.sum())), open_session(paths[-1]).dtype)
    before = peak_mib()
    open_session(path).read_masked(mask, out)
    grown = peak_mib() - before

    def read(path: Path, trials: int) -> Callable[[], object]:
        return lambda: open_session(path).read_masked(mask, out[:trials])

    works: dict[str, Callable[[], object]] = {
        "zlib": lambda: unpack_zlib(path),
        "isal file": lambda: unpack_isal_file(path),
        "isal decompressor": lambda: unpack_isal(path),
        **{f"read {trials}": read(each, trials) for each, trials in zip(paths, counts, strict=True)},
    }
    with Progress("measuring", options.rounds, unit="rounds") as progress:
        times = {name: statistics.median(t) for name, t in _rounds(works, options.rounds, progress).items()}
    nbytes = [int(np.prod(shape)) * 2 * trials for trials in counts]
    start, rate = machine.fitted(nbytes, [times[f"read {trials}"] for trials in counts])
    fastest = min(times[name] for name in ("zlib", "isal file", "isal decompressor"))
    taken = times[f"read {options.trials}"]
    result = machine.head("ingest", count=1) | {
        "trials": options.trials,
        "shape": shape,
        "dtype": "int16",
        "voxels": int(mask.sum()),
        "unpacked (B)": nbytes[-1],
        "packed (B)": path.stat().st_size,
        "seconds": times,
        "disk read (B/s)": disk,
        "memory copy (B/s)": copy,
        "merely unpacked (B/s)": nbytes[-1] / fastest,
        "read and masked (B/s)": nbytes[-1] / taken,
        "start (s)": start,
        "rate (B/s)": rate,
        "peak beside the result (B)": grown * 2**20,
        "read_masked / fastest unzipper": fastest / taken,
    }
    if options.hdf5:
        other = folder / "betas_session01.hdf5"
        _apart(write_session, other, shape, options.trials)
        hdf5 = open_session(other)
        result["hdf5 read_masked (s)"] = statistics.median(
            seconds(lambda: hdf5.read_masked(mask, out)) for _ in range(3)
        )
    return result


def show(result: dict[str, Any]) -> None:
    """Print figures beside limits."""
    read, plain, copy = (result[f"{name} (B/s)"] for name in ("read and masked", "merely unpacked", "memory copy"))
    packed = result["packed (B)"] / result["unpacked (B)"] * read
    lines: list[machine.Line] = [
        ("read and masked", f"{read / 1e6:,.0f} MB/s", f"merely unpacked {plain / 1e6:,.0f} MB/s", read / plain),
        ("less opening", f"{result['rate (B/s)'] / 1e6:,.0f} MB/s", "", None),
        ("packed bytes", f"{packed / 1e6:,.0f} MB/s", *_beside("disk read", packed, result["disk read (B/s)"])),
        ("merely unpacked", f"{plain / 1e6:,.0f} MB/s", *_beside("memory copy", plain, copy)),
    ]
    print(f"\n{result['device']['name']}, 1 core")
    print(machine.table(lines) + "\n")
    rows = [(name, f"{took:.3f} s") for name, took in result["seconds"].items()]
    rows += [("opening", f"{result['start (s)'] * 1e3:.1f} ms")]
    rows += [("peak memory", f"{result['peak beside the result (B)'] / 2**20:.1f} MiB beside the result")]
    if "hdf5 read_masked (s)" in result:
        rows.append(("HDF5", f"{result['hdf5 read_masked (s)']:.3f} s"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _beside(name: str, value: float, limit: float) -> tuple[str, float]:
    return f"{name} {limit / 1e6:,.0f} MB/s", value / limit


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


def _rounds(works: dict[str, Callable[[], object]], rounds: int, progress: Progress) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
        progress.advance()
    return times


if __name__ == "__main__":
    main()
