"""The ridge engine against scikit-learn and scipy, in both forms, on NumPy and on the strict array API."""

import array_api_strict
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from bdflow import ridge

PAPER_ALPHAS = (50_000.0, 60_000.0, 100_000.0)


def problem(n: int, p: int, t: int = 6, m: int = 7, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + m, p)) * rng.uniform(0.5, 5, p) + rng.normal(size=p)
    y = rng.normal(size=(n, t)) + x[:n] @ rng.normal(size=(p, t)) / p + 3
    return x[:n], x[n:], y


@pytest.mark.parametrize("array_module", [np, array_api_strict], ids=["numpy", "strict"])
@pytest.mark.parametrize(("n", "p"), [(40, 90), (90, 40), (50, 50), (2, 5), (5, 1), (1, 4)])
def test_predictions_equal_scikit_learn_in_float64(n, p, array_module):
    x, other, y = problem(n, p)
    train, test, mean, scale = (
        np.asarray(a) for a in ridge.z_score(array_module.asarray(x), array_module.asarray(other))
    )
    if n > 1:
        np.testing.assert_allclose(mean, x.mean(0))
        np.testing.assert_allclose(scale, x.std(0, ddof=1))
    alphas = (1e-3, 1.0, 500.0, *PAPER_ALPHAS)
    hats = ridge.hat_matrices(array_module.asarray(train), array_module.asarray(test), alphas)
    for alpha, hat in zip(alphas, hats, strict=True):
        found = np.asarray(ridge.predict(hat, array_module.asarray(y)))
        np.testing.assert_allclose(found, Ridge(alpha=alpha).fit(train, y).predict(test), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n", "p"), [(300, 700), (700, 300)])
def test_float32_is_within_1e4_of_float64_scikit_learn_for_every_alpha_of_the_paper(n, p):
    x, other, y = problem(n, p, t=50, m=40)
    train, test, _, _ = ridge.z_score(x.astype("f4"), other.astype("f4"))
    wide_train, wide_test, _, _ = ridge.z_score(x, other)
    for alpha, hat in zip(PAPER_ALPHAS, ridge.hat_matrices(train, test, PAPER_ALPHAS), strict=True):
        reference = Ridge(alpha=alpha).fit(wide_train, y).predict(wide_test)
        found = ridge.predict(hat, y.astype("f4"))
        assert found.dtype == np.float32
        assert (np.abs(found - reference) <= 1e-4 * np.abs(reference)).all()


@pytest.mark.parametrize(("n", "p"), [(30, 70), (70, 30)])
def test_both_forms_equal_the_formula(n, p):
    x, other, _ = problem(n, p)
    train, test, _, _ = ridge.z_score(x, other)
    (hat,) = ridge.hat_matrices(train, test, [10.0])
    weights = scipy.linalg.solve(train.T @ train + 10 * np.eye(p), train.T, assume_a="pos")
    np.testing.assert_allclose(hat, test @ weights, atol=1e-10)
    np.testing.assert_allclose(hat.sum(axis=1), 0, atol=1e-12)


@given(st.integers(2, 12), st.integers(1, 12), st.floats(0.1, 1e5), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_shifting_or_scaling_targets_does_the_same_to_predictions(n, p, alpha, seed):
    x, other, y = problem(n, p, seed=seed)
    train, test, _, _ = ridge.z_score(x, other)
    (hat,) = ridge.hat_matrices(train, test, [alpha])
    np.testing.assert_allclose(ridge.predict(hat, 2 * y + 5), 2 * ridge.predict(hat, y) + 5, rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(ridge.predict(hat, y[:, 2:4]).shape, (7, 2))


def test_a_constant_voxel_counts_for_nothing():
    x, other, y = problem(20, 30)
    x[:, 4], other[:, 4] = 2.5, 9.0
    (with_it,) = ridge.hat_matrices(*ridge.z_score(x, other)[:2], [3.0])
    rest = np.delete(np.arange(30), 4)
    (without,) = ridge.hat_matrices(*ridge.z_score(x[:, rest], other[:, rest])[:2], [3.0])
    np.testing.assert_allclose(with_it @ y, without @ y, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_an_alpha_that_is_not_positive_is_refused(alpha):
    x, other, _ = problem(5, 4)
    with pytest.raises(ValueError, match="alpha"):
        next(ridge.hat_matrices(x, other, [1.0, alpha]))


def test_shapes_and_values_that_cannot_be_are_refused():
    x, other, _ = problem(5, 4)
    with pytest.raises(ValueError, match="do not share their voxels"):
        next(ridge.hat_matrices(x, other[:, :3], [1.0]))
    x[2, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        next(ridge.hat_matrices(x, other, [1.0]))


@pytest.mark.parametrize(("array_module", "dtype"), [(np, "f2"), (np, "f4"), (array_api_strict, "f4")])
@pytest.mark.parametrize("mean", [0, 100])
def test_a_block_is_predicted_and_scored_as_by_scipy_and_scikit_learn(array_module, dtype, mean):
    rng = np.random.default_rng(3)
    n, m, t = 300, 90, 8
    x = rng.normal(size=(n + m, 20))
    latents = (mean + x @ rng.normal(size=(20, t)) + rng.normal(size=(n + m, t))).astype(dtype)
    latents[:, 3] = mean + 1
    train, test = slice(m, m + n), slice(0, m)
    z, z_test, _, _ = ridge.z_score(x[train], x[test])
    (hat,) = ridge.hat_matrices(z, z_test, [5.0])
    as_array = array_module.asarray
    found = ridge.predict_block(as_array(hat.astype("f4")), as_array(latents), train, test)
    found = ridge.Block(*(np.asarray(value) for value in found))
    wide = latents.astype("f8")
    reference = Ridge(alpha=5).fit(z, wide[train]).predict(z_test)
    np.testing.assert_allclose(found.latent, reference, atol=2e-5 + 1e-6 * mean)
    np.testing.assert_allclose(found.train_mean, wide[train].mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.train_std, wide[train].std(0), rtol=1e-6)
    np.testing.assert_allclose(found.prediction_mean, reference.mean(0), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(found.prediction_std, reference.std(0), rtol=1e-4, atol=1e-6)
    rest = np.delete(np.arange(t), 3)
    r2 = r2_score(wide[test][:, rest], reference[:, rest], multioutput="raw_values")
    np.testing.assert_allclose(found.r2[rest], r2, atol=1e-5)
    r = [scipy.stats.pearsonr(a, b)[0] for a, b in zip(wide[test].T[rest], reference.T[rest], strict=True)]
    np.testing.assert_allclose(found.pearson_r[rest], r, atol=1e-5)
    assert np.isnan(found.r2[3])
    assert np.isnan(found.pearson_r[3])
    assert all(value.dtype == np.float32 for value in found)


def test_rows_may_be_in_any_order():
    rng = np.random.default_rng(4)
    latents, rows = rng.normal(size=(50, 4)).astype("f4"), rng.permutation(50)
    hat = rng.normal(size=(7, 30)).astype("f4")
    hat -= hat.mean(axis=1, keepdims=True)
    found = ridge.predict_block(hat, latents, rows[:30], rows[30:37])
    np.testing.assert_allclose(found.latent, ridge.predict(hat, latents[rows[:30]]), atol=1e-4)


def test_restandardised_predictions_have_the_training_statistics():
    rng = np.random.default_rng(2)
    train, predicted = rng.normal(3, 4, (50, 6)), rng.normal(1, 0.1, (20, 6))
    train_mean, train_std, mean, std = train.mean(0), train.std(0), predicted.mean(0), predicted.std(0)
    statistics = {"train_mean": train_mean, "train_std": train_std, "prediction_mean": mean, "prediction_std": std}
    found = ridge.restandardise(predicted, "test_set", **statistics)
    np.testing.assert_allclose(found.mean(0), train.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.std(0), train.std(0), rtol=1e-5)
    assert ridge.restandardise(predicted, "none", **statistics) is predicted
    with pytest.raises(ValueError, match="held"):
        ridge.restandardise(predicted, "held", **statistics)


def test_blocks_of_voxels_add_up_to_all_of_them():
    x, other, _ = problem(30, 90)
    train, test, _, _ = ridge.z_score(x, other)
    blocks = [(train[:, a:b], test[:, a:b]) for a, b in ((0, 10), (10, 64), (64, 90))]
    (whole,) = ridge.hat_matrices(train, test, [7.0])
    (parts,) = ridge.dual_hat_matrices(blocks, 30, 7, [7.0])
    np.testing.assert_allclose(parts, whole, atol=1e-12)
    with pytest.raises(ValueError, match="no voxels"):
        next(ridge.dual_hat_matrices([], 30, 7, [7.0]))


def test_a_system_that_is_singular_in_float32_says_so():
    x, other, _ = problem(60, 3000)
    train, test, _, _ = ridge.z_score(x.astype("f4"), other.astype("f4"))
    train[1] = train[0]
    with pytest.raises(ValueError, match="raise alpha"):
        next(ridge.hat_matrices(train * 1e3, test * 1e3, [1e-6]))


def test_the_cheaper_form_is_chosen():
    assert ridge.dual_is_cheaper(8859, 15724, 982)
    assert not ridge.dual_is_cheaper(8859, 300, 982)
