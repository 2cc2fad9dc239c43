"""How fast pictures are painted: batch sizes x dtypes x switches, against the plain loop at batch 1.

    python benchmarks/diffusion.py                               the tiny bundle, on the CPU
    python benchmarks/diffusion.py --full --device cuda --dtypes bfloat16 float16 --batch-sizes 1 4 16 32 64
    python benchmarks/diffusion.py --modes --runtime --actors 1 2 4 8 16 32 64

`--full` makes networks of the published size with random weights. An image is encoded, denoised in int(strength *
steps) steps and decoded; its FLOP are counted in the plain loop, and the fraction is of the rate at which the same
device multiplies large matrices of the same dtype in the same run. On the CPU seconds are those of the processor, over
the threads: on a machine with other work they say more than the wall's. Every switch is measured alone, added to the
plain loop at batch 1, and taken from all at the largest batch. `--modes` paints scenes with the approximate modes of
the tiny bundle and scores them; `--runtime` and `--actors` measure what the executors cost
(benchmarks/diffusion_runtime.py).
"""

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusion_runtime  # beside this file
import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch.utils.flop_counter import FlopCounterMode

from bdflow.config import PaintOptions, SpeedSettings
from bdflow.errors import InputError
from bdflow.metrics import image_metrics
from bdflow.models.latents import FeatureExtractor
from bdflow.models.versatile.painter import Painter
from bdflow.models.versatile.unet import VersatileDiffusion, build_dual_unet
from bdflow.models.weights.bundle import open_bundle
from bdflow.models.weights.manifest import KL_F8, SCHEDULER, VERSATILE_UNET
from bdflow.simulation.scenes import scene

PLAIN = SpeedSettings(joint_guidance=False, cached_conditions=False, channels_last=False, attention="plain")
SWITCHES: dict[str, dict[str, Any]] = {
    "joint_guidance": {"joint_guidance": True},
    "cached_conditions": {"cached_conditions": True},
    "channels_last": {"channels_last": True},
    "attention fused": {"attention": "fused"},
}
COMPILED = {name: {"compile": name} for name in ("default", "reduce_overhead", "max_autotune", "cuda_graphs")}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODES = {
    "50 steps, exact": {},
    "dpmpp_2m, 50 steps": {"solver": "dpmpp_2m"},
    "ddim, 20 steps": {"steps": 20},
    "dpmpp_2m, 20 steps": {"steps": 20, "solver": "dpmpp_2m"},
    "ddim, 10 steps": {"steps": 10},
    "dpmpp_2m, 10 steps": {"steps": 10, "solver": "dpmpp_2m"},
    "guidance in [0.2, 0.6]": {"guidance_interval": (0.2, 0.6)},
    "features every 2 steps": {"feature_cache": 2},
    "features every 3 steps": {"feature_cache": 3},
    "features every 5 steps": {"feature_cache": 5},
    "fp8 linears": {"linear": "fp8"},
    "20 steps dpmpp_2m, [0.2, 0.6], every 2": {
        "steps": 20, "solver": "dpmpp_2m", "guidance_interval": (0.2, 0.6), "feature_cache": 2,
    },
}  # fmt: skip


def matrix_flops(device: str, dtype: torch.dtype) -> float:
    """FLOP a second of the best of several products of large square matrices."""
    n = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        best = min(best, timed(lambda: a @ b, device))
    return 2 * n**3 / best


def timed(work: Callable[[], Any], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    work()
    return (time.process_time() - start) / torch.get_num_threads()


class Networks:
    """Unet and autoencoder of one dtype, called with any switches."""

    def __init__(self, full: bool, device: str, dtype: str) -> None:
        self.device, self.dtype = device, DTYPES[dtype]
        if not full:
            one = open_bundle("tiny").versatile(device, dtype)
            self.unet, self.vae, self.table = one.unet, one.vae, one.alphas_cumprod
            self.nothing = one.unconditional_vision, one.unconditional_text
            return
        with torch.device("meta"):
            unet, vae = build_dual_unet(VERSATILE_UNET), AutoencoderKL.from_config(KL_F8)
        self.unet, self.vae = (self._filled(module) for module in (unet, vae))
        self.table = DDIMScheduler(**SCHEDULER).alphas_cumprod
        self.nothing = tuple(0.1 * torch.randn(1, n, 768, device=device) for n in (257, 77))

    def _filled(self, module: Any) -> Any:
        module = module.to(self.dtype).to_empty(device=self.device).eval().requires_grad_(False)
        for name, value in module.named_parameters():
            value.data.normal_(0, 0.02) if value.ndim > 1 else value.data.fill_(1.0 if name.endswith("weight") else 0)
        return module

    def called(self, speed: SpeedSettings) -> VersatileDiffusion:
        """The networks with these switches; earlier ones are undone."""
        for module in (self.unet, self.vae):
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-arg]
        self.vae.set_attn_processor(AttnProcessor2_0())
        return VersatileDiffusion(self.unet, self.vae, self.table, *self.nothing, speed)


