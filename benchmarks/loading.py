"""How light loading is: full-size random checkpoints are written once, then each network is loaded in its own process.

    python -m bdflow.benchmarks.loading --dir /scratch/somewhere --json loading.json

Reported per network: the bytes of the weights kept, the growth of the process's peak resident memory over them, and the
time of `Bundle.load` against that of reading the same bytes of the same files with plain reads, in a process of its own
too. Plain reading is measured twice: into one buffer of 4 MB that is filled again and again (the stricter, by which the
limit is judged: it touches no new memory), and into memory that is kept, as loading has to. Files are evicted from the
page cache before each measurement; the three take turns, and the median of `--repeats` counts. Importing torch,
diffusers and transformers does not count: each loading process loads the same network of the tiny bundle first. It then
loads once from disk (`CPU s` is the processor's time of that) and once more with the file in the page cache (`warm s`).
Needs 9 GB of disk and 6 GB of memory;
the checkpoints are removed afterwards unless `--keep`.

`--readers own mapped read` measures beside bdflow's reader what the libraries' own would take, in everything else the
same `Bundle.load`: `mapped` copies each tensor out of `torch.load(mmap=True)` or `safe_open`, `read` keeps what
`torch.load` or `safe_open(backend="pread")` has read and casts it where the dtype differs. They may use all cores.
`--layouts float32 pickled` are the UNet of the layout of diffusers in float32, as `.safetensors` and as `.bin`: 18 GB
of disk more, 10 GB of memory.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

STORED = [
    ("unet", "float16"),
    ("vdvae", "float32"),
    ("vae", "float16"),
    ("clip_vision", "float16"),
    ("clip_text", "float16"),
]
CASES = [("diffusers", network, dtype) for network, dtype in STORED]
CASES += [("authors", "unet", "float16"), ("authors", "unet", "bfloat16"), ("authors", "unet", "float32")]
CASES += [("authors", "vdvae", "bfloat16")]
CASES += [(layout, "unet", dtype) for layout in ("float32", "pickled") for dtype in ("float32", "float16")]
LAYOUTS = ["diffusers", "authors", "float32", "pickled"]
READERS = ["own", "mapped", "read"]
CLIP_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}
CLIP_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "vocab_size": 49408,
}
MEMORY_LIMIT, TIME_LIMIT = 1.3, 1.5
BUFFER_BYTES = 4 * 2**20


def tensors(shapes: Iterable[tuple[str, Iterable[int]]], dtype: "torch.dtype") -> "dict[str, torch.Tensor]":
    """Random tensors of these names and shapes, each with its own storage."""
    import torch

    pool = torch.rand(2**25).to(dtype)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        out = torch.empty(shape, dtype=dtype)
        flat = out.view(-1)
        for start in range(0, flat.numel(), pool.numel()):
            piece = flat[start : start + pool.numel()]
            piece.copy_(pool[: piece.numel()])
        return out

    return {name: draw(tuple(shape)) for name, shape in shapes}


def write_checkpoints(root: Path, unet_manifest: Path) -> None:
    """Both published layouts at full size below `root`, with random weights."""
    import torch
    from safetensors.torch import save_file

    from bdflow.models.weights import names
    from bdflow.models.weights.bundle import TINY, open_bundle
    from bdflow.models.weights.manifest import MANIFEST, write_manifest

    authors, diffusers = root / "authors", root / "diffusers"
    for folder in (authors / "clip", diffusers / "tokenizer", diffusers / "image_feature_extractor"):
        folder.mkdir(parents=True)
    original = json.loads(unet_manifest.read_text(encoding="utf-8"))
    prefixed = tensors(((names.UNET_PREFIX + name, shape) for name, shape in original.items()), torch.float16)
    torch.save(prefixed, authors / "vd-four-flow-v1-0-fp16-deprecated.pth")
    del prefixed
    for name in ("vocab.json", "merges.txt"):
        for folder in (authors / "clip", diffusers / "tokenizer"):
            shutil.copy(TINY / "tokenizer" / name, folder)
    processor = TINY / "image_feature_extractor" / "preprocessor_config.json"
    shutil.copy(processor, authors / "clip")
    shutil.copy(processor, diffusers / "image_feature_extractor")
    whole = {"projection_dim": 768, "vision_config": CLIP_VISION, "text_config": CLIP_TEXT}
    (authors / "clip" / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    for name in ("imagenet64-iter-1600000-model-ema.th", "kl-f8.pth", "clip/model.safetensors"):
        (authors / name).touch()
    write_manifest(authors)
    bundle = open_bundle(authors)
    expected = {
        network: bundle.build(network).state_dict() for network in ("vdvae", "unet", "vae", "clip_vision", "clip_text")
    }

    def shapes(network: str, rename: Callable[[str], str] = str) -> Iterable[tuple[str, Iterable[int]]]:
        return ((rename(name), value.shape) for name, value in expected[network].items())

    vdvae = authors / "imagenet64-iter-1600000-model-ema.th"
    torch.save(tensors(shapes("vdvae", lambda name: f"module.{name}"), torch.float32), vdvae)
    torch.save(tensors(shapes("vae", lambda name: names.original_vae(name, 4)), torch.float16), authors / "kl-f8.pth")

    entries = json.loads((authors / MANIFEST).read_text(encoding="utf-8"))["networks"]
    configs = {"image_unet": entries["unet"]["config"], "vae": entries["vae"]["config"], "image_encoder": CLIP_VISION,
               "text_encoder": CLIP_TEXT}  # fmt: skip
    for folder, config in configs.items():
        (diffusers / folder).mkdir()
        (diffusers / folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for folder in ("text_unet", "scheduler"):
        (diffusers / folder).mkdir()
    (diffusers / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(entries["scheduler"]["config"]), encoding="utf-8"
    )
    sides: dict[str, list[tuple[str, Iterable[int]]]] = {"image": [], "text": []}
    for name, shape in shapes("unet"):
        side, theirs = names.diffusers_unet(name)
        sides[side].append((theirs, shape))
    for side, named in sides.items():
        save_file(tensors(named, torch.float16), diffusers / f"{side}_unet" / "diffusion_pytorch_model.safetensors")
    save_file(tensors(shapes("vae"), torch.float16), diffusers / "vae" / "diffusion_pytorch_model.safetensors")
    save_file(tensors(shapes("clip_vision"), torch.float16), diffusers / "image_encoder" / "model.safetensors")
    save_file(tensors(shapes("clip_text"), torch.float16), diffusers / "text_encoder" / "model.safetensors")
    os.link(vdvae, diffusers / vdvae.name)
    write_manifest(authors)
    write_manifest(diffusers)


def write_float32(root: Path, layout: str) -> None:
    """The layout of diffusers with its UNet in float32, `.safetensors` or (layout `pickled`) `.bin`."""
    import torch
    from safetensors.torch import save_file

    from bdflow.models.weights import names
    from bdflow.models.weights.bundle import open_bundle
    from bdflow.models.weights.manifest import MANIFEST, write_manifest

    source, target = root / "diffusers", root / layout
    shutil.copytree(source, target, copy_function=os.link)
    (target / MANIFEST).unlink()
    sides: dict[str, list[tuple[str, Iterable[int]]]] = {"image": [], "text": []}
    for name, value in open_bundle(source).build("unet").state_dict().items():
        side, theirs = names.diffusers_unet(name)
        sides[side].append((theirs, value.shape))
    for side, named in sides.items():
        file = target / f"{side}_unet" / "diffusion_pytorch_model.safetensors"
        file.unlink()
        state = tensors(named, torch.float32)
        if layout == "pickled":
            torch.save(state, file.with_suffix(".bin"))
        else:
            save_file(state, file)
    write_manifest(target)


def evict(path: Path) -> None:
    """Drop a file's pages from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ranges(bundle_path: Path, network: str) -> list[tuple[str, list[tuple[int, int]]]]:
    """(file, [(offset, bytes) of the tensors kept]) of a network."""
    from bdflow.models.weights.bundle import open_bundle

    bundle = open_bundle(bundle_path)
    found = []
    for checkpoint, sources, _ in bundle.parts(network, bundle.build(network)):
        places = checkpoint.places(set(sources.values()))
        found.append((str(checkpoint.path), sorted((o, checkpoint.tensors[n].nbytes) for n, o in places.items())))
    return found


