"""The stage `regress` beyond the paper's settings: chosen penalties, weights, panels, budgets, any pattern."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray
import yaml
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from bdflow.cli.main import app
from bdflow.config import Config, parse
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline, stages_until
from bdflow.regression import out_of_core, ridge, streaming
from bdflow.regression.memory_budget import BASE, MIB, Extent, plan
from bdflow.report import decoding
from bdflow.stores import ArraySpec, NotReady, Provenance, Store, StoreSpec, Study
from bdflow.study import decoder
from bdflow.study.designs import design_of
from bdflow.study.parts import Joined
from bdflow.study.system import Solver
from bdflow.study.target_reader import Columns, ahead
from tests.conftest import SPACES, SUBJECTS, execution, snapshot
from tests.support.parts import whole

SUBJECT = SUBJECTS[0]
GRID = (1.0, 100.0, 3000.0)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory, settings) -> Path:
    """A study with responses and targets, to be copied."""
    root = tmp_path_factory.mktemp("upstream")
    Pipeline(parse(settings(root))).run(tuple(stages_until("features")))
    return root


@pytest.fixture
def regressed(tmp_path, upstream, settings):
    """Run the stage with other settings on a copy of that study."""

    def run(regress=None, reconstruct=None, memory=None, executor="serial", root=tmp_path, **sections) -> Config:
        if not (root / "study.zarr").exists():
            shutil.copytree(upstream / "study.zarr", root / "study.zarr")
        content = settings(root, **sections)
        ridge = dict(regress or {}) | (reconstruct or {})
        kept, alpha = ridge.pop("weights", ()), ridge.pop("alpha", {})
        for space, of in content["spaces"].items():
            of["ridge"] = {"alpha": alpha.get(space, 300), "weights": space in kept}
        content["ridge"] = ridge
        content["execution"] = execution(executor)
        content["execution"]["regress"]["memory"] = memory
        config = parse(content)
        Pipeline(config).run(("regress",))
        return config

    return run


def xy(study: Path, space: str, subject: str = SUBJECT) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """z-scored responses and latents in float64, training and test."""
    responses, targets = Store(study, f"responses/{subject}/averaged"), whole(study, f"targets/{space}")
    test = responses.read("split") == "test"
    x = responses.read("response").astype("f8")[:, responses.read("valid") == 1]
    z, z_test, _, _ = ridge.z_score(x[~test], x[test])
    y = targets.read("latent").astype("f8")[targets.rows("stimulus_id", responses.read("stimulus_id"))]
    y = y.reshape(len(y), -1)
    return z, z_test, y[~test], y[test]


def held_out(study: Path, subject: str = SUBJECT) -> np.ndarray:
    store = Store(study, f"validation/{subject}/averaged")
    return np.sort(store.rows("train_stimulus_id", store.read("held_out_stimulus_id")))


def left_out_scores(z, y, rows, alpha, fold=None) -> np.ndarray:
    predicted = np.empty((len(rows), y.shape[1]))
    for i, row in enumerate(rows):
        kept = np.flatnonzero(np.arange(len(z)) != row if fold is None else fold != fold[row])
        predicted[i] = Ridge(alpha=alpha).fit(z[kept], y[kept]).predict(z[[row]])[0]
    return r2_score(y[rows], predicted, multioutput="raw_values")


def test_a_penalty_for_each_space_is_the_one_scikit_learn_would_choose(regressed):
    validation = {"stimuli": 12, "columns": 30}
    config = regressed({"choose": "per_space", "grid": GRID, "validation": validation})
    decoder = Store(config.study, f"decoders/{SUBJECT}/averaged")
    for space, chosen in zip(decoder.read("space").tolist(), decoder.read("space_alpha"), strict=True):
        store = Store(config.study, f"selection/{SUBJECT}/{space}")
        scores = store.read("score").reshape(len(GRID), -1)
        drawn = np.flatnonzero(np.isfinite(scores[0]))
        assert 25 <= len(drawn) <= 30, "30 drawn, a few of them constant"
        z, z_test, y, _ = xy(config.study, space)
        rows = held_out(config.study)
        assert len(rows) == 12
        expected = np.array([left_out_scores(z, y[:, drawn], rows, alpha) for alpha in GRID])
        np.testing.assert_allclose(scores[:, drawn], expected, rtol=2e-3, atol=2e-3)
        assert chosen == GRID[expected.mean(1).argmax()]
        predictions = Store(config.study, f"predictions/{SUBJECT}/{space}")
        np.testing.assert_array_equal(predictions.read("alpha"), np.float32(chosen))
        reference = Ridge(alpha=chosen).fit(z, y).predict(z_test)
        found = predictions.read("latent").reshape(len(z_test), -1)
        np.testing.assert_allclose(found, reference, atol=1e-3 * reference.std())
    assert set(decoder.read("alpha")) == set(decoder.read("space_alpha"))
    context = Pipeline(config).context()
    wanted = [path for path in decoding.paths(context) if path.startswith(("selection/", "decoders/"))]
    plots = decoding.alpha_plots(context, {path: context.ready(path) for path in wanted})
    assert len(plots) == len(SPACES)
    for space, plot in zip(SPACES, plots, strict=True):
        assert plot.svg.count('class="mark"') == len(SUBJECTS)
        for scores in context.ready(f"selection/{SUBJECT}/{space}").read("score").reshape(len(GRID), -1):
            assert f"{np.nanmean(scores, dtype=float):.3f}" in plot.svg


def test_each_latent_may_have_a_penalty_of_its_own(regressed):
    validation = {"method": "k_fold", "folds": 4, "stimuli": 100}
    config = regressed({"choose": "per_target", "grid": GRID, "validation": validation})
    assert np.isnan(Store(config.study, f"decoders/{SUBJECT}/averaged").read("space_alpha")).all()
    used = set()
    for space in SPACES:
        selection = Store(config.study, f"selection/{SUBJECT}/{space}")
        predictions = Store(config.study, f"predictions/{SUBJECT}/{space}")
        scores, best = selection.read("score"), selection.read("best_alpha")
        known = np.isfinite(scores).all(0)
        np.testing.assert_array_equal(best[known], np.array(GRID)[scores.argmax(0)][known])
        alphas = predictions.read("alpha").ravel()
        np.testing.assert_array_equal(alphas[known.ravel()], best[known])
        z, z_test, y, _ = xy(config.study, space)
        assert len(held_out(config.study)) == len(z), "all 20 there are"
        for alpha in np.unique(alphas):
            reference = Ridge(alpha=alpha).fit(z, y[:, alphas == alpha]).predict(z_test)
            found = predictions.read("latent").reshape(len(z_test), -1)[:, alphas == alpha]
            np.testing.assert_allclose(found, reference, atol=2e-3 * y.std())
        used |= set(alphas.tolist())
    assert len(used) > 1, "one penalty for all latents would show nothing"


def test_held_out_statistics_make_a_prediction_independent_of_the_other_test_stimuli(regressed):
    config = regressed({"validation": {"stimuli": 100}}, {"standardise": "held_out"})
    for space in SPACES:
        store = Store(config.study, f"predictions/{SUBJECT}/{space}")
        z, _, y, _ = xy(config.study, space)
        alone = np.stack(
            [Ridge(alpha=300).fit(np.delete(z, i, 0), np.delete(y, i, 0)).predict(z[[i]])[0] for i in range(len(z))]
        )
        np.testing.assert_allclose(store.read("held_out_mean").ravel(), alone.mean(0), atol=1e-3 * y.std())
        np.testing.assert_allclose(store.read("held_out_std").ravel(), alone.std(0), atol=1e-3 * y.std())
    from bdflow.stages.reconstruct.workers import Latents

    predictions = {space: Store(config.study, f"predictions/{SUBJECT}/{space}") for space in SPACES}
    latents = Latents(predictions, dict.fromkeys(predictions, "held_out"))
    ids = latents.test_ids()
    np.testing.assert_array_equal(latents.read("vdvae", ids[1:3]), latents.read("vdvae", ids)[1:3])


def test_weights_and_importance(regressed):
    config = regressed({"weights": ["clip_text"]})
    weights = Store(config.study, f"weights/{SUBJECT}/clip_text").read("weight")
    z, z_test, y, _ = xy(config.study, "clip_text")
    model = Ridge(alpha=300).fit(z, y)
    valid = Store(config.study, f"responses/{SUBJECT}/averaged").read("valid") == 1
    flat = weights.reshape(len(weights), -1)
    np.testing.assert_allclose(flat[valid], model.coef_.T, atol=1e-3 * model.coef_.std())
    assert (flat[~valid] == 0).all()
    predictions = Store(config.study, f"predictions/{SUBJECT}/clip_text")
    np.testing.assert_allclose(
        predictions.read("latent").reshape(len(z_test), -1), z_test @ flat[valid] + y.mean(0), atol=1e-3 * y.std()
    )
    importance = Store(config.study, f"importance/{SUBJECT}/clip_text").read("importance")
    moving = y.std(0) > 0
    expected = np.sqrt(np.mean((flat[:, moving] / y.std(0)[moving]) ** 2, axis=1))
    np.testing.assert_allclose(importance, expected, rtol=1e-3)
    assert not list(config.study.parent.glob("*.scratch"))


def test_any_pattern_is_decoded_without_fitting_again(regressed, tmp_path, monkeypatch):
    config = regressed()
    responses = Store(config.study, f"responses/{SUBJECT}/averaged")
    test = responses.read("split") == "test"
    context = Pipeline(config).context()
    patterns = responses.read("response")[test]
    z_scored = decoder.z_scored_patterns(responses, patterns)
    for space in SPACES:
        stored = Store(config.study, f"predictions/{SUBJECT}/{space}").read("latent")
        found = decoder.decode(context, SUBJECT, z_scored, space)
        np.testing.assert_allclose(found, stored, atol=1e-4 * stored.std())
        mean = decoder.decode(context, SUBJECT, z_scored.mean(0, keepdims=True), space)
        np.testing.assert_allclose(mean[0], stored.mean(0), atol=1e-4 * stored.std())
    np.save(tmp_path / "patterns.npy", patterns)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    command = ["decode", str(file), str(tmp_path / "patterns.npy"), "--subject", SUBJECT]
    app([*command, "--out", str(tmp_path / "decoded.zarr"), "--standardise", "test_set"], standalone_mode=False)
    tree = xarray.open_datatree(tmp_path / "decoded.zarr", engine="zarr", consolidated=False)
    latents = tree["clip_vision/latent"]
    assert latents.dims == ("pattern", "token", "feature")
    store = Store(config.study, f"predictions/{SUBJECT}/clip_vision")
    expected = ridge.restandardise(
        store.read("latent"), "test_set", {name: store.read(name) for name in ridge.RULES["test_set"]}
    )
    np.testing.assert_allclose(latents.values, expected, atol=1e-3 * expected.std())


def test_patterns_that_cannot_be_decoded_are_refused(regressed, tmp_path):
    config = regressed()
    responses = Store(config.study, f"responses/{SUBJECT}/averaged")
    pattern = np.zeros((1, responses.sizes["voxel"]))
    with pytest.raises(InputError, match=r"shape \(1, 3\); expected \(patterns, \d+\)"):
        decoder.z_scored_patterns(responses, pattern[:, :3])
    pattern[0, np.flatnonzero(responses.read("valid") == 1)[4]] = np.nan
    with pytest.raises(InputError, match="1 value not finite"):
        decoder.z_scored_patterns(responses, pattern)
    context = Pipeline(config).context()
    with pytest.raises(InputError, match="no held_out_mean"):
        decoder.decode(context, SUBJECT, np.zeros((1, responses.sizes["voxel"])), "vdvae", "held_out")
    shutil.rmtree(config.study / "decoders")
    with pytest.raises(NotReady):
        decoder.decode(context, SUBJECT, np.zeros((1, responses.sizes["voxel"])), "vdvae")


# --- beyond memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "width"), [(50, 16), (64, 16), (7, 16), (33, 1)])
def test_panels_solve_as_scipy_does(n, width):
    rng = np.random.default_rng(0)
    a, right = rng.normal(size=(n, n + 5)), rng.normal(size=(n, 4))
    kernel, panels = a @ a.T, []
    for start in out_of_core.starts(n, width):
        columns = kernel[start : start + width].copy()
        panels.append((start, out_of_core.factor_panel(start, columns, 3.0, panels)))
    lower = np.concatenate([panel for _, panel in panels]).T
    np.testing.assert_allclose(lower, np.linalg.cholesky(kernel + 3 * np.eye(n)), atol=1e-9)
    found = right.copy()
    out_of_core.solve(lambda: panels, lambda: reversed(panels), found)
    np.testing.assert_allclose(found, np.linalg.solve(kernel + 3 * np.eye(n), right), atol=1e-9)


def test_a_panel_that_is_not_positive_definite_says_so():
    kernel = -np.eye(4, dtype="f4")
    with pytest.raises(ValueError, match="raise alpha"):
        out_of_core.factor_panel(0, kernel, 0.5, [])


SMALL = Extent(train=30_000, test=1000, voxels=40_000, held_out=0, alphas=3, dual=True)


def test_the_plan_follows_the_budget_and_refuses_with_both_numbers():
    free = plan({("a", "averaged"): SMALL}, 4096, 1024, 1024, None, False)
    assert free.whole
    tight = plan({("a", "averaged"): SMALL}, 4096, 1024, 1024, 2 * 1024 * MIB, False)
    assert not tight.whole
    assert tight.piece_rows <= free.piece_rows
    assert max(tight.needs.values()) <= 2 * 1024 * MIB < max(free.needs.values())
    with pytest.raises(InputError, match=r"found 600 MiB a worker; expected at least .*predictions \d+,?\d* MiB"):
        plan({("a", "averaged"): SMALL}, 4096, 1024, 1024, 600 * MIB, False)
    with pytest.raises(InputError, match=r"found 2,048 MiB.*system \d,\d+ MiB.*\n.*leave_one_out"):
        plan({("a", "averaged"): SMALL}, 4096, 1024, 1024, 2048 * MIB, True)


@pytest.mark.slow(kind="systems in parts")
def test_a_system_in_panels_gives_the_same_decoder(regressed, tmp_path, monkeypatch):
    """The same stage through factors kept on disk; killed between panels, it goes on at the next."""
    whole = regressed({"weights": ["clip_text"], "validation": {"stimuli": 5}}, {"standardise": "held_out"})
    other = tmp_path / "panels"
    other.mkdir()
    monkeypatch.setattr("bdflow.regression.memory_budget._whole", lambda extent, voxels: 2**60)
    monkeypatch.setattr("bdflow.regression.memory_budget.WIDTHS", (6,))
    written, write = [], Store.write

    def stopped(store, partition, data):
        if store.path.startswith("factors/"):
            written.append((store.path, partition))
            if len(written) == 3:
                raise KeyboardInterrupt
        write(store, partition, data)

    monkeypatch.setattr(Store, "write", stopped)
    settings = ({"weights": ["clip_text"], "validation": {"stimuli": 5}}, {"standardise": "held_out"}, "2 GiB")
    with pytest.raises(KeyboardInterrupt):
        regressed(*settings, root=other)
    config = regressed(*settings, root=other)
    assert len([key for key in written if key == written[0]]) == 1, "a panel that was written is kept"
    for path in (f"decoders/{SUBJECT}/averaged", f"validation/{SUBJECT}/averaged", f"weights/{SUBJECT}/clip_text"):
        name = Store(whole.study, path).spec.data[0].name
        a, b = Store(whole.study, path).read(name), Store(config.study, path).read(name)
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())
    assert not list(other.glob("*.scratch")), "factors are removed when they are no longer needed"


BUDGET = """
import sys
from pathlib import Path
import dask, scipy, torch, zarr  # as the budget assumes of a worker
from bdflow.cluster import usage as meter
meter.RESET = Path("/dev/null")  # or each task would begin with a peak of its own
from bdflow.benchmarks.ridge import Scale, Writer, configuration, prepare, run_works
from bdflow.stores import Store

