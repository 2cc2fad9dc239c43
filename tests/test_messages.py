"""Words of messages: commands that they name exist, numbers and lists are bounded and read well, no reprs.

That every error has its parts, and that settings and pages it names exist: `tests/test_message_references.py`.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from bdflow.cli import remedies
from bdflow.cli.main import app
from bdflow.errors import BdflowError, counted, listed
from tests.support.messages import tree

ROOT = Path(__file__).parents[1]
OWN = {"StoreError", "ClusterError", "ConfigError", "NotReady", "InputError", "NotAtHand", "BdflowError"}


def files() -> list[Path]:
    every = [
        *(ROOT / "bdflow").rglob("*.py"),
        *(ROOT / "stores").glob("*.py"),
        *(ROOT / "cluster").rglob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
    ]
    return sorted({file.resolve() for file in every})


def text(node: ast.AST) -> str:
    """The words of a string; what is put in is `{}`."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return text(node.left) + text(node.right)
    return "{}"


@cache
def raised() -> tuple[tuple[str, str, dict[str, ast.expr], list[ast.expr]], ...]:
    """Place, class, named and unnamed parts of every own error that is made."""
    return tuple(_raised())


def _raised() -> Iterator[tuple[str, str, dict[str, ast.expr], list[ast.expr]]]:
    for file in files():
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                if name in OWN:
                    given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", name, given, node.args


@cache
def messages() -> tuple[tuple[str, str], ...]:
    return tuple(_messages())


def _messages() -> Iterator[tuple[str, str]]:
    for place, _, given, rest in raised():
        yield place, " ".join(text(part) for part in [*rest, *given.values()])
    for file in files():
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.") and node.args:
                yield f"{file.relative_to(ROOT)}:{node.lineno}", text(node.args[0])


def test_commands_that_messages_name_are_there() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    commands |= {group.name for group in app.registered_groups if group.name}
    wrong = []
    for place, words in messages():
        for command in re.findall(r"(?:`|run |: )bdflow ([a-z-]+)\b", words):
            if command not in commands:
                wrong.append(f"{place}: bdflow {command}")
    assert wrong == []
    for remedy in ("run", "run:features", "remake", "remake:regress", "repair", "status", "check-bundle"):
        named = remedies.command(remedy, ["status", "CONFIG"]).split()[1]
        assert named in commands, remedy


def test_no_message_holds_the_repr_of_a_path_or_array() -> None:
    """A value that is put in as its repr (`!r`) is text of the user's, never an object."""
    wrong = []
    for file in files():
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.FormattedValue) and node.conversion == ord("r"):
                inside = ast.unparse(node.value)
                if re.search(r"\b(path|file|folder|array|dtype|config)$", inside) and inside != "self.path":
                    wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}: {inside}")
    assert wrong == []


def test_numbers_and_lists_in_sentences() -> None:
    assert [counted(n, "difference") for n in (0, 1, 2, 12_345)] == [
        "0 differences", "1 difference", "2 differences", "12,345 differences"
    ]  # fmt: skip
    assert listed(["a"]) == "a"
    assert listed("abcde") == "a, b, c, d, e"
    assert listed(range(7), 5) == "0, 1, 2, 3, 4 and 2 more"


def test_a_message_is_made_of_its_parts() -> None:
    error = BdflowError("a.yaml", found="x", expected="y", meaning="It is wrong.", action="mend it.")
    assert str(error) == "a.yaml: found x; expected y.\nIt is wrong.\nWhat to do: mend it."


@pytest.mark.parametrize("word", ["rooms", "kitchen", "siege"])
def test_words_that_were_given_up_stay_away(word: str) -> None:
    assert [place for place, words in messages() if re.search(rf"\b{word}\b", words)] == []
