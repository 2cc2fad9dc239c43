"""Latents for simulated datasets without any network: tests that need no bundle use them."""

import numpy as np
from PIL import Image

_COLOURS = ("red", "blue", "green", "yellow")
_PLACES = ("sea", "field", "room", "night", "sky")
_KINDS = ("face", "person", "word", "house", "tower", "church", "ball", "car", "cat", "boat")
_WORDS = (*_COLOURS, *_PLACES, *_KINDS)


def stand_in_features(images: np.ndarray, captions: list[list[str]], stimulus_ids: list[str]) -> dict[str, np.ndarray]:
    """Small pictures for vdvae (n, 108), counts of words for clip_text (n, 1, 19), both for clip_vision (n, 1, 127)."""
    small = [np.asarray(Image.fromarray(image).resize((6, 6)), np.float32).ravel() / 255 for image in images]
    texts = [" ".join(sentences).lower() for sentences in captions]
    counts = np.array([[text.count(word) for word in _WORDS] for text in texts], np.float32)
    pixels = np.stack(small)
    both = np.hstack([counts, pixels])
    return {"vdvae": pixels, "clip_vision": both[:, None], "clip_text": counts[:, None]}
