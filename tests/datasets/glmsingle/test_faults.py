"""Stimuli, captions, splits, masks, regions, noise ceilings, units and options: bad input is refused in words."""

import json
import logging
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bdflow.config import DatasetSettings
from bdflow.datasets.glmsingle import GLMsingle, GLMsingleSettings
from bdflow.errors import NotAtHand

ROIS = "derivatives/rois/sub-01/sub-01_space-T1w"
MASK, DSEG, CEILING = f"{ROIS}_desc-brain_mask.nii.gz", f"{ROIS}_desc-visual_dseg.nii.gz", f"{ROIS}_desc-noiseceiling"
FIT = "derivatives/glmsingle/sub-01/ses-01"
STATMAP = f"{FIT}/func/sub-01_ses-01_task-scenes_space-T1w_stat-effect_desc-SingletrialBetas_statmap"
NIFTI = (
    "derivatives/glmsingle/{subject}/{session}/func/"
    "{subject}_{session}_task-*_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
)
STIMULI, CAPTIONS = "stimuli/stimuli.tsv", "stimuli/captions.tsv"
SHAPE = (10, 9, 8)


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def volume(path, data, affine=None):
    """Write a volume with the affine of what lies there, or another."""
    if affine is None:
        affine = nib.load(path).affine
    nib.save(nib.Nifti1Image(data, affine), path)


def values(path):
    return np.asarray(nib.load(path).dataobj).copy()


def mask_of(data, name=None, subject="sub-01"):
    return lambda: data.mask(subject, name)


# --- stimuli ----------------------------------------------------------------------------------------------------


def test_tables_of_stimuli_that_are_wrong(dataset, root, refused):
    path, good = root / STIMULI, (root / STIMULI).read_text()
    for call in ("stimuli", "splits", "picture_shape", "stimulus_files"):
        replace(path, "blue-cross_040\t", "green-cross_000\t")
        refused(lambda call=call: getattr(dataset(root), call)(), "line 23", "'green-cross_000' once more", "line 11")
        path.write_text(good)
    replace(path, "blue-cross_040\t", "\t")
    refused(lambda: dataset(root).stimuli(), "line 23", "no id")
    path.write_text(good.replace("filename", "file"))
    refused(lambda: dataset(root).stimuli(), STIMULI, "a column filename")
    assert len(dataset(root, file_column="file").stimuli()) == 22
    path.write_text(good.splitlines()[0])
    refused(lambda: dataset(root).picture_shape(), "no stimulus with a picture")
    path.write_bytes(b"\xff\xfe\x00")
    refused(lambda: dataset(root).stimuli(), STIMULI, "no readable table")
    path.unlink()
    error = refused(lambda: dataset(root).trials("sub-01"), STIMULI, "nothing there", "dataset.options.stimuli")
    assert isinstance(error, NotAtHand)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "images//a.png", "./a.png", "images\\a.png"])
def test_names_of_pictures_stay_below_their_folder(dataset, root, refused, name):
    replace(root / STIMULI, "images/blue-cross_040.jpg", name)
    refused(lambda: dataset(root).pictures(["blue-cross_040"]), STIMULI, "blue-cross_040", "a file below")


def test_a_stimulus_without_a_picture(dataset, root, refused):
    """It may be shown (a word that is imagined), but is none that can be shown as a picture."""
    replace(root / STIMULI, "images/red-triangle_049.png", "n/a")
    data = dataset(root)
    assert "red-triangle_049" not in data.stimuli()
    assert len(data.stimuli()) == 21
    assert data.trials("sub-01").stimulus[0] == "red-triangle_049"
    assert "red-triangle_049" not in data.splits()["set"].test
    refused(lambda: data.pictures(["red-triangle_049"]), "red-triangle_049", "no file in the column filename")


def test_pictures_that_cannot_be_shown(dataset, root, refused):
    data = dataset(root)
    refused(lambda: data.pictures(["a stimulus"]), "no stimulus 'a stimulus'", STIMULI)
    refused(lambda: data.captions(["a stimulus"]), "no stimulus 'a stimulus'", STIMULI)
    path = root / "stimuli/images/blue-cross_040.jpg"
    path.write_bytes(path.read_bytes()[:100])
    refused(lambda: data.pictures(["blue-cross_040"]), path, "no picture that can be read")
    path.unlink()
    error = refused(lambda: data.pictures(["blue-cross_040"]), path, "nothing there", "blue-cross_040", "pictures")
    assert isinstance(error, NotAtHand)
    assert len(data.pictures(["green-cross_000"])) == 1


