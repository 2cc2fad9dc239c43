"""What a stage is to the runner: the stores it declares, and steps that fill them one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from bdflow.config import Config
from bdflow.stores import Provenance, Store, Study
from bdflow.study.graph import Counts, StoreDecl

Expected = Mapping[str, Provenance]
MEAN, TRUE = "mean", "true"


def decoded(config: Config, subjects: tuple[str, ...]) -> tuple[str, ...]:
    """Whose latents are predicted: the subjects and, where all take part and are several, the mean of predictions."""
    whole = len(subjects) > 1 and set(subjects) == set(config.everybody)
    return (*subjects, MEAN) if config.reconstruct.subject_mean and whole else subjects


def painted(config: Config, subjects: tuple[str, ...]) -> tuple[str, ...]:
    """Whose pictures are made: those decoded and, as an upper bound of what decoding could give, the true latents."""
    return (*decoded(config, subjects), TRUE) if config.reconstruct.upper_bound else decoded(config, subjects)


@dataclass(frozen=True)
class Context:
    """One run: its configuration, its study, what every store should be made from, and whose stores to fill.

    `decls` and `counts` are the driver's alone: they stay behind when a context travels to a worker.
    """

    config: Config
    study: Study
    expected: Expected
    subjects: tuple[str, ...]
    decls: Mapping[str, StoreDecl] = field(default_factory=dict, repr=False, compare=False)
    counts: Counts | None = field(default=None, repr=False, compare=False)
    _looked_at: dict[str, Store] = field(default_factory=dict, repr=False, compare=False)
    _ready: set[str] = field(default_factory=set, repr=False, compare=False)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.config, self.study, dict(self.expected), self.subjects)

    @property
    def decoded(self) -> tuple[str, ...]:
        """Whose latents this run predicts."""
        return decoded(self.config, self.subjects)

    @property
    def painted(self) -> tuple[str, ...]:
        """Whose pictures this run makes."""
        return painted(self.config, self.subjects)

    def ready(self, key: str) -> Store:
        """A sealed store of this configuration; looked at once a step.

        Raises NotReady, or CorruptChunk for a chunk that is gone.
        """
        if key not in self._looked_at:
            self._looked_at[key] = self.study.sealed(key, self.expected[key])
        store = self._looked_at[key]
        if key not in self._ready:
            lost = store.missing_chunks(np.ones(store.n_partitions, bool))
            if lost:
                raise lost[0]
            self._ready.add(key)
        return store

    def look_again(self) -> None:
        """Forget what was looked at: a step begins, and stores may have changed since the last."""
        self._looked_at.clear()
        self._ready.clear()

    def is_sealed(self, key: str) -> bool:
        """Whether a store of this configuration can be read; also False if it is not of this configuration. One that
        can is looked at once a step."""
        if key in self.expected and key not in self._looked_at:
            state, store = self.study.looked_at(key, self.expected[key])
            if state.kind == "sealed":
                self._looked_at[key] = store
        return key in self._looked_at

    def declare(self, key: str, given: Mapping[str, np.ndarray]) -> Store:
        """Declare a store of this configuration, as its stage does in `stores`, or take it up."""
        if self.counts is None:
            raise ValueError(f"{key}: stores are declared by the driver")
        spec, sizes = self.decls[key].layout(self.counts)
        return self.study.declare(key, spec, sizes, given, self.expected[key])


@dataclass
class Work:
    """What a step has to do.

    Attributes
    ----------
    tasks : what is missing; each is small and picklable.
    make_worker : called once a process, it loads what is heavy and returns the function of one task, or an object with
        its three phases, `prepare`, `work` and `finish` (`bdflow.cluster.Phased`). A task's result is None, or lines
        that the user should read.
    """

    tasks: Sequence[Any] = ()
    make_worker: Callable[[], Any] = field(default=lambda: _no_worker)


def _no_worker(task: object) -> None:
    raise AssertionError(f"no worker for {task}")


@dataclass(frozen=True)
class Step:
    """A part of a stage.

    Attributes
    ----------
    label, unit : for the progress line ("features", "partitions").
    needs : keys of the stores that are read; they must be sealed.
    fills : keys of the stores that are filled, and sealed when all tasks are done.
    start : declares every store of `fills`, or takes it up, and says what is missing.
    """

    label: str
    unit: str
    needs: tuple[str, ...]
    fills: tuple[str, ...]
    start: Callable[[], Work]


class Stage(ABC):
    """A stage: which stores it fills, and how.

    Attributes
    ----------
    name : as in `execution.NAME` and on the command line.
    method : enters the fingerprint of every store it fills. When a mistake in a stage is mended, its number rises, and
        older results are stale.
    on_demand : a run leaves it out unless it is asked for.
    uses_torch : whether the values of its stores with an `arithmetic` come from torch.
    """

    name: ClassVar[str]
    method: ClassVar[int] = 1
    on_demand: ClassVar[bool] = False
    uses_torch: ClassVar[bool] = False

    @abstractmethod
    def stores(self, config: Config) -> Iterator[StoreDecl]:
        """Every store of the configuration that this stage fills; those that others are made from come first."""

    def check(self, context: Context) -> None:  # noqa: B027
        """Refuse what is asked for and cannot be done here, before anything is removed and the first stage begins: as
        far as that can be told from what the study already holds. Raises InputError."""

    @abstractmethod
    def steps(self, context: Context) -> Iterable[Step]:
        """What is done, in order, for the subjects of this run. Nothing is read or written before a step's `start`."""


def missing_in_any(stores: Iterable[Store]) -> list[int]:
    """Partitions that at least one of several stores of the same grid lacks."""
    return sorted({partition for store in stores for partition in store.missing()})


def pairs(stores: Mapping[Any, Store]) -> list[tuple[object, ...]]:
    """(name, partition) of every partition that a store lacks; a name that is a tuple is spread out."""
    return [
        (*(name if isinstance(name, tuple) else (name,)), partition)
        for name, store in stores.items()
        for partition in store.missing()
    ]
