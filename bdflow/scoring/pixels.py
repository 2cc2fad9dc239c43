"""Arrays that should hold pictures: which axis is what, on which scale the values are, and what says that they are not.

Nothing is guessed where two readings are possible. Values become uint8, which is what the metrics compare: floats are
rounded to the nearest of 256 levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np

from bdflow.errors import InputError, counted, listed

Scale = Literal["0..1", "-1..1", "0..255"]
SCALES: dict[str, tuple[float, float]] = {"0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0), "0..255": (0.0, 255.0)}
COLOURS = 3
ROWS_AT_ONCE = 16
SMALLEST = 8
"""Pixels of a side, below which an axis is more likely something else."""
EXPECTED = "pictures as (n, y, x, 3) or (n, 3, y, x); several of a stimulus as (n, k, y, x, 3) or (n, k, 3, y, x)"


class ArrayLike(Protocol):
    """What numpy, zarr and memory maps have in common."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __getitem__(self, rows: slice, /) -> object: ...


def layout(where: str, shape: tuple[int, ...]) -> tuple[int, bool]:
    """How many pictures a stimulus has, and whether colours stand before rows and columns.

    Raises InputError for a shape that is none of pictures, or that can be read in two ways.
    """
    said = " x ".join(map(str, shape)) or "one number"
    if len(shape) not in (4, 5) or 0 in shape:
        raise _refused(where, f"an array of shape {said}", "")
    first, last = shape[-3] == COLOURS, shape[-1] == COLOURS
    if first == last:
        if first:
            why = "Its first and its last axis of a picture have length 3: either could be the colours"
        elif 1 in (shape[-1], shape[-3]):
            why = "Pictures in grey: repeat the channel three times, if that is meant"
        elif 4 in (shape[-1], shape[-3]):
            why = "Four channels, of which one may be transparency: compose the pictures over their background first"
        else:
            why = "No axis of length 3 is where colours stand"
        raise _refused(where, f"an array of shape {said}", why)
    height, width = shape[-2:] if first else shape[-3:-1]
    if min(height, width) < SMALLEST:
        why = f"These would be pictures of {width} x {height} pixels; at least {SMALLEST} are looked for"
        raise _refused(where, f"an array of shape {said}", why)
    return (1 if len(shape) == 4 else shape[1]), first


def _refused(where: str, found: str, meaning: str) -> InputError:
    return InputError(where, found=found, expected=EXPECTED, meaning=meaning, action="hand in an array of such a shape")