def inputs(network: VersatileDiffusion, n: int) -> dict[str, Any]:
    """n images' inputs, in memory."""
    draw = torch.Generator().manual_seed(1)
    size = network.image_size
    given = {
        name: 0.1 * torch.randn(n, *like.shape[1:], generator=draw)
        for name, like in (("vision", network.unconditional_vision), ("text", network.unconditional_text))
    }
    noise = [torch.randn(n, *network.latent_shape, generator=draw) for _ in range(2)]
    guess = torch.randint(0, 256, (n, size, size, 3), generator=draw, dtype=torch.uint8)
    return {"guess_u8": guess, **given, "start_noise": noise[0], "encode_noise": noise[1]}


def cases(batches: list[int], compiled: list[str]) -> Iterator[tuple[str, SpeedSettings, int]]:
    """(name, switches, batch size): the plain loop first."""
    every = {name: value for one in SWITCHES.values() for name, value in one.items()}
    largest = max(batches)
    for batch in batches:
        yield "plain", PLAIN, batch
    for name, one in SWITCHES.items():
        yield f"plain + {name}", PLAIN.model_copy(update=one), 1
    for batch in batches:
        yield "all", PLAIN.model_copy(update=every), batch
    for name, one in SWITCHES.items():
        less = {key: value for key, value in every.items() if key not in one}
        yield f"all - {name}", PLAIN.model_copy(update=less), largest
    for name in compiled:
        for batch in sorted({1, largest}):
            yield f"all + {name}", PLAIN.model_copy(update=every | COMPILED[name]), batch


def sweep(asked: argparse.Namespace, options: PaintOptions) -> tuple[list[dict[str, Any]], dict[str, float], float]:
    rows: list[dict[str, Any]] = []
    rates: dict[str, float] = {}
    flop = 0.0
    for dtype in asked.dtypes:
        networks = Networks(asked.full, asked.device, dtype)
        rates[dtype] = matrix_flops(asked.device, DTYPES[dtype])
        for name, speed, batch in cases(sorted(asked.batch_sizes), asked.compile):
            network = networks.called(speed)
            given = inputs(network, batch)
            if not flop:
                with FlopCounterMode(display=False) as counter:
                    network.paint(**inputs(network, 1), options=options)
                flop = float(counter.get_total_flops())
            row = {"switches": name, "dtype": dtype, "batch_size": batch, "speed": speed.model_dump()}
            try:
                row |= measure(network, given, options, batch, asked)
            except (torch.OutOfMemoryError, InputError) as error:
                print(f"{name}, {dtype}, batch {batch}: {str(error).splitlines()[0]}")
                continue
            row["fraction"] = flop * row["images_a_second"] / rates[dtype]
            rows.append(row)
            print(line(row, rows[0]), flush=True)
            del network
            gc.collect()
        rates[dtype] = max(rates[dtype], matrix_flops(asked.device, DTYPES[dtype]))
    return rows, rates, flop


