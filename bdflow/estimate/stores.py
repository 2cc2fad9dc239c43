"""How many bytes each store of a study will take, from the declarations it will be made with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress

from bdflow.config import Config
from bdflow.estimate.sizes import Networks, Sizes
from bdflow.models.encoders import encoder_of
from bdflow.models.judges.weights import BUNDLE_CLIP, layer_width
from bdflow.models.painters import PAINTERS, painter_kind
from bdflow.models.stable_diffusion.layers import taken_shape
from bdflow.stores import StoreSpec
from bdflow.stores.spec import ArraySpec
from bdflow.study.designs import Design, candidates, designs
from bdflow.study.graph import Graph
from bdflow.study.stage import painted

CHECKSUM = 4
WORD = 8  # bytes of a label


def array_bytes(array: ArraySpec, sizes: Mapping[str, int]) -> int:
    """Bytes of an array's chunks, edges as whole chunks, before compression, with their checksums."""
    shape, chunk = array.shape(sizes), array.chunk_shape(sizes)
    itemsize = WORD if array.dtype == "str" else int(array.dtype[1:])
    chunks = math.prod(math.ceil(n / c) for n, c in zip(shape, chunk, strict=True))
    return chunks * (math.prod(chunk) * itemsize + CHECKSUM)


def store_bytes(spec: StoreSpec, sizes: Mapping[str, int]) -> int:
    """Bytes of a store's arrays, before compression."""
    return sum(array_bytes(array, sizes) for array in spec.arrays)


class PlannedCounts:
    """`bdflow.study.graph.Counts` before anything is made: from sizes and networks that are known or assumed."""

    def __init__(self, config: Config, sizes: Sizes, networks: Networks) -> None:
        self.config, self.sizes, self.networks = config, sizes, networks

    def most_trials(self, subject: str) -> int:
        return self.sizes.subjects[subject].most_trials

    def trials(self, subject: str) -> int:
        return self.sizes.subjects[subject].trials

    def voxels(self, subject: str) -> int:
        return self.sizes.subjects[subject].voxels

    def regions(self, subject: str) -> int:
        return self.sizes.regions

    def stimuli(self, part: str) -> int:
        return self.sizes.parts[part]

    def left_out(self, part: str) -> int:
        """Ids alone, a few bytes each."""
        return 0

    def photo(self) -> tuple[int, int]:
        return self.sizes.photo

    def captions(self) -> int:
        return self.sizes.captions

    def train_stimuli(self, subject: str) -> int:
        return self.sizes.subjects[subject].train

    def train_rows(self, subject: str, rows: str) -> int:
        of = self.sizes.subjects[subject]
        return of.train if rows == "averaged" else of.train_trials

    def test_stimuli(self, subject: str) -> int:
        """Of the mean of subjects, at most."""
        return self.sizes.subjects[subject].test if subject in self.sizes.subjects else self.sizes.test

    def design_voxels(self, subject: str, design: Design) -> int:
        """Of a design with regions, at most."""
        return self.voxels(subject)

    def decoder_alphas(self, subject: str, design: Design) -> int:
        """At most."""
        spaces = designs(self.config)[design]
        chosen = {space for space in spaces if self.config.ridge_of(space).choose == "per_target"}
        alone = {float(of.alpha) for s in spaces if (of := self.config.ridge_of(s)).choose == "fixed"}
        per_space = len([s for s in spaces if self.config.ridge_of(s).choose == "per_space"])
        return len({*candidates(self.config, tuple(chosen)), *alone}) + per_space

    def shape(self, space: str) -> tuple[int, ...]:
        return shape_of(self.config, self.networks, space)

    def layers(self, space: str) -> tuple[tuple[int, ...], ...]:
        return ()

    def token_kinds(self, space: str) -> tuple[str, ...]:
        return ()

    def guess_size(self, painter: str) -> int:
        known = self._of_bundle(painter)
        return painter_kind(self.config, painter).guess_size if known is None else known.guess

    def image_size(self, painter: str) -> int:
        known = self._of_bundle(painter)
        return painter_kind(self.config, painter).image_size if known is None else known.image

    def _of_bundle(self, painter: str) -> Networks | None:
        """The networks of one of the bundle's painters, whose sizes are known without it."""
        kind = self.config.painters[painter].kind
        return self.networks.painter(kind) if kind in PAINTERS else None

    def judge_width(self, metric: str) -> int:
        return self.networks.spaces["clip_vision"][-1] if metric == BUNDLE_CLIP else layer_width(metric)


def shape_of(config: Config, networks: Networks, space: str) -> tuple[int, ...]:
    """Shape of a space's latents; of the published networks also where their weights are not here."""
    encoder = config.spaces[space].encoder
    known = networks.encoder(encoder)
    if encoder in known.spaces:
        return tuple(known.spaces[encoder])
    if encoder == "sd_denoising" and known.unet:
        options = config.spaces[space].options
        with suppress(KeyError):  # the encoder says what is wrong
            return (math.prod(taken_shape(known.unet, options.get("layer"), options.get("pool"))),)
    return encoder_of(config, space).shape


def bytes_by_stage(graph: Graph, counts: PlannedCounts) -> dict[str, int]:
    """Bytes of the stores of each stage."""
    found: dict[str, int] = {}
    for key, decl in graph.decls.items():
        spec, sizes = decl.layout(counts)
        stage = graph.stages[key]
        found[stage] = found.get(stage, 0) + store_bytes(spec, sizes)
    return found


def pictures(config: Config, sizes: Sizes) -> dict[str, int]:
    """Test stimuli of everybody whose pictures are made; of the mean, at most."""
    names = painted(config, tuple(config.subjects))
    return {name: sizes.subjects[name].test if name in sizes.subjects else sizes.test for name in names}
