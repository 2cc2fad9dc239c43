"""The whole pipeline on small simulated data: every stage, every executor, resumption, staleness, damage, bad input."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from bdflow.config import PaintOptions, parse
from bdflow.errors import InputError
from bdflow.models.versatile.painter import Painter
from bdflow.pipeline import NAMES, ON_DEMAND, Pipeline, stages_until
from bdflow.simulation.dataset import simulate
from bdflow.stores import NotReady, Store, StoreError, Study
from bdflow.study import rounding
from tests.conftest import SMALL, SUBJECTS, execution, painter, remote_snapshot, snapshot, spaces
from tests.support import logs
from tests.support.parts import whole

TO_EVALUATE = tuple(stages_until("evaluate"))


def run(settings, root: Path, stages=TO_EVALUATE, remake=False, subjects=(), **sections) -> Path:
    config = parse(settings(root, **sections))
    Pipeline(config, subjects).run(stages, remake=remake)
    return config.study


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory) -> Path:
    """A study run serially to its end."""
    return run(settings, tmp_path_factory.mktemp("finished"), NAMES)


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of it that a test may harm."""
    shutil.copytree(finished, tmp_path / "study.zarr")
    return tmp_path


def test_every_store_is_sealed_and_undamaged(settings, finished):
    pipeline = Pipeline(parse(settings(finished.parent)))
    rows = pipeline.status()
    always = {path for path, made in pipeline.expected().items() if made.stage not in ON_DEMAND}
    assert {row.path for row in rows} == always
    assert {row.state.kind for row in rows} == {"sealed"}
    assert all(row.nbytes > 0 for row in rows)
    assert pipeline.verify() == []
    assert (finished.parent / "report/index.html").stat().st_size > 1000


