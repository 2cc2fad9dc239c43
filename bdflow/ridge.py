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
from typing import Any

from array_api_compat import array_namespace, is_cupy_array, is_numpy_array

Array = Any
ROWS_IN_CACHE = 256


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


def training_block(latents: Array, rows: Array | slice) -> tuple[Array, Array, Array]:
    """Training targets of one block of columns, with their statistics, in one walk through memory.

    Parameters
    ----------
    latents : block of a target store, shape (stimuli, t), float16 or float32.
    rows : the training stimuli.

    Returns
    -------
    targets (n, t) float32; their mean and SD (ddof 0), shape (t,) float32, each within 1e-6 of float64.
    """
    xp = array_namespace(latents)
    chosen = latents[rows, ...]
    n, t = chosen.shape
    targets = xp.empty((n, t), dtype=xp.float32)
    shift = xp.astype(chosen[0, :], xp.float32)
    total = xp.zeros((t,), dtype=xp.float64)
    squares = xp.zeros((t,), dtype=xp.float64)
    for start in range(0, n, ROWS_IN_CACHE):
        stop = min(start + ROWS_IN_CACHE, n)
        part = xp.astype(chosen[start:stop, :], xp.float32)
        targets[start:stop, :] = part
        part = part - shift
        total += xp.astype(xp.sum(part, axis=0), xp.float64)
        squares += xp.astype(xp.sum(part * part, axis=0), xp.float64)
    mean = total / n
    variance = xp.maximum(squares / n - mean * mean, xp.zeros_like(mean))
    return (
        targets,
        xp.astype(mean + xp.astype(shift, xp.float64), xp.float32),
        xp.astype(xp.sqrt(variance), xp.float32),
    )


def predict(hat_matrix: Array, targets: Array, mean: Array | None = None) -> Array:
    """Predictions of a block of targets.

    Parameters
    ----------
    hat_matrix : shape (m, n).
    targets : training targets, shape (n, t).
    mean : of the targets, shape (t,), if it is known already.

    Returns
    -------
    shape (m, t), `hat_matrix @ targets + mean(targets)`.
    """
    xp = array_namespace(hat_matrix, targets)
    predicted = hat_matrix @ targets
    predicted += xp.mean(targets, axis=0) if mean is None else mean
    return predicted


def column_statistics(values: Array) -> tuple[Array, Array]:
    """Mean and SD (ddof 0) of each column, accumulated in float64, returned in float32."""
    xp = array_namespace(values)
    wide = xp.astype(values, xp.float64)
    mean, std = xp.mean(wide, axis=0), xp.std(wide, axis=0)
    return xp.astype(mean, xp.float32), xp.astype(std, xp.float32)


def scores(predicted: Array, true: Array) -> tuple[Array, Array]:
    """Test scores of each column: coefficient of determination and Pearson correlation.

    Parameters
    ----------
    predicted, true : shape (m, t).

    Returns
    -------
    r2, pearson_r : float32, shape (t,); not a number where the true (or, for r, the predicted) column is constant.
    """
    xp = array_namespace(predicted, true)
    predicted, true = xp.astype(predicted, xp.float64), xp.astype(true, xp.float64)
    centred_true = true - xp.mean(true, axis=0)
    centred_predicted = predicted - xp.mean(predicted, axis=0)
    total = xp.sum(centred_true**2, axis=0)
    spread = xp.sum(centred_predicted**2, axis=0)
    nan = xp.full_like(total, float("nan"))
    one = xp.ones_like(total)
    residual = xp.sum((true - predicted) ** 2, axis=0)
    r2 = xp.where(total > 0, 1 - residual / xp.where(total > 0, total, one), nan)
    product = total * spread
    covariance = xp.sum(centred_true * centred_predicted, axis=0)
    r = xp.where(product > 0, covariance / xp.sqrt(xp.where(product > 0, product, one)), nan)
    return xp.astype(r2, xp.float32), xp.astype(r, xp.float32)


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
