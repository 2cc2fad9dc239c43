"""Every kind of bad file is an error that names it, what was found, what was expected and what to do."""

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from bdflow.config import DatasetSettings
from bdflow.datasets.laion_fmri import LaionFMRI
from bdflow.errors import InputError, NotAtHand
from tests.support import logs
from tests.support.messages import faults

ROOT = Path(__file__).parents[2] / "samples/laion_fmri"
FIRST = "shared_12rep_LAION_cluster_1129_i0.jpg"
GLMSINGLE = "derivatives/glmsingle-tedana"
TRIALS = "sub-01/ses-02/func/sub-01_ses-02_task-images_desc-SingletrialBetas_trials.tsv"
BETAS = "sub-01/ses-02/func/sub-01_ses-02_task-images_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
RSQUARE = f"{GLMSINGLE}/sub-01/sub-01_task-images_space-T1w_stat-rsquare_desc-R2mean_statmap.nii.gz"
CEILING = f"{GLMSINGLE}/sub-01/sub-01_task-images_space-T1w_desc-Noiseceiling12rep_statmap.nii.gz"
ROIS = "derivatives/rois/sub-01"
FACE = f"{ROIS}/face/sub-01_space-T1w_res-1pt8_label-FFA1_mask.nii.gz"
BRAIN = (
    "derivatives/anatomical/sub-01/ses-PrismaAnat/anat/sub-01_ses-PrismaAnat_space-T1w_res-1pt8_desc-brain_mask.nii.gz"
)
SHAPE = (12, 11, 10)


@pytest.fixture
def tree(tmp_path) -> Path:
    """The sample, to be damaged."""
    return Path(shutil.copytree(ROOT, tmp_path / "laion"))


def dataset(root: Path, **options) -> LaionFMRI:
    return LaionFMRI(DatasetSettings(kind="laion_fmri", root=root, options=options))


def refused(call: Callable[[], object], *words: str, kind: type[InputError] = InputError) -> None:
    with pytest.raises(kind) as error:
        call()
    assert faults(error.value) == []
    for word in words:
        assert word in str(error.value)


def edit(path: Path, change: Callable[[list[dict[str, str]]], list[dict[str, str]] | None]) -> None:
    """Change the rows of a table, in place or by the list that comes back."""
    separator = "," if path.suffix == ".csv" else "\t"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter=separator))
    columns = list(rows[0])
    rows = change(rows) or rows
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter=separator, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def drop_column(path: Path, column: str) -> None:
    separator = "," if path.suffix == ".csv" else "\t"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter=separator))
    at = rows[0].index(column)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows([row[:at] + row[at + 1 :] for row in rows])


def change_volume(path: Path, change: Callable[[np.ndarray], np.ndarray | None], dtype: type | None = None) -> None:
    image = nib.load(path)
    data = np.asarray(image.dataobj).copy()
    data = data if (changed := change(data)) is None else changed
    nib.save(nib.Nifti1Image(data.astype(dtype or data.dtype), image.affine, dtype=dtype or data.dtype), path)


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise_ceiling": "8rep"}, ("noise_ceiling", "4rep", "12rep", "Allrep")),
        ({"noise_ceiling": "Allrep"}, ("noise_ceiling_repeats", "4 and 12 repeats")),
        ({"noise_ceiling_repeats": 4}, ("noise_ceiling_repeats", "Allrep")),
        ({"noise_ceiling": "Allrep", "noise_ceiling_repeats": 0}, ("noise_ceiling_repeats",)),
        ({"split": "splits"}, ("unknown key", "did you mean `dataset.options.splits`")),
    ],
)
def test_options_are_read_strictly(options, words):
    refused(lambda: dataset(ROOT, **options), "laion_fmri", *words)


# --- stimuli ----------------------------------------------------------------------------------------------------


