"""Encoding models: equal to scikit-learn's ridge voxel by voxel, true to what was planted in the voxels, and at chance
where nothing was."""

import shutil

import nibabel
import numpy as np
import pytest
import yaml
from scipy.stats import false_discovery_control
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from typer.testing import CliRunner

from bdflow import random
from bdflow.cli.main import app
from bdflow.config import Config, parse
from bdflow.datasets.ceilings import noise_ceiling
from bdflow.pipeline import STAGES, Pipeline, stages_until
from bdflow.report import encoding
from bdflow.report.regions import _maps
from bdflow.stores import Store
from bdflow.study import encoding_models, region_patterns, voxel_maps
from tests.conftest import SPACES, snapshot
from tests.support.parts import whole
from tests.support.regions import voxels_in

SUBJECT = "subj01"
FLOC = ("faces", "words", "places", "bodies")
SETS = {"early_and_higher": ["vdvae", "clip_text"]}


@pytest.fixture(scope="module")
def made(settings, tmp_path_factory, nsd_of_350) -> Config:
    """A study of 50 test and 300 training stimuli, and encoding models from every space and a set, by the command."""
    root = tmp_path_factory.mktemp("encode")
    encode = {"stimuli": 40, "sets": SETS, "share_steps": 2}
    sections = {"subjects": [SUBJECT], "dataset": {"root": str(nsd_of_350), "sessions": 3}, "encode": encode}
    content = settings(root, **sections)
    (root / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    config = parse(content)
    Pipeline(config).run(tuple(stages_until("features")))
    before = snapshot(config.study)
    done = CliRunner().invoke(app, ["encode", str(root / "config.yaml")], catch_exceptions=False)
    made = [config.study / "encoding" / SUBJECT / space for space in SPACES]
    made += [config.study / "encoding_sets" / SUBJECT / name for name in SETS]
    assert done.output.split()[-4:] == [str(path) for path in made]
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
    latent = targets.read("latent").astype(float)[targets.rows("stimulus_id", responses.read("stimulus_id"))]
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


@pytest.mark.slow(kind="long checks")
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


def areas(config: Config) -> dict[str, np.ndarray]:
    """(voxels,) bool of early areas, and of category areas beyond them."""
    betas = Store(config.study, f"betas/{SUBJECT}")
    early = voxels_in(betas, "prf-visualrois")
    return {"early": early, "category": np.any([voxels_in(betas, f"floc-{name}") for name in FLOC], axis=0) & ~early}


def test_voxels_are_predicted_from_what_was_planted_in_them(made):
    betas, places = Store(made.study, f"betas/{SUBJECT}"), areas(made)
    r2 = {space: model(made, space).read("r2") for space in SPACES}
    median = {space: {name: np.median(r2[space][at]) for name, at in places.items()} for space in SPACES}
    assert median["vdvae"]["early"] > 0.08
    assert median["vdvae"]["early"] > median["vdvae"]["category"] + 0.08
    for space in ("clip_vision", "clip_text"):
        assert median[space]["category"] > median["vdvae"]["category"] + 0.05
    ceiling = noise_ceiling(betas.read("ncsnr"), 3) / 100
    best = np.max(list(r2.values()), axis=0)
    assert np.corrcoef(best, ceiling)[0, 1] > 0.6, "what is noise cannot be predicted"
    assert np.mean(best - ceiling) < 0


def test_a_set_is_scikit_learns_ridge_on_its_spaces_side_by_side(made):
    """With the shares and penalty that each voxel chose; and the other space alone is the model of that space."""
    store = Store(made.study, f"encoding_sets/{SUBJECT}/early_and_higher")
    bands = SETS["early_and_higher"]
    assert store.read("band").tolist() == bands
    share, alpha, r2, r = (store.read(name) for name in ("share", "alpha", "r2", "pearson_r"))
    np.testing.assert_allclose(share.sum(axis=0), 1)
    spaces = [z_scored(made, space) for space in bands]
    response, truth = spaces[0][2:]
    for voxel in np.linspace(0, len(alpha) - 1, 12).astype(int):
        scale = np.sqrt(share[:, voxel])
        train, test = (np.hstack([of[part] * s for of, s in zip(spaces, scale, strict=True)]) for part in (0, 1))
        predicted = Ridge(alpha=float(alpha[voxel]), solver="cholesky").fit(train, response[:, voxel]).predict(test)
        assert r2[voxel] == pytest.approx(r2_score(truth[:, voxel], predicted), abs=2e-4)
        assert r[voxel] == pytest.approx(np.corrcoef(truth[:, voxel], predicted)[0, 1], abs=2e-4)
    unique = store.read("unique_r2")
    for band, other in ((0, 1), (1, 0)):
        np.testing.assert_allclose(unique[band], r2 - model(made, bands[other]).read("r2"), atol=2e-4)


def test_unique_variance_lies_where_it_was_planted(made):
    """Of VDVAE latents in early areas, of CLIP's in category areas; and so are the shares that voxels choose."""
    store = Store(made.study, f"encoding_sets/{SUBJECT}/early_and_higher")
    unique, share = store.read("unique_r2"), store.read("share")
    for (place, at), own in zip(areas(made).items(), (0, 1), strict=True):
        mean = unique[:, at].mean(axis=1)
        assert mean[own] > 0.03, place
        assert mean[1 - own] < 0.01, place
        assert share[own, at].mean() > 0.65, place


class Noise:
    """Responses of which nothing is left but noise, the same ids and voxels."""

    def __init__(self, store: Store) -> None:
        self.store = store
        shape = store.arrays["response"].shape
        self.response = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def read(self, name: str, region: dict[str, slice] | None = None) -> np.ndarray:
        if name == "response":
            return self.response[:, (region or {}).get("voxel", slice(None))]
        return self.store.read(name, region)


def test_in_noise_five_percent_of_voxels_pass_before_the_false_discovery_rate_and_few_after(made, tmp_path):
    """The stage's own worker on responses of noise. Binomial bounds of four SD."""
    shutil.copytree(made.study, tmp_path / "study.zarr", ignore=shutil.ignore_patterns("encoding*"))
    config = parse(made.model_dump(mode="json") | {"study": str(tmp_path / "study.zarr")})
    context = Pipeline(config).context()
    (step,) = STAGES["encode"].steps(context)
    work = step.start()
    encoder = work.make_worker()
    encoder.responses = {SUBJECT: Noise(encoder.responses[SUBJECT])}
    for task, key in ((work.tasks[0], step.fills[0]), (work.tasks[-1], step.fills[-1])):
        encoder(task)
        p = Store(config.study, key).read("p")
        assert len(p) > 800
        assert abs((p < 0.05).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / len(p)), key
        assert encoding_models.passes(p).sum() <= 2, key


def test_maps_and_report_show_r2_voxel_by_voxel(made, tmp_path):
    pipeline = Pipeline(made)
    files = {file.name: file for file in pipeline.maps(tmp_path)}
    at = voxel_maps.positions(pipeline.context(), SUBJECT)
    for space in SPACES:
        image = nibabel.load(files[f"r2_{space}.nii.gz"])
        np.testing.assert_array_equal(np.asarray(image.dataobj)[at], model(made, space).read("r2"))
    found = {name: np.asarray(nibabel.load(file).dataobj)[at] for name, file in files.items()}
    store = Store(made.study, f"encoding_sets/{SUBJECT}/early_and_higher")
    for name, array in (("share", "share"), ("unique", "unique_r2")):
        for band, values in zip(SETS["early_and_higher"], store.read(array), strict=True):
            np.testing.assert_array_equal(found[f"{name}_early_and_higher-{band}.nii.gz"], values)
    for of in (*SPACES, "early_and_higher"):
        p = store.read("p") if of in SETS else model(made, of).read("p")
        q = false_discovery_control(p, method="bh")
        np.testing.assert_array_equal(found[f"p_{of}.nii.gz"], p)
        np.testing.assert_allclose(found[f"q_{of}.nii.gz"], q, rtol=1e-6)
        np.testing.assert_array_equal(found[f"passes_{of}.nii.gz"], q < 0.05)
    shown = _maps(pipeline.context(), SUBJECT)
    assert [name for name in shown if name.startswith("R²")] == [
        f"R² from {of}" for of in (*SPACES, "early_and_higher")
    ]
    assert [name for name in shown if name.startswith("unique")] == [
        f"unique R² of {band} in early_and_higher" for band in SETS["early_and_higher"]
    ]
    r = shown["r from vdvae, where it passes"]
    np.testing.assert_array_equal(np.isfinite(r), found["passes_vdvae.nii.gz"] == 1)


def test_the_report_says_by_region_how_many_voxels_pass(made):
    """In the columns of early and of category areas, and over all voxels."""
    context = Pipeline(made).context()
    (table,) = encoding.tables(context)
    assert table.columns[:3] == ["model", "all voxels", "V1"]
    ((subject, rows),) = table.groups
    assert subject == SUBJECT
    assert [row.cells[0] for row in rows] == [*SPACES, *SETS]
    atlas = region_patterns.atlas(context, SUBJECT, {})
    for row in rows:
        at = f"encoding_sets/{SUBJECT}/{row.cells[0]}" if row.cells[0] in SETS else f"encoding/{SUBJECT}/{row.cells[0]}"
        p, r = (Store(made.study, at).read(name) for name in ("p", "pearson_r"))
        passed = false_discovery_control(p, method="bh") < 0.05
        for name, cell in zip(table.columns[1:], row.cells[1:], strict=True):
            place = np.ones(len(p), bool) if name == "all voxels" else atlas.pattern(name) > 0
            share, median = cell
            assert share == f"{passed[place].mean():.0%} of {place.sum():,}"
            assert median == (f"r {np.median(r[passed & place]):.2f}" if passed[place].any() else "")
    assert set(table.columns[2:]) <= {*encoding.AREAS}


def test_the_run_says_how_many_voxels_pass(made, caplog):
    with caplog.at_level("INFO", logger="bdflow"):
        paths = Pipeline(made).encoding_models()
    lines = [record.getMessage() for record in caplog.records if "pass" in record.getMessage()]
    assert len(lines) == len(paths) == len(SPACES) + len(SETS)
    p, r = (model(made, "vdvae").read(name) for name in ("p", "pearson_r"))
    passed = false_discovery_control(p, method="bh") < 0.05
    assert lines[0].startswith(f"encoding/{SUBJECT}/vdvae: {passed.sum():,} of {len(p):,} voxels pass")
    assert lines[0].endswith(f"median r {np.median(r[passed]):.3f}")


def test_another_grid_makes_models_stale_and_nothing_else(made, tmp_path):
    alone = {f"encoding/{SUBJECT}/{s}" for s in SPACES}
    sets = {f"encoding_sets/{SUBJECT}/{name}" for name in SETS}
    for change, expected in (
        ({"grid": [10]}, alone | sets),
        ({"share_steps": 3}, sets),
        ({"sets": {"early_and_higher": ["vdvae", "clip_vision"]}}, sets),
        ({"sets": SETS | {"more": ["clip_text", "clip_vision"]}}, set()),
    ):
        content = made.model_dump(mode="json")
        content["encode"] |= change
        rows = {row.path: row.state.kind for row in Pipeline(parse(content)).status()}
        assert {path for path, kind in rows.items() if kind == "stale"} == expected


@pytest.mark.slow(kind="executors")
def test_two_workers_give_the_same_bytes(made, tmp_path):
    shutil.copytree(made.study, tmp_path / "study.zarr", ignore=shutil.ignore_patterns("encoding*"))
    content = yaml.safe_load(yaml.safe_dump(made.model_dump(mode="json"), sort_keys=False))
    content |= {"study": str(tmp_path / "study.zarr"), "execution": {"encode": {"executor": "dask", "workers": 2}}}
    Pipeline(parse(content)).run(("encode",))
    ours, theirs = snapshot(made.study), snapshot(tmp_path / "study.zarr")
    chosen = [name for name in ours if name.startswith(("encoding/", "encoding_sets/"))]
    assert len(chosen) > 50
    assert not [name for name in chosen if theirs[name] != ours[name]]