def test_two_stimuli_of_one_file(dataset, root, refused):
    """Ids tell them apart; where trials name files, nothing does."""
    replace(root / STIMULI, "images/blue-cross_040.jpg", "images/green-cross_000.png")
    assert len(dataset(root).trials("sub-01").run) == 72
    refused(lambda: dataset(root, stimulus_names="file").trials("sub-01"), "images/green-cross_000.png of two stimuli")


def test_transparent_pictures_lie_on_grey(dataset, root):
    image = np.zeros((5, 7, 4), np.uint8)
    image[1, 2] = (10, 20, 30, 255)
    Image.fromarray(image).save(root / "stimuli/images/green-cross_000.png")
    (found,) = dataset(root).pictures(["green-cross_000"])
    assert found.shape == (5, 7, 3)
    assert found[1, 2].tolist() == [10, 20, 30]
    assert (found[0] == 128).all()


def test_pictures_in_another_folder(dataset, root):
    (root / "stimuli/images").rename(root / "images")
    assert len(dataset(root, pictures=None).pictures(["green-cross_000"])) == 1
    (root / "images").rename(root / "shown")
    text = (root / STIMULI).read_text()
    (root / STIMULI).write_text(text.replace("images/", ""))
    assert len(dataset(root, pictures="shown").pictures(["green-cross_000"])) == 1


# --- captions and splits ----------------------------------------------------------------------------------------


def test_captions_may_be_absent_and_elsewhere(dataset, root, tmp_path, refused):
    data = dataset(root, captions=None)
    assert data.captions(["black-cross_098"]) == [[]]
    assert data.captions_per_stimulus() == 0
    assert "captions" not in data.stimulus_files()
    moved = (root / CAPTIONS).rename(tmp_path / "captions.csv")
    moved.write_text(moved.read_text().replace(",", ";").replace("\t", ","))
    error = refused(lambda: dataset(root).captions_per_stimulus(), CAPTIONS, "nothing there", "captions")
    assert isinstance(error, NotAtHand)
    other = GLMsingle(DatasetSettings(kind="glmsingle", root=root, captions=moved))
    assert other.captions_per_stimulus() == 5
    assert other.stimulus_files()["captions"] == moved


def test_captions_with_blanks_and_of_other_stimuli(dataset, root, caplog):
    with (root / CAPTIONS).open("a") as file:
        file.write(
            "blue-cross_040\t  a third  \nblue-cross_040\t \nblue-cross_040\tn/a\nblue-cross_40\ta typing error\n"
        )
    with caplog.at_level(logging.WARNING):
        assert dataset(root).captions(["blue-cross_040"])[0][2:] == ["a third"]
    assert "1 caption of 1 stimulus" in caplog.text
    assert "blue-cross_40" in caplog.text


def test_captions_with_other_columns(dataset, root, refused):
    text = (root / CAPTIONS).read_text()
    (root / CAPTIONS).write_text(text.replace("stimulus_id\tcaption", "image\ttext"))
    refused(lambda: dataset(root).captions_per_stimulus(), CAPTIONS, "a column stimulus_id")
    assert dataset(root, captions_id_column="image", caption_column="text").captions_per_stimulus() == 5


def test_splits_by_several_columns_and_words(dataset, root, refused):
    lines = (root / STIMULI).read_text().splitlines()
    cells = ["held out", *["A", "B", "n/a"] * 7, "B"]
    (root / STIMULI).write_text("\n".join(f"{line}\t{cell}" for line, cell in zip(lines, cells, strict=True)) + "\n")
    (root / STIMULI).write_text((root / STIMULI).read_text().replace("held out", "fold"))
    data = dataset(root, split_columns=["set", "fold"])
    refused(data.splits, "column fold", "line 2", "'A'", "split_values")
    known = {"train": "train", "test": "test", "A": "train", "B": "test"}
    splits = dataset(root, split_columns=["fold", "set"], split_values=known).splits()
    assert list(splits) == ["fold", "set"]
    assert (len(splits["fold"].train), len(splits["fold"].test)) == (7, 8)
    without = dataset(root, split_columns=["fold"], split_values={"A": "neither", "B": "test"}).splits()["fold"]
    assert (len(without.train), len(without.test)) == (0, 8)


