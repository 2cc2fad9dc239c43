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

from bdflow.regression import cross_validation, ridge, streaming

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
    pieces = [as_array(latents[train][a:b]) for a, b in ((0, 130), (130, 131), (131, n))]
    found = streaming.predict_block([as_array(hat.astype("f4"))], pieces, [as_array(latents[test])])
    assert found.held_out_mean is None
    found = streaming.Block(*(np.asarray(value) for value in found[:7]))
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
    assert all(value.dtype == np.float32 for value in found[:7])


def test_a_target_that_is_not_a_number_spoils_its_own_column_alone():
    rng = np.random.default_rng(4)
    latents, hat = rng.normal(size=(50, 4)).astype("f4"), rng.normal(size=(7, 30)).astype("f4")
    hat -= hat.mean(axis=1, keepdims=True)
    whole = streaming.predict_block([hat], [latents[:30]], [latents[30:37]])
    latents[12, 2] = np.nan
    found = streaming.predict_block([hat], [latents[:30]], [latents[30:37]])
    for name in ("latent", "train_mean", "train_std", "r2", "pearson_r"):
        values = np.atleast_2d(getattr(found, name))
        assert np.isnan(values[:, 2]).all(), name
        np.testing.assert_array_equal(np.delete(values, 2, 1), np.delete(np.atleast_2d(getattr(whole, name)), 2, 1))


def test_each_column_may_have_its_own_alpha_and_pieces_must_be_complete():
    rng = np.random.default_rng(4)
    latents, hats = rng.normal(size=(50, 9)).astype("f4"), rng.normal(size=(3, 7, 30)).astype("f4")
    hats -= hats.mean(axis=2, keepdims=True)
    which = np.array([0, 2, 2, 1, 0, 0, 2, 1, 1])
    pieces = [latents[:11], latents[11:30]]
    found = streaming.predict_block(list(hats), pieces, [latents[30:37]], which=which)
    for number, hat in enumerate(hats):
        alone = streaming.predict_block([hat], pieces, [latents[30:37]])
        for ours, theirs in zip(found[:7], alone[:7], strict=True):
            np.testing.assert_allclose(ours[..., which == number], theirs[..., which == number], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="found 29 training targets, expected 30"):
        streaming.predict_block([hats[0]], [latents[:29]], [latents[30:37]])


def refitted(z, y, alpha, left_out):
    kept = np.setdiff1d(np.arange(len(z)), left_out)
    return Ridge(alpha=alpha).fit(z[kept], y[kept]).predict(z[left_out])


@pytest.mark.parametrize("array_module", [np, array_api_strict], ids=["numpy", "strict"])
@pytest.mark.parametrize(("n", "p"), [(30, 70), (40, 12), (2, 5)])
def test_cross_validation_equals_refitting_by_scikit_learn(n, p, array_module):
    """Exactly, the intercept included, in either form: one factor against one fit a stimulus or fold."""
    x, _, y = problem(n, p)
    z, _, _, _ = ridge.z_score(x, x)
    z = z + 1e-3  # not quite centred responses must not matter to the folds' own centring
    z -= z.mean(0)
    rows = np.arange(n) if n < 10 else np.sort(np.random.default_rng(1).choice(n, 11, replace=False))
    fold = np.arange(n) % (5 if n > 10 else 2)
    wide = array_module.asarray(z)
    for system in (ridge.Dual(wide @ wide.T), ridge.Primal(wide)):
        alphas = (0.3, 20.0)
        alone = cross_validation.leave_one_out(system, rows, alphas)
        folds = cross_validation.k_fold(system, rows, alphas, fold)
        for alpha, one, k in zip(alphas, alone, folds, strict=True):
            one, k = np.asarray(one), np.asarray(k)
            np.testing.assert_allclose(one.sum(1), 1)
            np.testing.assert_allclose(k.sum(1), 1)
            for i, row in enumerate(rows):
                np.testing.assert_allclose(one[i] @ y, refitted(z, y, alpha, [row])[0], rtol=1e-7, atol=1e-8)
                mates = np.flatnonzero(fold == fold[row])
                expected = refitted(z, y, alpha, mates)[np.flatnonzero(mates == row)[0]]
                np.testing.assert_allclose(k[i] @ y, expected, rtol=1e-7, atol=1e-8)


