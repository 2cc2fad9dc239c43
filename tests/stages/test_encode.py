"""Encoding models: equal to scikit-learn's ridge voxel by voxel, and true to what was planted in the voxels."""

import shutil

import nibabel
import numpy as np
import pytest
import yaml
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from typer.testing import CliRunner

from bdflow import random
from bdflow.cli.main import app
from bdflow.config import Config, parse
from bdflow.datasets.nsd import noise_ceiling
from bdflow.pipeline import Pipeline, stages_until
from bdflow.report.regions import _maps
from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.stores import Store
from bdflow.study import voxel_maps
from tests.conftest import SPACES, snapshot
from tests.support.parts import whole

SUBJECT = "subj01"
FLOC = ("faces", "words", "places", "bodies")


@pytest.fixture(scope="module")
def made(settings, tmp_path_factory) -> Config:
    """A study of 50 test and 300 training stimuli, and encoding models from every space by the command."""
    root = tmp_path_factory.mktemp("encode")
    options = {"n_shared": 50, "n_own": 300, "stimulus_size": 64, "trials_per_session": 350}
    simulate(root / "nsd", SimulateOptions(subjects=(SUBJECT,), **options))
    sections = {"subjects": [SUBJECT], "dataset": {"root": str(root / "nsd"), "sessions": 3}, "encode": {"stimuli": 40}}
    content = settings(root, **sections)
    (root / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    config = parse(content)
    Pipeline(config).run(tuple(stages_until("features")))
    before = snapshot(config.study)
    done = CliRunner().invoke(app, ["encode", str(root / "config.yaml")], catch_exceptions=False)
    assert done.output.split()[-3:] == [str(config.study / "encoding" / SUBJECT / space) for space in SPACES]
    after = snapshot(config.study)
    assert {name: after[name] for name in before} == before, "the stage touches no other store"
    return config


def model(config: Config, space: str) -> Store:
    return Store(config.study, f"encoding/{SUBJECT}/{space}")


def z_scored(config: Config, space: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Latents by the training mean and SD, and responses, of training and test stimuli, in float64.

    Latents are divided by the square root of their number, and turned to the axes they vary along: ridge is the same.
    """
    responses, targets = Store(config.study, f"responses/{SUBJECT}/averaged"), whole(config.study, f"targets/{space}")
    latent = targets.read("latent").astype(float)[targets.rows("nsd_id", responses.read("nsd_id"))]
    train = responses.read("split") != "test"
    latent = latent.reshape(len(latent), -1)
    latent = latent[:, latent[train].std(axis=0) > 0]
    latent = (latent - latent[train].mean(axis=0)) / latent[train].std(axis=0, ddof=1) / np.sqrt(latent.shape[1])
    axes = np.linalg.svd(latent[train], full_matrices=False)[2]
    response = responses.read("response").astype(float)
    return latent[train] @ axes.T, latent[~train] @ axes.T, response[train], response[~train]


@pytest.mark.parametrize("space", SPACES)
def test_scores_are_those_of_scikit_learns_ridge(made, space):
    train, test, response, truth = z_scored(made, space)
    store = model(made, space)
    alpha, found, correlation = (store.read(name) for name in ("alpha", "r2", "pearson_r"))
    for voxel in np.linspace(0, len(alpha) - 1, 12).astype(int):
        fitted = Ridge(alpha=float(alpha[voxel]), solver="cholesky").fit(train, response[:, voxel])
        predicted = fitted.predict(test)
        assert found[voxel] == pytest.approx(r2_score(truth[:, voxel], predicted), abs=2e-4)
        assert correlation[voxel] == pytest.approx(np.corrcoef(truth[:, voxel], predicted)[0, 1], abs=2e-4)


@pytest.mark.slow
def test_the_penalty_is_the_best_of_the_grid_when_stimuli_are_left_out_one_by_one(made):
    """Solved anew for each of the 40 stimuli and each penalty; the stimuli are those the stage draws."""
    train, _, response, _ = z_scored(made, "clip_text")
    rows = np.sort(random.generator(made.seed, "encoding held out", SUBJECT).choice(len(train), 40, replace=False))
    voxels = np.array([5, 200, 411])
    store = model(made, "clip_text")
    grid = np.array(sorted(made.encode.grid))
    predicted = np.zeros((len(grid), len(rows), len(voxels)))
    for at, row in enumerate(rows):
        x, y = np.delete(train, row, axis=0), np.delete(response[:, voxels], row, axis=0)
        power, axes = np.linalg.eigh((x - x.mean(axis=0)).T @ (x - x.mean(axis=0)))
        right = axes.T @ (x - x.mean(axis=0)).T @ (y - y.mean(axis=0))
        for number, alpha in enumerate(grid):
            weights = axes @ (right / (power + alpha)[:, None])
            predicted[number, at] = y.mean(axis=0) + (train[row] - x.mean(axis=0)) @ weights
    for i, voxel in enumerate(voxels):
        scores = np.array([r2_score(response[rows, voxel], of[:, i]) for of in predicted])
        assert store.read("held_out_r2")[voxel] == pytest.approx(scores.max(), abs=5e-4)
        assert store.read("alpha")[voxel] == pytest.approx(grid[scores.argmax()])


def test_voxels_are_predicted_from_what_was_planted_in_them(made):
    betas = Store(made.study, f"betas/{SUBJECT}")
    label = dict(zip(betas.read("roi").tolist(), betas.read("roi_label"), strict=True))
    early = label["prf-visualrois"] > 0
    category = np.any([label[f"floc-{name}"] > 0 for name in FLOC], axis=0) & ~early
    r2 = {space: model(made, space).read("r2") for space in SPACES}
    places = {"early": early, "category": category}
    median = {space: {name: np.median(r2[space][at]) for name, at in places.items()} for space in SPACES}
    assert median["vdvae"]["early"] > 0.08
    assert median["vdvae"]["early"] > median["vdvae"]["category"] + 0.08
    for space in ("clip_vision", "clip_text"):
        assert median[space]["category"] > median["vdvae"]["category"] + 0.05
    ceiling = noise_ceiling(betas.read("ncsnr"), 3) / 100
    best = np.max(list(r2.values()), axis=0)
    assert np.corrcoef(best, ceiling)[0, 1] > 0.6, "what is noise cannot be predicted"
    assert np.mean(best - ceiling) < 0


def test_maps_and_report_show_r2_voxel_by_voxel(made, tmp_path):
    pipeline = Pipeline(made)
    files = {file.name: file for file in pipeline.maps(tmp_path)}
    at = voxel_maps.positions(pipeline.context(), SUBJECT)
    for space in SPACES:
        image = nibabel.load(files[f"r2_{space}.nii.gz"])
        np.testing.assert_array_equal(np.asarray(image.dataobj)[at], model(made, space).read("r2"))
    shown = _maps(pipeline.context(), SUBJECT)
    assert [name for name in shown if name.startswith("R²")] == [f"R² from {space}" for space in SPACES]


def test_another_grid_makes_models_stale_and_nothing_else(made, tmp_path):
    content = yaml.safe_load(yaml.safe_dump(made.model_dump(mode="json"), sort_keys=False)) | {"encode": {"grid": [10]}}
    rows = {row.path: row.state.kind for row in Pipeline(parse(content)).status()}
    assert {path for path, kind in rows.items() if kind == "stale"} == {f"encoding/{SUBJECT}/{s}" for s in SPACES}


@pytest.mark.slow(kind="executors")
def test_two_workers_give_the_same_bytes(made, tmp_path):
    shutil.copytree(made.study, tmp_path / "study.zarr", ignore=shutil.ignore_patterns("encoding"))
    content = yaml.safe_load(yaml.safe_dump(made.model_dump(mode="json"), sort_keys=False))
    content |= {"study": str(tmp_path / "study.zarr"), "execution": {"encode": {"executor": "dask", "workers": 2}}}
    Pipeline(parse(content)).run(("encode",))
    ours, theirs = snapshot(made.study), snapshot(tmp_path / "study.zarr")
    chosen = [name for name in ours if name.startswith("encoding/")]
    assert len(chosen) > 50
    assert not [name for name in chosen if theirs[name] != ours[name]]
