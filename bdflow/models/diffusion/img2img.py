"""Image to image by diffusion under guidance, whatever the conditions are: what every painter of this family does.

The UNet, its transformers, the autoencoder and the scheduler's table come from diffusers; the loop is bdflow's own. A
start is noised to a level, and steps under classifier-free guidance lead down from there (Meng et al. 2022, "SDEdit";
Ho & Salimans 2022).
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from bdflow.config import PaintOptions, SpeedSettings
from bdflow.errors import InputError
from bdflow.models.config import BatchSizes
from bdflow.models.diffusion import attention
from bdflow.models.diffusion.autoencoder import Autoencoder
from bdflow.models.diffusion.batches import Batches, moved
from bdflow.models.diffusion.conditions import Conditions
from bdflow.models.diffusion.eight_bits import replace_linears
from bdflow.models.diffusion.solvers import SOLVERS
from bdflow.models.diffusion.speed import DeepFeatures, Evaluator, refuse_both

Given = np.ndarray | Tensor | None


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

    def __init__(
        self, sizes: BatchSizes | None = None, *, halve: bool = True, halve_guesses: bool | None = None
    ) -> None:
        sizes = sizes or BatchSizes()
        self.guess, self.encode, self.denoise, self.decode = (
            Batches(what, size, fixed=sizes.fixed, buckets=sizes.buckets, halve=may)
            for what, size, may in (
                ("decoding guesses", sizes.guess, halve if halve_guesses is None else halve_guesses),
                ("encoding guesses", sizes.encode, halve),
                ("denoising", sizes.denoise, halve),
                ("decoding pictures", sizes.decode, halve),
            )
        )


def latents_of(
    vae: AutoencoderKL,
    images_u8: np.ndarray | Tensor,
    noise: Tensor | None,
    latent: Literal["sample", "mean"],
    ordered: Callable[[Tensor], Tensor] = lambda pixels: pixels,
    called: Autoencoder | None = None,
) -> Tensor:
    """Scaled latents (n, c, h, w) float32 of uint8 images (n, H, W, 3): see `Img2Img.encode`. `ordered` brings pixels
    to the memory order of the convolutions; `called` is the autoencoder as settings say.
    """
    parameter, config = next(vae.parameters()), vae.config
    pixels = torch.as_tensor(images_u8).to(parameter.device, non_blocking=True).float() / 255 * 2 - 1
    pixels = ordered(pixels.permute(0, 3, 1, 2).contiguous().to(parameter.dtype))
    z, deviation = (called or Autoencoder(vae)).moments(pixels)
    if latent == "sample":
        if noise is None or noise.shape != z.shape:
            raise InputError(
                "encode_noise",
                found="none" if noise is None else f"shape {tuple(noise.shape)}",
                expected=f"standard-normal noise of shape {tuple(z.shape)}",
                action='draw it per item, or choose latent="mean".',
            )
        z = z + deviation * moved(noise, parameter.device, torch.float32)
    return z * float(config.scaling_factor)  # type: ignore[attr-defined]


class Img2Img:
    """A diffusion model that starts from pictures. All noise is handed in by the caller. The networks run in their own
    dtype; noising, guidance and steps in float32.

    Parameters
    ----------
    unet : whose transformers take their conditions from `cross_attention_kwargs`, by side (`vision`, `text`).
    vae : the autoencoder (scale and size from its configuration).
    alphas_cumprod : (training steps,) the scheduler's table.
    nothing : by side, the (1, T, F) embedding of `nothing`, which guidance leads away from.
    speed : how the networks are called. Attention that is to be `measured` is computed as torch chooses until `attend`
        says how.

    Raises InputError for a kernel of attention that does not take what the UNet computes.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        alphas_cumprod: Tensor,
        nothing: Mapping[str, Tensor],
        speed: SpeedSettings | None = None,
    ) -> None:
        self.speed = speed or SpeedSettings()
        self.evaluate = Evaluator(unet, self.speed)
        self.autoencoder = Autoencoder(vae, self.speed)
        self.unet, self.vae, self.alphas_cumprod, self.nothing = unet, vae, alphas_cumprod, dict(nothing)
        parameter = next(unet.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        vae_config: Any = vae.config
        unet_config: Any = unet.config
        size = unet_config.sample_size
        self.scale = float(vae_config.scaling_factor)
        self.latent_shape: tuple[int, int, int] = (unet_config.in_channels, size, size)
        self.image_size = size * 2 ** (len(vae_config.block_out_channels) - 1)
        self.linear = "exact"
        attention.refuse_unfit(self, "unet", self.evaluate.kernel)

    def use_eight_bits(self) -> None:
        """From now on paint with `linear: fp8`: see `bdflow.models.diffusion.eight_bits`. Raises InputError where the
        device cannot.
        """
        replace_linears(self.unet)
        self.linear = "fp8"

    def attend(self, kernels: Mapping[str, str]) -> None:
        """Compute attention by these kernels: one for the `unet`, one for the `autoencoder`. What was recorded is let
        go of.
        """
        self.evaluate.kernel, self.autoencoder.kernel = kernels["unet"], kernels["autoencoder"]
        self.evaluate.forget()
        self.autoencoder.forget()

    @torch.inference_mode()
    def encode(self, images_u8: np.ndarray | Tensor, noise: Tensor | None, latent: Literal["sample", "mean"]) -> Tensor:
        """Scaled latents (n, c, h, w) float32 of uint8 images (n, H, W, 3); a posterior sample driven by `noise`, or
        the mean.

        Raises InputError for a sample without noise of that shape.
        """
        return latents_of(self.vae, images_u8, noise, latent, self.evaluate.ordered, self.autoencoder)

    def add_noise(self, z: Tensor, noise: Tensor, schedule: Schedule, index: int) -> Tensor:
        """z at the noise level of `schedule.timesteps[index]`: sqrt(alpha) z + sqrt(1 - alpha) noise."""
        alpha = schedule.alpha[index]
        return alpha.sqrt().item() * z + (1 - alpha).sqrt().item() * moved(noise, z.device, z.dtype)

    def guided(
        self, x: Tensor, given: Mapping[str, Given], schedule: Schedule, first: int, options: PaintOptions
    ) -> Tensor:
        """From step `first` down to 0 under classifier-free guidance; x (n, c, h, w) float32 in and out, the last of
        `trajectory`.
        """
        for state in self.trajectory(x, given, schedule, first, options):
            x = state
        return x

    @torch.inference_mode()
    def trajectory(
        self, x: Tensor, given: Mapping[str, Given], schedule: Schedule, first: int, options: PaintOptions
    ) -> Generator[Tensor, None, None]:
        """The states after step `first` and each lower one down to 0, (n, c, h, w) float32.

        Parameters
        ----------
        given : by side, the conditions (n, T, F), or None.
        options : guidance, mixing, solver and the approximate modes; steps and strength are in `schedule` and `first`.
        """
        low, high = options.guidance_interval
        here = {side: self._here(value) for side, value in given.items()}
        conditions = Conditions(here, self.nothing, options.mixing)
        self.evaluate.begin(conditions, schedule.timesteps[: first + 1])
        noise: Evaluator | DeepFeatures = self.evaluate
        refuse_both(options.feature_cache, self.speed)
        self._refuse_other_linears(options)
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
                    eps_uncond, eps_cond = noise(x, timestep, conditions, "joint").chunk(2)
                else:
                    eps_uncond = noise(x, timestep, conditions, "unconditional")
                    eps_cond = noise(x, timestep, conditions, "conditional")
                # 2. classifier-free guidance
                eps = eps_uncond + options.guidance_scale * (eps_cond - eps_uncond)
            # 3. a step to the next level
            x = solver.step(x, eps, index)
            yield x

    @torch.inference_mode()
    def predict_noise(self, x: Tensor, timestep: int | Tensor, conditions: Mapping[str, object]) -> Tensor:
        """One evaluation of the UNet, (n, c, h, w) float32 in and out; `conditions` as its transformers take them."""
        some = next(value for name, value in conditions.items() if name != "mixing" and value is not None)
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
        """uint8 images (n, H, W, 3) on the CPU of scaled latents; clipped to [0, 1], times 255, truncated."""
        latents = self.evaluate.ordered((x / self.scale).to(self.dtype))
        pixels = self.autoencoder.pixels(latents)
        return ((pixels + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()

    def _refuse_other_linears(self, options: PaintOptions) -> None:
        if options.linear != self.linear:
            raise InputError(
                "linear",
                found=f"{options.linear}, and a network whose linear layers are {self.linear}",
                expected="the same",
                action="call `use_eight_bits` of the network once for fp8; load it anew for exact layers.",
            )

    def _here(self, given: Given) -> Tensor | None:
        return None if given is None else moved(torch.as_tensor(given), self.device, self.dtype)