def test_splits_that_are_wrong(dataset, root, refused):
    assert dataset(root, split_columns=[]).splits() == {}
    refused(dataset(root, split_columns=["fold"]).splits, STIMULI, "a column fold", "[] if the table has none")
    replace(root / STIMULI, "red-circle_042.png\ttest", "red-circle_042.png\tTest")
    refused(dataset(root).splits, "line 2, column set", "'Test'", "'test'")
    text = (root / STIMULI).read_text().replace("\tTest\t", "\ttest\t").replace("\ttest\t", "\ttrain\t")
    (root / STIMULI).write_text(text)
    refused(dataset(root).splits, "column set", "no stimulus for testing")


# --- subjects and betas -----------------------------------------------------------------------------------------


def test_subjects_and_sessions_that_there_are_not(dataset, root, tmp_path, refused):
    data = dataset(root)
    for call in (data.sessions, data.trials, data.seen, data.grid, data.region_names, data.noise_ceiling):
        refused(lambda call=call: call("sub-03"), "subject sub-03", "sub-01, sub-02")
    mask = data.mask("sub-01", None)
    refused(lambda: data.betas("sub-01", "ses-03", mask), "session ses-03", "ses-01, ses-02")
    refused(lambda: data.beta_files("sub-01", ["3"]), "session 3", "ses-01, ses-02")
    for other in (dataset(tmp_path / "absent"), dataset(root, betas="fit/{subject}/{session}/*.npy")):
        assert isinstance(refused(other.subjects, "nothing there", "dataset.options.betas"), NotAtHand)


def test_two_files_of_betas_of_one_session(dataset, root, refused):
    """Also files of one run each, which are not read."""
    source = root / FIT / "TYPED_FITHRF_GLMDENOISE_RR.npy"
    source.with_suffix(".hdf5").write_bytes(
        (root / FIT.replace("ses-01", "ses-02") / f"{source.stem}.hdf5").read_bytes()
    )
    data = dataset(root)
    assert data.sessions("sub-01") == ["ses-01", "ses-02"]
    refused(lambda: data.trials("sub-01"), "2 files", f"{source.stem}.npy", f"{source.stem}.hdf5", "one run each")
    named = dataset(root, betas=f"derivatives/glmsingle/{{subject}}/{{session}}/{source.stem}.npy")
    assert named.sessions("sub-01") == ["ses-01"]
    assert len(named.trials("sub-01").run) == 39


def test_files_beside_the_betas_are_none(dataset, root):
    """Sidecars, notes and what is being written do not count as betas."""
    for ending in ("json", "txt", "npy.partial"):
        (root / FIT / f"TYPED_FITHRF_GLMDENOISE_RR.{ending}").write_text("{}")
    assert len(dataset(root).trials("sub-01").run) == 72


def test_other_models_of_the_fit(dataset, root, refused):
    """A file without single trials."""
    path = root / FIT / "TYPED_FITHRF_GLMDENOISE_RR.npy"
    np.save(path, {"betasmd": np.zeros((*SHAPE, 1), np.float32)}, allow_pickle=True)
    refused(lambda: dataset(root).trials("sub-01"), "39 trials", "1, as many as", path)
    np.save(path, {"onoffR2": np.zeros(SHAPE)}, allow_pickle=True)
    refused(lambda: dataset(root).trials("sub-01"), path, "a dictionary of onoffR2", "types B to D")


def test_a_fit_of_other_voxels_than_the_mask_has(dataset, root, refused):
    path = root / MASK.replace("sub-01", "sub-02")
    data = values(path)
    at = tuple(np.argwhere(data)[7])
    data[at] = 0
    volume(path, data)
    found = dataset(root)
    for call in (lambda: found.grid("sub-02"), mask_of(found, subject="sub-02")):
        refused(call, "376 voxels", "375", path, "fit_mask")
    data[at] = 1
    fitted = root / "derivatives/rois/sub-02/sub-02_desc-fitted_mask.nii.gz"
    volume(fitted, data, nib.load(path).affine)
    other = dataset(root, fit_mask="derivatives/rois/{subject}/{subject}_desc-fitted_mask.nii.gz")
    assert other.betas("sub-02", "ses-01", other.mask("sub-02", None)).values.shape == (36, 375)
    assert other.beta_files("sub-02", ["ses-01"])["fit mask"] == fitted
    refused(lambda: dataset(root, mask=None).grid("sub-02"), "without their places", "fit_mask")


