"""Rows of one stimulus: matrices over training trials as matrices over training stimuli.

Where each trial is a row, its target is the latent of its stimulus. So H @ Y over trials is (H summed over the trials
of each stimulus) @ (the latents of stimuli): targets are read once a stimulus, however often it was shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from bdflow.regression.ridge import Array, take


@dataclass(frozen=True)
class Grouping:
    """Which training rows are of which stimulus; the rows of a stimulus lie beside each other.

    Parameters
    ----------
    row_ids : (n,) stimulus of each training row.

    Raises
    ------
    ValueError : rows of a stimulus that do not lie beside each other.
    """

    row_ids: np.ndarray

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of each stimulus."""
        changes = np.flatnonzero(np.concatenate([[True], self.row_ids[1:] != self.row_ids[:-1]]))
        if len(np.unique(self.row_ids[changes])) < len(changes):
            raise ValueError("rows of a stimulus do not lie beside each other")
        return changes

    @property
    def ids(self) -> np.ndarray:
        """(s,) each stimulus once, in the order of the rows."""
        found: np.ndarray = self.row_ids[self.starts]
        return found

    @cached_property
    def counts(self) -> np.ndarray:
        """(s,) rows of each stimulus."""
        return np.diff([*self.starts, len(self.row_ids)])

    @property
    def trivial(self) -> bool:
        """Whether every stimulus has one row."""
        return len(self.starts) == len(self.row_ids)

    @property
    def weights(self) -> np.ndarray | None:
        """(s,) float32 rows of each stimulus; None where each has one."""
        return None if self.trivial else self.counts.astype(np.float32)

    def rows(self, stimulus: int) -> np.ndarray:
        """Rows of a stimulus, given by its position."""
        return np.arange(self.starts[stimulus], self.starts[stimulus] + self.counts[stimulus])

    def sum_columns(self, matrix: Array) -> Array:
        """(m, n) over rows to (m, s) over stimuli: columns of a stimulus added up."""
        if self.trivial:
            return matrix
        found = None
        for repeat in range(int(self.counts.max())):
            having = np.flatnonzero(self.counts > repeat)
            part = take(matrix, self.starts[having] + repeat, 1)
            if found is None:
                found = part
            else:
                found[:, array_namespace(found).asarray(having)] += part
        return found

    def sum_rows(self, values: Array) -> Array:
        """(n, p) over rows to (s, p) over stimuli: rows of a stimulus added up."""
        if self.trivial:
            return values
        if is_numpy_array(values):  # with nothing held beside the sums
            found: Array = np.add.reduceat(values, self.starts, axis=0)
            return found
        return self.sum_columns(values.T).T

    def groups(self, stimuli: np.ndarray) -> Iterator[np.ndarray]:
        """Rows of each of these stimuli, given by their positions."""
        return (self.rows(int(stimulus)) for stimulus in stimuli)
