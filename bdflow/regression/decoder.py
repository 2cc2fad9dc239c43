"""Ridge regression with scikit-learn's conventions, on NumPy, CuPy, Dask and xarray arrays.

The maths is that of `ridge` and `cross_validation`: a hat matrix H of the patterns that are decoded, then H @ Y. So
neither dual coefficients nor weights are held, and targets may be a Dask array that is larger than memory. Imports
scikit-learn, for the conventions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
from array_api_compat import array_namespace, is_dask_array, is_numpy_array
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted, validate_data

from bdflow.errors import InputError
from bdflow.regression import cross_validation, ridge
from bdflow.regression.labelled import Labels, as_like, computed, flat, floating, on_host, to_numpy, wrong_array
from bdflow.regression.ridge import Array
from bdflow.regression.streaming import column_r2

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["RidgeDecoder"]

Choice = Literal["fixed", "per_space", "per_target"]
CHOICES = ("fixed", "per_space", "per_target")
LEAVE_ONE_OUT: Literal["leave_one_out"] = "leave_one_out"


class RidgeDecoder(MultiOutputMixin, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Linear decoding of targets from responses by ridge regression: min ||Y - Z W - b||^2 + alpha ||W||^2.

    Parameters
    ----------
    alpha : penalty, > 0: one for all targets, or one for each, shape (t,). Used where `choose` is `fixed`.
    choose : `fixed` takes `alpha`; `per_space` the value of `alphas` with the highest cross-validated R^2, averaged
        over targets; `per_target` the best one of each target.
    alphas : penalties, each > 0, to choose from.
    cv : `leave_one_out` (exact, one factor for each penalty), or a number of folds >= 2 (runs of consecutive rows, as
        scikit-learn's `KFold`). With `groups` in `fit`, whole groups are left out.
    fit_intercept : fit an unpenalised intercept; else neither responses nor targets are centred.
    z_score : divide each voxel by its SD (ddof 1) over the training set, after subtracting its mean; a constant voxel
        is not decoded from. In cross-validation voxels keep the mean and SD of the whole training set.
    block : targets handled at once where they are a Dask array; bounds memory, 8 n block bytes.

    Attributes
    ----------
    alpha_ : the penalty used: a float, or shape (t,) if there is one for each target.
    scores_ : cross-validated R^2, shape (alphas, t), not a number for constant targets; only if penalties are chosen.
    mean_, scale_ : shape (p,), subtracted from and dividing each voxel.
    coef_ : shape (t, p), or (p,) of a single target, in units of Y per unit of X; computed when first asked for. Dask
        if Y was.
    intercept_ : shape (t,), or a scalar.
    n_features_in_, feature_names_in_ : as in scikit-learn.

    Notes
    -----
    The n x n system is solved, or the p x p one, whichever costs less. Fitting holds the responses and the system, and
    for choosing penalties one n x n matrix at a time; a Dask Y is then read once for each penalty. Dask responses are
    computed when `fit` is called. Integers are taken as float64; float32 responses are computed in float32.

    Source: Ozcelik & VanRullen 2023, doi:10.1038/s41598-023-42891-8; scikit-learn's `Ridge` has the same objective.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.normal(size=(60, 200)), rng.normal(size=(200, 3))
    >>> decoder = RidgeDecoder(choose="per_target", alphas=(1.0, 10.0, 100.0)).fit(X, X @ W)
    >>> decoder.predict(X[:2]).shape
    (2, 3)
    """

    def __init__(
        self,
        alpha: float | ArrayLike = 1.0,
        *,
        choose: Choice = "fixed",
        alphas: Sequence[float] = (1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0),
        cv: int | Literal["leave_one_out"] = LEAVE_ONE_OUT,
        fit_intercept: bool = True,
        z_score: bool = False,
        block: int = 4096,
    ) -> None:
        self.alpha = alpha
        self.choose = choose
        self.alphas = alphas
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.z_score = z_score
        self.block = block

    # --- fit --------------------------------------------------------------------------------------------------

    def fit(self, X: Array, Y: Array, groups: ArrayLike | None = None) -> Self:
        """Fit responses to targets.

        Parameters
        ----------
        X : responses, shape (n, p).
        Y : targets, shape (n,) or (n, t); a DataArray (n, ...) may have more dimensions. From the array module of X,
            or Dask.
        groups : shape (n,), a label for each row; rows of one label (repeats of a stimulus) are left out together in
            cross-validation.

        Raises
        ------
        InputError, ValueError : shapes that do not fit, values that are not finite, a parameter out of range,
            DataArrays whose coordinates along the rows differ.
        """
        self._check_parameters()
        self._fitted_labels = Labels.of(X, Y)
        x, y = flat(X), flat(Y)
        train, targets = self._validated(x, y)
        self._one_dimensional = targets.ndim == 1
        if targets.ndim == 1:
            targets = targets[:, None]
        xp = array_namespace(train)
        if self.z_score:
            z, _, self.mean_, self.scale_ = ridge.z_score(train, train[:0, :])
            if not self.fit_intercept:
                self.mean_ = xp.zeros_like(self.mean_)
                z = ridge.standardise(train, self.mean_, self.scale_)
        else:
            one = train[0, :]
            self.mean_ = xp.mean(train, axis=0) if self.fit_intercept else xp.zeros_like(one)
            self.scale_ = xp.ones_like(one)
            z = ridge.standardise(train, self.mean_, self.scale_)
        self._train, self._targets = z, targets
        self._system = _system(z, self.fit_intercept)
        self.__dict__.pop("coef_", None)
        self.__dict__.pop("intercept_", None)
        self.__dict__.pop("scores_", None)
        self.alpha_ = self._fixed_alpha() if self.choose == "fixed" else self._chosen_alpha(groups)
        return self

    def _check_parameters(self) -> None:
        if self.choose not in CHOICES:
            raise _wrong("choose", self.choose, ", ".join(CHOICES))
        if self.choose == "fixed":
            values = np.asarray(self.alpha)
            if values.ndim > 1 or values.dtype.kind not in "fiu" or not (np.isfinite(values) & (values > 0)).all():
                raise _wrong("alpha", self.alpha, "a finite number above 0, or one for each target")
        else:
            grid = np.asarray(self.alphas)
            if grid.ndim != 1 or not grid.size or grid.dtype.kind not in "fiu" or not (grid > 0).all():
                raise _wrong("alphas", self.alphas, "at least one number, each above 0")
        if self.cv != LEAVE_ONE_OUT and (not isinstance(self.cv, int | np.integer) or self.cv < 2):
            raise _wrong("cv", self.cv, f"`{LEAVE_ONE_OUT}`, or a number of folds, at least 2")
        if not isinstance(self.block, int | np.integer) or self.block < 1:
            raise _wrong("block", self.block, "a whole number of targets, at least 1")

    def _validated(self, x: Array, y: Array) -> tuple[Array, Array]:
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        if on_host(x) and on_host(y):
            least = 1 if self.choose == "fixed" else 2
            x, y = validate_data(
                self, x, y, multi_output=True, y_numeric=True, dtype=(np.float64, np.float32), ensure_min_samples=least
            )
            if y.ndim == 2 and y.shape[1] == 0:
                raise wrong_array("Y", y, "at least one target")
            return x, np.array(y, dtype=x.dtype)
        if on_host(x):
            x = validate_data(self, x, dtype=(np.float64, np.float32))
        else:
            x = floating("X", computed(x))
            self.n_features_in_ = x.shape[1]
        if y.ndim not in (1, 2) or y.shape[0] != x.shape[0]:
            raise wrong_array("Y", y, f"({x.shape[0]}, targets): one row for each row of X")
        if is_dask_array(y):
            return x, y
        xp = array_namespace(x, y)
        y = xp.astype(y, x.dtype)
        if not bool(xp.all(xp.isfinite(y))):
            raise wrong_array("Y", y, "finite values")
        return x, y

    def _fixed_alpha(self) -> float | np.ndarray:
        values = np.asarray(self.alpha, dtype=np.float64)
        if values.ndim == 0:
            return float(values)
        if len(values) != self._targets.shape[1]:
            raise _wrong(
                "alpha", f"{len(values)} penalties", f"one, or one for each of {self._targets.shape[1]} targets"
            )
        return values.copy()

    def _chosen_alpha(self, groups: ArrayLike | None) -> float | np.ndarray:
        alphas = [float(alpha) for alpha in self.alphas]
        rows = np.arange(self._system.n)
        fold = _folds(len(rows), self.cv, groups)
        if fold is None:
            matrices = cross_validation.leave_one_out(self._system, rows, alphas)
        else:
            matrices = cross_validation.k_fold(self._system, rows, alphas, fold)
        scores = []
        for matrix in matrices:
            blocks = ((block, matrix @ block) for block in self._blocks(matrix))
            found = [to_numpy(next(column_r2(true, [predicted]))) for true, predicted in blocks]
            scores.append(np.concatenate(found))
        self.scores_ = np.stack(scores)
        if self.choose == "per_target":
            known = np.where(np.isnan(self.scores_), -np.inf, self.scores_)
            best: np.ndarray = np.asarray(alphas)[known.argmax(axis=0)]
            return best
        known = self.scores_[:, ~np.isnan(self.scores_).any(axis=0)]
        if not known.shape[1]:
            raise InputError(
                "Y",
                found="targets that are all constant",
                expected="at least one that varies",
                meaning="No penalty predicts a constant better than another.",
                action="correct the targets, or set choose='fixed'",
            )
        return alphas[int(known.mean(axis=1).argmax())]

    def _blocks(self, like: Array) -> Iterator[Array]:
        """Targets in the dtype of `like`, block by block of columns if they are a Dask array."""
        targets = self._targets
        if not is_dask_array(targets):
            yield targets
            return
        for start in range(0, targets.shape[1], self.block):
            yield as_like(targets[:, start : start + self.block].compute(), like)

    # --- predict ----------------------------------------------------------------------------------------------

    def predict(self, X: Array) -> Array:
        """Targets predicted for responses.

        Parameters
        ----------
        X : shape (m, p).

        Returns
        -------
        shape (m,) or (m, t), as Y was. A DataArray if X or the fitted Y was one: rows named and labelled as those of X,
        the rest as Y. A lazy Dask array if Y was one (computed block by block of targets) or X is (of rows).

        Raises
        ------
        NotFittedError : `fit` was not called. InputError, ValueError : another number of voxels, voxels that are
            labelled otherwise than in training, values that are not finite.
        """
        check_is_fitted(self)
        self._fitted_labels.check_voxels(X)
        x = flat(X)
        if is_dask_array(x) and not is_dask_array(self._targets):
            found = self._by_rows(x)
        else:
            found = self._predicted(self._checked(computed(x)))
        return self._fitted_labels.labelled(found, X)

    def _checked(self, x: Array) -> Array:
        if on_host(x) and is_numpy_array(self._train):
            return validate_data(self, x, reset=False, dtype=(np.float64, np.float32))
        x = floating("X", x)
        if x.shape[1] != self._train.shape[1]:
            raise wrong_array("X", x, f"(patterns, {self._train.shape[1]}): the voxels of the training set")
        array_namespace(x, self._train)
        return x

    def _by_rows(self, x: Array) -> Array:
        if x.ndim != 2 or x.shape[1] != self._train.shape[1]:
            raise wrong_array("X", x, f"(patterns, {self._train.shape[1]}): the voxels of the training set")
        x = x.rechunk({1: -1})
        t = self._targets.shape[1]

        def predicted(block: Array) -> Array:
            return self._predicted(self._checked(block))

        dtype = self._train.dtype
        if self._one_dimensional:
            return x.map_blocks(predicted, drop_axis=1, dtype=dtype, meta=np.empty((0,), dtype))
        return x.map_blocks(predicted, chunks=(x.chunks[0], (t,)), dtype=dtype, meta=np.empty((0, 0), dtype))

    def _predicted(self, x: Array) -> Array:
        xp = array_namespace(self._train)
        z = ridge.standardise(xp.astype(x, self._train.dtype, copy=False), self.mean_, self.scale_)
        found = self._applied(z @ self._train.T if isinstance(self._system, ridge.Dual) else z, self.fit_intercept)
        return found[:, 0] if self._one_dimensional else found

    def _applied(self, right: Array, intercept: bool) -> Array:
        """Predictions (m, t), without the intercept if so wished, of what the system's `hat_matrices` takes."""
        values, which = np.unique(np.asarray(self.alpha_), return_inverse=True)
        hats = list(self._system.hat_matrices(right, values.tolist()))
        product: Callable[[Array, Array], Array] = ridge.predict if intercept else _product
        targets = self._targets
        if not is_dask_array(targets):
            return _by_penalty(hats, targets, which.ravel(), product)
        targets = cast(Array, targets).rechunk({0: targets.shape[0], 1: self.block})
        offsets = np.concatenate([[0], np.cumsum(targets.chunks[1])])
        like, m = hats[0], hats[0].shape[0]

        def block_of(block: Array, block_info: Any = None) -> Array:
            at = block_info[0]["chunk-location"][1]
            columns = which.ravel()[offsets[at] : offsets[at + 1]] if which.size > 1 else which.ravel()
            return _by_penalty(hats, as_like(block, like), columns, product)

        return targets.map_blocks(block_of, chunks=((m,), targets.chunks[1]), dtype=like.dtype, meta=targets._meta)

    @cached_property
    def coef_(self) -> Array:
        """Weights (t, p), or (p,) of a single target."""
        check_is_fitted(self, "alpha_")
        xp = array_namespace(self._train)
        one = xp.ones_like(self.scale_)
        inverse = xp.where(self.scale_ > 0, 1 / xp.where(self.scale_ > 0, self.scale_, one), xp.zeros_like(one))
        if isinstance(self._system, ridge.Dual):
            right = self._train.T * inverse[:, None]
        else:
            right = xp.eye(inverse.shape[0], dtype=inverse.dtype) * inverse[:, None]
        weights = self._applied(right, False)
        return weights[:, 0] if self._one_dimensional else weights.T

    @cached_property
    def intercept_(self) -> Array:
        """Prediction for responses of 0, shape (t,) or a scalar."""
        check_is_fitted(self, "alpha_")
        xp = array_namespace(self._train)
        found = self._predicted(xp.zeros((1, self._train.shape[1]), dtype=self._train.dtype))
        return found[0] if self._one_dimensional else found[0, :]

    def score(self, X: Array, y: Array, sample_weight: ArrayLike | None = None) -> float:
        """R^2 averaged over targets, as scikit-learn's `r2_score`; of Dask targets block by block.

        Parameters
        ----------
        X : shape (m, p). y : shape (m,) or (m, t), of any kind that `fit` takes.

        Raises
        ------
        InputError : DataArrays whose rows, voxels or targets are labelled otherwise than each other's or in training.
        """
        check_is_fitted(self)
        self._fitted_labels.check_truth(X, y)
        predicted, true = flat(self.predict(X)), flat(y)
        if true.ndim == 1:
            return float(r2_score(to_numpy(computed(true)), to_numpy(computed(predicted)), sample_weight=sample_weight))
        if predicted.shape != true.shape:
            raise wrong_array("y", true, f"{predicted.shape}: one value for each prediction")
        found = []
        for start in range(0, true.shape[1], self.block):
            here = slice(start, min(start + self.block, true.shape[1]))
            a, b = (to_numpy(computed(values[:, here])) for values in (true, predicted))
            found.append(np.atleast_1d(r2_score(a, b, sample_weight=sample_weight, multioutput="raw_values")))
        return float(np.concatenate(found).mean())


