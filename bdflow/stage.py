"""What a stage is to the pipeline: the stores it fills, what they are made from, and work cut into tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from bdflow.config import Config
from stores import Provenance, Store, StoreSpec, Study

Expected = Mapping[str, Provenance]
MEAN, TRUE = "mean", "true"


def decoded(config: Config, subjects: tuple[str, ...]) -> tuple[str, ...]:
    """Whose latents are predicted: the subjects and, where all take part and are several, the mean of predictions."""
    whole = len(subjects) > 1 and set(subjects) == set(config.subjects)
    return (*subjects, MEAN) if config.reconstruct.subject_mean and whole else subjects


def painted(config: Config, subjects: tuple[str, ...]) -> tuple[str, ...]:
    """Whose pictures are made: those decoded and, as an upper bound of what decoding could give, the true latents."""
    return (*decoded(config, subjects), TRUE) if config.reconstruct.upper_bound else decoded(config, subjects)


@dataclass(frozen=True)
class Context:
    """One run: its configuration, its study, what every store should be made from, and whose stores to fill."""

    config: Config
    study: Study
    expected: Expected
    subjects: tuple[str, ...]

    @property
    def decoded(self) -> tuple[str, ...]:
        """Whose latents this run predicts."""
        return decoded(self.config, self.subjects)

    @property
    def painted(self) -> tuple[str, ...]:
        """Whose pictures this run makes."""
        return painted(self.config, self.subjects)

    def ready(self, path: str) -> Store:
        """A sealed store of this configuration. Raises NotReady, or CorruptChunk for a chunk that is gone."""
        store = self.study.sealed(path, self.expected[path])
        lost = store.missing_chunks()
        if lost:
            raise lost[0]
        return store

    def declare(self, path: str, spec: StoreSpec, sizes: Mapping[str, int], given: Mapping[str, np.ndarray]) -> Store:
        """Declare a store of this configuration, or take it up."""
        return self.study.declare(path, spec, sizes, given, self.expected[path])


@dataclass
class Work:
    """Tasks for an executor. When all are done, `stores` are sealed.

    Attributes
    ----------
    label, unit : for the progress line ("features", "partitions").
    stores : the stores being filled.
    tasks : what is missing; each is small and picklable.
    make_worker : called once a process, it loads what is heavy and returns the function of one task, or an object with
        its three phases, `prepare`, `work` and `finish` (`cluster.line.Phased`). A task's result is None, or lines
        that the user should read.
    """

    label: str
    unit: str
    stores: list[Store]
    tasks: list[Any] = field(default_factory=list)
    make_worker: Callable[[], Any] = field(default=lambda: _no_worker)


def _no_worker(task: Any) -> None:
    raise AssertionError(f"no worker for {task}")


class Stage(Protocol):
    """The module of a stage."""

    NAME: str

    def provenances(self, config: Config, known: Expected) -> dict[str, Provenance]:
        """What each store this stage fills is made from, by path; `known` are the stores of earlier stages."""

    def works(self, context: Context) -> Iterator[Work]:
        """Declare stores and cut what is missing into tasks; each `Work` is done and sealed before the next."""


def missing_in_any(stores: list[Store]) -> list[int]:
    """Partitions that at least one of several stores of the same grid lacks."""
    return sorted({partition for store in stores for partition in store.missing()})
