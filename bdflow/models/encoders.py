"""Encoders: stimuli to the latents of one target space. Light to import; networks are loaded by `load`.

An encoder of one's own is a subclass of `Encoder`, named `package.module:Class` in the configuration
(docs/new_space.md).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bdflow.config import ARRAY, Config, NetworkSettings, SpeedSettings, content
from bdflow.errors import InputError, counted
from bdflow.models.weights.bundle import Bundle, open_bundle
from bdflow.registry import resolve

if TYPE_CHECKING:
    from torch import Tensor

    from bdflow.models.clip import ClipText, ClipVision
    from bdflow.models.diffusion.batches import Batches
    from bdflow.models.vdvae import VDVAE

ENCODERS = {
    "vdvae": "bdflow.models.encoders:VDVAEEncoder",
    "clip_vision": "bdflow.models.encoders:CLIPVisionEncoder",
    "clip_text": "bdflow.models.encoders:CLIPTextEncoder",
    "sd_vae": "bdflow.models.stable_diffusion.encoders:SDVAEEncoder",
    "sd_text": "bdflow.models.stable_diffusion.encoders:SDTextEncoder",
    "sd_denoising": "bdflow.models.stable_diffusion.denoising:SDDenoisingEncoder",
}
LATENTS_OF_A_FILE = "bdflow.models.array_encoder:ArrayEncoder"
TEXT_BATCH = 64


@dataclass(frozen=True)
class Stimuli:
    """A block of n stimuli.

    Attributes
    ----------
    ids : (n,) ids.
    images : (n, y, x, 3) uint8, as shown.
    captions : the non-empty captions of each.
    """

    ids: np.ndarray
    images: np.ndarray
    captions: Sequence[Sequence[str]]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Setup:
    """What every encoder is told.

    Attributes
    ----------
    space : name of the target space, for messages.
    bundle : `tiny`, or a directory of published weights.
    device, dtype : where and in which precision networks run.
    seed : of noise, if the encoder draws any.
    batch_size : stimuli that go through a network at once; None: all that are handed in.
    speed : how a diffusion model is called.
    """

    space: str
    bundle: str | Path = "tiny"
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    batch_size: int | None = None
    speed: SpeedSettings = field(default_factory=SpeedSettings)

    def batches(self, size: int | None) -> Batches:
        """A network's items in batches of this size."""
        from bdflow.models.diffusion.batches import Batches

        return Batches(f"encoding for {self.space}", size, halve=self.dtype == "float32")


class Encoder(ABC):
    """Stimuli to latents.

    An instance is made in the driver, to ask for `shape` and `inputs`, and in each worker, where `load` is called once,
    `prepare` beside `work` in another thread, and `work` with what `prepare` returned.

    Attributes
    ----------
    takes : what of the stimuli it needs, `image` or `captions`; those it does not need are not read.
    draws_noise : whether its latents depend on the configuration's seed.
    version : raise it when the class computes something else, so that old latents are stale.
    """

    takes: ClassVar[tuple[str, ...]] = ("image",)
    draws_noise: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of a latent: (feature,) or (token, feature). Answered without loading the network."""

    @property
    def layers(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the network's layers whose values follow one another in a latent; none by default."""
        return ()

    @property
    def token_kinds(self) -> tuple[str, ...]:
        """What each token stands for, such as `class` and `patch`, for the coordinate `token_kind`; none by default."""
        return ()

    def inputs(self) -> Mapping[str, str]:
        """Digests of what latents depend on beside stimuli and options, such as weights, by what they are."""
        return {}

    @classmethod
    def dtype_of(cls, networks: NetworkSettings) -> str:
        """The precision in which its networks run."""
        return networks.dtype

    @classmethod
    def arithmetic(cls, networks: NetworkSettings, batch_size: int) -> Mapping[str, object]:
        """What decides how latents round (`NetworkSettings.arithmetic`)."""
        return networks.arithmetic(dtype=cls.dtype_of(networks), encode=batch_size)

    @property
    def shared(self) -> Hashable | None:
        """What it has in common with encoders whose latents one pass through the networks gives as well: of those with
        equal answers the first alone is loaded, and asked by `work_together`. None: with none.
        """
        return None

    def load(self) -> None:  # noqa: B027
        """Load what is heavy, if anything is."""

    def prepare(self, stimuli: Stimuli) -> Any:
        """What `work` needs of a block of stimuli: images resized, captions as tokens."""
        return stimuli

    @abstractmethod
    def work(self, prepared: Any) -> np.ndarray:
        """Latents (n, *shape) float32. Raises InputError for stimuli that cannot be encoded."""

    def work_together(self, prepared: Any, encoders: Sequence[Encoder]) -> list[np.ndarray]:
        """Latents of each of `encoders`, of which it is one or equal to them in `shared`."""
        return [self.work(prepared)]


