"""What each network of the tiny bundle learns from: one loss a network, on batches of scenes."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdflow.models.vdvae import LOG_SCALE_FLOOR, VDVAE

GREY_LEVEL = 2 / 255
KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.5
SQUARE_WEIGHT = 6.0
MAX_SNR = 5.0


def vdvae_loss(
    vdvae: VDVAE,
    images_u8: Tensor,
    generator: torch.Generator,
    *,
    kl_weight: float = 1.0,
    from_prior: float = 0.0,
    free_nats: float = 0.0,
    coarse: Mapping[int, float] = MappingProxyType({}),
) -> tuple[Tensor, Tensor]:
    """Mean of -log p(x | z) + kl_weight * KL, and mean KL, in bits a colour value, of (n, s, s, 3) images.

    For the first `from_prior` of the batch, the layers that are not regressed are drawn from the prior: a bound
    too, in which the regressed layers must tell all they can, as they do when a guess is decoded. Child 2021,
    section 3.

    The KL of layers of so many pixels as `coarse` names costs so many times more. What such a layer tells changes the
    picture everywhere; with this, things and backgrounds are told by layers of which each value has a place.

    A channel of another regressed layer whose KL is less than `free_nats` a value, averaged over batch and places,
    costs as much as with `free_nats`. Without it, training ends with one channel of four in use, and the rest of what
    is regressed is noise. Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow",
    appendix C.8.
    """
    pixels = vdvae._pixels(images_u8)
    n = len(pixels)
    told = torch.arange(n)[:, None, None, None] >= round(from_prior * n)
    activations = vdvae.encoder(pixels)
    states = vdvae.decoder.initial_states(n)
    kl, cost = pixels.new_zeros(n), pixels.new_zeros(())
    for index, block in enumerate(vdvae.decoder.blocks):
        state = block.mix_in(states)
        prior_mean, prior_log, update = block.prior_of(state)
        mean, log_std = block.posterior(state, activations[block.resolution])
        if index >= vdvae.config.n_latent_blocks:
            mean, log_std = torch.where(told, mean, prior_mean), torch.where(told, log_std, prior_log)
        prior_mean, prior_log, mean, log_std = (part.float() for part in (prior_mean, prior_log, mean, log_std))
        z = mean + log_std.exp() * torch.randn(mean.shape, generator=generator)
        ratio = (2 * (log_std - prior_log)).exp() + ((mean - prior_mean) * (-prior_log).exp()) ** 2
        nats = prior_log - log_std + 0.5 * ratio - 0.5
        kl = kl + nats.flatten(1).sum(1)
        free = index < vdvae.config.n_latent_blocks and block.resolution not in coarse
        layer_cost = nats.mean((0, 2, 3)).clamp(min=free_nats if free else 0.0).sum() * nats[0, 0].numel()
        cost = cost + coarse.get(block.resolution, 1.0) * layer_cost
        states[block.resolution] = block.update(state + update, z)
    px_z = states[vdvae.config.image_size] * vdvae.decoder.gain + vdvae.decoder.bias
    nll = -mixture_log_likelihood(vdvae.decoder.out_net(px_z).float(), images_u8, vdvae.config.num_mixtures)
    bits = 1 / (math.log(2) * images_u8[0].numel())
    return (nll.mean() + kl_weight * cost) * bits, kl.mean().detach() * bits


def joined(images: Tensor, others: Tensor, rng: np.random.Generator, share: float) -> Tensor:
    """Images (n, s, s, 3); of a `share` of them a disc, anywhere and of 0.15 to 0.6 of the side as radius, in another.

    What is seen in one place then tells little of other places, so that each must be told where it lies.
    """
    n, size = len(images), images.shape[1]
    chosen = torch.from_numpy(rng.random(n) < share)
    y, x = torch.from_numpy(rng.uniform(0, size, (2, n, 1, 1)).astype(np.float32))
    radius = torch.from_numpy(rng.uniform(0.15, 0.6, (n, 1, 1)).astype(np.float32)) * size
    at = torch.arange(size) + 0.5
    outside = torch.hypot(at[:, None] - y, at - x) > radius
    return torch.where((outside & chosen[:, None, None])[..., None], others, images)


def mixture_log_likelihood(parameters: Tensor, images_u8: Tensor, num_mixtures: int) -> Tensor:
    """log p (n,) of uint8 images (n, h, w, 3) under the mixtures that `vdvae.sample_mixture` samples.

    Salimans et al. 2017, "PixelCNN++", section 2: logistics over grey levels 2/255 wide, open at both ends.
    """
    x = images_u8.float() / 127.5 - 1
    logits = parameters[..., :num_mixtures]
    rest = parameters[..., num_mixtures:].unflatten(-1, (3, 3 * num_mixtures))
    mean, log_scale, coefficient = rest.split(num_mixtures, dim=-1)
    log_scale, c = log_scale.clamp(min=LOG_SCALE_FLOOR), coefficient.tanh()
    red, green = x[..., :1], x[..., 1:2]
    means = torch.stack(
        [
            mean[..., 0, :],
            mean[..., 1, :] + c[..., 0, :] * red,
            mean[..., 2, :] + c[..., 1, :] * red + c[..., 2, :] * green,
        ],
        dim=-2,
    )
    value = x[..., None]
    centred, inverse = value - means, (-log_scale).exp()
    above, below = inverse * (centred + GREY_LEVEL / 2), inverse * (centred - GREY_LEVEL / 2)
    inside = above.sigmoid() - below.sigmoid()
    middle = inverse * centred
    density = middle - log_scale - 2 * F.softplus(middle) + math.log(GREY_LEVEL)
    log_p = torch.where(inside > 1e-5, inside.clamp(min=1e-12).log(), density)
    log_p = torch.where(value < -0.999, above - F.softplus(above), log_p)
    log_p = torch.where(value > 0.999, -F.softplus(below), log_p)
    return torch.logsumexp(log_p.sum(-2) + logits.log_softmax(-1), dim=-1).sum((1, 2))


def temper(vdvae: VDVAE, temperature: float) -> None:
    """Sample the mixture at another temperature, by the last layer's weights: logits divided by it, scales times it."""
    count, out = vdvae.config.num_mixtures, vdvae.decoder.out_net.out_conv
    with torch.no_grad():
        out.weight[:count] /= temperature
        bias = out.bias
        assert bias is not None
        bias[:count] /= temperature
        bias[count:].view(3, 3 * count)[:, count : 2 * count] += math.log(temperature)


