"""Pictures to another size. Light: no network is loaded for it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from bdflow.models.threads import over_threads


def resize(images_u8: np.ndarray, size: int, resample: Image.Resampling) -> np.ndarray:
    """uint8 images (n, h, w, 3) to (n, size, size, 3) by PIL, one by one, over the threads that are allowed."""
    found = np.empty((len(images_u8), size, size, 3), np.uint8)

    def one(number: int) -> None:
        found[number] = np.asarray(Image.fromarray(images_u8[number]).resize((size, size), resample))

    over_threads(one, range(len(found)))
    return found
