"""How light loading is: full-size random checkpoints are written once, then each network is loaded in its own process.

    python benchmarks/loading.py --dir /scratch/somewhere --json loading.json

Reported per network: the bytes of the weights kept, the growth of the process's peak resident memory over them, and the
time of `Bundle.load` against that of reading the same bytes of the same files with plain reads, in a process of its own
too. Plain reading is measured twice: into one buffer of 4 MB that is filled again and again (the stricter, by which the
limit is judged: it touches no new memory), and into memory that is kept, as loading has to. Files are evicted from the
page cache before each measurement; the three take turns, and the median of `--repeats` counts. Importing torch,
diffusers and transformers does not count: each loading process loads the same network of the tiny bundle first. Needs
about 9 GB of disk and 6 GB of memory; the checkpoints are removed afterwards unless `--keep`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
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

    from bdflow.models import keys
    from bdflow.models.bundle import TINY, open_bundle
    from bdflow.models.manifest import MANIFEST, write_manifest

    authors, diffusers = root / "authors", root / "diffusers"
    for folder in (authors / "clip", diffusers / "tokenizer", diffusers / "image_feature_extractor"):
        folder.mkdir(parents=True)
    original = json.loads(unet_manifest.read_text())
    prefixed = tensors(((keys.UNET_PREFIX + name, shape) for name, shape in original.items()), torch.float16)
    torch.save(prefixed, authors / "vd-four-flow-v1-0-fp16-deprecated.pth")
    del prefixed
    for name in ("vocab.json", "merges.txt"):
        for folder in (authors / "clip", diffusers / "tokenizer"):
            shutil.copy(TINY / "tokenizer" / name, folder)
    processor = TINY / "image_feature_extractor" / "preprocessor_config.json"
    shutil.copy(processor, authors / "clip")
    shutil.copy(processor, diffusers / "image_feature_extractor")
    whole = {"projection_dim": 768, "vision_config": CLIP_VISION, "text_config": CLIP_TEXT}
    (authors / "clip" / "config.json").write_text(json.dumps(whole))
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
    torch.save(tensors(shapes("vae", lambda name: keys.original_vae(name, 4)), torch.float16), authors / "kl-f8.pth")

    entries = json.loads((authors / MANIFEST).read_text())["networks"]
    configs = {"image_unet": entries["unet"]["config"], "vae": entries["vae"]["config"], "image_encoder": CLIP_VISION,
               "text_encoder": CLIP_TEXT}  # fmt: skip
    for folder, config in configs.items():
        (diffusers / folder).mkdir()
        (diffusers / folder / "config.json").write_text(json.dumps(config))
    for folder in ("text_unet", "scheduler"):
        (diffusers / folder).mkdir()
    (diffusers / "scheduler" / "scheduler_config.json").write_text(json.dumps(entries["scheduler"]["config"]))
    sides: dict[str, list[tuple[str, Iterable[int]]]] = {"image": [], "text": []}
    for name, shape in shapes("unet"):
        side, theirs = keys.diffusers_unet(name)
        sides[side].append((theirs, shape))
    for side, named in sides.items():
        save_file(tensors(named, torch.float16), diffusers / f"{side}_unet" / "diffusion_pytorch_model.safetensors")
    save_file(tensors(shapes("vae"), torch.float16), diffusers / "vae" / "diffusion_pytorch_model.safetensors")
    save_file(tensors(shapes("clip_vision"), torch.float16), diffusers / "image_encoder" / "model.safetensors")
    save_file(tensors(shapes("clip_text"), torch.float16), diffusers / "text_encoder" / "model.safetensors")
    os.link(vdvae, diffusers / vdvae.name)
    write_manifest(authors)
    write_manifest(diffusers)


def evict(path: Path) -> None:
    """Drop a file's pages from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ranges(bundle_path: Path, network: str) -> list[tuple[str, list[tuple[int, int]]]]:
    """(file, [(offset, bytes) of the tensors kept]) of a network."""
    from bdflow.models.bundle import open_bundle

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


