"""Which of the pictures that were painted of a stimulus are scored and shown: `all`, the `first`, or the `best`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bdflow.config import Config
from bdflow.stores import Store
from bdflow.study import keys
from bdflow.study.painting import shown_of

Rows = slice | np.ndarray


@dataclass(frozen=True)
class Selected:
    """The pictures of one subject and variant that a painter's `select` names.

    Attributes
    ----------
    images : the store of all pictures.
    count : how many of each stimulus are taken, from the first on.
    best : number of the one that is taken, (stimulus,); None: the first `count`.
    """

    images: Store
    count: int
    best: np.ndarray | None = None

    def read(self, rows: Rows) -> np.ndarray:
        """Pictures (n, k, y, x, 3) uint8 of these stimuli."""
        if self.best is None:
            return self.images.read("image", {"stimulus_id": rows, "picture": slice(0, self.count)})
        at = np.arange(self.images.sizes["stimulus_id"])[rows]
        each = [self._one(int(row), int(self.best[row])) for row in at]
        return (
            np.concatenate(each) if each else self.images.read("image", {"stimulus_id": rows, "picture": slice(0, 1)})
        )

    def _one(self, row: int, number: int) -> np.ndarray:
        return self.images.read("image", {"stimulus_id": slice(row, row + 1), "picture": slice(number, number + 1)})

    def shown(self, rows: Rows) -> np.ndarray:
        """One picture (n, y, x, 3) uint8 of each of these stimuli: the first that is taken."""
        first = self if self.best is not None else Selected(self.images, 1)
        return first.read(rows)[:, 0]


def selected(config: Config, store: Callable[[str], Store], painter: str, subject: str, variant: str) -> Selected:
    """The pictures that are scored and shown; `store` gives a store by its key."""
    settings, images = config.painters[painter], store(keys.reconstructions(painter, subject, variant))
    if settings.select != "best":
        return Selected(images, settings.pictures if settings.select == "all" else 1)
    chosen = store(keys.selected(painter, subject))
    at = chosen.read("variant").tolist().index(variant)
    return Selected(images, 1, chosen.read("best", {"variant": slice(at, at + 1)})[0])


def stores_of_pictures(config: Config, painter: str, subject: str) -> Iterator[str]:
    """Keys of all stores that `selected` reads, of every variant and control."""
    for variant in shown_of(config, painter, subject):
        yield keys.reconstructions(painter, subject, variant)
    if config.painters[painter].select == "best":
        yield keys.selected(painter, subject)
