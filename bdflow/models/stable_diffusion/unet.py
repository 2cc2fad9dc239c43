"""Stable Diffusion 1: img2img from a predicted latent z, under a predicted text condition c.

Takagi & Nishimoto, "High-resolution image reconstruction with latent diffusion models from human brain activity" (CVPR
2023). R. Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022). The UNet and its
transformers come from diffusers.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from bdflow.config import PaintOptions
from bdflow.errors import InputError
from bdflow.models.diffusion.img2img import Given, Img2Img, PaintBatches, Schedule
from bdflow.models.diffusion.speed import refuse_both
from bdflow.models.diffusion.unet import transformed
from bdflow.models.resizing import resize

TAKAGI = PaintOptions(steps=50, strength=0.8, guidance_scale=5.0)
"""How the authors' script paints (protocol of the paper's code, e187d4b)."""


class TextTransformer(nn.Module):
    """A transformer that takes its condition from `cross_attention_kwargs`: `text` (n, T, F)."""

    def __init__(self, text: Transformer2DModel) -> None:
        super().__init__()
        self.text = text

    def forward(
        self, hidden_states: Tensor, *, cross_attention_kwargs: Mapping[str, Any], **unused: object
    ) -> tuple[Tensor]:
        text = cross_attention_kwargs["text"]
        return (transformed(self.text, hidden_states, text),)


def build_text_unet(config: Mapping[str, object]) -> UNet2DConditionModel:
    """A UNet2DConditionModel of this diffusers configuration with a TextTransformer at each attention."""
    unet = UNet2DConditionModel.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    for name, module in list(unet.named_modules()):
        if isinstance(module, Transformer2DModel):
            parent, _, index = name.rpartition(".")
            unet.get_submodule(parent)[int(index)] = TextTransformer(module)  # type: ignore[operator]
    return unet


class StableDiffusion(Img2Img):
    """Paints from a latent z and a text condition c; `nothing` holds `text`, the embedding of the empty string.

    A picture is made in two passes of the autoencoder: z is decoded at its own size and brought to `image_size`
    (`guess`), and from that picture img2img starts.
    """

    @torch.inference_mode()
    def guess(self, z: np.ndarray | Tensor) -> np.ndarray:
        """uint8 pictures (n, G, G, 3) of scaled latents z (n, c, g, g), as they are decoded: G = 320 for the published
        g = 40.
        """
        return self.decode(torch.as_tensor(z).to(self.device, torch.float32)).numpy()

    def enlarged(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 pictures (n, S, S, 3) of `image_size`, by PIL bicubic: what `resize` does where no filter is named."""
        return resize(pictures, self.image_size, Image.Resampling.BICUBIC)

    @torch.inference_mode()
    def paint(
        self,
        pictures: np.ndarray | Tensor | None,
        text: Given,
        *,
        start_noise: Tensor,
        encode_noise: Tensor | None = None,
        options: PaintOptions = TAKAGI,
        batches: PaintBatches | None = None,
    ) -> Tensor:
        """uint8 images (n, S, S, 3) on the CPU.

        Parameters
        ----------
        pictures : (n, S, S, 3) uint8, the start; None: `start_noise` itself, and all steps run.
        text : (n, T, F) conditions; None: the empty string, so that only the picture tells what to paint.
        start_noise, encode_noise : (n, *latent_shape) standard normal, the latter for `latent="sample"` only.

        Raises
        ------
        InputError : wrong shapes or types, or neither a picture nor a condition.
        """
        batches = batches or PaintBatches()
        if text is None:
            if pictures is None:
                raise InputError(
                    "conditions",
                    found="neither a picture nor a text condition",
                    expected="at least one of them",
                    action="give one of them",
                )
            text = self.nothing["text"].expand(len(start_noise), -1, -1)
        refuse_both(options.feature_cache, self.speed)
        self._check(pictures, text, start_noise)
        schedule = Schedule.of(self.alphas_cumprod, options.steps)
        if pictures is None:
            first, x = options.steps - 1, start_noise.to(self.device, torch.float32)
        else:
            noise_index, first = schedule.start(options)
            z = batches.encode.run(partial(self.encode, latent=options.latent), pictures, encode_noise)
            x = self.add_noise(z, start_noise, schedule, noise_index)
        x = batches.denoise.run(partial(self.denoise, schedule=schedule, first=first, options=options), x, text)
        return batches.decode.run(self.decode, x)

    def denoise(self, x: Tensor, text: Given, schedule: Schedule, first: int, options: PaintOptions = TAKAGI) -> Tensor:
        """From step `first` down to 0 with classifier-free guidance; x (n, c, h, w) float32 in and out."""
        return self.guided(x, {"text": text}, schedule, first, options)

    def _check(self, pictures: Given, text: Given, start_noise: Tensor) -> None:
        n = len(start_noise)
        wanted: list[tuple[str, Any, tuple[int, ...]]] = [
            ("start_noise", start_noise, (n, *self.latent_shape)),
            ("text", text, (n, *self.nothing["text"].shape[1:])),
            ("pictures", pictures, (n, self.image_size, self.image_size, 3)),
        ]
        for name, array, shape in wanted:
            if array is None:
                continue
            if tuple(array.shape) != shape or (name == "pictures" and str(array.dtype).split(".")[-1] != "uint8"):
                raise InputError(
                    name,
                    found=f"{array.dtype} of shape {tuple(array.shape)}",
                    expected=f"{'uint8' if name == 'pictures' else 'floats'} of shape {shape}",
                    action="use arrays made with this bundle, one row an item.",
                )
