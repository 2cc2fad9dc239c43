"""What `bdflow status` shows: a table that fits the terminal, counts, and why stores are stale."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from bdflow import api
from bdflow.cli.text import console, human
from bdflow.errors import counted

if TYPE_CHECKING:
    from bdflow.api import Row

COLOURS = {
    "sealed": typer.colors.GREEN,
    "partial": typer.colors.YELLOW,
    "stale": typer.colors.RED,
    "damaged": typer.colors.RED,
    "absent": typer.colors.BRIGHT_BLACK,
}
HEADS = ("store", "shape", "on disk", "partitions", "state")
GAP = "  "
SHORTEST_NAME = 12


def show(study: str, rows: Sequence[Row]) -> None:
    """Print all of it, as wide as the terminal; elsewhere as wide as it is."""
    shown = console()
    width = shown.width if shown.is_terminal else None
    coloured = shown.is_terminal and not shown.no_color
    typer.echo(study)
    for line, row in zip(table(rows, width), (None, *rows), strict=True):
        if row is None:
            typer.echo(line)
        else:
            before = line.removesuffix(row.state.kind)
            state = typer.style(row.state.kind, fg=COLOURS[row.state.kind]) if coloured else row.state.kind
            typer.echo(before + state)
    typer.echo(f"\n{summary(rows)}")
    for reason, stores in api.stale_by_reason(rows).items():
        typer.echo("\n" + _wrapped(f"stale, {reason} ({counted(len(stores), 'store')}):", width))
        typer.echo(_wrapped(", ".join(stores), width, indent="  "))
    for row in rows:
        if row.state.kind == "damaged":
            typer.echo("\n" + _wrapped(f"{row.path} is damaged: {'; '.join(row.state.why)}", width))
        if row.remark:
            typer.echo("\n" + _wrapped(f"{row.path}: {row.remark}.", width))


def summary(rows: Sequence[Row]) -> str:
    """How many stores are in which state, and what all take on disk."""
    found: Counter[str] = Counter(row.state.kind for row in rows)
    kinds = [f"{found[kind]:,} {kind}" for kind in COLOURS if found[kind] or kind in ("sealed", "partial", "stale")]
    return f"{counted(len(rows), 'store')}: {', '.join(kinds)}; {human(sum(row.nbytes for row in rows))} on disk"


def table(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """A head and a line a store, no line longer than `width` and the state always whole.

    Where there is no room, shapes go without the names of dimensions, then without shapes, and then names are shortened
    in the middle.
    """
    cells = [_cells(row) for row in rows]
    wide = _aligned([HEADS, *cells])
    if width is None or _widest(wide) <= width:
        return wide
    numbers = [(cell[0], _numbers(cell[1]), *cell[2:]) for cell in cells]
    heads = (*HEADS[:3], "parts", HEADS[4])
    for candidates in ([heads, *numbers], [(one[0], *one[2:]) for one in (heads, *numbers)]):
        lines = _aligned(candidates)
        room = max(len(one[0]) for one in candidates) - (_widest(lines) - width)
        if room >= (SHORTEST_NAME if len(candidates[0]) < len(HEADS) else 2 * SHORTEST_NAME):
            break
    return _aligned([(shortened(one[0], max(room, 5)), *one[1:]) for one in candidates])


def shortened(name: str, width: int) -> str:
    """A name of at most that many characters: what is too long loses its middle."""
    if len(name) <= width:
        return name
    end = (width - 3) * 2 // 3
    return f"{name[: width - 3 - end]}...{name[len(name) - end :]}"


def _cells(row: Row) -> tuple[str, ...]:
    state = row.state
    looked_at = state.kind not in ("absent", "damaged")
    size, done = (human(row.nbytes), f"{state.done}/{state.total}") if looked_at else ("", "")
    return row.path, row.shape, size, done, state.kind


def _numbers(shape: str) -> str:
    """`364 stimulus x 868 voxel` without the names."""
    return " x ".join(part.split(" ")[0] for part in shape.split(" x "))


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Cells below one another: sizes and counts, the two before the state, to the right."""
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    right = (len(widths) - 3, len(widths) - 2)
    return [
        GAP.join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _widest(lines: Sequence[str]) -> int:
    return max(len(line) for line in lines)


def _wrapped(text: str, width: int | None, indent: str = "") -> str:
    if width is None:
        return indent + text
    return textwrap.fill(
        text,
        max(width, 20),
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