class BundleEncoder(Encoder):
    """An encoder whose network is the bundle's `network_name`; what else the bundle holds makes no latents stale."""

    network_name: ClassVar[str]

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.bundle: Bundle = open_bundle(setup.bundle)

    @cached_property
    def batches(self) -> Batches:
        """The network's items, as many at once as are asked for."""
        return self.setup.batches(self.setup.batch_size)

    def inputs(self) -> Mapping[str, str]:
        return self.bundle.digests(self.network_name)


class VDVAEEncoder(BundleEncoder):
    """Latents of the VDVAE's first layers (Child 2021; Brain-Diffuser: 31 layers, 91,168 values), of the picture as the
    VDVAE takes it, by PIL bilinear.

    Parameters
    ----------
    latent : `sample` draws z from its posterior (the authors), `mean` takes the posterior mean.
    """

    network_name = "vdvae"
    draws_noise = True

    @classmethod
    def dtype_of(cls, networks: NetworkSettings) -> str:
        return networks.vdvae_dtype

    def __init__(self, setup: Setup, latent: str = "sample") -> None:
        super().__init__(setup)
        if latent not in ("sample", "mean"):
            raise InputError(
                "latent of the VDVAE", found=repr(latent), expected="sample or mean", action="choose one of them."
            )
        self.latent = latent

    @property
    def layers(self) -> tuple[tuple[int, ...], ...]:
        return self.bundle.layers

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bundle.shape_of("vdvae")

    @cached_property
    def network(self) -> VDVAE:
        """The VDVAE."""
        return self.bundle.vdvae(self.setup.device, self.setup.dtype)

    def load(self) -> None:
        self.network  # noqa: B018

    def prepare(self, stimuli: Stimuli) -> tuple[Tensor, list[Tensor]]:
        import torch
        from PIL import Image

        from bdflow.models.diffusion.batches import pinned
        from bdflow.models.diffusion.draws import draws_of, uint8_images
        from bdflow.models.resizing import resize

        images = uint8_images("stimuli", stimuli.images, len(stimuli.ids))
        draws = []
        if self.latent == "sample":
            ids = stimuli.ids.tolist()
            draws = draws_of(self.network.latent_shapes, self.setup.seed, "vdvae posterior", (), ids)
        pictures = torch.from_numpy(resize(images, self.bundle.guess_size, Image.Resampling.BILINEAR))
        device = self.setup.device
        return pinned(pictures, device), [pinned(draw, device) for draw in draws]

    def work(self, prepared: tuple[Tensor, list[Tensor]]) -> np.ndarray:
        def encode(here: Tensor, *noise: Tensor) -> Tensor:
            return self.network.encode(here, noise or None).cpu()

        pictures, draws = prepared
        return self.batches.run(encode, pictures, *draws).numpy()


class CLIPVisionEncoder(BundleEncoder):
    """All tokens of CLIP's image encoder, projected and normalised as Versatile Diffusion takes them; the picture goes
    by PIL bilinear to the size of reconstructions, then through CLIP's processing.
    """

    network_name = "clip_vision"

    def inputs(self) -> Mapping[str, str]:
        return {**super().inputs(), "pixels": str(self.bundle.image_size)}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bundle.shape_of("clip_vision")

    @property
    def token_kinds(self) -> tuple[str, ...]:
        return ("class", *("patch",) * (self.shape[0] - 1))

    @cached_property
    def network(self) -> ClipVision:
        """CLIP's image encoder."""
        return self.bundle.clip_vision(self.setup.device, self.setup.dtype)

    def load(self) -> None:
        self.network  # noqa: B018

    def prepare(self, stimuli: Stimuli) -> Tensor:
        from PIL import Image

        from bdflow.models.diffusion.batches import pinned
        from bdflow.models.diffusion.draws import uint8_images
        from bdflow.models.resizing import resize

        images = uint8_images("stimuli", stimuli.images, len(stimuli.ids))
        resized = resize(images, self.bundle.image_size, Image.Resampling.BILINEAR)
        return pinned(self.network.processing(resized), self.setup.device)

    def work(self, prepared: Tensor) -> np.ndarray:
        return self.batches.run(lambda here: self.network.embed_pixels(here).cpu(), prepared).numpy()


