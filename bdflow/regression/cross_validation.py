"""Predictions of training stimuli from models that were fitted without them: leave-one-out, exactly, and k-fold, by
stimuli or by rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from bdflow.errors import InputError, counted
from bdflow.regression.device import failures_raised
from bdflow.regression.grouping import Grouping
from bdflow.regression.ridge import Array, Primal, System, add_gram, mirrored, take


def leave_one_out(system: System, rows: np.ndarray, alphas: Sequence[float], intercept: bool = True) -> Iterator[Array]:
    """What ridge predicts for training stimuli when each alone is left out, as matrices V: V @ Y, intercept included.

    With A = H + 1/n the smoother of the training set (A = H without an intercept), leaving stimulus i out changes
    its residual to (y_i - A_i Y) / (1 - A_ii), exactly, since the intercept is not penalised. The voxels
    keep the mean and SD of the whole training set.

    Parameters
    ----------
    system : of the n training stimuli.
    rows : those to predict, shape (s,).
    alphas : ridge penalties, each > 0.
    intercept : whether the model has one; without it A = H, and the rows of V do not sum to 1.

    Yields
    ------
    V, shape (s, n), rows summing to 1 (with an intercept), V[i, rows[i]] = 0.

    Raises
    ------
    ValueError : as `hat_matrices`; fewer than two training stimuli.
    """
    n = system.n
    if n < 2:
        raise InputError(
            "validation (leave_one_out)",
            found=counted(n, "training stimulus", "training stimuli"),
            expected="at least 2",
            meaning="Nothing is left to fit on when one is left out.",
            action="use more training stimuli (`dataset.sessions`, `dataset.split`), or set `ridge.choose: fixed`",
        )
    right = system.of_training(rows)
    own = np.arange(len(rows))
    for hat in system.hat_matrices(right, alphas):
        xp = array_namespace(hat)
        mask = np.zeros(hat.shape, dtype=bool)
        mask[own, rows] = True
        mask = xp.asarray(mask)
        smoother = hat + 1 / n if intercept and system.intercept else hat
        zero = xp.zeros_like(smoother)
        leverage = xp.sum(xp.where(mask, smoother, zero), axis=1, keepdims=True)
        yield xp.where(mask, zero, smoother / (1 - leverage))


def leave_group_out(
    system: System, groups: Sequence[np.ndarray], alphas: Sequence[float], intercept: bool = True
) -> Iterator[Array]:
    """What ridge predicts for groups of training rows, such as the trials of a stimulus, when all rows of the group are
    left out together: the mean over the group's rows, as matrices V: V @ Y.

    With A the smoother of the training set and G the rows of a group, their predictions without the group are
    (I - A_GG)^-1 A_G Y with the group's own columns set to 0: exactly, as in `leave_one_out`, whose result this is for
    groups of one row.

    Parameters
    ----------
    system : of the n training rows.
    groups : the rows of each group to predict, shape (r,) each.
    alphas, intercept : as for `leave_one_out`.

    Yields
    ------
    V, shape (groups, n).

    Raises
    ------
    ValueError : as `hat_matrices`; a group that holds all training rows.
    """
    n = system.n
    if any(len(rows) >= n for rows in groups):
        raise InputError(
            "validation (leave_one_out)",
            found=f"a group that holds all {counted(n, 'training row')}",
            expected="rows in at least 2 groups",
            meaning="Nothing is left to fit on when the group is left out.",
            action="use more training stimuli (`dataset.sessions`, `dataset.split`), or set `ridge.choose: fixed`",
        )
    everywhere = np.concatenate(list(groups))
    right = system.of_training(everywhere)
    for hat in system.hat_matrices(right, alphas):
        xp = array_namespace(hat)
        smoother = hat + 1 / n if intercept and system.intercept else hat
        found, at = [], 0
        for rows in groups:
            own = smoother[at : at + len(rows), :]
            at += len(rows)
            inside = take(own, rows, 1)
            without = np.ones(n, dtype=bool)
            without[rows] = False
            rest = xp.where(xp.asarray(without)[None, :], own, xp.zeros_like(own))
            with failures_raised(hat):
                solved = xp.linalg.solve(xp.eye(len(rows), dtype=hat.dtype) - inside, rest)
            found.append(xp.mean(solved, axis=0))
        yield xp.stack(found)


def k_fold_errors(
    system: System, alphas: Sequence[float], fold: np.ndarray, grouping: Grouping, intercept: bool = True
) -> Iterator[Array]:
    """How far k-fold predictions of all training rows are off, as matrices E over stimuli: the column sums of (E @ Y)^2
    are the mean squared errors of the targets Y (s, t), averaged over the folds.

    Rows whose fold is left out are predicted from all others, whichever stimulus they are of: what scikit-learn's and
    himalaya's RidgeCV do. Where there are more rows than stimuli, E is the triangular factor of the errors, which has
    the same sums of squares.

    Parameters
    ----------
    system : of the n training rows.
    alphas : ridge penalties, each > 0.
    fold : number of each training row's fold, shape (n,).
    grouping : which rows are of which of the s stimuli.
    intercept : whether each fold's model has one.

    Yields
    ------
    E, shape (min(n, s), s).

    Raises
    ------
    ValueError : as `hat_matrices`; a fold that leaves no training row.
    """
    stimuli = np.arange(len(grouping.counts))
    numbers, stimulus = np.unique(fold), np.repeat(stimuli, grouping.counts)
    grams: dict[int, Array] = {}
    for alpha in alphas:
        blocks: list[Array] = []
        total = _SquaredErrors(len(stimuli))
        for number in numbers.tolist():
            kept, left_out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            if not kept.size:
                raise InputError(
                    "validation (k_fold_rows)",
                    found=f"fold {number}, which holds all {counted(system.n, 'training row')}",
                    expected="rows in at least 2 folds",
                    action="use more training rows, or more folds (`ridge.validation.folds`)",
                )
            known = Grouping(stimulus[kept])
            hat = _fold_hat(system, kept, left_out, known, alpha, grams, number)
            xp = array_namespace(hat)
            if intercept and system.intercept:
                hat += xp.asarray((known.counts / len(kept)).astype(str(hat.dtype)))
            block = xp.zeros((len(left_out), len(stimuli)), dtype=hat.dtype)
            block[:, xp.asarray(known.ids)] = -hat
            block[xp.arange(len(left_out)), xp.asarray(stimulus[left_out])] += 1
            block /= float(np.sqrt(len(numbers) * len(left_out)))
            if system.n > len(stimuli):
                total.add(block)
            else:
                blocks.append(block)
        yield xp.concat(blocks) if blocks else total.factor()


def _fold_hat(
    system: System,
    kept: np.ndarray,
    left_out: np.ndarray,
    known: Grouping,
    alpha: float,
    grams: dict[int, Array],
    number: int,
) -> Array:
    """The hat matrix of rows left out, (left out, stimuli kept): columns of a stimulus added up. Covariances of voxels
    are kept in `grams` by the number of the fold.
    """
    inner, right = system.without(kept, left_out)
    if not isinstance(inner, Primal):
        (hat,) = (known.sum_columns(each) for each in inner.hat_matrices(right, [alpha]))
        return hat
    if number not in grams:
        grams[number] = inner.gram
    together = Primal(known.sum_rows(inner.train), grams[number], intercept=False)  # added up before, not after
    (hat,) = together.hat_matrices(right, [alpha])
    return hat


class _SquaredErrors:
    """E' E of blocks of rows of E (n, s), in float64, and a triangular factor of it."""

    def __init__(self, s: int) -> None:
        self.s = s
        self.gram: Array = None

    def add(self, block: Array) -> None:
        """More rows."""
        xp = array_namespace(block)
        self.dtype = block.dtype
        if self.gram is None:
            self.gram = xp.zeros((self.s, self.s), dtype=xp.float64)
        for start in range(0, block.shape[0], 512):
            rows = xp.astype(block[start : start + 512, :], xp.float64)
            add_gram(self.gram, rows.T)

    def factor(self) -> Array:
        """R (s, s) with R' R = E' E, in the type of the blocks. A constant target may have no error at all, so
        that E' E is singular: what is added to its diagonal is of the order of its rounding.
        """
        gram = self.gram
        xp = array_namespace(gram)
        least = self.s * float(xp.finfo(xp.float64).eps) * float(xp.max(xp.linalg.diagonal(gram)))
        index = xp.arange(self.s)
        gram[index, index] += least
        with failures_raised(gram):
            if is_numpy_array(gram):  # in place: this is the largest matrix of all
                import scipy.linalg

                factor: Array = scipy.linalg.cholesky(gram.T, lower=True, overwrite_a=True, check_finite=False)
            else:
                factor = xp.linalg.cholesky(mirrored(gram))
            return xp.astype(factor.T, self.dtype)


