"""One stage of the pipeline on stores that a benchmark made: no dataset and no network are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from bdflow.config import Config
from bdflow.stores import Provenance, Store, Study
from bdflow.study import keys
from bdflow.study.counts import StudyCounts
from bdflow.study.designs import designs, response_kinds
from bdflow.study.graph import Declares, Graph, StoreDecl
from bdflow.study.keys import SHARED
from bdflow.study.stage import MEAN, TRUE, Context


@dataclass(frozen=True)
class Given:
    """Declares the stores that a benchmark makes itself."""

    keys: tuple[str, ...]
    name: str = "benchmark"
    method: int = 1

    def stores(self, config: Config) -> Iterator[StoreDecl]:
        for key in self.keys:
            yield StoreDecl(key, _no_layout, {"benchmark": key})


def _no_layout(counts: object) -> None:
    raise AssertionError("a benchmark declares its own stores")


class GivenCounts(StudyCounts):
    """Counted in the benchmark's stores, not in a dataset."""

    def _responses(self, subject: str) -> Store:
        """The subject's responses: those that ridge is fitted on, else any."""
        config = self.context.config
        kinds = (*(design.responses for design in designs(config)), *response_kinds(config))
        every = (keys.responses(subject, kind) for kind in kinds)
        return self.context.ready(next(key for key in every if key in self.context.expected))

    def _ids(self, subject: str, part: str) -> np.ndarray:
        store = self._responses(subject)
        found: np.ndarray = store.read("stimulus_id")[store.read("split") == part]
        return found

    def train_stimuli(self, subject: str) -> int:
        return len(np.unique(self._ids(subject, "train")))

    def train_rows(self, subject: str, rows: str) -> int:
        return len(self._ids(subject, "train"))

    def test_stimuli(self, subject: str) -> int:
        if keys.stimuli(SHARED) in self.context.expected:
            return int((self.context.ready(keys.stimuli(SHARED)).read("split") == "test").sum())
        return len(self._ids(self.context.subjects[0] if subject in (MEAN, TRUE) else subject, "test"))

    def voxels(self, subject: str) -> int:
        return self._responses(subject).sizes["voxel"]

    def shape(self, space: str) -> tuple[int, ...]:
        return tuple(self.context.ready(keys.targets(space, SHARED)).arrays["latent"].shape[1:])

    def layers(self, space: str) -> tuple[tuple[int, ...], ...]:
        return ()

    def token_kinds(self, space: str) -> tuple[str, ...]:
        return ()


def provenances(config: Config, given: Iterable[str]) -> dict[str, Provenance]:
    """What the benchmark's own stores are made from."""
    return Graph(config, [Given(tuple(given))]).provenances()


def context_of(config: Config, study: Study, given: Iterable[str], stage: Declares) -> Context:
    """A context for one stage, on these stores."""
    graph = Graph(config, [Given(tuple(given)), stage])
    context = Context(config, study, graph.provenances(), config.subjects, graph.decls)
    return replace(context, counts=GivenCounts(context))
