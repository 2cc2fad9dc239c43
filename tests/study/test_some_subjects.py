"""Runs for some subjects: files of the others are not needed, and subjects added later leave all that is there."""

import shutil
from pathlib import Path

import pytest

from bdflow import api
from bdflow.config import parse
from bdflow.datasets.reader import open_dataset
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline, stages_until
from tests.conftest import SUBJECTS, snapshot

ONE = ("subj01",)


@pytest.fixture
def alone(nsd, tmp_path) -> Path:
    """The dataset without a file of subj02."""
    root = tmp_path / "alone"
    shutil.copytree(nsd, root, ignore=shutil.ignore_patterns("subj02*"))
    assert list(nsd.rglob("subj02")), "or nothing is left out"
    assert not [file for file in root.rglob("*") if "subj02" in file.name]
    return root


def marks(study: Path) -> dict[str, int]:
    return {str(file.relative_to(study)): file.stat().st_mtime_ns for file in study.rglob("*/c/*") if file.is_file()}


def test_a_dataset_is_looked_into_without_files_of_others(settings, alone, tmp_path):
    config = parse(settings(tmp_path, dataset={"root": str(alone), "sessions": 3}))
    with pytest.raises(InputError, match="subj02"):
        api.check_dataset(config)
    account = api.check_dataset(config, subjects=ONE)
    assert tuple(account.subjects) == ONE
    assert account.subjects["subj01"].test == 6
    with pytest.raises(InputError, match="subj09"):
        api.check_dataset(config, subjects=["subj09"])


@pytest.mark.parametrize("sessions", [3, None, {"subj01": 2, "subj02": 3}])
def test_shared_stimuli_are_those_of_all_subjects_as_far_as_their_files_are_there(settings, nsd, tmp_path, sessions):
    config = parse(settings(tmp_path, dataset={"root": str(nsd), "sessions": sessions}))
    every, some = open_dataset(config), open_dataset(config.of_subjects(ONE))
    for part in ("shared", "subj01"):
        for whole, here in zip(every.stimuli(part), some.stimuli(part), strict=True):
            assert whole.tolist() == here.tolist()
        assert every.stimulus_inputs(part) == some.stimulus_inputs(part)


def test_a_configuration_for_some_is_still_of_the_whole_study(settings, tmp_path):
    config = parse(settings(tmp_path, reconstruct={"subject_mean": True}))
    some = config.of_subjects(ONE)
    assert (some.subjects, some.everybody, config.everybody) == (ONE, SUBJECTS, SUBJECTS)
    assert some.science() == config.science()
    assert some.of_everybody() == config
    assert config.of_subjects([]) is config
    every, one = Pipeline(config).graph(), Pipeline(config, ONE).graph()
    assert set(one) < set(every)
    assert not [key for key in one if {"subj02", "mean"} & set(key.split("/"))], "the mean is of all subjects"
    assert {key for key in set(every) - set(one) if not {"subj02", "mean"} & set(key.split("/"))} == set()


def test_a_run_for_some_says_where_the_split_needs_the_files_of_all(
    settings, nsd, alone, undisturbed, tmp_path, caplog
):
    """Before it meets a file that is not there; and nothing where the split is shared, or all are asked for."""
    (tmp_path / "test.txt").write_text("00000\n00001\n")
    split = str(tmp_path / "test.txt")

    def said(study: Path, root: Path, subjects: tuple[str, ...], **dataset: object) -> list[str]:
        caplog.clear()
        section = {"root": str(root), "sessions": 3, **dataset}
        Pipeline(parse(settings(tmp_path, study=str(study), dataset=section)), subjects).run(("ingest",))
        return [record.getMessage() for record in caplog.records if "are read too" in record.getMessage()]

    assert said(undisturbed, nsd, ONE) == said(undisturbed, nsd, SUBJECTS) == []
    with pytest.raises(InputError, match="subj02"):
        said(tmp_path / "other.zarr", alone, ONE, split=split)
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    text = warning.getMessage()
    assert text.startswith("files of subj02 are read too, though only subj01 is asked for: with `dataset.split` ")
    assert split in text
    assert "`subjects` are subj01 alone, or `dataset.split: shared` (docs/subjects.md)." in text


def test_status_of_some_leaves_the_others_out(settings, undisturbed, nsd, tmp_path):
    config = parse(settings(tmp_path, study=str(undisturbed)))
    rows = api.status(config, subjects=ONE)
    assert {row.state.kind for row in rows} == {"sealed"}
    assert not [row.path for row in rows if "subj02" in row.path.split("/")]
    every = {row.path for row in api.status(config)}
    assert {path for path in every if "subj02" not in path.split("/")} == {row.path for row in rows}


@pytest.mark.slow(kind="orders of work")
def test_a_subject_whose_files_come_later_makes_nothing_again(settings, alone, undisturbed, nsd, tmp_path):
    """`--subjects subj01` without a file of subj02; then all of them: what is there stays, byte by byte."""
    until = tuple(stages_until("report"))
    first = parse(settings(tmp_path, dataset={"root": str(alone), "sessions": 3}))
    assert tuple(api.plan(first, subjects=ONE).sizes.subjects) == ONE
    done = Pipeline(first, ONE).run(until)
    assert done.partitions > 0
    assert done.report is not None
    assert done.report.is_file()
    study = tmp_path / "study.zarr"
    before, times = snapshot(study), marks(study)
    assert {row.state.kind for row in api.status(first, subjects=ONE)} == {"sealed"}
    both = parse(settings(tmp_path))
    states = {row.path: row.state.kind for row in api.status(both)}
    assert {path for path, kind in states.items() if kind != "sealed"} == {
        path for path in states if "subj02" in path.split("/")
    }
    assert set(states.values()) == {"sealed", "absent"}
    Pipeline(both).run(until)
    after, later = snapshot(study), marks(study)
    assert {name: after[name] for name in before} == before
    assert {name: later[name] for name in times if not name.startswith("runs/")} == {
        name: time for name, time in times.items() if not name.startswith("runs/")
    }, "nothing was written again"
    assert after == snapshot(undisturbed)
    assert Pipeline(both, ONE).run(until).partitions == 0
    assert snapshot(study) == after
