"""The approximate modes of painting: how much faster, and what scores become, by the tiny bundle."""

import time
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from bdflow.config import PaintOptions
from bdflow.metrics import image_metrics
from bdflow.models.latents import FeatureExtractor
from bdflow.models.versatile.painter import Painter
from bdflow.simulation.scenes import scene

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
