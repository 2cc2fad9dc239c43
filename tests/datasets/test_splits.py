"""Splits: files of ids as people write them, the dataset's own, and what a reader makes of them for each subject."""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdflow.config import parse
from bdflow.datasets.contract import Split, Trials
from bdflow.datasets.reader import Reader
from bdflow.datasets.splits import digest_of, read_split
from bdflow.errors import InputError


class Numbered:
    """A dataset of 86 stimuli that have numbers, and of no files."""

    default_mask = None
    names = tuple(f"{number:05d}" for number in range(86))

    def __init__(self, settings=None):
        self.settings = settings

    def stimuli(self):
        return self.names

    def session_of(self, number):
        return f"session{number:02d}"

    def stimulus_of(self, number):
        return f"{number:05d}"

    def splits(self):
        return {"mine": Split(frozenset({"00001"})), "subj02/own": Split(frozenset({"00002"}), frozenset({"00003"}))}


NAMES = (".. a b.jpg", "THINGS+x", "c #1", "d", "e", "f", "g")


class Named:
    """A dataset of two subjects whose stimuli have names of any kind: `seen` says who sees what."""

    default_mask = None
    seen_by: ClassVar = {"one": (0, 1, 2, 3, 2), "two": (6, 1, 4, 1, 5), "absent": (3, 4)}

    def __init__(self, settings):
        self.settings = settings

    def stimuli(self):
        return NAMES

    def subjects(self):
        return [*self.seen_by]

    def sessions(self, subject):
        return ["s9", "s1"]

    def seen(self, subject):
        return frozenset(NAMES[at] for at in self.seen_by[subject])

    def trials(self, subject, sessions):
        shown = [NAMES[at] for at in self.seen_by[subject]] + ["", "a word"]
        several = len(shown)
        return Trials(
            np.array(shown),
            np.repeat(np.array(sessions)[:1], several),
            np.zeros(several, int),
            np.arange(several),
            np.full(several, ""),
        )

    def splits(self):
        everything = frozenset(NAMES)
        return {
            "small": Split(frozenset({NAMES[1], NAMES[4]}), frozenset({NAMES[0], NAMES[6]})),
            "one/own": Split(frozenset({NAMES[0]}), everything - {NAMES[0]}),
            "two/own": Split(frozenset({NAMES[6]})),
        }


def reader(tmp_path: Path, split: str = "shared", **dataset) -> Reader:
    return Reader(
        parse(
            {
                "study": str(tmp_path / "study.zarr"),
                "subjects": ["one", "two"],
                "dataset": {"kind": f"{__name__}:Named", "root": str(tmp_path), "split": split, **dataset},
                "spaces": {"text": {"encoder": "clip_text"}},
                "report": {"path": str(tmp_path / "report")},
            }
        )
    )


def ids_of(path: Path) -> frozenset[str]:
    return read_split(str(path), ("subj01",), Numbered())["subj01"].test


def parts(of: Reader) -> dict[str, dict[str, str]]:
    return {part: dict(zip(*(x.tolist() for x in of.stimuli(part)), strict=True)) for part in ("shared", "one", "two")}


def test_shared_stimuli_are_those_of_several_subjects_of_the_whole_dataset(tmp_path):
    """d is shared with a subject that the configuration does not name; adding that subject moves nothing."""
    of = reader(tmp_path)
    assert of.shared == {NAMES[1], NAMES[3], NAMES[4]}
    assert parts(of) == {
        "shared": dict.fromkeys((NAMES[1], NAMES[3], NAMES[4]), "test"),
        "one": dict.fromkeys((NAMES[0], NAMES[2]), "train"),
        "two": dict.fromkeys((NAMES[5], NAMES[6]), "train"),
    }


def test_trials_of_no_stimulus_are_in_no_part(tmp_path):
    of = reader(tmp_path)
    assert {"", "a word"} <= set(of.trials("one").stimulus)
    assert all({"", "a word"}.isdisjoint(part) for part in parts(of).values())


def test_a_split_of_the_dataset_leaves_out_what_is_in_neither_part(tmp_path):
    of = reader(tmp_path, "dataset:small")
    assert parts(of) == {
        "shared": {NAMES[1]: "test", NAMES[4]: "test"},
        "one": {NAMES[0]: "train"},
        "two": {NAMES[6]: "train"},
    }


def test_a_split_of_each_subject(tmp_path):
    """A test stimulus of one subject is one for all; the order is the dataset's, test stimuli first."""
    of = reader(tmp_path, "dataset:{subject}/own")
    assert {subject: part.test for subject, part in of.split.items()} == {"one": {NAMES[0]}, "two": {NAMES[6]}}
    assert parts(of)["one"] == {NAMES[0]: "test", NAMES[2]: "train"}
    assert [*parts(of)["two"].items()] == [(NAMES[6], "test"), (NAMES[5], "train")]


def test_a_json_split_may_name_stimuli_that_are_not_there(tmp_path):
    file = tmp_path / "split.json"
    for content in (
        {"test": [NAMES[1], "never seen"], "train": [NAMES[0], NAMES[6], "nor this"]},
        {"variants": [{"test_ids": [NAMES[1]], "train_ids": [NAMES[0], NAMES[6]]}, {"test_ids": []}]},
    ):
        file.write_text(json.dumps(content), encoding="utf-8")
        assert parts(reader(tmp_path, str(file)))["shared"] == {NAMES[1]: "test"}


WRONG_JSON = {
    "a list": "[1]",
    "cut": '{"test": [',
    "no test": '{"train": ["d"]}',
    "numbers": '{"test": [1]}',
    "twice": '{"test": ["d", "d"]}',
    "in both": '{"test": ["d"], "train": ["d", "e"]}',
}


