"""RidgeDecoder: scikit-learn's conventions, its Ridge and RidgeCV as reference, and every kind of array."""

import pickle
import subprocess
import sys
from pathlib import Path

import array_api_strict
import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, KFold, cross_val_predict
from sklearn.utils.estimator_checks import parametrize_with_checks

from bdflow.errors import InputError
from bdflow.regression import decoder as decoder_module
from bdflow.regression.decoder import RidgeDecoder

SHAPES = pytest.mark.parametrize(("n", "p"), [(40, 90), (90, 40)], ids=["dual", "primal"])


@parametrize_with_checks(
    [
        RidgeDecoder(),
        RidgeDecoder(z_score=True, fit_intercept=False),
        RidgeDecoder(choose="per_target", alphas=(0.1, 1.0)),
    ]
)
def test_scikit_learns_checks(estimator, check):
    """None is expected to fail. scikit-learn itself skips one, `check_array_api_input`, unless SCIPY_ARRAY_API is set
    before SciPy is imported; arrays of other modules are tested below.
    """
    check(estimator)


def problem(n, p, t=5, m=7, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + m, p)) * rng.uniform(0.5, 5, p) + rng.normal(size=p)
    y = rng.normal(size=(n, t)) * rng.uniform(0.5, 3, t) + x[:n] @ rng.normal(size=(p, t)) / p**0.5 + 3
    return x[:n], x[n:], y


@SHAPES
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.5, np.array([0.5, 3.0, 3.0, 100.0, 0.5])], ids=["one", "each"])
def test_equals_ridge(n, p, intercept, alpha):
    x, other, y = problem(n, p)
    ours = RidgeDecoder(alpha, fit_intercept=intercept).fit(x, y)
    theirs = Ridge(alpha, fit_intercept=intercept, tol=1e-12).fit(x, y)
    np.testing.assert_allclose(ours.predict(other), theirs.predict(other), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_ * np.ones(5), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ours.score(x, y), theirs.score(x, y), rtol=1e-10)
    one = RidgeDecoder(2.0, fit_intercept=intercept).fit(x, y[:, 0])
    assert one.predict(other).shape == (7,)
    assert one.coef_.shape == (p,)
    reference = Ridge(2.0, fit_intercept=intercept).fit(x, y[:, 0])
    np.testing.assert_allclose(one.predict(other), reference.predict(other), rtol=1e-9)


@SHAPES
def test_z_score_is_ridge_on_standardised_voxels_and_a_constant_voxel_counts_for_nothing(n, p):
    x, other, y = problem(n, p)
    x[:, 3] = 7
    ours = RidgeDecoder(10.0, z_score=True).fit(x, y)
    scale = x.std(0, ddof=1)
    scale[3] = np.inf
    reference = Ridge(10.0).fit((x - x.mean(0)) / scale, y)
    np.testing.assert_allclose(ours.predict(other), reference.predict((other - x.mean(0)) / scale), rtol=1e-9)
    assert not ours.coef_[:, 3].any()
    np.testing.assert_allclose(other @ ours.coef_.T + ours.intercept_, ours.predict(other), rtol=1e-9)


ALPHAS = (0.01, 1.0, 30.0, 1000.0, 1e5)


