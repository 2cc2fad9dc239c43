"""How fast a study is evaluated, against the bare networks on the same pictures, and in how much memory.

    python -m bdflow.benchmarks.evaluate [--stimuli 982] [--subjects 5] [--judges alexnet ...] [--dir DIR] [--json FILE]

The networks are the real architectures with random weights; photos and reconstructions are unrelated smooth noise of
425 and 512 px, so that two-way scores must be those of chance. The reference runs the same networks over the same
pictures, already resized and in memory, in batches of the same size. A quick look: `--stimuli 16`.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from bdflow.benchmarks.given import context_of
from bdflow.cluster import Resources, open_executor
from bdflow.config import Config, parse
from bdflow.metrics.statistics import estimate
from bdflow.models.judges.networks import load_panel
from bdflow.models.judges.weights import JUDGES
from bdflow.models.resizing import resize
from bdflow.stages.evaluate import Evaluate, weights_of
from bdflow.stores import Provenance, Store, StoreSpec, Study, text
from bdflow.study import catalog, keys, picture_catalog
from bdflow.study.keys import SHARED
from bdflow.study.stage import Context

PHOTO, PICTURE, VARIETY = 425, 512, 64
VIT_L_14 = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip


class PeakMemory(threading.Thread):
    """Largest resident size of this process and the largest of all its workers."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own, self.worker, self.stop = 0, 0, threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.stop.wait(0.2):
            self.own = max(self.own, me.memory_info().rss)
            for child in me.children(recursive=True):
                try:
                    self.worker = max(self.worker, child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    memory = PeakMemory()
    memory.start()
    try:
        yield memory
    finally:
        memory.stop.set()
        memory.join()


def write_weights(folder: Path, judges: list[str]) -> None:
    """The published files, with random weights; what is there stays."""
    from torchvision import models
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    torch.manual_seed(0)
    for name in judges:
        file = folder / JUDGES[name].file
        if file.exists():
            continue
        if name == "clip":
            file.mkdir(parents=True)
            (file / "config.json").write_text(json.dumps(VIT_L_14), encoding="utf-8")
            torch.save(
                CLIPVisionModelWithProjection(CLIPVisionConfig(**VIT_L_14)).state_dict(), file / "pytorch_model.bin"
            )
        elif name == "inception_v3":
            torch.save(models.inception_v3(init_weights=False).state_dict(), file)
        else:
            model = models.resnet50() if name == "swav" else getattr(models, name)()
            torch.save(model.state_dict(), file)


def noise(n: int, pixels: int, seed: int) -> np.ndarray:
    """(n, pixels, pixels, 3) uint8, smooth; there are `VARIETY` different ones, repeated with other brightness."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (min(n, VARIETY), 28, 28, 3), np.uint8)
    fine = [np.asarray(Image.fromarray(one).resize((pixels, pixels), Image.Resampling.BICUBIC)) for one in coarse]
    return np.stack([np.roll(fine[i % VARIETY], 37 * (i // VARIETY), axis=(0, 1)) for i in range(n)])


def fill(
    study: Study, path: str, spec: StoreSpec, ids: np.ndarray, seed: int, pixels: int, **given: np.ndarray
) -> Provenance:
    """A sealed store of pictures, block by block."""
    provenance = Provenance("benchmark", {"benchmark": path})
    sizes = {"stimulus_id": len(ids), "y": pixels, "x": pixels, "rgb": 3, "caption_number": 1, "picture": 1}
    sizes = {dim: size for dim, size in sizes.items() if any(dim in array.dims for array in spec.arrays)}
    store = study.declare(path, spec, sizes, {"stimulus_id": ids, **given}, provenance)
    if store.missing():
        pictures = noise(len(ids), pixels, seed)
        for partition in store.missing():
            rows = spec.region(sizes, partition)["stimulus_id"]
            images = pictures[rows]
            data: dict[str, np.ndarray] = {"image": images[:, None] if "picture" in sizes else images}
            if "caption_number" in sizes:
                data["caption"] = text([""] * (rows.stop - rows.start)).reshape(-1, 1)
            store.write(partition, data)
        store.seal()
    return provenance


def prepare(root: Path, n: int, n_subjects: int, judges: list[str]) -> Context:
    """A study whose pictures are there and whose scores are not."""
    subjects = [f"subj{i + 1:02d}" for i in range(n_subjects)]
    names = [metric for name in judges for metric in JUDGES[name].layers]
    config: Config = parse(
        {
            "study": str(root / f"study_{n}.zarr"),
            "subjects": subjects,
            "dataset": {"root": "none"},
            "spaces": {name: {"encoder": name} for name in ("vdvae", "clip_vision", "clip_text")},
            "painters": {"brain_diffuser": {}},
            "report": {"path": "none"},
            "evaluate": {"metrics": ["PixCorr", "SSIM", *names], "weights": str(root / "weights")},
        }
    )
    study = Study(config.study)
    config.study.mkdir(parents=True, exist_ok=True)
    study.create("benchmark", {})
    ids = np.arange(n, dtype="i4")
    shown, test = keys.stimuli(SHARED), text(["test"] * n)
    known = {shown: fill(study, shown, catalog.stimuli(64), ids, 0, PHOTO, split=test)}
    for subject in subjects:
        own = keys.stimuli(subject)
        known[own] = fill(study, own, catalog.stimuli(64), ids[:0], 0, PHOTO, split=test[:0])
    for i, subject in enumerate(subjects):
        path = f"reconstructions/brain_diffuser/{subject}/full"
        known[path] = fill(study, path, picture_catalog.reconstructions(config.chunks.images), ids, 1 + i, PICTURE)
    context = context_of(config, study, known, Evaluate())
    for path, provenance in context.expected.items():
        if provenance.stage == Evaluate.name:
            study.remove(path)
    return context


def run(context: Context, kind: str, resources: Resources) -> dict[str, float]:
    """Seconds of each pass."""
    seconds = {}
    with open_executor(kind) as executor:  # type: ignore[arg-type]
        for step in Evaluate().steps(context):
            start = time.perf_counter()
            work = step.start()
            executor.run(work.make_worker, work.tasks, resources=resources, on_done=lambda done: None)
            for key in step.fills:
                context.study.store(key).seal()
            seconds[step.label] = time.perf_counter() - start
    return seconds


def bare(context: Context, judges: list[str], n: int, threads: int) -> float:
    """Pictures a second through the networks alone."""
    torch.set_num_threads(threads)
    weights = weights_of(context.config)
    panel = load_panel({name: weights[name] for name in judges})
    batch = context.config.chunks.images
    pictures = resize(noise(n, PICTURE, 1), 224, Image.Resampling.BILINEAR)
    with torch.inference_mode():
        batches = [pictures[i : i + batch] for i in range(0, n, batch)]
        inputs = [[network.prepare(images) for images in batches] for network in panel.networks]
        for network, ready in zip(panel.networks, inputs, strict=True):
            network.module(ready[0])
        start = time.perf_counter()
        for network, ready in zip(panel.networks, inputs, strict=True):
            for x in ready:
                network.module(x)
        return n / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stimuli", type=int, default=982)
    parser.add_argument("--subjects", type=int, default=5)
    parser.add_argument("--judges", nargs="+", default=list(JUDGES), choices=list(JUDGES))
    parser.add_argument("--executor", default="serial", choices=["serial", "dask", "ray"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--bare", type=int, default=64, help="pictures of the reference")
    parser.add_argument("--dir", type=Path, help="where the study is kept; a temporary directory otherwise")
    parser.add_argument("--prepare", action="store_true", help="write the study and stop")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    _find_torchvision()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.dir or Path(temporary)
        (root / "weights").mkdir(parents=True, exist_ok=True)
        write_weights(root / "weights", options.judges)
        context = prepare(root, options.stimuli, options.subjects, options.judges)
        if options.prepare:
            return
        result = measure(context, options)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _find_torchvision() -> None:
    """In a checkout, torchvision may lie apart, as `make install` puts it; elsewhere it is installed as usual."""
    if find_spec("torchvision") is None and find_spec("tests") is not None:
        from tests.support.plain_torchvision import import_torchvision

        import_torchvision()


def measure(context: Context, options: argparse.Namespace) -> dict[str, Any]:
    pictures = options.stimuli * (options.subjects + 1)
    resources = Resources(workers=options.workers, threads=options.threads)
    with peak_memory() as memory:
        seconds = run(context, options.executor, resources)
    whole = pictures / sum(seconds.values())
    networks = (
        bare(context, options.judges, options.bare, options.threads * options.workers) if options.bare else np.nan
    )
    scores = Store(context.study.path, "metrics/brain_diffuser/subj01")
    names, value = scores.read("metric").tolist(), scores.read("value")[0]
    return {
        "stimuli": options.stimuli,
        "subjects": options.subjects,
        "judges": options.judges,
        "where": f"{options.executor}: {options.workers} x {options.threads}",
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "pictures": pictures,
        "pictures per second": round(whole, 3),
        "bare networks, pictures per second": round(networks, 3),
        "share of the bare rate": round(whole / networks, 3),
        "peak memory, MiB": round(max(memory.own, memory.worker) / 2**20),
        "scores of chance": {
            name: [round(x, 3) for x in estimate(values)[:3]] for name, values in zip(names, value, strict=True)
        },
    }


if __name__ == "__main__":
    main()