def test_what_masked_fits_did_not_fit_is_not_valid(dataset, sample):
    data = dataset(sample)
    brain = data.mask("sub-02", None)
    found = data.betas("sub-02", "ses-01", np.ones(brain.shape, bool))
    assert (found.valid == brain.ravel()).all()


def test_masks_of_another_shape_give_no_betas(dataset, sample, refused):
    for options in ({}, {"betas": NIFTI}):
        data = dataset(sample, **options)
        for subject in ("sub-01", "sub-02"):
            refused(lambda s=subject, d=data: d.betas(s, "ses-01", np.ones((9, 9, 8), bool)), "(9, 9, 8)", subject)


def test_infinite_betas(dataset, root, refused):
    path = root / f"{STATMAP}.nii.gz"
    data = values(path)
    data[5, 0, 2, 7] = np.inf
    data[0, 4, 3, 8] = np.nan
    volume(path, data)
    found = dataset(root, betas=NIFTI)
    mask = np.zeros(SHAPE, bool)
    mask[0, 4, 3] = True
    assert found.betas("sub-01", "ses-01", mask).valid.ravel().tolist() == [True] * 8 + [False] + [True] * 30
    mask[5, 0, 2] = True
    refused(lambda: found.betas("sub-01", "ses-01", mask), path, "not finite", "trial 7", "voxel 1")


# --- units ------------------------------------------------------------------------------------------------------


def units(data):
    return data.encoding().units


def test_units_of_sidecars(dataset, root, refused, caplog):
    path = root / f"{STATMAP}.json"
    for word, unit in (("  Percent  signal change", "percent signal change"), ("psc", "percent signal change")):
        path.write_text(json.dumps({"Units": word}))
        assert units(dataset(root, betas=NIFTI)) == unit
    path.write_text(json.dumps({"Units": "z-score"}))
    refused(lambda: dataset(root, betas=NIFTI).encoding(), "z and percent signal change", "one unit", "sub-02")
    with caplog.at_level(logging.WARNING):
        assert units(dataset(root, betas=NIFTI, units="z")) == "z"
    assert "said to be percent signal change" in caplog.text
    for word in ("bananas", ["%"], 3):
        path.write_text(json.dumps({"Units": word}))
        refused(lambda: dataset(root, betas=NIFTI).encoding(), path, "Units", "percent signal change", "options.units")
        assert units(dataset(root, betas=NIFTI, units="arbitrary")) == "arbitrary"
    path.write_text("{}")
    refused(lambda: dataset(root, betas=NIFTI).encoding(), "betas without a unit", path, "options.units")
    path.write_text("{")
    refused(lambda: dataset(root, betas=NIFTI).encoding(), path, "no JSON")
    path.write_text("[]")
    refused(lambda: dataset(root, betas=NIFTI).encoding(), path, "JSON without keys")


def test_units_of_glmsingles_own_files(dataset, root, refused):
    """The fit says whether it was to give percent; a sidecar counts first; what nobody says is asked for."""
    order = {"stimorder": [0]}
    designs = list((root / "derivatives/glmsingle").rglob("DESIGNINFO.npy"))
    for path in designs:
        np.save(path, {**order, "params": {"wantpercentbold": 0}}, allow_pickle=True)
    assert units(dataset(root)) == "arbitrary"
    np.save(designs[0], {**order, "params": {"wantpercentbold": 1}}, allow_pickle=True)
    refused(lambda: dataset(root).encoding(), "percent signal change", "arbitrary", "one unit")
    np.save(designs[0], order, allow_pickle=True)
    refused(lambda: dataset(root).encoding(), "betas without a unit", "no DESIGNINFO.npy says it", "options.units")
    assert units(dataset(root, units="z")) == "z"
    designs[0].unlink()
    refused(lambda: dataset(root).encoding(), "betas without a unit")
    for file in (root / "derivatives/glmsingle").rglob("TYPED*"):
        file.with_suffix(".json").write_text('{"Units": "z"}')
    assert units(dataset(root)) == "z"