def test_responses_are_the_means_of_the_betas(finished):
    for subject in SUBJECTS:
        betas, responses = Store(finished, f"betas/{subject}"), Store(finished, f"responses/{subject}/averaged")
        raw = betas.read("beta").astype(float) / 300
        shown, split = betas.read("stimulus_id"), responses.read("split")
        ids, response = responses.read("stimulus_id"), responses.read("response")
        expected = np.stack([raw[shown == i].mean(axis=0) for i in ids])
        np.testing.assert_allclose(response, expected, rtol=1e-5, atol=1e-6)
        assert responses.read("repeats").tolist() == [(shown == i).sum() for i in ids]
        train = expected[split == "train"]
        np.testing.assert_allclose(responses.read("voxel_mean"), train.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(responses.read("voxel_scale"), train.std(0, ddof=1), rtol=1e-4, atol=1e-5)


def test_stimuli_are_cut_by_who_saw_them(finished):
    parts = {part: Store(finished, f"stimuli/{part}") for part in ("shared", *SUBJECTS)}
    assert [path for path in Study(finished).paths() if path.startswith("stimuli")] == [
        f"stimuli/{part}" for part in sorted(parts)
    ]
    shown = {subject: set(Store(finished, f"betas/{subject}").read("stimulus_id").tolist()) for subject in SUBJECTS}
    ids = {part: store.read("stimulus_id").tolist() for part, store in parts.items()}
    assert set(ids["shared"]) == shown["subj01"] & shown["subj02"]
    for subject in SUBJECTS:
        assert set(ids[subject]) == shown[subject] - set(ids["shared"])
    assert all(found == sorted(found) for found in ids.values())
    assert {part: set(store.read("split").tolist()) for part, store in parts.items()} == {
        "shared": {"test"},
        "subj01": {"train"},
        "subj02": {"train"},
    }


def test_predictions_equal_scikit_learn(settings, finished):
    from sklearn.linear_model import Ridge

    for subject in SUBJECTS:
        responses = Store(finished, f"responses/{subject}/averaged")
        split, x = responses.read("split"), responses.read("response").astype(float)
        train, test = x[split == "train"], x[split == "test"]
        mean, scale = train.mean(0), train.std(0, ddof=1)
        for space in ("vdvae", "clip_vision", "clip_text"):
            targets, predictions = (
                whole(finished, f"targets/{space}"),
                Store(finished, f"predictions/{subject}/{space}"),
            )
            y = targets.read("latent").astype(float).reshape(targets.sizes["stimulus_id"], -1)
            y_train = y[targets.rows("stimulus_id", responses.read("stimulus_id")[split == "train"])]
            y_test = y[targets.rows("stimulus_id", predictions.read("stimulus_id"))]
            reference = Ridge(alpha=300).fit((train - mean) / scale, y_train).predict((test - mean) / scale)
            found = predictions.read("latent").reshape(reference.shape)
            spread = np.abs(reference - y_train.mean(0)).max()
            assert np.abs(found - reference).max() <= 1e-4 * spread
            np.testing.assert_allclose(predictions.read("train_std").ravel(), y_train.std(0), rtol=1e-4, atol=1e-6)
            residual = 1 - ((y_test - reference) ** 2).sum(0) / ((y_test - y_test.mean(0)) ** 2).sum(0)
            np.testing.assert_allclose(predictions.read("r2").ravel(), residual, rtol=1e-2, atol=2e-3)


def run_elsewhere(settings, root: Path, **sections) -> Path:
    """As `run`, by the command in a process of its own: Ray starts once in a process."""
    (root / "config.yaml").write_text(yaml.safe_dump(settings(root, **sections), sort_keys=False))
    command = [sys.executable, "-m", "bdflow.cli.main", "run", str(root / "config.yaml"), "--until", "evaluate"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return root / "study.zarr"


@pytest.mark.slow(kind="executors")
@pytest.mark.parametrize(("executor", "workers"), [("dask", 2), ("ray", 2)])
def test_the_same_bytes_on_every_executor(settings, finished, tmp_path, executor, workers):
    study = run_elsewhere(settings, tmp_path, execution=execution(executor, workers))
    assert snapshot(study) == snapshot(finished)


@pytest.mark.slow(kind="executors")
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("executor", ["dask", "ray"])
def test_the_same_bytes_with_any_number_of_workers(settings, finished, tmp_path, executor, workers):
    study = run_elsewhere(settings, tmp_path, execution=execution(executor, workers))
    assert snapshot(study) == snapshot(finished)


@pytest.mark.slow(kind="long checks")
@pytest.mark.parametrize("batch_size", [3, 1])
def test_any_batch_size_and_number_of_threads_within_what_status_states(settings, finished, tmp_path, batch_size):
    """Sums may be taken in another order: values move by no more than `bdflow.study.rounding` says.

    The rest of the pipeline is compared from the same targets, so that rounding of latents to float16 is not in it.
    """
    threads = {stage: {"threads": 2} for stage in ("features", "regress", "reconstruct")}
    config = {
        "features": {"batch_size": batch_size},
        "painters": painter(batch_size=batch_size),
        "networks": {"bundle": "tiny", "speed": {"joint_guidance": False, "channels_last": True}},
        "execution": threads,
    }
    study = run(settings, tmp_path, ("ingest", "features"), **config)
    for space in ("vdvae", "clip_vision", "clip_text"):
        a, b = (whole(root, f"targets/{space}").read("latent") for root in (finished, study))
        step = np.spacing(np.maximum(abs(a), abs(b))).astype(float) * rounding.LATENT_STEPS
        assert (np.abs(a.astype(float) - b.astype(float)) <= np.maximum(step, rounding.SMALL_LATENT)).all()
    shutil.rmtree(study)
    shutil.copytree(finished, study)
    for path in ("systems", "decoders", "predictions", "guesses", "reconstructions", "metrics"):
        shutil.rmtree(study / path)
    run(settings, tmp_path, **config)
    moved = 0
    for subject in SUBJECTS:
        for space in ("vdvae", "clip_vision", "clip_text"):
            a, b = (Store(root, f"predictions/{subject}/{space}").read("latent") for root in (finished, study))
            assert np.abs(a - b).max() <= rounding.PREDICTION * np.abs(a).max()
        for path in (f"guesses/brain_diffuser/{subject}", f"reconstructions/brain_diffuser/{subject}/full"):
            a, b = (Store(root, path).read("image").astype(int) for root in (finished, study))
            moved += int((a != b).sum())
            assert (np.abs(a - b) > rounding.PIXEL_LEVELS).mean() <= rounding.PIXEL_SHARE
    assert moved, "otherwise this would compare a study with itself"


@pytest.mark.slow(kind="long checks")
def test_in_half_precision_a_store_never_mixes_batch_sizes(settings, finished, tmp_path):
    """What was half painted is refused, gone on with as it was begun to the same bytes, or replaced."""
    stages, study = ("reconstruct",), tmp_path / "study.zarr"
    shutil.copytree(finished, study)
    for path in ("targets", "systems", "decoders", "predictions", "guesses", "reconstructions"):
        shutil.rmtree(study / path)
    half = {"networks": {"bundle": "tiny", "dtype": "bfloat16"}, "painters": painter(batch_size=4)}
    run(settings, tmp_path, ("features", "regress", "reconstruct"), **half)
    whole = snapshot(study)
    path = "reconstructions/brain_diffuser/subj01/full"
    pictures = Store(study, path)
    assert pictures.provenance["arithmetic"]["batches"] == {"decode": 4, "denoise": 4, "encode": 4}
    assert pictures.n_partitions > 1
    other = half | {"painters": painter(batch_size=2)}
    run(settings, tmp_path, stages, **other)
    assert snapshot(study) == whole, "what is finished stays"

    chunk = study / path / "image/c/0/0/0/0"
    content = bytearray(chunk.read_bytes())
    content[-9] ^= 1
    chunk.write_bytes(bytes(content))
    damaged = snapshot(study)
    with pytest.raises(StoreError, match="would be computed in another way") as error:
        Pipeline(parse(settings(tmp_path, **other))).verify(repair=True)
    assert (error.value.remedy, snapshot(study)) == ("remake", damaged)
    assert [d.store for d in Pipeline(parse(settings(tmp_path, **half))).verify(repair=True)] == [path]
    assert snapshot(study) == whole

    pictures.forget(0)
    with pytest.raises(NotReady, match="denoise: begun with 4, now 2; one store does not hold both") as refused:
        run(settings, tmp_path, stages, **other)
    assert refused.value.remedy == "remake"
    run(settings, tmp_path, stages, **half)
    assert snapshot(study) == whole
    pictures.forget(0)
    run(settings, tmp_path, stages, remake=True, **other)
    again = Store(study, path)
    assert again.provenance["arithmetic"]["batches"] == {"decode": 2, "denoise": 2, "encode": 2}
    assert again.sealed
    assert {name.split("/")[2] for name, held in snapshot(study).items() if whole[name] != held} == {"subj01"}


def test_running_again_computes_nothing(settings, copied):
    before = snapshot(copied / "study.zarr")
    times = {f: f.stat().st_mtime_ns for f in (copied / "study.zarr").rglob("c/*") if f.is_file()}
    study = run(settings, copied)
    assert snapshot(study) == before
    assert {f: f.stat().st_mtime_ns for f in times} == times


@pytest.mark.slow(kind="orders of work")
def test_subjects_one_after_the_other_give_the_same_bytes(settings, finished, tmp_path):
    study = run(settings, tmp_path, subjects=["subj02"])
    assert Study(study).paths() == [p for p in Study(finished).paths() if "subj01" not in p]
    run(settings, tmp_path, subjects=["subj01"])
    assert snapshot(study) == snapshot(finished)


@pytest.mark.slow(kind="orders of work")
def test_stages_one_by_one_give_the_same_bytes(settings, finished, tmp_path):
    with pytest.raises(NotReady, match=r"stimuli/shared: found no such store(.|\n)*run the stage `ingest`"):
        run(settings, tmp_path, ("features",))
    for stage in TO_EVALUATE:
        study = run(settings, tmp_path, (stage,))
    assert snapshot(study) == snapshot(finished)


@pytest.mark.slow(kind="studies that change")
def test_another_configuration_is_refused_then_remade_as_little_as_possible(settings, finished, copied):
    before = snapshot(copied / "study.zarr")
    alpha = spaces(clip_text={"alpha": 900})
    with pytest.raises(NotReady) as error:
        run(settings, copied, spaces=alpha)
    assert "alpha.clip_text: made with 300.0, now 900.0" in str(error.value)
    assert error.value.remedy == "remake"
    assert snapshot(copied / "study.zarr") == before
    study = run(settings, copied, spaces=alpha, remake=True)
    after = snapshot(study)
    changed = {name.split("/")[0] for name in before if before[name] != after.get(name)}
    assert changed == {"decoders", "predictions", "reconstructions", "metrics"}
    assert not [name for name in before if "/vdvae/" in name and before[name] != after.get(name)]
    run(settings, copied, remake=True)
    assert snapshot(study) == snapshot(finished)


@pytest.mark.slow(kind="studies that change")
def test_a_new_variant_reuses_everything_else(settings, copied):
    before = snapshot(copied / "study.zarr")
    variants = ["full", "only_vdvae", "no_vdvae", "no_clip_text"]
    study = run(settings, copied, painters=painter(variants=variants), remake=True)
    after = snapshot(study)
    assert {name.split("/")[0] for name in before if before[name] != after.get(name)} == {"metrics"}
    images = {v: Store(study, f"reconstructions/brain_diffuser/subj01/{v}").read("image") for v in variants}
    for variant in variants[1:]:
        assert (images[variant] != images["full"]).mean() > 0.1


@pytest.mark.slow(kind="long checks")
def test_the_upper_bound_is_painted_from_the_true_latents(settings, copied):
    before = snapshot(copied / "study.zarr")
    study = run(settings, copied, NAMES, reconstruct={"upper_bound": True})
    assert {name: snapshot(study)[name] for name in before} == before
    targets, guesses = whole(study, "targets/vdvae"), Store(study, "guesses/brain_diffuser/true")
    ids = guesses.read("stimulus_id")
    assert ids.tolist() == targets.read("stimulus_id")[targets.read("split") == "test"].tolist()
    paint = Painter("tiny", options=PaintOptions(steps=4))
    latents = targets.read("latent")[targets.rows("stimulus_id", ids)].astype(np.float32)
    moved = np.abs(paint.guess(latents[:4], "true", ids[:4]).astype(int) - guesses.read("image")[:4])
    assert moved.max() <= 1, "another batch than the worker's moves float32: one level, seldom"
    assert (moved > 0).mean() < 2e-3
    assert "true latents" in (copied / "report/index.html").read_text()


@pytest.mark.slow(kind="damage met on the way")
@pytest.mark.parametrize(
    "victim",
    ["stimuli/subj02/image/c/1/0/0/0", "targets/clip_text/subj01/latent/c/1/0/0", "stimuli/shared/stimulus_id/c/0"],
)
def test_damage_met_on_the_way_is_named_and_computed_again(settings, finished, copied, victim, caplog):
    study = copied / "study.zarr"
    content = bytearray((study / victim).read_bytes())
    content[5] ^= 1
    (study / victim).write_bytes(bytes(content))
    later = "regress" if "targets" in victim else "features"
    shutil.rmtree(study / ("predictions" if later == "regress" else "targets"))
    Pipeline(parse(settings(copied))).run(TO_EVALUATE)
    assert snapshot(study) == snapshot(finished)
    assert any(victim.split("/c/")[0] in line and line.endswith("it again.") for line in logs.lines(caplog))


def test_verify_names_and_repairs(settings, finished, copied):
    study = copied / "study.zarr"
    victims = [
        "betas/subj01/beta/c/1/0",
        "reconstructions/brain_diffuser/subj02/full/image/c/3/0/0/0/0",
        "metrics/brain_diffuser/subj01/written/c/0",
    ]
    for victim in victims:
        content = bytearray((study / victim).read_bytes())
        content[2] ^= 0x40
        (study / victim).write_bytes(bytes(content))
    (study / "predictions/subj01/vdvae/r2/c/1").unlink()
    pipeline = Pipeline(parse(settings(copied)))
    found = {(d.store, d.array) for d in pipeline.verify()}
    assert found == {
        ("metrics/brain_diffuser/subj01", "written"),
        ("betas/subj01", "beta"),
        ("reconstructions/brain_diffuser/subj02/full", "image"),
        ("predictions/subj01/vdvae", "r2"),
    }
    assert {(d.store, d.array) for d in pipeline.verify(repair=True)} == found
    assert pipeline.verify() == []
    pipeline.run(TO_EVALUATE)
    assert snapshot(study) == snapshot(finished)


def test_an_environment_with_only_xarray_zarr_and_dask_opens_every_store(finished):
    python = Path(sys.prefix) / "plain/bin/python"
    assert python.exists(), f"{python} is not there: `make install` makes it, an environment with xarray, zarr and dask"
    script = (
        "import json, sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "import xarray\n"
        "tree = xarray.open_datatree(sys.argv[1], engine='zarr', chunks={})\n"
        "out = {}\n"
        "for node in tree.subtree:\n"
        "    for name, a in node.variables.items():\n"
        "        lazy = type(a.data).__module__.startswith('dask')\n"
        "        row = [list(a.dims), a.attrs.get('units'), a.attrs.get('long_name'), lazy, name in node.coords]\n"
        "        out[node.path.strip('/') + '/' + name] = row\n"
        "beta = tree['betas/subj01'].beta\n"
        "assert beta.dtype.kind == 'f' and float(abs(beta).max()) < 110, 'betas are scaled to percent'\n"
        "stimuli = tree['stimuli/shared']\n"
        "one = stimuli.sel(stimulus_id=str(stimuli.stimulus_id[3].values)).image.values\n"
        "assert one.std() > 0\n"
        "try:\n"
        "    import bdflow\n"
        "except ImportError:\n"
        "    print(json.dumps(out))\n"
    )
    done = subprocess.run(
        [python, "-I", "-c", script, finished], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    study = Study(finished)
    for path in study.paths():
        for name in study.store(path).arrays:
            dims, units, long_name, lazy, coordinate = found[f"{path}/{name}"]
            assert dims, f"{path}/{name} has no dimensions"
            assert units in (None, "percent signal change", "mm"), f"{path}/{name}"
            assert long_name, f"{path}/{name} has no long_name"
            assert lazy or coordinate or name in dims
            assert coordinate or name not in ("stimulus_id", "split", "i", "j", "k", "region", "variant", "metric")


def test_hdf5_betas_give_the_same_stores(settings, finished, tmp_path):
    simulate(tmp_path / "nsd", dataclasses.replace(SMALL, betas_format="hdf5"))
    assert not list((tmp_path / "nsd").rglob("betas_session*.nii.gz"))
    study = run(settings, tmp_path, ("ingest",), dataset={"root": str(tmp_path / "nsd"), "sessions": 3})
    for subject in SUBJECTS:
        for path, name in ((f"betas/{subject}", "beta"), (f"responses/{subject}/averaged", "response")):
            np.testing.assert_array_equal(Store(study, path).read(name), Store(finished, path).read(name))


# --- bad input: one clear error, nothing half-written ---------------------------------------------------------------


@pytest.fixture
def broken(nsd, tmp_path) -> Path:
    """A copy of the dataset to break."""
    shutil.copytree(nsd, tmp_path / "nsd")
    return tmp_path


def refuse(settings, broken: Path, *words: str, **sections) -> None:
    sections = {"dataset": {"root": str(broken / "nsd"), "sessions": 3} | sections.pop("dataset", {})} | sections
    with pytest.raises((InputError, StoreError)) as error:
        run(settings, broken, ("ingest",), **sections)
    for word in words:
        assert word in str(error.value)
    assert "What to do" in str(error.value)
    study = Study(broken / "study.zarr")
    for path in study.paths() if study.exists else []:
        assert list(study.store(path).damage()) == []
        assert not (study.store(path).sealed and study.store(path).missing())
    assert not list((broken / "study.zarr").rglob("*.partial"))


def betas(broken: Path, session: int, subject: str = "subj02") -> Path:
    folder = broken / f"nsd/nsddata_betas/ppdata/{subject}/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    return folder / f"betas_session{session:02d}.nii.gz"


def test_truncated_session(settings, broken):
    path = betas(broken, 2)
    path.write_bytes(path.read_bytes()[:-2000])
    refuse(settings, broken, "betas_session02.nii.gz")
    assert Store(broken / "study.zarr", "betas/subj02").missing()[0] == 1
    assert not Store(broken / "study.zarr", "betas/subj02").sealed


@pytest.mark.slow(kind="studies that change")
def test_a_mended_file_lets_the_run_go_on(settings, nsd, broken, finished):
    good = betas(broken, 2).read_bytes()
    betas(broken, 2).write_bytes(good[:-2000])
    refuse(settings, broken, "betas_session02.nii.gz")
    betas(broken, 2).write_bytes(good)
    study = run(settings, broken, dataset={"root": str(broken / "nsd"), "sessions": 3}, remake=True)
    assert snapshot(study) == snapshot(finished)


def test_missing_session(settings, broken):
    betas(broken, 3).unlink()
    refuse(settings, broken, "betas_session03.nii.gz")


def test_mask_of_another_shape(settings, broken):
    import nibabel

    path = broken / "nsd/nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz"
    volume = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(volume.dataobj)[:-1], volume.affine), path)
    refuse(settings, broken, "subj01", "shape")


def test_no_voxel_in_the_mask(settings, broken):
    import nibabel

    path = broken / "nsd/nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz"
    volume = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.minimum(np.asarray(volume.dataobj), 0), volume.affine), path)
    refuse(settings, broken, "nsdgeneral.nii.gz", "no voxel")


