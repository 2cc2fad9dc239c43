"""What painting on a GPU is to be asked beside its speed, each in a table: precision, attention, draws, 8 bits.

    python -m bdflow.benchmarks.gpu_paint --full --device cuda --json paint.json
    python -m bdflow.benchmarks.gpu_paint                              dry: the tiny bundle on the CPU

levels : by how many levels of 255 pixels of the tiny bundle move against float32, by dtype, TF32 and switches.
scores : of the tiny bundle's pictures against the photos that they are made from, by dtype.
attention : milliseconds of each kernel for what the UNet and the autoencoder call.
draws : milliseconds a row for the noise of guesses, made on the host, and for decoding them on the device.
linears : milliseconds of one evaluation of the UNet, exact and in 8 bits.

`--full` takes networks of the published size with random weights for `attention` and `linears`. On the CPU TF32 and
recorded graphs do not exist and are left out; milliseconds there are those of the processor.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bdflow.benchmarks import diffusion
from bdflow.config import PaintOptions, SpeedSettings
from bdflow.errors import InputError
from bdflow.metrics import image_metrics
from bdflow.models.diffusion.attention import calls_of, measured
from bdflow.models.diffusion.conditions import Conditions
from bdflow.models.diffusion.eight_bits import replace_linears
from bdflow.models.diffusion.kernels import chosen, said
from bdflow.models.latents import FeatureExtractor
from bdflow.models.versatile.painter import Painter
from bdflow.models.versatile.unet import VersatileDiffusion
from bdflow.models.weights import precision
from bdflow.models.weights.bundle import open_bundle
from bdflow.simulation.scenes import scene

HALVES = ("float16", "bfloat16")


@dataclass(frozen=True)
class Asked:
    """Where, and how much of it."""

    device: str = "cpu"
    full: bool = False
    batch: int = 2
    steps: int = 4
    scenes: int = 4

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")


def levels(asked: Asked) -> list[dict[str, Any]]:
    """How far pixels move against float32 by the plain loop, everything else the same."""
    options, tiny = PaintOptions(steps=asked.steps), open_bundle("tiny")
    plain = tiny.versatile(asked.device, "float32", diffusion.PLAIN)
    given = diffusion.inputs(plain, asked.batch)
    expected = plain.paint(**given, options=options).int()
    ways = {"plain": diffusion.PLAIN, "usual": SpeedSettings(), "channels_last": SpeedSettings(channels_last=True)}
    if asked.cuda:
        ways["cuda_graphs"] = SpeedSettings(compile="cuda_graphs")
    rows = []
    for dtype in ("float32", "float32 as TF32", *HALVES):
        if dtype.endswith("TF32") and not asked.cuda:
            continue
        for way, speed in ways.items():
            network = tiny.versatile(asked.device, dtype.split()[0], speed)
            try:
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype.endswith("TF32")
                for name, n in (("whole batch", asked.batch), ("one by one", 1)):
                    parts = [
                        network.paint(**{key: value[i : i + n] for key, value in given.items()}, options=options)
                        for i in range(0, asked.batch, n)
                    ]
                    moved = (torch.cat(parts).int() - expected).abs()
                    rows.append(
                        {
                            "dtype": dtype,
                            "switches": way,
                            "batches": name,
                            "levels": int(moved.max()),
                            "moved": float((moved > 0).float().mean()),
                            "by_more_than_one": float((moved > 1).float().mean()),
                        }
                    )
            finally:
                precision.settle()
    return rows


def scores(asked: Asked) -> list[dict[str, Any]]:
    """Metrics of pictures painted in each dtype from the same true latents and guesses."""
    scenes = [scene(3_000_000 + index, 3) for index in range(asked.scenes)]
    photos, ids = np.stack([one.image for one in scenes]), [str(index) for index in range(asked.scenes)]
    extractor = FeatureExtractor("tiny")
    latents = extractor(photos, [list(one.captions) for one in scenes], ids)
    guesses = Painter("tiny").guess(latents["vdvae"], "benchmark", ids)
    shown = extractor.vision_embeddings(photos)[:, 0]
    rows: list[dict[str, Any]] = []
    first: np.ndarray | None = None
    for dtype in ("float32", *HALVES):
        painter = Painter("tiny", device=asked.device, dtype=dtype, options=PaintOptions(steps=asked.steps))
        images = painter.paint(guesses, latents["clip_vision"], latents["clip_text"], "benchmark", ids)
        first = images if first is None else first
        small = [image_metrics.at_size(photo, *images.shape[1:3]) for photo in photos]
        moved = np.abs(images.astype(int) - first)
        rows.append(
            {
                "dtype": dtype,
                "PixCorr": float(np.mean([image_metrics.pixcorr(a, b) for a, b in zip(small, images, strict=True)])),
                "SSIM": float(np.mean([image_metrics.ssim(a, b) for a, b in zip(small, images, strict=True)])),
                "CLIP two-way": float(image_metrics.two_way(shown, extractor.vision_embeddings(images)[:, 0]).mean()),
                "levels": int(moved.max()),
                "moved": float((moved > 0).mean()),
            }
        )
    return rows


def attention(asked: Asked) -> list[dict[str, Any]]:
    """Every kernel for what the UNet and the autoencoder call, by dtype."""
    rows = []
    for dtype in HALVES if asked.cuda else ("float32", *HALVES):
        network = _networks(asked, dtype).called(SpeedSettings())
        calls = calls_of(network, asked.batch, asked.batch)
        clock = None if asked.cuda else partial(milliseconds, device=asked.device)
        times = measured(calls, network.dtype, network.device, clock)
        print(f"{dtype}: {said(times)}", flush=True)
        rows += [
            {"dtype": dtype, "part": part, "kernel": name, "milliseconds": value, "chosen": chosen(times)[part] == name}
            for part, by_name in times.items()
            for name, value in by_name.items()
        ]
    return rows


def draws(asked: Asked) -> list[dict[str, Any]]:
    """Noise of guesses on the host, and guesses on the device, of the tiny bundle."""
    painter, ids = Painter("tiny", device=asked.device), [str(number) for number in range(asked.batch)]
    latents = np.zeros((asked.batch, painter.bundle.vdvae_config.n_latents), np.float32)
    made = painter.guess_inputs(latents, "benchmark", ids)
    given = {
        "the noise of a guess, on the host": milliseconds(
            lambda: painter.guess_inputs(latents, "benchmark", ids), "cpu"
        ),
        "decoding a guess": milliseconds(lambda: painter.decode_guesses(made), asked.device),
    }
    return [{"what": what, "milliseconds_a_row": value / asked.batch} for what, value in given.items()]


def linears(asked: Asked) -> list[dict[str, Any]]:
    """One evaluation of the UNet of both halves of guidance, exact and in 8 bits."""
    rows = []
    for dtype in HALVES if asked.cuda else ("float32",):
        networks = _networks(asked, dtype)
        network = networks.called(SpeedSettings())
        for name in ("exact", "fp8"):
            if name == "fp8":
                try:
                    replaced = replace_linears(network.unet)
                except InputError as refused:
                    rows.append({"dtype": dtype, "linear": name, "refused": str(refused).splitlines()[0]})
                    continue
                print(f"{dtype}: {replaced} linear layers in 8 bits", flush=True)
            ms = milliseconds(_evaluation(network, asked.batch), asked.device)
            rows.append(
                {"dtype": dtype, "linear": name, "milliseconds": ms, "milliseconds_a_row": ms / asked.batch / 2}
            )
    return rows


def _networks(asked: Asked, dtype: str) -> diffusion.Networks:
    return diffusion.Networks(None if asked.full else "tiny", asked.device, dtype)


def _evaluation(network: VersatileDiffusion, rows: int) -> Callable[[], object]:
    given, evaluate = diffusion.inputs(network, rows), network.evaluate
    conditions = Conditions(
        {side: given[side].to(network.device, network.dtype) for side in network.nothing}, network.nothing, 0.4
    )
    state = given["start_noise"].to(network.device)

    @torch.inference_mode()
    def once() -> object:
        evaluate.begin(conditions, [401])
        return evaluate(state, 401, conditions, "joint")

    return once


def milliseconds(work: Callable[[], object], device: str) -> float:
    """The median of three, after one that does not count."""
    work()
    return 1e3 * float(np.median([diffusion.timed(work, device) for _ in range(3)]))


CHECKS: dict[str, Callable[[Asked], list[dict[str, Any]]]] = {
    "levels": levels,
    "attention": attention,
    "linears": linears,
    "draws": draws,
    "scores": scores,
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([_cell(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true", help="networks of the published size, random weights")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    asked = Asked(options.device, options.full, options.batch, options.steps, options.scenes)
    device = torch.cuda.get_device_name() if asked.cuda else "the CPU"
    found: dict[str, Any] = {"kind": "painting on a device", "device": device, "torch": torch.__version__}
    for name in options.only:
        start = time.perf_counter()
        found[name] = CHECKS[name](asked)
        print(f"\n{name} ({time.perf_counter() - start:.0f} s, {device})\n\n{table(found[name])}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
