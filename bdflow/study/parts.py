"""Stores of stimuli in parts: what several subjects saw (`shared`), and what each subject alone saw.

A subject that is added later adds a part. The others, and all that is made from them, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np

from bdflow.config import Config
from bdflow.errors import counted, listed
from bdflow.stores import Store
from bdflow.stores.store import Selection, positions
from bdflow.study import keys
from bdflow.study.keys import SHARED
from bdflow.study.stage import MEAN, TRUE, Context

STIMULUS = "stimulus_id"


def of_run(context: Context) -> tuple[str, ...]:
    """The parts that a run for some subjects fills: theirs; all where a split names test stimuli of any part."""
    return (SHARED, *(context.subjects if context.config.dataset.split == SHARED else context.config.subjects))


def of_tests(config: Config) -> tuple[str, ...]:
    """The parts that may hold test stimuli of any subject."""
    return (SHARED,) if config.dataset.split == SHARED else (SHARED, *config.subjects)


def of_pictures(config: Config, subject: str) -> tuple[str, ...]:
    """The parts that may hold what a subject's pictures show, or those of `mean` or `true`."""
    if subject == MEAN:
        return (SHARED,)
    return of_tests(config) if subject == TRUE else (SHARED, subject)


def stimuli(parts: Iterable[str]) -> tuple[str, ...]:
    """Keys of the stimuli of these parts."""
    return tuple(keys.stimuli(part) for part in parts)


def targets(space: str, parts: Iterable[str]) -> tuple[str, ...]:
    """Keys of the latents of these parts."""
    return tuple(keys.targets(space, part) for part in parts)


def left_out(stores: Iterable[Store]) -> list[str]:
    """In words, which stimuli of these parts the study leaves out; nothing, where it leaves out none."""
    known = [store for store in stores if "without_caption" in store.arrays]
    ids = [str(one) for store in known for one in store.read("without_caption")]
    if not ids:
        return []
    which = f"{counted(len(ids), 'stimulus', 'stimuli')} without a caption ({listed(ids, 6)})"
    return [f"{which} left out of training and test, in every space"]


def joined(context: Context, wanted: Sequence[str]) -> Joined:
    """Sealed stores of parts, as one. Raises NotReady."""
    return Joined([context.ready(key) for key in wanted])


class Joined:
    """Stores of the same arrays, one after the other along `stimulus`. Light and picklable, as stores are.

    Attributes
    ----------
    stores : the parts.
    path : what their paths have in common, for messages.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)
        self.path = self.first.path.rpartition("/")[0]

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.stores,)

    @property
    def first(self) -> Store:
        """One of them, to ask for what all have in common: types, chunks, lengths of other dimensions."""
        return self.stores[0]

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each part begins, and the end of the last."""
        return np.cumsum([0, *(store.sizes[STIMULUS] for store in self.stores)])

    @property
    def sizes(self) -> Mapping[str, int]:
        """Length of every dimension."""
        return {**self.first.sizes, STIMULUS: int(self.starts[-1])}

    def read(self, name: str, selection: Selection | None = None) -> np.ndarray:
        """As `Store.read`; positions of stimuli count from the first part on."""
        rest = {dim: part for dim, part in (selection or {}).items() if dim != STIMULUS}
        wanted = (selection or {}).get(STIMULUS, slice(None))
        found = [store.read(name, {STIMULUS: here, **rest}) for store, here in self._cut(wanted)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _cut(self, wanted: slice | np.ndarray) -> list[tuple[Store, slice | np.ndarray]]:
        """What of a selection lies in each part that has some of it; nothing of the first, where it is empty."""
        ends = zip(self.stores, self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)
        found: list[tuple[Store, slice | np.ndarray]] = []
        if isinstance(wanted, slice):
            start, stop, _ = wanted.indices(int(self.starts[-1]))
            for store, low, high in ends:
                if max(start, low) < min(stop, high):
                    found.append((store, slice(max(start, low) - low, min(stop, high) - low)))
        else:
            for store, low, high in ends:
                if (here := (wanted >= low) & (wanted < high)).any():
                    found.append((store, wanted[here] - low))
        return found or [(self.first, slice(0, 0))]

    def cut(self, rows: np.ndarray) -> list[tuple[Store, np.ndarray]]:
        """Each part that holds some of these positions, which ascend, and those by its own positions."""
        found = zip(self.stores, self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)
        cut = [(store, rows[(rows >= low) & (rows < high)] - low) for store, low, high in found]
        return [(store, here) for store, here in cut if len(here)]

    def run(self, rows: slice) -> tuple[Store, slice]:
        """The part in which the first of some rows lies, and those of them that lie in it, by its own positions."""
        at = int(np.searchsorted(self.starts, rows.start, side="right")) - 1
        low, high = self.starts[at : at + 2].tolist()
        return self.stores[at], slice(rows.start - low, min(rows.stop, high) - low)

    def rows(self, name: str, values: np.ndarray) -> np.ndarray:
        """As `Store.rows`. Raises StoreError naming the first value that is not there."""
        return positions(self.path, name, self.read(name), values)
