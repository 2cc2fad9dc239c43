"""Ridge regression as a hat matrix: predictions = H @ Y + mean(Y), with neither dual coefficients nor weights.

With Z the z-scored training responses (n x p), Z* those to decode (m x p) and Y the training targets (n x t), ridge
with an unpenalised intercept predicts (scikit-learn's objective, ||y - Zw||^2 + alpha ||w||^2)

    H = Z* Z^T (Z Z^T + alpha I_n)^-1     (dual, n x n)
      = Z* (Z^T Z + alpha I_p)^-1 Z^T     (primal, p x p: the same matrix)

Z is centred on the training set, so H 1 = 0 and the intercept is the mean of Y. Everything here is pure and works on
NumPy or CuPy arrays; the array module is that of the input. NumPy arrays take the symmetric BLAS and LAPACK routines,
which do half the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from array_api_compat import array_namespace, is_cupy_array, is_numpy_array

Array = Any
Rows = Any
ROWS_IN_CACHE = 64


def z_score(train: Array, other: Array) -> tuple[Array, Array, Array, Array]:
    """Standardise voxels by the training set (paper, Methods: fMRI data preprocessing).

    Parameters
    ----------
    train, other : responses, shapes (n, p) and (m, p).

    Returns
    -------
    z-scored train and other; mean and SD (ddof 1) of each voxel, shape (p,). A constant voxel becomes 0 everywhere.
    """
    xp = array_namespace(train)
    mean = xp.mean(train, axis=0)
    centred = train - mean
    scale = xp.sqrt(xp.sum(centred * centred, axis=0) / max(train.shape[0] - 1, 1))
    constant = xp.all(train == train[:1, :], axis=0)
    scale = xp.where(constant, xp.zeros_like(scale), scale)
    return standardise(train, mean, scale), standardise(other, mean, scale), mean, scale


def standardise(responses: Array, mean: Array, scale: Array) -> Array:
    """Responses (n, p) as (x - mean) / scale, with 0 wherever a voxel's scale is 0."""
    xp = array_namespace(responses)
    one = xp.ones_like(scale)
    inverse = xp.where(scale > 0, 1 / xp.where(scale > 0, scale, one), xp.zeros_like(scale))
    values = responses - mean
    values *= inverse
    return values


def dual_is_cheaper(n: int, p: int, m: int) -> bool:
    """Whether the n x n system costs fewer operations than the p x p one (Gram matrix, Cholesky, solves)."""
    dual = n * n * p + n**3 / 3 + 2 * m * n * p + 2 * m * n * n
    primal = p * p * n + p**3 / 3 + 2 * m * p * p + 2 * m * n * p
    return dual <= primal


def hat_matrices(train: Array, other: Array, alphas: Sequence[float]) -> Iterator[Array]:
    """The hat matrix of each alpha, from one Gram matrix; dual or primal, whichever costs less.

    Parameters
    ----------
    train : z-scored training responses, shape (n, p), float32 or float64.
    other : z-scored responses to decode, shape (m, p).
    alphas : ridge penalties, each > 0.

    Yields
    ------
    H, shape (m, n), rows summing to 0: `H @ Y + mean(Y)` are the predictions.

    Raises
    ------
    ValueError : an alpha that is not positive; shapes that do not fit; values that are not finite.
    """
    xp = array_namespace(train, other)
    if train.ndim != 2 or other.ndim != 2 or train.shape[1] != other.shape[1]:
        raise ValueError(f"responses of shapes {train.shape} and {other.shape} do not share their voxels")
    (n, p), m = train.shape, other.shape[0]
    if dual_is_cheaper(n, p, m):
        yield from dual_hat_matrices([(train, other)], n, m, alphas)
        return
    _check(alphas, train, other)
    gram = xp.zeros((p, p), dtype=train.dtype)
    _add_gram(gram, train.T)
    for alpha in alphas:
        yield _centred_rows((train @ _solve(gram, float(alpha), other.T)).T)


