"""The trials of a session from a lab's tables, and what the fit itself says of them."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from bdflow.datasets.formats.tables import Table, read_table
from bdflow.datasets.glmsingle.options import GLMsingleSettings
from bdflow.datasets.glmsingle.patterns import Found, option
from bdflow.datasets.glmsingle.pickles import Array, read_dictionary
from bdflow.errors import InputError, counted, listed
from bdflow.stores.paths import AnyPath

log = logging.getLogger(__name__)

NOTHING = ("", "n/a")
"""Cells of a table without a value; BIDS writes `n/a`."""


@dataclass(frozen=True)
class SessionTrials:
    """The trials of one session, in the order of the betas.

    Attributes
    ----------
    files : the tables.
    stimulus : id of what was shown; empty: nothing.
    run : number of the run; 0: not known.
    condition : kind of trial; empty: not said.
    fitted : number of the condition in the fit; None where the table does not say.
    places : file and line of each, for errors.
    """

    files: Sequence[AnyPath]
    stimulus: list[str]
    run: list[int]
    condition: list[str]
    fitted: list[int] | None
    places: list[str]

    def __len__(self) -> int:
        return len(self.stimulus)

    @property
    def where(self) -> str:
        """The tables, for errors."""
        return listed(self.files, 2)


class TrialTables:
    """Reads tables of trials.

    Parameters
    ----------
    settings : which columns mean what.
    stimuli : what a cell of the stimulus's column may be, to the id that it means.
    """

    def __init__(self, settings: GLMsingleSettings, stimuli: Mapping[str, str]) -> None:
        self.settings, self.stimuli = settings, stimuli

    def read(self, tables: Sequence[Found]) -> SessionTrials:
        """The trials of a session's table, or of the tables of its runs in the order of their numbers.

        Raises
        ------
        InputError : a column that there is not, a stimulus that the table of stimuli does not have, numbers that are
            none or have gaps, runs that are mixed or there twice.
        """
        rows = []
        for found, run in self._by_run(tables):
            table = read_table(found.path, "a table of trials")
            rows += self._rows(table, run)
        if rows and all(row.order is not None for row in rows):
            rows = self._ordered(rows, tables)
        trials = SessionTrials(
            [found.path for found in tables],
            [row.stimulus for row in rows],
            [row.run for row in rows],
            [row.condition for row in rows],
            [row.fitted for row in rows if row.fitted is not None] if all(r.fitted is not None for r in rows) else None,
            [row.place for row in rows],
        )
        _check_runs(trials)
        return trials

    def _by_run(self, tables: Sequence[Found]) -> list[tuple[Found, int | None]]:
        numbered: list[tuple[Found, int | None]] = []
        for found in tables:
            text = found.values.get("run")
            number = None if text is None else _whole(text, found.path, "the run in the file's name")
            twice = [other.path for other, run in numbered if run == number]
            if twice:
                what = "the session" if number is None else f"run {number}"
                raise InputError(
                    found.path,
                    found=f"a second table of {what}, beside {twice[0]}",
                    expected="one",
                    action=f"write {option('trials')} so that it fits one of them alone",
                )
            numbered.append((found, number))
        return sorted(numbered, key=lambda pair: pair[1] or 0)

    def _rows(self, table: Table, run: int | None) -> list[_Row]:
        settings = self.settings
        table.require(settings.stimulus_column, *settings.trial_rows)
        run_column = None if run is not None else settings.run_column
        table.require(*(name for name in (run_column, settings.condition_column) if name is not None))
        order = self._optional(table, "order_column")
        fitted = self._optional(table, "fit_condition_column")
        found = []
        for line, row in enumerate(table.rows, start=2):
            if any(row[column] not in cells for column, cells in settings.trial_rows.items()):
                continue
            place = f"{table.path}, line {line}"
            condition = row[settings.condition_column] if settings.condition_column is not None else ""
            found.append(
                _Row(
                    place,
                    self._stimulus(row[settings.stimulus_column], place),
                    _whole(row[run_column], place, run_column) if run_column is not None else run or 0,
                    "" if condition in NOTHING else condition,
                    None if order is None else _whole(row[order], place, order),
                    None if fitted is None else _whole(row[fitted], place, fitted),
                )
            )
        return found

    def _optional(self, table: Table, name: str) -> str | None:
        """A column that is used where it is there, and must be there where the configuration names it."""
        column: str | None = getattr(self.settings, name)
        if column is None or (column not in table.columns and not self.settings.said(name)):
            return None
        table.require(column)
        return column

    def _stimulus(self, cell: str, place: str) -> str:
        if cell in NOTHING:
            return ""
        if cell not in self.stimuli:
            near = difflib.get_close_matches(cell, self.stimuli, 1)
            raise InputError(
                f"{place}, column {self.settings.stimulus_column}",
                found=repr(cell),
                expected=f"the {self.settings.stimulus_names} of one of the "
                f"{counted(len(self.stimuli), 'stimulus', 'stimuli')} of {self.settings.stimuli}"
                + (f", such as {near[0]!r}" if near else ""),
                action=f"correct one of the tables, or {option('stimulus_column')}; {option('stimulus_names')} says "
                "whether the column has ids or files, n/a stands for nothing",
            )
        return self.stimuli[cell]

    def _ordered(self, rows: list[_Row], tables: Sequence[Found]) -> list[_Row]:
        numbers = [row.order for row in rows if row.order is not None]
        first = int(0 not in numbers)
        absent = sorted(set(range(first, first + len(rows))) - set(numbers))
        if absent:
            raise InputError(
                listed([found.path for found in tables], 2),
                found=f"{counted(len(rows), 'trial')} without the numbers {listed(absent)} in the column "
                f"{self.settings.order_column}; others are there twice, or beyond the last",
                expected="each number once, from 0 or from 1",
                meaning="Which beta is of which trial cannot be told",
                action=f"correct the table, or set {option('order_column')} to null if its rows stand in the order in "
                "which the trials ran",
            )
        return sorted(rows, key=lambda row: row.order or 0)


@dataclass(frozen=True)
class _Row:
    place: str
    stimulus: str
    run: int
    condition: str
    order: int | None
    fitted: int | None


def _whole(cell: str, place: object, column: str) -> int:
    try:
        value = float(cell)
        if not value.is_integer() or not 0 <= value < 2**31:
            raise ValueError
    except ValueError:
        raise InputError(
            f"{place}, column {column}" if " " not in column else f"{place}, {column}",
            found=repr(cell),
            expected="a whole number from 0",
            action="correct the table, or the option that names the column or the pattern",
        ) from None
    return int(value)


def _check_runs(trials: SessionTrials) -> None:
    blocks = [run for run, _ in groupby(trials.run)]
    if len(set(blocks)) < len(blocks):
        again = next(run for number, run in enumerate(blocks) if run in blocks[:number])
        raise InputError(
            trials.where,
            found=f"run {again} in several places, with others between them",
            expected="the trials of one run after another, in the order in which they ran",
            meaning="GLMsingle's betas are in that order; these rows are in another",
            action=f"sort the table, or name the column with the number of the beta by {option('order_column')}",
        )


# --- what the fit says --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Design:
    """What GLMsingle's `DESIGNINFO.npy` says.

    Attributes
    ----------
    path : the file.
    stimorder : number of the condition of each trial, as they ran.
    trials_by_run : how many trials each run has, as they ran; None: not said.
    percent : whether betas are percent signal change (`wantpercentbold`); None: not said.
    sessions : how many sessions were fitted together.
    """

    path: AnyPath
    stimorder: list[int]
    trials_by_run: list[int] | None
    percent: bool | None
    sessions: int


def read_design(path: AnyPath) -> Design:
    """What a `DESIGNINFO.npy` says. Raises InputError for another file."""
    content = read_dictionary(path, "GLMsingle's DESIGNINFO")
    order = _numbers(content.get("stimorder"))
    if order is None:
        raise InputError(
            path,
            found=f"a dictionary of {listed(sorted(content)) or 'nothing'}",
            expected="`stimorder`, the number of the condition of each trial",
            action=f"let {option('design')} name GLMsingle's DESIGNINFO.npy, or set it to null",
        )
    parameters = content.get("params")
    parameters = parameters if isinstance(parameters, dict) else {}
    percent = parameters.get("wantpercentbold")
    return Design(
        path,
        order,
        _numbers(content.get("numtrialrun")),
        bool(percent) if isinstance(percent, (bool, int)) else None,
        len(set(_numbers(parameters.get("sessionindicator")) or [1])),
    )


def _numbers(value: object) -> list[int] | None:
    """A list or an array of whole numbers; None: something else."""
    if isinstance(value, Array) and not isinstance(value.content, list):
        value = value.read().ravel().tolist()
    if not isinstance(value, list) or not all(isinstance(n, (int, float)) and n == int(n) for n in value):
        return None
    return [int(n) for n in value]


def check_count(trials: SessionTrials, betas: int, path: AnyPath) -> None:
    """Raise InputError unless there is a trial for each beta of the file."""
    if len(trials) != betas:
        raise InputError(
            trials.where,
            found=counted(len(trials), "trial"),
            expected=f"{betas:,}, as many as {path} has betas",
            meaning="Which beta is of which trial cannot be told",
            action=f"correct the table; which of its rows are trials is said by {option('trial_rows')}",
        )


def check_design(trials: SessionTrials, design: Design, conditions: Mapping[int, str] | None) -> None:
    """Raise InputError where the fit and the tables of a session contradict one another.

    Trials and `stimorder` must be as many, of the same runs and, where the table has their numbers, of the same
    conditions. Where nothing says which stimulus a condition is, it must be one stimulus.
    """
    if len(design.stimorder) != len(trials):
        raise _contradiction(
            trials,
            design,
            found=counted(len(trials), "trial"),
            expected=f"{len(design.stimorder):,}, as many as the fit had by `stimorder`",
        )
    known = all(run > 0 for run in trials.run)
    by_run = [len(list(rows)) for _, rows in groupby(trials.run)]
    if known and design.trials_by_run is not None and design.trials_by_run != by_run:
        raise _contradiction(
            trials,
            design,
            found=f"runs of {listed(by_run, 40)} trials",
            expected=f"runs of {listed(design.trials_by_run, 40)}, as the fit had by `numtrialrun`",
        )
    if trials.fitted is not None:
        for place, number, fitted in zip(trials.places, trials.fitted, design.stimorder, strict=True):
            if number != fitted:
                raise _contradiction(
                    trials, design, found=f"condition {number}", expected=f"{fitted}, as in `stimorder`", at=place
                )
    elif conditions is None:
        _check_one_stimulus(trials, design)
    if design.sessions > 1:
        log.warning(
            "%s: the fit was of %d sessions together. Its trials count as one session.", design.path, design.sessions
        )


def check_conditions(
    trials: SessionTrials, numbers: Sequence[int], conditions: Mapping[int, str], path: AnyPath
) -> None:
    """Raise InputError where a table of conditions says another stimulus than the trials do.

    Parameters
    ----------
    numbers : of the condition, of each trial.
    conditions : stimulus by number; `path` is its table.
    """
    for place, number, stimulus in zip(trials.places, numbers, trials.stimulus, strict=True):
        if conditions.get(number) != stimulus:
            other = conditions.get(number)
            raise InputError(
                place,
                found=f"the stimulus {stimulus!r} with the number {number}",
                expected=f"{other!r}, as {path} says of {number}" if other is not None else f"a number that {path} has",
                meaning="The tables contradict one another: some trials would be decoded as another stimulus",
                action="correct the tables. Numbers of conditions are given anew in every fit: take both from the same "
                "session",
            )


def read_conditions(path: AnyPath, settings: GLMsingleSettings) -> dict[int, str]:
    """Stimulus by number of the condition. Raises InputError for a number that is there twice."""
    number, name = settings.fit_condition_column, settings.id_column
    assert number is not None
    table = read_table(path, "a table of conditions", (number, name))
    found: dict[int, str] = {}
    for line, row in enumerate(table.rows, start=2):
        condition = _whole(row[number], f"{path}, line {line}", number)
        if condition in found:
            raise InputError(
                f"{path}, line {line}",
                found=f"the condition {condition} once more",
                expected="each condition once",
                action="correct the table",
            )
        found[condition] = "" if row[name] in NOTHING else row[name]
    return found


def _check_one_stimulus(trials: SessionTrials, design: Design) -> None:
    first: dict[int, str] = {}
    for place, number, stimulus in zip(trials.places, design.stimorder, trials.stimulus, strict=True):
        if first.setdefault(number, stimulus) != stimulus:
            raise _contradiction(
                trials,
                design,
                found=f"the stimulus {stimulus!r} in a trial of condition {number}",
                expected=f"{first[number]!r}, as in its first trial",
                at=place,
                more=f"; if conditions of this fit were several stimuli each, set {option('design')} to null",
            )


def _contradiction(
    trials: SessionTrials, design: Design, *, found: str, expected: str, at: str = "", more: str = ""
) -> InputError:
    return InputError(
        at or trials.where,
        found=found,
        expected=f"{expected} ({design.path})",
        meaning="The table and the fit are not of the same trials: betas would be taken for those of other stimuli",
        action=f"take both from the same session, in the order in which the trials ran{more}",
    )
