"""Coordinates that follow from what an array is: where a pixel lies, and what a latent's place in its space means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bdflow.stores.spec import ArraySpec, Sizes

if TYPE_CHECKING:
    from bdflow.stores import Store
    from bdflow.study.graph import Counts

LAYER = "layer"
PLACES: Mapping[str, str] = {
    LAYER: "layer of the network that the latent is of, from 1",
    "channel": "channel of that layer, from 0",
    "layer_y": "row of that layer's map, from 0, the uppermost",
    "layer_x": "column of that layer's map, from 0, the leftmost",
}
TOKEN_KIND, TOKEN_KIND_DOC = "token_kind", "what the token stands for"


def _from_above(sizes: Sizes) -> np.ndarray:
    found: np.ndarray = 1 - (np.arange(sizes["y"]) + 0.5) / sizes["y"]
    return found


def _from_the_left(sizes: Sizes) -> np.ndarray:
    found: np.ndarray = (np.arange(sizes["x"]) + 0.5) / sizes["x"]
    return found


PIXELS = (
    ArraySpec(
        "y",
        ("y",),
        "f8",
        "height in the picture, from 0 below to 1 above",
        role="coordinate",
        values=_from_above,
    ),
    ArraySpec(
        "x",
        ("x",),
        "f8",
        "place across the picture, from 0 left to 1 right",
        role="coordinate",
        values=_from_the_left,
    ),
)
"""Pictures lie on disk from the top down, so `y` falls: xarray then draws them upright."""


def _place(axis: int, layers: tuple[tuple[int, ...], ...], sizes: Sizes) -> np.ndarray:
    if axis == 0:
        lengths = [int(np.prod(layer)) for layer in layers]
        return np.repeat(np.arange(1, len(layers) + 1), lengths)
    return np.concatenate([np.indices(layer)[axis - 1].ravel() for layer in layers])


def _constant(kinds: tuple[str, ...], sizes: Sizes) -> np.ndarray:
    return np.array(kinds, dtype=np.dtypes.StringDType())


def of_latents(layers: Sequence[Sequence[int]], token_kinds: Sequence[str]) -> tuple[ArraySpec, ...]:
    """Coordinates of a target space's latents.

    Parameters
    ----------
    layers : shapes (channel, y, x) of the layers whose values follow one another along `feature`; none: no layers.
    token_kinds : what each token stands for; none: nothing is known of them.
    """
    shapes = tuple(tuple(layer) for layer in layers)
    found = [
        ArraySpec(name, ("feature",), "i2", doc, codec="zstd", role="coordinate", values=partial(_place, axis, shapes))
        for axis, (name, doc) in enumerate(PLACES.items())
        if shapes
    ]
    if token_kinds:
        values = partial(_constant, tuple(token_kinds))
        found.append(ArraySpec(TOKEN_KIND, ("token",), "str", TOKEN_KIND_DOC, role="coordinate", values=values))
    return tuple(found)


def of_space(counts: Counts, space: str) -> tuple[ArraySpec, ...]:
    """`of_latents`, by what the space's encoder says of them."""
    return of_latents(counts.layers(space), counts.token_kinds(space))


def of_store(store: Store) -> dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]]:
    """What `of_latents` put into a store, for xarray objects of as many latents: dims, values, attributes by name."""
    named = {**PLACES, TOKEN_KIND: TOKEN_KIND_DOC}
    found = {}
    for name in named:
        if name in store.arrays:
            values = store.read(name)
            text = values.dtype.kind == "U"
            found[name] = store.dims(name), values.astype(object) if text else values, {"long_name": named[name]}
    return found


def layers_from(places: Sequence[np.ndarray]) -> list[tuple[int, ...]]:
    """Shapes (channel, y, x) of the layers, from the arrays that `PLACES` names."""
    layer, *axes = places
    return [
        tuple(int(axis[layer == number].max()) + 1 for axis in axes)
        for number in range(1, int(layer.max(initial=0)) + 1)
    ]
