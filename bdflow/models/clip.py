"""CLIP embeddings as Versatile Diffusion uses them: every token projected, and scaled by one pooled norm.

Not the usual pooled CLIP vector. Vision: last hidden state -> post layer norm -> projection, divided by the
norm of the image's own token 0. Text: last hidden state -> projection, divided by the norm of the projected
pooled output (X. Xu et al., "Versatile Diffusion", 2023; its FrozenCLIP embedder).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdflow.errors import InputError
from bdflow.models.resizing import resize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MID_GREY = 0.5


@dataclass(frozen=True)
class ClipProcessing:
    """What CLIP's image processor does to a square uint8 image: bicubic resize, scale to [0, 1], normalise.

    The centre crop of the published processor takes the whole of a square image, so it needs no code here.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: object) -> ClipProcessing:
        """From a `preprocessor_config.json`, of any age. Raises InputError for steps other than CLIP's
        own.
        """
        size, crop = config.get("size", 224), config.get("crop_size", 224)
        edge = size if isinstance(size, int) else size.get("shortest_edge", size.get("height"))
        cropped = crop if isinstance(crop, int) else crop.get("height")
        steps = [config.get(f"do_{step}", True) for step in ("resize", "center_crop", "normalize")]
        resample = config.get("resample", 3)
        if not all(steps) or resample != 3 or edge != cropped:
            raise InputError(
                where,
                found=f"resize/crop/normalise {steps}, resample {resample}, size {edge}, crop {cropped}",
                expected="CLIP's processing: bicubic (3) resize and crop to one size, then normalise",
                action="use the preprocessor_config.json of openai/clip-vit-large-patch14.",
            )
        return cls(int(edge), tuple(config["image_mean"]), tuple(config["image_std"]))  # type: ignore[arg-type]

    def __call__(self, images_u8: np.ndarray) -> Tensor:
        """Pixels (n, 3, size, size) float32 of uint8 images (n, h, h, 3).

        Raises InputError for float images: scaled once by the caller, they would be scaled a second time
        here.
        """
        images = np.asarray(images_u8)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
            raise InputError(
                "images for CLIP",
                found=f"{images.dtype} of shape {images.shape}",
                expected="uint8 of shape (n, h, h, 3)",
                meaning="Float images in [0, 1] would be divided by 255 a second time.",
                action="hand in the uint8 pictures as they are.",
            )
        resized = resize(images, self.size, Image.Resampling.BICUBIC).astype(np.float32) / np.float32(255)
        return self._normalise(torch.from_numpy(resized))

    def constant(self, value: float) -> Tensor:
        """Pixels (1, 3, size, size) of a picture that is `value` (0 black, 1 white) everywhere."""
        return self._normalise(torch.full((1, self.size, self.size, 3), value))

    def _normalise(self, images: Tensor) -> Tensor:
        return ((images - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(0, 3, 1, 2).contiguous()


class ClipVision:
    """CLIP's vision tower: uint8 images to (n, tokens, features) embeddings."""

    def __init__(self, model: Any, processing: ClipProcessing) -> None:
        self.model, self.processing = model, processing

    def embed(self, images_u8: np.ndarray) -> Tensor:
        """Embeddings (n, T, F) float32 of uint8 images (n, h, h, 3); T = 257, F = 768 for the real model.

        Raises InputError for float or non-square images.
        """
        return self.embed_pixels(self.processing(images_u8))

    def unconditional(self) -> Tensor:
        """Embedding (1, T, F) float32 of a mid-grey picture, the `no image` of classifier-free guidance."""
        return self.embed_pixels(self.processing.constant(MID_GREY))

    @torch.inference_mode()
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Embeddings of pixels (n, 3, size, size) as `processing` makes them."""
        projection = self.model.visual_projection.weight
        hidden = self.model(
            pixel_values=pixels.to(projection.device, projection.dtype, non_blocking=True)
        ).last_hidden_state
        tokens = self.model.visual_projection(self.model.vision_model.post_layernorm(hidden)).float()
        return tokens / tokens[:, :1].norm(dim=-1, keepdim=True)


class ClipText:
    """CLIP's text tower: strings to (n, tokens, features) embeddings."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (n, T, F) float32 of n strings; T = 77, F = 768 for the real model. Longer texts are
        cut to T tokens.

        Every row is padded to T without an attention mask, as Versatile Diffusion does, so a row never
        depends on the others.
        """
        return self.embed_tokens(self.tokens(texts))

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Numbers of tokens (n, T) of n strings."""
        length = self.model.config.max_position_embeddings
        if not texts:
            return torch.zeros((0, length), dtype=torch.int64)
        rows = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return rows["input_ids"]

    @torch.inference_mode()
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embeddings (n, T, F) float32 of numbers of tokens (n, T)."""
        projection = self.model.text_projection.weight
        if len(tokens) == 0:
            return projection.new_zeros(0, tokens.shape[1], len(projection)).float()
        out = self.model(input_ids=tokens.to(projection.device, non_blocking=True))
        embedded = self.model.text_projection(out.last_hidden_state).float()
        return embedded / out.text_embeds.float().norm(dim=-1)[:, None, None]

    def unconditional(self) -> Tensor:
        """Embedding (1, T, F) float32 of the empty string, the `no text` of classifier-free guidance."""
        return self.embed([""])