def read_plainly(where: list[tuple[str, list[tuple[int, int]]]], kept: bool) -> float:
    """Seconds to read those ranges, tensor by tensor: into memory of their own, or into one buffer."""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    begin = time.perf_counter()
    memory = []
    for path, pieces in where:
        with Path(path).open("rb", buffering=0) as file:
            for offset, size in pieces:
                file.seek(offset)
                if kept:
                    memory.append(file.read(size))
                    continue
                while size:
                    size -= file.readinto(buffer[: min(size, BUFFER_BYTES)])
    return time.perf_counter() - begin


class LibraryCheckpoint:
    """A file by torch's and safetensors' own readers, with those words of bdflow's `Checkpoint` that loading uses."""

    def __init__(self, path: Path, reader: str) -> None:
        import torch
        from safetensors import safe_open

        from bdflow.models.weights import checkpoint

        self.path, self.mapped = path, reader == "mapped"
        if path.suffix == ".safetensors":
            self.file = safe_open(path, "pt", backend="mmap" if self.mapped else "pread")
            self.take = self.file.get_tensor
            parts = {name: self.file.get_slice(name) for name in self.file.offset_keys()}
            dtypes = checkpoint._SAFETENSORS_DTYPES
            found = {name: (part.get_shape(), dtypes[part.get_dtype()]) for name, part in parts.items()}
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=self.mapped)
            state = checkpoint._state_dict(path, state)
            self.take = state.__getitem__ if self.mapped else state.pop
            found = {name: (part.shape, str(part.dtype).removeprefix("torch.")) for name, part in state.items()}
        self.tensors = {
            name: checkpoint.TensorInfo(tuple(shape), dtype, 0, 0) for name, (shape, dtype) in found.items()
        }

    def wanted(self, ignored: Callable[[str], bool]) -> list[str]:
        return [name for name in self.tensors if not ignored(name)]

    def plan(self, names: Iterable[str], device: str, dtype: "torch.dtype") -> Any:
        from bdflow.models.weights.checkpoint import Reading

        return Reading(self.path, {name: self.take(name).to(device, dtype, copy=self.mapped) for name in names}, [])


