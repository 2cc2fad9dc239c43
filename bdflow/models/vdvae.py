"""The very deep VAE of Brain-Diffuser's first stage: images to hierarchical latents, latents to blurry
guesses.

After R. Child, "Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images" (2021);
parameter names are those of the official ImageNet-64 checkpoint. Latents are laid out as in Brain-Diffuser:
the z of the first `n_latent_blocks` decoder blocks, each flattened channel-major (c, h, w), one after the
other.
"""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdflow.errors import InputError, counted
from bdflow.models.config import VDVAEConfig
from bdflow.models.diffusion.batches import moved

__all__ = ["VDVAE", "VDVAEConfig", "sample_mixture", "to_uint8"]

PIXEL_MEAN, PIXEL_STD = 115.92961967, 69.37404
LOG_SCALE_FLOOR = -7.0
UNIFORM_MARGIN = 1e-5


class Block(nn.Module):
    """Bottleneck of four convolutions, GELU before each; optionally residual, optionally average-pooled
    after.
    """

    def __init__(
        self,
        n_in: int,
        n_mid: int,
        n_out: int,
        *,
        use_3x3: bool,
        residual: bool = False,
        pool: int | None = None,
    ) -> None:
        super().__init__()
        kernel = 3 if use_3x3 else 1
        self.residual, self.pool = residual, pool
        self.c1 = nn.Conv2d(n_in, n_mid, 1)
        self.c2 = nn.Conv2d(n_mid, n_mid, kernel, padding=kernel // 2)
        self.c3 = nn.Conv2d(n_mid, n_mid, kernel, padding=kernel // 2)
        self.c4 = nn.Conv2d(n_mid, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for conv in (self.c1, self.c2, self.c3, self.c4):
            out = conv(F.gelu(out))
        if self.residual:
            out = x + out
        return out if self.pool is None else F.avg_pool2d(out, self.pool)


class Encoder(nn.Module):
    """Image to one activation per resolution (the last one computed at that resolution)."""

    def __init__(self, config: VDVAEConfig) -> None:
        super().__init__()
        width, middle = config.width, int(config.width * config.bottleneck_multiple)
        self.in_conv = nn.Conv2d(3, width, 3, padding=1)
        self.enc_blocks = nn.ModuleList(
            Block(width, middle, width, use_3x3=resolution > 2, residual=True, pool=pool)
            for resolution, pool in config.encoder_layout
        )

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = self.in_conv(x)
        activations = {x.shape[-1]: x}
        for block in self.enc_blocks:
            x = block(x)
            activations[x.shape[-1]] = x
        return activations


class DecoderBlock(nn.Module):
    """One stochastic layer: prior and posterior of z given the state, then the state's update by z."""

    def __init__(self, config: VDVAEConfig, resolution: int, mixed_in: int | None) -> None:
        super().__init__()
        width, middle = config.width, int(config.width * config.bottleneck_multiple)
        use_3x3 = resolution > 2
        self.resolution, self.mixed_in, self.zdim = resolution, mixed_in, config.zdim
        self.enc = Block(2 * width, middle, 2 * config.zdim, use_3x3=use_3x3)
        self.prior = Block(width, middle, 2 * config.zdim + width, use_3x3=use_3x3)
        self.z_proj = nn.Conv2d(config.zdim, width, 1)
        self.resnet = Block(width, middle, width, use_3x3=use_3x3, residual=True)

    def mix_in(self, states: dict[int, Tensor]) -> Tensor:
        state = states[self.resolution]
        if self.mixed_in is None:
            return state
        return state + F.interpolate(states[self.mixed_in], scale_factor=self.resolution // self.mixed_in)

    def posterior(self, state: Tensor, activation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z | state, image)."""
        mean, log_std = self.enc(torch.cat([state, activation], dim=1)).chunk(2, dim=1)
        return mean, log_std

    def prior_of(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log standard deviation of p(z | state), and the state's own deterministic update."""
        mean, log_std, update = self.prior(state).split([self.zdim, self.zdim, state.shape[1]], dim=1)
        return mean, log_std, update

    def update(self, state: Tensor, z: Tensor) -> Tensor:
        return self.resnet(state + self.z_proj(z))


class OutNet(nn.Module):
    """1x1 convolution to the parameters of the logistic mixture."""

    def __init__(self, config: VDVAEConfig) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(config.width, config.num_mixtures * 10, 1)

    def forward(self, px_z: Tensor) -> Tensor:
        return self.out_conv(px_z).permute(0, 2, 3, 1)


class Decoder(nn.Module):
    """The top-down path: learnt initial states per resolution, the stochastic blocks, gain and bias, the
    mixture.
    """

    def __init__(self, config: VDVAEConfig) -> None:
        super().__init__()
        layout = config.decoder_layout
        self.resolutions = sorted({resolution for resolution, _ in layout})
        self.dec_blocks = nn.ModuleList(DecoderBlock(config, resolution, mixed) for resolution, mixed in layout)
        self.bias_xs = nn.ParameterList(
            nn.Parameter(torch.zeros(1, config.width, resolution, resolution))
            for resolution in self.resolutions
            if resolution <= config.no_bias_above
        )
        self.gain = nn.Parameter(torch.ones(1, config.width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, config.width, 1, 1))
        self.out_net = OutNet(config)

    @property
    def blocks(self) -> list[DecoderBlock]:
        return cast(list[DecoderBlock], list(self.dec_blocks))

    def initial_states(self, n: int) -> dict[int, Tensor]:
        states = {bias.shape[-1]: bias.expand(n, -1, -1, -1) for bias in self.bias_xs}
        for resolution in self.resolutions:
            if resolution not in states:
                states[resolution] = self.gain.new_zeros(n, self.gain.shape[1], resolution, resolution)
        return states


class VDVAE(nn.Module):
    """A very deep VAE with Brain-Diffuser's three operations: encode, decode, and nothing in between hidden.

    All noise is handed in by the caller; nothing is drawn here. Computation runs in the parameters' dtype,
    the logistic mixture always in float32.
    """

    def __init__(self, config: VDVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(c, h, w) of each regressed block: the shapes of `encode`'s noise."""
        return self.config.latent_shapes

    @property
    def prior_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(c, h, w) of each block drawn from the prior: the shapes of `decode`'s noise."""
        return self.config.block_shapes[self.config.n_latent_blocks :]

    @property
    def uniform_shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Shapes per image of the sampler's two uniform draws: (h, w, mixtures) and (h, w, 3)."""
        size = self.config.image_size
        return (size, size, self.config.num_mixtures), (size, size, 3)

    @torch.inference_mode()
    def encode(self, images_u8: np.ndarray | Tensor, noise: Sequence[Tensor] | None) -> Tensor:
        """Latents (n, D) float32 of uint8 images (n, h, w, 3) that already have the network's size.

        `noise` holds one standard-normal tensor (n, c, h, w) per entry of `latent_shapes`: z = mean +
        exp(log_std) * noise of the posterior. `None` gives the posterior mean. Only the first
        `n_latent_blocks` decoder blocks run. Raises InputError for anything but uint8 images of the right
        size.
        """
        pixels = self._pixels(images_u8)
        if noise is not None:
            self._check_draws(noise, self.latent_shapes, len(pixels), "posterior noise")
        activations = self.encoder(pixels)
        states = self.decoder.initial_states(len(pixels))
        latents = []
        for index, block in enumerate(self.decoder.blocks[: self.config.n_latent_blocks]):
            state = block.mix_in(states)
            mean, log_std = block.posterior(state, activations[block.resolution])
            z = mean if noise is None else mean + log_std.exp() * _moved_to(noise[index], mean)
            latents.append(z.flatten(1).float())
            states[block.resolution] = block.update(state + block.prior_of(state)[2], z)
        return torch.cat(latents, dim=1)

    @torch.inference_mode()
    def decode(
        self,
        latents: np.ndarray | Tensor,
        prior_noise: Sequence[Tensor],
        uniform_mixture: Tensor,
        uniform_logistic: Tensor,
    ) -> Tensor:
        """Sampled uint8 images (n, H, W, 3) of latents (n, D).

        The regressed blocks take their z from `latents`; the others are sampled from the prior with
        `prior_noise` (one (n, c, h, w) per entry of `prior_shapes`). The two uniforms (n,
        *uniform_shapes[i]) drive the mixture sampler. Raises InputError for draws or latents of a wrong
        shape.
        """
        mixture_shape, logistic_shape = self.uniform_shapes
        parameters = self.mixture(self.decode_state(latents, prior_noise))
        self._check_draws([uniform_mixture], [mixture_shape], len(latents), "uniform draw")
        self._check_draws([uniform_logistic], [logistic_shape], len(latents), "uniform draw")
        image = sample_mixture(parameters, uniform_mixture, uniform_logistic, self.config.num_mixtures)
        return to_uint8(image)

    @torch.inference_mode()
    def decode_state(self, latents: np.ndarray | Tensor, prior_noise: Sequence[Tensor]) -> Tensor:
        """The decoder's last state (n, width, H, W) after gain and bias, before the mixture's parameters."""
        latents = torch.as_tensor(latents)
        if latents.ndim != 2 or latents.shape[1] != self.config.n_latents:
            raise InputError(
                "VDVAE latents",
                found=f"shape {tuple(latents.shape)}",
                expected=f"(n, {self.config.n_latents})",
                action="hand in predictions made from this bundle's own latents.",
            )
        self._check_draws(prior_noise, self.prior_shapes, len(latents), "prior noise")
        n = len(latents)
        reference = self.decoder.gain
        sizes = [math.prod(shape) for shape in self.latent_shapes]
        given = [
            part.reshape(n, *shape)
            for part, shape in zip(_moved_to(latents, reference).split(sizes, dim=1), self.latent_shapes, strict=True)
        ]
        states = self.decoder.initial_states(n)
        for index, block in enumerate(self.decoder.blocks):
            state = block.mix_in(states)
            mean, log_std, update = block.prior_of(state)
            if index < len(given):
                z = given[index]
            else:
                z = mean + log_std.exp() * _moved_to(prior_noise[index - len(given)], mean)
            states[block.resolution] = block.update(state + update, z)
        return states[self.config.image_size] * self.decoder.gain + self.decoder.bias

    @torch.inference_mode()
    def mixture(self, px_z: Tensor) -> Tensor:
        """Parameters (n, H, W, 10 * mixtures) float32 of the discretised logistic mixture."""
        return self.decoder.out_net(px_z).float()

    def _pixels(self, images_u8: np.ndarray | Tensor) -> Tensor:
        size = self.config.image_size
        images = torch.as_tensor(images_u8)
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != (size, size, 3):
            raise InputError(
                "VDVAE images",
                found=f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}",
                expected=f"uint8 of shape (n, {size}, {size}, 3)",
                action=f"resize with PIL (bilinear) to {size} px and keep uint8.",
            )
        reference = self.decoder.gain
        scaled = (images.to(reference.device, non_blocking=True).float() - PIXEL_MEAN) / PIXEL_STD
        return scaled.permute(0, 3, 1, 2).contiguous().to(reference.dtype)

    def _check_draws(self, draws: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], n: int, what: str) -> None:
        found = [tuple(draw.shape) for draw in draws]
        expected = [(n, *shape) for shape in shapes]
        if found != expected:
            raise InputError(
                f"VDVAE {what}",
                found=f"{counted(len(found), 'tensor')} of shapes {found[:3]}...",
                expected=f"{len(expected)} of shapes {expected[:3]}...",
                action="draw one tensor per entry of the network's latent_shapes, prior_shapes or uniform_shapes.",
            )


def sample_mixture(parameters: Tensor, uniform_mixture: Tensor, uniform_logistic: Tensor, num_mixtures: int) -> Tensor:
    """Sample images (n, H, W, 3) in [-1, 1] from mixtures of logistics, autoregressive over R, G, B.

    `parameters` (n, H, W, 10 * num_mixtures): logits of the components, then per colour channel their means,
    log-scales (floored at -7) and channel coefficients (tanh). `uniform_mixture` (n, H, W, num_mixtures)
    picks the component (Gumbel-max), `uniform_logistic` (n, H, W, 3) the value; both are moved into [1e-5, 1
    - 1e-5]. Salimans et al. 2017, "PixelCNN++", section 2; the sampler of Child 2021.
    """
    logits = parameters[..., :num_mixtures]
    rest = parameters[..., num_mixtures:].unflatten(-1, (3, 3 * num_mixtures))
    u_mixture = _inside(_moved_to(uniform_mixture, logits))
    component = (logits - torch.log(-torch.log(u_mixture))).argmax(dim=-1)
    index = component[..., None, None].expand(*component.shape, 3, 1)
    mean, log_scale, coefficient = (part.gather(-1, index).squeeze(-1) for part in rest.split(num_mixtures, dim=-1))
    log_scale = log_scale.clamp(min=LOG_SCALE_FLOOR)
    c = coefficient.tanh()
    u = _inside(_moved_to(uniform_logistic, logits))
    x = mean + log_scale.exp() * (torch.log(u) - torch.log(1 - u))
    red = x[..., 0].clamp(-1, 1)
    green = (x[..., 1] + c[..., 0] * red).clamp(-1, 1)
    blue = (x[..., 2] + c[..., 1] * red + c[..., 2] * green).clamp(-1, 1)
    return torch.stack([red, green, blue], dim=-1)


def _moved_to(values: Tensor, like: Tensor) -> Tensor:
    return moved(values, like.device, like.dtype)


def _inside(u: Tensor) -> Tensor:
    return u.clamp(UNIFORM_MARGIN, 1 - UNIFORM_MARGIN)


def to_uint8(image: Tensor) -> Tensor:
    """[-1, 1] to uint8, truncated, as the official implementation writes its samples."""
    return ((image + 1) * 127.5).clamp(0, 255).to(torch.uint8)