@SHAPES
@pytest.mark.parametrize("intercept", [True, False])
def test_leave_one_out_chooses_as_ridge_cv(n, p, intercept):
    x, other, y = problem(n, p, t=12)
    ours = RidgeDecoder(choose="per_target", alphas=ALPHAS, fit_intercept=intercept).fit(x, y)
    theirs = RidgeCV(ALPHAS, fit_intercept=intercept, alpha_per_target=True, store_cv_results=True).fit(x, y)
    assert len(set(theirs.alpha_)) > 1
    np.testing.assert_array_equal(ours.alpha_, theirs.alpha_)
    r2 = 1 - theirs.cv_results_.mean(axis=0).T / y.var(axis=0)
    np.testing.assert_allclose(ours.scores_, r2, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(ours.predict(other), theirs.predict(other), rtol=1e-7, atol=1e-9)
    space = RidgeDecoder(choose="per_space", alphas=ALPHAS, fit_intercept=intercept).fit(x, y)
    assert space.alpha_ == ALPHAS[r2.mean(axis=1).argmax()]
    assert (
        RidgeDecoder(choose="per_space", alphas=ALPHAS).fit(x, y[:, 0]).alpha_ == RidgeCV(ALPHAS).fit(x, y[:, 0]).alpha_
    )


@SHAPES
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("grouped", [False, True])
def test_folds_are_refits_and_keep_groups_together(n, p, intercept, grouped):
    x, _, y = problem(n, p)
    groups = np.random.default_rng(1).integers(0, 9, n) if grouped else None
    ours = RidgeDecoder(choose="per_target", alphas=(0.5, 20.0), cv=4, fit_intercept=intercept).fit(x, y, groups)
    if grouped:
        codes = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        in_order = np.array([codes[group] for group in groups])
        fold = np.repeat(np.arange(4), [3, 2, 2, 2])[in_order]
        splits = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(4)]
        for kept, left in splits:
            assert not set(groups[kept]) & set(groups[left])
    else:
        splits = list(KFold(4).split(x))
    for alpha, scores in zip((0.5, 20.0), ours.scores_, strict=True):
        predicted = cross_val_predict(Ridge(alpha, fit_intercept=intercept, tol=1e-12), x, y, cv=splits)
        np.testing.assert_allclose(scores, r2_score(y, predicted, multioutput="raw_values"), rtol=1e-7, atol=1e-9)


def test_leave_one_out_with_groups_leaves_one_group_out():
    x, _, y = problem(40, 60)
    groups = np.arange(40) % 8
    found = RidgeDecoder(choose="per_target", alphas=(5.0,)).fit(x, y, groups)
    predicted = cross_val_predict(Ridge(5.0), x, y, cv=GroupKFold(8), groups=groups)
    np.testing.assert_allclose(found.scores_[0], r2_score(y, predicted, multioutput="raw_values"), rtol=1e-8)