def test_a_missing_stimulus_file_is_named(tree):
    for name, call in {
        "task-images_metadata.csv": lambda made: made.stimuli(),
        "task-images_stimuli.h5": lambda made: made.pictures([FIRST]),
        "task-images_desc-captions.csv": lambda made: made.captions([FIRST]),
    }.items():
        path = tree / "stimuli" / name
        path.rename(path.with_suffix(".away"))
        refused(lambda call=call: call(dataset(tree)), str(path), kind=NotAtHand)
        path.with_suffix(".away").rename(path)


@pytest.mark.parametrize("column", ["image_name", "unique_or_shared"])
def test_a_stimulus_table_without_a_column(tree, column):
    path = tree / "stimuli/task-images_metadata.csv"
    drop_column(path, column)
    refused(dataset(tree).stimuli, str(path), f"a column {column}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [*rows, rows[0]], ("in two rows",)),
        (lambda rows: rows[3].update(image_name=" "), ("without a name",)),
    ],
)
def test_a_name_in_the_stimulus_table_is_there_and_there_once(tree, change, words):
    edit(tree / "stimuli/task-images_metadata.csv", change)
    refused(dataset(tree).stimuli, "task-images_metadata.csv, column image_name", *words)


def test_a_stimulus_that_is_neither_shared_nor_of_one_subject(tree):
    """In whatever case; nothing else is guessed at."""
    edit(tree / "stimuli/task-images_metadata.csv", lambda rows: [row | {"unique_or_shared": "Shared"} for row in rows])
    assert dataset(tree).seen("sub-01") == set(dataset(tree).stimuli())
    edit(tree / "stimuli/task-images_metadata.csv", lambda rows: rows[0].update(unique_or_shared="both"))
    refused(lambda: dataset(tree).seen("sub-01"), "unique_or_shared", "'both'", "`unique` or `shared`")


def test_the_spelling_of_participant_does_not_count(tree):
    path = tree / "stimuli/task-images_metadata.csv"
    expected = dataset(tree).seen("sub-03")
    edit(path, lambda rows: [row | {"participant": "p01", "dataset": "?"} for row in rows])
    assert dataset(tree).seen("sub-03") == expected
    drop_column(path, "participant")
    assert dataset(tree).seen("sub-03") == expected


def test_a_stimulus_that_there_is_not(tree):
    made = dataset(tree)
    for call in (made.pictures, made.captions, lambda names: made.embeddings("CLIP", names)):
        refused(lambda call=call: call([FIRST, "other.jpg"]), "'other.jpg'", "task-images_metadata.csv")


def test_pictures_and_rows_of_the_table_are_as_many(tree):
    edit(tree / "stimuli/task-images_metadata.csv", lambda rows: rows[:-1])
    refused(lambda: dataset(tree).pictures([FIRST]), "40 pictures", "39, one for each row")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda file: None, ("the datasets none", "`images`")),
        (lambda file: file.create_dataset("images", data=np.zeros((40, 8, 8, 3), np.uint8)), ("uint8 (40, 8, 8, 3)",)),
        (lambda file: file.create_dataset("images", (40,), h5py.vlen_dtype(np.int16)), ("uint8 of any length",)),
    ],
)
def test_pictures_of_another_kind(tree, write, words):
    path = tree / "stimuli/task-images_stimuli.h5"
    with h5py.File(path, "w") as file:
        write(file)
    refused(lambda: dataset(tree).pictures([FIRST]), str(path), *words)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_damaged_picture_is_named_and_others_are_read(tree, content):
    made = dataset(tree)
    row = made.stimuli().index(FIRST)
    with h5py.File(tree / "stimuli/task-images_stimuli.h5", "a") as file:
        bytes_ = file["images"][row].tobytes()[:500] if content is None else content
        file["images"][row] = np.frombuffer(bytes_, np.uint8)
    refused(lambda: made.pictures([FIRST]), f"images[{row}]", FIRST, "picture")
    assert made.pictures([name for name in made.stimuli() if name != FIRST])[0].shape == (64, 64, 3)


