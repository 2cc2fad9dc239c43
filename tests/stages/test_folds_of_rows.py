"""`ridge.validation.method: k_fold_rows`: penalties as RidgeCV chooses them, by runs of rows and squared errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from bdflow.config import Config, parse
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline, stages_until
from bdflow.regression import cross_validation, ridge, streaming
from bdflow.regression.grouping import Grouping
from bdflow.stages.regress.workers import contiguous_folds
from bdflow.stores import Store
from bdflow.study.designs import design_of
from tests.support.parts import whole

GRID = [0.1, 30.0, 1000.0]
SUBJECT = "subj01"


def configured(settings: Any, root: Path, rows: str, intercept: bool, **validation: Any) -> Config:
    spaces = {"vdvae": {"encoder": "vdvae"}}
    how = {"rows": rows, "intercept": intercept, "choose": "per_target", "grid": GRID, "standardise": "none"}
    how["validation"] = {"method": "k_fold_rows", "folds": 5, **validation}
    if rows == "trials":
        how["regions"] = "V1 | V2"  # fewer voxels than rows
    return parse(settings(root, subjects=[SUBJECT], spaces=spaces, painters={}, ridge=how))


def as_presented(config: Config, rows: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z-scored training rows in the order of presentation, z-scored test rows, and the training rows' targets."""
    responses, targets = Store(config.study, f"responses/{SUBJECT}/{rows}"), whole(config.study, "targets/vdvae")
    used = Store(config.study, f"systems/{SUBJECT}/{design_of(config, 'vdvae').name}").read("used") == 1
    x = responses.read("response").astype(float)[:, used]
    train = np.flatnonzero(responses.read("split") == "train")
    train = train[np.argsort(responses.read("trial")[train])]
    test = np.flatnonzero(responses.read("split") == "test")
    mean, scale = x[train].mean(axis=0), x[train].std(axis=0, ddof=1)
    y = targets.read("latent").astype(float)[targets.rows("stimulus_id", responses.read("stimulus_id")[train])]
    return (x[train] - mean) / scale, (x[test] - mean) / scale, y


@pytest.mark.parametrize(("rows", "intercept"), [("trials", False), ("trials", True), ("averaged", False)])
def test_scores_penalties_and_predictions_are_those_of_folds_over_rows(
    settings: Any, tmp_path: Path, rows: str, intercept: bool
) -> None:
    config = configured(settings, tmp_path, rows, intercept)
    Pipeline(config).run(tuple(stages_until("regress")))
    x, x_test, y = as_presented(config, rows)
    assert (len(x) > x.shape[1]) == (rows == "trials")
    expected = np.zeros((len(GRID), y.shape[1]))
    for kept, left_out in KFold(5).split(x):
        for number, alpha in enumerate(GRID):
            model = Ridge(alpha=alpha, fit_intercept=intercept).fit(x[kept], y[kept])
            expected[number] -= np.square(model.predict(x[left_out]) - y[left_out]).mean(axis=0) / 5
    selection = Store(config.study, f"selection/{SUBJECT}/vdvae")
    np.testing.assert_allclose(selection.read("score"), expected, rtol=2e-3, atol=1e-5)
    best = np.array(GRID)[expected.argmax(axis=0)]
    second, first = np.sort(expected, axis=0)[-2:]
    clear = (first - second) > 5e-3 * np.abs(first)
    assert clear.mean() > 0.5
    assert len(set(best[clear])) > 1
    np.testing.assert_array_equal(selection.read("best_alpha")[clear], best[clear].astype("f4"))
    predictions = Store(config.study, f"predictions/{SUBJECT}/vdvae")
    alphas, found = predictions.read("alpha"), predictions.read("latent")
    assert set(alphas.tolist()) <= set(np.float32(GRID).tolist())
    for alpha in np.unique(alphas):
        wanted = Ridge(alpha=alpha, fit_intercept=intercept).fit(x, y[:, alphas == alpha]).predict(x_test)
        assert np.abs(found[:, alphas == alpha] - wanted).max() < 2e-3 * np.abs(y).max()


def test_trials_of_a_stimulus_in_several_folds_choose_too_small_a_penalty() -> None:
    """The leak that the report names. Patterns of a stimulus repeat, and say nothing of its target: the best penalty is
    the largest. Where a stimulus's other trials are in the training set, the smallest one wins.
    """
    rng = np.random.default_rng(0)
    grouping, alphas = Grouping(np.repeat(np.arange(40), 3)), (1.0, 1e2, 1e4, 1e6)
    x = np.repeat(rng.normal(size=(40, 100)), 3, axis=0) + 0.3 * rng.normal(size=(120, 100))
    x -= x.mean(axis=0)
    y = rng.normal(size=(40, 200))
    system, found = ridge.Primal(x), {}
    for name, fold in {
        "rows": contiguous_folds(rng.permutation(120), 5),
        "stimuli": np.repeat(contiguous_folds(np.arange(40), 5), 3),
    }.items():
        errors = cross_validation.k_fold_errors(system, alphas, fold, grouping)
        found[name] = [np.square(error @ y).sum(axis=0).mean() for error in errors]
    assert np.argmin(found["rows"]) == 0
    assert found["rows"][0] < 0.5 * found["rows"][-1]
    assert np.argmin(found["stimuli"]) == len(alphas) - 1


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("repeats", [1, 3])
def test_errors_have_the_sums_of_squares_of_predictions(repeats: int, intercept: bool) -> None:
    """Dual and primal; more rows than stimuli (a triangular factor) and as many; a stimulus in one fold alone."""
    rng = np.random.default_rng(0)
    stimuli, voxels = 12, 7
    grouping = Grouping(np.repeat(np.arange(stimuli), repeats))
    n = stimuli * repeats
    x, y = rng.normal(size=(n, voxels)), rng.normal(3, 1, size=(stimuli, 5))
    x -= x.mean(axis=0)
    order = rng.permutation(n)
    fold = contiguous_folds(order, 5)
    assert sorted(np.bincount(fold).tolist()) == sorted(len(part) for part in np.array_split(order, 5))
    each = y[grouping.row_ids]
    for system in (ridge.Primal(x, intercept=intercept), ridge.Dual(x @ x.T, intercept=intercept)):
        for alpha, error in zip(
            (0.5, 20.0), cross_validation.k_fold_errors(system, (0.5, 20.0), fold, grouping, intercept), strict=True
        ):
            assert error.shape == (min(n, stimuli), stimuli)
            expected = np.zeros(5)
            for number in range(5):
                kept = fold != number
                model = Ridge(alpha=alpha, fit_intercept=intercept).fit(x[kept], each[kept])
                expected += np.square(model.predict(x[~kept]) - each[~kept]).mean(axis=0) / 5
            np.testing.assert_allclose(np.square(error @ y).sum(axis=0), expected, rtol=1e-9)
            found = streaming.error_block([error.astype("f4")], [y[:4].astype("f4"), y[4:].astype("f2")])
            np.testing.assert_allclose(found[0], expected, rtol=5e-3)
    with pytest.raises(ValueError, match="found 4 training targets, expected 12"):
        streaming.error_block([error], [y[:4]])


