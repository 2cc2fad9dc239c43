"""Commands in this process."""

import sys
from pathlib import Path

import pytest
import yaml

from bdflow.cli import main


@pytest.fixture
def ended(monkeypatch, capsys, tmp_path):
    """Run a command in this process; it must fail with a message alone. Returns what it said on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["bdflow", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main.main()
        said = capsys.readouterr().err
        assert end.value.code in (1, 2), said
        if end.value.code == 1:
            assert said.startswith("error: ") or "\nerror: " in said, said
            assert "hat to do: " in said, said
        else:
            assert "Usage: " in said, said
        return said

    return run


@pytest.fixture
def config(settings, undisturbed, tmp_path) -> Path:
    """Of a study that is whole up to `evaluate`."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path, study=str(undisturbed)), sort_keys=False), encoding="utf-8")
    return file
