"""The target spaces of Takagi & Nishimoto (2023): z, of Stable Diffusion's autoencoder, and c, of its text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bdflow.errors import InputError
from bdflow.models.encoders import BundleEncoder, CLIPTextEncoder, Setup, Stimuli

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from torch import Tensor

    from bdflow.models.stable_diffusion.text import StableText


class SDVAEEncoder(BundleEncoder):
    """z: the autoencoder's latent (c, g, g), scaled, flattened channel by channel, of the picture brought to
    `Bundle.z_size` by PIL Lanczos (published: 320 px, 4 x 40 x 40 = 6,400 values).

    Parameters
    ----------
    latent : `sample` draws z from its posterior (the authors), `mean` takes the posterior mean.
    """

    network_name = "sd_vae"
    draws_noise = True

    def __init__(self, setup: Setup, latent: str = "sample") -> None:
        super().__init__(setup)
        if latent not in ("sample", "mean"):
            raise InputError(
                "latent of the autoencoder", found=repr(latent), expected="sample or mean", action="choose one of them."
            )
        self.latent = latent

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bundle.shape_of("sd_vae")

    @property
    def layers(self) -> tuple[tuple[int, ...], ...]:
        return (self.bundle.z_shape,)

    def inputs(self) -> Mapping[str, str]:
        return {**super().inputs(), "pixels": str(self.bundle.z_size)}

    @cached_property
    def network(self) -> AutoencoderKL:
        """The autoencoder."""
        return self.bundle.load("sd_vae", self.setup.device, self.setup.dtype)  # type: ignore[return-value]

    def load(self) -> None:
        self.network  # noqa: B018

    def prepare(self, stimuli: Stimuli) -> tuple[Tensor, Tensor | None]:
        import torch
        from PIL import Image

        from bdflow.models.diffusion.batches import pinned
        from bdflow.models.diffusion.draws import draws_of, uint8_images
        from bdflow.models.resizing import resize

        images, device = uint8_images("stimuli", stimuli.images, len(stimuli.ids)), self.setup.device
        pictures = torch.from_numpy(resize(images, self.bundle.z_size, Image.Resampling.LANCZOS))
        if self.latent == "mean":
            return pinned(pictures, device), None
        (draws,) = draws_of([self.bundle.z_shape], self.setup.seed, "sd_vae posterior", (), stimuli.ids.tolist())
        return pinned(pictures, device), pinned(draws, device)

    def work(self, prepared: tuple[Tensor, Tensor | None]) -> np.ndarray:
        import torch

        from bdflow.models.diffusion.img2img import latents_of

        network = self.network  # in inference mode, files in half precision are not read into float32

        @torch.inference_mode()
        def encode(here: Tensor, noise: Tensor | None) -> Tensor:
            found = latents_of(network, here, noise, self.latent)  # type: ignore[arg-type]
            return found.flatten(1).cpu()

        return self.batches.run(encode, *prepared).numpy()


class SDTextEncoder(CLIPTextEncoder):
    """c: every token of the text encoder after its last layer norm, averaged over a stimulus's captions."""

    network_name = "sd_text"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bundle.shape_of("sd_text")

    @cached_property
    def network(self) -> StableText:  # type: ignore[override]
        """The text encoder."""
        return self.bundle.sd_text(self.setup.device, self.setup.dtype)
