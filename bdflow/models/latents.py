"""Stimuli to latents, latents to pictures: the networks with the resizing and the noise that Brain-Diffuser
gives them.

Noise is drawn per item, keyed by (seed, purpose, [subject,] nsd_id, block), on the CPU in float32: batch,
order, process and device change nothing.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdflow import noise
from bdflow.errors import InputError
from bdflow.models.bundle import open_bundle
from bdflow.models.clip import resize
from bdflow.models.config import PaintOptions
from bdflow.models.vdvae import VDVAE
from bdflow.models.versatile import VersatileDiffusion

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
TEXT_BATCH = 64


class FeatureExtractor:
    """The three encoders of a bundle, loaded once: images and captions to latents.

    Parameters
    ----------
    bundle : `tiny` or a directory.
    device, dtype : where and in which precision the networks run; latents are float32 always.
    seed : of the posterior noise.
    vdvae_latent : `sample` draws the VDVAE's z from its posterior (the authors), `mean` takes the posterior
        mean.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int = 0,
        vdvae_latent: str = "sample",
    ) -> None:
        if vdvae_latent not in ("sample", "mean"):
            raise InputError(
                "vdvae_latent", found=repr(vdvae_latent), expected="sample or mean", action="choose one of them."
            )
        opened = open_bundle(bundle)
        self.seed, self.vdvae_latent, self.spaces = seed, vdvae_latent, opened.spaces
        self.guess_size, self.image_size = opened.guess_size, opened.image_size
        self.vdvae = opened.vdvae(device, dtype)
        self.clip_vision = opened.clip_vision(device, dtype)
        self.clip_text = opened.clip_text(device, dtype)

    def __call__(
        self, images: np.ndarray, captions: Sequence[Sequence[str]], nsd_ids: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Latents of n stimuli: space -> float32 (n, *shape), shapes as in `Bundle.spaces`.

        `images` (n, h, h, 3) uint8; `captions` one list a stimulus, of which the non-empty ones are embedded
        and averaged (`caption_embeddings`). VDVAE: PIL bilinear to its size; CLIP vision: PIL bilinear to
        the size of reconstructions, then CLIP's processing (protocol of Brain-Diffuser's feature scripts).
        Raises InputError for images that are not uint8, for a stimulus without any caption, or for unequal
        lengths.
        """
        images = _uint8_images("stimuli", images, len(nsd_ids))
        if len(nsd_ids) == 0:
            return {space: np.zeros((0, *shape), np.float32) for space, shape in self.spaces.items()}
        return {
            "vdvae": self.vdvae_latents(images, nsd_ids),
            "clip_vision": self.vision_embeddings(images),
            "clip_text": self.caption_embeddings(captions, nsd_ids),
        }

    def vdvae_latents(self, images: np.ndarray, nsd_ids: Sequence[int]) -> np.ndarray:
        """(n, D) float32 of uint8 images (n, h, h, 3)."""
        draws = None
        if self.vdvae_latent == "sample":
            draws = _draws(self.vdvae.latent_shapes, self.seed, "vdvae posterior", (), nsd_ids)
        return self.vdvae.encode(resize(images, self.guess_size, BILINEAR), draws).cpu().numpy()

    def vision_embeddings(self, images: np.ndarray) -> np.ndarray:
        """(n, T, F) float32 of uint8 images (n, h, h, 3)."""
        return self.clip_vision.embed(resize(images, self.image_size, BILINEAR)).cpu().numpy()

    def caption_embeddings(self, captions: Sequence[Sequence[str]], nsd_ids: Sequence[int]) -> np.ndarray:
        """(n, T, F) float32: the mean embedding of each stimulus's non-empty captions; equal strings are
        embedded once.

        Raises InputError for a stimulus with no caption.
        """
        if len(captions) != len(nsd_ids):
            raise InputError(
                "captions",
                found=f"{len(captions)} lists",
                expected=f"one list for each of {len(nsd_ids)} stimuli",
                action="hand in one list of captions a stimulus.",
            )
        kept = [[text for text in texts if text.strip()] for texts in captions]
        for nsd_id, texts in zip(nsd_ids, kept, strict=True):
            if not texts:
                raise InputError(
                    f"captions of nsd_id {nsd_id}",
                    found="none",
                    expected="at least one non-empty caption",
                    action="complete the caption file, or leave this stimulus out.",
                )
        unique = list(dict.fromkeys(text for texts in kept for text in texts))
        batches = [unique[start : start + TEXT_BATCH] for start in range(0, len(unique), TEXT_BATCH)]
        rows = [row for batch in batches for row in self.clip_text.embed(batch).cpu().numpy()]
        of = dict(zip(unique, rows, strict=True))
        out = np.zeros((len(kept), *self.spaces["clip_text"]), np.float32)
        for index, texts in enumerate(kept):
            out[index] = np.mean([of[text] for text in texts], axis=0)
        return out


class Painter:
    """The VDVAE's decoder and Versatile Diffusion of a bundle, predictions to guesses and
    reconstructions. Each network is loaded when it is first needed, and kept.

    Parameters
    ----------
    bundle : `tiny` or a directory.
    device, dtype : where and in which precision the networks run.
    seed : of all noise.
    options : steps, strength, guidance, mixing, ...
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int = 0,
        options: PaintOptions | None = None,
    ) -> None:
        self.bundle, self.device, self.dtype = open_bundle(bundle), device, dtype
        self.seed, self.options = seed, options or PaintOptions()
        self.guess_size, self.image_size = self.bundle.guess_size, self.bundle.image_size
        self.spaces = self.bundle.spaces

    @cached_property
    def vdvae(self) -> VDVAE:
        """The VDVAE without its encoder."""
        network = self.bundle.vdvae(self.device, self.dtype)
        del network.encoder
        return network

    @cached_property
    def versatile(self) -> VersatileDiffusion:
        """The diffusion model."""
        return self.bundle.versatile(self.device, self.dtype)

    def guess(self, latents: np.ndarray, subject: str, nsd_ids: Sequence[int]) -> np.ndarray:
        """Guesses (n, g, g, 3) uint8 of predicted VDVAE latents (n, D); g = `guess_size`.

        Raises InputError for latents of another shape.
        """
        _one_row_each("latents", latents, len(nsd_ids))
        prior = _draws(self.vdvae.prior_shapes, self.seed, "vdvae prior", (subject,), nsd_ids)
        mixture_shape, logistic_shape = self.vdvae.uniform_shapes
        u_mixture = _stack(noise.uniform, mixture_shape, self.seed, "mixture component", (subject,), nsd_ids)
        u_logistic = _stack(noise.uniform, logistic_shape, self.seed, "mixture value", (subject,), nsd_ids)
        return self.vdvae.decode(latents, prior, u_mixture, u_logistic).cpu().numpy()

    def paint(
        self,
        guesses: np.ndarray | None,
        vision: np.ndarray | None,
        text: np.ndarray | None,
        subject: str,
        nsd_ids: Sequence[int],
    ) -> np.ndarray:
        """Reconstructions (n, S, S, 3) uint8; S = `image_size`.

        `guesses` (n, g, g, 3) uint8, brought to S by PIL bicubic; `vision`, `text` (n, T, F) predictions.
        What may be absent, and what then stands in for it: see `VersatileDiffusion.paint`. Raises InputError
        for wrong shapes, or when both conditions are absent.
        """
        if len(nsd_ids) == 0:
            return np.zeros((0, self.image_size, self.image_size, 3), np.uint8)
        shape = self.versatile.latent_shape
        start = _stack(noise.normal, shape, self.seed, "diffusion start", (subject,), nsd_ids)
        encode = None
        if guesses is not None:
            guesses = resize(_uint8_images("guesses", guesses, len(nsd_ids)), self.image_size, BICUBIC)
            encode = _stack(noise.normal, shape, self.seed, "guess posterior", (subject,), nsd_ids)
        for name, array in (("vision", vision), ("text", text)):
            if array is not None:
                _one_row_each(name, array, len(nsd_ids))
        painted = self.versatile.paint(
            guesses, vision, text, start_noise=start, encode_noise=encode, options=self.options
        )
        return painted.numpy()


