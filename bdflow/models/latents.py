"""The three encoders of Brain-Diffuser together, for those who want all latents of some stimuli at once.

Noise is drawn per item, keyed by (seed, purpose, [subject,] stimulus_id, block), on the CPU in float32: batch,
order, process and device change nothing.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bdflow.models.encoders import CLIPTextEncoder, CLIPVisionEncoder, Encoder, Setup, Stimuli, VDVAEEncoder

__all__ = ["FeatureExtractor"]


class FeatureExtractor:
    """The three encoders of a bundle, loaded once: images and captions to latents.

    Parameters
    ----------
    bundle : `tiny` or a directory.
    device, dtype : where and in which precision the networks run; latents are float32 always.
    vdvae_dtype : in which the VDVAE runs.
    seed : of the posterior noise.
    vdvae_latent : `sample` draws the VDVAE's z from its posterior (the authors), `mean` takes the posterior
        mean.
    batch_size : images that go through an encoder at once; by default all that are handed in. A batch that does not
        fit into memory is made smaller, with a warning in the log.
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
        vdvae_dtype: str = "float32",
    ) -> None:
        def setup(space: str, dtype: str = dtype) -> Setup:
            return Setup(space, bundle, device, dtype, seed, batch_size)

        self._vdvae = VDVAEEncoder(setup("vdvae", vdvae_dtype), vdvae_latent)
        self._vision, self._text = CLIPVisionEncoder(setup("clip_vision")), CLIPTextEncoder(setup("clip_text"))
        self.encoders: dict[str, Encoder] = {
            "vdvae": self._vdvae, "clip_vision": self._vision, "clip_text": self._text
        }  # fmt: skip
        opened = self._vdvae.bundle
        self.spaces = {space: encoder.shape for space, encoder in self.encoders.items()}
        self.guess_size, self.image_size = opened.guess_size, opened.image_size
        for encoder in self.encoders.values():
            encoder.load()
        self.vdvae, self.clip_vision, self.clip_text = self._vdvae.network, self._vision.network, self._text.network

    def __call__(
        self, images: np.ndarray, captions: Sequence[Sequence[str]], stimulus_ids: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Latents of n stimuli: space -> float32 (n, *shape), shapes as in `Bundle.spaces`.

        `images` (n, h, h, 3) uint8; `captions` one list a stimulus, of which the non-empty ones are embedded
        and averaged. Raises InputError for images that are not uint8, for a stimulus without any caption, or for
        unequal lengths.
        """
        stimuli = Stimuli(np.asarray(stimulus_ids), images, captions)
        prepared = {space: encoder.prepare(stimuli) for space, encoder in self.encoders.items()}
        if not len(stimuli):
            return {space: np.zeros((0, *shape), np.float32) for space, shape in self.spaces.items()}
        return {space: encoder.work(prepared[space]) for space, encoder in self.encoders.items()}

    def vdvae_latents(self, images: np.ndarray, stimulus_ids: Sequence[str]) -> np.ndarray:
        """(n, D) float32 of uint8 images (n, h, h, 3)."""
        return self._vdvae.work(self._vdvae.prepare(Stimuli(np.asarray(stimulus_ids), images, ())))

    def vision_embeddings(self, images: np.ndarray) -> np.ndarray:
        """(n, T, F) float32 of uint8 images (n, h, h, 3)."""
        return self._vision.work(self._vision.prepare(Stimuli(np.arange(len(images)), images, ())))

    def caption_embeddings(self, captions: Sequence[Sequence[str]], stimulus_ids: Sequence[str]) -> np.ndarray:
        """(n, T, F) float32: the mean embedding of each stimulus's non-empty captions; equal strings are
        embedded once.

        Raises InputError for a stimulus with no caption.
        """
        ids = np.asarray(stimulus_ids)
        return self._text.work(self._text.prepare(Stimuli(ids, np.zeros((len(ids), 0, 0, 3), np.uint8), captions)))
