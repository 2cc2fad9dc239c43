"""How predictions read targets in a given memory: blocks whole and once for all subjects, or in pieces; and what
cross-validation by folds takes."""

import tracemalloc

import numpy as np
import pytest

from bdflow.errors import InputError
from bdflow.regression import cross_validation, ridge
from bdflow.regression.grouping import Grouping
from bdflow.regression.memory_budget import LEAST_ROWS, MIB, Extent, _by_folds, plan

PAPER = {(f"subj{i}", "averaged"): Extent(8859, 982, 15000, 0, 3, True) for i in (1, 2, 5, 7)}
COLUMNS, BYTES = 4096, 2 * 36_418


def planned(budget: int | None, column_bytes: int = BYTES):
    return plan(PAPER, COLUMNS, 1024, 1024, budget, False, column_bytes)


def test_without_a_limit_blocks_are_read_whole():
    whole, nothing_to_read = planned(None), planned(None, 0)
    assert whole.whole_blocks
    blocks = 2 * BYTES * COLUMNS
    more = whole.needs["predictions"] - nothing_to_read.needs["predictions"]
    assert blocks <= more <= 1.3 * blocks, "one that is worked on, one that is read"


def test_what_does_not_fit_whole_is_read_in_pieces():
    needs = planned(None).needs["predictions"]
    found = {budget: planned(budget * MIB) for budget in range(1164, needs // MIB + 50, 10)}
    assert [of.whole_blocks for of in found.values()] == sorted(of.whole_blocks for of in found.values())
    assert {of.whole_blocks for of in found.values()} == {True, False}
    for budget, of in found.items():
        assert of.piece_rows >= LEAST_ROWS
        assert of.whole_blocks == (needs <= budget * MIB)
    with pytest.raises(InputError, match="predictions"):
        planned(900 * MIB)


def trials(subjects: int, by_rows: bool) -> dict[tuple[str, str], Extent]:
    """Takagi & Nishimoto's sizes: two designs a subject, seven penalties."""
    held = 8859 if by_rows else 3 * 512
    return {
        (f"subj{i}", design): Extent(24_980, 982, voxels, held, 7, False, 8859, by_rows, folds=5)
        for i in range(subjects)
        for design, voxels in (("early", 5917), ("ventral", 7604))
    }


@pytest.mark.parametrize("by_rows", [True, False])
def test_of_several_subjects_and_designs_only_what_is_held_at_once_is_counted(by_rows):
    """Predictions hold the hat matrices of each subject, of one design at a time; the choice of penalties holds the
    matrices of one subject and design. Four subjects fit where one does, but for their hat matrices and results."""

    def needs(subjects):
        return plan(trials(subjects, by_rows), 4096, 1024, 1024, 8 * 1024 * MIB, True).needs

    one, four = needs(1), needs(4)
    assert four["penalties"] == one["penalties"]
    assert four["system"] == one["system"]
    hats = 4 * 982 * 8859 * 7
    assert 3 * hats <= four["predictions"] - one["predictions"] <= 1.3 * 3 * (hats + 12 * 982 * 4096)


def test_matrices_below_the_hat_matrices_count_where_predictions_have_them():
    def predictions(below):
        of = {("a", "averaged"): Extent(8859, 982, 15_000, 512, 1, True, below=below)}
        return plan(of, 4096, 1024, 1024, None, False).needs["predictions"]

    more = predictions(True) - predictions(False)
    rows = 4 * 512 * 8859 + 12 * 512 * 4096
    assert rows <= more <= 1.3 * rows


def test_pieces_are_shorter_where_comparing_penalties_needs_the_memory():
    of = {("a", "averaged"): Extent(8859, 10, 500, 2000, 20, True)}
    free = plan(of, 4096, 1024, 1024, None, False)
    tight = plan(of, 4096, 1024, 1024, free.needs["penalties"] - 100 * MIB, False)
    assert tight.piece_rows < free.piece_rows
    assert free.needs["penalties"] > free.needs["predictions"]
    with pytest.raises(InputError, match="penalties"):
        plan(of, 4096, 1024, 1024, tight.needs["penalties"] - MIB, False)


ALPHAS = [10.0, 100.0, 1000.0]


@pytest.mark.parametrize("folds", [2, 20])
@pytest.mark.parametrize(("n", "p"), [(500, 900), (2400, 500), (900, 700)])
@pytest.mark.parametrize("by_rows", [False, True])
def test_what_folds_take_is_counted_and_does_not_grow_with_their_number(n, p, folds, by_rows):
    """One fold is held at a time. By rows, with more rows than voxels, the covariance of each is kept, and counted."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, p)).astype("f4")
    rows -= rows.mean(axis=0)
    dual, count = n < p, 3 if n == 2400 else 1
    grouping = Grouping(np.repeat(np.arange(n // count), count))
    fold = np.arange(n) % folds
    held_out = np.sort(rng.choice(n, 150, replace=False))
    next(cross_validation.k_fold(ridge.Primal(rows[:40, :9]), np.arange(3), [1.0], fold[:40] % 2))  # what is imported
    tracemalloc.start()
    try:
        made = ridge.Dual(rows @ rows.T) if dual else ridge.Primal(rows.copy(), rows.T @ rows)
        tracemalloc.reset_peak()
        if by_rows:
            matrices = cross_validation.k_fold_errors(made, ALPHAS, fold, grouping)
        else:
            matrices = cross_validation.k_fold(made, held_out, ALPHAS, fold)
        while next(matrices, None) is not None:
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    of = Extent(n, 10, p, n // count if by_rows else 150, len(ALPHAS), dual, n // count, by_rows, folds=folds)
    counted = _by_folds(of)
    assert 0.4 * counted < peak <= counted
