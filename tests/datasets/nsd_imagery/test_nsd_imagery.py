"""NSD-Imagery and NSD-synthetic of the sample read to the numbers that were computed from its files alone."""

import json
import pickle
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from bdflow.config import DatasetSettings
from bdflow.datasets.nsd import imagery_trials
from bdflow.datasets.nsd.imagery import NSDImagery
from bdflow.datasets.nsd.synthetic import NSDSynthetic

ROOT = Path(__file__).parents[2] / "samples/nsd_imagery"
EXPECTED = json.loads((ROOT / "expected.json").read_text(encoding="utf-8"))
IMAGERY, SYNTHETIC, SUBJECTS = EXPECTED["imagery"], EXPECTED["synthetic"], EXPECTED["subjects"]
NAMES = {"vis": "perception", "att": "attention", "img": "imagery"}


def imagery(condition: str = "all", **settings) -> NSDImagery:
    return NSDImagery(DatasetSettings(kind="nsd_imagery", root=ROOT, options={"condition": condition}, **settings))


def synthetic(**settings) -> NSDSynthetic:
    return NSDSynthetic(DatasetSettings(kind="nsd_synthetic", root=ROOT, **settings))


def everywhere(subject: str) -> np.ndarray:
    return np.ones(SUBJECTS[subject]["shape"], bool)


