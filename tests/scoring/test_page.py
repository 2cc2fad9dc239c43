"""docs/score.md, as a user follows it: its code, its commands, and what these print."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bdflow.cli.main import app

PAGE = (Path(__file__).parents[2] / "docs/score.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|console)\n(.*?)```", PAGE, re.DOTALL)


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    commands = 0
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, "score.md", "exec"), names)
            continue
        command, _, shown = text.removeprefix("$ bdflow ").partition("\n")
        done = CliRunner().invoke(app, command.split())
        assert done.exit_code == 0, done.output
        assert done.stdout == shown
        commands += 1
    assert commands == 2
    assert sorted(file.name for file in Path("scores").iterdir()) == ["index.html", "scores.csv", "table.csv"]
    assert capsys.readouterr().out.strip().endswith("stimulus00")


def test_options_of_the_page_are_those_of_the_command() -> None:
    (command,) = [one for one in app.registered_commands if one.callback and one.callback.__name__ == "score"]
    known = {
        option.split("/")[0]
        for parameter in command.callback.__annotations__.values()  # type: ignore[union-attr]
        for option in re.findall(r"--[a-z-]+", str(parameter))
    }
    known |= {f"--{name.replace('_', '-')}" for name in command.callback.__annotations__}  # type: ignore[union-attr]
    named = re.findall(r"(?<![\w#-])--[a-z][a-z-]+", re.sub(r"\(\S+\)", "", PAGE))
    assert len(set(named)) > 10
    assert set(named) - known == set()
