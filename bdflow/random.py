"""Random numbers keyed by what they are for, so that results never depend on batches, order, workers or retries.

Every draw comes from its own Philox stream (a counter-based generator). The 128-bit key is a hash of the study's
seed, the purpose of the draw and the item it is for; nothing is ever drawn from a shared or sequential stream.
"""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *item: str | int) -> np.random.Generator:
    """The generator of one item, e.g. ``generator(0, "prior", "subj01", 4831)``; the same key, the same draws."""
    text = "\x1f".join([str(int(seed)), purpose, *(f"{type(part).__name__}:{part}" for part in item)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def normal(shape: tuple[int, ...], seed: int, purpose: str, *item: str | int) -> np.ndarray:
    """Standard normal float32 array of `shape` for one item; drawn on the CPU, so the same on every device."""
    return generator(seed, purpose, *item).standard_normal(shape, dtype=np.float32)


def uniform(shape: tuple[int, ...], seed: int, purpose: str, *item: str | int) -> np.ndarray:
    """Uniform float32 array on [0, 1) of `shape` for one item."""
    return generator(seed, purpose, *item).random(shape, dtype=np.float32)