class CLIPTextEncoder(BundleEncoder):
    """All tokens of CLIP's text encoder, projected and normalised as Versatile Diffusion takes them, averaged over a
    stimulus's captions. Equal strings are embedded once.
    """

    network_name = "clip_text"
    takes = ("captions",)

    @classmethod
    def arithmetic(cls, networks: NetworkSettings, batch_size: int) -> Mapping[str, object]:
        return networks.arithmetic(encode=TEXT_BATCH)

    @cached_property
    def batches(self) -> Batches:
        return self.setup.batches(TEXT_BATCH)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bundle.shape_of("clip_text")

    @property
    def token_kinds(self) -> tuple[str, ...]:
        """Captions differ in length and are averaged, so of the tokens behind the first none is a word always."""
        return ("start", *("word, end or padding",) * (self.shape[0] - 1))

    @cached_property
    def network(self) -> ClipText:
        """CLIP's text encoder."""
        return self.bundle.clip_text(self.setup.device, self.setup.dtype)

    def load(self) -> None:
        self.network  # noqa: B018

    def prepare(self, stimuli: Stimuli) -> tuple[Tensor, list[list[int]]]:
        """Tokens of the distinct captions, and which of them each stimulus has."""
        from bdflow.models.diffusion.batches import pinned

        captions, ids = stimuli.captions, stimuli.ids
        if len(captions) != len(ids):
            raise InputError(
                "captions",
                found=counted(len(captions), "list"),
                expected=f"one list for each of {len(ids)} stimuli",
                action="hand in one list of captions a stimulus.",
            )
        kept = [[text for text in texts if text.strip()] for texts in captions]
        for stimulus_id, texts in zip(ids, kept, strict=True):
            if not texts:
                raise InputError(
                    f"captions of stimulus {stimulus_id}",
                    found="none",
                    expected="at least one non-empty caption",
                    action="complete the caption file, or leave this stimulus out.",
                )
        unique = list(dict.fromkeys(text for texts in kept for text in texts))
        number = {text: index for index, text in enumerate(unique)}
        tokens = pinned(self.network.tokens(unique), self.setup.device)
        return tokens, [[number[text] for text in texts] for texts in kept]

    def work(self, prepared: tuple[Tensor, list[list[int]]]) -> np.ndarray:
        tokens, rows = prepared
        of = self.batches.run(lambda here: self.network.embed_tokens(here).cpu(), tokens).numpy()
        return np.stack([np.mean(of[row], axis=0) for row in rows])


def encoder_class(config: Config, space: str) -> tuple[type[Encoder], dict[str, Any]]:
    """The class of a space's encoder, and the options it is made with. Nothing is opened.

    Raises
    ------
    InputError : an unknown encoder or option.
    """
    settings, key = config.spaces[space], f"spaces.{space}"
    name, options = settings.encoder, dict(settings.options)
    if settings.encoder.startswith(ARRAY):
        if "path" in options:
            raise InputError(
                f"{key}.options",
                found="`path` beside array:PATH",
                expected="the path once",
                action=f"name the file in `{key}` as array:PATH, and leave `path` out of the options",
            )
        name, options = LATENTS_OF_A_FILE, {"path": settings.encoder.removeprefix(ARRAY), **options}
    made: type[Encoder] = resolve(name, ENCODERS, f"{key}.encoder")
    try:
        inspect.signature(made).bind(None, **options)
    except TypeError as error:
        takes = [name for name in inspect.signature(made).parameters if name != "setup"]
        raise InputError(
            f"{key}.options",
            found=", ".join(f"{name}: {value}" for name, value in settings.options.items()) + f" ({error})",
            expected="options that the encoder takes: " + (", ".join(takes) or "none"),
            action="correct the options",
        ) from error
    return made, options


def encoder_of(config: Config, space: str) -> Encoder:
    """The encoder of a space, not loaded yet.

    Raises
    ------
    InputError : an unknown encoder or option, a file or bundle that cannot be read.
    """
    networks, (made, options) = config.networks, encoder_class(config, space)
    batch, speed = config.features.batch_size, networks.speed
    if speed.attention == "measured":  # for painters; a pass through a UNet is a small part of what features cost
        speed = speed.model_copy(update={"attention": "fused"})
    setup = Setup(space, networks.bundle, networks.device, made.dtype_of(networks), config.seed, batch, speed)
    return made(setup, **options)


def encoder_settings(config: Config, space: str) -> dict[str, object]:
    """What of the configuration shapes the latents of a space: encoder, its options and version, seed if it draws."""
    settings, (made, _) = config.spaces[space], encoder_class(config, space)
    name = ARRAY.rstrip(":") if settings.encoder.startswith(ARRAY) else settings.encoder
    signature = inspect.signature(made).parameters
    defaults = {name: of.default for name, of in signature.items() if of.default is not inspect.Parameter.empty}
    found: dict[str, Any] = {"encoder": name, "version": made.version, "options": {**defaults, **settings.options}}
    if made.draws_noise:
        found["seed"] = config.seed
    if name != ARRAY.rstrip(":"):
        found["networks"] = {**content(config.networks), "dtype": made.dtype_of(config.networks)}
    return found
