"""The command as a user types it."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from typer.testing import CliRunner, Result

import bdflow.models as bdflow_models
from bdflow.cli.main import app, main
from bdflow.errors import BdflowError

BDFLOW = Path(sys.executable).with_name("bdflow")


def bdflow(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [str(BDFLOW), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **options)  # type: ignore[call-overload]


@pytest.fixture
def config(settings, tmp_path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path), sort_keys=False))
    return file


HEAVY = ("torch", "ray", "dask", "distributed", "zarr", "xarray", "scipy", "diffusers", "transformers", "nibabel")


def test_help_answers_at_once():
    """It imports nothing that takes long to import."""
    script = "import sys; from bdflow.cli.main import main; sys.argv = ['bdflow', '--help']\n"
    script += "try: main()\nexcept SystemExit: pass\nprint('imported', *sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=True)
    for command in ("run", "status", "simulate", "demo", "verify", "ingest", "report", "bundle"):
        assert command in done.stdout
    imported = done.stdout.splitlines()[-1].split()
    assert imported[0] == "imported"
    assert set(imported) & set(HEAVY) == set()
    assert bdflow("--help").returncode == 0


def test_looking_at_a_finished_study_loads_no_network(undisturbed, settings, tmp_path):
    """Nor does a run that finds nothing to do."""
    shutil.copytree(undisturbed, tmp_path / "study.zarr")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings(tmp_path), sort_keys=False))
    script = "import sys; from bdflow.cli.main import main\nfor command in ('status', 'verify', 'report', 'run'):\n"
    script += f"    sys.argv = ['bdflow', command, {str(tmp_path / 'config.yaml')!r}]\n"
    script += "    try: main()\n    except SystemExit as end: assert not end.code\n"
    script += f"    print('loaded', command, *{{*sys.modules}} & {{*{(*HEAVY[:4], 'diffusers', 'transformers')!r}}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    loaded = [line.split() for line in done.stdout.splitlines() if line.startswith("loaded")]
    assert loaded == [["loaded", command] for command in ("status", "verify", "report", "run")]


@pytest.fixture
def called(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """`called(word, ...)`: the command in this process; its exit code, and what it wrote to stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bdflow", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


def test_run_status_and_a_second_run(config, called):
    code, _, said = called("run", config, "--until", "ingest")
    assert code == 0, said
    _, table, _ = called("status", config)
    lines = {line.split()[0]: line for line in table.splitlines() if line.strip()}
    assert "sealed" in lines["betas/subj01"]
    assert "absent" in lines["metrics/brain_diffuser/subj02"]
    assert "78 trial" in lines["betas/subj01"]
    assert "a pixel by 1 level of 255 in all but 0.1% of values" in table
    _, table, _ = called("status", config, "--set", "dataset.sessions=2")
    assert "stale, settings.sessions: made with 3, now 2 (3 stores):" in table
    code, _, said = called("run", config, "--until", "ingest", "--set", "dataset.sessions=2")
    assert code == 1
    assert "sessions: made with 3, now 2" in said
    assert "Traceback" not in said


ERRORS = [
    (["run", "nowhere.yaml"], ["no such file", "brain_diffuser, demo, takagi_nishimoto"]),
    (["run", "demo", "--only", "paint"], ["only: found 'paint'", "a stage: ingest"]),
    (["run", "demo", "--only", "ingest", "--until", "ingest"], ["expected one of them"]),
    (["run", "demo", "--subjects", "subj03"], ["subj03", "subj01, subj02"]),
    (["run", "demo", "--set", "dataset.root=/nowhere"], ["/nowhere", "What to do"]),
]


@pytest.mark.parametrize(("arguments", "words"), ERRORS)
def test_errors_are_one_message_without_a_traceback(arguments, words, called, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, said = called(*arguments)
    assert code == 1
    assert "Traceback" not in said
    for word in words:
        assert word in said, said
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_installed_command(tmp_path):
    """As `ERRORS`, of a process: no traceback, nor anything else, on the way out."""
    arguments, words = ERRORS[-1]
    done = bdflow(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_bundles_are_described_checked_and_made(tmp_path):
    def bdflow(*words: object) -> Result:
        return CliRunner().invoke(app, [*map(str, words)])

    assert bdflow("bundle", "check", "tiny").exit_code == 0
    info = bdflow("bundle", "info", "tiny").stdout
    for word in ("clip_vision", "Apache-2.0", "target spaces", "fingerprint"):
        assert word in info
    tiny = Path(bdflow_models.__file__).parent / "tiny"
    shutil.copytree(tiny, tmp_path / "bundle")
    (tmp_path / "bundle/vae/diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "bundle/image_encoder/model.safetensors").write_bytes(b"<html>not found</html>")
    check = bdflow("bundle", "check", tmp_path / "bundle")
    assert check.exit_code == 1
    for word in ("vae/diffusion_pytorch_model.safetensors", "image_encoder/model.safetensors", "2 problems"):
        assert word in check.stdout
    (tmp_path / "empty").mkdir()
    init = bdflow("bundle", "init", tmp_path / "empty")
    assert isinstance(init.exception, BdflowError)
    assert "imagenet64-iter-1600000-model-ema.th" in str(init.exception)


@pytest.mark.slow(kind="a driver is interrupted or killed")
def test_ctrl_c_ends_cleanly_and_the_next_run_goes_on(config):
    process = subprocess.Popen(
        [str(BDFLOW), "run", str(config), "--until", "features", "--set", "execution.features.executor=dask"],
        stderr=subprocess.PIPE,
        text=True,
    )
    family = psutil.Process(process.pid)
    deadline = time.monotonic() + 120
    while not family.children(recursive=True) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = family.children(recursive=True)
    assert children
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "goes on where it stopped" in err
    assert not psutil.wait_procs(children, timeout=10)[1]
    done = bdflow("run", config, "--until", "features")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow(kind="long checks")
def test_two_runs_at_once_on_one_study_the_second_is_refused(config):
    first = subprocess.Popen([str(BDFLOW), "run", str(config), "--until", "features"], stderr=subprocess.DEVNULL)
    study = config.parent / "study.zarr/zarr.json"
    deadline = time.monotonic() + 60
    while not study.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    second = bdflow("run", config, "--until", "features")
    assert first.wait(240) == 0
    assert second.returncode == 1
    assert "in use by" in second.stderr
    assert bdflow("verify", config).returncode == 0
