"""The whole house on small simulated data: every stage, every executor, resumption, staleness, damage, bad input."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from bdflow.config import parse
from bdflow.errors import InputError
from bdflow.models.config import PaintOptions
from bdflow.models.latents import Painter
from bdflow.pipeline import NAMES, ON_DEMAND, Pipeline, stages_until
from bdflow.simulate import simulate
from stores import NotReady, Store, StoreError, Study
from tests.conftest import SMALL, SUBJECTS, execution, remote_snapshot, snapshot

TO_EVALUATE = tuple(stages_until("evaluate"))


def run(settings, root: Path, stages=TO_EVALUATE, remake=False, subjects=(), **sections) -> Path:
    config = parse(settings(root, **sections))
    Pipeline(config, subjects, say=lambda line: None).run(stages, remake=remake)
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
        betas, responses = Store(finished, f"betas/{subject}"), Store(finished, f"responses/{subject}")
        raw = betas.read("beta").astype(float) / 300
        shown, split = betas.read("nsd_id"), responses.read("split")
        ids, response = responses.read("nsd_id"), responses.read("response")
        expected = np.stack([raw[shown == i].mean(axis=0) for i in ids])
        np.testing.assert_allclose(response, expected, rtol=1e-5, atol=1e-6)
        assert responses.read("repeats").tolist() == [(shown == i).sum() for i in ids]
        train = expected[split == "train"]
        np.testing.assert_allclose(responses.read("voxel_mean"), train.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(responses.read("voxel_scale"), train.std(0, ddof=1), rtol=1e-4, atol=1e-5)


def test_stimuli_come_test_first_then_subject_by_subject(finished):
    stimuli = Store(finished, "stimuli")
    split, owner = stimuli.read("split").tolist(), stimuli.read("owner").tolist()
    assert split == sorted(split, key=["test", "train"].index)
    assert owner == sorted(owner, key=["shared", *SUBJECTS].index)


def test_predictions_equal_scikit_learn(settings, finished):
    from sklearn.linear_model import Ridge

    for subject in SUBJECTS:
        responses = Store(finished, f"responses/{subject}")
        split, x = responses.read("split"), responses.read("response").astype(float)
        train, test = x[split == "train"], x[split == "test"]
        mean, scale = train.mean(0), train.std(0, ddof=1)
        for space in ("vdvae", "clip_vision", "clip_text"):
            targets, predictions = (
                Store(finished, f"targets/{space}"),
                Store(finished, f"predictions/{subject}/{space}"),
            )
            y = targets.read("latent").astype(float).reshape(targets.sizes["stimulus"], -1)
            y_train = y[targets.rows("nsd_id", responses.read("nsd_id")[split == "train"])]
            y_test = y[targets.rows("nsd_id", predictions.read("nsd_id"))]
            reference = Ridge(alpha=300).fit((train - mean) / scale, y_train).predict((test - mean) / scale)
            found = predictions.read("latent").reshape(reference.shape)
            spread = np.abs(reference - y_train.mean(0)).max()
            assert np.abs(found - reference).max() <= 1e-4 * spread
            np.testing.assert_allclose(predictions.read("train_std").ravel(), y_train.std(0), rtol=1e-4, atol=1e-6)
            residual = 1 - ((y_test - reference) ** 2).sum(0) / ((y_test - y_test.mean(0)) ** 2).sum(0)
            np.testing.assert_allclose(predictions.read("r2").ravel(), residual, rtol=1e-2, atol=2e-3)


def run_elsewhere(settings, root: Path, **sections) -> Path:
    """As `run`, by the command in a process of its own: Ray starts once in a process."""
    (root / "config.yaml").write_text(yaml.safe_dump(settings(root, **sections)))
    command = [sys.executable, "-m", "bdflow.cli", "run", str(root / "config.yaml"), "--until", "evaluate"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return root / "study.zarr"


@pytest.mark.parametrize(("executor", "workers"), [("dask", 2), pytest.param("ray", 2, marks=pytest.mark.storm)])
def test_the_same_bytes_on_every_executor(settings, finished, tmp_path, executor, workers):
    study = run_elsewhere(settings, tmp_path, execution=execution(executor, workers))
    assert snapshot(study) == snapshot(finished)


@pytest.mark.storm
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("executor", ["dask", "ray"])
def test_the_same_bytes_with_any_number_of_workers(settings, finished, tmp_path, executor, workers):
    study = run_elsewhere(settings, tmp_path, execution=execution(executor, workers))
    assert snapshot(study) == snapshot(finished)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_any_batch_size_within_a_step_of_what_is_stored(settings, finished, tmp_path, batch_size):
    """Sums may be taken in another order: latents move by at most one float16 step, all but a few pixels by one level.

    The rest of the pipeline is compared from the same targets, so that each stage shows its own difference.
    """
    config = {"features": {"batch_size": batch_size}, "reconstruct": {"steps": 4, "batch_size": batch_size}}
    study = run(settings, tmp_path, ("ingest", "features"), **config)
    for space in ("vdvae", "clip_vision", "clip_text"):
        a, b = (Store(root, f"targets/{space}").read("latent") for root in (finished, study))
        step = np.spacing(np.maximum(abs(a), abs(b))).astype(float)
        assert (np.abs(a.astype(float) - b.astype(float)) <= np.maximum(step, 2e-5)).all()
    shutil.rmtree(study)
    shutil.copytree(finished, study)
    for path in ("guesses", "reconstructions", "metrics"):
        shutil.rmtree(study / path)
    run(settings, tmp_path, **config)
    for subject in SUBJECTS:
        for path in (f"guesses/{subject}", f"reconstructions/{subject}/full"):
            a, b = (Store(root, path).read("image").astype(int) for root in (finished, study))
            assert (np.abs(a - b) > 1).mean() < 1e-3


def test_running_again_computes_nothing(settings, copied):
    before = snapshot(copied / "study.zarr")
    times = {f: f.stat().st_mtime_ns for f in (copied / "study.zarr").rglob("c/*") if f.is_file()}
    study = run(settings, copied)
    assert snapshot(study) == before
    assert {f: f.stat().st_mtime_ns for f in times} == times


def test_subjects_one_after_the_other_give_the_same_bytes(settings, finished, tmp_path):
    study = run(settings, tmp_path, subjects=["subj02"])
    assert Study(study).paths() == [p for p in Study(finished).paths() if "subj01" not in p]
    run(settings, tmp_path, subjects=["subj01"])
    assert snapshot(study) == snapshot(finished)


def test_stages_one_by_one_give_the_same_bytes(settings, finished, tmp_path):
    with pytest.raises(NotReady, match=r"stimuli: found no such store(.|\n)*--only ingest"):
        run(settings, tmp_path, ("features",))
    for stage in TO_EVALUATE:
        study = run(settings, tmp_path, (stage,))
    assert snapshot(study) == snapshot(finished)


def test_another_configuration_is_refused_then_remade_as_little_as_possible(settings, finished, copied):
    before = snapshot(copied / "study.zarr")
    alpha = {"alpha": {"vdvae": 300, "clip_vision": 300, "clip_text": 900}}
    with pytest.raises(NotReady) as error:
        run(settings, copied, regress=alpha)
    assert "alpha.clip_text: made with 300.0, now 900.0" in str(error.value)
    assert "--remake" in str(error.value)
    assert snapshot(copied / "study.zarr") == before
    study = run(settings, copied, regress=alpha, remake=True)
    after = snapshot(study)
    changed = {name.split("/")[0] for name in before if before[name] != after.get(name)}
    assert changed == {"decoders", "predictions", "guesses", "reconstructions", "metrics"}
    run(settings, copied, remake=True)
    assert snapshot(study) == snapshot(finished)


def test_a_new_variant_reuses_everything_else(settings, copied):
    before = snapshot(copied / "study.zarr")
    variants = {"steps": 4, "batch_size": 4, "variants": ["full", "only_vdvae", "no_vdvae", "no_clip_text"]}
    study = run(settings, copied, reconstruct=variants, remake=True)
    after = snapshot(study)
    assert {name.split("/")[0] for name in before if before[name] != after.get(name)} == {"metrics"}
    images = {v: Store(study, f"reconstructions/subj01/{v}").read("image") for v in variants["variants"]}
    for variant in variants["variants"][1:]:
        assert (images[variant] != images["full"]).mean() > 0.1


@pytest.mark.storm
def test_the_upper_bound_is_painted_from_the_true_latents(settings, copied):
    before = snapshot(copied / "study.zarr")
    study = run(settings, copied, NAMES, reconstruct={"steps": 4, "batch_size": 4, "upper_bound": True})
    assert {name: snapshot(study)[name] for name in before} == before
    targets, guesses = Store(study, "targets/vdvae"), Store(study, "guesses/true")
    ids = guesses.read("nsd_id")
    assert ids.tolist() == targets.read("nsd_id")[targets.read("split") == "test"].tolist()
    painter = Painter("tiny", options=PaintOptions(steps=4))
    latents = targets.read("latent")[targets.rows("nsd_id", ids)].astype(np.float32)
    np.testing.assert_array_equal(painter.guess(latents[:4], "true", ids[:4]), guesses.read("image")[:4])
    assert "true latents" in (copied / "report/index.html").read_text()


@pytest.mark.parametrize(
    "victim", ["stimuli/image/c/1/0/0/0", "targets/clip_text/latent/c/2/0/0", "stimuli/nsd_id/c/0"]
)
def test_damage_met_on_the_way_is_named_and_computed_again(settings, finished, copied, victim, caplog):
    study = copied / "study.zarr"
    content = bytearray((study / victim).read_bytes())
    content[5] ^= 1
    (study / victim).write_bytes(bytes(content))
    later = "regress" if "targets" in victim else "features"
    shutil.rmtree(study / ("predictions" if later == "regress" else "targets"))
    said: list[str] = []
    Pipeline(parse(settings(copied)), say=said.append).run(TO_EVALUATE)
    assert snapshot(study) == snapshot(finished)
    lines = [*said, *(record.getMessage() for record in caplog.records)]
    assert any(victim.split("/c/")[0] in line and line.endswith("it again.") for line in lines)


def test_verify_names_and_repairs(settings, finished, copied):
    study = copied / "study.zarr"
    victims = ["betas/subj01/beta/c/1/0", "reconstructions/subj02/full/image/c/3/0/0/0", "metrics/subj01/written/c/0"]
    for victim in victims:
        content = bytearray((study / victim).read_bytes())
        content[2] ^= 0x40
        (study / victim).write_bytes(bytes(content))
    (study / "predictions/subj01/vdvae/r2/c/1").unlink()
    pipeline = Pipeline(parse(settings(copied)), say=lambda line: None)
    found = {(d.store, d.array) for d in pipeline.verify()}
    assert found == {
        ("betas/subj01", "beta"),
        ("reconstructions/subj02/full", "image"),
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
        "stimuli = tree['stimuli'].to_dataset().swap_dims(stimulus='nsd_id')\n"
        "one = stimuli.sel(nsd_id=int(stimuli.nsd_id[3])).image.values\n"
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
            assert units, f"{path}/{name} has no units"
            assert long_name, f"{path}/{name} has no long_name"
            assert lazy or coordinate or name in dims
            assert coordinate or name not in ("nsd_id", "split", "owner", "i", "j", "k", "roi", "variant", "metric")


def test_hdf5_betas_give_the_same_stores(settings, finished, tmp_path):
    simulate(tmp_path / "nsd", dataclasses.replace(SMALL, betas_format="hdf5"))
    assert not list((tmp_path / "nsd").rglob("betas_session*.nii.gz"))
    study = run(settings, tmp_path, ("ingest",), nsd={"root": str(tmp_path / "nsd"), "sessions": 3})
    for subject in SUBJECTS:
        for path, name in ((f"betas/{subject}", "beta"), (f"responses/{subject}", "response")):
            np.testing.assert_array_equal(Store(study, path).read(name), Store(finished, path).read(name))


# --- bad input: one clear error, nothing half-written ---------------------------------------------------------------


@pytest.fixture
def broken(nsd, tmp_path) -> Path:
    """A copy of the dataset to break."""
    shutil.copytree(nsd, tmp_path / "nsd")
    return tmp_path


def refuse(settings, broken: Path, *words: str, **sections) -> None:
    sections = {"nsd": {"root": str(broken / "nsd"), "sessions": 3} | sections.pop("nsd", {})} | sections
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


def test_a_mended_file_lets_the_run_go_on(settings, nsd, broken, finished):
    good = betas(broken, 2).read_bytes()
    betas(broken, 2).write_bytes(good[:-2000])
    refuse(settings, broken, "betas_session02.nii.gz")
    betas(broken, 2).write_bytes(good)
    study = run(settings, broken, nsd={"root": str(broken / "nsd"), "sessions": 3}, remake=True)
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


def test_constant_and_nan_voxels_are_dropped_or_refused_by_name(settings, broken, finished):
    constant_and_nan(broken)
    refuse(settings, broken, "betas/subj02", "2 constant or NaN voxels", nsd={"bad_voxels": "refuse"})
    study = run(settings, broken, nsd={"root": str(broken / "nsd"), "sessions": 3}, remake=True)
    responses = Store(study, "responses/subj02")
    assert np.flatnonzero(responses.read("valid") == 0).tolist() == [3, 7]
    assert np.isnan(responses.read("response")[:, 3]).all()
    assert np.isfinite(Store(study, "predictions/subj02/vdvae").read("latent")).all()
    others = np.delete(np.arange(responses.sizes["voxel"]), [3, 7])
    untouched = Store(finished, "responses/subj02").read("response")[:, others]
    np.testing.assert_array_equal(responses.read("response")[:, others], untouched)


def test_another_split_is_data(settings, nsd, tmp_path):
    ids = Store(run(settings, tmp_path / "a", ("ingest",)), "stimuli").read("nsd_id")
    listed = sorted(int(i) for i in ids[[0, 2, -1]])
    (tmp_path / "test.txt").write_text("# three of them\n" + "\n".join(map(str, listed)))
    study = run(
        settings, tmp_path / "b", ("ingest",), nsd={"root": str(nsd), "sessions": 3, "test": str(tmp_path / "test.txt")}
    )
    stimuli = Store(study, "stimuli")
    assert stimuli.read("nsd_id")[stimuli.read("split") == "test"].tolist() == listed
    responses = Store(study, "responses/subj02")
    assert set(responses.read("nsd_id")[responses.read("split") == "test"]) == set(listed) & set(
        responses.read("nsd_id").tolist()
    )


def test_a_full_disk_names_itself_and_the_run_goes_on_when_there_is_room(settings, finished, tmp_path):
    """A real full disk: a tmpfs that fills up, one that is too small from the start of a stage, one with room."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", mount], check=False).returncode:
        pytest.fail("this test needs the right to mount a tmpfs")
    try:
        with pytest.raises(StoreError, match="no space left"):
            run(settings, mount)
        for path in Study(mount / "study.zarr").paths():
            assert list(Store(mount / "study.zarr", path).damage()) == []
        subprocess.run(["mount", "-o", "remount,size=1m", mount], check=True)
        with pytest.raises(StoreError, match=r"MiB free; expected .* MiB at least, for what targets/vdvae"):
            run(settings, mount)
        subprocess.run(["mount", "-o", "remount,size=200m", mount], check=True)
        assert snapshot(run(settings, mount)) == snapshot(finished)
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_study_in_memory_is_the_one_on_disk(settings, tmp_path):
    found = {}
    for name, study in (("disk", str(tmp_path / "study.zarr")), ("memory", "memory://pipeline/study.zarr")):
        pipeline = Pipeline(parse(settings(tmp_path, study=study)), say=lambda line: None)
        pipeline.run(("ingest",))
        assert [row.state.kind for row in pipeline.status()][:4] == ["sealed"] * 4
        assert pipeline.verify() == []
        found[name] = remote_snapshot(study) if name == "memory" else snapshot(pipeline.study.path)
    assert found["memory"] == found["disk"]
    path = pipeline.study.path
    path.bucket.write("stimuli/image/c/0/0/0/0", b"damaged")
    assert [damage.store for damage in pipeline.verify(repair=True)] == ["stimuli"]
    assert remote_snapshot(str(path)) == found["disk"]
