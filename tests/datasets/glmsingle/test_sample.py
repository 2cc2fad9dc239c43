"""GLMsingle's real output on toy brains reads to numbers that were computed from the files alone: expected.json.

Each session lies there as GLMsingle wrote it, most also as NIfTI, and its trials as one table and as events of runs.
"""

import itertools
import json
import pickle
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bdflow.datasets.contract import Encoding
from bdflow.stores.paths import place

EXPECTED = json.loads((Path(__file__).parents[2] / "samples/glmsingle_bids/expected.json").read_text())
SUBJECTS = EXPECTED["subjects"]
SESSIONS = [(subject, session) for subject in SUBJECTS for session in SUBJECTS[subject]["sessions"]]
WITH_NIFTI = [(s, e) for s, e in SESSIONS if SUBJECTS[s]["sessions"][e]["statmap"] is not None]
FUNC = "derivatives/glmsingle/{subject}/{session}/func/{subject}_{session}_task-*"
NIFTI = f"{FUNC}_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
OWN = "derivatives/glmsingle/{subject}/{session}/TYPED_FITHRF_GLMDENOISE_RR.*"
EVENTS = {
    "trials": "{subject}/{session}/func/{subject}_{session}_task-scenes_run-{run}_events.tsv",
    "trial_rows": {"trial_type": "image"},
    "stimulus_column": "stim_file",
    "stimulus_names": "file",
}


def of(subject: str, session: str) -> dict:
    return SUBJECTS[subject]["sessions"][session]


@pytest.fixture(scope="module")
def own(dataset, sample):
    """The sample as the options' defaults read it."""
    return dataset(sample)


# --- stimuli ----------------------------------------------------------------------------------------------------


def test_stimuli_and_their_pictures(own, sample):
    stimuli = own.stimuli()
    assert len(stimuli) == len(set(stimuli)) == EXPECTED["stimuli"]["count"]
    assert stimuli[:2] == ["red-circle_042", "yellow-circle_026"], "in the order of the table"
    pictures = dict(zip(stimuli, own.pictures(stimuli), strict=True))
    assert {picture.dtype for picture in pictures.values()} == {np.dtype(np.uint8)}
    found = Counter()
    for stimulus, picture in pictures.items():
        file = own.stimulus_files()[f"picture {stimulus}"]
        with Image.open(file) as image:
            found[f"{image.format} {image.mode} {image.width}x{image.height}"] += 1
        height, width, colours = picture.shape
        assert (width, height, colours) == (*image.size, 3)
    assert found == EXPECTED["stimuli"]["modes"]
    for stimulus, (_, width, height, mean) in EXPECTED["stimuli"]["unusual"].items():
        assert pictures[stimulus].shape == (height, width, 3)
        assert pictures[stimulus].mean(axis=(0, 1)) == pytest.approx(mean, abs=0.01)
    assert own.picture_shape() == pictures[stimuli[0]].shape[:2] == (48, 48)
    again = own.pictures([stimuli[3], stimuli[3]])
    assert (again[0] == pictures[stimuli[3]]).all()
    assert (again[1] == again[0]).all()


def test_captions(own):
    expected, stimuli = EXPECTED["stimuli"], own.stimuli()
    captions = dict(zip(stimuli, own.captions(stimuli), strict=True))
    assert {stimulus: len(found) for stimulus, found in captions.items()} == expected["captions_by_stimulus"]
    assert sum(map(len, captions.values())) == expected["captions"]
    assert own.captions_per_stimulus() == max(expected["captions_by_stimulus"].values()) == 5
    assert [len(captions[s]) for s in stimuli].count(0) == 4
    for stimulus, texts in expected["example_captions"].items():
        assert captions[stimulus] == texts


def test_the_split_has_the_name_of_its_column(own):
    splits = own.splits()
    assert list(splits) == ["set"]
    assert splits["set"].test == set(EXPECTED["stimuli"]["test"])
    assert splits["set"].train == set(own.stimuli()) - splits["set"].test


def test_files_of_stimuli(own, sample):
    files = own.stimulus_files()
    assert files["stimuli"] == sample / "stimuli/stimuli.tsv"
    assert files["captions"] == sample / "stimuli/captions.tsv"
    assert len(files) == 2 + EXPECTED["stimuli"]["count"]
    assert all(path.is_file() for path in files.values())