# --- masks and regions ------------------------------------------------------------------------------------------


def test_masks_that_are_none(dataset, root, refused):
    path, good = root / MASK, values(root / MASK)
    volume(path, np.zeros_like(good))
    refused(mask_of(dataset(root)), path, "no voxel above 0")
    volume(path, good * (1 + (np.arange(8) > 3)).astype(np.uint8))
    refused(mask_of(dataset(root)), path, "the values 0, 1, 2", "0 outside and 1 inside")
    for bad in (0.5, np.nan, np.inf):
        other = good.astype(np.float32)
        other[3, 3, 3] = bad
        volume(path, other)
        refused(mask_of(dataset(root)), path, "(3, 3, 3)", "whole numbers")
    volume(path, -good.astype(np.int16))
    refused(mask_of(dataset(root)), path, "no mask")
    volume(path, good.astype(np.float64))
    assert dataset(root).mask("sub-01", None).sum() == 376
    path.write_bytes(path.read_bytes()[:100])
    refused(mask_of(dataset(root)), path, "cannot be read", "options.mask")
    path.unlink()
    assert isinstance(refused(mask_of(dataset(root)), MASK, "nothing there", "options.mask"), NotAtHand)
    refused(mask_of(dataset(root, mask=None)), "no mask", "visual/V1", "options.mask")
    assert dataset(root, mask=None).mask("sub-01", "visual").sum() == 180


def test_volumes_on_other_grids(dataset, root, refused):
    path, good = root / MASK, values(root / MASK)
    volume(path, good[:, :, :7])
    refused(mask_of(dataset(root)), "(10, 9, 8)", "(10, 9, 7)", "another place")
    affine = nib.load(root / DSEG).affine
    volume(path, good, affine @ np.diag([-1.0, 1, 1, 1]))
    refused(lambda: dataset(root).grid("sub-01"), "LAS", "RAS")
    volume(path, good, affine)
    volume(root / f"{CEILING}_statmap.nii.gz", np.zeros(SHAPE[::-1], np.float32))
    refused(lambda: dataset(root).noise_ceiling("sub-01"), "(8, 9, 10)", "noiseceiling")
    (root / f"{CEILING}_statmap.nii.gz").unlink()
    with h5py.File(root / FIT.replace("ses-01", "ses-02") / "TYPED_FITHRF_GLMDENOISE_RR.hdf5", "r+") as file:
        betas = file["betasmd"][:9]
        del file["betasmd"]
        file["betasmd"] = betas
    refused(lambda: dataset(root).grid("sub-01"), "(9, 9, 8)", "TYPED_FITHRF_GLMDENOISE_RR.hdf5")


def test_labels_and_their_names(dataset, root, refused):
    table, path = root / DSEG.replace(".nii.gz", ".tsv"), root / DSEG
    good, labels = table.read_text(), values(root / DSEG)
    table.write_text(good.replace("5\thV4\n", ""))
    refused(lambda: dataset(root).regions("sub-01"), path, "the labels 5", "1, 2, 11, 99", table)
    refused(mask_of(dataset(root), "visual"), path, "the labels 5")
    assert "visual/hV4" not in dataset(root).region_names("sub-01")
    for old, new, word in (
        ("5\thV4", "2\thV4", "index 2"),
        ("5\thV4", "5\tV2", "'V2'"),
        ("5\thV4", "5\tn/a", "no name"),
        ("5\thV4", "five\thV4", "'five'"),
        ("index", "number", "a column index"),
    ):
        table.write_text(good.replace(old, new))
        refused(lambda: dataset(root).region_names("sub-01"), table, word)
    table.write_text(good + "0\tbackground\n")
    assert "visual/background" not in dataset(root).regions("sub-01")
    labels = labels.astype(np.float32)
    labels[2, 2, 2] = 1.5
    volume(path, labels)
    refused(lambda: dataset(root).regions("sub-01"), path, "1.5 at (2, 2, 2)", "whole numbers")
    table.unlink()
    error = refused(lambda: dataset(root).region_names("sub-01"), table, "nothing there", "index, name")
    assert isinstance(error, NotAtHand)


