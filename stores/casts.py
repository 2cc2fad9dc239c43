"""Values brought to the dtype they are stored in, refused where they do not fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from bdflow.stores.errors import StoreError


def narrowed(values: np.ndarray, dtype: DTypeLike, where: object) -> np.ndarray:
    """`values` as `dtype`: the same numbers, rounded only from one floating-point type to another.

    Raises
    ------
    StoreError : a value that `dtype` cannot hold: outside an integer's range, not whole or not a number for an integer,
        finite but infinite in a smaller floating-point type, or a whole number that it would round. It names `where`,
        the first such value and its place.
    """
    values, dtype = np.asarray(values), np.dtype(dtype)
    if values.dtype == dtype or values.dtype.kind not in "biufc" or dtype.kind not in "biuf":
        return values.astype(dtype, copy=False)
    bad = misfits(values, dtype)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise StoreError(
            where,
            found=f"the value {values[at]} at position {', '.join(map(str, at)) or '()'}"
            + (f", and {int(bad.sum()) - 1:,} more" if bad.sum() > 1 else ""),
            expected=holds(dtype),
            meaning=f"It is stored as {dtype}, which would hold another value.",
            action="correct the input that it comes from",
        )
    return values.astype(dtype)


def misfits(values: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Which of `values` (numbers) `dtype` cannot hold; bool of the same shape."""
    dtype = np.dtype(dtype)
    if values.dtype.kind == "c":
        return np.ones(values.shape, bool)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            cast = values.astype(dtype)
        if values.dtype.kind == "f":
            found: np.ndarray = np.isfinite(values) & ~np.isfinite(cast)
            return found
        limit = 2 ** (np.finfo(dtype).nmant + 1)
        inexact: np.ndarray = (values > limit) | (values < -limit) if values.dtype.kind != "b" else values & False
        return inexact
    if values.dtype.kind == "b":
        return np.zeros(values.shape, bool)
    low, high = _limits(dtype)
    if values.dtype.kind in "iu":
        outside: np.ndarray = (values < low) | (values > high)
        return outside
    # float64(2^63 - 1) is 2^63: compare with the power of two above the range
    with np.errstate(invalid="ignore"):
        fits: np.ndarray = (values >= float(low)) & (values < float(high + 1)) & (values % 1 == 0)
    return ~fits


def holds(dtype: DTypeLike) -> str:
    """In words, what a number must be to fit into `dtype`."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return f"numbers up to {np.finfo(dtype).max:g}, whole ones up to {2 ** (np.finfo(dtype).nmant + 1)}"
    low, high = _limits(dtype)
    return f"whole numbers from {low} to {high}"


def _limits(dtype: np.dtype) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)
