"""What a GPU must hold while blocks of targets are multiplied: predictions, the choice of penalties, weights, and
encoding models. As `memory_budget` does for systems, decided by the worker that meets the GPU, before it begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bdflow.errors import InputError
from bdflow.regression.memory_budget import LEAST_ROWS, MIB, WORKSPACE

PLACES = 2  # of pieces on the GPU: one is filled while the other is read
WAITING = 3  # results of a block: made, waiting, written


@dataclass(frozen=True)
class Walk:
    """Matrices multiplied with one block of targets after the other.

    Parameters
    ----------
    matrices : bytes of all that is held beside a block.
    rows : of the matrices that are multiplied at once. held_out : those of them that are of cross-validation.
    columns : latents, or voxels, in a block. itemsize : bytes of a target.
    results : float32 values that wait to be written, a column.
    tests : targets that predictions are compared with, a column, as they are stored.
    several : each column has a matrix of its own choice.
    """

    matrices: int
    rows: int
    columns: int
    itemsize: int = 4
    held_out: int = 0
    results: int = 0
    tests: int = 0
    several: bool = False

    def nbytes(self, piece_rows: int) -> int:
        """With so many rows of targets at a time."""
        piece = piece_rows * (PLACES * self.itemsize + 16)
        product = (16 if self.several else 8) * self.rows
        after = 24 * (self.rows - self.held_out) + 32 * self.held_out
        sums = 256
        per_column = max(piece + product, PLACES * self.itemsize * piece_rows + after)
        return self.matrices + self.columns * (per_column + 4 * self.results + self.itemsize * self.tests + sums)


@dataclass(frozen=True)
class Choice:
    """Penalties compared on a block of targets: `rows` of cross-validation of each, over `train` stimuli; `by_rows`: of
    matrices of errors, one penalty after the other.
    """

    rows: int
    train: int
    columns: int
    itemsize: int
    by_rows: bool = False

    def nbytes(self, piece_rows: int, penalties: int) -> int:
        """With so many rows of targets, and penalties, at a time."""
        piece = piece_rows * ((PLACES + 1) * self.itemsize + 12)
        if self.by_rows:
            return 4 * self.rows * self.train + self.columns * (4 * self.train + piece + 12 * self.rows + 256)
        walk = Walk(8 * penalties * self.rows * self.train, penalties * self.rows, self.columns, self.itemsize)
        compared = (PLACES + 1) * self.itemsize * piece_rows + 4 * self.rows * penalties + 40 * self.rows
        extra = self.columns * (self.itemsize * piece_rows + 8 * self.rows)
        return max(walk.nbytes(piece_rows) + extra, walk.matrices + self.columns * (compared + 256))


@dataclass(frozen=True)
class Encoding:
    """Encoding models: kernels of `bands` spaces over `train` stimuli, whose latents are read in runs; candidates, each
    with all `penalties`, by which `held_out` and `test` stimuli are predicted; blocks of `voxels`. `components`: spaces
    are reduced to principal components.
    """

    train: int
    test: int
    bands: int
    held_out: int
    penalties: int
    voxels: int
    components: bool = False

    def nbytes(self, latents: int) -> int:
        """With so many latents read at a time."""
        n, rows = self.train, self.held_out + self.test
        one: int = 4 * n * (n + self.test)
        reading = one + 4 * n * n + 48 * latents * (n + self.test)
        reduced = one + (48 * n * n + 16 * n * self.test if self.components else 0)
        matrices = 4 * n * self.penalties * rows
        solving = 20 * n * n + 24 * n * rows + matrices
        block = 4 * self.voxels * (n + self.test)
        compared = 4 * n * self.penalties * self.held_out
        compared += self.voxels * (20 * n + 8 * self.penalties * self.held_out + 48 * self.held_out)
        predicted = self.voxels * (20 * n + 40 * self.test)
        scoring = 8 * n * n + 4 * n * self.test + matrices + block + max(compared, predicted)
        return self.bands * one + max(reading - one, reduced - one, solving, scoring)


def piece_rows_on_device(nbytes: Callable[[int], int], most: int, free: int, what: str, stage: str = "regress") -> int:
    """The most rows of targets at a time, `most` at most, with which so many bytes fit into `free` ones of a GPU.

    Raises
    ------
    InputError : no number of rows fits; both numbers of bytes are in it.
    """
    room = free - WORKSPACE
    least = min(most, LEAST_ROWS)
    lengths: list[int] = [most, *range(most // LEAST_ROWS * LEAST_ROWS, 0, -LEAST_ROWS), least]
    for rows in lengths:
        if nbytes(rows) <= room:
            return rows
    raise too_little(nbytes(least), free, what, stage)


def too_little(need: int, free: int, what: str, stage: str) -> InputError:
    """The error of a GPU on which something does not fit."""
    return InputError(
        f"memory of the GPU, {stage}",
        found=f"{free / MIB:,.0f} MiB free for this worker",
        expected=f"at least {(need + WORKSPACE) / MIB:,.0f} MiB for {what}",
        action=f"use a GPU with more memory or fewer workers on it (`execution.{stage}.gpus`), lower "
        f"chunks.{'voxels' if stage == 'encode' else 'columns'} or the number of penalties, or set `gpus: 0`",
    )
