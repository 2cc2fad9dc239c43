"""What each beta of NSD-Imagery is of: the targets, the runs of the design, and the behaviour files beside them.

The order of the betas in a run is that of the onsets in `designmatrixGLMsingle.mat`, which the betas were estimated
with. Which target an onset is of, the behaviour file of the run says; both must agree, trial by trial.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bdflow.datasets.contract import Trials
from bdflow.datasets.formats.matlab import read_matlab, text_of, whole_of
from bdflow.datasets.formats.tables import read_table
from bdflow.errors import InputError, counted, listed
from bdflow.stores.paths import AnyPath

EXPERIMENT = "nsddata/experiments/nsdimagery"
BEHAVIOUR = "nsddata/bdata/nsdimagery"
DESIGN = f"{EXPERIMENT}/designmatrixGLMsingle.mat"
SETS = ("A", "B", "C")
WORDS = "C"
"""The set whose targets are words."""
RUNS = (
    "visA", "attA", "imgA_1", "visB", "attB", "imgB_1", "visC", "attC", "imgC_1", "imgA_2", "imgB_2", "imgC_2",
)  # fmt: skip
KINDS = {"perception": "vis", "imagery": "img", "attention": "att"}
"""What a run is of, and how its name begins."""
_EPOCHS = ("attention cue", "attention detection")
_COLUMNS = ("SUBJECT", "RUN", "TRIAL", "CONDITION", "CUE", "FRAMEFILE", "IMAGEFILE")
_NOTHING = ("", "nan")

NameOf = Callable[[str, str], str]
"""Id of a picture, from its set and its file's name."""


@dataclass(frozen=True)
class Target:
    """What is to be seen, attended to or imagined: a picture of set A or B, or a word, set C.

    Attributes
    ----------
    set : A, B or C; `number` in it, from 1; `cue`, its letter.
    name : the picture's file, or the word.
    stimulus : id.
    """

    set: str
    number: int
    cue: str
    name: str
    stimulus: str


@dataclass(frozen=True)
class Run:
    """A run of the design.

    Attributes
    ----------
    name : such as `imgA_1`; `number` in the session, from 1.
    first : its first beta's place in the session, from 0.
    columns : (betas,) int: the design's column of each beta, in the order of their onsets.
    """

    name: str
    number: int
    first: int
    columns: np.ndarray

    @property
    def kind(self) -> str:
        """vis, att or img."""
        return self.name[:3]

    @property
    def set(self) -> str:
        """A, B or C."""
        return self.name[3]

    @property
    def betas_a_trial(self) -> int:
        """2 in runs of attention, cue and detection; else 1."""
        return 2 if self.kind == KINDS["attention"] else 1


def without_ending(name: str) -> str:
    """The name of a picture's file without its ending and without the cue of a frame, `_cueX`."""
    return re.sub(r"_cue[^_]*$", "", re.sub(r"(?i)\.(png|jpe?g|bmp|tiff?)$", "", name))


def pair_list(root: AnyPath, of: str) -> AnyPath:
    """The file of the targets of a set."""
    return root / EXPERIMENT / f"{of}_pair_list.mat"


def behaviour_file(root: AnyPath, subject: str, run: str) -> AnyPath:
    """The file of what a subject was asked and did in a run."""
    return root / BEHAVIOUR / f"nsdimagery_{subject}_{run}.tsv"


def read_targets(root: AnyPath, name_of: NameOf) -> list[Target]:
    """The targets of all sets, by set and number.

    Raises
    ------
    InputError : a file that is missing or cannot be read; a number, name or letter twice.
    """
    found = []
    for of in SETS:
        path = pair_list(root, of)
        cells = read_matlab(path, f"the targets of set {of}", ["pair_list"])["pair_list"]
        if cells.dtype != object or cells.ndim != 2 or cells.shape[1] != 3 or not len(cells):
            raise InputError(
                f"{path}, pair_list",
                found=f"{cells.dtype} of shape {cells.shape}",
                expected="cells (target, 3): number, name and letter",
                action="fetch the file again",
            )
        for place, (number, name, cue) in enumerate(cells.tolist(), start=1):
            where = f"{path}, pair_list, row {place}"
            text, letter = text_of(name, where), text_of(cue, where)
            if not text or not letter:
                raise InputError(where, found="an empty name or letter", expected="both", action="fetch the file again")
            stimulus = f"{of}/{text}" if of == WORDS else _named(where, name_of, of, text)
            found.append(Target(of, whole_of(number, where), letter, text, stimulus))
        numbers = [target.number for target in found if target.set == of]
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            raise InputError(
                f"{path}, pair_list",
                found=f"the numbers {listed(numbers)}",
                expected="1, 2, ..., each once",
                action="fetch the file again",
            )
    for what, values in (("letter", [t.cue for t in found]), ("target", [t.stimulus for t in found])):
        twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
        if twice:
            raise InputError(
                f"{root / EXPERIMENT}, *_pair_list.mat",
                found=f"{what} {twice[0]} twice",
                expected=f"each {what} once in all sets",
                meaning="Trials could not be told apart.",
                action="fetch the files again",
            )
    return sorted(found, key=lambda target: (target.set, target.number))


