"""Pictures to another size. Light: no network is loaded for it."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize(images_u8: np.ndarray, size: int, resample: Image.Resampling) -> np.ndarray:
    """uint8 images (n, h, w, 3) to (n, size, size, 3) by PIL, one by one."""
    resized = [np.asarray(Image.fromarray(image).resize((size, size), resample)) for image in images_u8]
    return np.stack(resized) if resized else np.zeros((0, size, size, 3), np.uint8)
