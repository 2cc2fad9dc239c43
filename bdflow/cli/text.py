"""What the command line shows, reads and asks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bdflow.api import Outcome, Timing


class _Stderr(logging.Handler):
    """Records as lines on stderr, wherever it leads at that moment; warnings say that they are."""

    def emit(self, record: logging.LogRecord) -> None:
        before = "warning: " if record.levelno >= logging.WARNING else ""
        typer.echo(before + record.getMessage(), err=True)


def show_log() -> None:
    """Show what the package logs, from INFO on, on stderr."""
    root = logging.getLogger("bdflow")
    if not any(isinstance(handler, _Stderr) for handler in root.handlers):
        root.addHandler(_Stderr(logging.INFO))
    root.setLevel(logging.INFO)


def timings_table(study: str, rows: Sequence[Timing]) -> Table:
    from rich.table import Table

    from bdflow.api import duration

    table = Table(title=f"{study}, all runs", title_justify="left", box=None, pad_edge=False)
    left = ("stage", "work")
    heads = ("partitions", "total", "median", "longest", "read", "written", "peak memory", "retries", "workers")
    for name in (*left, *heads):
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    for row in rows:
        times = [duration(seconds) for seconds in (row.total, row.median, row.longest)]
        sizes = ["\u2013" if size is None else human(size) for size in (row.read, row.written, row.peak)]
        table.add_row(row.stage, row.work, str(row.partitions), *times, *sizes, str(row.retries), str(row.workers))
    return table


def last_line(done: Outcome) -> str:
    """How a run ended: what there is to look at, and what it took."""
    from bdflow.api import duration

    page = "" if done.report is None else f"report {done.report}"
    if not done.partitions:
        said = f"; the report was written again: {done.report}" if page else ""
        return f"up to date: nothing to compute{said}"
    return f"done in {duration(done.seconds)}{': ' + page + '   (open it in a browser)' if page else ''}"


def console() -> Console:
    """As wide as the terminal; wide enough for every column elsewhere."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=200)


def human(nbytes: float) -> str:
    """Bytes in the largest fitting unit of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def bytes_of(option: str, text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    from bdflow.errors import InputError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise InputError(
            option,
            found=repr(text),
            expected="a size, such as 64 MiB",
            action="give a number of bytes, or a number and a unit (KiB, MiB, GiB)",
        ) from error


def confirmed(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:
        return False