class Levels:
    """From values of an array to uint8, by a scale that the values agree with.

    Parameters
    ----------
    where : names the array in errors. values : (n, ...), read in blocks, once, to look at all of them.
    scale : of floats; None for 0 to 1, where nothing says otherwise. option : the name of the option that says it.

    Raises
    ------
    InputError : values that are not numbers, not finite, outside their scale, on several scales, or on one that was not
        named.
    """

    def __init__(self, where: str, values: ArrayLike, scale: Scale | None, option: str) -> None:
        kind = np.dtype(values.dtype).kind
        self.where, self.option = where, option
        if kind not in "fiu":
            raise InputError(
                where,
                found=f"values of type {np.dtype(values.dtype)}",
                expected="uint8 of 0 to 255, or floats of 0 to 1",
                action="convert them",
            )
        lows, highs = self._extremes(values, kind == "f")
        self.low, self.high = SCALES["0..255"] if kind != "f" else SCALES[scale or "0..1"]
        if kind != "f":
            self._whole_numbers(lows, highs)
        else:
            self._floats(lows, highs, scale)

    def _extremes(self, values: ArrayLike, floats: bool) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value of each row."""
        lows, highs, broken = [], [], []
        for start, rows in blocks(values):
            flat = rows.reshape(len(rows), -1)
            if floats:
                bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
                broken += [start + int(row) for row in bad]
            lows.append(flat.min(axis=1).astype(np.float64))
            highs.append(flat.max(axis=1).astype(np.float64))
        if broken:
            raise InputError(
                self.where,
                found=f"values that are not a number or infinite in {_rows(broken)}",
                expected="numbers alone",
                action="make these pictures again",
            )
        return np.concatenate(lows), np.concatenate(highs)

    def _whole_numbers(self, lows: np.ndarray, highs: np.ndarray) -> None:
        outside = np.flatnonzero((lows < 0) | (highs > 255))
        if outside.size:
            deep = "Pictures of 16 bits are divided by 257 first." if lows.min() >= 0 and highs.max() <= 65535 else ""
            raise self._outside(lows, highs, outside.tolist(), "0 to 255", deep)
        if highs.max() <= 1:
            raise InputError(
                self.where,
                found="whole numbers of 0 and 1 alone",
                expected="0 to 255",
                meaning="They look like floats of 0 to 1 that lost what is behind the point.",
                action="multiply floats by 255 before you make whole numbers of them",
            )
        self._mixed(highs)

    def _floats(self, lows: np.ndarray, highs: np.ndarray, scale: Scale | None) -> None:
        half = (self.high - self.low) / 255 / 2  # what is rounded into the scale
        outside = np.flatnonzero((lows < self.low - half) | (highs > self.high + half))
        if outside.size:
            words = f"{self.low:g} to {self.high:g}"
            raise self._outside(lows, highs, outside.tolist(), words, self._looks_like(lows, highs, scale))
        if self.low < 0 and lows.min() >= 0:
            raise self._other("no value below 0", "0..1")
        if self.high > 1 and highs.max() <= 1:
            raise self._other("no value above 1", "0..1")
        if self.high > 1:
            self._mixed(highs)
        elif self.low == 0 and highs.max() <= 2 / 255:
            raise InputError(
                self.where,
                found=f"no value above {highs.max():.3g}",
                expected="floats of 0 to 1",
                meaning="All pictures are nearly black. They look as if they had been divided by 255 twice.",
                action="multiply the values by 255",
            )

    def _looks_like(self, lows: np.ndarray, highs: np.ndarray, scale: Scale | None) -> str:
        if scale is None:
            if lows.min() >= -0.5 and highs.max() <= 255.5 and highs.max() > 2:
                few = np.flatnonzero((highs <= 1) & (highs > 0)).tolist()
                if few and len(few) < len(highs):
                    return f"They are on two scales: {_rows(few)} within 0 to 1, others up to {highs.max():.4g}."
                return f"They look like 0 to 255: if they are, say so by {self.option} 0..255."
            if -1.01 <= lows.min() < 0 and highs.max() <= 1.01:
                return f"They look like -1 to 1: if they are, say so by {self.option} -1..1."
        return ""

    def _mixed(self, highs: np.ndarray) -> None:
        few = np.flatnonzero((highs <= 1) & (highs > 0)).tolist()
        if few:
            raise InputError(
                self.where,
                found=f"values on two scales: {_rows(few)} within 0 to 1, others up to {highs.max():.4g}",
                expected="one scale for all pictures",
                action="bring all pictures to one scale",
            )

    def _outside(self, lows: np.ndarray, highs: np.ndarray, rows: list[int], expected: str, meaning: str) -> InputError:
        return InputError(
            self.where,
            found=f"values from {lows.min():.4g} to {highs.max():.4g}, outside the scale in {_rows(rows)}",
            expected=f"values of {expected}",
            meaning=meaning,
            action=f"convert the values, or name their scale by {self.option}: {', '.join(SCALES)}",
        )

    def _other(self, found: str, likely: str) -> InputError:
        return InputError(
            self.where,
            found=found,
            expected=f"values of {self.low:g} to {self.high:g}, as {self.option} says",
            meaning=f"They look like {likely.replace('..', ' to ')}.",
            action=f"say {self.option} {likely}, or leave the option out",
        )

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Values in uint8."""
        if values.dtype.kind != "f":
            return values.astype(np.uint8)
        wide = values.astype(np.float64) if values.dtype.itemsize > 4 else values.astype(np.float32)
        found: np.ndarray = np.rint((wide - self.low) * (255 / (self.high - self.low))).clip(0, 255).astype(np.uint8)
        return found


def blocks(values: ArrayLike) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of an array, a few at a time, with the number of the first."""
    for start in range(0, values.shape[0], ROWS_AT_ONCE):
        yield start, np.asarray(values[start : start + ROWS_AT_ONCE])


def _rows(rows: list[int]) -> str:
    return f"{counted(len(rows), 'row')} ({listed(rows, 5)}, counted from 0)"