def test_cross_validation_that_cannot_be_is_refused():
    x, _, _ = problem(4, 6)
    system = ridge.Dual(x @ x.T)
    with pytest.raises(ValueError, match="fold 0, which holds all 4 training stimuli"):
        next(cross_validation.k_fold(system, np.arange(4), [1.0], np.zeros(4, int)))
    with pytest.raises(ValueError, match="found 1 training stimulus; expected at least 2"):
        next(cross_validation.leave_one_out(ridge.Dual(np.zeros((1, 1))), np.arange(1), [1.0]))


def test_cross_validated_scores_are_those_of_scikit_learn():
    x, _, y = problem(60, 90, t=7)
    y[:, 4] = 2.0
    z, _, _, _ = ridge.z_score(x, x)
    rows = np.sort(np.random.default_rng(1).choice(60, 25, replace=False))
    matrices = list(cross_validation.leave_one_out(ridge.Dual(z @ z.T), rows, (1.0, 50.0)))
    pieces = [y[:20].astype("f4"), y[20:60].astype("f4")]
    found = streaming.validate_block([v.astype("f4") for v in matrices], rows, pieces)
    assert found.shape == (2, 7)
    assert np.isnan(found[:, 4]).all()
    for scores, v in zip(found, matrices, strict=True):
        expected = r2_score(y[rows], v @ y, multioutput="raw_values")
        np.testing.assert_allclose(np.delete(scores, 4), np.delete(expected, 4), atol=1e-5)


def test_held_out_statistics_are_those_of_the_cross_validated_predictions():
    x, other, y = problem(60, 90, t=5)
    z, z_other, _, _ = ridge.z_score(x, other)
    (hat,) = ridge.hat_matrices(z, z_other, [30.0])
    (v,) = cross_validation.leave_one_out(ridge.Dual(z @ z.T), np.arange(60), [30.0])
    both = np.concatenate([hat, v]).astype("f4")
    found = streaming.predict_block([both], [y.astype("f4")], [y[:7].astype("f4")], held_out=60)
    np.testing.assert_allclose(found.latent, ridge.predict(hat, y), atol=1e-5)
    np.testing.assert_allclose(found.held_out_mean, (v @ y).mean(0), atol=1e-5)
    np.testing.assert_allclose(found.held_out_std, (v @ y).std(0), rtol=1e-4)
    scaled = ridge.restandardise(v @ y, "held_out", found._asdict())
    np.testing.assert_allclose(scaled.mean(0), y.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scaled.std(0), y.std(0), rtol=1e-4)


def test_restandardised_predictions_have_the_training_statistics():
    rng = np.random.default_rng(2)
    train, predicted = rng.normal(3, 4, (50, 6)), rng.normal(1, 0.1, (20, 6))
    train_mean, train_std, mean, std = train.mean(0), train.std(0), predicted.mean(0), predicted.std(0)
    statistics = {"train_mean": train_mean, "train_std": train_std, "prediction_mean": mean, "prediction_std": std}
    found = ridge.restandardise(predicted, "test_set", statistics)
    np.testing.assert_allclose(found.mean(0), train.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.std(0), train.std(0), rtol=1e-5)
    assert ridge.restandardise(predicted, "none", statistics) is predicted
    with pytest.raises(ValueError, match="held"):
        ridge.restandardise(predicted, "held", statistics)


def test_what_float16_targets_cost():
    """Rounding latents to float16 moves predictions by less than 1e-3 SD; more where the mean is many SD from 0."""
    x, other, _ = problem(300, 500, m=50)
    z, z_other, _, _ = ridge.z_score(x, other)
    spread = np.geomspace(0.01, 100, 40)
    y = np.random.default_rng(0).normal(size=(300, 40)) * spread
    y[:, 20:] += 50 * spread[20:]
    (hat,) = ridge.hat_matrices(z, z_other, [1000.0])
    exact = ridge.predict(hat, y)
    block = streaming.predict_block([hat.astype("f4")], [y.astype("f2")], [y[:50].astype("f2")])
    moved = np.abs(block.latent - exact).max(0) / y.std(0)
    assert (moved[:20] < 1e-3).all()
    assert (moved[20:] < 50 * 2**-11).all(), "11 bits are of the whole value, not of its deviation"
    assert moved[20:].max() > 1e-3


