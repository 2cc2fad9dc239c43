"""A lab's stimuli: their table, pictures, captions and splits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from bdflow.datasets.contract import Split
from bdflow.datasets.formats.pictures import METHOD, decode
from bdflow.datasets.formats.tables import Table, read_table
from bdflow.datasets.glmsingle.options import GLMsingleSettings
from bdflow.datasets.glmsingle.patterns import absent, option
from bdflow.datasets.glmsingle.trials import NOTHING
from bdflow.errors import InputError, counted, listed
from bdflow.stores.paths import AnyPath

log = logging.getLogger(__name__)


class Stimuli:
    """The stimuli below a root, as the settings say. `captions_path` is the captions' table; None: no captions."""

    method = METHOD

    def __init__(self, root: AnyPath, settings: GLMsingleSettings, captions_path: AnyPath | None) -> None:
        self.root, self.settings, self.captions_path = root, settings, captions_path
        self.path = root / settings.stimuli
        self.folder = root if settings.pictures is None else root / settings.pictures

    @cached_property
    def table(self) -> Table:
        """Raises InputError where there is none, an id or a file is missing, or an id is there twice."""
        settings = self.settings
        if not self.path.is_file():
            raise absent(self.path, "the table of stimuli", "stimuli")
        table = read_table(self.path, "the table of stimuli", (settings.id_column, settings.file_column))
        lines: dict[str, int] = {}
        for line, row in enumerate(table.rows, start=2):
            stimulus = row[settings.id_column]
            if stimulus in NOTHING or stimulus in lines:
                raise InputError(
                    f"{self.path}, line {line}",
                    found=f"the id {stimulus!r} once more, as in line {lines[stimulus]}"
                    if stimulus in lines
                    else "no id",
                    expected="an id in each line, each once",
                    action=f"correct the table, or name the column with ids by {option('id_column')}",
                )
            lines[stimulus] = line
        return table

    @cached_property
    def files(self) -> dict[str, str]:
        """File of the picture by id, in the order of the table; empty: it has no picture."""
        settings = self.settings
        names = {row[settings.id_column]: row[settings.file_column] for row in self.table.rows}
        for stimulus, name in names.items():
            if name not in NOTHING and (set(name.split("/")) & {"", ".", ".."} or "\\" in name):
                raise InputError(
                    f"{self.path}, stimulus {stimulus}, column {settings.file_column}",
                    found=repr(name),
                    expected=f"a file below {self.folder}",
                    action=f"correct the table, or name the folder of the pictures by {option('pictures')}",
                )
        return {stimulus: "" if name in NOTHING else name for stimulus, name in names.items()}

    @cached_property
    def ids(self) -> list[str]:
        """Every stimulus that has a picture."""
        return [stimulus for stimulus, name in self.files.items() if name]

    @cached_property
    def cells(self) -> Mapping[str, str]:
        """Id by what stands in a table of trials: the id itself, or the file of the picture."""
        if self.settings.stimulus_names == "id":
            return {stimulus: stimulus for stimulus in self.files}
        found: dict[str, str] = {}
        for stimulus in self.ids:
            name = self.files[stimulus]
            if name in found:
                raise InputError(
                    self.path,
                    found=f"the file {name} of two stimuli, {found[name]} and {stimulus}",
                    expected="a file of its own for each stimulus, as trials name files",
                    action=f"correct the table; or let trials name ids ({option('stimulus_names')})",
                )
            found[name] = stimulus
        return found

    def check(self, stimuli: Sequence[str]) -> None:
        """Raise InputError for ids that the table does not have."""
        unknown = [stimulus for stimulus in dict.fromkeys(stimuli) if stimulus not in self.files]
        if unknown:
            raise InputError(
                self.path,
                found=f"no stimulus {listed(map(repr, unknown))}",
                expected="every stimulus that is asked for",
                action="correct the table, or ask for ids that it has",
            )

    # --- pictures -----------------------------------------------------------------------------------------------

    def picture_path(self, stimulus: str) -> AnyPath:
        """File of a stimulus's picture. Raises InputError if it has none."""
        self.check([stimulus])
        if not self.files[stimulus]:
            raise InputError(
                f"{self.path}, stimulus {stimulus}",
                found=f"no file in the column {self.settings.file_column}",
                expected="a picture",
                action="name its file in the table, or use stimuli with pictures alone",
            )
        return self.folder / self.files[stimulus]

    def picture(self, stimulus: str) -> np.ndarray:
        """(y, x, 3) uint8. Raises InputError if there is none."""
        path = self.picture_path(stimulus)
        if not path.is_file():
            raise absent(path, f"the picture of the stimulus {stimulus}", "pictures")
        return decode(path.read_bytes(), path)

    # --- captions -----------------------------------------------------------------------------------------------

    @cached_property
    def captions(self) -> dict[str, list[str]]:
        """Captions by stimulus, in the order of the table. Those of stimuli that there are not are said, and left."""
        found: dict[str, list[str]] = {stimulus: [] for stimulus in self.files}
        if self.captions_path is None:
            return found
        if not self.captions_path.is_file():
            raise absent(self.captions_path, "the table of captions (null: there are none)", "captions")
        name = self.settings.captions_id_column or self.settings.id_column
        table = read_table(self.captions_path, "the table of captions", (name, self.settings.caption_column))
        others = []
        for row in table.rows:
            caption = row[self.settings.caption_column].strip()
            if row[name] not in found:
                others.append(row[name])
            elif caption not in NOTHING:
                found[row[name]].append(caption)
        if others:
            log.warning(
                "%s: %s of %s that %s does not have, such as %s. They are not used.",
                self.captions_path,
                counted(len(others), "caption"),
                counted(len(set(others)), "stimulus", "stimuli"),
                self.path,
                listed(dict.fromkeys(others), 3),
            )
        return found

    # --- splits -------------------------------------------------------------------------------------------------

    def splits(self) -> dict[str, Split]:
        """Training and test stimuli by column. Raises InputError for a cell whose meaning is not said."""
        return {column: self._split(column) for column in self.settings.split_columns}

    def _split(self, column: str) -> Split:
        settings = self.settings
        if column not in self.table.columns:
            raise InputError(
                self.path,
                found=f"the columns {listed(self.table.columns)}",
                expected=f"a column {column}, which says what is for training and what for testing",
                action=f"correct {option('split_columns')}; [] if the table has none",
            )
        parts: dict[str, set[str]] = {"train": set(), "test": set(), "neither": set()}
        for line, row in enumerate(self.table.rows, start=2):
            cell = row[column]
            if cell in NOTHING and cell not in settings.split_values:
                continue
            if cell not in settings.split_values:
                raise InputError(
                    f"{self.path}, line {line}, column {column}",
                    found=repr(cell),
                    expected=listed(map(repr, settings.split_values)) + ", or n/a",
                    action=f"correct the table, or say by {option('split_values')} whether it means train, test or "
                    "neither",
                )
            if self.files[row[settings.id_column]]:
                parts[settings.split_values[cell]].add(row[settings.id_column])
        if not parts["test"]:
            raise InputError(
                f"{self.path}, column {column}",
                found="no stimulus for testing",
                expected="some that are",
                action=f"correct the table, or say by {option('split_values')} which cells mean test",
            )
        return Split(frozenset(parts["test"]), frozenset(parts["train"]))