def test_a_file_of_pictures_that_is_none(tree):
    path = tree / "stimuli/task-images_stimuli.h5"
    path.write_bytes(path.read_bytes()[:3000])
    refused(lambda: dataset(tree).pictures([FIRST]), str(path), "HDF5")


def test_grey_and_palette_pictures_are_rgb(tree):
    """A picture's size may differ from the others'."""
    import io

    from PIL import Image

    made = dataset(tree)
    row = made.stimuli().index(FIRST)
    grey = Image.fromarray(np.arange(30, dtype=np.uint8).reshape(5, 6), "L")
    for image in (grey, grey.convert("P")):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        with h5py.File(tree / "stimuli/task-images_stimuli.h5", "a") as file:
            file["images"][row] = np.frombuffer(buffer.getvalue(), np.uint8)
        (found,) = made.pictures([FIRST])
        np.testing.assert_array_equal(found, np.repeat(np.arange(30).reshape(5, 6, 1), 3, axis=2))


# --- captions, embeddings, splits -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[4].update(source="machine"), ("row 6", "column source", "'machine'")),
        (lambda rows: [*rows, rows[0]], ("row 154", "second human caption")),
        (lambda rows: rows[2].update(caption_idx="first"), ("line 4", "caption_idx", "a whole number")),
        (lambda rows: [row | {"image_name": "x" + row["image_name"]} for row in rows], ("40 names, none of them",)),
    ],
)
def test_captions_that_are_odd(tree, change, words):
    path = tree / "stimuli/task-images_desc-captions.csv"
    edit(path, change)
    refused(lambda: dataset(tree).captions([FIRST]), str(path), *words)


def test_a_stimulus_may_have_no_caption(tree):
    """An empty one is none; names that the stimulus table does not have are left out."""
    expected = dataset(tree).captions([FIRST])[0]

    def change(rows):
        for row in rows:
            if row["image_name"] == FIRST and row["caption_idx"] == "1":
                row["caption"] = "  "
        other = next(row["image_name"] for row in rows if row["image_name"] != FIRST)
        return [row | {"image_name": "gone.jpg"} if row["image_name"] == other else row for row in rows]

    edit(tree / "stimuli/task-images_desc-captions.csv", change)
    made = dataset(tree)
    assert made.captions([FIRST])[0] == expected[1:]
    assert sum(not captions for captions in made.captions(made.stimuli())) == 1


def test_embeddings_of_a_model_that_there_is_not(tree):
    refused(lambda: dataset(tree).embeddings("../CLIP", [FIRST]), "embeddings of CLIP, DINOv2", "a file of ../CLIP")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ids, values, valid: ids.__setitem__(0, ids[1]), ("twice",)),
        (lambda ids, values, valid: ids.__setitem__(ids.index(FIRST), "other.jpg"), ("no embedding of 1", FIRST)),
        (lambda ids, values, valid: values.__setitem__(ids.index(FIRST), np.nan), ("not finite", FIRST)),
        (lambda ids, values, valid: valid.__setitem__(ids.index(FIRST), False), ("not valid", FIRST)),
        (lambda ids, values, valid: ids.pop(), ("image_ids", "(39,)")),
    ],
)
def test_embeddings_that_do_not_fit(tree, change, words):
    path = tree / "stimuli/task-images_desc-CLIP_embeddings.h5"
    with h5py.File(path) as file:
        ids, values, valid = list(file["image_ids"].asstr()[:]), file["embedding"][:], file["valid"][:]
    change(ids, values, valid)
    with h5py.File(path, "w") as file:
        file["image_ids"], file["embedding"], file["valid"] = ids, values, valid
    refused(lambda: dataset(tree).embeddings("CLIP", [FIRST]), str(path), *words)