def test_one_table_of_names_for_all_subjects(dataset, root):
    tables = [root / (DSEG.replace("sub-01", subject).replace(".nii.gz", ".tsv")) for subject in ("sub-01", "sub-02")]
    tables[0].rename(root / "desc-visual_dseg.tsv")
    tables[1].unlink()
    data = dataset(root, region_tables="desc-{collection}_dseg.tsv")
    assert data.mask("sub-02", "V1").sum() == 44
    assert data.beta_files("sub-02", [])["names of regions visual"] == root / "desc-visual_dseg.tsv"


def test_regions_of_mask_files(dataset, root, refused):
    """One region each; their collection is `masks`, or a part of the name."""
    face, place = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    face[3:5, 4, 4], place[4:7, 4, 4] = 1, 1
    affine = nib.load(root / MASK).affine
    volume(root / f"{ROIS}_label-FFA_mask.nii.gz", face, affine)
    volume(root / f"{ROIS}_label-PPA_mask.nii.gz", place, affine)
    volume(root / f"{ROIS}_label-none_mask.nii.gz", 0 * place, affine)
    data = dataset(root)
    names = ["masks/FFA", "masks/none", "masks/PPA"]
    assert data.region_names("sub-01")[-3:] == sorted(names)
    assert (data.regions("sub-01")["masks/FFA"] == (face > 0)).all()
    assert data.mask("sub-01", "PPA").sum() == 3
    assert data.mask("sub-01", "masks").sum() == 4, "they overlap"
    assert data.regions("sub-01")["masks/none"].sum() == 0
    refused(mask_of(data, "none"), "mask none", "no voxel")
    assert data.beta_files("sub-01", [])["regions masks FFA"].name == "sub-01_space-T1w_label-FFA_mask.nii.gz"
    (root / f"{ROIS}_label-FFA_mask.nii.gz").rename(root / f"{ROIS}_floc-places_label-V1_mask.nii.gz")
    pattern = "derivatives/rois/{subject}/{subject}_space-T1w_floc-{collection}_label-{region}_mask.nii.gz"
    both = dataset(root, regions=[pattern, data.settings.regions[0]])
    assert "places/V1" in both.region_names("sub-01")
    refused(mask_of(both, "V1"), "several regions", "places/V1, visual/V1")
    refused(lambda: dataset(root, regions=[pattern, pattern]).regions("sub-01"), "a second region places/V1")


def test_names_that_no_region_has(dataset, sample, refused):
    data = dataset(sample)
    for name in ("V3", "visual/V3", "visual/", "", "notinthisbrain"):
        refused(mask_of(data, name), "sub-01", "visual/V1")
    refused(mask_of(dataset(sample, regions=[]), "V1"), "no region or collection")
    assert dataset(sample, regions=[]).regions("sub-01") == {}


# --- noise ceilings ---------------------------------------------------------------------------------------------


def ceiling(data):
    return lambda: data.noise_ceiling("sub-01")


def test_noise_ceilings_say_their_unit(dataset, root, refused, caplog):
    sidecar, path = root / f"{CEILING}_statmap.json", root / f"{CEILING}_statmap.nii.gz"
    sidecar.write_text('{"Units": "fraction of variance"}')
    refused(ceiling(dataset(root)), sidecar, "Repeats", "another one for each number", "noise_ceiling_repeats")
    assert dataset(root, noise_ceiling_repeats=4).noise_ceiling("sub-01").repeats == 4
    for repeats in ("3", 2.5, 0, True):
        sidecar.write_text(json.dumps({"Units": "fraction", "Repeats": repeats}))
        refused(ceiling(dataset(root)), sidecar, "Repeats")
    sidecar.write_text('{"Units": "ncsnr"}')
    found = dataset(root).noise_ceiling("sub-01")
    assert (found.unit, found.repeats) == ("ncsnr", None)
    sidecar.write_text('{"Units": "litres", "Repeats": 3}')
    refused(ceiling(dataset(root)), sidecar, "'litres'", "noise_ceiling_unit")
    sidecar.write_text('{"Units": "percent", "Repeats": 3}')
    with caplog.at_level(logging.WARNING):
        found = dataset(root, noise_ceiling_unit="fraction", noise_ceiling_repeats=2).noise_ceiling("sub-01")
    assert (found.unit, found.repeats) == ("fraction", 2)
    assert "percent of `Units`" in caplog.text
    assert "3 of `Repeats`" in caplog.text
    sidecar.unlink()
    refused(ceiling(dataset(root)), path, "without a unit", "noise_ceiling_unit")
    known = dataset(root, noise_ceiling_unit="fraction", noise_ceiling_repeats=3).noise_ceiling("sub-01")
    assert known.unit == "fraction"
    assert dataset(root, noise_ceiling=None).noise_ceiling("sub-01") is None