def measure(network: Any, given: Any, options: PaintOptions, batch: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds an image of the quickest of several batches, after one that does not count."""
    cuda = asked.device.startswith("cuda")
    network.paint(**given, options=options)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    rounds = max(1, round(asked.images / batch))
    seconds = min(timed(lambda: network.paint(**given, options=options), asked.device) for _ in range(rounds)) / batch
    return {
        "images_a_second": 1 / seconds,
        "seconds_an_image": seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def line(row: dict[str, Any], plain: dict[str, Any]) -> str:
    peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f} GiB"
    return (
        f"| {row['switches']} | {row['dtype']} | {row['batch_size']} | {row['images_a_second']:.2f} | "
        f"{row['seconds_an_image']:.4f} | {row['images_a_second'] / plain['images_a_second']:.2f} x | "
        f"{row['fraction']:.0%} | {peak} |"
    )


HEAD = (
    "| switches | dtype | batch | images/s | s/image | against plain at 1 | of the matrix rate | peak |\n"
    + "|---" * 8
    + "|"
)


def modes(count: int, seed: int = 3) -> list[dict[str, Any]]:
    """The approximate modes on scenes painted from their own latents, by the tiny bundle."""
    scenes = [scene(3_000_000 + index, seed) for index in range(count)]
    photos, ids = np.stack([one.image for one in scenes]), [str(index) for index in range(count)]
    extractor = FeatureExtractor("tiny")
    latents = extractor(photos, [list(one.captions) for one in scenes], ids)
    guesses = Painter("tiny").guess(latents["vdvae"], "benchmark", ids)
    shown = extractor.vision_embeddings(photos)[:, 0]
    small = None
    rows: list[dict[str, Any]] = []
    for name, change in MODES.items():
        painter = Painter("tiny", options=PaintOptions(**change))  # type: ignore[arg-type]
        painter.paint(guesses[:2], latents["clip_vision"][:2], latents["clip_text"][:2], "benchmark", ids[:2])
        made = []
        with FlopCounterMode(display=False) as counter:
            painter.paint(guesses[:1], latents["clip_vision"][:1], latents["clip_text"][:1], "benchmark", ids[:1])
        start = time.process_time()
        for at in range(0, count, 8):
            here = slice(at, at + 8)
            conditions = latents["clip_vision"][here], latents["clip_text"][here]
            made.append(painter.paint(guesses[here], *conditions, "benchmark", ids[here]))
        seconds = (time.process_time() - start) / torch.get_num_threads()
        images = np.concatenate(made)
        if small is None:
            small = [image_metrics.at_size(photo, *images.shape[1:3]) for photo in photos]
        pixels = [image_metrics.pixcorr(a, b) for a, b in zip(small, images, strict=True)]
        seen = extractor.vision_embeddings(images)[:, 0]
        row = {
            "mode": name,
            "seconds_an_image": seconds / count,
            "flop_an_image": float(counter.get_total_flops()),
            "PixCorr": float(np.nanmean(pixels)),
            "SSIM": float(np.mean([image_metrics.ssim(a, b) for a, b in zip(small, images, strict=True)])),
            "CLIP two-way": float(image_metrics.two_way(shown, seen).mean()),
        }
        rows.append(row)
        print(
            f"| {name} | {row['seconds_an_image']:.4f} | "
            f"{rows[0]['seconds_an_image'] / row['seconds_an_image']:.2f} x | "
            f"{rows[0]['flop_an_image'] / row['flop_an_image']:.2f} x | "
            f"{row['PixCorr']:.3f} | {row['SSIM']:.3f} | {row['CLIP two-way']:.3f} |",
            flush=True,
        )
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Images a second by batch size, one curve a dtype and set of switches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name in ("plain", "all", *(f"all + {name}" for name in COMPILED)):
        for dtype in dict.fromkeys(row["dtype"] for row in rows):
            points = [
                (r["batch_size"], r["images_a_second"]) for r in rows if (r["switches"], r["dtype"]) == (name, dtype)
            ]
            if points:
                axes.plot(*zip(*sorted(points), strict=True), "o-", label=f"{name}, {dtype}")
    axes.set(xlabel="batch size", ylabel="images a second", xscale="log", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="networks of the published size, random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["float32"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--compile", nargs="*", choices=list(COMPILED), default=[], help="also measure these")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=16, help="painted for each row, at least one batch")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--no-sweep", action="store_true")
    parser.add_argument("--modes", type=int, nargs="?", const=48, help="score approximate modes on so many scenes")
    parser.add_argument("--runtime", action="store_true", help="the stage against a bare loop")
    parser.add_argument("--actors", nargs="*", type=int, default=[], help="numbers of Ray actors that sleep")
    parser.add_argument("--pause", type=float, default=3.7, help="seconds an actor sleeps for a batch of 32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    cuda = asked.device.startswith("cuda")
    device = torch.cuda.get_device_name() if cuda else f"CPU, {asked.threads} threads"
    machine: dict[str, Any] = {"device": device, "cores": os.cpu_count()}
    found: dict[str, Any] = {"kind": "diffusion", "machine": machine, "bundle": "full" if asked.full else "tiny"}
    if not asked.no_sweep:
        print(HEAD)
        rows, rates, flop = sweep(asked, PaintOptions(steps=asked.steps))
        machine["matrix_flops"] = rates
        found |= {"flop_an_image": flop, "rows": rows}
        told = ", ".join(f"{rate / 1e12:.3f} TFLOP/s in {dtype}" for dtype, rate in rates.items())
        print(f"{flop / 1e12:.4f} TFLOP an image; matrices of this machine: {told}")
        if asked.plot:
            plot(rows, asked.plot)
    if asked.modes:
        print("\n| mode | s/image | faster | fewer FLOP | PixCorr | SSIM | CLIP two-way |\n" + "|---" * 7 + "|")
        found["modes"] = modes(asked.modes)
    if asked.runtime:
        found["runtime"] = diffusion_runtime.overhead()
    if asked.actors:
        found["actors"] = diffusion_runtime.scaling(asked.actors, asked.pause)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
