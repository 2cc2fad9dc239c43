"""Versatile Diffusion guided by both CLIP predictions, started from the VDVAE's guess.

The dual-guided block and the img2img loop are bdflow's own; the UNet, its transformers, the autoencoder and
the scheduler's table come from diffusers. X. Xu et al., "Versatile Diffusion" (2023), section 3.3; Ozcelik &
VanRullen (2023), "Second stage".
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from bdflow.config import PaintOptions, SpeedSettings
from bdflow.errors import InputError
from bdflow.models.config import BatchSizes
from bdflow.models.diffusion.batches import Batches
from bdflow.models.diffusion.conditions import Conditions
from bdflow.models.diffusion.solvers import SOLVERS
from bdflow.models.diffusion.speed import DeepFeatures, Evaluator

__all__ = ["DualTransformer", "PaintBatches", "PaintOptions", "Schedule", "VersatileDiffusion", "build_dual_unet"]

Given = np.ndarray | Tensor | None


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
        return transformer(hidden_states, encoder_hidden_states=condition, return_dict=False)[0]


def build_dual_unet(config: Mapping[str, Any]) -> UNet2DConditionModel:
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


@dataclass(frozen=True)
class Schedule:
    """DDIM's tables for one choice of steps (J. Song et al. 2021, eta = 0), in float32."""

    timesteps: tuple[int, ...]
    alpha: Tensor
    alpha_previous: Tensor

    @classmethod
    def of(cls, alphas_cumprod: Tensor, steps: int) -> "Schedule":
        """Timesteps 1, 1 + s, 1 + 2s, ... with s = training steps // `steps`; the last alpha is
        alphas_cumprod[0].
        """
        total = len(alphas_cumprod)
        stride = total // steps
        timesteps = tuple(1 + stride * index for index in range(steps))
        if stride == 0 or timesteps[-1] >= total:
            raise InputError(
                "steps",
                found=str(steps),
                expected=f"1 to {total - 1}",
                action="choose fewer denoising steps.",
            )
        alpha = alphas_cumprod.float()[list(timesteps)]
        return cls(timesteps, alpha, torch.cat([alphas_cumprod[:1].float(), alpha[:-1]]))

    def start(self, options: PaintOptions) -> tuple[int, int]:
        """(index whose noise level the guess gets, index of the first denoising step)."""
        steps_to_run = int(options.strength * len(self.timesteps))
        first = steps_to_run - 1
        if options.noise_index == "diffusers":
            return first, first
        return min(steps_to_run, len(self.timesteps) - 1), first


class PaintBatches:
    """The batches of each stage of painting; what they learn about memory stays with them."""

    def __init__(self, sizes: BatchSizes | None = None, *, halve: bool = True) -> None:
        sizes = sizes or BatchSizes()
        self.guess, self.encode, self.denoise, self.decode = (
            Batches(what, size, fixed=sizes.fixed, halve=halve)
            for what, size in (
                ("decoding guesses", sizes.guess),
                ("encoding guesses", sizes.encode),
                ("denoising", sizes.denoise),
                ("decoding pictures", sizes.decode),
            )
        )