def test_a_folder_of_splits_has_splits(tree):
    refused(lambda: dataset(tree, splits=str(tree / "none")).splits(), str(tree / "none"), kind=NotAtHand)
    refused(lambda: dataset(tree, splits=str(tree / "splits/shared")).splits(), "POOL/NAME.json", "splits/data")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda split: split["variants"].append(split["variants"][0]), ("2 variants", "one variant")),
        (lambda split: split.pop("variants"), ("no list `variants`",)),
        (lambda split: split["variants"][0].pop("test_ids"), ("test_ids", "no list of text")),
        (lambda split: split["variants"][0].update(train_ids=[]), ("train_ids", "an empty list")),
        (lambda split: split["variants"][0].update(train_ids=[1, 2]), ("train_ids", "no list of text")),
        (lambda split: split["variants"][0]["train_ids"].append(FIRST), ("train_ids", "twice", FIRST)),
        (lambda split: split["variants"][0]["test_ids"].append(FIRST), ("test_ids", "8 names", "n_test")),
        (lambda split: split["variants"][0]["test_ids"].__setitem__(0, FIRST), ("1 name in both parts", FIRST)),
    ],
)
def test_a_split_that_is_none(tree, change, words):
    """Others can be used all the same."""
    path = tree / "splits/shared/ood.json"
    split = json.loads(path.read_text())
    assert FIRST in split["variants"][0]["train_ids"]
    change(split)
    path.write_text(json.dumps(split))
    splits = dataset(tree, splits=str(tree / "splits")).splits()
    refused(lambda: splits["shared/ood"], str(path), *words)
    assert splits["shared/tau"].test


def test_a_split_file_that_is_no_json(tree):
    path = tree / "splits/sub-01/tau.json"
    path.write_bytes(path.read_bytes()[:-40])
    refused(lambda: dataset(tree, splits=str(tree / "splits")).splits()["sub-01/tau"], str(path), "no JSON")


# --- subjects and trials ----------------------------------------------------------------------------------------


def test_a_subject_or_session_that_there_is_not(tree):
    made, mask = dataset(tree), np.ones(SHAPE, bool)
    for call in (made.sessions, made.trials, made.seen, made.grid, made.regions, made.region_names):
        for subject in ("sub-06", "..", "sub-01/ses-01", ""):
            refused(lambda call=call, subject=subject: call(subject), "sub-01, sub-03")
    refused(lambda: made.mask("sub-06", None), "sub-06", "sub-01, sub-03")
    refused(lambda: made.betas("sub-03", "ses-02", mask), "'ses-02'", "ses-01, ses-03, ses-04")
    refused(lambda: made.beta_files("sub-03", ["ses-02"]), "'ses-02'", "ses-01, ses-03, ses-04")


def test_a_root_that_is_no_dataset(tree, tmp_path):
    refused(dataset(tmp_path / "none").subjects, GLMSINGLE, kind=NotAtHand)
    shutil.rmtree(tree / GLMSINGLE)
    (tree / GLMSINGLE / "sub-01/ses-01/func").mkdir(parents=True)
    refused(dataset(tree).subjects, "no folder of a subject with single-trial betas", "`dataset.root`")


def test_sessions_are_in_the_order_of_their_numbers(tree):
    for session in ("ses-10", "ses-9"):
        func = tree / GLMSINGLE / "sub-01" / session / "func"
        func.mkdir(parents=True)
        (func / Path(BETAS.replace("ses-02", session)).name).touch()
    assert dataset(tree).sessions("sub-01") == ["ses-01", "ses-02", "ses-03", "ses-9", "ses-10"]


def test_a_table_of_trials_without_betas_is_no_session_but_was_seen(tree):
    """Tables are small and betas large: all tables and some betas are at hand."""
    edit(tree / "stimuli/task-images_metadata.csv", lambda rows: [row | {"unique_or_shared": "unique"} for row in rows])
    expected = dataset(tree).seen("sub-01")
    (tree / GLMSINGLE / BETAS).unlink()
    made = dataset(tree)
    assert made.sessions("sub-01") == ["ses-01", "ses-03"]
    assert set(made.trials("sub-01").session.tolist()) == {"ses-01", "ses-03"}
    assert made.seen("sub-01") == expected