@SHAPES
@pytest.mark.parametrize(
    "options", [{"alpha": [1.0, 2.0, 2.0, 9.0, 1.0]}, {"choose": "per_target", "cv": 3}, {"z_score": True}]
)
def test_the_strict_array_api_gives_the_same(n, p, options):
    x, other, y = problem(n, p)
    strict = array_api_strict.asarray
    ours = RidgeDecoder(**options).fit(strict(x), strict(y))
    found = ours.predict(strict(other))
    assert isinstance(found, array_api_strict._array_object.Array)
    reference = RidgeDecoder(**options).fit(x, y)
    np.testing.assert_allclose(np.asarray(found), reference.predict(other), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(np.asarray(ours.coef_), reference.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(ours.score(strict(x), strict(y)), reference.score(x, y), rtol=1e-9)
    with pytest.raises(TypeError, match="Multiple namespaces"):
        ours.predict(other)


@SHAPES
@pytest.mark.parametrize(
    "options",
    [{"alpha": 3.0}, {"alpha": np.arange(1.0, 24.0)}, {"choose": "per_target"}, {"choose": "per_space", "cv": 4}],
)
def test_dask_targets_are_read_by_blocks_and_never_whole(n, p, options):
    x, other, y = problem(n, p, t=23)
    widest = 0

    def watched(block):
        nonlocal widest
        widest = max(widest, block.shape[1])
        return block

    lazy = da.from_array(y, chunks=(16, 4)).rechunk({0: -1}).map_blocks(watched, dtype=y.dtype, meta=y[:0, :0])
    with dask.config.set(scheduler="synchronous"):
        ours = RidgeDecoder(**options, block=4).fit(x, lazy)
        found = ours.predict(other)
        assert isinstance(found, da.Array)
        assert found.chunks[1] == (4, 4, 4, 4, 4, 3)
        reference = RidgeDecoder(**options).fit(x, y)
        np.testing.assert_allclose(found.compute(), reference.predict(other), rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(ours.alpha_, reference.alpha_)
        np.testing.assert_allclose(ours.coef_.compute(), reference.coef_, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(ours.score(x, lazy), reference.score(x, y), rtol=1e-9)
    assert widest == 4


def test_dask_responses_are_decoded_lazily_by_rows():
    x, other, y = problem(40, 90)
    ours = RidgeDecoder().fit(da.from_array(x, chunks=(10, 30)), y)
    found = ours.predict(da.from_array(other, chunks=(3, 50)))
    assert isinstance(found, da.Array)
    assert found.chunks[0] == (3, 3, 1)
    np.testing.assert_allclose(found.compute(), RidgeDecoder().fit(x, y).predict(other), rtol=1e-10)
    one = RidgeDecoder().fit(x, y[:, 0]).predict(da.from_array(other, chunks=(3, 90)))
    np.testing.assert_allclose(one.compute(), RidgeDecoder().fit(x, y[:, 0]).predict(other), rtol=1e-10)


@pytest.mark.parametrize("lazy", [False, True])
def test_data_arrays_keep_dims_and_coordinates(lazy):
    x, other, y = problem(40, 90, t=6)
    ids = np.arange(40) + 100
    voxels = np.arange(90) * 2
    responses = xr.DataArray(x, {"stimulus_id": ids, "voxel": voxels}, ("stimulus_id", "voxel"))
    latent = xr.DataArray(
        y.reshape(40, 2, 3),
        {"stimulus_id": ids, "token": ["cls", "a"]},
        ("stimulus_id", "token", "channel"),
        "latent",
        {"units": "1"},
    )
    if lazy:
        latent = latent.chunk({"stimulus_id": 10})
    ours = RidgeDecoder(7.0).fit(responses, latent)
    new = xr.DataArray(
        other,
        {"stimulus_id": np.arange(7), "voxel": voxels, "run": ("stimulus_id", list("aabbccc"))},
        ("stimulus_id", "voxel"),
    )
    found = ours.predict(new)
    assert found.dims == ("stimulus_id", "token", "channel")
    assert found.name == "latent"
    assert found.attrs == {"units": "1"}
    assert found.stimulus_id.values.tolist() == list(range(7))
    assert found.run.values.tolist() == list("aabbccc")
    assert found.token.values.tolist() == ["cls", "a"]
    assert (found.chunks is not None) == lazy
    np.testing.assert_allclose(found.values.reshape(7, 6), Ridge(7.0).fit(x, y).predict(other), rtol=1e-9)
    assert 0 < ours.score(responses, latent) <= 1
    with pytest.raises(InputError, match="other labels along `voxel`"):
        ours.predict(new.assign_coords(voxel=voxels + 1))
    with pytest.raises(InputError, match="second `voxel`"):
        ours.predict(new.rename(voxel="vertex"))
    with pytest.raises(InputError, match="different stimuli"):
        RidgeDecoder().fit(responses, latent.assign_coords(stimulus_id=ids[::-1]))
    plain = RidgeDecoder(7.0).fit(x, y).predict(new)
    assert plain.dims == ("stimulus_id", "target")


def test_float32_stays_float32_and_targets_changed_later_change_nothing():
    x, other, y = problem(40, 90)
    kept = y.copy()
    ours = RidgeDecoder().fit(x, y)
    y[:] = 0
    np.testing.assert_allclose(ours.predict(other), Ridge().fit(x, kept).predict(other), rtol=1e-9)
    single = RidgeDecoder().fit(x.astype("f4"), kept.astype("f4"))
    assert single.predict(other.astype("f4")).dtype == np.float32
    np.testing.assert_allclose(single.predict(other.astype("f4")), ours.predict(other), atol=2e-3)


def test_it_is_cloned_and_pickled():
    x, other, y = problem(40, 90)
    ours = RidgeDecoder(choose="per_target", alphas=(1.0, 5.0), cv=3)
    assert clone(ours).get_params() == ours.get_params()
    with pytest.raises(NotFittedError):
        ours.predict(x)
    ours.fit(x, y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ours)).predict(other), ours.predict(other))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 0.0}, "finite number above 0"),
        ({"alpha": [1.0, 2.0]}, "one for each of 5 targets"),
        ({"choose": "best"}, "fixed, per_space, per_target"),
        ({"choose": "per_space", "alphas": ()}, "at least one number"),
        ({"choose": "per_space", "cv": 1}, "at least 2"),
        ({"choose": "per_space", "cv": 41}, "41 folds of 40 rows"),
        ({"block": 0}, "at least 1"),
    ],
)
def test_wrong_parameters_are_refused(options, words):
    x, _, y = problem(40, 90)
    with pytest.raises(InputError, match=words):
        RidgeDecoder(**options).fit(x, y)


