"""The pages of docs/ as a reader follows them: their fenced blocks, run from top to bottom in the working folder."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from bdflow.cli.main import app

DOCS = Path(__file__).parents[2] / "docs"
OPTIONAL = ("cortex",)
"""Modules whose blocks run only where they are installed: pycortex is built by a C compiler."""
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is to be put into (or ""), and its text."""

    kind: str
    file: str
    text: str


def text_of(page: str) -> str:
    """A page by its name, such as `score.md`."""
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str, *kinds: str) -> list[Block]:
    """A page's blocks, all or those of some languages."""
    found = [Block(*parts) for parts in FENCE.findall(text_of(page))]
    return [block for block in found if not kinds or block.kind in kinds]


def follow(page: str) -> dict[str, Any]:
    """Do what the page says, and give the variables that its Python leaves. Blocks with a file are written there;
    other Python runs, all of it in one namespace, but what imports a module of `OPTIONAL` that is not here; commands
    run, and what the page shows of their output must be it.
    """
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "python" and not _needs_more(block.text):
            exec(compile(block.text, page, "exec"), names)
        elif block.kind == "console":
            _commands(block.text)
    return names


def _needs_more(code: str) -> bool:
    return any(f"import {name}\n" in code and find_spec(name) is None for name in OPTIONAL)


def _commands(text: str) -> None:
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        program, *arguments = command.split()
        assert program == "bdflow", command
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"{command}: {done.output}"
        assert not shown.strip() or done.stdout == shown, command
