"""Kinds of painters: predicted latents into pictures. Light to import; networks are loaded by `load`.

A painter of one's own is a subclass of `PainterKind`, named `package.module:Class` in the configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from bdflow.config import ROLES, Config, NetworkSettings, PainterSettings, PaintOptions, content
from bdflow.errors import InputError
from bdflow.models.weights.bundle import open_bundle
from bdflow.registry import refuse_without_effect, resolve

if TYPE_CHECKING:
    from torch import Tensor

PAINTERS = {
    "versatile_diffusion": "bdflow.models.painters:VersatileDiffusionKind",
    "stable_diffusion": "bdflow.models.painters:StableDiffusionKind",
}

PAINTER_SETTINGS = (*PaintOptions.model_fields, "options")
"""Settings of a painter that some kinds alone look at."""


class Painting(Protocol):
    """A loaded painter. What it needs is made ready beside its work, in another thread; the inputs of several blocks
    are joined by `type(inputs).join([inputs, ...])`.
    """

    def guess_inputs(self, latents: np.ndarray, subject: str, stimulus_ids: Sequence[str]) -> Any:
        """What `decode_guesses` needs, of latents (n, ...) of the space of the role `guess`."""

    def decode_guesses(self, inputs: Any) -> np.ndarray:
        """Guesses (n, g, g, 3) uint8."""

    def paint_inputs(
        self,
        guesses: np.ndarray | None,
        vision: np.ndarray | None,
        text: np.ndarray | None,
        subject: str,
        stimulus_ids: Sequence[str],
        pictures: Sequence[int] | None = None,
    ) -> Any:
        """What `paint_prepared` needs; what a variant leaves out is None. `pictures`: which of several pictures of its
        stimulus each row is, from 0: its noise is another one. None: all are the first.
        """

    def paint_prepared(self, inputs: Any) -> np.ndarray:
        """Reconstructions (n, s, s, 3) uint8."""

    def enlarged(self, guesses: np.ndarray, n: int) -> Tensor:
        """Guesses at the size of reconstructions."""


class PainterKind(ABC):
    """A painter as the configuration asks for it.

    Attributes
    ----------
    variants : what may be painted: by name, the roles (`guess`, `vision`, `text`) that are used.
    enlarges : those of them that are the guess at the size of reconstructions, and no more.
    version : raise it when the class paints something else, so that old pictures are stale.
    looks_at : which of the settings in PAINTER_SETTINGS it reads; others are refused when they are given, as is a space
        for a role that none of the variants uses.
    attends : whether it computes attention as `networks.speed.attention` says; then what it loads has
        `measure_attention`.
    kernels : of attention, by part, where they were measured before (`bdflow.models.diffusion.kernels`); None: what is
        to be measured is measured when the networks are loaded.
    """

    variants: ClassVar[Mapping[str, tuple[str, ...]]]
    enlarges: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1
    looks_at: ClassVar[tuple[str, ...]] = ("options",)
    attends: ClassVar[bool] = False

    def __init__(self, settings: PainterSettings, networks: NetworkSettings, seed: int) -> None:
        self.settings, self.networks, self.seed = settings, networks, seed
        self.kernels: Mapping[str, str] | None = None

    @property
    def measures(self) -> bool:
        """Whether its kernels of attention are chosen by measuring them."""
        return self.attends and self.networks.speed.attention == "measured"

    def measuring_settings(self) -> dict[str, object]:
        """What decides which attention is measured, beside the networks."""
        speed, wanted = self.networks.speed, self.settings
        return {
            "dtype": self.networks.dtype,
            "device": self.networks.device_kind,
            "joint_guidance": speed.joint_guidance,
            "batches": [wanted.batch_size, wanted.decode_batch_size or wanted.batch_size],
        }

    @property
    @abstractmethod
    def guess_size(self) -> int:
        """Pixels a side of a guess."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Pixels a side of a reconstruction."""

    @abstractmethod
    def inputs(self) -> Mapping[str, str]:
        """Digests of what pictures depend on beside latents and settings, such as weights, by what they are."""

    def guess_inputs(self) -> Mapping[str, str]:
        """Digests of what guesses depend on beside latents and settings; by default those of `inputs`."""
        return self.inputs()

    def variant_inputs(self, variant: str) -> Mapping[str, str]:
        """Digests of what pictures of a variant depend on beside what they are made from."""
        return {"pixels": str(self.image_size)} if variant in self.enlarges else self.inputs()

    def variant_settings(self, variant: str) -> dict[str, object]:
        """The settings that shape pictures of a variant."""
        return {} if variant in self.enlarges else content(self.settings, "painting")

    @property
    def guess_dtype(self) -> str:
        """The precision in which guesses are decoded."""
        return self.networks.dtype

    def guess_arithmetic(self) -> Mapping[str, object]:
        """What decides how guesses round (`NetworkSettings.arithmetic`)."""
        return self.networks.arithmetic(dtype=self.guess_dtype, switches=True, guess=self.settings.batch_size)

    def arithmetic(self, variant: str) -> Mapping[str, object]:
        """What decides how pictures of a variant round."""
        if variant in self.enlarges:
            return {}
        wanted = self.settings
        sizes = {"denoise": wanted.batch_size, "decode": wanted.decode_batch_size or wanted.batch_size}
        if "guess" in self.variants[variant]:
            sizes["encode"] = wanted.encode_batch_size or wanted.batch_size
        dtype = self.networks.dtype if wanted.linear == "exact" else wanted.linear
        return self.networks.arithmetic(dtype=dtype, switches=True, **sizes)

    @abstractmethod
    def load(self, *, batched: bool = True) -> Painting:
        """Load the networks, or have them loaded when they are first needed.

        `batched` : in batches of the settings' sizes, filled up, so that a picture does not depend on what is painted
        beside it; else whatever is handed in goes through at once or, where networks are compiled or recorded once a
        shape, in batches of at most these sizes, filled up to powers of two.
        """


