"""Attention of the UNet's transformers, and the conditions of guidance, whose keys and values no step changes."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

Half = Literal["joint", "conditional", "unconditional"]
Pair = tuple[Tensor, Tensor]
Pairs = dict[Half, Pair]


class TransformerAttention:
    """The attention processor of a transformer block: softmax(Q K' / sqrt(d)) V, `fused` into one kernel or plain.

    With `kept`, keys and values come from there while it holds some.
    """

    def __init__(self, fused: bool, kept: "KeptConditions | None" = None) -> None:
        self.fused, self.kept = fused, kept
        self.pairs: Pairs = {}

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        if self.kept is not None and self.kept.half is not None:
            key, value = self.pairs[self.kept.half]
        else:
            key, value = keys_of(attn, hidden_states if encoder_hidden_states is None else encoder_hidden_states)
        query = _heads(attn.to_q(hidden_states), attn.heads)
        if self.fused:
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            out = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1) @ value
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def keys_of(attn: Attention, source: Tensor) -> Pair:
    """Keys and values (n, heads, T, d) that an attention layer makes of (n, T, F)."""
    return _heads(attn.to_k(source), attn.heads), _heads(attn.to_v(source), attn.heads)


def _heads(values: Tensor, heads: int) -> Tensor:
    return values.unflatten(-1, (heads, -1)).transpose(1, 2)


class KeptConditions:
    """Keys and values of the conditions in every cross-attention of a UNet, for all steps of a batch.

    Parameters
    ----------
    fused : see `TransformerAttention`.
    active : whether they are kept at all.
    in_place : of batches of one shape, under conditions of the same sides, they always lie in the same memory, from
        which recorded graphs read; so every shape has memory of its own. Else only the last batch's are held.

    Attributes
    ----------
    half : the half whose keys the UNet uses now; None lets it compute its own.
    """

    def __init__(self, unet: nn.Module, fused: bool, active: bool, in_place: bool = False) -> None:
        self.half: Half | None = None
        self.active, self.in_place = active, in_place
        self._layers: list[tuple[str, Any, TransformerAttention]] = []
        self._nothing: dict[int, Pair] = {}
        self._sets: dict[tuple[object, ...], list[Pairs]] = {}
        for side, transformer in _transformers(unet):
            blocks: Any = transformer.transformer_blocks
            for block in blocks:
                block.attn1.processor = TransformerAttention(fused)
                block.attn2.processor = TransformerAttention(fused, self if active else None)
                self._layers.append((side, block.attn2, block.attn2.processor))

    def fill(self, given: Mapping[str, Tensor | None], nothing: Mapping[str, Tensor], joint: bool) -> None:
        """Compute them: `given` (n, T, F) and `nothing` (1, T, F) by side, `vision` and `text`.

        With `joint` also for both halves in one batch, the unconditional first.
        """
        if not self.active:
            return
        shapes = tuple((side, None if value is None else tuple(value.shape)) for side, value in given.items())
        there = self._sets.get((joint, *shapes)) if self.in_place else None
        made = []
        for number, (side, attn, processor) in enumerate(self._layers):
            condition = given[side]
            pairs: Pairs = {}
            if condition is not None:
                pairs = self._pairs(number, attn, condition, nothing[side], joint)
                if there is not None:
                    pairs = _put(there[number], pairs, joint)
            processor.pairs = pairs
            made.append(pairs)
        if self.in_place:
            self._sets[joint, *shapes] = made

    def forget(self) -> None:
        """Let go of all memory but that of the conditions of nothing."""
        self._sets.clear()
        for _, _, processor in self._layers:
            processor.pairs = {}

    def _pairs(self, number: int, attn: Any, condition: Tensor, nothing: Tensor, joint: bool) -> Pairs:
        if number not in self._nothing:
            self._nothing[number] = keys_of(attn, nothing.to(condition))
        own, n = keys_of(attn, condition), len(condition)
        without = tuple(part.expand(n, -1, -1, -1) for part in self._nothing[number])
        if not joint:
            return {"conditional": own, "unconditional": (without[0], without[1])}
        both = torch.cat([without[0], own[0]]), torch.cat([without[1], own[1]])
        return {"joint": both, "conditional": (both[0][n:], both[1][n:])}


def _put(there: Pairs, pairs: Pairs, joint: bool) -> Pairs:
    """The values of `pairs` where those of an earlier batch lie. Those of nothing never change."""
    half: Half = "joint" if joint else "conditional"
    for old, new in zip(there[half], pairs[half], strict=True):
        old.copy_(new)
    return there


def _transformers(unet: nn.Module) -> Iterator[tuple[str, Transformer2DModel]]:
    for name, module in unet.named_modules():
        side = name.rpartition(".")[2]
        if isinstance(module, Transformer2DModel) and side in ("vision", "text"):
            yield side, module


class Conditions:
    """What a batch is painted under: `given` (n, T, F) and `nothing` (1, T, F) by side (`vision`, `text`, or one of
    them), and their mixing.
    """

    def __init__(self, given: Mapping[str, Tensor | None], nothing: Mapping[str, Tensor], mixing: float) -> None:
        self.given, self.nothing, self.mixing = given, nothing, mixing
        self._made: dict[str, dict[str, Any]] = {}

    def of(self, half: Half) -> dict[str, Any]:
        """One half as the transformers take it, or both in one batch, the unconditional first."""
        if half not in self._made:
            made: dict[str, Any] = {"mixing": self.mixing}
            for side, condition in self.given.items():
                made[side] = None if condition is None else self._one(side, condition, half)
            self._made[half] = made
        return self._made[half]

    def _one(self, side: str, condition: Tensor, half: Half) -> Tensor:
        if half == "conditional":
            return condition
        nothing = self.nothing[side].to(condition).expand(len(condition), -1, -1)
        return nothing if half == "unconditional" else torch.cat([nothing, condition])