Draw = Callable[..., np.ndarray]
Item = tuple[str | int, ...]


def _stack(
    draw: Draw, shape: tuple[int, ...], seed: int, purpose: str, before: Item, nsd_ids: Sequence[int], *after: int
) -> Tensor:
    """(n, *shape) draws, each item from its own key (purpose, *before, nsd_id, *after)."""
    rows = [draw(shape, seed, purpose, *before, int(nsd_id), *after) for nsd_id in nsd_ids]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros((0, *shape))


def _draws(
    shapes: Sequence[tuple[int, ...]], seed: int, purpose: str, before: Item, nsd_ids: Sequence[int]
) -> list[Tensor]:
    """Standard-normal draws, one (n, c, h, w) tensor a block."""
    return [_stack(noise.normal, shape, seed, purpose, before, nsd_ids, block) for block, shape in enumerate(shapes)]


def _uint8_images(what: str, images: np.ndarray, n: int) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != n:
        raise InputError(
            what,
            found=f"{images.dtype} of shape {images.shape}",
            expected=f"uint8 of shape ({n}, h, h, 3)",
            action="hand in the pictures as uint8, one for each nsd_id.",
        )
    return images


def _one_row_each(what: str, array: np.ndarray, n: int) -> None:
    if len(array) != n:
        raise InputError(
            what, found=f"{len(array)} rows", expected=f"{n}, one for each nsd_id", action="align them by nsd_id."
        )