def child(bundle_path: Path, network: str, dtype: str) -> dict[str, Any]:
    """Load one network here, or (dtype `reused` or `kept`) only read the ranges given on stdin, and measure."""
    if dtype in ("reused", "kept"):
        where = json.load(sys.stdin)
        for path, _ in where:
            evict(Path(path))
        return {"seconds": read_plainly(where, dtype == "kept")}
    import torch

    from bdflow.models.bundle import open_bundle

    torch.set_num_threads(1)
    open_bundle("tiny").load(network, dtype=dtype)  # imports
    for path, _ in json.load(sys.stdin):
        evict(Path(path))
    before = resident("VmRSS")
    begin = time.perf_counter()
    module = open_bundle(bundle_path).load(network, dtype=dtype)
    seconds = time.perf_counter() - begin
    kept = sum(value.nbytes for value in module.state_dict().values())
    peak = resident("VmHWM")
    return {"seconds": seconds, "kept_bytes": kept, "peak_growth_bytes": peak - before, "peak_bytes": peak}


def resident(field: str) -> int:
    """Bytes of this process's resident memory, now (VmRSS) or at its peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status: this benchmark runs on Linux")


def run_child(bundle: Path, network: str, dtype: str, where: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(bundle), network, dtype]
    done = subprocess.run(command, input=where, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(root: Path, layout: str, network: str, dtype: str, repeats: int) -> dict[str, Any]:
    """One row: the medians of `repeats` plain readings of both kinds and loadings, all from disk."""
    where = ranges(root / layout, network)
    runs: dict[str, list[dict[str, Any]]] = {"reused": [], "kept": [], dtype: []}
    for _ in range(repeats):
        for kind, done in runs.items():
            done.append(run_child(root / layout, network, kind, json.dumps(where)))
    seconds = {kind: statistics.median(run["seconds"] for run in done) for kind, done in runs.items()}
    loads = runs[dtype]
    kept = loads[0]["kept_bytes"]
    return {
        "layout": layout,
        "network": network,
        "dtype": dtype,
        "kept_gb": kept / 1e9,
        "read_gb": sum(size for _, pieces in where for _, size in pieces) / 1e9,
        "peak_over_kept": max(run["peak_growth_bytes"] for run in loads) / kept,
        "peak_gb": max(run["peak_bytes"] for run in loads) / 1e9,
        "load_s": seconds[dtype],
        "read_reused_s": seconds["reused"],
        "read_kept_s": seconds["kept"],
        "time_ratio": seconds[dtype] / seconds["reused"],
        "time_ratio_kept": seconds[dtype] / seconds["kept"],
        "all_s": {("load" if kind == dtype else kind): [run["seconds"] for run in done] for kind, done in runs.items()},
    }


def together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of a whole bundle: every network of one layout, one after the other, in its stored dtype."""
    total = {
        key: sum(row[key] for row in rows) for key in ("kept_gb", "read_gb", "load_s", "read_reused_s", "read_kept_s")
    }
    peak = max(row["peak_over_kept"] for row in rows)
    return {
        "layout": rows[0]["layout"],
        "network": "all five",
        "dtype": "as stored",
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
        "kept GB",
        "read GB",
        "peak growth / kept",
        "load s",
        "read s (reused)",
        "read s (kept)",
        "load / reused",
        "load / kept",
        "within",
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        lines.append(
            f"| {row['layout']} | {row['network']} | {row['dtype']} | {row['kept_gb']:.2f} | {row['read_gb']:.2f} | "
            f"{row['peak_over_kept']:.2f} | {row['load_s']:.2f} | {row['read_reused_s']:.2f} | "
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
    parser.add_argument("--layouts", nargs="+", choices=["diffusers", "authors"], default=["diffusers", "authors"])
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints; reuse them if they are there")
    parser.add_argument("--child", nargs=3, metavar=("BUNDLE", "NETWORK", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(Path(options.child[0]), *options.child[1:])))
        return
    if options.dir is None:
        parser.error("--dir is needed")
    import torch

    from bdflow.models.manifest import MANIFEST

    reference = Path(__file__).parent.parent / "tests" / "reference" / "vd_unet_manifest.json"
    try:
        if not (options.dir / "diffusers" / MANIFEST).is_file():
            write_checkpoints(options.dir, reference)
        rows = []
        for case in (case for case in CASES if case[0] in options.layouts):
            rows.append(measure(options.dir, *case, options.repeats))
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
        if "diffusers" in options.layouts:
            rows.insert(len(STORED), together(rows[: len(STORED)]))
    finally:
        if not options.keep:
            shutil.rmtree(options.dir, ignore_errors=True)
    options.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n")
    print(table(rows))
    kept = sum(within(row) for row in rows)
    print(f"{kept} of {len(rows)} within {MEMORY_LIMIT} x memory and {TIME_LIMIT} x time of reading into one buffer")


if __name__ == "__main__":
    main()