def test_wrong_arrays_are_refused():
    x, other, y = problem(40, 90)
    with pytest.raises(InputError, match="one row for each row of X"):
        RidgeDecoder().fit(x, da.from_array(y[:-1]))
    with pytest.raises(InputError, match="one label for each row"):
        RidgeDecoder(choose="per_space").fit(x, y, groups=[1, 2])
    with pytest.raises(InputError, match="all constant"):
        RidgeDecoder(choose="per_space").fit(x, np.ones((40, 2)))
    broken = y.copy()
    broken[3, 2] = np.nan
    lazy = RidgeDecoder().fit(x, da.from_array(broken)).predict(other)
    with pytest.raises(InputError, match="not finite"):
        lazy.compute()


def test_scikit_learn_is_not_imported_with_the_room():
    code = "import sys, bdflow.regression.ridge; assert not any(m.startswith('sklearn') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert decoder_module.__all__ == ["RidgeDecoder"]


@pytest.mark.parametrize("grid", ["small", "large"])
def test_penalties_and_predictions_are_those_of_himalayas_ridge_cv(grid):
    """Takagi & Nishimoto's ridge, by their script: single trials, scaled as the training trials, without an intercept;
    the penalty of each target by five runs of consecutive trials.
    """
    stored = np.load(Path(__file__).parents[1] / "reference/takagi_ridge_a.npz")
    of = {name.removeprefix(f"{grid}."): stored[name] for name in stored.files if name.startswith(f"{grid}.")}
    mean, scale = of["X_train"].mean(axis=0), of["X_train"].std(axis=0)
    np.testing.assert_allclose(mean, of["scaler_mean"])
    np.testing.assert_allclose(scale, of["scaler_scale"])
    train, test = ((of[name] - mean) / scale for name in ("X_train", "X_test"))
    decoder = RidgeDecoder(choose="per_target", alphas=of["alphas"].tolist(), cv=5, fit_intercept=False)
    decoder.fit(train, of["Y_train"].astype(float))
    np.testing.assert_allclose(decoder.alpha_, of["best_alphas"], rtol=1e-6)
    found = decoder.predict(test)
    largest = np.abs(of["predictions_float64"]).max()
    assert np.abs(found - of["predictions_float64"]).max() <= 1e-5 * largest
    assert np.abs(found - of["predictions"]).max() <= 1e-4 * largest
    np.testing.assert_allclose(decoder.coef_.T, of["coef"], atol=1e-4 * np.abs(of["coef"]).max())
    fitted = RidgeDecoder(choose="per_target", alphas=of["alphas"].tolist(), cv=5).fit(
        train, of["Y_train"].astype(float)
    )
    assert np.abs(fitted.predict(test) - of["predictions"]).max() > 0.1 * largest, "an intercept is another model"


def test_true_targets_are_compared_by_label():
    """In another order they gave a score like any other."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 8))
    rows = {"stimulus_id": [f"s{row}" for row in range(20)]}
    shown = xr.DataArray(x, rows, ("stimulus_id", "voxel"))
    true = xr.DataArray(x @ rng.normal(size=(8, 3)), {**rows, "feature": [3, 5, 7]}, ("stimulus_id", "feature"))
    found = RidgeDecoder(1e-3).fit(shown, true)
    assert found.score(shown, true) > 0.999
    for wrong, words in (
        (true[::-1], "other `stimulus_id` along `stimulus_id` than in X"),
        (true[:, ::-1], "other labels along `feature` than in training"),
        (true.T, "rows along `stimulus_id`"),
        (true.rename(feature="token"), "as in training"),
    ):
        with pytest.raises(InputError, match=words):
            found.score(shown, wrong)