def read_runs(root: AnyPath) -> list[Run]:
    """The runs of the design, in the order of the session.

    Raises
    ------
    InputError : a file that is missing, cannot be read or is no design of these runs.
    """
    path = root / DESIGN
    cells = read_matlab(path, "the design of NSD-Imagery", ["stimulus"])["stimulus"]
    if cells.dtype != object or cells.size != len(RUNS):
        raise InputError(
            f"{path}, stimulus",
            found=f"{cells.dtype} of shape {cells.shape}",
            expected=f"{len(RUNS)} cells, a run each: {', '.join(RUNS)}",
            action="fetch the file again",
        )
    found: list[Run] = []
    first, widths = 0, set()
    for number, (name, cell) in enumerate(zip(RUNS, cells.ravel().tolist(), strict=True), start=1):
        where = f"{path}, run {number} ({name})"
        matrix = np.asarray(cell.toarray() if hasattr(cell, "toarray") else cell)
        plain = matrix.ndim == 2 and matrix.dtype.kind in "iufb"
        other = matrix[~np.isin(matrix, (0, 1))] if plain else matrix
        if not plain or other.size:
            raise InputError(
                where,
                found=f"the value {other[0]:g}" if plain else f"{matrix.dtype} of shape {matrix.shape}",
                expected="a matrix (time, condition) with 1 at onsets, 0 elsewhere",
                action="fetch the file again",
            )
        times, columns = np.nonzero(matrix)
        run = Run(name, number, first, columns.astype(np.int64))
        if np.unique(times).size < times.size or not times.size or times.size % run.betas_a_trial:
            raise InputError(
                where,
                found=f"{times.size} onsets at {np.unique(times).size} times",
                expected="onsets at different times"
                + (", two a trial: cue and detection" if run.betas_a_trial == 2 else ""),
                meaning="The order of the betas is not known.",
                action="fetch the file again",
            )
        first += times.size
        widths.add(matrix.shape[1])
        found.append(run)
    if len(widths) > 1:
        raise InputError(
            f"{path}, stimulus",
            found=f"runs with {listed(sorted(widths), joint=' and ')} conditions",
            expected="the same conditions in every run",
            action="fetch the file again",
        )
    return found


def read_trials(
    root: AnyPath, subject: str, session: str, runs: Sequence[Run], targets: Sequence[Target], name_of: NameOf
) -> Trials:
    """The trials of these runs, a row a beta.

    Raises
    ------
    InputError : a behaviour file that is missing, is of another run or subject, or does not agree with the design.
    """
    stimulus: list[str] = []
    condition: list[str] = []
    conditions_of = {kind: name for name, kind in KINDS.items()}
    shown: dict[tuple[str, str], dict[int, tuple[str, str]]] = {}
    for run in runs:
        path = behaviour_file(root, subject, run.name)
        rows = _behaviour(path, subject, run)
        meant = [_target(where, row, run, targets) for where, row in rows]
        ids = [target.stimulus for target in meant]
        if run.kind == KINDS["perception"]:
            pairs = zip(rows, meant, strict=True)
            ids = [_picture(where, row, run, target, name_of) for (where, row), target in pairs]
        names = [conditions_of[run.kind]] if run.betas_a_trial == 1 else list(_EPOCHS)
        stimulus += [one for one in ids for _ in names]
        condition += [name for _ in ids for name in names]
        places = [
            (f"{where}, {name}", target, name) for (where, _), target in zip(rows, meant, strict=True) for name in names
        ]
        _check_columns(shown.setdefault((run.kind, run.set), {}), run, places)
    sizes = [run.columns.size for run in runs]
    index = np.concatenate([np.arange(run.first, run.first + run.columns.size) for run in runs])
    return Trials(
        np.array(stimulus, str),
        np.full(index.size, session),
        np.repeat([run.number for run in runs], sizes).astype(np.int32),
        index.astype(np.int32),
        np.array(condition, str),
    )