# --- trials -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, EVENTS], ids=["table", "events"])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_trials(dataset, sample, subject, options):
    """The table of a session, and the events of its runs with rows of other kinds, say the same."""
    expected, data = SUBJECTS[subject], dataset(sample, **options)
    assert list(data.sessions(subject)) == list(expected["sessions"])
    trials = data.trials(subject)
    assert len(trials.stimulus) == expected["trials"]
    for session, one in expected["sessions"].items():
        rows = trials.session == session
        assert rows.sum() == one["trials"]
        assert trials.index[rows].tolist() == list(range(one["trials"]))
        assert np.diff(np.flatnonzero(rows)).max() == 1
        runs = Counter(trials.run[rows].tolist())
        assert [runs[number + 1] for number in range(len(runs))] == one["trials_by_run"]
        assert (np.diff(trials.run[rows]) >= 0).all()
        assert Counter(trials.stimulus[rows].tolist()) == one["repeats"]
        assert trials.stimulus[rows][:4].tolist() == one["first_stimuli"]
        assert len(set(trials.stimulus[rows])) == one["stimuli"]
    assert (trials.run.dtype, trials.index.dtype) == (np.int32, np.int32)
    assert set(trials.condition) == {""}
    assert data.seen(subject) == set(trials.stimulus)
    assert len(data.seen(subject)) == expected["stimuli_shown"]
    assert np.isin(trials.stimulus, list(data.splits()["set"].test)).sum() == expected["test_trials"]


def test_events_alone_have_other_rows_too(dataset, sample, refused):
    """Without the filter blanks and buttons count as trials, which do not fit the betas."""
    expected = of("sub-01", "ses-01")
    data = dataset(sample, **{key: value for key, value in EVENTS.items() if key != "trial_rows"})
    refused(lambda: data.trials("sub-01"), f"{expected['events_rows']} trials", expected["trials"], "trial_rows")


def test_all_rows_of_events_are_counted(dataset, sample):
    options = {key: value for key, value in EVENTS.items() if key != "trial_rows"}
    for subject, session in SESSIONS:
        data = dataset(sample, **options)
        pattern = options["trials"].replace("{run}", "*").format(subject=subject, session=session)
        rows = sum(len(file.read_text().splitlines()) - 1 for file in sample.glob(pattern))
        assert rows == of(subject, session)["events_rows"]
        assert len(data.seen(subject)) == SUBJECTS[subject]["stimuli_shown"]


def test_numbers_of_conditions_mean_another_stimulus_in_each_session(own, sample):
    """The same number is another stimulus; trials have the right one all the same."""
    from bdflow.datasets.glmsingle.trials import read_conditions, read_design

    for subject in SUBJECTS:
        by_session = []
        for session, one in SUBJECTS[subject]["sessions"].items():
            files = own.beta_files(subject, [session])
            design = read_design(files[f"design {session}"])
            assert design.stimorder[:6] == one["stimorder_first"]
            assert (design.percent, design.sessions) == (True, 1)
            assert design.trials_by_run == one["trials_by_run"]
            conditions = read_conditions(files[f"conditions {session}"], own.settings)
            trials = own.trials(subject)
            shown = trials.stimulus[trials.session == session].tolist()
            assert [conditions[number] for number in design.stimorder] == shown
            by_session.append(conditions)
        assert any(a != b for a, b in zip(by_session[0].values(), by_session[1].values(), strict=False))


# --- betas ------------------------------------------------------------------------------------------------------


def all_betas(data, subject, session):
    """Values, NaN where not valid, (trial, x, y, z)."""
    shape = tuple(SUBJECTS[subject]["shape"])
    found = data.betas(subject, session, np.ones(shape, bool))
    assert found.values.dtype == np.float32
    assert (found.values[~found.valid] == 0).all()
    return np.where(found.valid, found.values, np.nan).reshape(-1, *shape)


@pytest.mark.parametrize(
    ("subject", "session", "pattern"),
    [(*one, OWN) for one in SESSIONS] + [(*one, NIFTI) for one in WITH_NIFTI],
)
def test_betas(dataset, sample, subject, session, pattern):
    """GLMsingle's `.npy` and both kinds of its `.hdf5`, of whole volumes and of masked voxels, and NIfTI."""
    expected, data = of(subject, session), dataset(sample, betas=pattern)
    assert data.beta_files(subject, [session])[f"betas {session}"].name.endswith(
        ".nii.gz" if pattern == NIFTI else expected["file"]
    )
    betas = all_betas(data, subject, session)
    brain = data.mask(subject, None)
    assert len(betas) == expected["trials"]
    lost = np.isnan(betas).all(axis=0)
    assert (np.isnan(betas).any(axis=0) == lost).all()
    outside = 0 if expected["betasmd"][-2] != 1 else int((~brain).sum())  # not in the file of masked voxels
    assert lost.sum() == expected["nan_voxels"] + outside
    assert np.argwhere(lost & brain).tolist() == expected["nan_voxels_in_brain"]
    for voxel in expected["voxels_to_check"]:
        series = betas[:, *voxel["ijk"]]
        assert series.mean() == pytest.approx(voxel["mean"], abs=1e-4)
        assert series.std() == pytest.approx(voxel["std"], abs=1e-4)
        assert series[:3] == pytest.approx(voxel["first3"], abs=1e-4)
        if voxel["row_of_betasmd"] is not None:
            assert np.flatnonzero((np.argwhere(brain) == voxel["ijk"]).all(axis=1)) == voxel["row_of_betasmd"]


