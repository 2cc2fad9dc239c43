"""Tables of text: CSV, and TSV as BIDS has it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from bdflow.datasets.formats.identity import missing
from bdflow.errors import InputError, listed
from bdflow.stores.paths import AnyPath


@dataclass(frozen=True)
class Table:
    """Rows of a file, every cell a text as it stands there.

    Attributes
    ----------
    path : the file.
    columns : names, in the order of the file.
    rows : a mapping of column to cell for each row.
    """

    path: AnyPath
    columns: tuple[str, ...]
    rows: list[dict[str, str]]

    def column(self, name: str) -> list[str]:
        """The cells of a column. Raises InputError if there is none of that name."""
        self.require(name)
        return [row[name] for row in self.rows]

    def whole(self, name: str) -> list[int]:
        """The cells of a column as whole numbers; `3` and `3.0` are one. Raises InputError naming the row that is
        none.
        """
        found = []
        for number, cell in enumerate(self.column(name), start=2):
            try:
                value = float(cell)
                if not value.is_integer() or abs(value) > 2**53:
                    raise ValueError
            except ValueError:
                raise InputError(
                    f"{self.path}, line {number}, column {name}",
                    found=repr(cell),
                    expected="a whole number",
                    action="correct the table",
                ) from None
            found.append(int(value))
        return found

    def require(self, *names: str) -> None:
        """Raise InputError where a column is not there."""
        absent = [name for name in names if name not in self.columns]
        if absent:
            raise InputError(
                self.path,
                found=f"the columns {listed(self.columns)}",
                expected=f"a column {absent[0]}",
                action="correct the table, or the setting that names the column",
            )


def read_table(path: AnyPath, what: str, columns: Sequence[str] = ()) -> Table:
    """A table in UTF-8, with the names of its columns in the first line: commas between cells in a `.csv`, tabs in any
    other. Quotes as in CSV.

    Parameters
    ----------
    path : the file; `what` it is, for errors.
    columns : names that there must be.

    Raises
    ------
    NotAtHand : no such file. InputError : no text, no header, a column twice, a row of another length.
    """
    if not path.is_file():
        raise missing(path, what)
    try:
        content = path.read_bytes().decode("utf-8-sig")
        lines = list(
            csv.reader(io.StringIO(content, newline=""), delimiter="," if path.name.endswith(".csv") else "\t")
        )
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            path, found=f"no readable table ({error})", expected=f"{what}, in UTF-8", action="write the file again"
        ) from error
    lines = [line for line in lines if line]
    if not lines:
        raise InputError(path, found="an empty file", expected=what, action="write the file again")
    header = lines[0]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(path, found=f"two columns {twice!r}", expected="each column once", action="correct the header")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise InputError(
                f"{path}, row {number}",
                found=f"{len(line)} cells",
                expected=f"{len(header)}, one for each column",
                action="correct the table; a cell with a comma or a tab in it stands in quotes",
            )
    table = Table(path, tuple(header), [dict(zip(header, line, strict=True)) for line in lines[1:]])
    table.require(*columns)
    return table
