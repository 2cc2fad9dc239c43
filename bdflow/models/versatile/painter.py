"""Predicted latents to guesses and reconstructions, in one go or in the parts that overlap: reading inputs needs no
network, painting them nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdflow import random
from bdflow.config import PaintOptions, SpeedSettings
from bdflow.models.clip import resize
from bdflow.models.config import BatchSizes
from bdflow.models.diffusion.batches import pinned
from bdflow.models.diffusion.draws import draws_of, one_row_each, stack, uint8_images
from bdflow.models.diffusion.img2img import PaintBatches
from bdflow.models.vdvae import VDVAE
from bdflow.models.versatile.unet import VersatileDiffusion
from bdflow.models.weights.bundle import open_bundle

BICUBIC = Image.Resampling.BICUBIC


class _Joined:
    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Several items' inputs as those of one batch; all have the same parts."""
        return cls(**{field.name: _cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class GuessInputs(_Joined):
    """What guesses are decoded from: latents (n, D) and the VDVAE's draws."""

    latents: Tensor
    mixture: Tensor
    logistic: Tensor
    prior: list[Tensor]


@dataclass(frozen=True)
class PaintInputs(_Joined):
    """What is painted: guesses at their final size (n, S, S, 3), conditions (n, T, F), noise (n, *latent_shape)."""

    guesses: Tensor | None
    vision: Tensor | None
    text: Tensor | None
    start: Tensor
    encode: Tensor


class Painter:
    """The VDVAE's decoder and Versatile Diffusion of a bundle, predictions to guesses and
    reconstructions. Each network is loaded when it is first needed, and kept.

    Parameters
    ----------
    bundle : `tiny` or a directory.
    device, dtype : where and in which precision the networks run.
    seed : of all noise.
    options : steps, strength, guidance, mixing, ...
    speed : how the networks are called.
    sizes : images a batch in each stage; by default all that are handed in. A batch that does not fit into memory is
        made smaller, with a warning in the log; where `sizes` are fixed, in half precision, it is an error, since
        pictures painted in smaller batches differ from those before.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int = 0,
        options: PaintOptions | None = None,
        speed: SpeedSettings | None = None,
        sizes: BatchSizes | None = None,
    ) -> None:
        self.bundle, self.device, self.dtype = open_bundle(bundle), device, dtype
        self.seed, self.options, self.speed = seed, options or PaintOptions(), speed or SpeedSettings()
        self.batches = PaintBatches(sizes, halve=sizes is None or not sizes.fixed or dtype == "float32")
        self.guess_size, self.image_size = self.bundle.guess_size, self.bundle.image_size
        self.spaces = self.bundle.spaces

    @cached_property
    def vdvae(self) -> VDVAE:
        """The VDVAE without its encoder."""
        network = self.bundle.vdvae(self.device, self.dtype)
        del network.encoder
        return network

    @cached_property
    def versatile(self) -> VersatileDiffusion:
        """The diffusion model."""
        return self.bundle.versatile(self.device, self.dtype, self.speed)

    def guess(self, latents: np.ndarray, subject: str, nsd_ids: Sequence[int]) -> np.ndarray:
        """Guesses (n, g, g, 3) uint8 of predicted VDVAE latents (n, D); g = `guess_size`.

        Raises InputError for latents of another shape.
        """
        return self.decode_guesses(self.guess_inputs(latents, subject, nsd_ids))

    def guess_inputs(self, latents: np.ndarray, subject: str, nsd_ids: Sequence[int]) -> GuessInputs:
        """What `decode_guesses` needs; arguments and errors as of `guess`."""
        one_row_each("latents", latents, len(nsd_ids))
        mixture_shape, logistic_shape = self.vdvae.uniform_shapes
        return GuessInputs(
            self._pinned(torch.as_tensor(latents)),
            self._pinned(stack(random.uniform, mixture_shape, self.seed, "mixture component", (subject,), nsd_ids)),
            self._pinned(stack(random.uniform, logistic_shape, self.seed, "mixture value", (subject,), nsd_ids)),
            [self._pinned(d) for d in draws_of(self.vdvae.prior_shapes, self.seed, "vdvae prior", (subject,), nsd_ids)],
        )

    def decode_guesses(self, inputs: GuessInputs) -> np.ndarray:
        """Guesses (n, g, g, 3) uint8."""
        if len(inputs.latents) == 0:
            return np.zeros((0, self.guess_size, self.guess_size, 3), np.uint8)

        def decode(latents: Tensor, mixture: Tensor, logistic: Tensor, *prior: Tensor) -> Tensor:
            return self.vdvae.decode(latents, prior, mixture, logistic).cpu()

        made = self.batches.guess.run(decode, inputs.latents, inputs.mixture, inputs.logistic, *inputs.prior)
        return made.numpy()

    def paint(
        self,
        guesses: np.ndarray | None,
        vision: np.ndarray | None,
        text: np.ndarray | None,
        subject: str,
        nsd_ids: Sequence[int],
    ) -> np.ndarray:
        """Reconstructions (n, S, S, 3) uint8; S = `image_size`.

        `guesses` (n, g, g, 3) uint8, brought to S by PIL bicubic; `vision`, `text` (n, T, F) predictions.
        What may be absent, and what then stands in for it: see `VersatileDiffusion.paint`. Raises InputError
        for wrong shapes, or when both conditions are absent.
        """
        return self.paint_prepared(self.paint_inputs(guesses, vision, text, subject, nsd_ids))

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
        shape = self.versatile.latent_shape
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

    def paint_prepared(self, inputs: PaintInputs) -> np.ndarray:
        """Reconstructions (n, S, S, 3) uint8."""
        if len(inputs.start) == 0:
            return np.zeros((0, self.image_size, self.image_size, 3), np.uint8)
        painted = self.versatile.paint(
            inputs.guesses,
            inputs.vision,
            inputs.text,
            start_noise=inputs.start,
            encode_noise=inputs.encode,
            options=self.options,
            batches=self.batches,
        )
        return painted.numpy()

    def _pinned(self, values: Tensor) -> Tensor:
        return pinned(values, self.device)


def _cat(parts: Sequence[Any]) -> Any:
    if parts[0] is None:
        return None
    if isinstance(parts[0], list):
        return [torch.cat(together) for together in zip(*parts, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
