"""Draws of noise for several items, and the checks of what is handed in with them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bdflow import random
from bdflow.errors import InputError, counted
from bdflow.models.threads import over_threads

Draw = Callable[..., np.ndarray]
Item = tuple[str | int, ...]


def stack(draw: Draw, shape: tuple[int, ...], seed: int, purpose: str, items: Sequence[Item]) -> Tensor:
    """(n, *shape) draws, each item from its own key (purpose, *item), over the threads that are allowed."""
    found = np.empty((len(items), *shape), np.float32)

    def one(number: int) -> None:
        found[number] = draw(shape, seed, purpose, *items[number])

    over_threads(one, range(len(items)))
    return torch.from_numpy(found)


def items_of(subject: str, stimulus_ids: Sequence[str], pictures: Sequence[int] | None = None) -> list[Item]:
    """What names the noise of each row: subject, stimulus and, for pictures after the first, the picture's number."""
    numbers = [0] * len(stimulus_ids) if pictures is None else pictures
    return [
        (subject, str(stimulus_id), int(number)) if number else (subject, str(stimulus_id))
        for stimulus_id, number in zip(stimulus_ids, numbers, strict=True)
    ]


def draws_of(
    shapes: Sequence[tuple[int, ...]], seed: int, purpose: str, before: Item, stimulus_ids: Sequence[str]
) -> list[Tensor]:
    """Standard-normal draws, one (n, c, h, w) tensor a block; stimuli over the threads that are allowed."""
    found = [np.empty((len(stimulus_ids), *shape), np.float32) for shape in shapes]

    def one(number: int) -> None:
        for block, shape in enumerate(shapes):
            key = (*before, str(stimulus_ids[number]), block)
            found[block][number] = random.normal(shape, seed, purpose, *key)

    over_threads(one, range(len(stimulus_ids)))
    return [torch.from_numpy(values) for values in found]


def uint8_images(what: str, images: np.ndarray, n: int) -> np.ndarray:
    """The images (n, h, h, 3); InputError if they are not uint8 or not n."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != n:
        raise InputError(
            what,
            found=f"{images.dtype} of shape {images.shape}",
            expected=f"uint8 of shape ({n}, h, h, 3)",
            action="hand in the pictures as uint8, one for each stimulus_id.",
        )
    return images


def one_row_each(what: str, array: np.ndarray, n: int) -> None:
    """InputError unless there are n rows."""
    if len(array) != n:
        raise InputError(
            what,
            found=counted(len(array), "row"),
            expected=f"{n}, one for each stimulus_id",
            action="align them by stimulus_id.",
        )
