"""A session's table of trials: a row for each volume of its betas."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bdflow.datasets.formats.tables import read_table
from bdflow.datasets.laion_fmri.stimuli import Stimuli
from bdflow.errors import InputError, listed
from bdflow.stores.paths import AnyPath


@dataclass(frozen=True)
class SessionTrials:
    """What was shown in a session, in the order of the volumes of its betas.

    Attributes
    ----------
    path : the table.
    labels : name of the stimulus of each trial.
    runs : (trial,) int32, from 1.
    """

    path: AnyPath
    labels: tuple[str, ...]
    runs: np.ndarray


def read_trials(path: AnyPath, session: str, stimuli: Stimuli) -> SessionTrials:
    """Read a table of trials. Numbers of runs and sessions may stand in it as BIDS has them, or alone: run-01, 01, 1.

    Raises
    ------
    NotAtHand : no such file.
    InputError : a damaged table, one without rows or of another session; rows that are not in the order of their
        beta_index; a run that is none; a label that the stimulus table does not have.
    """
    table = read_table(path, "a session's table of trials", ("session", "run", "beta_index", "label"))
    table = replace(table, rows=[row | {"run": row["run"].removeprefix("run-")} for row in table.rows])
    runs, index = table.whole("run"), table.whole("beta_index")
    labels = tuple(table.column("label"))
    others = sorted(name for name in set(table.column("session")) if _number(name) != _number(session))
    first = next((row for row, place in enumerate(index) if place != row), None)
    wrong = None
    if not labels:
        wrong = ("no row", "a row for each trial")
    elif others:
        wrong = (f"rows of {listed(repr(name) for name in others)} in column session", f"{session} in each row")
    elif first is not None:
        wrong = (f"beta_index {index[first]} in row {first} (from 0)", "the rows' own numbers: 0, 1, 2, ...")
    elif not all(0 < run < 2**31 for run in runs):
        wrong = (f"run {next(run for run in runs if not 0 < run < 2**31)}", "numbers of runs, from 1")
    if wrong:
        raise InputError(
            path,
            found=wrong[0],
            expected=wrong[1],
            meaning="Which stimulus a beta is of cannot be told.",
            action="fetch the table and the betas of this session again",
        )
    stimuli.check(labels, f"{path}, column label")
    return SessionTrials(path, labels, np.array(runs, np.int32))


def _number(session: str) -> str:
    return session.removeprefix("ses-").lstrip("0")