@pytest.mark.parametrize("case", WRONG_JSON)
def test_json_files_that_are_no_splits(case, tmp_path):
    file = tmp_path / "split.json"
    file.write_text(WRONG_JSON[case], encoding="utf-8")
    with pytest.raises(InputError) as error:
        reader(tmp_path, str(file)).split
    for word in (str(file), "`test` and `train`", "dataset.split"):
        assert word in str(error.value)


def test_names_with_signs_in_a_file_of_lines(tmp_path):
    file = tmp_path / "test.txt"
    file.write_text("# test\nc #1\n.. a b.jpg # the first\nd\n", encoding="utf-8")
    assert read_split(str(file), ("one",), Named(None))["one"].test == {"c #1", ".. a b.jpg", "d"}


@pytest.mark.parametrize("given", ["dataset:none", "dataset:{subject}/none"])
def test_a_split_that_the_dataset_has_not(given, tmp_path):
    with pytest.raises(InputError, match=r"no split[\s\S]*one/own, small, two/own"):
        reader(tmp_path, given).split


def test_a_subject_without_test_stimuli_is_named(tmp_path):
    file = tmp_path / "test.txt"
    file.write_text("a\n".replace("a", NAMES[0]), encoding="utf-8")
    with pytest.raises(InputError, match="two: found no test stimulus among the 4 that were shown"):
        reader(tmp_path, str(file)).split


def test_a_digest_is_of_the_ids_alone():
    one, same = (
        {s: Split(frozenset({"a", "b"}), frozenset("c")) for s in subjects} for subjects in (("x",), ("x", "y"))
    )
    assert digest_of(one) == digest_of(same)
    assert digest_of(one) != digest_of({"x": Split(frozenset({"a", "b"}))})
    assert digest_of(one) != digest_of({"x": Split(frozenset({"a"}), frozenset("c"))})


def test_sessions_by_name_in_the_order_of_the_scan(tmp_path):
    assert reader(tmp_path).sessions("one") == ("s9", "s1")
    assert reader(tmp_path, sessions=1).sessions("one") == ("s9",)
    assert reader(tmp_path, sessions=["s1", "s9"]).sessions("one") == ("s9", "s1")
    with pytest.raises(InputError, match=r"no s2[\s\S]*s9, s1"):
        reader(tmp_path, sessions=["s2"]).sessions("one")
    with pytest.raises(InputError, match="found 2 sessions; expected 3"):
        reader(tmp_path, sessions=3).sessions("one")


# --- lists of test stimuli ------------------------------------------------------------------------------------


WRONG_TEXTS = {
    "two columns": "1 10\n2 20\n",
    "one line": "1 2 3",
    "commas": "1,2\n3,4",
    "a row number and an id": "row id\n0 5\n1 6",
    "floats": "1.0\n2.0",
    "a float that is whole": "1e1",
    "hexadecimal": "0x1",
    "not finite": "nan",
    "twice": "3\n4\n3",
    "twice in another way": "3\n03",
    "nothing": "# nothing\n\n",
    "a sentence": "the first ten",
    "long": "9" * 5000,
}


@pytest.mark.parametrize("case", WRONG_TEXTS)
def test_split_files_that_are_no_list_of_ids(case, tmp_path):
    path = tmp_path / "test.txt"
    path.write_text(WRONG_TEXTS[case], encoding="utf-8")
    with pytest.raises(InputError) as error:
        ids_of(path)
    assert str(path) in str(error.value)
    assert "one a line" in str(error.value)


@pytest.mark.parametrize("text", ["\ufeff3\n5\n", "3\r\n5\r\n", "# ids\n 3  # a comment\n\n+5", "03\n05\n"])
def test_split_files_as_editors_write_them(text, tmp_path):
    path = tmp_path / "test.txt"
    path.write_text(text, encoding="utf-8")
    assert ids_of(path) == {"00003", "00005"}


def test_a_split_file_of_another_encoding_is_named(tmp_path):
    path = tmp_path / "test.txt"
    path.write_bytes("3\n5".encode("utf-16"))
    with pytest.raises(InputError, match="no readable list"):
        ids_of(path)


WRONG_ARRAYS = {
    "two columns": np.arange(6).reshape(3, 2),
    "one column": np.arange(3).reshape(3, 1),
    "one row": np.arange(3).reshape(1, 3),
    "no axis": np.array(3),
    "truths": np.array([True, False]),
    "text of no stimulus": np.array(["a", "b"]),
    "complex": np.array([1j, 2]),
    "fractions": np.array([1.5]),
    "not finite": np.array([1, np.nan]),
    "twice": np.array([1, 2, 1]),
    "objects": np.array([1, "a"], object),
    "records": np.zeros(3, [("row", int), ("id", int)]),
    "huge": np.array([1e300]),
    "none": np.array([], int),
}


@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_split_arrays_that_are_no_list_of_ids(case, tmp_path):
    path = tmp_path / "test.npy"
    np.save(path, WRONG_ARRAYS[case], allow_pickle=True)
    with pytest.raises(InputError) as error:
        ids_of(path)
    assert str(path) in str(error.value)


@settings(deadline=None)
@given(st.lists(st.integers(0, 85), min_size=1, unique=True), st.sampled_from(["i2", "u8", "U"]))
def test_split_arrays_of_ids(tmp_path_factory, ids, dtype):
    path = tmp_path_factory.mktemp("split") / "test.npy"
    np.save(path, np.array(ids, dtype))
    assert ids_of(path) == {f"{one:05d}" for one in ids}
