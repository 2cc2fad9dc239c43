"""docs/score.md, as a user follows it: its code, its commands, and what these print."""

import re
from pathlib import Path

import pytest

from bdflow.cli.main import app
from tests.support import pages

PAGE = pages.text_of("score.md")


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(pages.blocks("score.md", "console")) == 1
    pages.follow("score.md")
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