def test_a_file_of_another_session_in_a_folder(tree):
    path = tree / GLMSINGLE / BETAS
    path.rename(path.with_name(path.name.replace("ses-02", "ses-04")))
    for call in (lambda made: made.sessions("sub-01"), lambda made: made.trials("sub-01")):
        refused(lambda call=call: call(dataset(tree)), str(path.parent), "ses-04", "sub-01_ses-02")


@pytest.mark.parametrize("column", ["session", "run", "beta_index", "label"])
def test_a_table_of_trials_without_a_column(tree, column):
    drop_column(tree / GLMSINGLE / TRIALS, column)
    refused(lambda: dataset(tree).trials("sub-01"), str(tree / GLMSINGLE / TRIALS), f"a column {column}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[::-1], ("beta_index 41 in row 0",)),
        (lambda rows: rows[:10] + rows[11:], ("beta_index 11 in row 10",)),
        (lambda rows: rows[:-1], ("41 rows", "42, one for each volume")),
        (lambda rows: rows[5].update(session="ses-01"), ("'ses-01' in column session", "ses-02 in each row")),
        (lambda rows: rows[5].update(run="0"), ("run 0", "from 1")),
        (lambda rows: rows[5].update(run="one"), ("line 7", "a whole number")),
        (lambda rows: rows[5].update(label="other.jpg"), ("column label", "'other.jpg'", "task-images_metadata.csv")),
        (lambda rows: rows[5].update(label=""), ("column label", "''")),
    ],
)
def test_a_table_of_trials_that_does_not_fit_is_refused_with_its_betas(tree, change, words):
    """Betas are of no use where it is not known what they are of."""
    path = tree / GLMSINGLE / TRIALS
    edit(path, change)
    refused(lambda: dataset(tree).trials("sub-01"), str(path), *words)
    refused(lambda: dataset(tree).betas("sub-01", "ses-02", np.ones(SHAPE, bool)), str(path), *words)
    assert len(dataset(tree).betas("sub-01", "ses-01", np.ones(SHAPE, bool)).values) == 44


@pytest.mark.parametrize(("run", "session"), [("run-0{}", "ses-02"), ("0{}", "02"), ("{}.0", "2")])
def test_runs_and_sessions_of_other_spellings_are_the_same(tree, run, session):
    expected = dataset(tree).trials("sub-01")
    path = tree / GLMSINGLE / TRIALS
    edit(path, lambda rows: [row | {"run": run.format(row["run"]), "session": session} for row in rows])
    found = dataset(tree).trials("sub-01")
    np.testing.assert_array_equal(found.run, expected.run)
    np.testing.assert_array_equal(found.session, expected.session)


def test_a_table_of_trials_that_is_missing_or_empty(tree):
    path = tree / GLMSINGLE / TRIALS
    path.write_text("session\trun\tbeta_index\tlabel\n")
    refused(lambda: dataset(tree).trials("sub-01"), str(path), "no row")
    path.unlink()
    refused(lambda: dataset(tree).trials("sub-01"), str(path), kind=NotAtHand)
    refused(lambda: dataset(tree).betas("sub-01", "ses-02", np.ones(SHAPE, bool)), str(path), kind=NotAtHand)


def test_a_stimulus_of_another_subject_is_seen_by_both_and_said(tree, caplog):
    other = "unique_LAION_new_cluster_18_i24_p04.jpg"
    assert other not in dataset(tree).seen("sub-01")
    assert logs.lines(caplog) == []
    edit(tree / GLMSINGLE / TRIALS, lambda rows: rows[0].update(label=other))
    made = dataset(tree)
    assert other in made.seen("sub-01") & made.seen("sub-03")
    assert other in logs.text(caplog)


# --- voxels -----------------------------------------------------------------------------------------------------


def test_truncated_betas(tree):
    path = tree / GLMSINGLE / BETAS
    path.write_bytes(path.read_bytes()[:-1000])
    refused(lambda: dataset(tree).betas("sub-01", "ses-02", np.ones(SHAPE, bool)), str(path), "truncated or damaged")
    path.write_bytes(b"")
    refused(lambda: dataset(tree).trials("sub-01"), str(path), "no readable header")


