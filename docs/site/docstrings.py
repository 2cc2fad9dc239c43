"""Docstrings of this project for mkdocstrings: an entry is `name : what it is`, with types in the signature alone.

The numpy style has `name : type` there, with the text below. Each entry is written in that form, without the type, so
that the type is taken from the signature. What is returned is often said without a name: it becomes a paragraph.
"""

import re
from collections.abc import Iterator

import griffe

SECTIONS = ("Parameters", "Attributes", "Returns", "Yields", "Raises")
NAMES = r"\*{0,2}\w[\w.]*(?:, \*{0,2}\w[\w.]*)*"
ENTRY = re.compile(rf"^({NAMES}) : (.*)$")
FURTHER = re.compile(rf"(?<=[.)]) (?=(?:{NAMES}) : )")
"""Before an entry that begins in the line of the one before."""


def rewritten(text: str) -> str:
    """A docstring with its entries in two parts."""
    found: list[str] = []
    for block in re.split(r"\n[ \t]*\n", text):
        lines = block.splitlines()
        if len(lines) > 2 and lines[0].strip() in ("Returns", "Yields") and not ENTRY.match(lines[2]):
            found.append(f"**{lines[0].strip()}:** {' '.join(line.strip() for line in lines[2:])}")
        elif len(lines) > 1 and lines[0].strip() in SECTIONS and set(lines[1].strip()) == {"-"}:
            found.append("\n".join([*lines[:2], *_entries(lines[2:])]))
        else:
            found.append(block)
    return "\n\n".join(found)


def _entries(lines: list[str]) -> Iterator[str]:
    whole: list[str] = []
    for line in lines:
        if ENTRY.match(line) or not whole:
            whole.append(line)
        else:
            whole[-1] += f" {line.strip()}"
    for part in [part for line in whole for part in FURTHER.split(line)]:
        entry = ENTRY.match(part)
        yield from (entry[1], f"    {entry[2]}") if entry else (part,)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)