@pytest.mark.parametrize(
    ("unit", "bad", "said"),
    [
        ("fraction", 1.5, "at most 1"),
        ("percent", 101, "at most 100"),
        ("ncsnr", -0.1, "from 0"),
        ("ncsnr", np.inf, "inf"),
    ],
)
def test_values_that_are_none_in_the_unit(dataset, root, refused, unit, bad, said):
    path = root / f"{CEILING}_statmap.nii.gz"
    data = values(path)
    data[5, 0, 3] = bad
    volume(path, data)
    options = {"noise_ceiling_unit": unit, "noise_ceiling_repeats": 3}
    refused(ceiling(dataset(root, **options)), path, "1 voxel", said, "noise_ceiling_unit")


def test_two_noise_ceilings(dataset, root, refused):
    pattern = "derivatives/rois/{subject}/{subject}_*.nii.gz"
    refused(ceiling(dataset(root, noise_ceiling=pattern)), "3 files", pattern.replace("{subject}", "sub-01"))


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": "x"}, "did you mean `dataset.options.betas`"),
        ({"betas": "fit/{session}.npy"}, "there must be {subject} in it"),
        ({"betas": []}, "betas"),
        ({"betas": "fit/{subject}/{run}.npy"}, "{run} is none of"),
        ({"betas": "fit/{subject}/x.npy"}, "must all have {session} in them"),
        ({"trials": "{subject}_trials.tsv"}, "must all have {session} in them"),
        ({"betas": "../{subject}/{session}.npy"}, "below the root"),
        ({"betas": "/data/{subject}/{session}.npy"}, "below the root"),
        ({"betas": "**/{subject}/{session}.npy"}, "`**`"),
        ({"betas": "{subject}/{session}/[ab].npy"}, "`[`"),
        ({"betas": "{subject/{session}.npy"}, "{subject"),
        ({"regions": "{subject}_{collection}.nii.gz"}, "it must end with _dseg.nii.gz"),
        ({"regions": "{subject}_dseg.nii.gz"}, "{collection} must be in its name"),
        ({"regions": "{subject}_{collection}_mask.nii.gz"}, "{region} must be in its name"),
        ({"region_tables": "names.tsv"}, "there must be {collection} in it"),
        ({"units": "percent"}, "units"),
        ({"fit_order": "c"}, "fit_order"),
        ({"stimulus_names": "name"}, "stimulus_names"),
        ({"split_values": {"a": "validation"}}, "split_values.a"),
        ({"noise_ceiling_repeats": 0}, "noise_ceiling_repeats"),
        ({"trial_rows": {"trial_type": []}}, "trial_rows.trial_type"),
        ({"run_column": 3}, "run_column"),
        ({"stimuli": "../stimuli.tsv"}, "below the root"),
    ],
)
def test_options_that_are_wrong(dataset, sample, refused, options, said):
    refused(lambda: dataset(sample, **options), "dataset.kind glmsingle", said)


def test_the_page_has_every_option_and_its_default():
    page = (Path(__file__).parents[3] / "docs/glmsingle.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for name, field in GLMsingleSettings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        said = rows[name].split(" | ")[1]
        if default is None:
            assert said.startswith("null"), name
        for part in default if isinstance(default, tuple) else (default,):
            text = "{" + ", ".join(f"{k}: {v}" for k, v in part.items()) + "}" if isinstance(part, dict) else part
            assert str(text if text is not None else "null") in said, name
    assert set(rows) > set(GLMsingleSettings.model_fields)