def test_betas_that_are_not_packed(tree):
    path = tree / GLMSINGLE / BETAS
    path.write_bytes(gzip.decompress(path.read_bytes()))
    refused(lambda: dataset(tree).trials("sub-01"), str(path), ".nii.gz")


def test_betas_of_whole_numbers_have_no_unit(tree):
    change_volume(tree / GLMSINGLE / BETAS, lambda data: np.nan_to_num(data) * 300, np.int16)
    refused(lambda: dataset(tree).betas("sub-01", "ses-02", np.ones(SHAPE, bool)), "int16", "unit")


def test_infinite_betas(tree):
    def change(data):
        data[4, 5, 6, 7] = np.inf

    change_volume(tree / GLMSINGLE / BETAS, change)
    refused(lambda: dataset(tree).betas("sub-01", "ses-02", np.ones(SHAPE, bool)), "trial 7", "not finite")


def test_a_voxel_that_never_changes_is_not_valid_in_that_session(tree):
    def change(data):
        data[4, 5, 6] = 1.5

    mask = np.zeros(SHAPE, bool)
    mask[4, 5, 6] = True
    assert dataset(tree).betas("sub-01", "ses-02", mask).valid.all()
    change_volume(tree / GLMSINGLE / BETAS, change)
    made = dataset(tree)
    assert not made.betas("sub-01", "ses-02", mask).valid.any()
    assert made.betas("sub-01", "ses-01", mask).valid.all()


def test_a_session_on_another_grid(tree):
    change_volume(tree / GLMSINGLE / BETAS, lambda data: data[:, :, :-1])
    made = dataset(tree)
    refused(lambda: made.betas("sub-01", "ses-02", np.ones((12, 11, 9), bool)), BETAS, "(12, 11, 9)", "(12, 11, 10)")
    image = nib.load(ROOT / GLMSINGLE / BETAS)
    nib.save(
        nib.Nifti1Image(np.asarray(image.dataobj), np.diag([1.0, -1, 1, 1]) @ image.affine), tree / GLMSINGLE / BETAS
    )
    refused(lambda: dataset(tree).betas("sub-01", "ses-02", np.ones(SHAPE, bool)), BETAS, "axes that run to LPS", "LAS")


def test_a_mask_of_another_shape(tree):
    refused(lambda: dataset(tree).betas("sub-01", "ses-02", np.ones((11, 12, 9), bool)), BETAS, "(11, 12, 9)")


@pytest.mark.parametrize(
    ("file", "call"),
    [
        (RSQUARE, lambda made: made.mask("sub-01", None)),
        (BRAIN, lambda made: made.mask("sub-01", "brain")),
        (CEILING, lambda made: made.noise_ceiling("sub-01")),
    ],
)
def test_a_volume_that_is_missing_damaged_or_on_another_grid(tree, file, call):
    path, content = tree / file, (tree / file).read_bytes()
    path.unlink()
    refused(lambda: call(dataset(tree)), str(path), kind=NotAtHand)
    path.write_bytes(content[:-30])
    refused(lambda: call(dataset(tree)), str(path), "cannot be read")
    path.write_bytes(content)
    change_volume(path, lambda data: np.repeat(data, 2, axis=2))
    refused(lambda: call(dataset(tree)), str(path), "(12, 11, 20)", "(12, 11, 10)")


def test_a_fetched_part_says_only_what_is_there(tree):
    """Without the anatomical mask and regions, the rest can be used."""
    (tree / BRAIN).unlink()
    shutil.rmtree(tree / ROIS)
    made = dataset(tree)
    assert "mask brain" not in made.beta_files("sub-01", ["ses-01"])
    assert made.regions("sub-01") == {}
    assert made.region_names("sub-01") == []
    assert made.mask("sub-01", None).any()
    refused(lambda: made.mask("sub-01", "laiongeneral"), "no mask or region 'laiongeneral'", "brain, rsquare")


