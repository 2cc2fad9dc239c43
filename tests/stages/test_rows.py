"""Spaces that differ in rows, regions, session z-scoring and intercept, against scikit-learn on the betas."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from bdflow.config import parse
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline
from bdflow.regression import cross_validation, ridge
from bdflow.regression.grouping import Grouping
from bdflow.stores import Store
from bdflow.study import decoder
from bdflow.study.system import Streamed
from tests.conftest import SUBJECTS
from tests.support.parts import whole
from tests.support.regions import voxels_in

SUBJECT = SUBJECTS[0]
SPACES = {
    "averaged": {},
    "trials": {"rows": "trials"},
    "zscored": {"rows": "trials", "session_zscore": True},
    "early": {"rows": "trials", "regions": "V1 | V2"},
    "origin": {"rows": "trials", "intercept": False},
}


def sections(**more):
    spaces = {name: {"encoder": "clip_text", "ridge": {"alpha": 100, **of}} for name, of in SPACES.items()}
    return {"spaces": spaces, "painters": {}, "features": {"dtype": "float32"}, **more}


@pytest.fixture(scope="module")
def made(settings, tmp_path_factory) -> Pipeline:
    """Five spaces of the same latents, decoded from other rows each."""
    root = tmp_path_factory.mktemp("rows")
    pipeline = Pipeline(parse(settings(root, **sections())))
    pipeline.run(("ingest", "features", "regress"))
    return pipeline


def rows_of(study: Path, space: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training rows and averaged test stimuli, from the betas; and the stimulus of each."""
    of, betas, stimuli = SPACES[space], Store(study, f"betas/{SUBJECT}"), whole(study, "stimuli")
    beta, shown = betas.read("beta") / 300.0, betas.read("stimulus_id")
    if of.get("session_zscore"):
        for session in np.unique(betas.read("session")):
            at = betas.read("session") == session
            beta[at] = (beta[at] - beta[at].mean(axis=0)) / beta[at].std(axis=0)
    test = stimuli.read("stimulus_id")[stimuli.read("split") == "test"]
    if "regions" in of:
        beta = beta[:, voxels_in(betas, "prf-visualrois", "V1v", "V1d", "V2v", "V2d")]
    tested = np.stack([beta[shown == stimulus].mean(axis=0) for stimulus in test])
    train = np.isin(shown, test, invert=True)
    if of.get("rows") == "trials":
        return beta[train], shown[train], tested, test
    ids = np.unique(shown[train])
    return np.stack([beta[shown == stimulus].mean(axis=0) for stimulus in ids]), ids, tested, test


def reference(study: Path, space: str) -> np.ndarray:
    """What scikit-learn predicts for the test stimuli of SUBJECT, in float64."""
    x, ids, x_test, test = rows_of(study, space)
    targets = whole(study, f"targets/{space}")
    y = targets.read("latent").astype(float)[targets.rows("stimulus_id", ids)].reshape(len(ids), -1)
    scale = x.std(axis=0, ddof=1)
    x, x_test = (
        (x - x.mean(axis=0))[:, scale > 0] / scale[scale > 0],
        (x_test - x.mean(axis=0))[:, scale > 0] / scale[scale > 0],
    )
    model = Ridge(alpha=100, fit_intercept=SPACES[space].get("intercept", True)).fit(x, y)
    order = np.argsort(np.argsort(Store(study, f"predictions/{SUBJECT}/{space}").read("stimulus_id")))
    return model.predict(x_test)[np.argsort(test)][order]


@pytest.mark.parametrize("space", SPACES)
def test_predictions_are_those_of_scikit_learn(made, space):
    found = Store(made.config.study, f"predictions/{SUBJECT}/{space}").read("latent")
    expected = reference(Path(made.config.study), space).reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_spaces_differ_and_share_what_they_can(made):
    study = Path(made.config.study)
    latents = [Store(study, f"predictions/{SUBJECT}/{space}").read("latent") for space in SPACES]
    for i, a in enumerate(latents):
        assert not any(np.allclose(a, b) for b in latents[i + 1 :])
    assert {path.name for path in (study / f"responses/{SUBJECT}").iterdir() if path.is_dir()} == {
        "averaged",
        "trials",
        "trials_zscored",
    }
    assert len([path for path in (study / f"systems/{SUBJECT}").iterdir() if path.is_dir()]) == 5
    trials = Store(study, f"responses/{SUBJECT}/trials")
    split = trials.read("split")
    assert (trials.read("repeats")[split == "train"] == 1).all()
    assert (trials.read("repeats")[split == "test"] == 3).all()
    targets = whole(study, "targets/trials")
    decoders = Store(study, f"decoders/{SUBJECT}/trials")
    assert decoders.sizes["train_stimulus_id"] == (targets.read("split") == "train").sum() / 2, "once a stimulus"


