"""Trials: which table, which rows and columns, in which order; and whatever contradicts the fit is refused."""

import logging

import numpy as np
import pytest

from bdflow.datasets.glmsingle.patterns import Pattern

FIT = "derivatives/glmsingle/sub-01/ses-01"
NAME = "sub-01_ses-01_task-scenes"
TRIALS = f"{FIT}/func/{NAME}_desc-SingletrialBetas_trials.tsv"
CONDITIONS = f"{FIT}/func/{NAME}_conditions.tsv"
DESIGN = f"{FIT}/DESIGNINFO.npy"
EVENTS = {
    "trials": "{subject}/{session}/func/{subject}_{session}_task-scenes_run-{run}_events.tsv",
    "trial_rows": {"trial_type": ["image"]},
    "stimulus_column": "stim_file",
    "stimulus_names": "file",
}


def rows(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def write(path, lines):
    path.write_text("".join("\t".join(line) + "\n" for line in lines))


def edit(path, line, column, cell):
    """Another cell in a line (the header is 0) of a table."""
    lines = rows(path)
    lines[line][lines[0].index(column)] = cell
    write(path, lines)


def without(path, *columns):
    lines = rows(path)
    keep = [number for number, name in enumerate(lines[0]) if name not in columns]
    write(path, [[line[number] for number in keep] for line in lines])


def design(path, **content):
    """A DESIGNINFO.npy with this content."""
    np.save(path, content, allow_pickle=True)


def order_of(root):
    return [int(line[3]) for line in rows(root / TRIALS)[1:]]


# --- rows and columns -------------------------------------------------------------------------------------------


def test_rows_in_another_order_are_sorted_by_the_number_of_the_beta(dataset, root, sample):
    """Numbered from 0, or from 1."""
    expected = dataset(sample).trials("sub-01")
    lines = rows(root / TRIALS)
    for first in (0, 1):
        numbered = [[str(int(line[0]) + first), *line[1:]] for line in lines[1:]]
        write(root / TRIALS, [lines[0], *sorted(numbered, key=lambda line: line[4])])
        found = dataset(root).trials("sub-01")
        assert (found.stimulus == expected.stimulus).all()
        assert (found.run == expected.run).all()


def test_numbers_of_betas_with_gaps(dataset, root, refused):
    edit(root / TRIALS, 5, "trial", "77")
    refused(lambda: dataset(root).trials("sub-01"), TRIALS, "without the numbers 4 in the column trial", "order_column")
    edit(root / TRIALS, 5, "trial", "3")
    refused(lambda: dataset(root).trials("sub-01"), "without the numbers 4", "there twice")
    edit(root / TRIALS, 5, "trial", "four")
    refused(lambda: dataset(root).trials("sub-01"), "line 6, column trial", "'four'", "whole number")
    assert len(dataset(root, order_column=None).trials("sub-01").run) == 72


def test_columns_that_the_configuration_names_must_be_there(dataset, root, refused):
    """Default columns of numbers are used where they are there; one that is named, always."""
    without(root / TRIALS, "trial", "condition")
    assert len(dataset(root).trials("sub-01").run) == 72
    for name, column in (("order_column", "trial"), ("fit_condition_column", "condition"), ("run_column", "block")):
        data = dataset(root, **{name: column})
        refused(lambda data=data: data.trials("sub-01"), TRIALS, f"a column {column}")
    for name in ("stimulus_column", "condition_column"):
        refused(lambda name=name: dataset(root, **{name: "what"}).trials("sub-01"), TRIALS, "a column what")
    refused(lambda: dataset(root, trial_rows={"kind": "image"}).trials("sub-01"), TRIALS, "a column kind")
    without(root / TRIALS, "run")
    refused(lambda: dataset(root).trials("sub-01"), "a column run")
    known = dataset(root, run_column=None).trials("sub-01")
    assert set(known.run) == {0}


def test_a_kind_of_trials(dataset, root):
    lines = rows(root / TRIALS)
    write(root / TRIALS, [[*lines[0], "task"], *([*line, ["perception", "n/a"][line[1] == "4"]] for line in lines[1:])])
    other = root / TRIALS.replace("ses-01", "ses-02")
    lines = rows(other)
    write(other, [[*lines[0], "task"], *([*line, "imagery"] for line in lines[1:])])
    trials = dataset(root, condition_column="task").trials("sub-01")
    assert trials.condition.tolist() == ["perception"] * 30 + [""] * 9 + ["imagery"] * 33


def test_trials_without_a_stimulus(dataset, root):
    """`n/a`, and nothing at all; the table of conditions says the same."""
    for line, cell in ((1, "n/a"), (19, ""), (35, "n/a")):
        edit(root / TRIALS, line, "stimulus_id", cell)
    edit(root / CONDITIONS, 1, "stimulus_id", "n/a")
    trials = dataset(root).trials("sub-01")
    assert np.flatnonzero(trials.stimulus == "").tolist() == [0, 18, 34]
    assert "" not in dataset(root).seen("sub-01")


def test_a_stimulus_that_is_not_in_the_table_of_stimuli(dataset, root, refused):
    edit(root / TRIALS, 7, "stimulus_id", "green-cross_00")
    for call in (dataset(root).trials, dataset(root).seen):
        refused(lambda call=call: call("sub-01"), f"{TRIALS}, line 8", "'green-cross_00'", "such as 'green-cross_00")
    events = root / "sub-01/ses-01/func/sub-01_ses-01_task-scenes_run-2_events.tsv"
    edit(events, 2, "stim_file", "orange-cross_014.png")
    refused(
        lambda: dataset(root, **EVENTS).trials("sub-01"), "run-2_events.tsv, line 3", "'orange-cross_014.png'", "file"
    )


def test_ids_are_never_read_as_numbers(dataset, root):
    """`007`, `7` and `7.0` are three stimuli."""
    names = {"red-triangle_049": "007", "blue-circle_007": "7", "yellow-cross_021": "7.0"}
    for path in (*root.rglob("*.tsv"),):
        text = path.read_text()
        for old, new in names.items():
            text = "\n".join(
                "\t".join(new if cell == old else cell for cell in line.split("\t")) for line in text.split("\n")
            )
        path.write_text(text)
    data = dataset(root)
    assert data.trials("sub-01").stimulus[:3].tolist() == ["007", "7", "7.0"]
    a, b = data.pictures(["007", "7"])
    assert not np.array_equal(a, b)


# --- files ------------------------------------------------------------------------------------------------------


def test_runs_are_ordered_by_their_number(dataset, root, sample):
    """`run-10` comes after `run-9`, and `run-1` is run 1."""
    for session in ("ses-01", "ses-02"):
        folder = root / f"sub-01/{session}/func"
        for old, new in ((4, 11), (3, 10), (2, 9)):
            for file in folder.glob(f"*run-{old}_events.tsv"):
                file.rename(folder / file.name.replace(f"run-{old}", f"run-{new}"))
    found, expected = dataset(root, **EVENTS).trials("sub-01"), dataset(sample).trials("sub-01")
    assert (found.stimulus == expected.stimulus).all()
    assert sorted(set(found.run)) == [1, 9, 10, 11]


def test_runs_that_are_missing_or_there_twice(dataset, root, refused):
    folder = root / "sub-01/ses-01/func"
    run = folder / "sub-01_ses-01_task-scenes_run-2_events.tsv"
    (folder / run.name.replace("run-2", "run-02")).write_bytes(run.read_bytes())
    refused(lambda: dataset(root, **EVENTS).trials("sub-01"), "run 2", "run-02_events.tsv", "beside")
    (folder / run.name.replace("run-2", "run-02")).unlink()
    run.rename(folder / run.name.replace("run-2", "run-two"))
    refused(lambda: dataset(root, **EVENTS).trials("sub-01"), "'two'", "whole number")
    (folder / run.name.replace("run-2", "run-two")).unlink()
    refused(lambda: dataset(root, **EVENTS).trials("sub-01"), "29 trials", "39", "trial_rows")


def test_a_table_that_is_missing(dataset, root, refused):
    (root / TRIALS).unlink()
    error = refused(lambda: dataset(root).trials("sub-01"), "_trials.tsv", "nothing there", "dataset.options.trials")
    assert type(error).__name__ == "NotAtHand"
    assert len(dataset(root).seen("sub-01")) == 11, "of the other session"


def test_two_tables_of_a_session(dataset, root, refused):
    copy = root / TRIALS.replace("task-scenes", "task-words")
    copy.write_bytes((root / TRIALS).read_bytes())
    refused(lambda: dataset(root).trials("sub-01"), "a second table of the session", "dataset.options.trials")


def test_seen_does_not_depend_on_which_betas_are_there(dataset, root, sample):
    for file in (root / "derivatives/glmsingle/sub-01/ses-02").glob("TYPED*"):
        file.unlink()
    data = dataset(root)
    assert data.sessions("sub-01") == ["ses-01"]
    assert set(data.trials("sub-01").session) == {"ses-01"}
    assert data.seen("sub-01") == dataset(sample).seen("sub-01")


# --- what the fit says ------------------------------------------------------------------------------------------


def test_rows_that_do_not_match_volumes(dataset, root, refused):
    lines = rows(root / TRIALS)
    write(root / TRIALS, lines[:-1])
    refused(lambda: dataset(root).trials("sub-01"), TRIALS, "38 trials", "39", "TYPED_FITHRF_GLMDENOISE_RR.npy")


def test_other_numbers_of_conditions_than_the_fit_had(dataset, root, refused):
    edit(root / TRIALS, 12, "condition", "3")
    refused(lambda: dataset(root).trials("sub-01"), f"{TRIALS}, line 13", "condition 3", "2, as in `stimorder`", DESIGN)


def test_trials_of_another_session(dataset, root, refused):
    """The table of one session beside the betas of another, also where both have as many trials."""
    other = rows(root / TRIALS.replace("ses-01", "ses-02"))
    write(root / TRIALS, other)
    refused(lambda: dataset(root).trials("sub-01"), "33 trials", "39")
    mine = rows(root / TRIALS.replace("ses-01", "ses-02"))
    more = [[str(number), line[1], *other[1 + number % 33][2:]] for number, line in enumerate([*mine[1:], *mine[-6:]])]
    write(root / TRIALS, [mine[0], *more])
    refused(lambda: dataset(root).trials("sub-01"), "runs of", DESIGN, "not of the same trials")
    refused(lambda: dataset(root, run_column=None).trials("sub-01"), "line 2", "condition 1", "0, as in", DESIGN)


def test_a_stimulus_that_the_table_of_conditions_denies(dataset, root, refused):
    edit(root / TRIALS, 12, "stimulus_id", "red-circle_042")
    refused(
        lambda: dataset(root).trials("sub-01"),
        f"{TRIALS}, line 13",
        "'red-circle_042'",
        "'white-square_077'",
        CONDITIONS,
    )
    without(root / TRIALS, "condition")
    error = refused(lambda: dataset(root).trials("sub-01"), f"{TRIALS}, line 13", "'white-square_077'", CONDITIONS)
    assert "the number 2" in error.found, "from the fit's stimorder, where the table has no numbers"


def test_tables_of_conditions_that_are_wrong(dataset, root, refused):
    lines = rows(root / CONDITIONS)
    write(root / CONDITIONS, lines[:-1])
    refused(lambda: dataset(root).trials("sub-01"), "number 12", "a number that", CONDITIONS)
    write(root / CONDITIONS, [*lines, ["3", "red-circle_042"]])
    refused(lambda: dataset(root).trials("sub-01"), f"{CONDITIONS}, line 15", "condition 3 once more")
    write(root / CONDITIONS, [["condition", "name"], *lines[1:]])
    refused(lambda: dataset(root).trials("sub-01"), CONDITIONS, "a column stimulus_id")
    assert len(dataset(root, conditions=None).trials("sub-01").run) == 72


@pytest.mark.parametrize("columns", [("condition",), ("condition", "trial")])
def test_without_numbers_and_conditions_each_condition_is_one_stimulus(dataset, root, refused, columns):
    """The least that a fit says: two trials of one condition are of one stimulus. A mixed table is found by it."""
    (root / CONDITIONS).unlink()
    without(root / TRIALS, *columns)
    assert len(dataset(root).trials("sub-01").run) == 72
    lines = rows(root / TRIALS)
    name = lines[0].index("stimulus_id")
    for a, b in ((1, 3), (4, 9), (14, 20)):
        lines[a][name], lines[b][name] = lines[b][name], lines[a][name]
    write(root / TRIALS, lines)
    refused(lambda: dataset(root).trials("sub-01"), "trial of condition", "as in its first trial", DESIGN, "design")
    assert len(dataset(root, design=None).trials("sub-01").run) == 72


def test_runs_that_the_fit_did_not_have(dataset, root, refused):
    edit(root / TRIALS, 11, "run", "1")
    refused(lambda: dataset(root).trials("sub-01"), "runs of 11, 9, 10, 9", "10, 10, 10, 9", "numtrialrun", DESIGN)
    edit(root / TRIALS, 25, "run", "1")
    refused(lambda: dataset(root).trials("sub-01"), "run 1 in several places", "order_column")
    edit(root / TRIALS, 25, "run", "first")
    refused(lambda: dataset(root).trials("sub-01"), f"{TRIALS}, line 26, column run", "'first'")


def test_designs_of_other_sizes_and_kinds(dataset, root, refused):
    order = order_of(root)
    design(root / DESIGN, stimorder=order[:-1])
    refused(lambda: dataset(root).trials("sub-01"), "39 trials", "38", "stimorder", DESIGN)
    design(root / DESIGN, stimorder=np.array(order, float), numtrialrun=np.array([10, 10, 10, 9]))
    assert len(dataset(root).trials("sub-01").run) == 72, "arrays do as well as lists"
    for content in ({"design": [1]}, {"stimorder": "0 1 2"}, {"stimorder": [0.5] * 39}):
        design(root / DESIGN, **content)
        refused(lambda: dataset(root).trials("sub-01"), DESIGN, "`stimorder`", "set it to null")
    (root / DESIGN).write_bytes(b"nothing of numpy's")
    refused(lambda: dataset(root).trials("sub-01"), DESIGN, "cannot be used")


def test_files_that_are_named_must_be_there(dataset, root, refused):
    """By default designs and conditions are used where they are there."""
    (root / DESIGN).unlink()
    (root / CONDITIONS).unlink()
    assert len(dataset(root, units="z").trials("sub-01").run) == 72
    for name in ("design", "conditions"):
        pattern = getattr(dataset(root).settings, name)
        data = dataset(root, **{name: pattern})
        refused(lambda data=data: data.trials("sub-01"), "nothing there", f"dataset.options.{name}")


def test_a_fit_of_several_sessions_is_said(dataset, root, caplog):
    design(root / DESIGN, stimorder=order_of(root), params={"sessionindicator": np.array([[1, 1, 2, 2]])})
    with caplog.at_level(logging.WARNING):
        dataset(root).trials("sub-01")
    assert "2 sessions together" in caplog.text


# --- patterns ---------------------------------------------------------------------------------------------------


def made(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(pattern, root):
    return [tuple(found.values.values()) for found in pattern.find(root)]


def test_words_of_a_pattern(tmp_path):
    """A word that is there twice is one name; files in natural order; folders and hidden files are none."""
    made(tmp_path, "S_2/1/S_2-1.nii", "S_10/1/S_10-1.nii", "S_10/10/S_10-10.nii", "S_10/2/S_10-2.nii")
    made(tmp_path, "S_10/3/S_9-3.nii", ".S_3/1/.S_3-1.nii", "S_4/1/S_4-1.nii/inside", "S_5/1/._S_5-1.nii")
    pattern = Pattern("betas", "{subject}/{session}/{subject}-{session}.nii")
    assert names(pattern, tmp_path) == [("S_2", "1"), ("S_10", "1"), ("S_10", "2"), ("S_10", "10")]
    assert names(pattern.fill(subject="S_10"), tmp_path)[0] == ("S_10", "1")
    assert len(pattern.fill(subject="S_10").find(tmp_path)) == 3


def test_names_with_signs_of_patterns_are_names(tmp_path):
    made(tmp_path, "a[1]/x.nii", "a1/x.nii", "b*/x.nii", "b+/x.nii")
    pattern = Pattern("betas", "{subject}/x.nii")
    assert [name for (name,) in names(pattern, tmp_path)] == ["a1", "a[1]", "b*", "b+"]
    for subject in ("a[1]", "b*"):
        assert [f.path for f in pattern.fill(subject=subject).find(tmp_path)] == [tmp_path / subject / "x.nii"]


def test_a_name_that_can_be_read_in_two_ways(tmp_path, refused):
    made(tmp_path, "sub_1_run_2.nii")
    refused(
        lambda: Pattern("betas", "{subject}_{session}.nii").find(tmp_path),
        "in two ways",
        "sub_1_run",
        "fixed text between",
    )


def test_sessions_of_a_tree_without_sessions(dataset, root):
    """Patterns without a word for it: each subject has one session."""
    for path in (root / "derivatives/glmsingle/sub-01/ses-02", root / "derivatives/glmsingle/sub-02/ses-01"):
        for file in path.rglob("*"):
            if file.is_file():
                file.unlink()
    where = "derivatives/glmsingle/{subject}/*"
    data = dataset(
        root,
        betas=f"{where}/TYPED_FITHRF_GLMDENOISE_RR.npy",
        trials=f"{where}/func/*_trials.tsv",
        design=f"{where}/DESIGNINFO.npy",
        conditions=f"{where}/func/*_conditions.tsv",
    )
    assert data.subjects() == ["sub-01", "sub-02"]
    assert data.sessions("sub-01") == ["session"]
    assert set(data.trials("sub-01").session) == {"session"}
    assert len(data.trials("sub-01").run) == 39
    assert data.betas("sub-02", "session", data.mask("sub-02", None)).values.shape == (30, 376)
    assert data.encoding().units == "percent signal change"
    assert len(data.seen("sub-01")) == 13
