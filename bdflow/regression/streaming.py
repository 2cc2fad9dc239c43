"""Blocks of columns, in one walk through memory: predicted and scored, cross-validated, or multiplied with any matrix.

Targets come in pieces of rows as they are read, in float16 or float32; statistics are sums over few rows in float32,
added up in float64, after a shift that keeps them exact. NumPy or CuPy arrays; the array module is that of the input.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_numpy_array
from numpy.typing import DTypeLike

from bdflow.regression.ridge import take

Array = Any
ROWS_IN_CACHE = 64
ROWS_AT_ONCE = 1024  # of a matrix of errors


class Scratch:
    """Memory that is used again from block to block: touching fresh pages costs more than reading the targets."""

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An uninitialised NumPy array; it is valid until the same name is asked for again."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.size < size or held.dtype != dtype:
            held = self._held[name] = self.empty(size, dtype)
        return held[:size].reshape(shape)

    def empty(self, size: int, dtype: DTypeLike) -> np.ndarray:
        """Fresh memory."""
        return np.empty(size, dtype)


class Walk(NamedTuple):
    """What one walk through n training targets of t columns gives.

    Attributes
    ----------
    product : (m, t) of matrix @ (Y - first).
    first : (t,) first row of Y, float32, subtracted so that sums in float32 stay exact.
    mean, std : (t,) of Y, float64 as difference to `first`; ddof 0.
    """

    product: Array
    first: Array
    mean: Array
    std: Array


def walk(
    matrices: Sequence[Array],
    pieces: Iterable[Array],
    which: np.ndarray | None = None,
    scratch: Scratch | None = None,
    weights: np.ndarray | None = None,
) -> Walk:
    """Multiply matrices with a block of targets that comes in pieces, and take its mean and SD on the way.

    Parameters
    ----------
    matrices : (m, n) float32 each; one, or one for each alpha.
    pieces : runs of rows of the block, (k, t) each, float16 or float32, n rows in all.
    which : (t,) the matrix of each column; needed where there are several.
    scratch : memory to be used again.
    weights : (n,) float32, how often each row counts for mean and SD; None: once.

    Raises
    ------
    ValueError : the pieces do not have n rows in all.
    """
    scratch = scratch or Scratch()
    (m, n), at = matrices[0].shape, 0
    product: Array = None
    first: Array = None
    total: Array = None
    squares: Array = None
    for piece in pieces:
        xp = array_namespace(matrices[0], piece)
        k, t = piece.shape
        if product is None:
            first = as_float32(piece[:1, :])[0, :]
            product = xp.zeros((m, t), dtype=xp.float32)
            total, squares = xp.zeros((t,), dtype=xp.float64), xp.zeros((t,), dtype=xp.float64)
        share = None if weights is None else weights[at : at + k]
        values, piece_total, piece_squares = _shifted(piece, first, scratch, share)
        total += piece_total
        squares += piece_squares
        for matrix, columns in _by_matrix(matrices, which):
            rows = matrix[:, at : at + k]
            if columns is not None:
                at_columns = xp.asarray(columns)
                product[:, at_columns] += rows @ values[:, at_columns]
            elif is_numpy_array(values):
                out = product if at == 0 else scratch.array("product", (m, t), "f4")
                np.matmul(rows, values, out=out)
                if out is not product:
                    product += out
            else:
                product += rows @ values
        at += k
    if at != n:
        raise ValueError(f"found {at} training targets, expected {n}")
    count = n if weights is None else float(np.sum(weights, dtype=np.float64))
    mean = total / count
    return Walk(product, first, mean, xp.sqrt(xp.maximum(squares / count - mean * mean, xp.zeros_like(mean))))


def _by_matrix(matrices: Sequence[Array], which: np.ndarray | None) -> Iterator[tuple[Array, np.ndarray | None]]:
    if which is None:
        (matrix,) = matrices
        yield matrix, None
        return
    for number in np.unique(which):
        columns = np.flatnonzero(which == number)
        yield matrices[int(number)], None if len(columns) == len(which) else columns


def _shifted(
    piece: Array, shift: Array, scratch: Scratch, weights: np.ndarray | None = None
) -> tuple[Array, Array, Array]:
    """`piece - shift` in float32, (k, t), with its (weighted) column sums and sums of squares in float64."""
    xp = array_namespace(piece)
    k, t = piece.shape
    total = xp.zeros((t,), dtype=xp.float64)
    squares = xp.zeros((t,), dtype=xp.float64)
    if not is_numpy_array(piece):
        values = as_float32(piece) - shift
        if weights is not None:
            weighted = values * xp.asarray(weights)[:, None]
            squares = xp.sum(weighted * values, axis=0, dtype=xp.float64)
            return values, xp.sum(weighted, axis=0, dtype=xp.float64), squares
        return values, xp.sum(values, axis=0, dtype=xp.float64), xp.sum(values * values, axis=0, dtype=xp.float64)
    values = scratch.array("values", (k, t), "f4")
    for start, stop in _few_rows(k):
        part = values[start:stop, :]
        _into_float32(piece[start:stop, :], part)
        part -= shift
        if weights is None:
            total += _column_sums(part)
            squares += np.einsum("ij,ij->j", part, part)
        else:
            total += weights[start:stop] @ part
            squares += np.einsum("i,ij,ij->j", weights[start:stop], part, part)
    return values, total, squares


def _column_sums(values: np.ndarray) -> np.ndarray:
    sums: np.ndarray = np.ones(len(values), dtype=values.dtype) @ values
    return sums


def _few_rows(n: int) -> Iterator[tuple[int, int]]:
    """Runs of rows that stay in cache."""
    return ((start, min(start + ROWS_IN_CACHE, n)) for start in range(0, n, ROWS_IN_CACHE))


def as_float32(values: Array) -> Array:
    """The values in float32."""
    if is_numpy_array(values):
        out = np.empty(values.shape, dtype=np.float32)
        _into_float32(values, out)
        return out
    xp = array_namespace(values)
    return xp.astype(values, xp.float32)


def _into_float32(values: np.ndarray, out: np.ndarray) -> None:
    """Float16 through torch, whose conversion is ten times as fast and as exact."""
    if values.dtype != np.float16:
        out[...] = values
        return
    import torch

    if values.flags.writeable:
        torch.from_numpy(out).copy_(torch.from_numpy(values))
        return
    with warnings.catch_warnings():  # takes as long as the conversion of 64 rows: only where torch would warn
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        torch.from_numpy(out).copy_(torch.from_numpy(values))


class Block(NamedTuple):
    """Predictions of one block of columns and all that is worth knowing of them.

    Attributes
    ----------
    latent : (m, t) raw predictions.
    train_mean, train_std : (t,) of the training targets (ddof 0).
    prediction_mean, prediction_std : (t,) of the predictions over the test set (ddof 0).
    r2, pearson_r : (t,) scores on the test set; not a number where the true (for r, also the predicted) column is
        constant.
    held_out_mean, held_out_std : (t,) of what cross-validation predicts for training stimuli; None if not asked for.
    """

    latent: Array
    train_mean: Array
    train_std: Array
    prediction_mean: Array
    prediction_std: Array
    r2: Array
    pearson_r: Array
    held_out_mean: Array = None
    held_out_std: Array = None


def predict_block(
    hat_matrices: Sequence[Array],
    train: Iterable[Array],
    test: Iterable[Array],
    *,
    which: np.ndarray | None = None,
    held_out: int = 0,
    scratch: Scratch | None = None,
    weights: np.ndarray | None = None,
    intercept: bool = True,
) -> Block:
    """Predict one block of columns and score it, in one walk through memory.

    Parameters
    ----------
    hat_matrices : (m + held_out, n) float32 each, rows summing to 0; below them `held_out` rows of `leave_one_out`
        or `k_fold`, summing to 1. One, or one for each alpha.
    train, test : the block's n training and m test targets in pieces, (k, t) each, float16 or float32.
    which : (t,) the matrix of each column; needed where there are several.
    held_out : rows of cross-validation.
    weights : (n,) float32, how often each training stimulus counts for mean and SD; None: once.
    intercept : whether predictions get the (weighted) mean of the training targets. Without it, rows of
        cross-validation do not sum to 1.

    Returns
    -------
    Block, float32; statistics are accumulated in float64 from sums over few rows, after a shift that keeps them exact.
    A column with a training target that is not a number has predictions and scores that are not numbers.
    """
    product, shift, offset, spread = walk(hat_matrices, train, which, scratch, weights)
    xp = array_namespace(product)
    m, t = product.shape[0] - held_out, product.shape[1]
    predicted, mean = product[:m, :], xp.astype(offset, xp.float32)
    centre = xp.zeros_like(mean)
    if not intercept:  # in what follows, predictions are differences to the mean, which may be large against them
        predicted = predicted - (shift + mean)
        centre = predicted[0, :] + 0
    sums = {name: xp.zeros((t,), dtype=xp.float64) for name in ("p", "pp", "y", "yy", "py", "ee")}
    constant_y: Array = None
    constant_p: Array = None
    for start, y in _in_step(test, shift):  # sums are of differences to the training mean: predictions may be tiny ones
        y -= mean
        p = predicted[start : start + y.shape[0], :]
        if constant_y is None:
            first_y, first_p = y[:1, :] + 0, p[:1, :]
            constant_y = constant_p = xp.ones((t,), dtype=xp.bool)
        constant_y = constant_y & xp.all(y == first_y, axis=0)
        constant_p = constant_p & xp.all(p == first_p, axis=0)
        e = y - p
        if not intercept:
            p = p - centre
        for name, a, b in (("pp", p, p), ("yy", y, y), ("py", p, y), ("ee", e, e)):
            sums[name] += _sum_of_products(a, b)
        sums["p"] += _sum_of_products(p, None)
        sums["y"] += _sum_of_products(y, None)
    spread_p = xp.maximum(sums["pp"] - sums["p"] ** 2 / m, xp.zeros_like(offset))
    spread_y = xp.maximum(sums["yy"] - sums["y"] ** 2 / m, xp.zeros_like(offset))
    covariance = sums["py"] - sums["p"] * sums["y"] / m
    predicted += mean
    block = Block(
        predicted + shift,
        shift + xp.astype(offset, xp.float32),
        xp.astype(spread, xp.float32),
        shift + xp.astype(offset + xp.astype(centre, xp.float64) + sums["p"] / m, xp.float32),
        _float32_root(spread_p / m),
        xp.astype(1 - _ratio(sums["ee"], spread_y, constant_y), xp.float32),
        xp.astype(_ratio(covariance, xp.sqrt(spread_p * spread_y), constant_y | constant_p), xp.float32),
    )
    if not held_out:
        return block
    held = xp.astype(product[m:, :], xp.float64)
    if not intercept:
        held += (_row_sums(hat_matrices, which, t, m) - 1) * xp.astype(shift, xp.float64)
    return block._replace(
        held_out_mean=shift + xp.astype(xp.mean(held, axis=0), xp.float32),
        held_out_std=xp.astype(xp.std(held, axis=0), xp.float32),
    )


def _row_sums(matrices: Sequence[Array], which: np.ndarray | None, t: int, start: int = 0) -> Array:
    """(m - start, t) sums of the rows of the matrix of each column, float64."""
    xp = array_namespace(*matrices)
    sums = xp.stack([xp.sum(matrix[start:, :], axis=1, dtype=xp.float64) for matrix in matrices], axis=1)
    return take(sums, np.zeros(t, int) if which is None else which, 1)


def _in_step(pieces: Iterable[Array], shift: Array) -> Iterator[tuple[int, Array]]:
    """Few rows at a time: where they begin, and their values in float32 less `shift`."""
    at = 0
    for piece in pieces:
        few = _few_rows(piece.shape[0]) if is_numpy_array(piece) else [(0, piece.shape[0])]
        for start, stop in few:
            yield at + start, as_float32(piece[start:stop, :]) - shift
        at += piece.shape[0]


def _sum_of_products(a: Array, b: Array | None) -> Array:
    """Column sums of a * b, in float64 from float32 sums over few rows."""
    xp = array_namespace(a)
    if is_numpy_array(a):
        return _column_sums(a) if b is None else np.einsum("ij,ij->j", a, b)
    return xp.sum(a if b is None else a * b, axis=0, dtype=xp.float64)


def validate_block(
    matrices: Sequence[Array],
    rows: np.ndarray,
    pieces: Iterable[Array],
    scratch: Scratch | None = None,
    intercept: bool = True,
) -> Array:
    """Cross-validated R^2 of a block of columns for several alphas.

    Parameters
    ----------
    matrices : (s, n) float32, one for each alpha, from `leave_one_out` or `k_fold`.
    rows : the s training stimuli they predict, ascending.
    pieces : the block's n training targets in pieces, (k, t) each.
    intercept : whether the model has one: then the rows of the matrices sum to 1.

    Returns
    -------
    (alphas, t) float32, not a number where the s true values are all the same.
    """
    xp = array_namespace(*matrices)
    true: list[Array] = []

    def watched() -> Iterator[Array]:
        at = 0
        for piece in pieces:
            here = rows[(rows >= at) & (rows < at + piece.shape[0])] - at
            if len(here):
                true.append(as_float32(take(piece, here, 0)))
            at += piece.shape[0]
            yield piece

    found = walk([xp.concat(list(matrices))], watched(), None, scratch)
    y = xp.astype(xp.concat(true) - found.first, xp.float64)
    k = len(rows)

    def predictions() -> Iterator[Array]:
        for number, matrix in enumerate(matrices):
            predicted = found.product[number * k : (number + 1) * k, :]
            if not intercept:
                predicted = predicted + (_row_sums([matrix], None, len(found.first)) - 1) * found.first
            yield predicted

    return xp.stack([xp.astype(scores, xp.float32) for scores in column_r2(y, predictions())])


def error_block(matrices: Iterable[Array], pieces: Iterable[Array]) -> Array:
    """Mean squared errors of cross-validation of a block of columns for several alphas.

    Parameters
    ----------
    matrices : (r, n) float32, one for each alpha, from `k_fold_errors`; one after the other is asked for. Where rows
        begin with zeros, as those of a triangular factor do, these are not multiplied.
    pieces : the block's n training targets in pieces, (k, t) each.

    Returns
    -------
    (alphas, t) float32.

    Raises
    ------
    ValueError : the pieces do not have n rows in all.
    """
    y: Array = None
    at = 0
    left = iter(matrices)
    matrix = next(left)
    n = matrix.shape[1]
    for piece in pieces:
        xp = array_namespace(matrix, piece)
        if y is None:
            y = xp.empty((n, piece.shape[1]), dtype=xp.float32)
        y[at : at + piece.shape[0], :] = as_float32(piece)
        at += piece.shape[0]
    if at != n:
        raise ValueError(f"found {at} training targets, expected {n}")
    mean = xp.astype(xp.mean(y, axis=0, dtype=xp.float64), xp.float32)
    y -= mean  # a product with the mean itself is exact: errors are small differences of large values
    found = []
    while matrix is not None:
        total = xp.zeros((y.shape[1],), dtype=xp.float64)
        for start in range(0, matrix.shape[0], ROWS_AT_ONCE):
            rows = matrix[start : start + ROWS_AT_ONCE, :]
            sums = xp.astype(xp.sum(rows, axis=1, dtype=xp.float64), xp.float32)
            first = int(xp.argmax(xp.astype(xp.any(rows != 0, axis=0), xp.uint8)))
            errors = rows[:, first:] @ y[first:, :]
            errors += sums[:, None] * mean
            errors *= errors
            total += xp.sum(errors, axis=0, dtype=xp.float64)
        found.append(total)
        matrix = next(left, None)
    return xp.astype(xp.stack(found), xp.float32)


def column_r2(true: Array, predictions: Iterable[Array]) -> Iterator[Array]:
    """R^2 of each column, for several predictions of the same targets.

    Parameters
    ----------
    true : (s, t) floating point.
    predictions : (s, t) each.

    Yields
    ------
    (t,) in the dtype of `true`; not a number where the true column is constant.
    """
    xp = array_namespace(true)
    constant = xp.all(true == true[:1, :], axis=0)
    spread = xp.sum((true - xp.mean(true, axis=0)) ** 2, axis=0)
    for predicted in predictions:
        yield 1 - _ratio(xp.sum((true - predicted) ** 2, axis=0), spread, constant)


def _float32_root(values: Array) -> Array:
    xp = array_namespace(values)
    return xp.astype(xp.sqrt(xp.maximum(values, xp.zeros_like(values))), xp.float32)


def _ratio(above: Array, below: Array, undefined: Array) -> Array:
    xp = array_namespace(above)
    undefined = undefined | (below <= 0)
    nan = xp.full_like(above, float("nan"))
    return xp.where(undefined, nan, above / xp.where(undefined, xp.ones_like(below), below))
