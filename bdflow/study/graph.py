"""What is made from what: every store of a configuration, declared once.

Each stage yields a `StoreDecl` for each store it fills. Everything else follows from these: a store's path (its key),
its fingerprint, whether it is stale and why, what `status` lists, what a plan reckons with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from bdflow.config import Config
from bdflow.errors import NotAtHand
from bdflow.stores import Provenance, StoreSpec, Study
from bdflow.stores.remote import Unreachable
from bdflow.study.designs import Design

Shape = tuple[int, ...]


class Counts(Protocol):
    """How large things are, for the layout of stores: exact, from the study and its inputs; or reckoned beforehand."""

    def most_trials(self, subject: str) -> int:
        """Trials of the longest session."""

    def trials(self, subject: str) -> int:
        """Trials of all sessions."""

    def voxels(self, subject: str) -> int:
        """Voxels of the mask."""

    def regions(self, subject: str) -> int:
        """Regions of interest."""

    def stimuli(self, part: str) -> int:
        """Stimuli of a part: `shared`, or a subject's own."""

    def left_out(self, part: str) -> int:
        """Stimuli of a part that the study leaves out, since they have no caption."""

    def photo(self) -> tuple[int, int]:
        """Height and width of a stimulus in pixels."""

    def captions(self) -> int:
        """The most captions a stimulus has."""

    def train_stimuli(self, subject: str) -> int:
        """Training stimuli of a subject."""

    def train_rows(self, subject: str, rows: str) -> int:
        """Training rows: as many as training stimuli, or trials of them."""

    def test_stimuli(self, subject: str) -> int:
        """Test stimuli of a subject, of `mean` or of `true`."""

    def design_voxels(self, subject: str, design: Design) -> int:
        """Voxels that ridge is fitted on: valid ones, in the design's regions."""

    def decoder_alphas(self, subject: str, design: Design) -> int:
        """Penalties that a decoder keeps a hat matrix of."""

    def shape(self, space: str) -> Shape:
        """Shape of a stimulus's latent."""

    def layers(self, space: str) -> tuple[Shape, ...]:
        """Shapes of the layers whose values follow one another in a latent, if it is made of layers."""

    def token_kinds(self, space: str) -> tuple[str, ...]:
        """What each token of a latent stands for, if that is known."""

    def guess_size(self, painter: str) -> int:
        """Pixels a side of a painter's guesses."""

    def image_size(self, painter: str) -> int:
        """Pixels a side of a painter's reconstructions."""

    def judge_width(self, metric: str) -> int:
        """Length of what a judging network gives for a picture."""


Layout = Callable[[Counts], tuple[StoreSpec, dict[str, int]]]
Inputs = Callable[[], Mapping[str, str]]


def no_inputs() -> Mapping[str, str]:
    """Of a store that is made from other stores alone."""
    return {}


@dataclass(frozen=True)
class StoreDecl:
    """One store, as the stage that fills it declares it.

    Attributes
    ----------
    key : its path in the study, from `bdflow.study.keys`.
    layout : what it looks like, given how large things are.
    settings : what shapes its content, JSON values.
    chunks : what shapes how it is cut and never its values; stores that are made from it do not depend on it.
    arithmetic : what decides how its values round (`bdflow.stores.Provenance`).
    inputs : digests of the files it is read from, by what they are; asked for when its fingerprint is.
    upstream : keys of the stores it is made from.
    """

    key: str
    layout: Layout
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Inputs = no_inputs
    upstream: tuple[str, ...] = ()
    chunks: Mapping[str, Any] = field(default_factory=dict)
    arithmetic: Mapping[str, Any] = field(default_factory=dict)


class Declares(Protocol):
    """What the graph asks of a stage."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def method(self) -> int:
        """Number of its method."""

    def stores(self, config: Config) -> Iterator[StoreDecl]:
        """Every store of the configuration that this stage fills; those it is made from come earlier."""


class Graph:
    """Every store of a configuration, in the order in which they can be made.

    Parameters
    ----------
    study : where a store's inputs are not at hand, those that the store in this study was made from are taken.
    looking : nothing will be made: inputs that are not at hand, of a store that is not there, are left open.

    Attributes
    ----------
    not_compared : keys of the stores whose inputs are not at hand, and what is missing.

    Raises
    ------
    ValueError : two stages declare the same key, or a store is made from one that comes later or not at all.
    """

    def __init__(
        self, config: Config, stages: Iterable[Declares], study: Study | None = None, *, looking: bool = False
    ) -> None:
        self.config, self.study, self.looking = config, study, looking
        self.not_compared: dict[str, str] = {}
        self.decls: dict[str, StoreDecl] = {}
        self.stages: dict[str, str] = {}
        self._methods: dict[str, int] = {}
        self._made: dict[str, Provenance] = {}
        for stage in stages:
            self._methods[stage.name] = stage.method
            for decl in stage.stores(config):
                absent = [key for key in decl.upstream if key not in self.decls]
                if decl.key in self.decls or absent:
                    raise ValueError(f"{stage.name} declares {decl.key}, twice or before {', '.join(absent)}")
                self.decls[decl.key], self.stages[decl.key] = decl, stage.name

    def __contains__(self, key: str) -> bool:
        return key in self.decls

    def __iter__(self) -> Iterator[str]:
        return iter(self.decls)

    def provenance(self, key: str) -> Provenance:
        """What a store should be made from. Raises InputError where an input cannot be read and is not recorded."""
        if key not in self._made:
            decl, stage = self.decls[key], self.stages[key]
            upstream = {name: self.provenance(name).content for name in decl.upstream}
            self._made[key] = Provenance(
                stage,
                decl.settings,
                self._inputs(key, decl),
                upstream,
                self._methods[stage],
                decl.chunks,
                decl.arithmetic,
            )
        return self._made[key]

    def _inputs(self, key: str, decl: StoreDecl) -> Mapping[str, str]:
        """Digests of a store's inputs; where they are not at hand, those it was made from."""
        try:
            return decl.inputs()
        except (NotAtHand, Unreachable) as error:
            recorded = self._recorded(key)
            if recorded is None and not self.looking:
                raise
            self.not_compared[key] = error.headline
            return {"not at hand": ""} if recorded is None else recorded

    def _recorded(self, key: str) -> Mapping[str, str] | None:
        if self.study is None or self.study.metadata_damage(key) or not self.study.declared(key):
            return None
        inputs: Mapping[str, str] = self.study.store(key).provenance["inputs"]
        return inputs

    def provenances(self) -> dict[str, Provenance]:
        """Of every store, by key."""
        return {key: self.provenance(key) for key in self.decls}
