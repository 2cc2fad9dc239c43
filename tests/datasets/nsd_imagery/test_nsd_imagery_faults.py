"""NSD-Imagery and NSD-synthetic with real faults: each is one clear error, and nothing wrong is returned."""

import csv
import gzip
import io
import shutil
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io
from PIL import Image

from bdflow.config import DatasetSettings
from bdflow.datasets.nsd.imagery import NSDImagery
from bdflow.datasets.nsd.imagery_trials import RUNS
from bdflow.datasets.nsd.synthetic import NSDSynthetic
from bdflow.errors import InputError, NotAtHand
from bdflow.stores.paths import RemotePath

SAMPLE = Path(__file__).parents[2] / "samples/nsd_imagery"
EXPERIMENT = "nsddata/experiments/nsdimagery"
SYNTHETIC = "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat"
PPDATA = "nsddata/ppdata/subj01/func1pt8mm"
BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/nsdimagerybetas_fithrf_GLMdenoise_RR/betas_nsdimagery.nii.gz"


@pytest.fixture
def root(tmp_path) -> Path:
    """A copy of the sample to spoil."""
    return Path(shutil.copytree(SAMPLE, tmp_path / "nsd"))


def imagery(root, condition: str = "imagery", **settings) -> NSDImagery:
    return NSDImagery(DatasetSettings(kind="nsd_imagery", root=root, options={"condition": condition}, **settings))


def synthetic(root, **settings) -> NSDSynthetic:
    return NSDSynthetic(DatasetSettings(kind="nsd_synthetic", root=root, **settings))


def behaviour(root, run: str, subject: str = "subj01") -> Path:
    return root / f"nsddata/bdata/nsdimagery/nsdimagery_{subject}_{run}.tsv"