def dual_hat_matrices(
    blocks: Iterable[tuple[Array, Array]], n: int, m: int, alphas: Sequence[float]
) -> Iterator[Array]:
    """`hat_matrices` in the dual form, from blocks of voxels: all of Z is never held, only the n x n system.

    Parameters
    ----------
    blocks : pairs of z-scored responses of some voxels: training (n, b) and to decode (m, b).
    n, m : numbers of training and other stimuli.

    Raises
    ------
    ValueError : as `hat_matrices`.
    """
    gram: Array = None
    cross: Array = None
    for train, other in blocks:
        _check(alphas, train, other)
        if gram is None:
            xp = array_namespace(train, other)
            gram, cross = xp.zeros((n, n), dtype=train.dtype), xp.zeros((m, n), dtype=train.dtype)
        _add_gram(gram, train)
        cross += other @ train.T
    if gram is None:
        raise ValueError("no voxels to decode from")
    for alpha in alphas:
        yield _centred_rows(_solve(gram, float(alpha), cross.T).T)


def _check(alphas: Sequence[float], *responses: Array) -> None:
    for alpha in alphas:
        if not alpha > 0:
            raise ValueError(f"alpha {alpha}: ridge needs a penalty above 0")
    for values in responses:
        xp = array_namespace(values)
        if not bool(xp.all(xp.isfinite(values))):
            raise ValueError("responses hold values that are not finite")


def _add_gram(gram: Array, block: Array) -> None:
    """gram += block @ block.T; with NumPy only one triangle of gram is kept up."""
    if is_numpy_array(gram):
        from scipy.linalg import get_blas_funcs

        syrk = get_blas_funcs("syrk", (gram,))
        left = block if block.flags.f_contiguous else block.T
        syrk(1.0, left, beta=1.0, c=gram.T, trans=left is not block, lower=1, overwrite_c=1)
    else:
        gram += block @ block.T


def _solve(gram: Array, alpha: float, right: Array) -> Array:
    """(gram + alpha I)^-1 right by Cholesky; shape of right (n, m)."""
    xp = array_namespace(gram)
    n = gram.shape[0]
    if is_numpy_array(gram):
        from scipy.linalg import get_lapack_funcs

        lapack: Any = get_lapack_funcs(("potrf", "potrs"), (gram,))
        potrf, potrs = lapack
        system = gram.T.copy(order="F")
        system.ravel(order="K")[:: n + 1] += alpha
        factor, failed = potrf(system, lower=1, overwrite_a=1, clean=0)
        if failed:
            raise ValueError(f"alpha {alpha}: the system is not positive definite in {gram.dtype}; raise alpha")
        return potrs(factor, right, lower=1)[0]
    system = gram + alpha * xp.eye(n, dtype=gram.dtype)
    factor = xp.linalg.cholesky(system)
    if is_cupy_array(gram):
        from cupyx.scipy.linalg import solve_triangular

        return solve_triangular(factor, solve_triangular(factor, right, lower=True), trans="T", lower=True)
    return xp.linalg.solve(factor.T, xp.linalg.solve(factor, right))


def _centred_rows(hat_matrix: Array) -> Array:
    """Rows shifted to sum to 0, as they do in exact arithmetic: a constant added to Y then moves nothing else."""
    xp = array_namespace(hat_matrix)
    return hat_matrix - xp.mean(hat_matrix, axis=1, keepdims=True)


class Block(NamedTuple):
    """Predictions of one block of columns and all that is worth knowing of them.

    Attributes
    ----------
    latent : (m, t) raw predictions.
    train_mean, train_std : (t,) of the training targets (ddof 0).
    prediction_mean, prediction_std : (t,) of the predictions over the test set (ddof 0).
    r2, pearson_r : (t,) scores on the test set; not a number where the true (for r, also the predicted) column is
        constant.
    """

    latent: Array
    train_mean: Array
    train_std: Array
    prediction_mean: Array
    prediction_std: Array
    r2: Array
    pearson_r: Array


