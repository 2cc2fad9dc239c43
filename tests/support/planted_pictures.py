"""Small pictures for tests of scores, and ways to save them."""

from pathlib import Path

import numpy as np
from PIL import Image


def planted(n: int = 5, side: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Photos and noisy copies of them, (n, side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    photos = rng.integers(0, 256, (n, side, side, 3), np.uint8)
    made = np.clip(photos + rng.integers(-40, 60, photos.shape), 0, 255).astype(np.uint8)
    return photos, made


def save(folder: Path, images: np.ndarray, suffix: str = ".png", names: list[str] | None = None) -> Path:
    """A file for each image, named face0, face1, ... or as `names` says."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        name = names[number] if names else f"face{number}"
        Image.fromarray(image).save(folder / f"{name}{suffix}")
    return folder
