"""Banded ridge: several feature spaces ("bands") in one model, each with its own weight, chosen for each target.

With a kernel K_b for each band and shares s_b >= 0 that sum to 1, the model is kernel ridge with K = sum_b s_b K_b. It
is ridge on all features side by side, those of band b times sqrt(s_b): a penalty of alpha / s_b for each band (A. O.
Nunez-Elizalde et al. 2019, "Voxelwise encoding models with non-spherical multivariate normal priors"; T. Dupre la Tour
et al. 2022, "Feature-space selection with banded ridge regression"). A band of share 0 takes no part, so that the model
without a band is among the candidates. One band of share 1 is ridge.

Pure; NumPy or CuPy arrays, as `bdflow.regression.ridge`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bdflow.regression import cross_validation, ridge, streaming
from bdflow.regression.device import to_host
from bdflow.regression.ridge import Array


def simplex(bands: int, steps: int) -> np.ndarray:
    """Every way to share 1 among bands in multiples of 1 / steps.

    Returns
    -------
    (combinations, bands) float64, rows summing to 1; the corners, where one band has all, are among them. There are
    (steps + bands - 1)! / (steps! (bands - 1)!): for 4 steps 5 of two bands, 15 of three, 35 of four.
    """

    def shared(left: int, among: int) -> Iterator[tuple[int, ...]]:
        if among == 1:
            yield (left,)
            return
        for own in range(left, -1, -1):
            for others in shared(left - own, among - 1):
                yield (own, *others)

    return np.array(list(shared(steps, bands)), dtype=float) / steps


class Candidate(NamedTuple):
    """One combination of shares, with every penalty.

    Attributes
    ----------
    number : of the combination.
    shares : (bands,) that sum to 1.
    left_out : by penalty, (s, n): leave-one-out predictions of s training stimuli, as matrices.
    hats : by penalty, (m, n): hat matrices of the test stimuli.
    """

    number: int
    shares: np.ndarray
    left_out: list[Array]
    hats: list[Array]


def candidates(
    kernels: Sequence[Array], crosses: Sequence[Array], shares: np.ndarray, alphas: Sequence[float], rows: np.ndarray
) -> Iterator[Candidate]:
    """Every combination of shares as a candidate; one at a time is in memory, beside the kernels.

    Parameters
    ----------
    kernels : by band, (n, n) inner products of centred training features.
    crosses : by band, (m, n) of test with training features.
    shares : (combinations, bands), rows summing to 1.
    alphas : ridge penalties, each > 0.
    rows : training stimuli that leave-one-out predicts, (s,) ascending.

    Raises
    ------
    ValueError : as `ridge.hat_matrices` and `cross_validation.leave_one_out`.
    """
    for number, own in enumerate(shares):
        kernel, cross = mixed(kernels, own), mixed(crosses, own)
        left_out: list[Array] = []
        hats: list[Array] = []
        for alpha in alphas:
            system = ridge.Dual(kernel, keep=True)  # one factor for both, and no longer
            left_out += cross_validation.leave_one_out(system, rows, [alpha])
            hats += system.hat_matrices(cross, [alpha])
            del system
        yield Candidate(number, own, left_out, hats)


def mixed(kernels: Sequence[Array], shares: np.ndarray) -> Array:
    """Sum over bands of share times kernel, in the kernels' dtype; a kernel alone, with share 1, is handed back."""
    used = [(float(share), kernel) for share, kernel in zip(shares, kernels, strict=True) if share > 0]
    if len(used) == 1 and used[0][0] == 1:
        return used[0][1]
    found = used[0][1] * used[0][0]
    for share, kernel in used[1:]:
        found += kernel * share
    return found


@dataclass
class Best:
    """The best of the candidates so far, for each of t targets. All (t,); not a number until there is one.

    Attributes
    ----------
    held_out_r2 : leave-one-out R^2 on the training stimuli that choose.
    combination, penalty : numbers of shares and penalty; -1 until there is one.
    r2, pearson_r : of its predictions of the test stimuli.
    """

    t: int
    held_out_r2: np.ndarray = field(init=False)
    combination: np.ndarray = field(init=False)
    penalty: np.ndarray = field(init=False)
    r2: np.ndarray = field(init=False)
    pearson_r: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.held_out_r2, self.r2, self.pearson_r = (np.full(self.t, np.nan, np.float32) for _ in range(3))
        self.combination, self.penalty = (np.full(self.t, -1) for _ in range(2))

    def worse_than(self, scores: np.ndarray) -> np.ndarray:
        """(t,) bool: targets that these scores, where they are numbers, are better for."""
        found: np.ndarray = np.isfinite(scores) & ~(scores <= self.held_out_r2)
        return found


class Banded:
    """Joint models of a block of t targets, and those without each band, chosen among the same candidates.

    Attributes
    ----------
    joint : among all candidates.
    without : by band, among those where its share is 0; where there is one band only, there are none.
    """

    def __init__(self, t: int, bands: int) -> None:
        self.joint = Best(t)
        self.without = [Best(t) for _ in range(bands)]

    def consider(
        self,
        candidate: Candidate,
        rows: np.ndarray,
        train: Array,
        test: Array,
        valid: np.ndarray,
        scratch: streaming.Scratch | None = None,
    ) -> None:
        """Score a candidate by leave-one-out; where it is better than those before, predict the test stimuli by it.

        Parameters
        ----------
        rows : as of `candidates`.
        train, test : targets (n, t) and (m, t), float32.
        valid : (t,) bool; others are left alone.
        """
        scores = to_host(streaming.validate_block(candidate.left_out, rows, [train], scratch))
        known = valid & np.isfinite(scores).all(axis=0)
        penalty = np.where(known, np.nan_to_num(scores, nan=-np.inf).argmax(axis=0), 0)
        score = np.where(known, np.take_along_axis(scores, penalty[None], axis=0)[0], np.float32(np.nan))
        without = [of for of, share in zip(self.without, candidate.shares, strict=True) if share == 0]
        taking_part = [self.joint, *without]
        improved = [of.worse_than(score) for of in taking_part]
        columns = np.flatnonzero(np.any(improved, axis=0))
        if not columns.size:
            return
        whole = len(columns) == len(valid)
        shown, tested = (y if whole else ridge.take(y, columns, 1) for y in (train, test))
        block = streaming.predict_block(candidate.hats, [shown], [tested], which=penalty[columns], scratch=scratch)
        r2, pearson_r = (np.full(len(valid), np.nan, np.float32) for _ in range(2))
        r2[columns], pearson_r[columns] = to_host(block.r2), to_host(block.pearson_r)
        for of, here in zip(taking_part, improved, strict=True):
            of.held_out_r2[here], of.penalty[here], of.combination[here] = score[here], penalty[here], candidate.number
            of.r2[here], of.pearson_r[here] = r2[here], pearson_r[here]

    def unique_r2(self) -> np.ndarray:
        """(bands, t) R^2 of the joint model less that of the model without the band, both on the test stimuli. What
        the band alone explains; below 0 where it misled the joint model.
        """
        return np.stack([self.joint.r2 - of.r2 for of in self.without])