def child(bundle_path: Path, network: str, dtype: str, reader: str) -> dict[str, Any]:
    """Load one network here, or (reader `reused` or `kept`) only read the ranges given on stdin, and measure."""
    where = json.load(sys.stdin)
    if reader in ("reused", "kept"):
        for path, _ in where:
            evict(Path(path))
        return {name: read_plainly(where, reader == "kept") for name in ("seconds", "warm_seconds")}
    import torch

    from bdflow.models.weights import checkpoint
    from bdflow.models.weights.bundle import open_bundle

    open_bundle("tiny").load(network, dtype=dtype)  # imports
    if reader == "own":
        torch.set_num_threads(1)
    else:
        checkpoint.open_checkpoint = lambda path: LibraryCheckpoint(path, reader)  # type: ignore[assignment, return-value]
    for path, _ in where:
        evict(Path(path))
    before = resident("VmRSS")
    begin, processor = time.perf_counter(), time.process_time()
    module = open_bundle(bundle_path).load(network, dtype=dtype)
    seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    kept = sum(value.nbytes for value in module.state_dict().values())
    peak = resident("VmHWM")
    del module
    read_plainly(where, False)  # all of it is in the page cache now
    begin = time.perf_counter()
    open_bundle(bundle_path).load(network, dtype=dtype)
    warm = time.perf_counter() - begin
    found = {"seconds": seconds, "cpu_seconds": processor, "warm_seconds": warm, "kept_bytes": kept}
    return found | {"peak_growth_bytes": peak - before, "peak_bytes": peak}