def test_a_score_is_exact_where_targets_lie_far_from_zero() -> None:
    """Errors are small differences of large values: the mean is taken out first."""
    rng = np.random.default_rng(1)
    grouping = Grouping(np.repeat(np.arange(30), 2))
    x = rng.normal(size=(60, 8))
    x -= x.mean(axis=0)
    y = (1000 + x[::2, :1] * 0.5 + rng.normal(0, 0.1, (30, 4))).astype("f4")
    fold = contiguous_folds(rng.permutation(60), 4)
    (error,) = cross_validation.k_fold_errors(ridge.Primal(x), [1.0], fold, grouping)
    expected = np.square(error @ y.astype(float)).sum(axis=0)
    found = streaming.error_block([error.astype("f4")], [y])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_zeros_that_rows_begin_with_are_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A triangular factor costs half; of one without zeros every row is multiplied."""
    multiplied = []

    class Watched(np.ndarray):
        def __matmul__(self, other: Any) -> Any:
            multiplied.append(self.shape)
            return np.asarray(self) @ np.asarray(other)

    monkeypatch.setattr(streaming, "ROWS_AT_ONCE", 4)
    rng = np.random.default_rng(2)
    full, y = rng.normal(size=(10, 10)).astype("f4"), rng.normal(5, 1, size=(10, 3)).astype("f4")
    factor, none = np.triu(full), np.zeros_like(full)
    found = streaming.error_block([m.view(Watched) for m in (factor, full, none)], [y[:7], y[7:]])
    for matrix, errors in zip((factor, full, none), found, strict=True):
        np.testing.assert_allclose(errors, np.square(matrix.astype(float) @ y).sum(axis=0), rtol=1e-4)
    assert multiplied[:3] == [(4, 10), (4, 6), (2, 2)]
    assert multiplied[3:6] == [(4, 10), (4, 10), (2, 10)]


def test_held_out_statistics_need_stimuli_left_out_as_a_whole(settings: Any, tmp_path: Path) -> None:
    config = configured(settings, tmp_path, "trials", True).model_dump(mode="json")
    config["ridge"]["standardise"] = "held_out"
    with pytest.raises(InputError, match=r"found k_fold_rows, and standardise: held_out of the space vdvae"):
        parse(config)


@pytest.mark.parametrize("grid", ["small", "large"])
def test_scores_and_penalties_are_those_of_the_authors_script(grid: str) -> None:
    """Takagi & Nishimoto's own ridge (himalaya's RidgeCV) on its rows, sorted by stimulus as a study holds them; in
    float32, by the functions of the stage.
    """
    stored = np.load(Path(__file__).parents[1] / "reference/takagi_ridge_a.npz")
    of = {name.removeprefix(f"{grid}."): stored[name] for name in stored.files if name.startswith(f"{grid}.")}
    by_stimulus = np.argsort(of["train_image"], kind="stable")
    grouping = Grouping(of["train_image"][by_stimulus])
    x = ((of["X_train"] - of["scaler_mean"]) / of["scaler_scale"])[by_stimulus].astype("f4")
    y = of["Y_train"][by_stimulus][grouping.starts]
    np.testing.assert_array_equal(y[np.repeat(np.arange(len(y)), grouping.counts)], of["Y_train"][by_stimulus])
    fold = contiguous_folds(np.argsort(by_stimulus), 5)
    presented = np.empty_like(fold)
    presented[by_stimulus] = fold
    assert (np.diff(presented) >= 0).all(), "runs of trials as they were presented"
    alphas, wanted = of["alphas"].tolist(), of["cv_scores_float64"]
    system = ridge.Primal(x, intercept=False) if x.shape[0] > x.shape[1] else ridge.Dual(x @ x.T, intercept=False)
    errors = cross_validation.k_fold_errors(system, alphas, fold, grouping, intercept=False)
    scores = -streaming.error_block(list(errors), [y])
    np.testing.assert_allclose(scores, wanted, rtol=1e-3)
    largest = len(alphas) - 1 - scores[::-1].argmax(axis=0)
    np.testing.assert_array_equal(largest, of["best_index"])
