"""What Stable Diffusion holds while it denoises a photo: its latent, or the output of a layer of its UNet, at a step.

Takagi & Nishimoto (2023), section 4.2: encoding models of the generator's own insides. z_c is z noised to a level and
denoised under c. Their script of it was never published: noise, steps and guidance here are those of their decoding.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import ValidationError

from bdflow.config import NetworkSettings, PaintOptions
from bdflow.errors import InputError
from bdflow.models.encoders import Encoder, Setup, Stimuli
from bdflow.models.stable_diffusion.encoders import SDTextEncoder
from bdflow.models.stable_diffusion.layers import EXAMPLES, taken_shape
from bdflow.models.weights.bundle import open_bundle

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bdflow.models.diffusion.batches import Batches
    from bdflow.models.stable_diffusion.unet import StableDiffusion

Prepared = tuple["Tensor", "Tensor | None", "Tensor", Any]  # pictures, posterior noise, start noise, captions


def denoising_options(
    where: str, strength: float, steps: int, guidance_scale: float, latent: str, noise_index: str
) -> PaintOptions:
    """How a photo is noised and denoised. Raises InputError for values that `PaintOptions` does not take."""
    try:
        return PaintOptions(
            strength=strength,
            steps=steps,
            guidance_scale=guidance_scale,
            latent=latent,  # type: ignore[arg-type]
            noise_index=noise_index,  # type: ignore[arg-type]
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([where, *map(str, first["loc"])])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(
            key, found=repr(first["input"]), expected=f"what a painter takes ({message})", action="correct it"
        ) from error


class SDDenoisingEncoder(Encoder):
    """The latent of a photo while it is denoised under its captions (z_c), or a layer of the UNet, flattened channel by
    channel.

    The photo is brought to the size of reconstructions by PIL Lanczos, its z noised as painting does, and denoised
    under c, the mean over captions. Noise is the stimulus's own, the same for all spaces of a study. Spaces that differ
    in `step`, `layer` and `pool` alone come from one pass through the steps.

    Parameters
    ----------
    step : after how many steps of denoising the latent is taken, 0 (noised z) to all; None: all. A layer is taken while
        that step is made, of the half of guidance that has the captions.
    layer : a layer of the UNet by its name in diffusers, such as `mid_block` or `up_blocks.1`; None: the latent.
    pool : its maps are averaged to so many pixels a side; None: as they are.
    strength, steps, guidance_scale, noise_index, latent : as painting (`PaintOptions`): steps of the whole schedule, of
        which int(strength * steps) run.
    """

    takes = ("image", "captions")
    draws_noise = True

    def __init__(
        self,
        setup: Setup,
        step: int | None = None,
        layer: str | None = None,
        pool: int | None = None,
        strength: float = 0.8,
        steps: int = 50,
        guidance_scale: float = 5.0,
        noise_index: Literal["authors", "diffusers"] = "authors",
        latent: Literal["sample", "mean"] = "sample",
    ) -> None:
        super().__init__(setup)
        where = f"spaces.{setup.space}.options"
        self.options = denoising_options(where, strength, steps, guidance_scale, latent, noise_index)
        run = int(strength * steps)
        self.step = run if step is None else step
        self.layer, self.pool = layer, pool
        self.bundle = open_bundle(setup.bundle)
        if not isinstance(self.step, int) or not (layer is not None) <= self.step <= run:
            raise InputError(
                f"{where}.step",
                found=repr(step),
                expected=f"{1 if layer is not None else 0} to {run}: int(strength x steps) steps run",
                action="correct it, or raise `strength` or `steps`",
            )
        if pool is not None and (layer is None or not isinstance(pool, int) or not 1 <= pool <= self._map[1]):
            raise InputError(
                f"{where}.pool",
                found=f"{pool!r}" + (" without a layer" if layer is None else ""),
                expected="a layer, whose maps it averages" if layer is None else f"1 to {self._map[1]}, its side",
                action="correct it, or leave it out",
            )
        if layer is not None and setup.speed.compile != "none":
            raise InputError(
                f"{where}.layer",
                found=f"{layer}, and networks.speed.compile: {setup.speed.compile}",
                expected="a UNet that is not compiled: its layers are looked into",
                action="set networks.speed.compile: none, or leave out `layer`",
            )

    @cached_property
    def _map(self) -> tuple[int, int, int]:
        """(c, h, w) of what is taken, before it is averaged."""
        self.bundle.shape_of("sd_vae")  # raises where the bundle does not hold Stable Diffusion
        config = self.bundle.manifest.network("sd_unet").config()
        try:
            return taken_shape(config, self.layer)
        except KeyError as error:
            raise InputError(
                f"spaces.{self.setup.space}.options.layer",
                found=repr(self.layer),
                expected=f"a layer of this UNet, by its name in diffusers, such as {EXAMPLES}",
                action="correct the name",
            ) from error

    @property
    def layers(self) -> tuple[tuple[int, ...], ...]:
        channels, side, _ = self._map
        side = self.pool or side
        return ((channels, side, side),)

    @property
    def shape(self) -> tuple[int, ...]:
        return (math.prod(self.layers[0]),)

    @property
    def shared(self) -> Hashable:
        of = self.options
        return of.strength, of.steps, of.guidance_scale, of.noise_index, of.latent

    def inputs(self) -> Mapping[str, str]:
        networks = self.bundle.digests("sd_unet", "sd_vae", "sd_text", "scheduler")
        return {**networks, "pixels": str(self.bundle.stable_size)}

    @classmethod
    def arithmetic(cls, networks: NetworkSettings, batch_size: int) -> Mapping[str, object]:
        return networks.arithmetic(switches=True, encode=batch_size)

    @cached_property
    def batches(self) -> Batches:
        """Stimuli, as many at once as are asked for; what is learnt about memory stays."""
        return self.setup.batches(self.setup.batch_size)

    @cached_property
    def network(self) -> StableDiffusion:
        """Stable Diffusion."""
        return self.bundle.stable(self.setup.device, self.setup.dtype, self.setup.speed)

    @cached_property
    def text(self) -> SDTextEncoder:
        """What makes c of the captions."""
        return SDTextEncoder(self.setup)

    def load(self) -> None:
        self.text.load()
        self.network  # noqa: B018

    def prepare(self, stimuli: Stimuli) -> Prepared:
        import torch
        from PIL import Image

        from bdflow.models.diffusion.batches import pinned
        from bdflow.models.diffusion.draws import draws_of, uint8_images
        from bdflow.models.resizing import resize

        images, device = uint8_images("stimuli", stimuli.images, len(stimuli.ids)), self.setup.device
        pictures = torch.from_numpy(resize(images, self.bundle.stable_size, Image.Resampling.LANCZOS))
        ids, shape = stimuli.ids.tolist(), self.network.latent_shape
        posterior = None
        if self.options.latent == "sample":
            (drawn,) = draws_of([shape], self.setup.seed, "denoising posterior", (), ids)
            posterior = pinned(drawn, device)
        (start,) = draws_of([shape], self.setup.seed, "denoising start", (), ids)
        return pinned(pictures, device), posterior, pinned(start, device), self.text.prepare(stimuli)

    def work(self, prepared: Prepared) -> np.ndarray:
        return self.work_together(prepared, [self])[0]

    def work_together(self, prepared: Prepared, encoders: Sequence[Encoder]) -> list[np.ndarray]:
        import torch

        pictures, posterior, start, captions = prepared
        asked = [encoder for encoder in encoders if isinstance(encoder, SDDenoisingEncoder)]
        network, c = self.network, torch.from_numpy(self.text.work(captions))

        @torch.inference_mode()
        def side_by_side(*given: Tensor | None) -> Tensor:
            return torch.cat([taken.flatten(1).float().cpu() for taken in self._taken(network, asked, *given)], dim=1)

        found = self.batches.run(side_by_side, pictures, posterior, start, c).numpy()
        ends = np.cumsum([encoder.shape[0] for encoder in asked])
        return np.split(found, ends[:-1], axis=1)

    def _taken(
        self,
        network: StableDiffusion,
        asked: Sequence[SDDenoisingEncoder],
        pictures: Tensor | None,
        posterior: Tensor | None,
        start: Tensor | None,
        c: Tensor | None,
    ) -> list[Tensor]:
        """(n, c, h, w) of each that is asked, from one pass, which ends with the last step that is asked for."""
        from bdflow.models.diffusion.img2img import Schedule

        options = self.options
        assert pictures is not None
        assert start is not None
        schedule = Schedule.of(network.alphas_cumprod, options.steps)
        noise_index, first = schedule.start(options)
        z = network.encode(pictures, posterior, options.latent)
        x = network.add_noise(z, start, schedule, noise_index)
        found: dict[int, Tensor] = {number: x for number, of in enumerate(asked) if of.layer is None and of.step == 0}
        walk = network.trajectory(x, {"text": c}, schedule, first, options)
        for step in range(1, max(of.step for of in asked) + 1):
            here = {number: of for number, of in enumerate(asked) if of.step == step}
            layers = {of.layer for of in here.values() if of.layer is not None}
            with outputs(network.unet, layers) as seen:
                x = next(walk)
            for number, of in here.items():
                found[number] = x if of.layer is None else _averaged(seen[of.layer][-len(x) :], of.pool)
        walk.close()
        return [found[number] for number in range(len(asked))]


@contextmanager
def outputs(unet: nn.Module, layers: set[str]) -> Iterator[dict[str, Tensor]]:
    """What these layers give, each time they are called, the last time remains; of blocks with several outputs the
    first. With both halves of guidance in one batch, the second half of the rows has the conditions.
    """
    seen: dict[str, Tensor] = {}

    def keep(layer: str) -> Any:
        def hook(_: nn.Module, __: object, output: Any) -> None:
            seen[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    watching = [unet.get_submodule(layer).register_forward_hook(keep(layer)) for layer in sorted(layers)]
    try:
        yield seen
    finally:
        for one in watching:
            one.remove()


def _averaged(maps: Tensor, side: int | None) -> Tensor:
    if side is None:
        return maps
    from torch.nn.functional import adaptive_avg_pool2d

    return adaptive_avg_pool2d(maps.float(), side)