@pytest.mark.parametrize(("subject", "session"), WITH_NIFTI)
def test_nifti_and_glmsingles_own_file_hold_the_same(dataset, sample, subject, session):
    """Also within a mask, whose voxels come in C order of (x, y, z)."""
    assert of(subject, session)["statmap"]["equals_betasmd"]
    found = []
    for pattern in (OWN, NIFTI):
        data = dataset(sample, betas=pattern)
        mask = data.mask(subject, "visual")
        within = data.betas(subject, session, mask)
        found.append(within)
        whole = all_betas(data, subject, session)[:, mask]
        np.testing.assert_array_equal(np.where(within.valid, within.values, np.nan), whole)
    np.testing.assert_array_equal(found[0].values, found[1].values)
    np.testing.assert_array_equal(found[0].valid, found[1].valid)


def test_the_setting_decides_which_file_is_read(dataset, sample):
    """NIfTI alone: a session without one is not there. Several patterns: of each session the first that has a file."""
    assert dataset(sample, betas=NIFTI).sessions("sub-01") == ["ses-01"]
    both = dataset(sample, betas=[NIFTI, OWN])
    files = both.beta_files("sub-01", both.sessions("sub-01"))
    assert [files[f"betas {session}"].suffix for session in ("ses-01", "ses-02")] == [".gz", ".hdf5"]
    other = dataset(sample, betas=[OWN, NIFTI])
    assert other.beta_files("sub-01", ["ses-01"])["betas ses-01"].suffix == ".npy"


@pytest.mark.parametrize("pattern", [OWN, NIFTI])
def test_the_unit_is_read(dataset, sample, pattern):
    """From the sidecar of NIfTI files; of GLMsingle's own, from what the fit was told."""
    assert dataset(sample, betas=pattern).encoding() == Encoding("float32", "percent signal change", 1.0, False)


def test_what_else_glmsingles_files_hold(own):
    """Other maps of the `.npy` files, by the same reader."""
    from bdflow.datasets.glmsingle.pickles import read_dictionary

    for subject, session in SESSIONS:
        one = of(subject, session)
        path = own.beta_files(subject, [session])[f"betas {session}"]
        if path.suffix != ".npy":
            continue
        content = read_dictionary(path, "the fit")
        assert content["pcnum"] == one["pcnum"]
        assert isinstance(content["pcregressors"], list)
        assert content["noisepool"].read().sum() == one["noisepool_voxels"]
        indices = content["HRFindex"].read()
        assert [indices.min(), indices.max()] == one["HRFindex_range"]
        assert np.nanmedian(content["R2"].read()) == pytest.approx(one["R2_median"], abs=1e-4)
        assert np.nanmax(content["meanvol"].read()) == pytest.approx(one["meanvol_max"], abs=1e-3)
        assert list(content["betasmd"].shape) == one["betasmd"]
        assert str(content["betasmd"].dtype) == one["dtype"]


# --- voxels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [OWN, NIFTI])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_masks_and_regions(dataset, sample, subject, pattern):
    """Numbers of labels are not consecutive, and one region has no voxel."""
    expected, data = SUBJECTS[subject], dataset(sample, betas=pattern)
    assert data.grid(subject).shape == tuple(expected["shape"])
    assert data.mask(subject, None).sum() == expected["voxels_in_brain_mask"]
    regions = data.regions(subject)
    counts = {f"visual/{name}": count for name, count in expected["regions"].items()}
    assert {name: int(voxels.sum()) for name, voxels in regions.items()} == counts
    assert list(data.region_names(subject)) == list(counts)
    visual = data.mask(subject, "visual")
    assert (visual == np.any(list(regions.values()), axis=0)).all()
    lost = [at for one in expected["sessions"].values() for at in one["nan_voxels_in_brain"] if visual[tuple(at)]]
    assert visual.sum() - len(lost) == expected["decoding"]["voxels"]
    assert (data.mask(subject, "visual/hV4") == regions["visual/hV4"]).all()
    assert (data.mask(subject, "hV4") == regions["visual/hV4"]).all()