def predict_block(hat_matrix: Array, latents: Array, train: Rows, test: Rows) -> Block:
    """Predict one block of columns and score it, in one walk through memory.

    Parameters
    ----------
    hat_matrix : (m, n) float32, rows summing to 0.
    latents : block of a target store, (stimuli, t), float16 or float32.
    train, test : its rows of the n training and m test stimuli.

    Returns
    -------
    Block, float32; statistics are accumulated in float64 from sums over few rows, after a shift that keeps them exact.
    """
    xp = array_namespace(hat_matrix, latents)
    shift = as_float32(latents[train, ...][:1, :])[0, :]
    targets, total, squares = _shifted(latents[train, ...], shift)
    n = targets.shape[0]
    offset = total / n
    mean = shift + xp.astype(offset, xp.float32)
    predicted = hat_matrix @ targets
    predicted += xp.astype(offset, xp.float32)

    m, t = predicted.shape
    sums = {name: xp.zeros((t,), dtype=xp.float64) for name in ("p", "pp", "y", "yy", "py", "ee")}
    true = latents[test, ...]
    for start, stop in _few_rows(m):
        p = predicted[start:stop, :]
        y = as_float32(true[start:stop, :]) - shift
        e = y - p
        for name, product in (("p", p), ("pp", p * p), ("y", y), ("yy", y * y), ("py", p * y), ("ee", e * e)):
            sums[name] += xp.astype(xp.sum(product, axis=0), xp.float64)
    spread_p = xp.maximum(sums["pp"] - sums["p"] ** 2 / m, xp.zeros_like(offset))
    spread_y = xp.maximum(sums["yy"] - sums["y"] ** 2 / m, xp.zeros_like(offset))
    covariance = sums["py"] - sums["p"] * sums["y"] / m
    constant_y = xp.all(true == true[:1, :], axis=0)
    constant = constant_y | xp.all(predicted == predicted[:1, :], axis=0)
    predicted += shift
    return Block(
        predicted,
        mean,
        _float32_root(squares / n - offset * offset),
        shift + xp.astype(sums["p"] / m, xp.float32),
        _float32_root(spread_p / m),
        xp.astype(1 - _ratio(sums["ee"], spread_y, constant_y), xp.float32),
        xp.astype(_ratio(covariance, xp.sqrt(spread_p * spread_y), constant), xp.float32),
    )


def _shifted(latents: Array, shift: Array) -> tuple[Array, Array, Array]:
    """`latents - shift` in float32, (n, t), with its column sums and sums of squares in float64."""
    xp = array_namespace(latents)
    n, t = latents.shape
    values = xp.empty((n, t), dtype=xp.float32)
    total = xp.zeros((t,), dtype=xp.float64)
    squares = xp.zeros((t,), dtype=xp.float64)
    for start, stop in _few_rows(n):
        part = as_float32(latents[start:stop, :]) - shift
        values[start:stop, :] = part
        total += xp.astype(xp.sum(part, axis=0), xp.float64)
        squares += xp.astype(xp.sum(part * part, axis=0), xp.float64)
    return values, total, squares


def _few_rows(n: int) -> Iterator[tuple[int, int]]:
    """Runs of rows that stay in cache."""
    return ((start, min(start + ROWS_IN_CACHE, n)) for start in range(0, n, ROWS_IN_CACHE))


def as_float32(values: Array) -> Array:
    """The values in float32; NumPy's float16 through torch, whose conversion is ten times as fast and as exact."""
    if is_numpy_array(values) and values.dtype == "float16":
        import torch

        return torch.from_numpy(values).to(torch.float32).numpy()
    xp = array_namespace(values)
    return xp.astype(values, xp.float32)


def _float32_root(values: Array) -> Array:
    xp = array_namespace(values)
    return xp.astype(xp.sqrt(xp.maximum(values, xp.zeros_like(values))), xp.float32)


def _ratio(above: Array, below: Array, undefined: Array) -> Array:
    xp = array_namespace(above)
    undefined = undefined | (below <= 0)
    nan = xp.full_like(above, float("nan"))
    return xp.where(undefined, nan, above / xp.where(undefined, xp.ones_like(below), below))


def predict(hat_matrix: Array, targets: Array) -> Array:
    """Predictions alone: `hat_matrix @ targets + mean(targets)`, (m, n) and (n, t) to (m, t)."""
    xp = array_namespace(hat_matrix, targets)
    return hat_matrix @ targets + xp.mean(targets, axis=0)


def restandardise(
    predicted: Array,
    rule: str,
    *,
    train_mean: Array,
    train_std: Array,
    prediction_mean: Array,
    prediction_std: Array,
) -> Array:
    """Bring predictions to the training targets' mean and SD by a named rule.

    Parameters
    ----------
    predicted : raw predictions, shape (m, ...).
    rule : `test_set` (the authors: statistics of the predictions over the whole test set, which makes each
        prediction depend on the others) or `none` (raw).
    train_mean, train_std, prediction_mean, prediction_std : shape (...), ddof 0.

    Raises
    ------
    ValueError : another rule.
    """
    xp = array_namespace(predicted)
    if rule == "none":
        return predicted
    if rule != "test_set":
        raise ValueError(f"re-standardisation rule {rule!r}: there are `test_set` and `none`")
    divisor = xp.where(prediction_std > 0, prediction_std, xp.ones_like(prediction_std))
    return (predicted - prediction_mean) / divisor * train_std + train_mean
