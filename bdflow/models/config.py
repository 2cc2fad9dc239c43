"""The shape of a VDVAE and the settings of the second stage; light to import."""

import math
import re
from dataclasses import dataclass

from bdflow.errors import InputError


@dataclass(frozen=True)
class BatchSizes:
    """Images a batch, by stage of painting; None takes all that are handed in. `fixed` fills up the last batch
    (`bdflow.models.diffusion.batches.Batches`), `buckets` every batch to the next power of two."""

    guess: int | None = None
    encode: int | None = None
    denoise: int | None = None
    decode: int | None = None
    fixed: bool = False
    buckets: bool = False


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