@pytest.mark.parametrize("pattern", [OWN, NIFTI])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_grid_has_the_masks_affine(dataset, sample, subject, pattern):
    """Of sub-01 ses-01 the NIfTI file has the identity, GLMsingle's own files have none: nothing is wrong."""
    data = dataset(sample, betas=pattern)
    masks = nib.load(sample / f"derivatives/rois/{subject}/{subject}_space-T1w_desc-brain_mask.nii.gz")
    np.testing.assert_array_equal(data.grid(subject).affine, masks.affine)
    assert data.affine_form(subject) == 2
    for session in data.sessions(subject):
        statmap = of(subject, session)["statmap"]
        if pattern == NIFTI:
            image = nib.load(data.beta_files(subject, [session])[f"betas {session}"])
            assert np.array_equal(image.affine, np.eye(4)) == statmap["affine_is_identity"]


def test_without_any_affine_there_is_none(dataset, sample):
    data = dataset(sample, mask=None, regions=[], noise_ceiling=None)
    assert data.grid("sub-01").affine is None
    assert data.affine_form("sub-01") == 0


def test_the_noise_ceiling_of_one_subject(own):
    """A fraction for the mean of 3 repeats, as its sidecar says; the other subject has none."""
    expected, found = SUBJECTS["sub-01"]["noise_ceiling"], own.noise_ceiling("sub-01")
    assert (found.unit, found.repeats) == (expected["unit"], expected["repeats"])
    assert found.values.shape == tuple(SUBJECTS["sub-01"]["shape"])
    assert np.isnan(found.values).sum() == expected["nan"]
    assert (
        found.values[tuple(expected["at"])] == np.nanmax(found.values) == pytest.approx(expected["maximum"], abs=1e-4)
    )
    assert (found.values >= 0.2).sum() == expected["voxels_at_least_0.2"]
    assert SUBJECTS["sub-02"]["noise_ceiling"] is None
    assert own.noise_ceiling("sub-02") is None


# --- files and places -------------------------------------------------------------------------------------------


def test_files_of_betas(own, sample):
    """Every file below the subject's derivatives is there by its name, but the NIfTI files that are not read."""
    files = own.beta_files("sub-01", ["ses-01", "ses-02"])
    there = [p for p in (sample / "derivatives").rglob("*") if p.is_file() and "sub-01" in str(p)]
    assert set(files.values()) == {p for p in there if "SingletrialBetas_statmap" not in p.name}
    nifti = own.__class__(_settings(sample, betas=NIFTI)).beta_files("sub-01", ["ses-01"])
    assert nifti["sidecar of betas ses-01"].name.endswith("_statmap.json")
    fewer = own.beta_files("sub-01", ["ses-02"])
    assert not any("ses-01" in name for name in fewer)


def _settings(root, **options):
    from bdflow.config import DatasetSettings

    return DatasetSettings(kind="glmsingle", root=root, options=options)


def test_nothing_is_read_before_a_method_is_called(dataset, tmp_path):
    """A dataset of a root that is not there can be made, and sent to another process."""
    data = pickle.loads(pickle.dumps(dataset(tmp_path / "absent")))
    with pytest.raises(ValueError, match="absent"):
        data.subjects()


def test_an_object_store_reads_as_a_disk_does(dataset, sample, own):
    url = f"memory://glmsingle-{next(_numbers)}/lab"
    for file in sample.rglob("*"):
        if file.is_file():
            (place(url) / file.relative_to(sample).as_posix()).write_bytes(file.read_bytes())
    data = dataset(url)
    assert data.subjects() == own.subjects()
    assert data.splits() == own.splits()
    for subject, session in SESSIONS:
        assert data.seen(subject) == own.seen(subject)
        for name in ("stimulus", "session", "run", "index"):
            assert (getattr(data.trials(subject), name) == getattr(own.trials(subject), name)).all()
        np.testing.assert_array_equal(all_betas(data, subject, session), all_betas(own, subject, session))
    assert (data.mask("sub-01", "visual") == own.mask("sub-01", "visual")).all()
    assert (data.pictures(["orange-cross_014"])[0] == own.pictures(["orange-cross_014"])[0]).all()
    assert len(data.beta_files("sub-01", ["ses-01"])) == len(own.beta_files("sub-01", ["ses-01"]))


_numbers = itertools.count()
