"""Ridge regression as a hat matrix: predictions = H @ Y + mean(Y), with neither dual coefficients nor weights.

With Z the z-scored training responses (n x p), Z* those to decode (m x p) and Y the training targets (n x t), ridge
with an unpenalised intercept predicts (scikit-learn's objective, ||y - Zw||^2 + alpha ||w||^2)

    H = Z* Z^T (Z Z^T + alpha I_n)^-1     (dual, n x n)
      = Z* (Z^T Z + alpha I_p)^-1 Z^T     (primal, p x p: the same matrix)

Z is centred on the training set, so H 1 = 0 and the intercept is the mean of Y. Everything here is pure and works on
NumPy or CuPy arrays; the array module is that of the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from array_api_compat import array_namespace, is_cupy_array, is_numpy_array

Array = Any


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
    divisor = xp.where(scale > 0, scale, xp.ones_like(scale))
    dead = scale == 0
    zero = xp.zeros_like(centred[:1, :])
    return (
        xp.where(dead, zero, centred / divisor),
        xp.where(dead, zero, (other - mean) / divisor),
        mean,
        scale,
    )


def hat_matrices(train: Array, other: Array, alphas: Sequence[float]) -> Iterator[Array]:
    """The hat matrix of each alpha, from one Gram matrix.

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
    for alpha in alphas:
        if not alpha > 0:
            raise ValueError(f"alpha {alpha}: ridge needs a penalty above 0")
    if not (bool(xp.all(xp.isfinite(train))) and bool(xp.all(xp.isfinite(other)))):
        raise ValueError("responses hold values that are not finite")
    n, p = train.shape
    if n <= p:
        gram, right = train @ train.T, train @ other.T
    else:
        gram, right = train.T @ train, other.T
    for alpha in alphas:
        solved = _solve(gram, float(alpha), right)
        hat = (solved if n <= p else train @ solved).T
        yield hat - xp.mean(hat, axis=1, keepdims=True)


def _solve(gram: Array, alpha: float, right: Array) -> Array:
    """(gram + alpha I)^-1 right, by Cholesky."""
    xp = array_namespace(gram)
    system = gram + alpha * xp.eye(gram.shape[0], dtype=gram.dtype)
    if is_numpy_array(gram):
        from scipy.linalg import cho_factor, cho_solve

        return cho_solve(cho_factor(system, lower=True, overwrite_a=True), right)
    factor = xp.linalg.cholesky(system)
    if is_cupy_array(gram):
        from cupyx.scipy.linalg import solve_triangular

        return solve_triangular(factor, solve_triangular(factor, right, lower=True), trans="T", lower=True)
    return xp.linalg.solve(factor.T, xp.linalg.solve(factor, right))


def predict(hat_matrix: Array, targets: Array) -> Array:
    """Predictions of a block of targets.

    Parameters
    ----------
    hat_matrix : shape (m, n).   targets : training targets, shape (n, t).

    Returns
    -------
    shape (m, t), `hat_matrix @ targets + mean(targets)`.
    """
    xp = array_namespace(hat_matrix, targets)
    return hat_matrix @ targets + xp.mean(targets, axis=0)


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
