"""Banded ridge: scikit-learn's on scaled features side by side, the best of all candidates, and what was planted."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from bdflow.metrics.statistics import correlation_p
from bdflow.regression import banded, cross_validation, ridge

ALPHAS = (0.3, 3.0, 30.0, 300.0)


def kernels(features: list[np.ndarray], m: int, dtype: Any = float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Mean products of features that are centred on the training set; the last m rows are test stimuli."""
    of, between = [], []
    for x in features:
        train, test = x[:-m] - x[:-m].mean(axis=0), x[-m:] - x[:-m].mean(axis=0)
        of.append((train @ train.T / x.shape[1]).astype(dtype))
        between.append((test @ train.T / x.shape[1]).astype(dtype))
    return of, between


def side_by_side(features: list[np.ndarray], shares: np.ndarray) -> np.ndarray:
    return np.hstack([x * np.sqrt(s / x.shape[1]) for x, s in zip(features, shares, strict=True)])


def searched(features: list[np.ndarray], y: np.ndarray, m: int, rows: np.ndarray, steps: int = 4) -> banded.Banded:
    found = banded.Banded(y.shape[1], len(features))
    shares = banded.simplex(len(features), steps)
    for candidate in banded.candidates(*kernels(features, m, np.float32), shares, ALPHAS, rows):
        found.consider(candidate, rows, y[:-m], y[-m:], np.ones(y.shape[1], bool))
    return found