def vae_loss(vae: nn.Module, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """L1 of pixels and of their differences, squared error, and a small KL, for pixels (n, 3, h, w) in [-1, 1]."""
    posterior = vae.encode(pixels).latent_dist  # type: ignore[operator]
    noise = torch.randn(posterior.mean.shape, generator=generator)
    decoded = vae.decode(posterior.mean + posterior.std * noise, return_dict=False)[0].float()  # type: ignore[operator]
    edges = sum(F.l1_loss(decoded.diff(dim=axis), pixels.diff(dim=axis)) for axis in (2, 3))
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    error = F.l1_loss(decoded, pixels) + SQUARE_WEIGHT * F.mse_loss(decoded, pixels)
    return error + EDGE_WEIGHT * edges + KL_WEIGHT * kl


def clip_loss(vision: nn.Module, text: nn.Module, logit_scale: Tensor, pixels: Tensor, tokens: Tensor) -> Tensor:
    """InfoNCE of images (n, 3, s, s) and their captions (n, T), both ways. Radford et al. 2021, figure 3."""
    images = F.normalize(vision(pixel_values=pixels).image_embeds, dim=-1)
    texts = F.normalize(text(input_ids=tokens).text_embeds, dim=-1)
    logits = logit_scale.clamp(max=math.log(100)).exp() * images @ texts.T
    same = torch.arange(len(logits))
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


def unet_loss(
    unet: nn.Module,
    alphas_cumprod: Tensor,
    z: Tensor,
    conditions: Mapping[str, object],
    strength: float,
    generator: torch.Generator,
) -> Tensor:
    """Error of the predicted noise, weighted by min(SNR, 5) / SNR (Hang et al. 2023), for latents (n, c, h, w) under
    `conditions` as the UNet's transformers take them.

    Three quarters of the timesteps are those that run when a guess is given at the paper's `strength`.
    """
    n = len(z)
    high = torch.where(torch.arange(n) % 4 == 0, 1.0, strength) * len(alphas_cumprod)
    step = (torch.rand(n, generator=generator) * high).long()
    alpha = alphas_cumprod[step][:, None, None, None]
    noise = torch.randn(z.shape, generator=generator)
    noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
    known = {"encoder_hidden_states": conditions["text"], "cross_attention_kwargs": conditions}
    predicted = unet(noisy, step, **known, return_dict=False)[0].float()
    snr = (alpha / (1 - alpha)).flatten()
    return ((snr.clamp(max=MAX_SNR) / snr) * (predicted - noise).square().mean((1, 2, 3))).mean()


def unsettle(conditions: Tensor, mean: Tensor, share: Tensor, others: Tensor) -> Tensor:
    """Conditions (n, T, F) as a regression predicts them: a share (n,) of their deviation from the `mean` (T, F)
    is another scene's, at the same overall variance.
    """
    part = share[:, None, None]
    return mean + (1 - part.square()).sqrt() * (conditions - mean) + part * (others - mean)


def shrink(conditions: Tensor, mean: Tensor, left: Tensor) -> Tensor:
    """Conditions (n, T, F) of whose deviation from the `mean` (T, F) a share (n,) is left, as ridge leaves it."""
    return mean + left[:, None, None] * (conditions - mean)


def signed(images_u8: np.ndarray) -> Tensor:
    """Pixels (n, 3, s, s) in [-1, 1] of uint8 images (n, s, s, 3)."""
    return torch.from_numpy(np.array(images_u8)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
