"""One evaluation of a UNet of diffusers, layer by layer: what both halves of guidance share is computed once.

The halves differ by their conditions alone, so that up to the first cross-attention they are the same. States go
through with the rows of one half, and are repeated where the first transformer meets conditions of more rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from bdflow.errors import InputError

UNUSED = (
    "center_input_sample",
    "class_embed_type",
    "addition_embed_type",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)
"""Parts that a UNet of diffusers may have and `noise_of` leaves out."""


def sides_of(conditions: Mapping[str, object]) -> tuple[str, ...]:
    """The conditions that are there."""
    return tuple(side for side, value in conditions.items() if side != "mixing" and value is not None)


def refuse_other_parts(unet: nn.Module) -> None:
    """InputError for a UNet of which `noise_of` would leave something out."""
    config: Any = unet.config
    found = {name: config[name] for name in (*UNUSED, "time_embedding_act_fn") if config.get(name)}
    if found:
        raise InputError(
            "UNet's configuration",
            found=", ".join(f"{name}: {value}" for name, value in found.items()),
            expected="the UNet of Versatile Diffusion or of Stable Diffusion 1, which has none of these",
            meaning="What these parts add would be left out of every picture.",
            action="use the published files.",
        )


def time_embeddings(unet: nn.Module, timesteps: Sequence[int]) -> Tensor:
    """(n, D): what the UNet makes of n timesteps, for all images alike."""
    of: Any = unet
    parameter = next(unet.parameters())
    times = torch.tensor(list(timesteps), device=parameter.device)
    embedded: Tensor = of.time_embedding(of.time_proj(times).to(parameter.dtype))
    return embedded


def noise_of(unet: nn.Module, state: Tensor, time: Tensor, conditions: Mapping[str, Any]) -> Tensor:
    """Predicted noise of a state (n, c, h, w) in the UNet's dtype.

    `time` : (1, D), a row of `time_embeddings`.
    `conditions` : by side (m, T, F) as the UNet's transformers take them; m is n, or 2 n for both halves of guidance of
        the same state. The result has m rows.
    """
    of: Any = unet
    some = next(conditions[side] for side in sides_of(conditions))
    under = {"encoder_hidden_states": some, "cross_attention_kwargs": conditions}
    state = of.conv_in(state)
    skips: list[Tensor] = [state]
    for block in of.down_blocks:
        state, passed = block(hidden_states=state, temb=time, **_where_met(block, under))
        skips += passed
    if of.mid_block is not None:
        state = of.mid_block(state, time, **_where_met(of.mid_block, under))
    for block in of.up_blocks:
        count = len(block.resnets)
        state = as_rows(state, len(some))
        here = tuple(as_rows(skip, len(some)) for skip in skips[-count:])
        del skips[-count:]
        size = skips[-1].shape[2:] if skips else None
        given = {"hidden_states": state, "temb": time, "res_hidden_states_tuple": here, "upsample_size": size}
        state = block(**given, **_where_met(block, under))
    return output_of(unet, state)


def output_of(unet: nn.Module, state: Tensor) -> Tensor:
    """What the UNet's last layers make of the last block's state."""
    of: Any = unet
    found: Tensor = of.conv_out(of.conv_act(of.conv_norm_out(state)) if of.conv_norm_out else state)
    return found


def as_rows(values: Tensor, rows: int) -> Tensor:
    """Values of one half as those of as many halves as make `rows`."""
    times = rows // len(values)
    return values if times == 1 else values.repeat(times, *[1] * (values.ndim - 1))


def _where_met(block: nn.Module, under: dict[str, object]) -> dict[str, object]:
    return under if getattr(block, "has_cross_attention", False) else {}


def transformed(transformer: Transformer2DModel, state: Tensor, condition: Tensor) -> Tensor:
    """A transformer's result (m, c, h, w) of a state (n, c, h, w) under conditions (m, T, F), m = n or 2 n: up to its
    first cross-attention it runs over n rows.
    """
    of: Any = transformer
    side = state.shape[-2:]
    inner = of.norm(state)
    if of.use_linear_projection:
        tokens = of.proj_in(_tokens(inner))
    else:
        tokens = _tokens(of.proj_in(inner))
    for block in of.transformer_blocks:
        tokens = block.attn1(block.norm1(tokens)) + tokens
        tokens = as_rows(tokens, len(condition))
        tokens = block.attn2(block.norm2(tokens), encoder_hidden_states=condition) + tokens
        tokens = block.ff(block.norm3(tokens)) + tokens
    out: Tensor = _map(of.proj_out(tokens), side) if of.use_linear_projection else of.proj_out(_map(tokens, side))
    return out + as_rows(state, len(condition))


def _tokens(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _map(tokens: Tensor, side: Sequence[int]) -> Tensor:
    return tokens.unflatten(1, tuple(side)).permute(0, 3, 1, 2).contiguous()
