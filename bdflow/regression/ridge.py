"""Ridge regression as a hat matrix: predictions = H @ Y + mean(Y), with neither dual coefficients nor weights.

With Z the z-scored training responses (n x p), Z* those to decode (m x p) and Y the training targets (n x t), ridge
with an unpenalised intercept predicts (scikit-learn's objective, ||y - Zw||^2 + alpha ||w||^2)

    H = Z* Z^T (Z Z^T + alpha I_n)^-1     (dual, n x n)
      = Z* (Z^T Z + alpha I_p)^-1 Z^T     (primal, p x p: the same matrix)

Z is centred on the training set, so H 1 = 0 and the intercept is the mean of Y. Without an intercept Z is taken as it
is, and predictions are H @ Y alone. Everything here is pure and works on NumPy or CuPy arrays; the array module is that
of the input. NumPy arrays take the symmetric BLAS and LAPACK routines, which do half the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_cupy_array, is_numpy_array

from bdflow.errors import InputError
from bdflow.regression.device import failures_raised

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
    if train.ndim != 2 or other.ndim != 2 or train.shape[1] != other.shape[1]:
        raise InputError(
            "responses",
            found=f"shapes {train.shape} and {other.shape}, which do not share their voxels",
            expected="(rows, voxels) with the same voxels",
            action="take both from the same mask",
        )
    (n, p), m = train.shape, other.shape[0]
    if dual_is_cheaper(n, p, m):
        kernel, cross = kernel_matrix([(train, other)], n, m)
        return Dual(kernel).hat_matrices(cross, alphas)
    return Primal(train).hat_matrices(other, alphas)


def kernel_matrix(blocks: Iterable[tuple[Array, Array]], n: int, m: int) -> tuple[Array, Array]:
    """Inner products of responses, from blocks of voxels: all of Z is never held, only the n x n system.

    Parameters
    ----------
    blocks : pairs of z-scored responses of some voxels: training (n, b) and others (m, b).
    n, m : numbers of training and other stimuli.

    Returns
    -------
    Z Z^T, shape (n, n), and Z* Z^T, shape (m, n).

    Raises
    ------
    ValueError : no block at all; values that are not finite.
    """
    kernel: Array = None
    cross: Array = None
    for train, other in blocks:
        _check((), train, other)
        if kernel is None:
            xp = array_namespace(train, other)
            kernel, cross = xp.zeros((n, n), dtype=train.dtype), xp.zeros((m, n), dtype=train.dtype)
        add_gram(kernel, train)
        cross += other @ train.T
    if kernel is None:
        raise InputError(
            "responses",
            found="no voxels",
            expected="voxels to decode from",
            action="choose another mask or other regions",
        )
    return mirrored(kernel), cross


class Dual:
    """Ridge by the kernel matrix Z Z^T, shape (n, n), of centred training responses; with `keep`, the factor of each
    alpha (as large as the kernel) is held, and further patterns cost a solve alone. Without `intercept` nothing is
    centred.
    """

    def __init__(self, kernel: Array, keep: bool = False, intercept: bool = True) -> None:
        self.kernel, self.n, self.intercept = kernel, kernel.shape[0], intercept
        self._solver = _Solver(kernel, keep)

    def of_training(self, rows: np.ndarray) -> Array:
        """What `hat_matrices` takes for training stimuli: their rows of the kernel."""
        return take(self.kernel, rows, 0)

    def hat_matrices(self, cross: Array, alphas: Sequence[float]) -> Iterator[Array]:
        """(m, n) for each alpha, from `cross` = Z* Z^T, shape (m, n). Raises ValueError as `ridge.hat_matrices`."""
        _check(alphas, cross)
        for alpha in alphas:
            hat = self._solver(float(alpha), cross.T).T
            yield centred_rows(hat) if self.intercept else hat

    def without(self, kept: np.ndarray, left_out: np.ndarray) -> tuple[Dual, Array]:
        """The system of the `kept` rows, centred anew, and what `hat_matrices` takes for those left out of it."""
        xp = array_namespace(self.kernel)
        rows = take(self.kernel, kept, 0)
        inner, cross = take(rows, kept, 1), take(rows, left_out, 1).T
        del rows
        if not self.intercept:
            return Dual(inner, intercept=False), cross
        mean = xp.mean(inner, axis=0)
        middle = xp.mean(mean)
        cross = cross - xp.mean(cross, axis=1, keepdims=True) - mean + middle
        inner -= mean
        inner -= mean[:, None]
        inner += middle
        return Dual(inner), cross


class Primal:
    """Ridge by the covariance Z^T Z, shape (p, p), of centred training responses Z, shape (n, p). Without `intercept`
    nothing is centred.
    """

    def __init__(
        self, train: Array, gram: Array | Callable[[], Array] = None, keep: bool = False, intercept: bool = True
    ) -> None:
        self.train, self.n, self.intercept = train, train.shape[0], intercept
        self._gram, self._keep = gram, keep
        self._held: _Solver | None = None

    @property
    def gram(self) -> Array:
        """The covariance (p, p), times n."""
        if callable(self._gram):
            self._gram = self._gram()
        if self._gram is None:
            xp, p = array_namespace(self.train), self.train.shape[1]
            gram = xp.zeros((p, p), dtype=self.train.dtype)
            add_gram(gram, self.train.T)
            self._gram = mirrored(gram)
        return self._gram

    def of_training(self, rows: np.ndarray) -> Array:
        """What `hat_matrices` takes for training stimuli: their responses."""
        return take(self.train, rows, 0)

    def hat_matrices(self, other: Array, alphas: Sequence[float]) -> Iterator[Array]:
        """(m, n) for each alpha, from z-scored responses (m, p). Raises ValueError as `ridge.hat_matrices`."""
        _check(alphas, self.train, other)
        for alpha in alphas:
            hat = (self.train @ self._solve(float(alpha), other.T)).T
            yield centred_rows(hat) if self.intercept else hat

    def _solve(self, alpha: float, right: Array) -> Array:
        if self._held is None:
            self._held = _Solver(self.gram, self._keep)
        return self._held(alpha, right)

    def without(self, kept: np.ndarray, left_out: np.ndarray) -> tuple[Primal, Array]:
        """The system of the `kept` rows, centred anew, and what `hat_matrices` takes for those left out of it."""
        rows, others = take(self.train, kept, 0), take(self.train, left_out, 0)
        mean: Array = None
        if self.intercept:
            mean = array_namespace(rows).mean(rows, axis=0)
            rows -= mean
            others -= mean
        gram = partial(self._gram_of, kept, mean) if 2 * len(kept) > self.n else None
        return Primal(rows, gram, intercept=self.intercept), others

    def _gram_of(self, kept: np.ndarray, mean: Array) -> Array:
        """The covariance of most of the rows, less their mean: that of all rows less that of the few others."""
        few = np.ones(self.n, dtype=bool)
        few[kept] = False
        rows = take(self.train, np.flatnonzero(few), 0)
        xp = array_namespace(rows)
        if mean is not None:
            rows = xp.concat([rows, mean[None, :] * float(np.sqrt(len(kept)))])
        gram = xp.asarray(self.gram, copy=True)
        add_gram(gram, rows.T, -1.0)
        return mirrored(gram)


System = Dual | Primal


def take(values: Array, rows: np.ndarray, axis: int) -> Array:
    xp = array_namespace(values)
    return xp.take(values, xp.asarray(rows), axis=axis)


def _check(alphas: Sequence[float], *responses: Array) -> None:
    for alpha in alphas:
        if not alpha > 0:
            raise InputError(
                "alpha",
                found=f"{alpha}",
                expected="a penalty above 0",
                action="correct `ridge.alpha`, `ridge.grid` or the penalty that was handed in",
            )
    for values in responses:
        xp = array_namespace(values)
        if not bool(xp.all(xp.isfinite(values))):
            raise InputError(
                "responses",
                found="values that are not finite",
                expected="finite numbers",
                meaning="One such value would spoil every prediction.",
                action="correct the responses, or leave these voxels or rows out",
            )


def not_definite(alpha: float, dtype: object) -> InputError:
    """The error of a penalty that is too small for the precision of the system."""
    return InputError(
        "alpha",
        found=f"{alpha:g}, which is too small here: the system is not positive definite in {dtype}",
        expected="a penalty that is large against the rounding of the responses",
        meaning="With so small a penalty ridge would divide by rounding errors.",
        action="raise alpha (`ridge.alpha`, or the smallest of `ridge.grid`)",
    )


def add_gram(gram: Array, block: Array, factor: float = 1.0) -> None:
    """gram += factor * block @ block.T; with NumPy only one triangle of gram is kept up."""
    if is_numpy_array(gram):
        from scipy.linalg import get_blas_funcs

        syrk = get_blas_funcs("syrk", (gram,))
        left = block if block.flags.f_contiguous else block.T
        syrk(factor, left, beta=1.0, c=gram.T, trans=left is not block, lower=1, overwrite_c=1)
    else:
        product = block @ block.T
        product *= factor
        gram += product


def mirrored(gram: Array) -> Array:
    """Both triangles of a matrix kept up by `add_gram`."""
    if is_numpy_array(gram):
        n = gram.shape[0]
        for start in range(0, n, 512):
            stop = min(start + 512, n)
            corner = gram[start:stop, start:stop]
            gram[start:stop, start:stop] = np.triu(corner) + np.triu(corner, 1).T
            gram[stop:, start:stop] = gram[start:stop, stop:].T
    return gram


def solver(gram: Array, keep: bool = False) -> Callable[[float, Array], Array]:
    """A function (alpha, right) -> (gram + alpha I)^-1 right, of a symmetric positive semidefinite matrix (p, p); with
    `keep` it holds the factor of each alpha.
    """
    return _Solver(gram, keep)


class _Solver:
    """(gram + alpha I)^-1 right by Cholesky; shape of right (n, m)."""

    def __init__(self, gram: Array, keep: bool) -> None:
        self.gram, self.keep = gram, keep
        self.kept: dict[float, Array] = {}

    def __call__(self, alpha: float, right: Array) -> Array:
        factor = self.kept.get(alpha)
        if factor is None:
            factor = _factor(self.gram, alpha)
            if self.keep:
                self.kept[alpha] = factor
        return _solve(factor, right)


def _factor(gram: Array, alpha: float) -> Array:
    """The lower Cholesky factor of gram + alpha I; with NumPy, what lies above the diagonal is not part of it."""
    xp = array_namespace(gram)
    n = gram.shape[0]
    if is_numpy_array(gram):
        from scipy.linalg import get_lapack_funcs

        potrf: Any = get_lapack_funcs("potrf", (gram,))
        system = gram.T.copy(order="F")
        system.ravel(order="K")[:: n + 1] += alpha
        factor, failed = potrf(system, lower=1, overwrite_a=1, clean=0)
        if failed:
            raise not_definite(alpha, gram.dtype)
        return factor
    if is_cupy_array(gram):  # in one more matrix, not three: a GPU has less memory than its host
        system, own = gram.copy(), xp.arange(n)
        system[own, own] += alpha
        return cholesky(system, alpha)
    return cholesky(gram + alpha * xp.eye(n, dtype=gram.dtype), alpha)


def cholesky(matrix: Array, alpha: float) -> Array:
    """The lower Cholesky factor. Raises InputError, which names the penalty, if the matrix is not positive definite."""
    xp = array_namespace(matrix)
    try:
        with failures_raised(matrix):
            return xp.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        raise not_definite(alpha, matrix.dtype) from None


def _solve(factor: Array, right: Array) -> Array:
    if is_numpy_array(factor):
        from scipy.linalg import get_lapack_funcs

        potrs: Any = get_lapack_funcs("potrs", (factor,))
        return potrs(factor, right, lower=1)[0]
    return solve_lower(factor, solve_lower(factor, right), transposed=True)


def solve_lower(factor: Array, right: Array, transposed: bool = False) -> Array:
    """factor^-1 right, or factor^-T right, of a lower triangular matrix."""
    trans = "T" if transposed else "N"
    if is_numpy_array(factor):
        import scipy.linalg

        return scipy.linalg.solve_triangular(factor, right, lower=True, trans=trans)
    if is_cupy_array(factor):
        from cupyx.scipy.linalg import solve_triangular

        return solve_triangular(factor, right, lower=True, trans=trans)
    return array_namespace(factor).linalg.solve(factor.T if transposed else factor, right)


def centred_rows(hat_matrix: Array) -> Array:
    """Rows shifted to sum to 0, as they do in exact arithmetic: a constant added to Y then moves nothing else."""
    xp = array_namespace(hat_matrix)
    return hat_matrix - xp.mean(hat_matrix, axis=1, keepdims=True)


def predict(hat_matrix: Array, targets: Array) -> Array:
    """Predictions alone: `hat_matrix @ targets + mean(targets)`, (m, n) and (n, t) to (m, t)."""
    xp = array_namespace(hat_matrix, targets)
    return hat_matrix @ targets + xp.mean(targets, axis=0)


RULES: Mapping[str, tuple[str, ...]] = {
    "test_set": ("train_mean", "train_std", "prediction_mean", "prediction_std"),
    "held_out": ("train_mean", "train_std", "held_out_mean", "held_out_std"),
    "none": (),
}


def restandardise(predicted: Array, rule: str, statistics: Mapping[str, Array]) -> Array:
    """Bring predictions to the training targets' mean and SD by a named rule.

    Parameters
    ----------
    predicted : raw predictions, shape (m, ...).
    rule : `test_set` (the authors: by the mean and SD of the predictions over the whole test set, which makes each
        prediction depend on the others), `held_out` (by those of what cross-validation predicts for training
        stimuli) or `none` (raw).
    statistics : those that `RULES` names, of `Block`: shape (...), ddof 0.

    Raises
    ------
    ValueError : another rule.
    """
    if rule not in RULES:
        raise InputError(
            "standardise", found=repr(rule), expected="one of " + ", ".join(RULES), action="choose one of these"
        )
    if rule == "none":
        return predicted
    xp = array_namespace(predicted)
    train_mean, train_std, mean, std = (statistics[name] for name in RULES[rule])
    return (predicted - mean) / xp.where(std > 0, std, xp.ones_like(std)) * train_std + train_mean
