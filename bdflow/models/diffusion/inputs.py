"""What every painter that starts from pictures does beside its networks: guesses resized, noise drawn, parts joined."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdflow import random
from bdflow.config import PaintOptions, SpeedSettings
from bdflow.models.config import BatchSizes
from bdflow.models.diffusion.attention import Calls, calls_of, measured, refuse_unfit
from bdflow.models.diffusion.batches import pinned
from bdflow.models.diffusion.draws import items_of, one_row_each, stack, uint8_images
from bdflow.models.diffusion.img2img import Img2Img, PaintBatches
from bdflow.models.diffusion.kernels import Milliseconds, chosen, said
from bdflow.models.resizing import resize
from bdflow.models.weights.bundle import open_bundle

BICUBIC = Image.Resampling.BICUBIC
Network = TypeVar("Network", bound=Img2Img)
log = logging.getLogger(__name__)


class Joined:
    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Several items' inputs as those of one batch; all have the same parts."""
        return cls(**{field.name: _cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class PaintInputs(Joined):
    """What is painted: guesses at their final size (n, S, S, 3), conditions (n, T, F), noise (n, *latent_shape)."""

    guesses: Tensor | None
    vision: Tensor | None
    text: Tensor | None
    start: Tensor
    encode: Tensor


class PictureInputs(ABC):
    """What every painter of a bundle has: its settings, and inputs of a block, made in another thread beside its work.
    Networks are loaded when they are first needed, and kept.

    Parameters
    ----------
    bundle : `tiny` or a directory.
    device, dtype : where and in which precision the networks run.
    guess_dtype : in which precision guesses are decoded; None: float32 where the VDVAE decodes them, as
        `networks.vdvae_dtype` has it by default, else `dtype`.
    seed : of all noise, which each item has of its own.
    options : steps, strength, guidance, mixing, ...
    speed : how the networks are called.
    kernels : of attention, by part (`bdflow.models.diffusion.kernels`), where `speed.attention` is `measured` and they
        are known; else they are measured when the networks are loaded, and said.
    sizes : images a batch in each stage; by default all that are handed in. A batch that does not fit into memory is
        made smaller, with a warning in the log; where `sizes` are fixed, in half precision or fp8, it is an error,
        since pictures painted in smaller batches differ from those before.
    """

    own_guess_dtype: ClassVar[str | None] = None

    def __init__(
        self,
        bundle: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int = 0,
        options: PaintOptions | None = None,
        speed: SpeedSettings | None = None,
        sizes: BatchSizes | None = None,
        guess_dtype: str | None = None,
        kernels: Mapping[str, str] | None = None,
    ) -> None:
        self.bundle, self.device, self.dtype = open_bundle(bundle), device, dtype
        self.seed, self.options, self.speed = seed, options or PaintOptions(), speed or SpeedSettings()
        self.kernels = kernels
        free = sizes is None or not sizes.fixed
        self.guess_dtype = guess_dtype or self.own_guess_dtype or dtype
        self.batches = PaintBatches(
            sizes,
            halve=free or (dtype == "float32" and self.options.linear == "exact"),
            halve_guesses=free or self.guess_dtype == "float32",
        )

    @property
    @abstractmethod
    def guess_size(self) -> int:
        """Pixels a side of a guess."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Pixels a side of a reconstruction."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of what is denoised."""

    @property
    @abstractmethod
    def diffusion(self) -> Img2Img:
        """The diffusion model with its autoencoder."""

    def measure_attention(self) -> Milliseconds:
        """How long each kernel takes for the attention of a batch; not a number where one refuses it, or on the CPU."""
        return measured(self._attention_calls(self.diffusion), self.diffusion.dtype, self.diffusion.device)

    def _attention_calls(self, network: Img2Img) -> Calls:
        of = self.batches
        return calls_of(network, of.denoise.size or 1, of.decode.size or 1)

    def _settled(self, network: Network) -> Network:
        """A network that was just loaded, with the linear layers and kernels of attention that settings ask for."""
        if self.options.linear == "fp8":
            network.use_eight_bits()
        if self.speed.attention == "measured":
            if self.kernels is None:
                times = measured(self._attention_calls(network), network.dtype, network.device)
                self.kernels = chosen(times)
                log.info("%s", said(times))
            for part, name in self.kernels.items():
                refuse_unfit(network, part, name)
            network.attend(self.kernels)
        return network

    def paint_inputs(
        self,
        guesses: np.ndarray | None,
        vision: np.ndarray | None,
        text: np.ndarray | None,
        subject: str,
        stimulus_ids: Sequence[str],
        pictures: Sequence[int] | None = None,
    ) -> PaintInputs:
        """What `paint_prepared` needs: guesses resized, noise drawn; arguments and errors as of `paint`. `pictures`:
        the number of each row among several pictures of its stimulus; they share the draw that encodes the guess.
        """
        resized = None if guesses is None else self.enlarged(guesses, len(stimulus_ids))
        for name, array in (("vision", vision), ("text", text)):
            if array is not None:
                one_row_each(name, array, len(stimulus_ids))
        shape, start = self.latent_shape, items_of(subject, stimulus_ids, pictures)
        return PaintInputs(
            resized,
            None if vision is None else self._pinned(torch.as_tensor(vision)),
            None if text is None else self._pinned(torch.as_tensor(text)),
            self._pinned(stack(random.normal, shape, self.seed, "diffusion start", start)),
            self._pinned(stack(random.normal, shape, self.seed, "guess posterior", items_of(subject, stimulus_ids))),
        )

    def enlarged(self, guesses: np.ndarray, n: int) -> Tensor:
        """n guesses, uint8, at the size of reconstructions."""
        return self._pinned(torch.from_numpy(resize(uint8_images("guesses", guesses, n), self.image_size, BICUBIC)))

    def _pinned(self, values: Tensor) -> Tensor:
        return pinned(values, self.device)


def _cat(parts: Sequence[Any]) -> object:
    if parts[0] is None:
        return None
    if isinstance(parts[0], list):
        return [torch.cat(together) for together in zip(*parts, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
