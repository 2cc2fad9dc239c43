"""What users read: every own error in the source has its parts, and names settings, commands and pages that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

# all modules with own classes of errors
import bdflow.serve.requests
import bdflow.stores.remote  # noqa: F401
from bdflow.cli import main
from bdflow.config import Config
from bdflow.errors import InputError
from tests.support.messages import ROOT, faults, said

SECTIONS = "|".join(name for name in Config.model_fields if name not in ("study", "subjects"))
SETTING = re.compile(rf"(?<![\w./`-])`?((?:{SECTIONS})(?:\.(?:\w+|{{}}))+)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
PAGE = re.compile(r"docs/[\w-]+\.md")
FOREIGN = {"--force-reinstall", "--nthreads"}
"""Options of pip and of Dask that messages name."""


def test_the_walk_finds_the_sources_errors_and_lines():
    calls = list(said())
    assert len(calls) > 300
    assert {"InputError", "NotAtHand", "StoreError", "NotReady", "ClusterError", "Refusal", "info", "warning"} <= {
        call.name for call in calls
    }


def _parts(call: ast.Call) -> dict[str, ast.expr]:
    return {word.arg: word.value for word in call.keywords if word.arg}


def test_every_own_error_says_where_what_was_found_what_was_expected_and_what_to_do():
    lacking = []
    for one in said(logged=False):
        if one.name in ("CorruptChunk", "CorruptMetadata", "Unexpected", "WorkerLost"):
            continue  # these make the parts themselves: `test_classes_that_make_their_parts`
        parts = _parts(one.call)
        given = {**parts, "where": one.call.args[0] if one.call.args else parts.get("where")}
        for part in ("where", "found", "expected", "action"):
            value = given.get(part)
            if value is None or (isinstance(value, ast.Constant) and not str(value.value).strip()):
                lacking.append(f"{one.where}: {part}")
    assert lacking == []


def test_classes_that_make_their_parts():
    from bdflow.cluster import WorkerLost
    from bdflow.stores import CorruptChunk, CorruptMetadata
    from bdflow.stores.errors import Unexpected

    for error in (
        CorruptChunk("betas/subj01", "beta", (0, 1), 3, "no file"),
        CorruptMetadata("betas/subj01", "zarr.json", "no file"),
        Unexpected("", "notes.txt", "a file"),
        WorkerLost(3, 2, "killed", "the log"),
        WorkerLost(None, 1, "killed", "the log"),
    ):
        assert faults(error) == [], error


def test_faults_are_seen():
    good = {"found": "a", "expected": "b", "action": "c"}
    assert faults(InputError("x", **good)) == []
    for bad in (
        "PosixPath('x')",
        "np.int64(3)",
        "dtype('f4')",
        "torch.Size([2])",
        "<class 'int'>",
        "f at <function f>",
    ):
        assert len(faults(InputError("x", **{**good, "found": bad}))) == 1, bad
    assert faults(InputError("", **good)) == ["no `where`"]


def _exists(words: list[str], kind: object) -> bool:
    """Whether a key is one of the configuration. `{}`, and words in capitals, stand for any name."""
    if not words:
        return True
    while not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        inner = [one for one in getattr(kind, "__args__", ()) if one is not type(None)]
        if not inner:
            return False
        if getattr(kind, "__origin__", None) in (dict,) or "Mapping" in str(getattr(kind, "__origin__", "")):
            return _exists(words[1:], inner[1])
        if len(inner) > 1 and "Annotated" not in repr(kind)[:20]:
            return any(_exists(words, one) for one in inner)
        kind = inner[0]
    word, rest = words[0], words[1:]
    fields = kind.model_fields
    if word == "{}" or word.isupper():
        return any(_exists(rest, field.annotation) for field in fields.values())
    return word in fields and _exists(rest, fields[word].annotation)


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("ridge.alpha", True),
        ("ridge.alpa", False),
        ("execution.STAGE.workers", True),
        ("execution.STAGE.wokers", False),
        ("painters.NAME.variants", True),
        ("spaces.{}.encoder", True),
        ("spaces.{}.encode", False),
        ("cluster.address.ray", True),
    ],
)
def test_keys_are_told_apart(key, known):
    assert _exists(key.split("."), Config) is known


def _settings() -> Iterator[tuple[str, str]]:
    for one in said():
        for text in one.texts():
            for found in SETTING.findall(text):
                if not found.endswith((".py", ".json", ".zarr")):
                    yield one.where, found


def test_every_setting_that_a_message_names_exists():
    named = list(_settings())
    assert len(named) > 60
    assert [(where, key) for where, key in named if not _exists(key.split("."), Config)] == []


def _options() -> set[str]:
    import typer

    def of(command: object) -> set[str]:
        own = {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
        return own.union(*(of(below) for below in getattr(command, "commands", {}).values()))

    of_benchmarks = {word for file in (ROOT / "benchmarks").glob("*.py") for word in _options_of_script(file)}
    return of(typer.main.get_command(main.app)) | of_benchmarks


def _options_of_script(file: Path) -> set[str]:
    return set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', file.read_text(encoding="utf-8")))


def test_every_option_that_a_message_names_exists():
    named = {(one.where, word) for one in said() for text in one.texts() for word in OPTION.findall(text)}
    assert len(named) > 3
    assert [found for found in sorted(named) if found[1] not in _options() | FOREIGN] == []


def test_every_page_that_a_message_names_exists():
    named = {(one.where, page) for one in said() for text in one.texts() for page in PAGE.findall(text)}
    assert len(named) > 3
    assert [found for found in sorted(named) if not (ROOT / found[1]).is_file()] == []


def test_every_remedy_leads_to_a_command_that_exists():
    import typer

    from bdflow.cli.remedies import command

    group = typer.main.get_command(main.app)
    given = {
        value.value
        for one in said(logged=False)
        for value in [_parts(one.call).get("remedy")]
        if isinstance(value, ast.Constant) and value.value
    }
    assert {"run", "remake", "repair", "status", "check-bundle"} <= given | {"repair"}
    for remedy in sorted(given | {"repair", "run:ingest", "remake:regress"}):
        _, name, *words = command(remedy, ["status", "c.yaml"]).split()
        found = group.commands[name]
        if name in ("bundle", "bench"):
            found = found.commands[words[0]]
        options = {option for parameter in found.params for option in parameter.opts}
        if name == "bench":
            options |= _options_of_script(ROOT / "benchmarks" / f"{words[0]}.py")
        assert {word for word in words if word.startswith("--")} <= options, remedy
