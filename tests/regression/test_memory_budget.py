"""How predictions read targets in a given memory: blocks whole and once for all subjects, or in pieces."""

import pytest

from bdflow.errors import InputError
from bdflow.regression.memory_budget import LEAST_ROWS, MIB, Extent, plan

PAPER = {f"subj{i}": Extent(8859, 982, 15000, 0, 3, True) for i in (1, 2, 5, 7)}
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