def test_blocks_of_voxels_add_up_to_all_of_them():
    x, other, _ = problem(30, 90)
    train, test, _, _ = ridge.z_score(x, other)
    blocks = [(train[:, a:b], test[:, a:b]) for a, b in ((0, 10), (10, 64), (64, 90))]
    (whole,) = ridge.hat_matrices(train, test, [7.0])
    kernel, cross = ridge.kernel_matrix(blocks, 30, 7)
    np.testing.assert_allclose(kernel, train @ train.T, atol=1e-12)
    (parts,) = ridge.Dual(kernel).hat_matrices(cross, [7.0])
    np.testing.assert_allclose(parts, whole, atol=1e-12)
    with pytest.raises(ValueError, match="no voxels"):
        ridge.kernel_matrix([], 30, 7)


def test_a_system_that_is_singular_in_float32_says_so():
    x, other, _ = problem(60, 3000)
    train, test, _, _ = ridge.z_score(x.astype("f4"), other.astype("f4"))
    train[1] = train[0]
    with pytest.raises(ValueError, match="raise alpha"):
        next(ridge.hat_matrices(train * 1e3, test * 1e3, [1e-6]))


def test_the_cheaper_form_is_chosen():
    assert ridge.dual_is_cheaper(8859, 15724, 982)
    assert not ridge.dual_is_cheaper(8859, 300, 982)


def test_statistics_of_predictions_that_a_heavy_penalty_makes_tiny():
    """Their SD is 1e-4 of the targets', whose first row lies several SD off."""
    rng = np.random.default_rng(5)
    train, other, targets = (rng.standard_normal(shape).astype("f4") for shape in ((300, 400), (50, 400), (300, 6)))
    targets[0] += 5
    true = rng.standard_normal((50, 6)).astype("f4")
    (hat,) = ridge.hat_matrices(train - train.mean(axis=0), other, [1e7])
    block = streaming.predict_block([hat], [targets], [true])
    exact = hat.astype(float) @ targets
    assert exact.std(axis=0).max() < 3e-4
    np.testing.assert_allclose(block.prediction_std, exact.std(axis=0), rtol=1e-4)
    expected = [np.corrcoef(exact[:, i], true[:, i])[0, 1] for i in range(6)]
    np.testing.assert_allclose(block.pearson_r, expected, atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_scores_without_an_intercept_are_exact_where_the_mean_is_large_against_the_predictions(weighted):
    rng = np.random.default_rng(6)
    x, other = (rng.standard_normal(shape).astype("f4") for shape in ((200, 60), (40, 60)))
    y = (x @ rng.standard_normal((60, 5)) + rng.standard_normal((200, 5)) + 200).astype("f4")
    true = (other @ rng.standard_normal((60, 5)) + 200).astype("f4")
    x -= x.mean(axis=0)
    (hat,) = ridge.Dual(x @ x.T, intercept=False).hat_matrices(other @ x.T, [1e5])
    weights = rng.integers(1, 4, 200).astype("f4") if weighted else None
    block = streaming.predict_block([hat], [y[:90], y[90:]], [true], intercept=False, weights=weights)
    exact = hat.astype(float) @ y
    assert (exact.std(axis=0) < 1e-2 * y.mean(axis=0)).all()
    np.testing.assert_allclose(block.latent, exact, atol=1e-4)
    np.testing.assert_allclose(block.prediction_mean, exact.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(block.prediction_std, exact.std(axis=0), rtol=2e-4)
    np.testing.assert_allclose(block.r2, r2_score(true, exact, multioutput="raw_values"), rtol=1e-4)
    expected = [scipy.stats.pearsonr(exact[:, i], true[:, i])[0] for i in range(5)]
    np.testing.assert_allclose(block.pearson_r, expected, atol=2e-4)
