"""What every painter that starts from pictures does beside its networks: guesses resized, noise drawn, parts joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdflow import random
from bdflow.models.clip import resize
from bdflow.models.diffusion.batches import pinned
from bdflow.models.diffusion.draws import one_row_each, stack, uint8_images

BICUBIC = Image.Resampling.BICUBIC


class Joined:
    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Several items' inputs as those of one batch; all have the same parts."""
        return cls(**{field.name: _cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class PaintInputs(Joined):
    """What is painted: guesses at their final size (n, S, S, 3), conditions (n, T, F), noise (n, *latent_shape)."""

    guesses: Tensor | None
    vision: Tensor | None
    text: Tensor | None
    start: Tensor
    encode: Tensor


class PictureInputs:
    """A painter's inputs of a block, made in another thread beside its work.

    Attributes
    ----------
    device, seed : where its networks run; of all noise.
    image_size : pixels a side of a reconstruction.
    """

    device: str
    seed: int
    image_size: int

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of what is denoised."""
        raise NotImplementedError

    def paint_inputs(
        self,
        guesses: np.ndarray | None,
        vision: np.ndarray | None,
        text: np.ndarray | None,
        subject: str,
        nsd_ids: Sequence[int],
    ) -> PaintInputs:
        """What `paint_prepared` needs: guesses resized, noise drawn; arguments and errors as of `paint`."""
        resized = None if guesses is None else self.enlarged(guesses, len(nsd_ids))
        for name, array in (("vision", vision), ("text", text)):
            if array is not None:
                one_row_each(name, array, len(nsd_ids))
        shape = self.latent_shape
        return PaintInputs(
            resized,
            None if vision is None else self._pinned(torch.as_tensor(vision)),
            None if text is None else self._pinned(torch.as_tensor(text)),
            self._pinned(stack(random.normal, shape, self.seed, "diffusion start", (subject,), nsd_ids)),
            self._pinned(stack(random.normal, shape, self.seed, "guess posterior", (subject,), nsd_ids)),
        )

    def enlarged(self, guesses: np.ndarray, n: int) -> Tensor:
        """n guesses, uint8, at the size of reconstructions."""
        return self._pinned(torch.from_numpy(resize(uint8_images("guesses", guesses, n), self.image_size, BICUBIC)))

    def _pinned(self, values: Tensor) -> Tensor:
        return pinned(values, self.device)


def _cat(parts: Sequence[Any]) -> Any:
    if parts[0] is None:
        return None
    if isinstance(parts[0], list):
        return [torch.cat(together) for together in zip(*parts, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
