"""Names of files with words in braces for subject, session, run, collection and region."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass

from bdflow.errors import InputError, NotAtHand, lines
from bdflow.stores.paths import AnyPath, RemotePath


def natural(text: str) -> tuple[list[int | str], str]:
    """Key of an order in which `ses-2` comes before `ses-10`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)], text


def option(name: str) -> str:
    """An option as messages name it."""
    return f"`dataset.options.{name}`"


@dataclass(frozen=True)
class Found:
    """A file, and what the words of the pattern stand for in its name."""

    path: AnyPath
    values: Mapping[str, str]


class Pattern:
    """A pattern of an option, with the words in `values` filled in.

    Attributes
    ----------
    name : the option.
    text : for messages.
    """

    def __init__(self, name: str, text: str, values: Mapping[str, str] | None = None) -> None:
        self.name, self.values = name, dict(values or {})
        self._parts = [part for part in re.split(r"(\{\w+\}|\*|\?)", text) if part]
        self.text = "".join(self.values.get(part[1:-1], part) if part[0] == "{" else part for part in self._parts)

    def fill(self, **values: str) -> Pattern:
        """The pattern with these words filled in; those that it does not have are not used."""
        return Pattern(self.name, "".join(self._parts), self.values | values)

    def find(self, root: AnyPath) -> list[Found]:
        """Every file below the root that fits, in natural order. Raises InputError for a name that fits in two ways.

        Files and folders whose names begin with a dot are left out where the pattern does not begin with one there.
        """
        shown = "".join(self._glob(part) for part in self._parts)
        expressions = [re.compile(self._expression(lazy)) for lazy in ("", "?")]
        found = []
        for path in root.glob(shown):
            inside = _inside(path, root)
            if any(_hidden(*pair) for pair in zip(inside.split("/"), shown.split("/"), strict=True)):
                continue
            greedy, lazy = (expression.fullmatch(inside) for expression in expressions)
            if greedy is None or lazy is None or not path.is_file():
                continue
            if greedy.groupdict() != lazy.groupdict():
                raise InputError(
                    path,
                    found=f"a name that fits {self.text} in two ways: {_said(greedy)} or {_said(lazy)}",
                    expected="one",
                    action=f"write {option(self.name)} so that words in braces have a fixed text between them",
                )
            found.append(Found(path, self.values | greedy.groupdict()))
        return sorted(found, key=lambda one: natural(_inside(one.path, root)))

    def one(self, root: AnyPath) -> AnyPath | None:
        """The one file that fits, None if there is none. Raises InputError for several."""
        found = self.find(root)
        if len(found) > 1:
            raise several(root, [one.path for one in found], self)
        return found[0].path if found else None

    def need(self, root: AnyPath, what: str) -> AnyPath:
        """The one file that fits. Raises NotAtHand if there is none, InputError for several."""
        found = self.one(root)
        if found is None:
            raise absent(root / self.text, what, self.name)
        return found

    def _glob(self, part: str) -> str:
        if part[0] == "{":
            return glob.escape(self.values[part[1:-1]]) if part[1:-1] in self.values else "*"
        return part

    def _expression(self, lazy: str) -> str:
        seen: set[str] = set()
        text = ""
        for part in self._parts:
            word = part[1:-1]
            if part == "*":
                text += f"[^/]*{lazy}"
            elif part == "?":
                text += "[^/]"
            elif part[0] != "{":
                text += re.escape(part)
            elif word in self.values:
                text += re.escape(self.values[word])
            else:
                text += f"(?P={word})" if word in seen else f"(?P<{word}>[^/]+{lazy})"
                seen.add(word)
        return text


def absent(path: object, what: str, name: str) -> NotAtHand:
    """The error of a file that is not there, whose place an option says."""
    return NotAtHand(
        path,
        found="nothing there",
        expected=what,
        action=f"put the file there, or correct `dataset.root` or {option(name)} in the configuration",
    )


def several(where: object, files: list[AnyPath], pattern: Pattern) -> InputError:
    """The error of several files where one is meant."""
    return InputError(
        where,
        found=f"{len(files)} files that fit {pattern.text}:{lines(files)}",
        expected="one",
        meaning="Which of them is meant cannot be told. One file of betas holds all trials of a session; files of one "
        "run each are not read"
        if pattern.name == "betas"
        else "Which of them is meant cannot be told",
        action=f"write {option(pattern.name)} so that it fits one of them alone",
    )


def _inside(path: AnyPath, root: AnyPath) -> str:
    if isinstance(path, RemotePath) or isinstance(root, RemotePath):
        return str(path).removeprefix(f"{root}/")
    return path.relative_to(root).as_posix()


def _hidden(name: str, pattern: str) -> bool:
    return name.startswith(".") and not pattern.startswith(".")


def _said(match: re.Match[str]) -> str:
    return ", ".join(f"{word} {value}" for word, value in match.groupdict().items())
