"""Predicted latents to guesses and reconstructions, in one go or in the parts that overlap: reading inputs needs no
network, painting them nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bdflow import random
from bdflow.models.diffusion.draws import draws_of, items_of, one_row_each, stack
from bdflow.models.diffusion.inputs import Joined, PaintInputs, PictureInputs
from bdflow.models.vdvae import VDVAE
from bdflow.models.versatile.unet import VersatileDiffusion


@dataclass(frozen=True)
class GuessInputs(Joined):
    """What guesses are decoded from: latents (n, D) and the VDVAE's draws."""

    latents: Tensor
    mixture: Tensor
    logistic: Tensor
    prior: list[Tensor]


class Painter(PictureInputs):
    """The VDVAE's decoder and Versatile Diffusion of a bundle, predictions to guesses and
    reconstructions; parameters as of `PictureInputs`.
    """

    own_guess_dtype = "float32"

    @property
    def guess_size(self) -> int:
        return self.bundle.guess_size

    @property
    def image_size(self) -> int:
        return self.bundle.image_size

    @cached_property
    def vdvae(self) -> VDVAE:
        """The VDVAE without its encoder."""
        network = self.bundle.vdvae(self.device, self.guess_dtype)
        del network.encoder
        return network

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.versatile.latent_shape

    @cached_property
    def versatile(self) -> VersatileDiffusion:
        """The diffusion model."""
        return self._settled(self.bundle.versatile(self.device, self.dtype, self.speed))

    @property
    def diffusion(self) -> VersatileDiffusion:
        return self.versatile

    def guess(self, latents: np.ndarray, subject: str, stimulus_ids: Sequence[str]) -> np.ndarray:
        """Guesses (n, g, g, 3) uint8 of predicted VDVAE latents (n, D); g = `guess_size`.

        Raises InputError for latents of another shape.
        """
        return self.decode_guesses(self.guess_inputs(latents, subject, stimulus_ids))

    def guess_inputs(self, latents: np.ndarray, subject: str, stimulus_ids: Sequence[str]) -> GuessInputs:
        """What `decode_guesses` needs; arguments and errors as of `guess`."""
        one_row_each("latents", latents, len(stimulus_ids))
        (mixture_shape, logistic_shape), items = self.vdvae.uniform_shapes, items_of(subject, stimulus_ids)
        return GuessInputs(
            self._pinned(torch.as_tensor(latents)),
            self._pinned(stack(random.uniform, mixture_shape, self.seed, "mixture component", items)),
            self._pinned(stack(random.uniform, logistic_shape, self.seed, "mixture value", items)),
            [
                self._pinned(d)
                for d in draws_of(self.vdvae.prior_shapes, self.seed, "vdvae prior", (subject,), stimulus_ids)
            ],
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
        stimulus_ids: Sequence[str],
    ) -> np.ndarray:
        """Reconstructions (n, S, S, 3) uint8; S = `image_size`.

        `guesses` (n, g, g, 3) uint8, brought to S by PIL bicubic; `vision`, `text` (n, T, F) predictions.
        What may be absent, and what then stands in for it: see `VersatileDiffusion.paint`. Raises InputError
        for wrong shapes, or when both conditions are absent.
        """
        return self.paint_prepared(self.paint_inputs(guesses, vision, text, subject, stimulus_ids))

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
