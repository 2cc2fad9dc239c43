"""Shapes of what the layers of a diffusers UNet give, from its configuration alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAME = re.compile(
    r"conv_in|mid_block(?:\.(?P<mid>resnets|attentions)\.(?P<mid_index>\d+))?"
    r"|(?P<side>down|up)_blocks\.(?P<block>\d+)(?:\.(?P<part>resnets|attentions)\.(?P<index>\d+))?"
)
EXAMPLES = "down_blocks.0, down_blocks.1.attentions.0, mid_block, up_blocks.2.resnets.1"


def layer_shape(config: Mapping[str, Any], name: str) -> tuple[int, int, int]:
    """(channels, side, side) of the output of a layer: `conv_in`, `mid_block`, a block (`down_blocks.0`), or a residual
    or attention layer of one (`up_blocks.1.attentions.0`). Blocks of the first half end with halving the side, those of
    the second with doubling it, but for the last of each.

    Raises
    ------
    KeyError : the UNet has no such layer.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise KeyError(name)
    channels = [int(n) for n in config["block_out_channels"]]
    last = len(channels) - 1
    sides = [int(config["sample_size"])]
    for _ in channels[1:]:
        sides.append((sides[-1] + 1) // 2)
    of = found.groupdict()
    if name == "conv_in":
        return channels[0], sides[0], sides[0]
    if of["side"] is None:
        _check(name, of["mid"], of["mid_index"], {"resnets": 2, "attentions": 1})
        return channels[-1], sides[-1], sides[-1]
    block, down = int(of["block"]), of["side"] == "down"
    if block > last:
        raise KeyError(name)
    per_block = config["layers_per_block"]
    layers = (per_block if isinstance(per_block, int) else per_block[block if down else last - block]) + (not down)
    attends = "CrossAttn" in config["down_block_types" if down else "up_block_types"][block]
    _check(name, of["part"], of["index"], {"resnets": layers, "attentions": layers * attends})
    level = block if down else last - block
    outside = level if of["part"] or block == last else level + (1 if down else -1)
    return channels[level], sides[outside], sides[outside]


def taken_shape(config: Mapping[str, Any], layer: str | None, pool: int | None = None) -> tuple[int, int, int]:
    """(channels, side, side) of the latent that the UNet denoises (`layer` None), or of a layer whose maps are averaged
    to `pool` pixels a side. Raises KeyError as `layer_shape`.
    """
    if layer is None:
        side = int(config["sample_size"])
        return int(config["in_channels"]), side, side
    channels, side, _ = layer_shape(config, layer)
    return channels, pool or side, pool or side


def _check(name: str, part: str | None, index: str | None, layers: Mapping[str, int]) -> None:
    if part is not None and int(index or 0) >= layers[part]:
        raise KeyError(name)