def _system(z: Array, intercept: bool) -> ridge.System:
    n, p = z.shape
    if not ridge.dual_is_cheaper(n, p, n):
        return ridge.Primal(z, intercept=intercept)
    kernel, _ = ridge.kernel_matrix([(z, z[:0, :])], n, 0)
    return ridge.Dual(kernel, intercept=intercept)


def _product(hat: Array, targets: Array) -> Array:
    return hat @ targets


def _by_penalty(
    hats: Sequence[Array], targets: Array, which: np.ndarray, product: Callable[[Array, Array], Array]
) -> Array:
    """Each column by the hat matrix of its penalty."""
    if len(hats) == 1:
        return product(hats[0], targets)
    xp = array_namespace(targets)
    columns = [np.flatnonzero(which == number) for number in range(len(hats))]
    parts = [product(hat, ridge.take(targets, own, 1)) for hat, own in zip(hats, columns, strict=True) if own.size]
    return ridge.take(xp.concat(parts, axis=1), np.argsort(np.concatenate(columns)), 1)


def _folds(n: int, cv: int | str, groups: ArrayLike | None) -> np.ndarray | None:
    """The fold of each row, or None for leaving out single rows."""
    codes = np.arange(n)
    if groups is not None:
        labels = np.asarray(groups)
        if labels.shape != (n,):
            raise wrong_array("groups", labels, f"({n},): one label for each row")
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        codes = np.argsort(np.argsort(first))[inverse]
    elif cv == LEAVE_ONE_OUT:
        return None
    many = int(codes.max()) + 1
    k = many if cv == LEAVE_ONE_OUT else int(cv)
    if k > many or many < 2:
        raise _wrong(
            "cv",
            f"{k} folds of {many} {'rows' if groups is None else 'groups'}",
            "at least one in each of at least 2 folds",
        )
    sizes = np.full(k, many // k)
    sizes[: many % k] += 1
    return np.repeat(np.arange(k), sizes)[codes]


def _wrong(name: str, found: object, expected: str) -> InputError:
    return InputError(f"RidgeDecoder, {name}", found=str(found), expected=expected, action=f"correct `{name}`")