def test_ids_outside_the_stimuli(settings, broken):
    import h5py

    path = broken / "nsd/nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    with h5py.File(path) as file:
        brick = file["imgBrick"][:10]
    with h5py.File(path, "w") as file:
        file["imgBrick"] = brick
    np.save(broken / "nsd/COCO_73k_annots_curated.npy", np.full((10, 5), "a caption"))
    refuse(settings, broken, "subjectim")


def constant_and_nan(broken: Path) -> None:
    """Session 2 of subj02 as floats in percent, with one NaN; one voxel constant in every session."""
    import nibabel

    mask = nibabel.load(broken / "nsd/nsddata/ppdata/subj02/func1pt8mm/roi/nsdgeneral.nii.gz")
    i, j, k = np.nonzero(np.asarray(mask.dataobj) > 0)
    for session in (1, 2, 3):
        volume = nibabel.load(betas(broken, session))
        data = np.asarray(volume.dataobj).copy()
        data[i[7], j[7], k[7]] = 300
        if session == 2:
            data = (data / 300).astype(np.float32)
            data[i[3], j[3], k[3], 4] = np.nan
        nibabel.save(nibabel.Nifti1Image(data, volume.affine), betas(broken, session))


def test_constant_voxels_are_dropped_or_refused_and_nan_is_left_out_of_means(settings, broken, finished):
    constant_and_nan(broken)
    refuse(settings, broken, "betas_session02", "1 beta that is not a number", "trial 4", "dataset.not_a_number")
    invalid = {"not_a_number": "invalid"}
    with pytest.raises(InputError, match=r"1 voxel in this block.* 0 without a measurement .* 1 constant"):
        run(settings, broken, dataset=given(broken, bad_voxels="refuse", **invalid), remake=True)
    study = run(settings, broken, dataset=given(broken, **invalid), remake=True)
    betas, responses = Store(study, "betas/subj02"), Store(study, "responses/subj02/averaged")
    assert np.argwhere(betas.read("valid") == 0).tolist() == [[26 + 4, 3]]
    assert np.flatnonzero(responses.read("valid") == 0).tolist() == [7]
    assert responses.read("missing_trials").tolist() == [0, 0, 0, 1, *[0] * (responses.sizes["voxel"] - 4)]
    assert np.isfinite(Store(study, "predictions/subj02/vdvae").read("latent")).all()
    untouched, found = Store(finished, "responses/subj02/averaged").read("response"), responses.read("response")
    shown = betas.read("stimulus_id")
    row = int(responses.rows("stimulus_id", shown[[26 + 4]])[0])
    trials = [t for t in np.flatnonzero(shown == shown[26 + 4]) if t != 26 + 4]
    assert found[row, 3] == pytest.approx(betas.read("beta")[trials, 3].mean() / 300)
    found[row, 3] = untouched[row, 3]
    others = np.delete(np.arange(responses.sizes["voxel"]), [7])
    np.testing.assert_array_equal(found[:, others], untouched[:, others])


