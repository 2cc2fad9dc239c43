"""Predicted z and c to pictures, by Stable Diffusion: the painter of Takagi & Nishimoto (2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bdflow.models.diffusion.draws import one_row_each
from bdflow.models.diffusion.inputs import Joined, PaintInputs, PictureInputs
from bdflow.models.stable_diffusion.unet import StableDiffusion


@dataclass(frozen=True)
class ZInputs(Joined):
    """What guesses are decoded from: scaled latents z (n, c, g, g)."""

    z: Tensor


class StablePainter(PictureInputs):
    """Stable Diffusion of a bundle, z to guesses, guesses and c to reconstructions; parameters: see `PictureInputs`."""

    @property
    def guess_size(self) -> int:
        return self.bundle.z_size

    @property
    def image_size(self) -> int:
        return self.bundle.stable_size

    @cached_property
    def network(self) -> StableDiffusion:
        """The diffusion model with its autoencoder."""
        return self._settled(self.bundle.stable(self.device, self.dtype, self.speed))

    @property
    def diffusion(self) -> StableDiffusion:
        return self.network

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.network.latent_shape

    def guess_inputs(self, latents: np.ndarray, subject: str, stimulus_ids: Sequence[str]) -> ZInputs:
        """What `decode_guesses` needs, of z (n, D) flattened channel by channel. Raises InputError for other rows."""
        one_row_each("latents", latents, len(stimulus_ids))
        return ZInputs(self._pinned(torch.as_tensor(latents).reshape(len(latents), *self.bundle.z_shape)))

    def decode_guesses(self, inputs: ZInputs) -> np.ndarray:
        """Guesses (n, g, g, 3) uint8."""
        if len(inputs.z) == 0:
            return np.zeros((0, self.guess_size, self.guess_size, 3), np.uint8)
        return self.batches.guess.run(lambda z: torch.from_numpy(self.network.guess(z)), inputs.z).numpy()

    def paint_prepared(self, inputs: PaintInputs) -> np.ndarray:
        """Reconstructions (n, S, S, 3) uint8; what of picture and text is absent: see `StableDiffusion.paint`."""
        if len(inputs.start) == 0:
            return np.zeros((0, self.image_size, self.image_size, 3), np.uint8)
        painted = self.network.paint(
            inputs.guesses,
            inputs.text,
            start_noise=inputs.start,
            encode_noise=inputs.encode,
            options=self.options,
            batches=self.batches,
        )
        return painted.numpy()
