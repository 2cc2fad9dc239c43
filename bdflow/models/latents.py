"""Stimuli to latents, latents to pictures: the networks with the resizing and the noise that Brain-Diffuser
gives them.

Noise is drawn per item, keyed by (seed, purpose, [subject,] nsd_id, block), on the CPU in float32: batch,
order, process and device change nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdflow.errors import InputError
from bdflow.models.batches import Batches, pinned, warn
from bdflow.models.bundle import open_bundle
from bdflow.models.clip import resize
from bdflow.models.draws import draws_of, uint8_images
from bdflow.models.painter import BICUBIC, Painter

__all__ = ["BICUBIC", "BILINEAR", "FeatureExtractor", "Painter", "resize"]

BILINEAR = Image.Resampling.BILINEAR
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
    batch_size : images that go through an encoder at once; by default all that are handed in.
    tell : called with a line when a batch did not fit into memory and was made smaller; by default a warning.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int = 0,
        vdvae_latent: str = "sample",
        batch_size: int | None = None,
        tell: Callable[[str], None] = warn,
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
        self.device = device
        self.batches = {
            space: Batches(f"encoding for {space}", size, tell=tell)
            for space, size in (("vdvae", batch_size), ("clip_vision", batch_size), ("clip_text", TEXT_BATCH))
        }

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
        return self.extract(self.inputs(images, captions, nsd_ids))

    def inputs(self, images: np.ndarray, captions: Sequence[Sequence[str]], nsd_ids: Sequence[int]) -> "FeatureInputs":
        """What `extract` needs: pictures resized, noise drawn, captions as tokens. Raises what a call raises."""
        images = uint8_images("stimuli", images, len(nsd_ids))
        tokens, rows = self._tokens(captions, nsd_ids)
        return FeatureInputs(*self._vdvae(images, nsd_ids), self._pixels(images), tokens, rows)

    def extract(self, inputs: "FeatureInputs") -> dict[str, np.ndarray]:
        """Latents of what `inputs` made ready."""
        if len(inputs.rows) == 0:
            return {space: np.zeros((0, *shape), np.float32) for space, shape in self.spaces.items()}
        return {
            "vdvae": self._encoded(inputs.pictures, inputs.draws),
            "clip_vision": self._seen(inputs.pixels),
            "clip_text": self._averaged(inputs.tokens, inputs.rows),
        }

    def vdvae_latents(self, images: np.ndarray, nsd_ids: Sequence[int]) -> np.ndarray:
        """(n, D) float32 of uint8 images (n, h, h, 3)."""
        return self._encoded(*self._vdvae(images, nsd_ids))

    def vision_embeddings(self, images: np.ndarray) -> np.ndarray:
        """(n, T, F) float32 of uint8 images (n, h, h, 3)."""
        return self._seen(self._pixels(images))

    def caption_embeddings(self, captions: Sequence[Sequence[str]], nsd_ids: Sequence[int]) -> np.ndarray:
        """(n, T, F) float32: the mean embedding of each stimulus's non-empty captions; equal strings are
        embedded once.

        Raises InputError for a stimulus with no caption.
        """
        return self._averaged(*self._tokens(captions, nsd_ids))

    def _vdvae(self, images: np.ndarray, nsd_ids: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        draws = []
        if self.vdvae_latent == "sample":
            draws = draws_of(self.vdvae.latent_shapes, self.seed, "vdvae posterior", (), nsd_ids)
        pictures = torch.from_numpy(resize(images, self.guess_size, BILINEAR))
        return pinned(pictures, self.device), [pinned(draw, self.device) for draw in draws]

    def _encoded(self, pictures: Tensor, draws: list[Tensor]) -> np.ndarray:
        def encode(here: Tensor, *noise: Tensor) -> Tensor:
            return self.vdvae.encode(here, noise or None).cpu()

        return self.batches["vdvae"].run(encode, pictures, *draws).numpy()

    def _pixels(self, images: np.ndarray) -> Tensor:
        return pinned(self.clip_vision.processing(resize(images, self.image_size, BILINEAR)), self.device)

    def _seen(self, pixels: Tensor) -> np.ndarray:
        return self.batches["clip_vision"].run(lambda here: self.clip_vision.embed_pixels(here).cpu(), pixels).numpy()

    def _tokens(self, captions: Sequence[Sequence[str]], nsd_ids: Sequence[int]) -> tuple[Tensor, list[list[int]]]:
        """Tokens of the distinct captions, and which of them each stimulus has."""
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
        number = {text: index for index, text in enumerate(unique)}
        return pinned(self.clip_text.tokens(unique), self.device), [[number[text] for text in texts] for texts in kept]

    def _averaged(self, tokens: Tensor, rows: list[list[int]]) -> np.ndarray:
        of = self.batches["clip_text"].run(lambda here: self.clip_text.embed_tokens(here).cpu(), tokens).numpy()
        return np.stack([np.mean(of[row], axis=0) for row in rows])


@dataclass(frozen=True)
class FeatureInputs:
    """n stimuli ready for the encoders: `pictures` (n, g, g, 3) uint8 and `draws` for the VDVAE, `pixels` for CLIP,
    `tokens` of the distinct captions, and in `rows` which of them belong to each stimulus."""

    pictures: Tensor
    draws: list[Tensor]
    pixels: Tensor
    tokens: Tensor
    rows: list[list[int]]