spaces = {"vdvae": (8192,), "clip_vision": (4, 768), "clip_text": (2, 768)}
scale = Scale(8000, 300, {"subj01": 9000}, spaces, 512, 4096)
config = configuration(Path(sys.argv[1]), scale, "serial", 1, 1, memory=sys.argv[2])
study, known, stores = prepare(config, scale)
for path, store in stores.items():
    writer = Writer({path: store}) if store.missing() else None
    for partition in store.missing():
        writer((path, partition))
    store.seal()
if sys.argv[3] == "run":
    run_works(config, study, known)
    status = Path("/proc/self/status").read_text()  # getrusage would begin with the parent's peak
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""


@pytest.mark.slow(kind="long checks")
def test_a_budget_is_kept(tmp_path):
    """8,000 stimuli: the system whole needs 1.0 GiB. In 864 MiB it is solved in panels, to the same end."""
    script = tmp_path / "budget.py"
    script.write_text(BUDGET)

    def run(budget: str, what: str) -> str:
        command = [sys.executable, str(script), str(tmp_path), budget, what]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=500).stdout

    run("864 MiB", "build")
    study, found = tmp_path / "study.zarr", {}
    for budget in (864, 2048):
        peak = int(run(f"{budget} MiB", "run"))
        assert peak <= budget * MIB, f"{peak / MIB:.0f} MiB of {budget}"
        found[budget] = peak, Store(study, "predictions/subj01/vdvae").read("latent")
    assert found[2048][0] > 864 * MIB, "both ways fit into the small budget: nothing is shown"
    a, b = found[864][1], found[2048][1]
    np.testing.assert_allclose(a, b, atol=1e-4 * b.std())