def edit(path: Path, change) -> None:
    """Change the rows of a table, dicts, in place or by what `change` returns."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    rows = change(rows) or rows
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")


def set_cell(trial: int, column: str, value: str):
    def change(rows) -> None:
        rows[trial][column] = value

    return change


def edit_mat(path: Path, change) -> None:
    content = {name: value for name, value in scipy.io.loadmat(path).items() if not name.startswith("__")}
    change(content)
    scipy.io.savemat(path, content)


def write_volume(path: Path, data: np.ndarray) -> None:
    affine = nib.load(SAMPLE / PPDATA / "roi/nsdgeneral.nii.gz").affine
    nib.save(nib.Nifti1Image(data, affine), path)


# --- design and behaviour -----------------------------------------------------------------------------------------


def swap(rows):
    """The first two trials of different targets change places, but not their numbers."""
    other = next(i for i, row in enumerate(rows) if row["CONDITION"] != rows[0]["CONDITION"])
    rows[0], rows[other] = rows[other] | {"TRIAL": rows[0]["TRIAL"]}, rows[0] | {"TRIAL": rows[other]["TRIAL"]}


def other_cue(rows) -> None:
    rows[0]["CUE"] = next(row["CUE"] for row in rows if row["CUE"] != rows[0]["CUE"])


def name_of_core(rows) -> None:
    rows[2] |= {"IMAGEFILE": "NaN", "FRAMEFILE": "shared0002_nsd00007_cueN.png"}


FAULTS = {
    "trials in another order": ("imgB_1", swap, "not in one order"),
    "a cue of another set": ("imgA_1", set_cell(3, "CUE", "W"), "a letter of set A"),
    "a condition that there is not": ("imgA_1", set_cell(3, "CONDITION", "7"), "H (1)"),
    "no condition": ("imgA_1", set_cell(3, "CONDITION", "NaN"), "'NaN'"),
    "a cue that is a number": ("imgA_1", set_cell(3, "CUE", "1"), "column CUE"),
    "condition and cue of two targets": ("imgA_2", other_cue, "what to imagine"),
    "another run": ("imgC_2", set_cell(5, "RUN", "9"), "12, as the file's name says"),
    "another subject": ("imgC_2", set_cell(5, "SUBJECT", "5"), "of another subject or run"),
    "a trial twice": ("imgC_2", set_cell(5, "TRIAL", "5"), "12 trials, but no trial 6"),
    "a trial too few": ("imgC_2", lambda rows: rows[:-1], "11 trials, but no trial 12"),
    "no number": ("imgC_2", set_cell(5, "TRIAL", "six"), "a whole number"),
    "no column": ("imgC_2", lambda rows: [{k: v for k, v in r.items() if k != "CUE"} for r in rows], "a column CUE"),
    "a picture that is not of the condition": (
        "visB", lambda rows: [r | {"IMAGEFILE": "NaN", "FRAMEFILE": "shared0003_nsd00010_cueT.png"} for r in rows],
        "the picture of CONDITION",
    ),
    "two pictures": ("visC", set_cell(2, "FRAMEFILE", "sun0001_nsd00000_cueS.png"), "one picture"),
    "a picture of the core that is another": ("visC", name_of_core, "found shared stimulus 2 as stimulus 7"),
    "attention in another order": ("attB", swap, "not in one order"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_behaviour_that_does_not_agree(root, fault):
    run, change, words = FAULTS[fault]
    kind = {"vis": "perception", "att": "attention", "img": "imagery"}[run[:3]]
    edit(behaviour(root, run), change)
    with pytest.raises(InputError) as error:
        imagery(root, kind).trials("subj01")
    assert words in str(error.value)
    assert behaviour(root, run).name in str(error.value)
    other = "imagery" if kind != "imagery" else "attention"
    assert len(imagery(root, other).trials("subj01").stimulus) == 72, "runs that are not asked for are not read"
    assert len(imagery(root, kind).trials("subj05").stimulus) in (36, 72)


def test_two_runs_of_imagery_that_name_targets_differently(root):
    """Each run agrees with the design by itself; the same conditions are then of two targets."""

    def rename(rows) -> None:
        names = dict(zip("HRVLPE", "RHVLPE", strict=True)) | dict(zip("123456", "213456", strict=True))
        for row in rows:
            row |= {"CUE": names[row["CUE"]], "CONDITION": names[row["CONDITION"]]}

    edit(behaviour(root, "imgA_2"), rename)
    with pytest.raises(InputError, match="not in one order") as error:
        imagery(root).trials("subj01")
    assert "imgA_2" in str(error.value)


def test_rows_of_a_behaviour_file_are_sorted_by_their_trial(root):
    before = imagery(root).trials("subj01")
    edit(behaviour(root, "imgB_1"), lambda rows: rows[::-1])
    np.testing.assert_array_equal(imagery(root).trials("subj01").stimulus, before.stimulus)


def test_missing_files_are_named(root):
    behaviour(root, "imgB_2").unlink()
    with pytest.raises(NotAtHand, match=r"nsdimagery_subj01_imgB_2\.tsv"):
        imagery(root).trials("subj01")
    (root / EXPERIMENT / "B_pair_list.mat").unlink()
    with pytest.raises(NotAtHand, match=r"B_pair_list\.mat"):
        imagery(root).stimuli()
    (root / EXPERIMENT / "designmatrixGLMsingle.mat").unlink()
    with pytest.raises(NotAtHand, match=r"designmatrixGLMsingle\.mat"):
        imagery(root).trials("subj05")
    with pytest.raises(NotAtHand, match="nowhere"):
        imagery(root / "nowhere").subjects()


def cell(content, run: str) -> np.ndarray:
    return content["stimulus"][0, RUNS.index(run)]


def onset_moved(content) -> None:
    times, columns = np.nonzero(cell(content, "visB"))
    cell(content, "visB")[times[1], columns[1]] = 0
    cell(content, "visB")[times[0], (columns[0] + 1) % 6] = 1


def narrower(content) -> None:
    content["stimulus"][0, 4] = cell(content, "attB")[:, :20]


DESIGNS = {
    "two onsets at once": (onset_moved, "12 onsets at 11 times"),
    "an onset too many": (lambda c: cell(c, "attB").__setitem__((1, 7), 1), "two a trial"),
    "no onsets": (lambda c: cell(c, "visB").fill(0), "0 onsets"),
    "durations": (lambda c: cell(c, "visB").__imul__(3), "the value 3; expected"),
    "eleven runs": (lambda c: c.update(stimulus=c["stimulus"][:, :11]), "12 cells"),
    "no cells": (lambda c: c.update(stimulus=np.zeros((3, 36))), "12 cells"),
    "fewer conditions": (narrower, "20 and 36"),
    "another variable": (lambda c: c.update(design=c.pop("stimulus")), "no array stimulus"),
}


@pytest.mark.parametrize("fault", DESIGNS)
def test_designs_that_say_nothing(root, fault):
    change, words = DESIGNS[fault]
    edit_mat(root / EXPERIMENT / "designmatrixGLMsingle.mat", change)
    with pytest.raises(InputError, match=words) as error:
        imagery(root).trials("subj01")
    assert "designmatrixGLMsingle.mat" in str(error.value)


def set_pair(row: int, column: int, value):
    return lambda content: content["pair_list"].__setitem__((row, column), value)


PAIRS = {
    "a letter twice": (set_pair(0, 2, "K"), "letter K twice"),
    "a letter of another set": (set_pair(0, 2, "H"), "letter H twice"),
    "a picture twice": (set_pair(0, 1, "shared0002_nsd00006.png"), "target 00005 twice"),
    "a number twice": (set_pair(0, 0, 2.0), "each once"),
    "half a number": (set_pair(0, 0, 1.5), "found 1.5; expected a whole number"),
    "no text": (set_pair(0, 1, np.zeros((2, 2))), "expected a text"),
    "no name": (set_pair(0, 1, " "), "an empty name"),
    "two columns": (lambda c: c.update(pair_list=c["pair_list"][:, :2]), r"cells \(target, 3\)"),
    "from 0": (set_pair(0, 1, "shared0001_nsd00001.png"), "shared stimulus 1 as stimulus 1; expected 2"),
    "no shared stimulus": (set_pair(0, 1, "shared0099_nsd00002.png"), "8 in all"),
}


@pytest.mark.parametrize("fault", PAIRS)
def test_targets_that_cannot_be_told(root, fault):
    """Also a name of a picture of the core that the core's design does not confirm."""
    change, words = PAIRS[fault]
    edit_mat(root / EXPERIMENT / "B_pair_list.mat", change)
    with pytest.raises(InputError, match=words):
        imagery(root).stimuli()


