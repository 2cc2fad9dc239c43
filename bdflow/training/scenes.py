"""Scenes to train and to judge the tiny bundle with: drawn once, kept as arrays of the sizes the networks take."""

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bdflow.models.resizing import resize
from bdflow.simulation.scenes import scene
from bdflow.training.bundle import CLIP_VISION, VAE, VDVAE

FIRST_ID = {"train": 1_000_000, "held_out": 2_000_000}
SCENE_SIZE = 425
BLOCK = 100


@dataclass(frozen=True)
class Scenes:
    """n scenes: their ids, uint8 pictures (n, s, s, 3) of the sizes that the VDVAE, the painter and CLIP take, and
    five captions each.
    """

    ids: list[int]
    guess: np.ndarray
    painted: np.ndarray
    clip: np.ndarray
    captions: list[list[str]]

    def first(self, n: int) -> "Scenes":
        """The first n of them."""
        return Scenes(self.ids[:n], self.guess[:n], self.painted[:n], self.clip[:n], self.captions[:n])


def load_scenes(work: Path, split: str, count: int, processes: int = 1) -> Scenes:
    """The first `count` scenes of a split (`train`, `held_out`), drawn into `work` unless they are there."""
    folder = work / f"{split}-{count}"
    if not folder.is_dir():
        ids = [FIRST_ID[split] + index for index in range(count)]
        blocks = [ids[start : start + BLOCK] for start in range(0, count, BLOCK)]
        if processes > 1:
            with ProcessPoolExecutor(processes) as pool:
                drawn = list(pool.map(_draw, blocks))
        else:
            drawn = [_draw(block) for block in blocks]
        partial = work / f"{split}-{count}.{os.getpid()}"
        partial.mkdir(parents=True)
        for index, name in enumerate(("guess", "painted", "clip")):
            np.save(partial / f"{name}.npy", np.concatenate([block[index] for block in drawn]))
        (partial / "captions.json").write_text(
            json.dumps([row for block in drawn for row in block[3]]), encoding="utf-8"
        )
        try:
            partial.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("guess", "painted", "clip")}
    captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    return Scenes([FIRST_ID[split] + index for index in range(count)], captions=captions, **arrays)


def _draw(ids: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[list[str]]]:
    drawn = [scene(number, 0, SCENE_SIZE) for number in ids]
    images = np.stack([one.image for one in drawn])
    guess = resize(images, int(VDVAE["image_size"]), Image.Resampling.BILINEAR)  # type: ignore[call-overload]
    double = resize(images, 2 * int(VAE["sample_size"]), Image.Resampling.BILINEAR)  # type: ignore[call-overload]
    painted = resize(double, int(VAE["sample_size"]), Image.Resampling.BILINEAR)  # type: ignore[call-overload]
    clip = resize(double, int(CLIP_VISION["image_size"]), Image.Resampling.BICUBIC)  # type: ignore[call-overload]
    return guess, painted, clip, [one.captions for one in drawn]