def problem(widths: tuple[int, ...], n: int, t: int, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    features = [rng.normal(0.5, 1, (n, p)) for p in widths]
    weights = [rng.standard_normal((p, t)) / np.sqrt(p) for p in widths]
    y = sum(x @ w for x, w in zip(features, weights, strict=True)) + rng.standard_normal((n, t)) + 3
    return features, y.astype(np.float32)


@pytest.mark.parametrize(("bands", "steps", "count"), [(1, 4, 1), (2, 4, 5), (3, 4, 15), (4, 4, 35), (2, 1, 2)])
def test_the_simplex_has_every_way_to_share_one(bands, steps, count):
    shares = banded.simplex(bands, steps)
    assert shares.shape == (count, bands)
    assert len(np.unique(shares, axis=0)) == count
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert (shares * steps == np.round(shares * steps)).all()
    assert (shares.max(axis=1) == 1).sum() == bands


def test_fixed_shares_are_ridge_on_scaled_features_side_by_side():
    """Predictions of test stimuli, and of training stimuli from a model fitted anew without each."""
    features, y = problem((7, 40, 15), 70, 5)
    m, rows, shares = 20, np.array([3, 11, 49]), np.array([[0.5, 0.25, 0.25]])
    (candidate,) = banded.candidates(*kernels(features, m), shares, ALPHAS, rows)
    x = side_by_side(features, shares[0])
    for alpha, left_out, hat in zip(ALPHAS, candidate.left_out, candidate.hats, strict=True):
        expected = Ridge(alpha).fit(x[:-m], y[:-m]).predict(x[-m:])
        np.testing.assert_allclose(ridge.predict(hat, y[:-m]), expected, atol=1e-5)
        for at, row in enumerate(rows):
            others = np.delete(np.arange(50), row)
            expected = Ridge(alpha).fit(x[others], y[others]).predict(x[[row]])[0]
            np.testing.assert_allclose(left_out[at] @ y[:-m], expected, atol=1e-5)


@pytest.mark.parametrize("widths", [(12, 30), (6, 20, 12)])
def test_each_target_gets_the_best_of_all_candidates_and_of_those_without_a_band(widths):
    features, y = problem(widths, 90, 8, seed=1)
    m, rows = 30, np.arange(0, 60, 2)
    found = searched(features, y, m, rows, steps=3)
    tried = banded.simplex(len(widths), 3)
    held_out, tested = np.empty((2, len(tried), len(ALPHAS), 8))
    correlation = np.empty_like(tested)
    for number, shares in enumerate(tried):
        x = side_by_side(features, shares)
        system = ridge.Dual(*(z @ z.T for z in [x[:-m] - x[:-m].mean(axis=0)]))
        for at, alpha in enumerate(ALPHAS):
            (v,) = cross_validation.leave_one_out(system, rows, [alpha])
            predicted = Ridge(alpha).fit(x[:-m], y[:-m]).predict(x[-m:])
            held_out[number, at] = r2_score(y[rows], v @ y[:-m], multioutput="raw_values")
            tested[number, at] = r2_score(y[-m:], predicted, multioutput="raw_values")
            correlation[number, at] = [np.corrcoef(a, b)[0, 1] for a, b in zip(y[-m:].T, predicted.T, strict=True)]
    for band, of in [(None, found.joint), *enumerate(found.without)]:
        allowed = np.ones(len(tried), bool) if band is None else tried[:, band] == 0
        scores = np.where(allowed[:, None, None], held_out, -np.inf).reshape(-1, 8)
        best = scores.argmax(axis=0)
        np.testing.assert_array_equal(of.combination, best // len(ALPHAS))
        np.testing.assert_array_equal(of.penalty, best % len(ALPHAS))
        np.testing.assert_allclose(of.held_out_r2, scores.max(axis=0), atol=1e-4)
        np.testing.assert_allclose(of.r2, tested.reshape(-1, 8)[best, range(8)], atol=1e-4)
        np.testing.assert_allclose(of.pearson_r, correlation.reshape(-1, 8)[best, range(8)], atol=1e-4)


def test_unique_variance_goes_to_the_band_that_was_planted():
    """Voxels of a first band, of a second, of both, and of noise; half of both bands is shared."""
    rng = np.random.default_rng(2)
    n, m, each = 500, 150, 30
    shared, own = rng.standard_normal((n, 10)), rng.standard_normal((2, n, 10))
    features = [np.hstack([shared, own[0]]), np.hstack([shared, own[1]]) @ rng.standard_normal((20, 60))]
    signals = {"first": own[0], "second": own[1], "both": np.hstack([*own]), "shared": shared, "noise": None}
    columns = []
    for signal in signals.values():
        noise = rng.standard_normal((n, each))
        mixed = 0 if signal is None else signal @ rng.standard_normal((signal.shape[1], each))
        columns.append(noise if signal is None else mixed / np.std(mixed, axis=0) + noise)
    y = np.hstack(columns).astype(np.float32)
    found = searched(features, y, m, np.arange(0, n - m, 3))
    unique = found.unique_r2().reshape(2, len(signals), each)
    median = dict(zip(signals, np.median(unique, axis=2).T, strict=True))
    assert median["first"][0] > 0.4
    assert median["second"][1] > 0.4
    assert (median["both"] > 0.15).all()
    small = [median["first"][1], median["second"][0], *median["shared"], *median["noise"]]
    assert np.abs(small).max() < 0.02, median
    alone = banded.simplex(2, 4)[found.joint.combination].reshape(len(signals), each, 2)
    assert (np.median(alone, axis=1)[0] == (1, 0)).all()
    assert (np.median(alone, axis=1)[1] == (0, 1)).all()


def test_a_band_of_share_zero_has_no_unique_variance():
    features, y = problem((5, 40), 80, 60, seed=3)
    y[:, ::2] = features[0] @ np.ones((5, 30)) + np.random.default_rng(4).standard_normal((80, 30))
    found = searched(features, y, 20, np.arange(60))
    absent = banded.simplex(2, 4)[found.joint.combination].T == 0
    assert absent.any()
    assert not absent.all()
    assert (found.unique_r2()[absent] == 0).all()


def test_what_cannot_be_scored_is_left_open():
    features, y = problem((5, 8), 60, 4)
    y[:, 1], y[3, 2] = 7.0, np.nan
    found = banded.Banded(4, 2)
    rows = np.arange(40)
    for candidate in banded.candidates(*kernels(features, 20, np.float32), banded.simplex(2, 2), ALPHAS, rows):
        found.consider(candidate, rows, y[:40], y[40:], np.array([True, True, True, False]))
    assert np.isfinite(found.joint.r2).tolist() == [True, False, False, False]
    assert (found.joint.penalty >= 0).tolist() == [True, False, False, False]
    assert np.isnan(found.unique_r2()[:, 1:]).all()


def test_five_percent_of_noise_voxels_pass_before_the_false_discovery_rate():
    """4,000 voxels of noise, whose shares and penalties are chosen as those of any other: within four SD of 5%."""
    features, _ = problem((30, 50), 260, 1, seed=4)
    y = np.random.default_rng(5).standard_normal((260, 4000)).astype(np.float32)
    found = searched(features, y, 60, np.arange(0, 200, 2), steps=2)
    for of in (found.joint, *found.without):
        rate = (correlation_p(of.pearson_r, 60) < 0.05).mean()
        assert abs(rate - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000)