def test_files_that_are_not_what_they_are_called(root):
    (root / EXPERIMENT / "A_pair_list.mat").write_bytes(b"no MATLAB")
    with pytest.raises(InputError, match="not readable as MATLAB's"):
        imagery(root).stimuli()


# --- betas and volumes --------------------------------------------------------------------------------------------


def test_betas_that_are_more_than_the_trials(root):
    path = root / BETAS
    data = np.asarray(nib.load(path).dataobj)
    write_volume(path, data[..., :-1])
    for ask in (lambda d: d.trials("subj01"), lambda d: d.betas("subj01", "nsdimagery", d.mask("subj01", None))):
        with pytest.raises(InputError, match=r"found 179 betas; expected 180, as many as .*designmatrixGLMsingle"):
            ask(imagery(root))


def test_no_betas_are_no_session_and_no_error_before_they_are_asked_for(root):
    (root / BETAS).unlink()
    dataset = imagery(root)
    assert list(dataset.sessions("subj01")) == []
    assert dataset.trials("subj01").stimulus.shape == (0,)
    assert dataset.seen("subj01") == imagery(root).seen("subj05")
    with pytest.raises(NotAtHand, match=r"betas_nsdimagery\.nii\.gz"):
        dataset.betas("subj01", "nsdimagery", dataset.mask("subj01", None))
    assert list(imagery(root, betas_format="nii.gz").sessions("subj05")) == []
    assert list(imagery(root, betas_format="hdf5").sessions("subj05")) == ["nsdimagery"]