def test_the_rsquare_mask_is_of_numbers_that_are_not_0(tree):
    expected = dataset(tree).mask("sub-01", None)
    inside, outside = (tuple(np.argwhere(where)[0]) for where in (expected, ~expected))

    def change(data):
        data[inside], data[outside] = np.nan, -0.5

    change_volume(tree / RSQUARE, change)
    found = dataset(tree).mask("sub-01", "rsquare")
    assert not found[inside]
    assert found[outside]
    assert found.sum() == expected.sum()
    change_volume(tree / RSQUARE, lambda data: data * 0)
    refused(lambda: dataset(tree).mask("sub-01", None), str(tree / RSQUARE), "No voxel is in the mask")


def test_a_region_that_there_is_not_lists_what_there_is(tree):
    """Those of another subject too: OFA is sub-01's alone."""
    made = dataset(tree)
    for name in ("nsdgeneral", "face/PPA", "place/", ""):
        refused(lambda name=name: made.mask("sub-01", name), repr(name), "face/FFA1", "laion/laiongeneral")
    assert made.mask("sub-01", "OFA").any()
    both = made.mask("sub-01", "face/FFA1") | made.mask("sub-01", "face/OFA")
    np.testing.assert_array_equal(made.mask("sub-01", "face"), both)
    refused(lambda: made.mask("sub-03", "OFA"), "'OFA'", "face/FFA1")


def test_a_name_in_two_categories_needs_its_category(tree):
    path = tree / ROIS / "body" / Path(FACE).name
    shutil.copy(tree / FACE, path)
    made = dataset(tree)
    refused(lambda: made.mask("sub-01", "FFA1"), "body/FFA1, face/FFA1", "with its category")
    np.testing.assert_array_equal(made.mask("sub-01", "body/FFA-1"), made.mask("sub-01", "face/FFA1"))


def test_two_spellings_of_one_region(tree):
    shutil.copy(tree / FACE, (tree / FACE).with_name(Path(FACE).name.replace("FFA1", "FFA-1")))
    for call in (lambda made: made.regions("sub-01"), lambda made: made.mask("sub-01", "OFA")):
        refused(lambda call=call: call(dataset(tree)), "two files of face/FFA1", "FFA-1")


def test_an_empty_region_is_a_region_but_no_mask(tree):
    change_volume(tree / FACE, lambda data: data * 0)
    made = dataset(tree)
    assert made.regions("sub-01")["face/FFA1"].sum() == 0
    refused(lambda: made.mask("sub-01", "FFA1"), Path(FACE).name, "no voxel above 0")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], ("(11, 11, 10)", "(12, 11, 10)")),
        (lambda data: data * 0.5, ("not whole numbers",)),
        (lambda data: np.stack([data, data], -1), ("three axes",)),
    ],
)
def test_a_region_that_does_not_fit(tree, change, words):
    change_volume(tree / FACE, change, np.float32)
    refused(lambda: dataset(tree).regions("sub-01"), Path(FACE).name, *words)
    refused(lambda: dataset(tree).mask("sub-01", "FFA1"), Path(FACE).name, *words)


@pytest.mark.parametrize("value", [100.5, -1, np.inf])
def test_a_noise_ceiling_is_percent(tree, value):
    def change(data):
        data[4, 5, 6] = value

    change_volume(tree / CEILING, change)
    refused(lambda: dataset(tree).noise_ceiling("sub-01"), str(tree / CEILING), f"{value:g}", "0 to 100")


def test_a_noise_ceiling_that_is_not_known_stays_so(tree):
    def change(data):
        data[4, 5, 6], data[4, 5, 7] = np.nan, 100

    change_volume(tree / CEILING, change)
    found = dataset(tree).noise_ceiling("sub-01").values
    assert np.isnan(found[4, 5, 6])
    assert found[4, 5, 7] == 100
    assert np.isnan(found).sum() == 1