def resident(field: str) -> int:
    """Bytes of this process's resident memory, now (VmRSS) or at its peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status: this benchmark runs on Linux")


def run_child(bundle: Path, network: str, dtype: str, reader: str, where: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bdflow.benchmarks.loading", "--child", str(bundle), network, dtype, reader]
    done = subprocess.run(command, input=where, capture_output=True, check=False, encoding="utf-8")
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(
    root: Path, layout: str, network: str, dtype: str, readers: list[str], repeats: int
) -> Iterator[dict[str, Any]]:
    """One row a reader: the medians of `repeats` plain readings of both kinds and loadings."""
    where = ranges(root / layout, network)
    runs: dict[str, list[dict[str, Any]]] = {"reused": [], "kept": [], **{reader: [] for reader in readers}}
    for _ in range(repeats):
        for reader, done in runs.items():
            done.append(run_child(root / layout, network, dtype, reader, json.dumps(where)))

    def seconds(reader: str, which: str = "seconds") -> float:
        return statistics.median(run[which] for run in runs[reader])

    for reader in readers:
        loads = runs[reader]
        kept = loads[0]["kept_bytes"]
        yield {
            "layout": layout,
            "network": network,
            "dtype": dtype,
            "reader": reader,
            "kept_gb": kept / 1e9,
            "read_gb": sum(size for _, pieces in where for _, size in pieces) / 1e9,
            "peak_over_kept": max(run["peak_growth_bytes"] for run in loads) / kept,
            "peak_gb": max(run["peak_bytes"] for run in loads) / 1e9,
            "load_s": seconds(reader),
            "cpu_s": seconds(reader, "cpu_seconds"),
            "warm_s": seconds(reader, "warm_seconds"),
            "read_reused_s": seconds("reused"),
            "read_kept_s": seconds("kept"),
            "time_ratio": seconds(reader) / seconds("reused"),
            "time_ratio_kept": seconds(reader) / seconds("kept"),
            "all_s": {name: [run["seconds"] for run in runs[name]] for name in ("reused", "kept", reader)},
        }


def together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of a whole bundle: every network of one layout, one after the other, in its stored dtype."""
    summed = ("kept_gb", "read_gb", "load_s", "cpu_s", "warm_s", "read_reused_s", "read_kept_s")
    total = {key: sum(row[key] for row in rows) for key in summed}
    peak = max(row["peak_over_kept"] for row in rows)
    return {
        "layout": rows[0]["layout"],
        "network": "all five",
        "dtype": "as stored",
        "reader": rows[0]["reader"],
        **total,
        "peak_over_kept": peak,
        "peak_gb": max(row["peak_gb"] for row in rows),
        "time_ratio": total["load_s"] / total["read_reused_s"],
        "time_ratio_kept": total["load_s"] / total["read_kept_s"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    heads = [
        "layout",
        "network",
        "dtype",
        "reader",
        "kept GB",
        "read GB",
        "peak growth / kept",
        "load s",
        "CPU s",
        "warm s",
        "read s (reused)",
        "read s (kept)",
        "load / reused",
        "load / kept",
        "within",
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        lines.append(
            f"| {row['layout']} | {row['network']} | {row['dtype']} | {row['reader']} | {row['kept_gb']:.2f} | "
            f"{row['read_gb']:.2f} | {row['peak_over_kept']:.2f} | {row['load_s']:.2f} | {row['cpu_s']:.2f} | "
            f"{row['warm_s']:.2f} | {row['read_reused_s']:.2f} | "
            f"{row['read_kept_s']:.2f} | {row['time_ratio']:.2f} | {row['time_ratio_kept']:.2f} | "
            f"{'yes' if within(row) else 'no'} |"
        )
    return "\n".join(lines)


def within(row: dict[str, Any]) -> bool:
    """Whether a row keeps both limits, its time against plain reading into one buffer."""
    return bool(row["peak_over_kept"] <= MEMORY_LIMIT and row["time_ratio"] <= TIME_LIMIT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="an empty or new directory for the checkpoints")
    parser.add_argument("--json", type=Path, default=Path("loading.json"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS[:2])
    parser.add_argument("--networks", nargs="+", help="these networks alone")
    parser.add_argument("--dtypes", nargs="+", help="loaded in these alone")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=READERS[:1])
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints; reuse them if they are there")
    parser.add_argument("--child", nargs=4, metavar=("BUNDLE", "NETWORK", "DTYPE", "READER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(Path(options.child[0]), *options.child[1:])))
        return
    if options.dir is None:
        parser.error("--dir is needed")
    import torch

    from bdflow.models.weights.manifest import MANIFEST

    reference = Path(__file__).resolve().parents[1] / "tests" / "reference" / "vd_unet_manifest.json"
    try:
        if not (options.dir / "diffusers" / MANIFEST).is_file():
            write_checkpoints(options.dir, reference)
        for layout in set(options.layouts) & {"float32", "pickled"}:
            if not (options.dir / layout / MANIFEST).is_file():
                write_float32(options.dir, layout)
        rows = []
        for layout, network, dtype in CASES:
            chosen = network in (options.networks or [network]) and dtype in (options.dtypes or [dtype])
            if layout in options.layouts and chosen:
                for row in measure(options.dir, layout, network, dtype, options.readers, options.repeats):
                    rows.append(row)
                    print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
        for reader in options.readers:
            stored = [row for row in rows if row["layout"] == "diffusers" and row["reader"] == reader]
            if len(stored) == len(STORED):
                rows.append(together(stored))
    finally:
        if not options.keep:
            shutil.rmtree(options.dir, ignore_errors=True)
    options.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    kept = sum(within(row) for row in rows)
    print(f"{kept} of {len(rows)} within {MEMORY_LIMIT} x memory and {TIME_LIMIT} x time of reading into one buffer")


if __name__ == "__main__":
    main()
