"""The encoding models of a configuration, from each space alone and from sets of spaces, and which voxels pass.

The stores keep the p value of each voxel alone. q values (Benjamini-Hochberg) are of all voxels of a model together,
while a store is filled block by block: they are computed here, wherever they are shown, from the p values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bdflow.config import Config
from bdflow.metrics.statistics import false_discovery_q
from bdflow.study import keys
from bdflow.study.stage import Context

FALSE_DISCOVERIES = 0.05
"""A voxel passes where its q value is below: of the voxels that pass, so many are false, on average."""


def models(config: Config) -> dict[str, tuple[str, ...]]:
    """The spaces of every model by its name: each space alone, then the sets."""
    return {space: (space,) for space in config.encoded_spaces} | dict(config.encode.sets)


def key_of(config: Config, subject: str, model: str) -> str:
    """Key of a model's store."""
    return keys.encoding_set(subject, model) if model in config.encode.sets else keys.encoding(subject, model)


def passes(p: np.ndarray) -> np.ndarray:
    """(voxels,) bool: those that pass, of the p values of a model's voxels; those that are not a number do not."""
    found: np.ndarray = false_discovery_q(p) < FALSE_DISCOVERIES
    return found


class ModelMap(NamedTuple):
    """One map of a model.

    Attributes
    ----------
    kind : `r2`, `r`, `p`, `q`, `passes` (uint8, 1 where q is below 5%); of a set, for each of its spaces, `share` and
        `unique` (R^2).
    model, band : the model, and which of a set's spaces; empty where it is of all.
    values : (voxels,), float32 but for `passes`; not a number where nothing was fitted.
    """

    kind: str
    model: str
    band: str
    values: np.ndarray

    @property
    def name(self) -> str:
        """As part of a file's name: `r2_z`, `unique_both-z`. No name of a model or a space has a hyphen."""
        return f"{self.kind}_{self.model}" + (f"-{self.band}" if self.band else "")


def maps(context: Context, subject: str) -> Iterator[ModelMap]:
    """Every map of the models of a subject that there are."""
    for model, bands in models(context.config).items():
        key = key_of(context.config, subject, model)
        if not context.is_sealed(key):
            continue
        store = context.ready(key)
        p = store.read("p")
        q = false_discovery_q(p)
        for kind, values in (
            ("r2", store.read("r2")),
            ("r", store.read("pearson_r")),
            ("p", p),
            ("q", q.astype(np.float32)),
            ("passes", (q < FALSE_DISCOVERIES).astype(np.uint8)),
        ):
            yield ModelMap(kind, model, "", values)
        for kind, array in (("share", "share"), ("unique", "unique_r2")) if len(bands) > 1 else ():
            for band, values in zip(bands, store.read(array), strict=True):
                yield ModelMap(kind, model, band, values)


def lines(context: Context) -> list[str]:
    """How many voxels of each subject pass, a line for each model that there is."""
    found = []
    for subject in context.subjects:
        for model in models(context.config):
            key = key_of(context.config, subject, model)
            if context.is_sealed(key):
                store = context.ready(key)
                p, r = store.read("p"), store.read("pearson_r")
                here = passes(p)
                median = f", median r {np.median(r[here]):.3f}" if here.any() else ""
                found.append(
                    f"{key}: {here.sum():,} of {np.isfinite(p).sum():,} voxels pass (false discovery rate "
                    f"{FALSE_DISCOVERIES:.0%}){median}"
                )
    return found