def _behaviour(path: AnyPath, subject: str, run: Run) -> list[tuple[str, Mapping[str, str]]]:
    """Where each trial of a run stands, and its row, in the order of the trials."""
    table = read_table(path, f"the behaviour of {subject} in run {run.name}", _COLUMNS)
    trials, expected = table.whole("TRIAL"), run.columns.size // run.betas_a_trial
    for column, number in (("SUBJECT", int(subject.removeprefix("subj"))), ("RUN", run.number)):
        other = [value for value in table.whole(column) if value != number]
        if other:
            raise InputError(
                f"{path}, column {column}",
                found=str(other[0]),
                expected=f"{number}, as the file's name says",
                meaning="The file is of another subject or run.",
                action="fetch the file again",
            )
    if sorted(trials) != list(range(1, expected + 1)):
        absent = sorted(set(range(1, expected + 1)) - set(trials))
        raise InputError(
            path,
            found=f"{counted(len(trials), 'trial')}" + (f", but no trial {absent[0]}" if absent else ""),
            expected=f"1 to {expected}, each once, as {DESIGN} has onsets in run {run.name}",
            meaning="Betas and trials cannot be matched.",
            action="fetch both files again",
        )
    rows = sorted(zip(trials, table.rows, strict=True), key=lambda pair: pair[0])
    return [(f"{path}, trial {trial}", row) for trial, row in rows]


def _target(where: str, row: Mapping[str, str], run: Run, targets: Sequence[Target]) -> Target:
    """The target of a trial: CONDITION, which is a number in the set or a letter. But for vision, CUE is the same."""
    condition, cue = (_one(where, name, row[name], run, targets) for name in ("CONDITION", "CUE"))
    if run.kind != KINDS["perception"] and condition != cue:
        raise InputError(
            where,
            found=f"CONDITION {row['CONDITION']}, which is {condition.name}, and CUE {row['CUE']}, {cue.name}",
            expected="one target in both: the cue says what to imagine or attend to",
            action="fetch the file again",
        )
    return condition


def _one(where: str, column: str, cell: str, run: Run, targets: Sequence[Target]) -> Target:
    own = [target for target in targets if target.set == run.set]
    found = [target for target in own if cell.strip() in (target.cue, str(target.number))]
    if len(found) != 1 or (column == "CUE" and found[0].cue != cell.strip()):
        raise InputError(
            f"{where}, column {column}",
            found=repr(cell[:100]),
            expected="a letter"
            + ("" if column == "CUE" else " or number")
            + f" of set {run.set}: {', '.join(f'{target.cue} ({target.number})' for target in own)}",
            action="use behaviour files and pair lists of one dataset",
        )
    return found[0]


def _picture(where: str, row: Mapping[str, str], run: Run, target: Target, name_of: NameOf) -> str:
    """Id of the picture that was shown: the target's; in set C, where a word has many, the one that the row names.

    The picture is IMAGEFILE or, where that is empty, FRAMEFILE, whose name is the picture's and the cue's. The word's
    own id where the row names none.
    """
    cells = [row[column].strip() for column in ("IMAGEFILE", "FRAMEFILE")]
    names = {without_ending(cell) for cell in cells if cell.lower() not in _NOTHING and not cell.startswith("blank")}
    if len(names) > 1:
        raise InputError(
            where,
            found=f"two pictures: IMAGEFILE {cells[0]}, FRAMEFILE {cells[1]}",
            expected="one picture",
            action="fetch the file again",
        )
    if not names:
        return target.stimulus
    stimulus = _named(where, name_of, run.set, names.pop())
    if run.set != WORDS and stimulus != target.stimulus:
        raise InputError(
            where,
            found=f"CONDITION {row['CONDITION']}, which is {target.name}, and the picture {cells[0]}, {cells[1]}",
            expected="the picture of CONDITION: what was shown",
            action="fetch the file again",
        )
    return stimulus


def _named(where: str, name_of: NameOf, of: str, name: str) -> str:
    try:
        return name_of(of, name)
    except InputError as error:
        error.inside(where)
        raise


def _check_columns(known: dict[int, tuple[str, str]], run: Run, places: Sequence[tuple[str, Target, str]]) -> None:
    """Raise InputError unless each column of the design goes with one target (and epoch), and each target with one
    column: what fails where the trials of design and behaviour are not in one order.
    """
    for column, (where, target, epoch) in zip(run.columns.tolist(), places, strict=True):
        meant = (target.cue, epoch)
        before = known.setdefault(column, meant)
        others = [other for other, what in known.items() if what == meant and other != column]
        if before != meant or others:
            raise InputError(
                where,
                found=f"target {target.cue} ({target.name}), where {DESIGN} has condition {column + 1}",
                expected=f"target {before[0]}, which condition {column + 1} is of in other trials"
                if before != meant
                else f"condition {others[0] + 1}, as in other trials of {target.cue}",
                meaning="Design and behaviour are not in one order: which beta is of which target is not known.",
                action="use the design and the behaviour files of one dataset; fetch both again",
            )
