"""How predictions read targets in a given memory: blocks whole and once for all subjects, or in pieces."""

import pytest

from bdflow.errors import InputError
from bdflow.regression.memory_budget import LEAST_ROWS, MIB, Extent, plan

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
    found = {budget: planned(budget * MIB) for budget in range(1100, needs // MIB + 50, 10)}
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
        (f"subj{i}", design): Extent(24_980, 982, voxels, held, 7, False, 8859, by_rows)
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
