"""CLIP's text tower as Stable Diffusion 1 takes it: all tokens after the last layer norm, not projected, not scaled."""

from __future__ import annotations

import torch
from torch import Tensor

from bdflow.models.clip import ClipText


class StableText(ClipText):
    """Strings to (n, T, F) conditions; padded and cut to T tokens (77 for the published model)."""

    @torch.inference_mode()
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Conditions (n, T, F) float32 of numbers of tokens (n, T)."""
        parameter = next(self.model.parameters())
        if len(tokens) == 0:
            return parameter.new_zeros(0, tokens.shape[1], self.model.config.hidden_size).float()
        hidden: Tensor = self.model(input_ids=tokens.to(parameter.device, non_blocking=True)).last_hidden_state
        return hidden.float()