class VersatileDiffusionKind(PainterKind):
    """Brain-Diffuser's: a guess by the VDVAE, and from it a picture by Versatile Diffusion under both conditions."""

    attends = True
    looks_at = tuple(PaintOptions.model_fields)
    variants: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "full": ("guess", "vision", "text"),
        "only_vdvae": ("guess",),
        "no_vdvae": ("vision", "text"),
        "no_clip_text": ("guess", "vision"),
        "no_clip_vision": ("guess", "text"),
    }
    enlarges: ClassVar[tuple[str, ...]] = ("only_vdvae",)

    @property
    def guess_dtype(self) -> str:
        return self.networks.vdvae_dtype

    def guess_arithmetic(self) -> Mapping[str, object]:
        return self.networks.arithmetic(dtype=self.guess_dtype, guess=self.settings.batch_size)

    @property
    def guess_size(self) -> int:
        return open_bundle(self.networks.bundle).guess_size

    @property
    def image_size(self) -> int:
        return open_bundle(self.networks.bundle).image_size

    def inputs(self) -> Mapping[str, str]:
        return open_bundle(self.networks.bundle).digests("unet", "vae", "scheduler", "clip_vision", "clip_text")

    def guess_inputs(self) -> Mapping[str, str]:
        return open_bundle(self.networks.bundle).digests("vdvae")

    def variant_settings(self, variant: str) -> dict[str, object]:
        if variant in self.enlarges:
            return {}
        found = {name: value for name, value in content(self.settings).items() if name in PaintOptions.model_fields}
        if len(set(self.variants[variant]) - {"guess"}) == 1:
            del found["mixing"]
        return found

    def load(self, *, batched: bool = True) -> Painting:
        from bdflow.models.versatile.painter import Painter

        return Painter(self.networks.bundle, **_given(self, batched))


class StableDiffusionKind(PainterKind):
    """Takagi & Nishimoto's: z (role `guess`) decoded into a picture, and from it one by Stable Diffusion, under c (role
    `text`).
    """

    attends = True
    looks_at = tuple(name for name in PaintOptions.model_fields if name != "mixing")
    variants: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "full": ("guess", "text"),
        "only_z": ("guess",),
        "only_c": ("text",),
    }

    @property
    def guess_size(self) -> int:
        return open_bundle(self.networks.bundle).z_size

    @property
    def image_size(self) -> int:
        return open_bundle(self.networks.bundle).stable_size

    def inputs(self) -> Mapping[str, str]:
        return open_bundle(self.networks.bundle).digests("sd_unet", "sd_vae", "sd_text", "scheduler")

    def guess_inputs(self) -> Mapping[str, str]:
        return open_bundle(self.networks.bundle).digests("sd_vae")

    def variant_settings(self, variant: str) -> dict[str, object]:
        shaping = PaintOptions.model_fields.keys() - {"mixing"}
        return {name: value for name, value in content(self.settings).items() if name in shaping}

    def load(self, *, batched: bool = True) -> Painting:
        from bdflow.models.stable_diffusion.painter import StablePainter

        return StablePainter(self.networks.bundle, **_given(self, batched))


def _given(kind: PainterKind, batched: bool) -> dict[str, Any]:
    """What a painter of a bundle is loaded with, beside the bundle."""
    from bdflow.models.config import BatchSizes

    wanted = kind.settings
    sizes = BatchSizes(
        guess=wanted.batch_size,
        encode=wanted.encode_batch_size or wanted.batch_size,
        denoise=wanted.batch_size,
        decode=wanted.decode_batch_size or wanted.batch_size,
        fixed=batched,
        buckets=not batched,
    )
    free = not batched and kind.networks.speed.compile == "none"
    return {
        "device": kind.networks.device,
        "dtype": kind.networks.dtype,
        "guess_dtype": kind.guess_dtype,
        "seed": kind.seed,
        "options": wanted.paint_options,
        "speed": kind.networks.speed,
        "sizes": None if free else sizes,
        "kernels": kind.kernels,
    }


def of_this_kind(kind: type[PainterKind]) -> tuple[str, ...]:
    """What a kind of painter looks at of the settings that some kinds alone do, and of the roles."""
    used = {role for roles in kind.variants.values() for role in roles}
    return (*kind.looks_at, *(role for role in ROLES if role in used))


def painter_kind(config: Config, name: str) -> PainterKind:
    """A painter of the configuration, not loaded yet.

    Raises
    ------
    InputError : an unknown kind or variant; a variant that uses a role for which no space is named; a setting, or a
        space for a role, that the kind does not look at.
    """
    settings, key = config.painters[name], f"painters.{name}"
    kind = resolve(settings.kind, PAINTERS, f"{key}.kind")
    given = settings.given((*PAINTER_SETTINGS, *ROLES))
    refuse_without_effect(given, kind, key, settings.kind, PAINTERS, of_this_kind)
    made: PainterKind = kind(settings, config.networks, config.seed)
    for variant in settings.variants:
        if variant not in made.variants:
            raise InputError(
                f"{key}.variants",
                found=repr(variant),
                expected="among " + ", ".join(made.variants),
                action="choose among these",
            )
        lacking = [role for role in made.variants[variant] if getattr(settings, role) is None]
        if lacking:
            raise InputError(
                f"{key}.variants",
                found=f"{variant!r}, which uses {', '.join(lacking)}",
                expected=f"a space for each role it uses ({', '.join(ROLES)})",
                action=f"name a space as {key}.{lacking[0]}, or leave the variant out",
            )
    return made
