"""Versatile Diffusion guided by both CLIP predictions, started from the VDVAE's guess.

The dual-guided block is bdflow's own; the UNet and its transformers come from diffusers. X. Xu et al., "Versatile
Diffusion" (2023), section 3.3; Ozcelik & VanRullen (2023), "Second stage".
"""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from bdflow.config import PaintOptions, SpeedSettings
from bdflow.errors import InputError
from bdflow.models.diffusion.img2img import Given, Img2Img, PaintBatches, Schedule
from bdflow.models.diffusion.speed import refuse_both
from bdflow.models.diffusion.unet import transformed


class DualTransformer(nn.Module):
    """Two transformers over one state, their residuals mixed: h + (1 - m) (vision(h) - h) + m (text(h) - h).

    Stands where a UNet2DConditionModel has one Transformer2DModel. The conditions come with each call, in
    `cross_attention_kwargs`: `vision` (n, T, F) or None, `text` (n, T, F) or None, `mixing` = m. With one
    condition absent, only the other's transformer runs, with weight 1.
    """

    def __init__(self, vision: Transformer2DModel, text: Transformer2DModel) -> None:
        super().__init__()
        self.vision, self.text = vision, text

    def forward(
        self, hidden_states: Tensor, *, cross_attention_kwargs: Mapping[str, Any], **unused: object
    ) -> tuple[Tensor]:
        vision, text = cross_attention_kwargs["vision"], cross_attention_kwargs["text"]
        mixing = cross_attention_kwargs["mixing"]
        if text is None or (mixing == 0 and vision is not None):
            return (self._branch(self.vision, hidden_states, vision),)
        if vision is None or mixing == 1:
            return (self._branch(self.text, hidden_states, text),)
        by_vision = self._branch(self.vision, hidden_states, vision)
        by_text = self._branch(self.text, hidden_states, text)
        return ((1 - mixing) * by_vision + mixing * by_text,)

    @staticmethod
    def _branch(transformer: Transformer2DModel, hidden_states: Tensor, condition: Tensor) -> Tensor:
        return transformed(transformer, hidden_states, condition)


def build_dual_unet(config: Mapping[str, object]) -> UNet2DConditionModel:
    """A UNet2DConditionModel of this diffusers configuration with a DualTransformer at each attention.

    Raises InputError for a UNet that a diffusers pipeline has already made dual.
    """
    if config.get("dual_cross_attention"):
        raise InputError(
            "image UNet's configuration",
            found="dual_cross_attention: true",
            expected="the image UNet of shi-labs/versatile-diffusion, before any pipeline merged the text UNet into it",
            action="use the published image_unet and text_unet.",
        )
    unet = UNet2DConditionModel.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    for name, module in list(unet.named_modules()):
        if isinstance(module, Transformer2DModel):
            parent, _, index = name.rpartition(".")
            dual = DualTransformer(vision=module, text=copy.deepcopy(module))
            unet.get_submodule(parent)[int(index)] = dual  # type: ignore[operator]
    return unet


class VersatileDiffusion(Img2Img):
    """Paints reconstructions: guess and predicted CLIP embeddings to images of `image_size` px.

    Parameters
    ----------
    unet : a UNet of `build_dual_unet`.
    vae, alphas_cumprod, speed : see `Img2Img`.
    unconditional_vision, unconditional_text : (1, T, F) embeddings of `nothing`.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        alphas_cumprod: Tensor,
        unconditional_vision: Tensor,
        unconditional_text: Tensor,
        speed: SpeedSettings | None = None,
    ) -> None:
        nothing = {"vision": unconditional_vision, "text": unconditional_text}
        super().__init__(unet, vae, alphas_cumprod, nothing, speed)
        self.unconditional_vision, self.unconditional_text = unconditional_vision, unconditional_text

    @torch.inference_mode()
    def paint(
        self,
        guess_u8: np.ndarray | Tensor | None,
        vision: np.ndarray | Tensor | None,
        text: np.ndarray | Tensor | None,
        *,
        start_noise: Tensor,
        encode_noise: Tensor | None = None,
        options: PaintOptions | None = None,
        batches: PaintBatches | None = None,
    ) -> Tensor:
        """uint8 images (n, S, S, 3) on the CPU; `batches` says how many go through each network at once.

        `guess_u8` (n, S, S, 3) uint8 with S = `image_size`; `vision`, `text` (n, T, F); `start_noise` and
        `encode_noise` (n, *latent_shape) standard normal, the latter used for `latent="sample"` only.

        What stands in for what is absent: without a guess, the start is `start_noise` itself and all steps
        run (strength has no meaning); without `vision` or `text`, the other condition's transformers act
        alone (mixing has no meaning), in the conditional and in the unconditional half alike.
        Raises InputError for wrong shapes or types, or when both conditions are absent.
        """
        options, batches = options or PaintOptions(), batches or PaintBatches()
        refuse_both(options.feature_cache, self.speed)
        self._check(guess_u8, vision, text, start_noise)
        schedule = Schedule.of(self.alphas_cumprod, options.steps)
        # 1. where to start
        if guess_u8 is None:
            first = options.steps - 1
            x = start_noise.to(self.device, torch.float32)
        else:
            noise_index, first = schedule.start(options)
            z = batches.encode.run(partial(self.encode, latent=options.latent), guess_u8, encode_noise)
            x = self.add_noise(z, start_noise, schedule, noise_index)
        # 2. denoise
        denoise = partial(self.denoise, schedule=schedule, first=first, options=options)
        x = batches.denoise.run(denoise, x, vision, text)
        # 3. latents to pixels
        return batches.decode.run(self.decode, x)

    def denoise(
        self, x: Tensor, vision: Given, text: Given, schedule: Schedule, first: int, options: PaintOptions | None = None
    ) -> Tensor:
        """From step `first` down to 0 with classifier-free guidance; x (n, c, h, w) float32 in and out."""
        return self.guided(x, {"vision": vision, "text": text}, schedule, first, options or PaintOptions())

    def _check(self, guess: Given, vision: Given, text: Given, start_noise: Tensor) -> None:
        if vision is None and text is None:
            raise InputError(
                "conditions",
                found="neither CLIP-vision nor CLIP-text",
                expected="at least one of them",
                meaning="A reconstruction without both is the VDVAE's guess itself.",
                action="give one of them",
            )
        n = len(start_noise)
        wanted: list[tuple[str, Any, tuple[int, ...]]] = [
            ("start_noise", start_noise, (n, *self.latent_shape)),
            ("vision", vision, (n, *self.unconditional_vision.shape[1:])),
            ("text", text, (n, *self.unconditional_text.shape[1:])),
            ("guess_u8", guess, (n, self.image_size, self.image_size, 3)),
        ]
        for name, array, shape in wanted:
            if array is None:
                continue
            if tuple(array.shape) != shape or (name == "guess_u8" and str(array.dtype).split(".")[-1] != "uint8"):
                raise InputError(
                    name,
                    found=f"{array.dtype} of shape {tuple(array.shape)}",
                    expected=f"{'uint8' if name == 'guess_u8' else 'floats'} of shape {shape}",
                    action="use arrays made with this bundle, one row an item.",
                )