def test_damaged_betas(root):
    content = (root / BETAS).read_bytes()
    (root / BETAS).write_bytes(content[: len(content) // 2])
    dataset = imagery(root)
    with pytest.raises(InputError, match="truncated or damaged"):
        dataset.betas("subj01", "nsdimagery", dataset.mask("subj01", None))


def test_floating_point_betas_follow_the_settings(root):
    """NaN is refused, or invalid, as `dataset.not_a_number` says."""
    data = np.asarray(nib.load(root / BETAS).dataobj).astype(np.float32) / 300
    before = imagery(root)
    mask = before.mask("subj01", None)
    expected = before.betas("subj01", "nsdimagery", mask)
    at = tuple(np.argwhere(mask)[7])
    data[(*at, 3)] = np.nan
    write_volume(root / BETAS, data)
    with pytest.raises(InputError, match="not a number"):
        imagery(root).betas("subj01", "nsdimagery", mask)
    found = imagery(root, not_a_number="invalid").betas("subj01", "nsdimagery", mask)
    assert np.argwhere(found.valid != expected.valid).tolist() == [[3, 7]]
    np.testing.assert_array_equal(found.values[found.valid], expected.values[found.valid])


@pytest.mark.parametrize("name", ["valid_nsdimagery", "roi/nsdgeneral", "roi/streams"])
def test_volumes_of_another_shape(root, name):
    data = np.asarray(nib.load(root / PPDATA / f"{name}.nii.gz").dataobj)
    write_volume(root / PPDATA / f"{name}.nii.gz", data[:-1])

    def use(dataset: NSDImagery) -> None:
        dataset.mask("subj01", None)
        dict(dataset.regions("subj01"))

    with pytest.raises(InputError, match=r"\(10, 10, 9\)"):
        use(imagery(root))
    with pytest.raises(InputError, match=r"\(11, 10, 9\)"):
        imagery(root).betas("subj01", "nsdimagery", np.ones((10, 10, 9), bool))


def test_a_noise_ceiling_of_another_shape(root):
    path = root / "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/ncsnr.nii.gz"
    write_volume(path, np.asarray(nib.load(path).dataobj)[:, :-1])
    with pytest.raises(InputError, match=r"\(11, 9, 9\)"):
        imagery(root).noise_ceiling("subj01")
    path.unlink()
    with pytest.raises(NotAtHand, match="ncsnr"):
        imagery(root).noise_ceiling("subj01")


def test_a_file_of_validity_with_other_values(root):
    data = np.asarray(nib.load(root / PPDATA / "valid_nsdimagery.nii.gz").dataobj).astype(np.float32)
    write_volume(root / PPDATA / "valid_nsdimagery.nii.gz", data / 2)
    with pytest.raises(InputError, match="1 where the session measured the voxel"):
        imagery(root).grid("subj01")


def test_masks_that_there_are_not(root):
    dataset = imagery(root)
    with pytest.raises(InputError, match="there are nsdgeneral, prf-visualrois, streams"):
        dataset.mask("subj01", "floc-faces")
    with pytest.raises(InputError, match="one of nsdgeneral/nsdgeneral"):
        dataset.mask("subj01", "streams/V9")
    volume = np.asarray(nib.load(root / PPDATA / "roi/streams.nii.gz").dataobj).copy()
    volume[volume == 5] = 0
    write_volume(root / PPDATA / "roi/streams.nii.gz", volume)
    with pytest.raises(InputError, match="does not have this region"):
        dataset.mask("subj01", "streams/ventral")
    assert not dataset.regions("subj01")["streams/ventral"].any()
    volume[0, 0, 0] = 9
    write_volume(root / PPDATA / "roi/streams.nii.gz", volume)
    with pytest.raises(InputError, match="labels without a name: 9"):
        imagery(root).regions("subj01")["streams/early"]


def test_subjects_and_sessions_that_there_are_not(root):
    for dataset in (imagery(root), synthetic(root)):
        for ask in (dataset.sessions, dataset.trials, dataset.seen, dataset.grid):
            with pytest.raises(InputError, match="one of subj01, subj05"):
                ask("subj02")
            with pytest.raises(InputError, match="a name NSD does not use"):
                ask("sub-01")
        with pytest.raises(InputError, match=f"found no such session; expected {dataset.SESSION}"):
            dataset.betas("subj01", "session01", dataset.mask("subj01", None))
        with pytest.raises(InputError, match="no such session"):
            dataset.beta_files("subj01", ["1"])


# --- stimuli ------------------------------------------------------------------------------------------------------


def test_pictures_that_there_are_not(root):
    raw = root / EXPERIMENT / "rawtargetimages"
    dataset = imagery(root)
    with pytest.raises(InputError, match="a word, which has no picture"):
        dataset.pictures(["C/zebra"])
    for ask in (dataset.pictures, dataset.captions):
        with pytest.raises(InputError, match=r"stimulus A/nothing: found no such stimulus"):
            ask(["A/nothing"])
    with pytest.raises(InputError, match="outside the 109 stimuli"):
        dataset.pictures(["00109"])
    (raw / "setA/bar_000.0deg_450L_43W.png").unlink()
    with pytest.raises(NotAtHand, match=r"bar_000\.0deg_450L_43W\.png"):
        dataset.pictures(["A/bar_000.0deg_450L_43W"])
    (raw / "setB/shared0000_nsd00000.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(InputError, match="no picture that can be read"):
        dataset.pictures(["B/shared0000_nsd00000"])
    (root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5").unlink()
    with pytest.raises(NotAtHand, match="nsd_stimuli"):
        dataset.pictures(["00042"])


def test_pictures_of_words_without_a_file_are_no_stimuli(root):
    shutil.rmtree(root / "nsddata_stimuli/stimuli/nsdimagery")
    dataset = imagery(root, "perception")
    assert dataset.stimuli() == imagery(root).stimuli()
    assert "C/sun0000_nsd00000" in dataset.seen("subj01")
    with pytest.raises(InputError, match="no picture of it"):
        dataset.pictures(["C/sun0000_nsd00000"])


def test_no_captions_are_said(root):
    (root / "COCO_73k_annots_curated.npy").unlink()
    with pytest.raises(NotAtHand, match=r"captions_train2017\.json"):
        imagery(root).captions(["00042"])
    assert imagery(root).captions(["A/bar_000.0deg_450L_43W", "C/sun"]) == [[], ["sun"]]


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (NSDImagery, {"conditions": "all"}, "did you mean `dataset.options.condition`"),
        (NSDImagery, {"condition": "vision"}, "perception"),
        (NSDSynthetic, {"condition": "all"}, "options of these: none"),
    ],
)
def test_options_are_read_strictly(kind, given, words):
    with pytest.raises(InputError, match=words):
        kind(DatasetSettings(kind="x", root=SAMPLE, options=given))


# --- the form of the released files -------------------------------------------------------------------------------


def as_released(root: Path) -> None:
    """The sample's behaviour in the form of the released files: CONDITION is a letter, vision has no IMAGEFILE,
    pictures of words are the core's, frames of imagery are blank; and the design's conditions are in alphabetic order.
    """
    letters = {"A": "HRVLPE", "B": "WKBCDT", "C": "SZMYNF"}
    for path in (root / "nsddata/bdata/nsdimagery").glob("*.tsv"):
        run = path.stem.split("_", 2)[2]

        def change(rows, run=run) -> None:
            for row in rows:
                row["CONDITION"] = letters[run[3]][int(row["CONDITION"]) - 1]
                if run.startswith("vis"):
                    row["IMAGEFILE"] = "NaN"
                    if run == "visC":
                        row["FRAMEFILE"] = f"shared0003_nsd00010_cue{row['CUE']}.png"
                else:
                    row["FRAMEFILE"] = f"blank00000_00000000_cue{row['CUE']}.png"

        edit(path, change)

    def reorder(content) -> None:
        for number, run in enumerate(RUNS):
            matrix, new = content["stimulus"][0, number], np.array(content["stimulus"][0, number])
            used = np.flatnonzero(matrix.any(axis=0)).reshape(-1, 6)
            order = np.argsort(list(letters[run[3]]))
            for group in used:
                new[:, group] = matrix[:, group[order]]
            content["stimulus"][0, number] = new

    edit_mat(root / EXPERIMENT / "designmatrixGLMsingle.mat", reorder)
    Image.new("RGB", (4, 4)).save(root / EXPERIMENT / "rawtargetimages/setA/another.png")


def test_the_form_of_the_released_files(root):
    before = imagery(root, "all").trials("subj01")
    as_released(root)
    dataset = imagery(root, "all")
    after = dataset.trials("subj01")
    words = np.char.startswith(before.stimulus, "C/") & (before.condition == "perception")
    np.testing.assert_array_equal(after.stimulus[~words], before.stimulus[~words])
    assert set(after.stimulus[words]) == {"00009"}
    for name in ("session", "run", "index", "condition"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert dataset.stimuli() == imagery(root).stimuli(), "pictures of words are the core's, and one of set B's"
    edit(behaviour(root, "visC"), set_cell(0, "FRAMEFILE", "blank00000_00000000_cueS.png"))
    first = imagery(root, "perception").trials("subj01").stimulus[24]
    assert first == "C/sun", "the word, where no picture is named"


def test_everything_from_an_object_store(root):
    place = RemotePath("memory://nsd-imagery/root")
    for path in root.rglob("*"):
        if path.is_file():
            target = place
            for part in path.relative_to(root).parts:
                target = target / part
            target.write_bytes(path.read_bytes())
    for make in (lambda where: imagery(where, "all"), synthetic):
        near, far = make(root), make(str(place))
        assert list(far.subjects()) == list(near.subjects())
        assert far.stimuli() == near.stimuli()
        for one, other in zip(far.pictures(far.stimuli()), near.pictures(near.stimuli()), strict=True):
            np.testing.assert_array_equal(one, other)
        assert far.captions(far.stimuli()) == near.captions(near.stimuli())
        np.testing.assert_array_equal(far.trials("subj01").stimulus, near.trials("subj01").stimulus)
        mask = far.mask("subj01", None)
        found, expected = (d.betas("subj01", d.SESSION, mask) for d in (far, near))
        np.testing.assert_array_equal(found.values, expected.values)
        assert (
            far.beta_files("subj01", far.sessions("subj01")).keys()
            == near.beta_files("subj01", near.sessions("subj01")).keys()
        )


# --- synthetic ----------------------------------------------------------------------------------------------------

ORDERS = {
    "a stimulus that there is not": (lambda c: c["masterordering"].__setitem__((0, 3), 21), "found stimulus 21"),
    "from 0": (lambda c: c["masterordering"].__isub__(1), "NSD counts from 1"),
    "half a stimulus": (lambda c: c["masterordering"].__iadd__(0.5), "whole numbers"),
    "trials too few": (lambda c: c.update(masterordering=c["masterordering"][:, 1:]), "the 71 trials"),
    "runs that are not there": (lambda c: c.update(stimpattern=c["stimpattern"][0]), "Which run"),
    "no order": (lambda c: c.pop("masterordering"), "no array masterordering"),
}


@pytest.mark.parametrize("fault", ORDERS)
def test_designs_of_synthetic_pictures(root, fault):
    change, words = ORDERS[fault]
    edit_mat(root / SYNTHETIC, change)
    with pytest.raises(InputError, match=words) as error:
        synthetic(root).trials("subj01")
    assert "nsdsynthetic_expdesign.mat" in str(error.value)


def test_runs_of_synthetic_pictures_need_not_be_known(root):
    edit_mat(root / SYNTHETIC, lambda content: content.pop("stimpattern"))
    assert set(synthetic(root).trials("subj01").run) == {0}


def test_synthetic_pictures_that_there_are_not(root):
    folder = root / "nsddata_stimuli/stimuli/nsdsynthetic"
    dataset = synthetic(root)
    for unknown in ("synthetic/015", "synthetic/14", "subj01/color/07", "00042"):
        with pytest.raises(InputError, match="no such stimulus"):
            dataset.pictures([unknown])
    with pytest.raises(NotAtHand, match="colorstimuli_subj02"):
        dataset.pictures(["subj02/color/01"])
    (folder / "nsdsynthetic_colorstimuli_subj05.hdf5").unlink()
    with pytest.raises(NotAtHand, match="colorstimuli_subj05"):
        synthetic(root).trials("subj05")
    assert all("subj05" not in stimulus for stimulus in synthetic(root).stimuli())
    for content in ({"other": np.zeros(3)}, {"imgBrick": np.zeros((4, 32, 60), np.uint8)}):
        with h5py.File(folder / "nsdsynthetic_stimuli.hdf5", "w") as file:
            for name, data in content.items():
                file[name] = data
        with pytest.raises(InputError, match="a dataset imgBrick"):
            synthetic(root).stimuli()
    (folder / "nsdsynthetic_stimuli.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(InputError, match="no readable HDF5"):
        synthetic(root).stimuli()


def test_a_table_of_another_number_of_pictures(root):
    path = root / "nsddata/experiments/nsdsynthetic/nsdsyntheticimageinformation.csv"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(InputError, match="1 to 20, each once: 14 of all and 6"):
        synthetic(root).trials("subj01")
    path.unlink()
    assert len(synthetic(root).trials("subj01").stimulus) == 72


def test_betas_of_another_session_are_not_taken(root):
    path = root / BETAS.replace("nsdimagery", "nsdsynthetic")
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "betas_nsdsynthetic.hdf5").unlink()
    path.write_bytes(gzip.compress(gzip.decompress((root / BETAS).read_bytes())))
    with pytest.raises(InputError, match="found 180 betas; expected 72"):
        synthetic(root).trials("subj01")
