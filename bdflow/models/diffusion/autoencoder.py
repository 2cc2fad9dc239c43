"""The two halves of an autoencoder, as painting calls them: plain, compiled, or recorded."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from bdflow.config import SpeedSettings
from bdflow.models.diffusion.compiling import compiled
from bdflow.models.diffusion.kernels import TORCH, attending
from bdflow.models.diffusion.recording import Recordings

LOG_VARIANCE = (-30.0, 20.0)
"""Bounds of the posterior's logarithmic variance (R. Rombach et al. 2022)."""


def moments_of(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n, c, h, w) of the posterior of pixels (n, 3, H, W) in [-1, 1]."""
    found = vae.encoder(pixels)
    if vae.quant_conv is not None:
        found = vae.quant_conv(found)
    mean, log_variance = found.chunk(2, dim=1)
    return mean, torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE))


def pixels_of(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pixels (n, 3, H, W) in about [-1, 1] of latents (n, c, h, w), not scaled."""
    if vae.post_quant_conv is not None:
        latents = vae.post_quant_conv(latents)
    pixels: Tensor = vae.decoder(latents)
    return pixels


class Autoencoder:
    """An autoencoder called as `speed` says.

    Attributes
    ----------
    kernel : of its attention (`bdflow.models.diffusion.kernels`).
    """

    def __init__(self, vae: AutoencoderKL, speed: SpeedSettings | None = None) -> None:
        speed = speed or SpeedSettings()
        self.vae, self.speed, self.kernel = vae, speed, TORCH
        if speed.channels_last:
            vae.to(memory_format=torch.channels_last)  # type: ignore[call-arg,call-overload]
        if speed.attention == "plain":
            vae.set_attn_processor(AttnProcessor())
        self._moments: Callable[[Tensor], Any] = compiled(lambda pixels: moments_of(vae, pixels), speed.compile)
        self._pixels: Callable[[Tensor], Any] = compiled(lambda latents: pixels_of(vae, latents), speed.compile)

        self._recorded = Recordings()

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, float32, of the posterior: see `moments_of`."""
        mean, deviation = self._called("moments", self._moments, pixels)
        return mean.float(), deviation.float()

    def pixels(self, latents: Tensor) -> Tensor:
        """Pixels, float32: see `pixels_of`."""
        found: Tensor = self._called("pixels", self._pixels, latents).float()
        return found

    def forget(self) -> None:
        """Let go of recordings."""
        self._recorded.forget()

    def _called(self, half: str, work: Callable[[Tensor], object], values: Tensor) -> Any:
        with attending(self.kernel):
            return self._plain_or_recorded(half, work, values)

    def _plain_or_recorded(self, half: str, work: Callable[[Tensor], object], values: Tensor) -> object:
        if self.speed.compile != "cuda_graphs":
            return work(values)
        try:
            return self._recorded.call((half, tuple(values.shape)), work, [values])
        except Exception:
            self.forget()  # as the UNet's: a smaller batch may fit without them
            raise
