"""Regions as patterns: decoded by the stored decoders, painted, drawn, mapped; nothing else in the study is touched."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from bdflow.cli.main import app
from bdflow.config import Config, parse
from bdflow.datasets.ceilings import noise_ceiling
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline, stages_until
from bdflow.regions.rescale import rescaled
from bdflow.report.regions import montage
from bdflow.stores import Store
from bdflow.study import decoder, region_patterns, voxel_maps
from bdflow.study.painting import painting
from tests.conftest import SPACES, SUBJECTS, painter, snapshot, spaces
from tests.support.regions import voxels_in

SETS = {"areas": ["V1", "faces | bodies"], "bands": ["ecc 2-4 - ecc 1-2", "random 20"]}


@pytest.fixture(scope="module")
def made(settings, tmp_path_factory) -> Config:
    """A study with decoders, and two sets of regions in two strengths and two seeds, painted."""
    root = tmp_path_factory.mktemp("roi")
    content = settings(root, roi={"sets": SETS, "strengths": [1, 3], "seeds": 2}, painters=painter(steps=2)) | {
        "spaces": spaces(clip_text={"weights": True})
    }
    (root / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    config = parse(content)
    pipeline = Pipeline(config)
    pipeline.run(tuple(stages_until("regress")))
    before = snapshot(config.study)
    pipeline.run(("roi",))
    after = snapshot(config.study)
    assert {name: after[name] for name in before} == before, "the stage touches no other store"
    return config


def context(config: Config, looking: bool = True, **sections):
    return Pipeline(
        parse(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)) | sections)
    ).context(looking=looking)


def store(config: Config, path: str) -> Store:
    return Store(config.study, f"rois/{path}")


def test_a_run_without_regions_is_as_before(made):
    assert "roi" not in tuple(stages_until("report"))
    expected = context(made).expected
    other = context(made, roi={"sets": {"areas": ["V1"]}}).expected
    changed = {path for path, of in other.items() if of.fingerprint != expected[path].fingerprint}
    assert changed
    assert all(path.startswith("rois/") for path in changed)


def test_status_knows_regions_where_they_are(made):
    rows = {row.path: row.state.kind for row in Pipeline(made).status()}
    assert {kind for path, kind in rows.items() if path.startswith("rois/")} == {"sealed"}
    absent = Pipeline(context(made, roi={"sets": {"other": ["V1"]}}).config).status()
    assert not [row for row in absent if "other" in row.path]


@pytest.mark.parametrize("chosen", SETS)
def test_patterns_are_the_labels_of_the_betas(made, chosen):
    for subject in SUBJECTS:
        betas, found = Store(made.study, f"betas/{subject}"), store(made, f"{chosen}/{subject}/patterns")
        assert found.read("region").tolist() == SETS[chosen]
        pattern = found.read("pattern")
        np.testing.assert_array_equal(found.read("voxels"), (pattern != 0).sum(axis=1))
        if chosen == "areas":
            np.testing.assert_array_equal(pattern[0], voxels_in(betas, "prf-visualrois", "V1v", "V1d"))
            np.testing.assert_array_equal(pattern[1], voxels_in(betas, "floc-faces") | voxels_in(betas, "floc-bodies"))
        else:
            far, near = (voxels_in(betas, "prf-eccrois", name) for name in ("ecc4", "ecc2"))
            np.testing.assert_array_equal(pattern[0], 1.0 * far - near)
            assert pattern[1].sum() == 20


@pytest.mark.parametrize("space", SPACES)
def test_latents_are_what_the_stored_decoder_makes_of_the_patterns(made, space):
    latents = []
    for subject in SUBJECTS:
        found = store(made, f"areas/{subject}/latents/{space}")
        expected = decoder.decode(
            context(made), subject, store(made, f"areas/{subject}/patterns").read("pattern"), space
        )
        np.testing.assert_allclose(found.read("latent"), expected, atol=1e-6)
        latents.append(found.read("latent"))
    np.testing.assert_allclose(
        store(made, f"areas/mean/latents/{space}").read("latent"), np.mean(latents, axis=0), atol=1e-6
    )
    if space == "clip_text":
        weight = Store(made.study, f"weights/{SUBJECTS[1]}/{space}").read("weight")
        pattern = store(made, f"areas/{SUBJECTS[1]}/patterns").read("pattern")
        by_weights = np.tensordot(pattern, weight, 1)
        np.testing.assert_allclose(latents[1] - found.read("train_mean"), by_weights, atol=1e-4)


@pytest.mark.parametrize("subject", [SUBJECTS[0], "mean"])
def test_pictures_are_painted_as_photos_are_from_rescaled_latents(made, subject):
    parts = {}
    for space in SPACES:
        of = store(made, f"bands/{subject}/latents/{space}")
        latent, mean, std = (of.read(name) for name in ("latent", "train_mean", "train_std"))
        parts[space] = rescaled(latent[:1], mean, std, "training_norm", 3)
    networks: Any = painting(made, "brain_diffuser")
    guess = networks.guess(parts["vdvae"], f"roi {subject}", [1])
    image = networks.paint(guess, parts["clip_vision"], parts["clip_text"], f"roi {subject}", [1])
    for kind, expected in (("guesses", guess), ("images", image)):
        found = store(made, f"bands/{subject}/{kind}/brain_diffuser")
        assert (found.read("strength").tolist(), found.read("noise").tolist()) == ([1, 3], [0, 1])
        assert np.abs(found.read("image")[0, 1, 1].astype(int) - expected[0]).max() <= 1
    assert len(np.unique(found.read("image").reshape(8, -1), axis=0)) == 8, "every region, strength and seed its own"


def test_other_regions_are_another_set_and_a_changed_set_is_refused(made):
    changed = context(made, roi={"sets": {"areas": ["V2"]}, "strengths": [1, 3], "seeds": 2})
    with pytest.raises(Exception, match="made from something else"):
        Pipeline(changed.config).run(("roi",))


@pytest.mark.parametrize(
    ("regions", "words"),
    [(["V7"], ["'V7'", "faces"]), (["V1 \\ V1"], ["of subj01", "no voxel is left", "V2 ("])],
)
def test_regions_that_are_not_there_are_refused_with_those_that_are(made, regions, words):
    with pytest.raises(InputError) as error:
        Pipeline(context(made, roi={"sets": {"other": regions}}).config).run(("roi",))
    for word in words:
        assert word in str(error.value)
    assert not (made.study / "rois/other").exists()


@pytest.mark.slow(kind="executors")
@pytest.mark.parametrize("executor", ["dask", "ray"])
def test_every_executor_paints_the_same_bytes(made, tmp_path, executor):
    shutil.copytree(made.study, tmp_path / "study.zarr", ignore=shutil.ignore_patterns("rois"))
    where = {"executor": executor, "workers": 2}
    other = context(made, study=str(tmp_path / "study.zarr"), execution={"roi": where}).config
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(other.model_dump(mode="json"), sort_keys=False))
    command = [
        sys.executable,
        "-m",
        "bdflow.cli.main",
        "roi",
        str(tmp_path / "config.yaml"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    ours, theirs = snapshot(made.study), snapshot(other.study)
    chosen = [name for name in theirs if name.startswith(("rois/areas", "rois/bands"))]
    assert len(chosen) > 100
    assert not [name for name in chosen if theirs[name] != ours[name]]


# --- a user's own patterns ------------------------------------------------------------------------------------


def test_a_mask_in_the_subjects_grid_is_a_region(made, tmp_path):
    subject = SUBJECTS[1]
    grid = voxel_maps.grid_of(context(made), subject)
    at = voxel_maps.positions(context(made), subject)
    label = np.random.default_rng(0).integers(0, 2, len(at[0])).astype("f4")
    volume = voxel_maps.in_volume(label, at, grid.shape)
    nibabel.save(nibabel.Nifti1Image(np.nan_to_num(volume), grid.affine), tmp_path / "mine.nii.gz")
    of = context(made, roi={"masks": {"mine": {subject: str(tmp_path / "mine.nii.gz")}}, "sets": {"own": ["mine"]}})
    assert region_patterns.keys_of(of) == [("own", subject)]
    np.testing.assert_array_equal(region_patterns.made(of, subject, ["mine"])["pattern"][0], label)
    for change, word in ((volume[1:], "of shape"), (volume, "axes that run to")):
        affine = grid.affine if word == "of shape" else grid.affine @ np.diag([-1, 1, 1, 1])
        nibabel.save(nibabel.Nifti1Image(np.nan_to_num(change), affine), tmp_path / "mine.nii.gz")
        with pytest.raises(InputError, match=word):
            region_patterns.made(of, subject, ["mine"])


def test_a_vector_is_a_pattern_and_another_length_is_refused(made, tmp_path):
    subject = SUBJECTS[0]
    voxels = Store(made.study, f"betas/{subject}").sizes["voxel"]
    values = np.random.default_rng(0).normal(size=voxels).astype("f4")
    sections = {"masks": {"mine": {subject: str(tmp_path / "mine.npy")}}, "sets": {"own": ["mine"]}}
    with pytest.raises(InputError, match="no such file"):
        context(made, looking=False, roi=sections)
    np.save(tmp_path / "mine.npy", values)
    of = context(made, roi=sections)
    for vector, word in ((values[1:], r"\(\d+,\)"), (np.where(values > 0, np.nan, values), "not finite")):
        np.save(tmp_path / "mine.npy", vector)
        with pytest.raises(InputError, match=word):
            region_patterns.made(of, subject, ["mine"])
    np.save(tmp_path / "mine.npy", values)
    np.testing.assert_array_equal(region_patterns.made(of, subject, ["mine"])["pattern"][0], values)


@pytest.mark.parametrize(
    ("masks", "sets", "word"),
    [
        ({"faces": {"subj01": "x.nii"}}, {"own": ["faces"]}, "two meanings"),
        ({"mine": {}}, {"own": ["mine"]}, "no subject with every mask"),
    ],
)
def test_masks_that_cannot_be_used(made, masks, sets, word):
    with pytest.raises(InputError, match=word):
        context(made, roi={"masks": masks, "sets": sets})


# --- what is shown --------------------------------------------------------------------------------------------


def test_the_command_paints_a_region_and_says_where(made, tmp_path):
    config = str(made.study.parent / "config.yaml")
    command = ["roi", config, "--region", "V1 + hV4 - bodies", "--out", str(tmp_path), "--subjects", SUBJECTS[0]]
    done = CliRunner().invoke(app, [*command, "--set", "roi.seeds=1", "--set", "roi.strengths=[1]"])
    assert done.exit_code == 0, done.output
    names = [line for line in done.output.splitlines() if line.startswith(str(made.study))]
    assert re.fullmatch(r".*/rois/V1_hV4_bodies_[0-9a-f]{6}", names[0])
    assert sorted(Path(names[0]).iterdir())[0].name == SUBJECTS[0]
    pattern = Store(made.study, f"rois/{Path(names[0]).name}/{SUBJECTS[0]}/patterns").read("pattern")
    assert f"V1 + hV4 - bodies: {SUBJECTS[0]} {(pattern != 0).sum()} voxels" in done.output
    pictures = sorted(tmp_path.glob("*.png"))
    assert [str(file) in done.output for file in pictures] == [True, True]
    image = Image.open(pictures[0]).convert("L")
    assert image.getextrema()[0] < 128
    assert f">{SUBJECTS[0]}<" in pictures[0].with_suffix(".svg").read_text()
    refused = CliRunner().invoke(app, ["roi", config, "--mask", "some.nii.gz"])
    assert isinstance(refused.exception, InputError)
    assert "name one subject" in str(refused.exception)


def test_maps_hold_the_stores_values_voxel_by_voxel_in_the_subjects_grid(made, tmp_path):
    files = Pipeline(made).maps(tmp_path)
    assert {file.parent.name for file in files} == set(SUBJECTS)
    for subject in SUBJECTS:
        betas = Store(made.study, f"betas/{subject}")
        at = tuple(betas.read(axis) for axis in "ijk")
        own = nibabel.load(made.dataset.root / f"nsddata/ppdata/{subject}/func1pt8mm/roi/nsdgeneral.nii.gz")
        expected = {
            "noise_ceiling": noise_ceiling(betas.read("ncsnr"), 3).astype("f4"),
            "decoded_from": Store(made.study, f"responses/{subject}/averaged").read("valid"),
            "region_V1": voxels_in(betas, "prf-visualrois", "V1v", "V1d"),
            "region_faces": voxels_in(betas, "floc-faces"),
            "importance_clip_text": Store(made.study, f"importance/{subject}/clip_text").read("importance"),
            "pattern_bands_01_ecc_2-4_minus_ecc_1-2": store(made, f"bands/{subject}/patterns").read("pattern")[0],
        }
        for name, values in expected.items():
            image = nibabel.load(tmp_path / subject / f"{name}.nii.gz")
            assert image.shape == own.shape
            np.testing.assert_array_equal(image.affine, own.affine)
            assert image.header["sform_code"] == own.header["sform_code"]
            data = np.asarray(image.dataobj)
            np.testing.assert_array_equal(data[at], values)
            outside = np.ones(own.shape, bool)
            outside[at] = False
            assert not np.nan_to_num(data[outside]).any()


def test_slices_show_voxels_at_their_places():
    at = tuple(np.array(axis) for axis in ([3, 3, 5], [2, 4, 2], [7, 7, 7]))
    colours = np.array([[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]], float)
    image = montage(colours, at)
    red, green, blue = ((image == colour).all(axis=-1) for colour in colours.astype("u1"))
    assert red.any(axis=0).sum() > green.any(axis=0).sum()
    assert blue.any()
