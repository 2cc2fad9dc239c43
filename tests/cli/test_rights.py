"""Places that may not be read or written, and what others left in a study: one message, and nothing half-written."""

import builtins
import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from bdflow.cli import main


def forbid(monkeypatch, folder: Path, *, writing_alone: bool = False) -> None:
    """Have the system refuse this process what is in a folder, as it does for other users than the owner."""

    def inside(path: object) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        return str(folder) in (text := os.path.abspath(os.fsdecode(path))) and text.startswith(str(folder))  # noqa: PTH100

    def refusing(call, writes):
        def tried(path, *args, **kwargs):
            mode = args[0] if args else kwargs.get("mode", "r")
            reads = call in (io_open,) and isinstance(mode, str) and not set(mode) & set("wax+")
            if inside(path) and (not writing_alone or (writes and not reads)):
                raise PermissionError(13, "Permission denied", os.fsdecode(path))
            return call(path, *args, **kwargs)

        return tried

    io_open = io.open
    for module, name in ((io, "open"), (builtins, "open")):
        monkeypatch.setattr(module, name, refusing(io_open, True))
    for name in ("stat", "listdir", "scandir", "lstat"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), False))
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), True))


READING = ("status", "verify", "report", "figures", "maps", "decode")


@pytest.mark.parametrize(
    ("command", "writing_alone"),
    [(name, False) for name in READING] + [(name, of) for name in ("run", "roi", "encode") for of in (False, True)],
)
def test_no_rights_in_the_study(command, writing_alone, ended, settings, undisturbed, tmp_path, monkeypatch):
    study = tmp_path / "own" / "study.zarr"
    shutil.copytree(undisturbed, study)
    np.save(tmp_path / "a.npy", np.ones((1, 3)))
    file = tmp_path / "c.yaml"
    content = settings(tmp_path, study=str(study), execution={}, roi={"sets": {"a": ["V1"]}})
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    more = {"decode": ["a.npy", "--subject", "subj01", "--out", "out.zarr"], "run": ["--remake", "--set", "seed=1"]}
    forbid(monkeypatch, tmp_path / "own", writing_alone=writing_alone)
    said = ended(command, file, *more.get(command, []))
    monkeypatch.undo()
    assert str(tmp_path / "own") in said
    assert "Permission denied" in said
    assert "its rights" in said


@pytest.mark.parametrize("place", ["nsd", "nsd/nsddata", "nsd/nsddata_betas", "nsd/nsddata_stimuli"])
def test_no_rights_in_the_data(place, ended, settings, nsd, tmp_path, monkeypatch):
    shutil.copytree(nsd, tmp_path / "nsd")
    file = tmp_path / "c.yaml"
    content = settings(tmp_path, dataset={"root": str(tmp_path / "nsd"), "sessions": 3})
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    forbid(monkeypatch, tmp_path / place)
    said = ended("run", file, "--only", "ingest")
    monkeypatch.undo()
    assert str(tmp_path / place) in said
    assert "Permission denied" in said


@pytest.mark.parametrize("command", ["report", "figures", "maps", "decode", "simulate", "run", "demo", "fetch"])
def test_no_rights_where_results_go(command, ended, config, undisturbed, tmp_path, monkeypatch):
    from bdflow.stores import Study

    out = tmp_path / "forbidden"
    out.mkdir()
    voxels = Study(undisturbed).store("betas/subj01").sizes["voxel"]
    np.save(tmp_path / "a.npy", np.ones((1, voxels)))
    words = {
        "report": [config, "--set", f"report.path={out}/report"],
        "figures": [config, "--out", out / "x"],
        "maps": [config, "--out", out / "x"],
        "decode": [config, "a.npy", "--subject", "subj01", "--out", out / "x.zarr"],
        "simulate": [out / "x"],
        "run": [config, "--set", f"study={out}/x"],
        "demo": ["--root", out],
        "fetch": ["nsd", config, "--from", "memory://none/nsd", "--to", out / "x", "--accept-terms"],
    }[command]
    if command == "fetch":
        from bdflow.datasets.nsd import download

        monkeypatch.setattr(download, "listing", lambda *_: [download.Item("a", 3, "")])
    forbid(monkeypatch, out, writing_alone=True)
    said = ended(command, *words)
    monkeypatch.undo()
    assert str(out) in said
    assert "Permission denied" in said
    assert not list(out.iterdir())


def test_a_configuration_that_may_not_be_read(ended, config, monkeypatch):
    forbid(monkeypatch, config)
    assert "Permission denied" in ended("status", config)


def test_directories_named_partial_in_a_study_are_named_and_left_alone(settings, tmp_path, monkeypatch, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path, execution={})), encoding="utf-8")
    ours = [tmp_path / "study.zarr" / name for name in ("x.partial", "betas/subj01/y.partial", "runs/z.partial")]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["bdflow", "run", str(file), "--only", "ingest"])
        _ended(0)
        for folder in ours:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "kept").write_bytes(b"1")
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["bdflow", "verify", str(file), "--repair"])
        _ended(1)
        said = capsys.readouterr().out
        assert all(folder.name in said for folder in ours), said
    assert all((folder / "kept").is_file() for folder in ours)


def _ended(code: int) -> None:
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == code
