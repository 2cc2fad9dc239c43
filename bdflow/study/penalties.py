"""The penalty of each space: as the configuration gives it, or as cross-validation chose it."""

from __future__ import annotations

import numpy as np

from bdflow.config import Config
from bdflow.errors import InputError
from bdflow.stores import Store
from bdflow.study.designs import candidates


def decoder_penalties(
    config: Config, spaces: tuple[str, ...], selection: dict[str, Store]
) -> tuple[list[float], list[float]]:
    """The penalty of each space, not a number where latents have their own; and all that a decoder keeps, ascending."""
    by_space: list[float] = []
    alphas: set[float] = set()
    for space in spaces:
        of = config.ridge_of(space)
        if of.choose == "per_target":
            by_space.append(float("nan"))
            alphas |= set(candidates(config, (space,)))
        else:
            by_space.append(float(of.alpha) if of.choose == "fixed" else best_of_space(selection[space]))
            alphas.add(by_space[-1])
    return by_space, sorted(alphas)


def best_of_space(selection: Store) -> float:
    """The penalty with the highest mean score over the latents that were drawn."""
    scores = selection.read("score")
    flat = scores.reshape(len(scores), -1)
    known = flat[:, np.isfinite(flat).all(axis=0)]
    if not known.size:
        raise InputError(
            selection.path,
            found="no latent that varies among those that were drawn to choose the penalty",
            expected="at least one",
            meaning="No penalty predicts a constant better than another.",
            action="draw more latents (`ridge.validation.columns`), or set `ridge.choose: fixed`",
        )
    return float(selection.read("alpha")[known.mean(axis=1).argmax()])
