"""A small tree in the layout of LAION-fMRI reads to numbers that were computed from the files alone."""

import json
import pickle
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bdflow.config import DatasetSettings
from bdflow.datasets.laion_fmri import LaionFMRI
from bdflow.errors import InputError
from bdflow.stores.paths import place

ROOT = Path(__file__).parents[2] / "samples/laion_fmri"
EXPECTED = json.loads((ROOT / "expected.json").read_text())
SUBJECTS = EXPECTED["subjects"]
BOTH = pytest.mark.parametrize("subject", SUBJECTS)
NEAR = {"abs": 1e-4}


def dataset(root=ROOT, **options) -> LaionFMRI:
    return LaionFMRI(DatasetSettings(kind="laion_fmri", root=root, options=options))


@pytest.fixture(scope="module")
def laion() -> LaionFMRI:
    return dataset(splits=str(ROOT / "splits"))


@pytest.fixture(scope="module", params=SUBJECTS)
def whole(request, laion) -> tuple[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """A subject, and of each session values and validity (trial, x, y, z) of every voxel, NaN where not valid."""
    subject = request.param
    shape = tuple(SUBJECTS[subject]["shape"])
    found = {}
    for session in laion.sessions(subject):
        betas = laion.betas(subject, session, np.ones(shape, bool))
        assert betas.values.dtype == np.float32
        assert not betas.values[~betas.valid].any()
        values = np.where(betas.valid, betas.values.astype(np.float64), np.nan)
        found[session] = values.reshape(-1, *shape), betas.valid.reshape(-1, *shape)
    return subject, found


def raw(subject: str, session: str) -> np.ndarray:
    """The betas of a session as they stand in the file, (x, y, z, trial)."""
    folder = ROOT / "derivatives/glmsingle-tedana" / subject / session / "func"
    (path,) = folder.glob("*SingletrialBetas_statmap.nii.gz")
    return np.asarray(nib.load(path).dataobj)


# --- stimuli ----------------------------------------------------------------------------------------------------


def test_stimuli_are_the_rows_of_the_table(laion):
    stimuli = laion.stimuli()
    assert len(stimuli) == len(set(stimuli)) == EXPECTED["stimuli"]["rows"]
    for example in EXPECTED["stimuli"]["examples"]:
        assert stimuli[example["row"]] == example["image_name"]
    assert laion.picture_shape() == tuple(EXPECTED["stimuli"]["size"])


def test_pictures_are_as_they_were_shown(laion):
    """Alpha lies on the grey that was around the pictures; dropping it would give another mean."""
    examples = EXPECTED["stimuli"]["examples"]
    tolerance = EXPECTED["stimuli"]["tolerance_rgb"]
    pictures = laion.pictures([example["image_name"] for example in examples])
    for picture, example in zip(pictures, examples, strict=True):
        assert picture.dtype == np.uint8
        mean = picture.mean((0, 1))
        np.testing.assert_allclose(mean, example["mean_rgb_as_displayed"], atol=tolerance)
        if "mean_rgb_if_alpha_is_dropped" in example:
            assert np.abs(mean - example["mean_rgb_if_alpha_is_dropped"]).max() > 10


def test_every_stimulus_has_a_picture_in_any_order_and_again(laion):
    stimuli = laion.stimuli()
    pictures = laion.pictures(stimuli)
    assert {picture.shape for picture in pictures} == {(*EXPECTED["stimuli"]["size"], 3)}
    asked = [stimuli[7], stimuli[3], stimuli[7]]
    for picture, number in zip(laion.pictures(asked), (7, 3, 7), strict=True):
        np.testing.assert_array_equal(picture, pictures[number])


def test_captions_peoples_by_rank_then_the_models(laion):
    expected = EXPECTED["captions"]
    stimuli = laion.stimuli()
    captions = dict(zip(stimuli, laion.captions(stimuli), strict=True))
    counts = Counter(len(found) for found in captions.values())
    assert {str(n): count for n, count in counts.items()} == expected["images_by_number_of_captions"]
    assert sum(map(len, captions.values())) == expected["rows"] == expected["human"] + expected["ai"]
    assert laion.captions_per_stimulus() == max(map(int, expected["images_by_number_of_captions"]))
    for name, (ai, *human) in expected["in_order_of_caption_idx"].items():
        assert captions[name] == [text.strip() for text in (*human, ai)]
    for name, rank, text in expected["odd_text"]:
        assert captions[name][rank - 1] == text.strip()
    assert all(text == text.strip() != "" for found in captions.values() for text in found)


@pytest.mark.parametrize("model", EXPECTED["embeddings"])
def test_embeddings_are_joined_by_name(laion, model):
    """Their rows are in another order than the table's."""
    expected = EXPECTED["embeddings"][model]
    name = expected["image_name"]
    assert laion.stimuli()[expected["row_in_metadata"]] == name
    assert expected["row"] != expected["row_in_metadata"]
    valid = [stimulus for stimulus in laion.stimuli() if stimulus not in expected["not_valid"]]
    found = laion.embeddings(model, valid)
    assert found.dtype == np.float32
    assert found.shape == (len(valid), expected["shape"][1])
    np.testing.assert_allclose(found[valid.index(name), :3], expected["first3"], atol=1e-3)
    again = laion.embeddings(model, [name, valid[0], name])
    np.testing.assert_array_equal(again, found[[valid.index(name), 0, valid.index(name)]])
    for stimulus in expected["not_valid"]:
        with pytest.raises(InputError, match="calls not valid") as error:
            laion.embeddings(model, [name, stimulus])
        assert stimulus in str(error.value)
    assert len(laion.stimuli()) == expected["shape"][0]


# --- subjects ---------------------------------------------------------------------------------------------------


def test_subjects_and_sessions_are_those_that_there_are(laion):
    """Numbers have gaps: sub-03 has no ses-02."""
    assert laion.subjects() == list(SUBJECTS)
    for subject, expected in SUBJECTS.items():
        assert laion.sessions(subject) == list(expected["sessions"])


@BOTH
def test_trials(laion, subject):
    expected, trials = SUBJECTS[subject], laion.trials(subject)
    assert len(trials.stimulus) == expected["trials"]
    assert Counter(trials.stimulus.tolist()) == expected["repeats"]
    assert len(set(trials.stimulus.tolist())) == expected["stimuli_shown"]
    assert set(trials.stimulus.tolist()) <= set(laion.stimuli())
    assert trials.run.dtype == trials.index.dtype == np.int32
    assert set(trials.condition.tolist()) == {""}
    assert list(dict.fromkeys(trials.session.tolist())) == list(expected["sessions"])
    for session, of_session in expected["sessions"].items():
        here = trials.session == session
        assert here.sum() == of_session["trials"]
        np.testing.assert_array_equal(trials.index[here], np.arange(of_session["trials"]))
        runs = Counter(trials.run[here].tolist())
        assert {str(run): count for run, count in runs.items()} == of_session["trials_by_run"]
        labels = trials.stimulus[here]
        assert labels[0] == of_session["first_label"]
        assert sum(label.startswith("shared_") for label in labels) == of_session["shared_trials"]


@BOTH
def test_seen_is_what_the_design_says(laion, subject):
    """All shared stimuli, also those that no session showed, and the subject's own; p04 is sub-03's."""
    own = {"sub-01": "_p01.", "sub-03": "_p04."}[subject]
    seen = laion.seen(subject)
    assert seen == {name for name in laion.stimuli() if name.startswith("shared_") or own in name}
    assert seen > set(laion.trials(subject).stimulus.tolist())
    shared = laion.seen("sub-01") & laion.seen("sub-03")
    assert len(shared) == EXPECTED["stimuli"]["shared"]


@BOTH
def test_splits(laion, subject):
    """Counts of each part, of names that were never shown, and of the trials of each."""
    shown = laion.trials(subject).stimulus.tolist()
    splits = laion.splits()
    assert set(SUBJECTS[subject]["splits"]) <= set(splits)
    for name, expected in SUBJECTS[subject]["splits"].items():
        split = splits[name]
        assert (len(split.train), len(split.test)) == (expected["train_ids"], expected["test_ids"]), name
        assert len(split.train - set(shown)) == expected["train_ids_not_shown"]
        assert len(split.test - set(shown)) == expected["test_ids_not_shown"]
        train, test = (sum(label in part for label in shown) for part in (split.train, split.test))
        assert (train, test) == (expected["train_trials"], expected["test_trials"])
        assert len(shown) - train - test == expected["trials_in_neither"]


def test_splits_are_named_by_folder_and_file(laion):
    names = ("cluster_k5_0", "ood", "random_0", "random_1", "tau")
    assert list(laion.splits()) == [f"{pool}/{name}" for pool in ("shared", "sub-01", "sub-03") for name in names]
    assert dict(dataset().splits()) == {}
    assert "shared_12rep_LAION_cluster_2589_i3.jpg" not in laion.stimuli()
    assert "shared_12rep_LAION_cluster_2589_i3.jpg" in laion.splits()["shared/ood"].train


# --- voxels -----------------------------------------------------------------------------------------------------


@BOTH
def test_grid_and_masks(laion, subject):
    expected, grid = SUBJECTS[subject], laion.grid(subject)
    assert grid.shape == tuple(expected["shape"])
    np.testing.assert_allclose(grid.voxel_size, 1.778, atol=1e-3)
    assert laion.affine_form(subject) == 1
    brain, rsquare = laion.mask(subject, "brain"), laion.mask(subject, "rsquare")
    assert brain.dtype == rsquare.dtype == bool
    assert brain.shape == rsquare.shape == grid.shape
    assert brain.sum() == expected["voxels"]["anatomical"]
    assert rsquare.sum() == expected["voxels"]["rsquare"]
    assert (rsquare & ~brain).sum() == expected["voxels"]["rsquare_outside_anatomical"]
    np.testing.assert_array_equal(laion.mask(subject, None), rsquare)


@BOTH
def test_regions(laion, subject):
    """On the betas' grid alone, whatever the spelling in the file's name; `res-1pt5` has other voxels."""
    expected, regions = SUBJECTS[subject]["regions"], laion.regions(subject)
    names = {f"{region['category']}/{name}" for name, region in expected.items()}
    assert set(regions) == names
    assert list(laion.region_names(subject)) == list(regions)
    files = laion.beta_files(subject, [])
    for name, region in expected.items():
        full = f"{region['category']}/{name}"
        mask = regions[full]
        assert mask.dtype == bool
        assert mask.sum() == region["voxels"]
        assert (mask & laion.mask(subject, "brain")).sum() == region["voxels_in_brain_mask"]
        assert f"res-1pt8_label-{region['file_label']}_mask" in files[f"region {full}"].name
        for spelling in (full, name, region["file_label"]):
            np.testing.assert_array_equal(laion.mask(subject, spelling), mask)
    assert not np.array_equal(laion.mask(subject, "EVC"), laion.mask(subject, "laion-EVC"))


def test_what_is_no_number_or_the_same_in_every_trial_is_no_measurement(laion, whole):
    """NaN for a whole session, for every session and for one trial; zeros or NaN outside the brain."""
    subject, sessions = whole
    expected, brain = SUBJECTS[subject], laion.mask(subject, "brain")
    missing = {session: ~valid for session, (_, valid) in sessions.items()}
    for session, of_session in expected["sessions"].items():
        assert missing[session][:, brain].sum() == of_session["nan_betas_in_anatomical_mask"]
        assert missing[session][:, ~brain].all()
        outside = raw(subject, session)[~brain]
        assert np.isnan(outside).all() if of_session["outside_the_brain"] == "nan" else not outside.any()
    never = np.all([each.all(0) for each in missing.values()], axis=0) & brain
    assert np.argwhere(never).tolist() == expected["nan"]["in_every_session"]
    once = [[s, voxel] for s, each in missing.items() for voxel in np.argwhere(each.all(0) & brain & ~never).tolist()]
    assert once == expected["nan"]["in_one_whole_session"]
    single = [
        [session, trial, voxel]
        for session, each in missing.items()
        for trial, *voxel in np.argwhere(each & brain & ~each.all(0)).tolist()
    ]
    assert single == expected["nan"]["single_trials"]


def test_voxels_to_check(whole):
    subject, sessions = whole
    for check in SUBJECTS[subject]["voxels_to_check"]:
        values = sessions[check["session"]][0][(slice(None), *check["ijk"])]
        finite = values[~np.isnan(values)]
        assert finite.size == check["finite"]
        first = [None if np.isnan(value) else pytest.approx(value, **NEAR) for value in values[:3]]
        assert check["first3"] == first
        if finite.size:
            assert finite.mean() == pytest.approx(check["mean_of_finite"], **NEAR)
            assert finite.std() == pytest.approx(check["std_of_finite"], **NEAR)


def test_a_response_is_the_mean_of_a_stimulus_trials(laion, whole):
    """Trials and betas belong together by session and index, as they are and after z-scoring in each session."""
    subject, sessions = whole
    expected, trials = SUBJECTS[subject]["response"], laion.trials(subject)
    place_ = (slice(None), *expected["ijk"])
    of_voxel = {session: values[place_] for session, (values, _) in sessions.items()}
    at = np.flatnonzero(trials.stimulus == expected["image_name"])
    assert at.size == expected["repeats"]
    betas = np.array([of_voxel[trials.session[i]][trials.index[i]] for i in at])
    assert betas.mean() == pytest.approx(expected["mean_over_repeats"], **NEAR)
    z = {session: (values - values.mean()) / values.std() for session, values in of_voxel.items()}
    betas = np.array([z[trials.session[i]][trials.index[i]] for i in at])
    assert betas.mean() == pytest.approx(expected["mean_over_repeats_after_z_within_session"], **NEAR)


def test_betas_of_a_mask_are_those_of_the_file_in_c_order(laion):
    mask = laion.mask("sub-03", "retinotopy/V1v")
    betas = laion.betas("sub-03", "ses-03", mask)
    np.testing.assert_array_equal(betas.values, raw("sub-03", "ses-03")[mask].T)
    assert betas.valid.all()
    assert laion.encoding().dtype == "float32"
    assert laion.encoding().units == "percent signal change"
    assert laion.encoding().divisor == 1


@BOTH
@pytest.mark.parametrize(("which", "repeats"), [("4rep", 4), ("12rep", 12), ("Allrep", 6)])
def test_noise_ceiling(laion, subject, which, repeats):
    """Percent, of as many repeats as its name says; of all, of as many as the configuration says."""
    more = {"noise_ceiling_repeats": repeats} if which == "Allrep" else {}
    found = dataset(noise_ceiling=which, **more).noise_ceiling(subject)
    expected = SUBJECTS[subject]["noise_ceiling"][f"Noiseceiling{which}"]
    assert (found.unit, found.repeats) == (expected["unit"], repeats)
    assert found.values.shape == tuple(SUBJECTS[subject]["shape"])
    brain = laion.mask(subject, "brain")
    known = found.values[brain]
    assert np.isnan(known).sum() == expected["nan_in_brain"]
    assert np.nanmax(known) == pytest.approx(expected["at_best_voxel"], **NEAR)
    general = found.values[laion.mask(subject, "laiongeneral")]
    assert np.nanmedian(general) == pytest.approx(expected["median_in_laiongeneral"], **NEAR)
    assert (found.values >= 20).sum() == expected["voxels_at_least_20"]
    assert (found.values >= 0.2).sum() == expected["voxels_at_least_0.2_which_is_the_trap"]


def test_the_noise_ceiling_is_of_12_repeats_or_none():
    found, expected = dataset().noise_ceiling("sub-01"), dataset(noise_ceiling="12rep").noise_ceiling("sub-01")
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.repeats == 12
    assert dataset(noise_ceiling=None).noise_ceiling("sub-01") is None


# --- files ------------------------------------------------------------------------------------------------------


def test_files_are_named_by_what_they_are(laion):
    files = laion.beta_files("sub-03", ["ses-03"])
    assert {name for name in files if not name.startswith("region ")} == {
        "betas ses-03",
        "trials ses-03",
        "mask brain",
        "mask rsquare",
        "noise ceiling 12rep",
    }
    assert all(path.is_file() for path in files.values())
    assert "sub-03_ses-03" in files["betas ses-03"].name
    assert set(laion.stimulus_files()) == {"stimuli", "pictures", "captions"}
    assert all(path.is_file() for path in laion.stimulus_files().values())
    assert not any("noise" in name for name in dataset(noise_ceiling=None).beta_files("sub-01", ["ses-01"]))


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    """Workers make the object again from its settings; it also goes to them as it is, with what it holds."""
    assert LaionFMRI(DatasetSettings(kind="laion_fmri", root=tmp_path / "none")).encoding().divisor == 1
    made = dataset()
    made.betas("sub-01", "ses-01", made.mask("sub-01", "V1v"))
    made.captions(made.stimuli()[:1])
    again = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(again.trials("sub-03").stimulus, made.trials("sub-03").stimulus)


def test_the_tree_in_an_object_store_is_the_tree_on_the_disk(laion):
    """The public bucket lacks the pictures: their folder may be elsewhere."""
    remote = place("memory://laion-fmri-tests/data")
    for path in ROOT.rglob("*"):
        if path.is_file() and path.relative_to(ROOT).parts[0] != "stimuli":
            (remote / path.relative_to(ROOT).as_posix()).write_bytes(path.read_bytes())
    there = dataset(str(remote), stimuli=str(ROOT / "stimuli"), splits=f"{remote}/splits")
    assert there.subjects() == laion.subjects()
    assert there.sessions("sub-03") == laion.sessions("sub-03")
    np.testing.assert_array_equal(there.trials("sub-03").stimulus, laion.trials("sub-03").stimulus)
    assert there.seen("sub-03") == laion.seen("sub-03")
    assert dict(there.splits()) == dict(laion.splits())
    for name, mask in laion.regions("sub-03").items():
        np.testing.assert_array_equal(there.regions("sub-03")[name], mask)
    mask = there.mask("sub-03", None)
    np.testing.assert_array_equal(mask, laion.mask("sub-03", None))
    found, expected = (one.betas("sub-03", "ses-04", mask) for one in (there, laion))
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.valid, expected.valid)
    np.testing.assert_array_equal(there.noise_ceiling("sub-01").values, laion.noise_ceiling("sub-01").values)


def test_stimulus_files_in_an_object_store(laion):
    remote = place("memory://laion-fmri-stimuli/stimuli")
    for path in (ROOT / "stimuli").iterdir():
        (remote / path.name).write_bytes(path.read_bytes())
    there = dataset(ROOT, stimuli=str(remote))
    assert there.stimuli() == laion.stimuli()
    asked = [laion.stimuli()[n] for n in (30, 11, 2)]
    for found, expected in zip(there.pictures(asked), laion.pictures(asked), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert there.captions(asked) == laion.captions(asked)
    np.testing.assert_array_equal(there.embeddings("CLIP", asked), laion.embeddings("CLIP", asked))
