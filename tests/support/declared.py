"""Every store that a configuration makes, declared and filled with random values: nothing is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bdflow.config import Config
from bdflow.models.encoders import encoder_of
from bdflow.pipeline import STAGES
from bdflow.stores import Study, text
from bdflow.stores.spec import ArraySpec, Sizes
from bdflow.study.designs import Design
from bdflow.study.graph import Graph

TEST, TRAIN, VOXELS = 3, 4, 5


class Few:
    """A few of everything; the latents are those of the encoders."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def most_trials(self, subject: str) -> int:
        return 6

    def trials(self, subject: str) -> int:
        return 10

    def voxels(self, subject: str) -> int:
        return VOXELS

    def regions(self, subject: str) -> int:
        return 2

    def stimuli(self, part: str) -> int:
        return TEST if part == "shared" else TRAIN

    def left_out(self, part: str) -> int:
        return 1

    def photo(self) -> tuple[int, int]:
        return 6, 4

    def captions(self) -> int:
        return 2

    def train_stimuli(self, subject: str) -> int:
        return TRAIN

    def train_rows(self, subject: str, rows: str) -> int:
        return TRAIN if rows == "averaged" else 2 * TRAIN

    def test_stimuli(self, subject: str) -> int:
        """The mean of subjects has fewer than each of them."""
        return TEST - (subject == "mean")

    def design_voxels(self, subject: str, design: Design) -> int:
        return VOXELS

    def decoder_alphas(self, subject: str, design: Design) -> int:
        return 2

    def shape(self, space: str) -> tuple[int, ...]:
        return encoder_of(self.config, space).shape

    def layers(self, space: str) -> tuple[tuple[int, ...], ...]:
        return encoder_of(self.config, space).layers

    def token_kinds(self, space: str) -> tuple[str, ...]:
        return encoder_of(self.config, space).token_kinds

    def guess_size(self, painter: str) -> int:
        return 8

    def image_size(self, painter: str) -> int:
        return 8

    def judge_width(self, metric: str) -> int:
        return 3


def values(spec: ArraySpec, sizes: Sizes, rng: np.random.Generator) -> np.ndarray:
    """Random numbers of an array's type; of text, names that differ along its first dimension."""
    shape = spec.shape(sizes)
    if spec.dtype == "str":
        numbers = np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
        names = [f"{spec.name[:5]} é {number:05d}" for number in np.broadcast_to(numbers, shape).ravel()]
        return text(names).reshape(shape)
    if np.dtype(spec.dtype).kind == "f":
        found = rng.standard_normal(shape).astype(spec.dtype)
        if spec.role == "data" and found.size:
            found.flat[0] = np.nan
        return found
    high = 2 if spec.dtype == "u1" and spec.name != "image" else 100
    return rng.integers(0, high, shape).astype(spec.dtype)


def study_of(config: Config) -> tuple[Study, dict[str, dict[str, np.ndarray]]]:
    """A sealed study below `config.study`, and what its stores were filled with, by path and array."""
    graph, study, rng = Graph(config, STAGES.values()), Study(Path(str(config.study))), np.random.default_rng(0)
    study.create("all stores", {"configuration": config.science()})
    filled: dict[str, dict[str, np.ndarray]] = {}
    for key, provenance in graph.provenances().items():
        spec, sizes = graph.decls[key].layout(Few(config))
        content = {array.name: values(array, sizes, rng) for array in spec.arrays if array.values is None}
        given = {
            array.name: content[array.name] for array in spec.arrays if array.name in content and array.role != "data"
        }
        store = study.declare(key, spec, sizes, given, provenance)
        for partition in store.missing():
            region = spec.region(sizes, partition)
            parts = {
                array.name: content[array.name][tuple(region.get(dim, slice(None)) for dim in array.dims)]
                for array in spec.data
            }
            store.write(partition, parts)
        store.seal()
        filled[key] = spec.given(sizes, content)
    study.consolidate()
    return study, filled