def test_the_stage_refuses_a_budget_before_it_writes(regressed, tmp_path):
    with pytest.raises(InputError, match="found 100 MiB a worker"):
        regressed(memory="100 MiB")
    assert not (tmp_path / "study.zarr" / "systems").exists()
    assert BASE > 100 * MIB


@pytest.mark.slow(kind="a process is killed while it writes")
def test_killed_in_the_middle_of_the_pass_it_ends_in_the_same_bytes(settings, tmp_path):
    """SIGKILL while predictions, and then while weights are written; every kill is checked to fall there."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    files = {}
    for root in (whole, killed):
        root.mkdir(exist_ok=True)
        content = settings(root, chunks={"stimuli": 16, "voxels": 64, "columns": 48, "images": 4})
        content["spaces"]["clip_text"]["ridge"] = content["spaces"]["clip_text"].get("ridge", {}) | {"weights": True}
        files[root] = root / "config.yaml"
        files[root].write_text(yaml.safe_dump(content, sort_keys=False))
        if root == whole:
            Pipeline(parse(content)).run(tuple(stages_until("features")))
            shutil.copytree(whole / "study.zarr", killed / "study.zarr")
    command = [str(Path(sys.executable).with_name("bdflow")), "run", "--only", "regress"]
    subprocess.run([*command, str(files[whole])], check=True, capture_output=True)
    for path in (f"predictions/{SUBJECT}/vdvae", f"predictions/{SUBJECT}/clip_text", f"weights/{SUBJECT}/clip_text"):
        process = subprocess.Popen([*command, str(files[killed])], stderr=subprocess.DEVNULL)
        study = Study(killed / "study.zarr")
        while process.poll() is None and not (study.declared(path) and (study.store(path).markers() > 0).any()):
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert study.store(path).missing(), "the kill came too late to say anything"
    subprocess.run([*command, str(files[killed])], check=True, capture_output=True)
    assert snapshot(killed / "study.zarr") == snapshot(whole / "study.zarr")


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_piece", [1, 5, 8, 13, 100])
def test_columns_come_in_pieces_in_the_order_asked_for(tmp_path, per_piece):
    study = Study(tmp_path / "study.zarr")
    study.create("test", {})
    spec = StoreSpec(
        "targets",
        (
            ArraySpec(
                "latent", ("stimulus_id", "token", "feature"), "f2", "latent", chunks={"stimulus_id": 8, "token": 2}
            ),
            ArraySpec("stimulus_id", ("stimulus_id",), "i4", "id", role="coordinate"),
        ),
        {"stimulus_id": 8},
    )
    values = np.random.default_rng(0).normal(size=(45, 5, 3)).astype("f2")
    sizes = {"stimulus_id": 45, "token": 5, "feature": 3}
    store = study.declare("targets/x", spec, sizes, {"stimulus_id": np.arange(45)}, Provenance("test"))
    for partition in store.missing():
        region = spec.region(sizes, partition)["stimulus_id"]
        store.write(partition, {"latent": values[region]})
    for rows in (np.arange(3, 44), np.random.default_rng(1).permutation(45)[:20], np.arange(7, 8)):
        columns = Columns(Joined([store]), rows, per_piece)
        pieces = [piece.copy() for piece in ahead(columns.requests({"token": slice(2, 4)}, streaming.Scratch()))]
        assert max(len(piece) for piece in pieces) <= per_piece
        np.testing.assert_array_equal(np.concatenate(pieces), values[rows, 2:4].reshape(len(rows), -1))
    with pytest.raises(ValueError, match="do not go into"):
        store.read_into(np.empty((3, 5, 3), "f4"), "latent", {"stimulus_id": slice(0, 3)})


@pytest.mark.slow(kind="long checks")
def test_solver_takes_patterns_in_primal_form_too(regressed, monkeypatch):
    """More stimuli than voxels: the covariance is stored, and patterns decode as in the dual form."""
    dual = regressed()
    reference = Store(dual.study, f"predictions/{SUBJECT}/vdvae").read("latent")
    for path in ("systems", "decoders", "predictions"):
        shutil.rmtree(dual.study / path)
    monkeypatch.setattr(ridge, "dual_is_cheaper", lambda n, p, m: False)
    config = regressed({"weights": ["vdvae"], "validation": {"stimuli": 5}}, {"standardise": "held_out"})
    assert "other_voxel" in Store(config.study, f"systems/{SUBJECT}/averaged").sizes
    found = Store(config.study, f"predictions/{SUBJECT}/vdvae").read("latent")
    np.testing.assert_allclose(found, reference, atol=1e-3 * reference.std())
    responses = Store(config.study, f"responses/{SUBJECT}/averaged")
    patterns = responses.read("response")[responses.read("split") == "test"]
    context = Pipeline(config).context()
    again = decoder.decode(context, SUBJECT, decoder.z_scored_patterns(responses, patterns), "vdvae")
    np.testing.assert_allclose(again, found, atol=1e-4 * reference.std())
    weights = Store(config.study, f"weights/{SUBJECT}/vdvae").read("weight")
    z, _, y, _ = xy(config.study, "vdvae")
    valid = responses.read("valid") == 1
    coefficients = Ridge(alpha=300).fit(z, y).coef_.T
    np.testing.assert_allclose(weights[valid], coefficients, atol=1e-3 * coefficients.std())
    assert isinstance(decoder.solver_of(context, SUBJECT, design_of(config, "vdvae")), Solver)
