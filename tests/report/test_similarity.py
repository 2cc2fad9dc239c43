"""Scores against likeness to the training stimuli: bins and correlations against figures written out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bdflow.report.similarity import BINS, LEAST, binned, correlation


@given(st.integers(0, 80), st.integers(0, 2**32 - 1))
def test_bins_hold_as_many_pairs_each_and_all_of_them(n, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=n), rng.normal(size=n)
    middle, mean = binned(x, y)
    parts = max(1, min(BINS, n // LEAST))
    assert len(middle) == len(mean) == (parts if n else 0)
    assert (np.diff(middle) >= 0).all()
    if n:
        sizes = [len(part) for part in np.array_split(np.arange(n), parts)]
        np.testing.assert_allclose(np.average(mean, weights=sizes), y.mean(), atol=1e-12)
        lowest = np.argsort(x)[: sizes[0]]
        assert middle[0] == np.median(x[lowest])
        np.testing.assert_allclose(mean[0], y[lowest].mean())


def test_pairs_without_a_score_count_for_nothing():
    x, y = np.arange(12.0), np.arange(12.0) ** 2
    known = binned(x, y)
    more = binned(np.append(x, [np.nan, 5]), np.append(y, [1, np.nan]))
    np.testing.assert_array_equal(known, more)
    assert correlation(np.append(x, [np.nan, 5]), np.append(y, [1, np.nan])) == 1


def test_correlations_that_are_not_defined():
    assert np.isnan(correlation(np.ones(9), np.arange(9.0)))
    assert np.isnan(correlation(np.arange(9.0), np.ones(9)))
    assert np.isnan(correlation(np.arange(2.0), np.arange(2.0)))