def k_fold(
    system: System, rows: np.ndarray, alphas: Sequence[float], fold: np.ndarray, intercept: bool = True
) -> Iterator[Array]:
    """As `leave_one_out`, with all stimuli of one's own fold left out: V @ Y, intercept included.

    Parameters
    ----------
    rows : those to predict, shape (s,).
    fold : number of each training stimulus's fold, shape (n,).

    Yields
    ------
    V, shape (s, n), rows summing to 1 (with an intercept) and 0 wherever the training stimulus shares the row's fold.

    Raises
    ------
    ValueError : as `hat_matrices`; a fold that leaves no training stimulus.
    """
    order: list[np.ndarray] = []
    parts: list[list[Array]] = [[] for _ in alphas]
    for number in np.unique(fold[rows]):
        kept, at = np.flatnonzero(fold != number), np.flatnonzero(fold[rows] == number)
        if not kept.size:
            raise InputError(
                "validation (k_fold)",
                found=f"fold {number}, which holds all {counted(system.n, 'training stimulus', 'training stimuli')}",
                expected="stimuli in at least 2 folds",
                action="use more training stimuli, or more folds (`ridge.validation.folds`)",
            )
        order.append(at)
        for found, smoother in zip(parts, _fold_smoothers(system, kept, rows[at], alphas, intercept), strict=True):
            found.append(smoother)
    back = np.argsort(np.concatenate(order))
    for found in parts:
        xp = array_namespace(*found)
        yield take(xp.concat(found), back, 0)
        found.clear()


def _fold_smoothers(
    system: System, kept: np.ndarray, left_out: np.ndarray, alphas: Sequence[float], intercept: bool
) -> Iterator[Array]:
    """Predictions of the rows left out from those kept, (left out, n) for each alpha. One fold is held at a time: this
    lets it go when the last is taken.
    """
    inner, right = system.without(kept, left_out)
    others = np.ones(system.n, dtype=bool)
    others[kept] = False
    columns = np.argsort(np.concatenate([kept, np.flatnonzero(others)]))
    for hat in inner.hat_matrices(right, alphas):
        xp = array_namespace(hat)
        smoother = hat + 1 / len(kept) if intercept and system.intercept else hat
        zeros = xp.zeros((hat.shape[0], system.n - len(kept)), dtype=hat.dtype)
        yield take(xp.concat([smoother, zeros], axis=1), columns, 1)
