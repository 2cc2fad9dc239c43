"""Errors name no command of the command line; the command line adds the command that helps."""

import ast
import pickle
import re
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import bdflow
from bdflow.cli import main, remedies
from bdflow.cluster.errors import ClusterError, WorkerLost
from bdflow.errors import BdflowError, InputError
from bdflow.pipeline import Pipeline
from bdflow.stores import CorruptChunk, NotReady, StoreError

ROOT = Path(bdflow.__file__).parent.parent
# "bdflow report" is the name of the generator in the pages that are written
NAMES = set(get_command(main.app).commands) - {"report"}
COMMANDS = re.compile(rf"bdflow ({'|'.join(NAMES)})\b")


def _texts(file: Path) -> list[str]:
    """String literals of a module that are no docstrings."""
    tree = ast.parse(file.read_text())
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]


def test_no_text_outside_the_command_line_names_its_commands() -> None:
    files = [file for top in ("bdflow", "stores", "cluster") for file in (ROOT / top).rglob("*.py")]
    library = [
        file for file in files if file.relative_to(ROOT).parts[:2] not in (("bdflow", "cli"), ("bdflow", "training"))
    ]
    assert len(library) > 80
    assert {"run", "bench", "score", "export", "dataset", "verify"} < NAMES
    found = [f"{file.relative_to(ROOT)}: {text}" for file in library for text in _texts(file) if COMMANDS.search(text)]
    assert not found


@pytest.mark.parametrize(
    "error",
    [
        InputError("a.key", found="1", expected="2", action="correct it", meaning="m", remedy="run"),
        NotReady(where="x", found="no store", expected="one", action="make it", remedy="run:ingest"),
        StoreError("x", found="a\n  b", expected="one", action="remove it", remedy="remake"),
        CorruptChunk("betas/subj01", "beta", (0, 1), 3, "no file"),
        WorkerLost(3, 2, "killed", "the log"),
        ClusterError(Path("a b"), found="2 GPUs", expected="4", action="ask for fewer"),
    ],
)
def test_errors_have_one_root_and_keep_their_parts_when_pickled(error: BdflowError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize(
    ("remedy", "given", "expected"),
    [
        ("", ["run", "c.yaml"], ""),
        ("run", ["report", "c.yaml"], "bdflow run c.yaml --subjects subj01 --set 'seed=1 2'"),
        ("run:roi", ["maps", "c.yaml"], "bdflow run c.yaml --only roi --subjects subj01 --set 'seed=1 2'"),
        ("remake", ["run", "c.yaml", "--only", "roi"], "bdflow run c.yaml --only roi --remake"),
        ("remake:roi", ["maps", "c.yaml"], "bdflow run c.yaml --only roi --subjects subj01 --remake --set 'seed=1 2'"),
        ("repair", ["run", "c.yaml"], "bdflow verify c.yaml --repair --set 'seed=1 2'"),
        ("status", ["run", "c.yaml"], "bdflow status c.yaml --set 'seed=1 2'"),
        ("bench:ridge --scale full", ["plan", "c.yaml"], "bdflow bench ridge --scale full --json FILE"),
    ],
)
def test_a_remedy_becomes_a_command(
    remedy: str, given: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remedies, "_now", remedies._Subject("c.yaml", ("seed=1 2",), ("subj01",)))
    assert remedies.command(remedy, given) == expected


def test_an_error_on_the_terminal_ends_with_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify(pipeline: Pipeline, **_: object) -> None:
        pipeline.study.root()

    monkeypatch.setattr(Pipeline, "verify", verify)
    study = f"study={tmp_path / 'no.zarr'}"
    monkeypatch.setattr(sys, "argv", ["bdflow", "verify", "demo", "--set", study])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "found no study there" in said
    assert said.splitlines()[-1] == f"Command: bdflow run demo --set {study}"
