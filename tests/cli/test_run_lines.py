"""What a run says: which stage it is at, and how it ended; the version; what a shell completes."""

import importlib.metadata
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bdflow import __version__, pipeline
from bdflow.cli import completion
from bdflow.cli.main import app


def bdflow(*words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_version_is_said():
    assert bdflow("--version") == f"bdflow {__version__}\n"
    assert importlib.metadata.version("bdflow") == __version__


def test_stages_are_named_and_the_last_line_says_how_it_ended(settings, tmp_path, caplog):
    caplog.set_level(logging.INFO, "bdflow")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path)), encoding="utf-8")

    def stages() -> list[str]:
        return [message for message in caplog.messages if message.startswith("stage ")]

    said = bdflow("run", file, "--until", "ingest")
    assert stages() == ["stage 1 of 1, ingest"]
    assert said.splitlines()[-1].startswith("done in ")
    caplog.clear()
    said = bdflow("run", file, "--until", "ingest")
    assert stages() == ["stage 1 of 1, ingest: up to date"]
    assert said.splitlines()[-1] == "up to date: nothing to compute"


def test_a_full_run_that_finds_all_done_names_the_report(config, tmp_path, caplog):
    caplog.set_level(logging.INFO, "bdflow")
    said = bdflow("run", config).splitlines()[-1]
    assert said == f"up to date: nothing to compute; the report was written again: {tmp_path / 'report/index.html'}"
    named = [message for message in caplog.messages if message.startswith("stage ")]
    assert len(named) == 6
    assert [line.split(" (")[0] for line in named] == [
        *(
            f"stage {n} of 6, {stage}: up to date"
            for n, stage in enumerate(("ingest", "features", "regress", "reconstruct", "evaluate"), start=1)
        ),
        "stage 6 of 6, report",
    ]


def test_the_time_so_far_stands_beside_a_stage():
    assert pipeline._headline("regress", 3, 6, 754.0, done=False) == "stage 3 of 6, regress (after 12 min 34 s)"
    assert pipeline._headline("regress", 3, 6, 754.0, done=True) == "stage 3 of 6, regress: up to date"


def test_stages_are_completed():
    assert completion.STAGES == pipeline.NAMES
    assert set(completion.ON_DEMAND) == set(pipeline.ON_DEMAND)
    assert completion.stages("re") == ["regress", "reconstruct", "report"]
    assert completion.single_stages("enc") == ["encoding_features", "encode"]


def test_recipes_files_and_subjects_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("{}", encoding="utf-8")
    Path("mine.txt").touch()
    Path("more").mkdir()
    Path("more/of.yml").touch()
    assert completion.configs("") == ["brain_diffuser", "demo", "takagi_nishimoto", "mine.yaml", "more/"]
    assert completion.configs("more/") == ["more/of.yml"]
    assert completion.configs("nowhere/") == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("bdflow run --until reg", ["regress"]),
        ("bdflow run demo --subjects subj0", ["subj01", "subj02", "subj05", "subj07"]),
        ("bdflow run demo --subjects subj02,subj01,", ["subj02,subj01,subj05", "subj02,subj01,subj07"]),
        ("bdflow status nowhere --subjects s", []),
        ("bdflow depl", ["deploy"]),
        ("bdflow bench ri", ["ridge"]),
        ("bdflow bench ridge --wor", ["--workers"]),
        ("bdflow bench diffusion --json f.json --no", ["--no-switches", "--no-sweep"]),
        ("bdflow bench gpu --", ["--only", "--list", "--dry", "--minutes", "--dir", "--json", "--help"]),
    ],
)
def test_a_shell_is_answered(words, expected, tmp_path):
    """As bash asks: words and the place of the cursor in the environment."""
    place = str(len(words.split()) - 1)
    asked = {"_BDFLOW_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
    script = "from bdflow.cli.main import app; app(prog_name='bdflow')"
    environment = {**os.environ, **asked}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == expected, done.stderr
