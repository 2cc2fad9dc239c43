"""Encoding models: how well the latents of a photo predict each voxel's response, on demand; R^2, r and p by voxel.

The regression of `regress` turned round (Naselaris et al. 2011, "Encoding and decoding in fMRI"): z-scored latents of a
target space are the features, responses the targets. The hat matrices come from the kernel of the latents, which is
taken in blocks of columns; the penalty of each voxel is chosen among `encode.grid` by leave-one-out. Sets of spaces
(`encode.sets`) are models of several bands, whose shares are chosen with the penalty (`bdflow.regression.banded`).
A space may be reduced to principal components of the training stimuli's latents first (`encode.components`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np

from bdflow.config import Config, content
from bdflow.regression.device import refuse_without_cupy
from bdflow.stages.encode.workers import Encoder, device_of
from bdflow.stores import text
from bdflow.study import catalog, encoding_catalog, keys, parts
from bdflow.study.designs import averaged_design
from bdflow.study.encoding_models import key_of, models
from bdflow.study.graph import Counts, StoreDecl
from bdflow.study.stage import Context, Stage, Step, Work


class Encode(Stage):
    """Encoding models of every voxel, from each space and each set of spaces."""

    name = "encode"
    method = 2
    on_demand = True

    def check(self, context: Context) -> None:
        if device_of(context.config) != "cpu":
            refuse_without_cupy(self.name)

    def stores(self, config: Config) -> Iterator[StoreDecl]:
        for subject in config.subjects:
            for model, bands in models(config).items():
                key = key_of(config, subject, model)
                kind = keys.kind(key)
                settings: dict[str, object] = {"encode": content(config.encode, kind), "seed": config.seed}
                if len(bands) > 1:
                    settings["spaces"] = list(bands)
                reduced = {space: k for space, k in config.encode.components.items() if space in bands}
                if reduced:
                    settings["components"] = reduced
                upstream = (_responses(config, subject), *_targets(config, subject, bands))
                cut, rounding = content(config.chunks, kind), {"device": device_of(config)}
                layout = partial(_layout, config, subject, bands)
                yield StoreDecl(key, layout, settings, upstream=upstream, chunks=cut, arithmetic=rounding)

    def steps(self, context: Context) -> Iterable[Step]:
        config, subjects = context.config, context.subjects
        of = models(config)
        targets = dict.fromkeys(key for s in subjects for bands in of.values() for key in _targets(config, s, bands))
        needs = (*(_responses(config, s) for s in subjects), *targets)
        fills = tuple(key_of(config, s, model) for s in subjects for model in of)
        yield Step("encoding models", "models", needs, fills, partial(_start, context))


def _responses(config: Config, subject: str) -> str:
    """The averaged responses, z-scored within sessions if those of `ridge` are."""
    return keys.responses(subject, averaged_design(config).responses)


def _targets(config: Config, subject: str, spaces: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for space in spaces for key in parts.targets(space, parts.of_pictures(config, subject)))


def _layout(config: Config, subject: str, bands: tuple[str, ...], counts: Counts) -> catalog.Laid:
    cut, sizes = config.chunks.voxels, {"voxel": counts.voxels(subject)}
    if len(bands) == 1:
        return encoding_catalog.encoding(cut), sizes
    return encoding_catalog.encoding_set(cut), {"band": len(bands), **sizes}


def _start(context: Context) -> Work:
    config, of = context.config, models(context.config)
    responses = {subject: context.ready(_responses(config, subject)) for subject in context.subjects}
    spaces = dict.fromkeys(space for bands in of.values() for space in bands)
    targets = {
        (subject, space): parts.joined(context, _targets(config, subject, (space,)))
        for subject in responses
        for space in spaces
    }
    stores = {}
    for subject in responses:
        for model, bands in of.items():
            given: dict[str, np.ndarray] = {} if len(bands) == 1 else {"band": text(bands)}
            stores[subject, model] = context.declare(key_of(config, subject, model), given)
    tasks = [key for key, store in stores.items() if store.missing()]
    return Work(tasks, partial(Encoder, config, responses, targets, stores))
