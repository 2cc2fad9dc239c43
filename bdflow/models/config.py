"""The shape of a VDVAE and the settings of the second stage; light to import."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from bdflow.errors import InputError


@dataclass(frozen=True)
class PaintOptions:
    """Settings of the second stage; the defaults are the paper's.

    steps : DDIM steps of the whole schedule; `int(strength * steps)` of them run (37).
    strength : how far the guess is noised, in (0, 1].
    guidance_scale : classifier-free guidance, eps_uncond + scale * (eps_cond - eps_uncond).
    mixing : share of the text transformers, in [0, 1]; the vision transformers have the rest.
    noise_index : `authors` adds the noise of index int(strength * steps) and denoises from the index below
        (timesteps 741 and 721 for the defaults; at strength 1 both are the last index); `diffusers` uses the
        lower index for both.
    latent : the guess enters as a `sample` of the autoencoder's posterior, or as its `mean`.

    Approximate modes, off by default:

    solver : `ddim`, or `dpmpp_2m`, of second order, which needs fewer steps (`bdflow.models.solvers`).
    guidance_interval : (low, high) in fractions of the noise schedule, 0 clean, 1 noise alone. Outside it the
        conditional half runs alone (Kynkäänniemi et al. 2024).
    feature_cache : the UNet's deep features are computed anew every so many steps (Ma et al. 2023); 1 is every step.
    """

    steps: int = 50
    strength: float = 0.75
    guidance_scale: float = 7.5
    mixing: float = 0.4
    noise_index: Literal["authors", "diffusers"] = "authors"
    latent: Literal["sample", "mean"] = "sample"
    solver: Literal["ddim", "dpmpp_2m"] = "ddim"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    feature_cache: int = 1

    def __post_init__(self) -> None:
        rules: list[tuple[str, bool, str]] = [
            ("steps", self.steps >= 1, "at least 1"),
            ("strength", 0 < self.strength <= 1, "in (0, 1]"),
            ("mixing", 0 <= self.mixing <= 1, "in [0, 1]"),
            ("noise_index", self.noise_index in ("authors", "diffusers"), "authors or diffusers"),
            ("latent", self.latent in ("sample", "mean"), "sample or mean"),
            ("solver", self.solver in ("ddim", "dpmpp_2m"), "ddim or dpmpp_2m"),
            (
                "guidance_interval",
                len(self.guidance_interval) == 2 and 0 <= self.guidance_interval[0] < self.guidance_interval[1] <= 1,
                "(low, high) with 0 <= low < high <= 1",
            ),
            ("feature_cache", self.feature_cache >= 1, "at least 1"),
        ]
        for name, holds, expected in rules:
            if not holds:
                self._refuse(name, getattr(self, name), expected)
        if int(self.strength * self.steps) < 1:
            self._refuse("strength", self.strength, f"at least 1 / steps = {1 / self.steps:g}, so that a step runs")

    def _refuse(self, name: str, value: Any, expected: str) -> None:
        raise InputError(f"paint option {name}", found=repr(value), expected=expected, action=f"set {name} so.")


@dataclass(frozen=True)
class Speed:
    """Switches that make painting faster and change no result by more than rounding (docs/painting.md).

    joint_guidance : the conditional and the unconditional half of guidance go through the UNet as one batch.
    cached_conditions : keys and values of the conditions, which no step changes, are computed once a batch; those of
        `nothing` once for all.
    channels_last : memory order of the convolutions' images.
    attention : `fused` (torch's scaled_dot_product_attention) or `plain`.
    compile : how the UNet is called: `none` (as it is), `torch_compile`, or `cuda_graphs`, recorded once a batch shape.
    """

    joint_guidance: bool = True
    cached_conditions: bool = True
    channels_last: bool = False
    attention: Literal["fused", "plain"] = "fused"
    compile: Literal["none", "torch_compile", "cuda_graphs"] = "none"

    def __post_init__(self) -> None:
        for name, known in (("attention", ("fused", "plain")), ("compile", ("none", "torch_compile", "cuda_graphs"))):
            if getattr(self, name) not in known:
                raise InputError(
                    f"speed switch {name}",
                    found=repr(getattr(self, name)),
                    expected=" or ".join(known),
                    action="choose one of them.",
                )


@dataclass(frozen=True)
class BatchSizes:
    """Images a batch, by stage of painting; None takes all that are handed in. `fixed` fills up the last batch
    (`bdflow.models.batches.Batches`)."""

    guess: int | None = None
    encode: int | None = None
    denoise: int | None = None
    decode: int | None = None
    fixed: bool = False


@dataclass(frozen=True)
class VDVAEConfig:
    """The shape of a VDVAE; the defaults are OpenAI's ImageNet-64 model as Brain-Diffuser uses it.

    `enc_blocks`, `dec_blocks`: `RxN` is N blocks at R px, `RdN` a block and then N-fold average pooling,
    `RmN` a block at R px that adds the upsampled state of N px. `n_latent_blocks` is how many decoder
    blocks' z are regressed.
    """

    image_size: int = 64
    enc_blocks: str = "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5"
    dec_blocks: str = "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12"
    zdim: int = 16
    width: int = 512
    bottleneck_multiple: float = 0.25
    no_bias_above: int = 64
    num_mixtures: int = 10
    n_latent_blocks: int = 31

    @property
    def decoder_layout(self) -> list[tuple[int, int | None]]:
        """(resolution, resolution mixed in or None) of every decoder block."""
        layout: list[tuple[int, int | None]] = []
        for resolution, kind, number in _parse_blocks(self.dec_blocks, "xm"):
            layout += [(resolution, number)] if kind == "m" else [(resolution, None)] * number
        return layout

    @property
    def encoder_layout(self) -> list[tuple[int, int | None]]:
        """(resolution, pooling factor or None) of every encoder block."""
        layout: list[tuple[int, int | None]] = []
        for resolution, kind, number in _parse_blocks(self.enc_blocks, "xd"):
            layout += [(resolution, number)] if kind == "d" else [(resolution, None)] * number
        return layout

    @property
    def block_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(c, h, w) of the z of every decoder block."""
        return tuple((self.zdim, resolution, resolution) for resolution, _ in self.decoder_layout)

    @property
    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(c, h, w) of the z of the blocks that are regressed."""
        return self.block_shapes[: self.n_latent_blocks]

    @property
    def n_latents(self) -> int:
        """Length D of the flattened latents (91,168 for the real model)."""
        return sum(math.prod(shape) for shape in self.latent_shapes)


def _parse_blocks(text: str, kinds: str) -> list[tuple[int, str, int]]:
    parsed = []
    for item in text.split(","):
        match = re.fullmatch(rf"(\d+)(?:([{kinds}])(\d+))?", item)
        if match is None:
            raise InputError(
                "VDVAE block string",
                found=repr(item),
                expected=f"a resolution, or resolution + one of {list(kinds)} + number",
                action="correct the block string in the bundle's manifest.",
            )
        parsed.append((int(match[1]), match[2] or "x", int(match[3] or 1)))
    return parsed