def volumes(dataset, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """Stored betas and validity (trial, x, y, z)."""
    mask = everywhere(subject)
    found = dataset.betas(subject, dataset.SESSION, mask)
    return found.values.reshape(-1, *mask.shape), found.valid.reshape(-1, *mask.shape)


def expected_id(of: str, name: str) -> str:
    """A stimulus's id, from the file's own account of set B."""
    nsd_id = EXPECTED["set_B"].get(name, {}).get("nsd_id")
    return f"{nsd_id:05d}" if nsd_id is not None else f"{of}/{name.removesuffix('.png')}"


TARGETS = {cue: (of, number, expected_id(of, name)) for cue, (of, number, name) in EXPECTED["cues"].items()}


# --- imagery: trials ----------------------------------------------------------------------------------------------


def test_cues():
    found = {t.cue: [t.set, t.number, t.name] for t in imagery()._targets}
    assert found == EXPECTED["cues"]
    assert {t.cue: (t.set, t.number, t.stimulus) for t in imagery()._targets} == TARGETS


def test_the_runs_of_the_design():
    runs = imagery_trials.read_runs(ROOT)
    blocks = {run.name: [run.first, run.first + run.columns.size] for run in runs}
    assert blocks == IMAGERY["row_blocks"]
    assert {run.name: np.unique(run.columns).tolist() for run in runs} == IMAGERY["columns_used_by_run"]
    kinds = Counter()
    for run in runs:
        kinds[run.kind] += run.columns.size
    assert kinds == IMAGERY["rows_by_kind"]
    assert sum(run.columns.size // run.betas_a_trial for run in runs) == IMAGERY["behavioural_trials"]
    assert max(run.columns.max() for run in runs) + 1 == IMAGERY["columns_of_the_design"]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_row(subject):
    """Vision shows the picture of the row; imagery and attention are of the cue's target."""
    trials, rows = imagery().trials(subject), IMAGERY["rows_in_full"]
    assert len(trials.stimulus) == IMAGERY["rows"] == len(rows)
    assert trials.index.tolist() == [row[0] for row in rows]
    names = list(IMAGERY["row_blocks"])
    assert trials.run.tolist() == [names.index(row[1]) + 1 for row in rows]
    assert set(trials.session) == {"nsdimagery"}
    for stimulus, condition, (_, run, what, cue, picture) in zip(trials.stimulus, trials.condition, rows, strict=True):
        kind = run[:3]
        assert condition == (f"attention {what}" if kind == "att" else NAMES[kind])
        expected = expected_id(run[3], picture) if kind == "vis" else TARGETS[cue][2]
        assert stimulus == expected, run
    assert (trials.run.dtype, trials.index.dtype) == (np.int32, np.int32)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_half_of_the_cues_in_vision_are_of_another_picture(subject):
    rows = [row for row in IMAGERY["rows_in_full"] if row[1].startswith("vis")]
    trials = imagery("perception").trials(subject)
    seen = dict(zip(trials.index.tolist(), trials.stimulus, strict=True))
    other = 0
    for index, run, _, cue, picture in rows:
        word = run[3] == "C"
        shown = f"C/{picture[: -len('0000_nsd00000.png')]}" if word else seen[index]
        other += shown != TARGETS[cue][2]
    assert other == IMAGERY["vision_trials_whose_cue_is_not_the_images"]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_conditions_choose_trials_and_no_betas(subject):
    every = imagery().trials(subject)
    for condition, kind in (("perception", "vis"), ("imagery", "img"), ("attention", "att")):
        dataset = imagery(condition)
        trials = dataset.trials(subject)
        assert len(trials.stimulus) == IMAGERY["rows_by_kind"][kind]
        assert {name.split()[0] for name in trials.condition} == {condition}
        for name in ("stimulus", "run", "condition"):
            np.testing.assert_array_equal(getattr(trials, name), getattr(every, name)[trials.index])
        assert volumes(dataset, subject)[0].shape[0] == IMAGERY["rows"]
        assert dataset.seen(subject) == frozenset(trials.stimulus.tolist())
    assert NSDImagery(DatasetSettings(kind="nsd_imagery", root=ROOT)).options.condition == "imagery"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_repeats_of_imagery(subject):
    repeats = Counter(imagery("imagery").trials(subject).stimulus.tolist())
    assert repeats == {TARGETS[cue][2]: count for cue, count in IMAGERY["imagery_repeats_by_cue"].items()}
    of_pictures = Counter(count for stimulus, count in repeats.items() if not stimulus.startswith("C/"))
    expected = SUBJECTS[subject]["decoding"]["imagery"]["repeats"]
    assert of_pictures == {int(n): count for n, count in expected.items()}
    seen = Counter(imagery("perception").trials(subject).stimulus.tolist())
    of_targets = Counter(seen[stimulus] for stimulus in imagery("imagery").stimuli())
    expected = SUBJECTS[subject]["decoding"]["vision"]["repeats"]
    assert of_targets == {int(n): count for n, count in expected.items()}


# --- imagery: stimuli ---------------------------------------------------------------------------------------------


def test_targets_with_a_picture():
    dataset = imagery("imagery")
    expected = [identity for of, _, identity in sorted(TARGETS.values()) if of != "C"]
    assert dataset.stimuli() == expected
    assert len(expected) == SUBJECTS["subj01"]["decoding"]["imagery"]["targets_of_sets_A_and_B"]
    assert "00042" in expected
    assert "B/shared0000_nsd00000" in expected
    assert dataset.splits()["all"].test == frozenset(expected)
    assert dataset.splits()["all"].train == frozenset()
    assert imagery("attention").stimuli() == expected


def test_pictures_of_words_are_stimuli_where_they_were_shown():
    shown = {row[4] for row in IMAGERY["rows_in_full"] if row[1] == "visC"}
    expected = sorted(f"C/{name.removesuffix('.png')}" for name in shown)
    for condition in ("perception", "all"):
        assert imagery(condition).stimuli() == [*imagery("imagery").stimuli(), *expected]
    frame = imagery("perception").pictures(expected[:1])[0]
    assert frame.shape == (40, 40, 3)
    assert set(imagery("perception").trials("subj01").stimulus) <= set(imagery("perception").stimuli())


def test_pictures_of_set_b_are_the_cores():
    dataset = imagery("imagery")
    with h5py.File(ROOT / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5") as file:
        core = file["imgBrick"][:]
    pictures = dict(zip(dataset.stimuli(), dataset.pictures(dataset.stimuli()), strict=True))
    raw = ROOT / "nsddata/experiments/nsdimagery/rawtargetimages"
    for name, said in EXPECTED["set_B"].items():
        with Image.open(raw / "setB" / name) as image:
            target = np.array(image)
        np.testing.assert_array_equal(pictures[expected_id("B", name)], target)
        if said["nsd_id"] is not None:
            assert said["number_in_the_name"] == said["nsd_id"] + 1
            assert (target == core[said["nsd_id"]]).all() == said["equal_to_that_stimulus"]
    with Image.open(raw / "setA/crs_045.0deg_450L_43W.png") as image:
        np.testing.assert_array_equal(pictures["A/crs_045.0deg_450L_43W"], np.array(image))
    assert dataset.picture_shape() == (32, 32)
    assert all(picture.dtype == np.uint8 for picture in pictures.values())


def test_pictures_come_in_the_order_that_is_asked_for():
    dataset = imagery("imagery")
    asked = ["00042", "A/bar_000.0deg_450L_43W", "00001", "00042"]
    found = dataset.pictures(asked)
    single = [dataset.pictures([stimulus])[0] for stimulus in asked]
    for one, other in zip(found, single, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(found[0], found[2])


def test_captions_are_the_cores_and_words_are_themselves():
    curated = np.load(ROOT / "COCO_73k_annots_curated.npy")
    dataset = imagery("imagery")
    found = dataset.captions(["00042", "C/zebra", "B/shared0000_nsd00000", "A/bar_000.0deg_450L_43W"])
    assert found == [[text.strip() for text in curated[42] if text.strip()], ["zebra"], [], []]
    most = max(
        sum(bool(text.strip()) for text in curated[said["nsd_id"]])
        for said in EXPECTED["set_B"].values()
        if said["nsd_id"]
    )
    assert dataset.captions_per_stimulus() == most


# --- both: betas and volumes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", SUBJECTS)
def test_betas_of_imagery(subject):
    expected = SUBJECTS[subject]
    dataset = imagery()
    values, valid = volumes(dataset, subject)
    assert dataset._opened(subject).path.name == f"betas_nsdimagery.{expected['files']['imagery']}"
    assert values.shape == (IMAGERY["rows"], *expected["shape"])
    assert valid.all(axis=0).sum() == valid.any(axis=0).sum() == expected["voxels_valid_in_imagery"]
    general = dataset.mask(subject, None)
    assert general.sum() == expected["nsdgeneral_voxels"]
    assert np.argwhere(general & ~valid[0]).tolist() == expected["not_valid_in_imagery_in_nsdgeneral"]
    encoding = dataset.encoding()
    assert (encoding.dtype, encoding.divisor, encoding.cut_off) == ("int16", 300, True)
    voxel = values[(slice(None), *expected["voxel"]["ijk"])]
    assert voxel[:3].tolist() == expected["voxel"]["first3_stored"]
    percent = voxel / encoding.divisor
    assert percent.mean() == pytest.approx(expected["voxel"]["mean"], abs=1e-4)
    assert percent.std() == pytest.approx(expected["voxel"]["std"], abs=1e-4)
    trials = dataset.trials(subject)
    for number, (run, mean) in enumerate(expected["voxel"]["mean_by_run"].items(), start=1):
        assert percent[trials.index[trials.run == number]].mean() == pytest.approx(mean, abs=1e-4), run


@pytest.mark.parametrize("subject", SUBJECTS)
def test_one_cue_in_imagery_and_vision(subject):
    expected, (values, _) = SUBJECTS[subject], volumes(imagery(), subject)
    percent = values[(slice(None), *expected["voxel"]["ijk"])] / 300
    for condition, name in (("imagery", "imagery"), ("perception", "vision")):
        trials = imagery(condition).trials(subject)
        rows = trials.index[trials.stimulus == TARGETS["W"][2]]
        key = "imagery_rows" if condition == "imagery" else "vision_rows_that_show_its_image"
        assert rows.tolist() == expected["cue_W"][key]
        assert percent[rows].mean() == pytest.approx(expected["cue_W"][f"mean_{name}"], abs=1e-4)


@pytest.mark.parametrize("make", [imagery, synthetic])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_was_not_measured_is_found_without_the_file_that_says_so(make, subject, tmp_path):
    """The brain's voxels that are 0 in every trial are those that the file of validity has."""
    with_file = volumes(make(), subject)[1]
    dataset = make()
    dataset._valid_path = lambda subject: tmp_path / "none.nii.gz"
    np.testing.assert_array_equal(volumes(dataset, subject)[1], with_file)


@pytest.mark.parametrize("make", [imagery, synthetic])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_volumes_of_the_core(make, subject):
    dataset, shape = make(), tuple(SUBJECTS[subject]["shape"])
    assert dataset.grid(subject).shape == shape
    assert dataset.affine_form(subject) == 1
    ceiling = dataset.noise_ceiling(subject)
    assert (ceiling.unit, ceiling.repeats, ceiling.values.shape) == ("ncsnr", None, shape)
    assert np.nanmax(ceiling.values) > 0
    names, regions = dataset.region_names(subject), dataset.regions(subject)
    assert list(regions) == list(names)
    assert {name.split("/")[0] for name in names} == {"nsdgeneral", "prf-visualrois", "streams"}
    np.testing.assert_array_equal(regions["nsdgeneral/nsdgeneral"], dataset.mask(subject, "nsdgeneral"))
    early = dataset.mask(subject, "streams/early")
    assert 0 < early.sum() < dataset.mask(subject, "streams").sum()


@pytest.mark.parametrize("make", [imagery, synthetic])
def test_masked_betas_are_those_of_the_whole_volume(make):
    for subject in SUBJECTS:
        dataset = make()
        mask = dataset.mask(subject, "nsdgeneral")
        found, (values, valid) = dataset.betas(subject, dataset.SESSION, mask), volumes(dataset, subject)
        np.testing.assert_array_equal(found.values, values[:, mask])
        np.testing.assert_array_equal(found.valid, valid[:, mask])
        assert (found.values[~found.valid] == 0).all()


@pytest.mark.parametrize("make", [imagery, synthetic])
def test_subjects_sessions_files_and_a_copy_for_another_process(make):
    dataset = pickle.loads(pickle.dumps(make()))
    assert list(dataset.subjects()) == list(SUBJECTS)
    for subject in SUBJECTS:
        assert list(dataset.sessions(subject)) == [dataset.SESSION]
        files = dataset.beta_files(subject, dataset.sessions(subject))
        assert all(path.is_file() for path in files.values())
        assert {f"session {dataset.SESSION}", f"valid {dataset.SESSION}", "ncsnr", "design"} <= set(files)
        assert {"region nsdgeneral", "labels streams"} <= set(files)
    assert all(path.is_file() for path in dataset.stimulus_files().values())
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again.trials("subj05").stimulus, dataset.trials("subj05").stimulus)


# --- synthetic ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", SUBJECTS)
def test_trials_of_synthetic_pictures(subject):
    expected, trials = SUBJECTS[subject]["synthetic"], synthetic().trials(subject)
    common, own = SYNTHETIC["stimuli_for_all"], expected["own_colour_stimuli"]
    ids = [f"synthetic/{n:03d}" for n in range(1, common + 1)]
    ids += [f"{subject}/color/{n:02d}" for n in range(1, own + 1)]
    assert len(trials.stimulus) == SYNTHETIC["rows"]
    assert trials.stimulus[:6].tolist() == [ids[i] for i in SYNTHETIC["first"]]
    repeats = Counter(Counter(trials.stimulus.tolist()).values())
    assert repeats == {int(n): count for n, count in SYNTHETIC["stimuli_by_repeats"].items()}
    same_run = trials.run[1:] == trials.run[:-1]
    assert ((trials.stimulus[1:] == trials.stimulus[:-1]) & same_run).sum() == SYNTHETIC["immediate_repeats"]
    assert np.bincount(trials.run)[1:].tolist() == SYNTHETIC["trials_by_run"]
    mine = np.char.startswith(trials.stimulus, subject)
    assert mine.sum() == expected["rows_with_them"]
    picture = synthetic().pictures([trials.stimulus[mine][0]])[0]
    assert picture.mean(axis=(0, 1)) == pytest.approx(expected["mean_rgb_of_the_first_row_with_one"], abs=1e-4)
    assert synthetic().seen(subject) == set(trials.stimulus)


def test_synthetic_stimuli():
    dataset, own = synthetic(), {s: SUBJECTS[s]["synthetic"]["own_colour_stimuli"] for s in SUBJECTS}
    stimuli = dataset.stimuli()
    assert len(stimuli) == len(set(stimuli)) == SYNTHETIC["stimuli_for_all"] + sum(own.values())
    assert SYNTHETIC["table_rows"] == SYNTHETIC["stimuli_for_all"] + own["subj01"]
    assert (*dataset.picture_shape(), 3) == tuple(SYNTHETIC["image_shape"])
    assert dataset.splits()["all"].test == frozenset(stimuli)
    assert dataset.captions(stimuli) == [[]] * len(stimuli)
    assert dataset.captions_per_stimulus() == 0
    asked = ["subj05/color/06", "synthetic/014", "synthetic/001", "subj05/color/06", "subj01/color/06"]
    folder = ROOT / "nsddata_stimuli/stimuli/nsdsynthetic"
    with (
        h5py.File(folder / "nsdsynthetic_stimuli.hdf5") as common,
        h5py.File(folder / "nsdsynthetic_colorstimuli_subj05.hdf5") as five,
        h5py.File(folder / "nsdsynthetic_colorstimuli_subj01.hdf5") as one,
    ):
        expected = [five["imgBrick"][5], common["imgBrick"][13], common["imgBrick"][0]]
        expected += [five["imgBrick"][5], one["imgBrick"][5]]
    for found, picture in zip(dataset.pictures(asked), expected, strict=True):
        np.testing.assert_array_equal(found, picture)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_betas_of_synthetic_pictures(subject):
    expected = SUBJECTS[subject]
    dataset = synthetic()
    values, valid = volumes(dataset, subject)
    assert dataset._opened(subject).path.name == f"betas_nsdsynthetic.{expected['files']['synthetic']}"
    assert valid.all(axis=0).sum() == expected["voxels_valid_in_synthetic"]
    general = dataset.mask(subject, None)
    assert np.argwhere(general & ~valid[0]).tolist() == expected["not_valid_in_synthetic_in_nsdgeneral"]
    voxel = values[(slice(None), *expected["voxel"]["ijk"])]
    assert voxel[:3].tolist() == expected["voxel"]["synthetic_first3_stored"]
    assert (voxel / 300).mean() == pytest.approx(expected["voxel"]["synthetic_mean"], abs=1e-4)