class VersatileDiffusion:
    """Paints reconstructions: guess and predicted CLIP embeddings to images of `image_size` px.

    All noise is handed in by the caller. The networks run in their own dtype; noising, guidance and DDIM
    steps in float32.

    Parameters
    ----------
    unet : a UNet of `build_dual_unet`.
    vae : the autoencoder (scale and size from its configuration).
    alphas_cumprod : (training steps,) the scheduler's table.
    unconditional_vision, unconditional_text : (1, T, F) embeddings of `nothing`.
    speed : how the networks are called.
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
        self.speed = speed or SpeedSettings()
        self.evaluate = Evaluator(unet, self.speed)
        if self.speed.channels_last:
            vae.to(memory_format=torch.channels_last)  # type: ignore[call-arg,call-overload]
        if self.speed.attention == "plain":
            vae.set_attn_processor(AttnProcessor())
        self.unet, self.vae, self.alphas_cumprod = unet, vae, alphas_cumprod
        self.unconditional_vision, self.unconditional_text = unconditional_vision, unconditional_text
        parameter = next(unet.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        vae_config: Any = vae.config
        unet_config: Any = unet.config
        size = unet_config.sample_size
        self.scale = float(vae_config.scaling_factor)
        self.latent_shape: tuple[int, int, int] = (unet_config.in_channels, size, size)
        self.image_size = size * 2 ** (len(vae_config.block_out_channels) - 1)

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
        denoise = partial(
            self.denoise,
            schedule=schedule,
            first=first,
            guidance_scale=options.guidance_scale,
            mixing=options.mixing,
            options=options,
        )
        x = batches.denoise.run(denoise, x, vision, text)
        # 3. latents to pixels
        return batches.decode.run(self.decode, x)

    @torch.inference_mode()
    def encode(self, guess_u8: np.ndarray | Tensor, noise: Tensor | None, latent: Literal["sample", "mean"]) -> Tensor:
        """Scaled latents (n, *latent_shape) float32 of uint8 images; a posterior sample driven by `noise`,
        or the mean.
        """
        pixels = torch.as_tensor(guess_u8).to(self.device).float() / 255 * 2 - 1
        pixels = self.evaluate.ordered(pixels.permute(0, 3, 1, 2).contiguous().to(self.dtype))
        posterior = self.vae.encode(pixels).latent_dist
        z = posterior.mean.float()
        if latent == "sample":
            if noise is None or noise.shape != z.shape:
                raise InputError(
                    "encode_noise",
                    found="none" if noise is None else f"shape {tuple(noise.shape)}",
                    expected=f"standard-normal noise of shape {tuple(z.shape)}",
                    action='draw it per item, or choose latent="mean".',
                )
            z = z + posterior.std.float() * noise.to(self.device, torch.float32)
        return z * self.scale

    def add_noise(self, z: Tensor, noise: Tensor, schedule: Schedule, index: int) -> Tensor:
        """z at the noise level of `schedule.timesteps[index]`: sqrt(alpha) z + sqrt(1 - alpha) noise."""
        alpha = schedule.alpha[index].to(z.device)
        return alpha.sqrt() * z + (1 - alpha).sqrt() * noise.to(z)

    @torch.inference_mode()
    def denoise(
        self,
        x: Tensor,
        vision: np.ndarray | Tensor | None,
        text: np.ndarray | Tensor | None,
        schedule: Schedule,
        first: int,
        guidance_scale: float,
        mixing: float,
        options: PaintOptions | None = None,
    ) -> Tensor:
        """From step `first` down to 0 with classifier-free guidance; x (n, c, h, w) float32 in and out.

        `options` : the approximate modes; none of them by default.
        """
        options = options or PaintOptions()
        low, high = options.guidance_interval
        given = {"vision": self._here(vision), "text": self._here(text)}
        nothing = {"vision": self.unconditional_vision, "text": self.unconditional_text}
        conditions = Conditions(given, nothing, mixing)
        self.evaluate.begin(conditions)
        noise: Evaluator | DeepFeatures = self.evaluate
        if options.feature_cache > 1:
            noise = DeepFeatures(self.evaluate, options.feature_cache)
        solver = SOLVERS[options.solver](schedule)
        for index in range(first, -1, -1):
            timestep = schedule.timesteps[index]
            if isinstance(noise, DeepFeatures):
                noise.next_step()
            # 1. predicted noise, without and with the conditions
            if not low <= timestep / len(self.alphas_cumprod) <= high:
                eps = noise(x, timestep, conditions, "conditional")
            else:
                if self.speed.joint_guidance:
                    eps_uncond, eps_cond = noise(torch.cat([x, x]), timestep, conditions, "joint").chunk(2)
                else:
                    eps_uncond = noise(x, timestep, conditions, "unconditional")
                    eps_cond = noise(x, timestep, conditions, "conditional")
                # 2. classifier-free guidance
                eps = eps_uncond + guidance_scale * (eps_cond - eps_uncond)
            # 3. a step to the next level
            x = solver.step(x, eps, index)
        return x

    @torch.inference_mode()
    def predict_noise(self, x: Tensor, timestep: int | Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """One evaluation of the dual UNet, (n, c, h, w) float32 in and out; `conditions` as DualTransformer
        takes them.
        """
        some = conditions["text"] if conditions["vision"] is None else conditions["vision"]
        out = self.unet(
            x.to(self.dtype),
            timestep,
            encoder_hidden_states=some,
            cross_attention_kwargs=dict(conditions),
            return_dict=False,
        )
        return out[0].float()

    @torch.inference_mode()
    def decode(self, x: Tensor) -> Tensor:
        """uint8 images (n, S, S, 3) on the CPU of scaled latents; clipped to [0, 1], times 255, truncated."""
        latents = self.evaluate.ordered((x / self.scale).to(self.dtype))
        pixels = self.vae.decode(latents, return_dict=False)[0].float()
        return ((pixels + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()

    def _here(self, given: np.ndarray | Tensor | None) -> Tensor | None:
        return None if given is None else torch.as_tensor(given).to(self.device, self.dtype, non_blocking=True)

    def _check(self, guess: Given, vision: Given, text: Given, start_noise: Tensor) -> None:
        if vision is None and text is None:
            raise InputError(
                "conditions",
                found="neither CLIP-vision nor CLIP-text",
                expected="at least one of them",
                action="give one; a reconstruction without both is the VDVAE's guess itself.",
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