def test_statistics_count_each_trial(made):
    """Means of training targets are over rows: a stimulus shown thrice counts thrice."""
    study = Path(made.config.study)
    _, ids, _, _ = rows_of(study, "trials")
    targets = whole(study, "targets/trials")
    y = targets.read("latent").astype(float)[targets.rows("stimulus_id", ids)]
    store = Store(study, f"predictions/{SUBJECT}/trials")
    np.testing.assert_allclose(store.read("train_mean"), y.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(store.read("train_std"), y.std(axis=0), atol=1e-5)


@pytest.mark.parametrize("space", ["trials", "early", "origin"])
def test_a_pattern_decodes_as_the_test_stimuli_do(made, space):
    responses = decoder.responses_of(made.context(), SUBJECT, space)
    patterns = responses.read("response")[responses.read("split") == "test"]
    z_scored = decoder.z_scored_patterns(responses, patterns)
    found = decoder.decode(made.context(), SUBJECT, z_scored, space)
    expected = Store(made.config.study, f"predictions/{SUBJECT}/{space}").read("latent")
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("memory", [720, pytest.param(None, marks=pytest.mark.slow(kind="long checks"))])
def test_more_trials_than_voxels_solve_the_voxels_system_whole_or_in_parts(
    made, settings, tmp_path, monkeypatch, memory
):
    """60 training trials a subject against regions of fewer voxels; in parts, rows are read block by block."""
    monkeypatch.setattr(ridge, "dual_is_cheaper", lambda n, p, m: False)
    streamed: list[int] = []
    solve = Streamed.hat_matrices
    monkeypatch.setattr(Streamed, "hat_matrices", lambda self, *a: streamed.append(1) or solve(self, *a))
    if memory:
        monkeypatch.setattr("bdflow.regression.memory_budget._whole", lambda extent, voxels: 10**12)
    where = {"regress": {"memory": f"{memory} MiB"}} if memory else {}
    pipeline = Pipeline(parse(settings(tmp_path, **sections(execution=where))))
    pipeline.run(("ingest", "features", "regress"))
    assert "other_voxel" in Store(pipeline.config.study, f"systems/{SUBJECT}/trials").sizes
    assert bool(streamed) == bool(memory)
    for space in SPACES:
        a, b = (Store(of.config.study, f"predictions/{SUBJECT}/{space}").read("latent") for of in (made, pipeline))
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(a).max())


@pytest.mark.parametrize("method", ["leave_one_out", "k_fold"])
def test_all_trials_of_a_stimulus_are_left_out_together(made, settings, tmp_path, method):
    """Cross-validated predictions are those of a model that was fitted without any trial of the stimulus."""
    spaces = {"trials": {"encoder": "clip_text", "ridge": {"rows": "trials", "alpha": 100}}}
    validation = {"method": method, "folds": 5, "stimuli": 6}
    more = {"spaces": spaces, "ridge": {"standardise": "held_out", "validation": validation}}
    pipeline = Pipeline(parse(settings(tmp_path, **sections() | more)))
    pipeline.run(("ingest", "features", "regress"))
    study = Path(pipeline.config.study)
    store, targets = Store(study, f"validation/{SUBJECT}/trials"), whole(study, "targets/trials")
    known = store.read("train_stimulus_id")
    y = targets.read("latent").astype(float)[targets.rows("stimulus_id", known)].reshape(len(known), -1)
    predicted = store.read("matrix")[0] @ y
    x, ids, _, _ = rows_of(study, "trials")
    x = (x - x.mean(axis=0)) / np.where(x.std(axis=0) > 0, x.std(axis=0, ddof=1), 1)
    of_row = y[[known.tolist().index(stimulus) for stimulus in ids]]
    for row, stimulus in enumerate(store.read("held_out_stimulus_id")):
        own = store.read("matrix")[0, row][known == stimulus]
        assert abs(own).max() < 1e-6, "nothing of itself"
        if method == "leave_one_out":
            kept = ids != stimulus
            model = Ridge(alpha=100).fit(x[kept], of_row[kept])
            expected = model.predict(x[~kept]).mean(axis=0)
            np.testing.assert_allclose(predicted[row], expected, atol=2e-4 * np.abs(expected).max())


def test_leaving_groups_of_one_out_is_leave_one_out():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(30, 50))
    z -= z.mean(axis=0)
    for intercept in (True, False):
        rows = np.array([0, 4, 29])
        alone = cross_validation.leave_one_out(ridge.Dual(z @ z.T), rows, [10.0], intercept)
        groups = cross_validation.leave_group_out(
            ridge.Dual(z @ z.T), [rows[i : i + 1] for i in range(3)], [10.0], intercept
        )
        np.testing.assert_allclose(next(alone), next(groups), atol=1e-12)
    with pytest.raises(ValueError, match="Nothing is left"):
        next(cross_validation.leave_group_out(ridge.Dual(z @ z.T), [np.arange(30)], [1.0]))


def test_columns_of_a_stimulus_are_added_up():
    rng = np.random.default_rng(1)
    ids = np.repeat([7, 3, 9, 1], [3, 1, 2, 3])
    grouping, matrix = Grouping(ids), rng.normal(size=(4, 9))
    expected = np.stack([matrix[:, ids == stimulus].sum(axis=1) for stimulus in (7, 3, 9, 1)], axis=1)
    np.testing.assert_allclose(grouping.sum_columns(matrix), expected)
    assert grouping.ids.tolist() == [7, 3, 9, 1]
    assert Grouping(np.array([4, 2])).sum_columns(matrix[:, :2]) is not None
    with pytest.raises(ValueError, match="beside each other"):
        Grouping(np.array([1, 2, 1])).starts


@pytest.mark.parametrize(
    ("regions", "words"), [("V1 - V2", "negative weight"), ("V99", "V99"), ("FFA-1 & V1", "no voxel")]
)
def test_regions_that_cannot_be_decoded_from_are_named(made, settings, tmp_path, regions, words):
    spaces = {"a": {"encoder": "clip_text", "ridge": {"regions": regions}}}
    pipeline = Pipeline(parse(settings(tmp_path, **sections() | {"spaces": spaces})))
    with pytest.raises(InputError, match=words):
        pipeline.run(("ingest", "features", "regress"))
    assert not (tmp_path / "study.zarr/systems").exists()