def given(broken: Path, **more) -> dict:
    return {"root": str(broken / "nsd"), "sessions": 3, **more}


def test_another_split_is_data(settings, nsd, tmp_path):
    ids = whole(run(settings, tmp_path / "a", ("ingest",)), "stimuli").read("stimulus_id")
    listed = sorted(ids[[0, 2, -1]].tolist())
    (tmp_path / "test.txt").write_text("# three of them\n" + "\n".join(map(str, listed)))
    study = run(
        settings,
        tmp_path / "b",
        ("ingest",),
        dataset={"root": str(nsd), "sessions": 3, "split": str(tmp_path / "test.txt")},
    )
    stimuli = whole(study, "stimuli")
    assert sorted(stimuli.read("stimulus_id")[stimuli.read("split") == "test"].tolist()) == listed
    responses = Store(study, "responses/subj02/averaged")
    assert set(responses.read("stimulus_id")[responses.read("split") == "test"]) == set(listed) & set(
        responses.read("stimulus_id").tolist()
    )


@pytest.mark.slow(kind="studies that change")
def test_a_full_disk_names_itself_and_the_run_goes_on_when_there_is_room(settings, finished, tmp_path):
    """A real full disk: a tmpfs that fills up, one that fills up in the next stage, one with space."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", mount], check=False).returncode:
        pytest.fail("this test needs the right to mount a tmpfs")
    try:
        with pytest.raises(StoreError, match="no space left"):
            run(settings, mount)
        for path in Study(mount / "study.zarr").paths():
            assert list(Store(mount / "study.zarr", path).damage()) == []
        subprocess.run(["mount", "-o", "remount,size=1700k", mount], check=True)
        with pytest.raises(StoreError, match=r"targets/[^:]*: found no space left"):
            run(settings, mount)
        for path in Study(mount / "study.zarr").paths():
            assert list(Store(mount / "study.zarr", path).damage()) == []
        subprocess.run(["mount", "-o", "remount,size=200m", mount], check=True)
        assert snapshot(run(settings, mount)) == snapshot(finished)
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.mark.slow(kind="orders of work")
def test_a_study_in_memory_is_the_one_on_disk(settings, tmp_path):
    found = {}
    for name, study in (("disk", str(tmp_path / "study.zarr")), ("memory", "memory://pipeline/study.zarr")):
        pipeline = Pipeline(parse(settings(tmp_path, study=study)))
        pipeline.run(("ingest",))
        assert [row.state.kind for row in pipeline.status()][:4] == ["sealed"] * 4
        assert pipeline.verify() == []
        found[name] = remote_snapshot(study) if name == "memory" else snapshot(pipeline.study.path)
    assert found["memory"] == found["disk"]
    path = pipeline.study.path
    path.bucket.write("stimuli/shared/image/c/0/0/0/0", b"damaged")
    assert [damage.store for damage in pipeline.verify(repair=True)] == ["stimuli/shared"]
    assert remote_snapshot(str(path)) == found["disk"]


# --- metadata -------------------------------------------------------------------------------------------------------


def test_metadata_of_a_real_study_is_named_and_written_again(settings, copied):
    """One byte of every tenth file of metadata, each in its own place; one `verify --repair` mends them all."""
    study = copied / "study.zarr"
    whole = {str(file.relative_to(study)): file.read_bytes() for file in study.rglob("*") if file.is_file()}
    names = sorted(name for name in whole if name.endswith("zarr.json"))
    victims = ["zarr.json", "runs/zarr.json", "betas/zarr.json", *names[5::10]]
    for number, name in enumerate(dict.fromkeys(victims)):
        content = bytearray(whole[name])
        content[(number * 37) % len(content)] = 0xFF
        (study / name).write_bytes(bytes(content))
    damaged = {name.rpartition("/")[0] for name in victims} - {""}
    stores = [name.removesuffix("/stimulus_id/zarr.json") for name in names if name.endswith("/stimulus_id/zarr.json")]
    spoilt = {s for s in stores for of in damaged if f"{s}/".startswith(f"{of}/") or of.startswith(f"{s}/")}
    below_whole = (s for s in stores if s not in spoilt)
    notes = f"{next(below_whole)}/notes.txt"
    (study / notes).write_text("mine")
    pipeline = Pipeline(parse(settings(copied)))
    named = {f"{d.store}/{d.file}".lstrip("/") for d in pipeline.verify()}
    assert named == {*victims, notes}
    states = {row.path: row.state.kind for row in pipeline.status()}
    owners = {name.rpartition("/")[0] for name in victims}
    assert {path for path, kind in states.items() if kind == "damaged"} == {
        path for path in states if any(owner == path or owner.startswith(f"{path}/") for owner in owners)
    }
    pipeline.timings()
    pipeline.verify(repair=True)
    (study / notes).unlink()
    assert pipeline.verify() == []
    after = {str(file.relative_to(study)): file.read_bytes() for file in study.rglob("*") if file.is_file()}
    remembered = {name: after[name] for name in after if name.startswith("runs/inputs/digests/c")}
    assert after == whole | remembered


def test_a_run_writes_damaged_metadata_again(settings, copied, finished):
    study = copied / "study.zarr"
    for name in ("", "targets/", "targets/vdvae/", "targets/vdvae/shared/", "predictions/subj01/vdvae/r2/"):
        (study / f"{name}zarr.json").write_bytes(b"")
    run(settings, copied)
    assert snapshot(study) == snapshot(finished)
    assert Pipeline(parse(settings(copied))).verify() == []


def test_a_store_whose_metadata_is_lost_is_made_again(settings, copied, finished):
    study = copied / "study.zarr"
    for name in ("zarr.json", "metadata/c/0"):
        (study / "predictions/subj01/clip_text" / name).unlink()
    pipeline = Pipeline(parse(settings(copied)))
    assert pipeline.verify() != []
    pipeline.verify(repair=True)
    assert snapshot(study) == snapshot(finished)
