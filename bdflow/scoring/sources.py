"""Pictures wherever they are: what all forms have in common, and arrays in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from bdflow.errors import InputError, listed
from bdflow.scoring.pixels import ArrayLike, Levels, Scale, layout

Several = list[np.ndarray]
"""The pictures of one stimulus, each (y, x, 3) uint8."""


class Images(ABC):
    """Pictures of stimuli, read when they are needed.

    Attributes
    ----------
    where : names them in errors and in the report.
    ids : of the stimuli, in the order of rows; None where order alone says which is which.
    several : how many pictures each stimulus has.
    """

    where: str
    ids: tuple[str, ...] | None
    several: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, rows: Sequence[int]) -> list[Several]:
        """The pictures of these rows. Raises InputError for what cannot be read."""

    @property
    def names(self) -> tuple[str, ...]:
        """Ids, or numbers from 0."""
        return tuple(map(str, range(len(self)))) if self.ids is None else self.ids


class ArrayImages(Images):
    """Pictures in an array of any origin: (n, [k,] y, x, 3) or (n, [k,] 3, y, x).

    Raises
    ------
    InputError : a shape or values that are none of pictures (`bdflow.scoring.pixels`); ids that are not one for each
        row, each once.
    """

    def __init__(
        self, where: str, values: ArrayLike, scale: Scale | None, option: str, ids: Sequence[str] | None = None
    ) -> None:
        self.where, self.values = where, values
        self.several, self.first = layout(where, tuple(values.shape))
        self.ids = None if ids is None else tuple(map(str, ids))
        if self.ids is not None:
            check_ids(where, self.ids, values.shape[0])
        self.levels = Levels(where, values, scale, option)

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def read(self, rows: Sequence[int]) -> list[Several]:
        at = [int(row) for row in rows]
        neighbours = at == list(range(at[0], at[0] + len(at))) if at else False
        if neighbours:
            block = np.asarray(self.values[at[0] : at[-1] + 1])
        else:
            block = np.concatenate([np.asarray(self.values[row : row + 1]) for row in at])
        block = self.levels(block)
        if self.first:
            block = np.moveaxis(block, -3, -1)
        if block.ndim == 4:
            block = block[:, None]
        return [[np.ascontiguousarray(image) for image in images] for images in block]


def check_ids(where: str, ids: Sequence[str], n: int) -> None:
    """Raises InputError unless there are n ids, each once and none empty."""
    twice = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if len(ids) != n or twice or "" in ids:
        wrong = f"{len(ids)} ids for {n} rows" if len(ids) != n else f"ids that stand twice: {listed(twice)}"
        raise InputError(
            where,
            found="an empty id" if "" in ids and len(ids) == n else wrong,
            expected="one id for each row, each once",
            action="correct the ids",
        )
