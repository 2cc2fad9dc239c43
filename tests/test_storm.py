"""Kills at random instants: the same command again ends in the same bytes."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from stores import Store, Study
from stores.journal import entries
from tests.conftest import execution, snapshot

BDFLOW = Path(sys.executable).with_name("bdflow")
MIXED = {
    **execution("dask", 2),
    "features": {"executor": "ray", "workers": 2},
    "reconstruct": {"executor": "ray", "workers": 2},
}


def configuration(settings, root: Path, where: dict) -> Path:
    root.mkdir(exist_ok=True)
    (root / "config.yaml").write_text(yaml.safe_dump(settings(root, execution=where)))
    return root / "config.yaml"


def start(config: Path) -> psutil.Popen:
    command = [str(BDFLOW), "run", str(config), "--until", "evaluate"]
    return psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=(config.parent / "stderr.txt").open("a"))


def finish(config: Path) -> float:
    begin = time.monotonic()
    process = start(config)
    assert process.wait(280) == 0, (config.parent / "stderr.txt").read_text()[-3000:]
    return time.monotonic() - begin


def kill_tree(process: psutil.Popen) -> None:
    """SIGKILL to a process and all it has started, parents first, until none is left."""
    family = [process, *process.children(recursive=True)] if process.is_running() else []
    for member in family:
        for victim in [member, *_children(member)]:
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
    process.wait(30)
    assert not psutil.wait_procs(family, timeout=30)[1]


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory) -> tuple[Path, float]:
    """An uninterrupted run on Dask and Ray, and how long it took."""
    config = configuration(settings, tmp_path_factory.mktemp("undisturbed"), MIXED)
    seconds = finish(config)
    return config.parent / "study.zarr", seconds


@pytest.mark.storm
@pytest.mark.timeout(1800)
def test_ten_kills_of_the_whole_tree_end_in_the_same_bytes(settings, undisturbed, tmp_path):
    reference, seconds = undisturbed
    chance = random.Random(0)
    config = configuration(settings, tmp_path, MIXED)
    progress: list[int] = []
    for _ in range(10):
        process = start(config)
        time.sleep(chance.uniform(0.05, 0.9) * seconds)
        kill_tree(process)
        study = Study(tmp_path / "study.zarr")
        stores = [study.store(path) for path in (study.paths() if study.exists else [])]
        progress.append(sum(int((store.markers() > 0).sum()) for store in stores))
        for store in stores:
            assert list(store.damage()) == [], store.path
    finish(config)
    assert snapshot(tmp_path / "study.zarr") == snapshot(reference)
    assert progress == sorted(progress), "nothing that was marked is lost"


@pytest.mark.storm
@pytest.mark.timeout(900)
def test_killed_while_it_writes_again_and_again(settings, undisturbed, tmp_path):
    """Serial, killed a random moment after each new piece of work has begun, so that kills fall into the writing."""
    reference, _ = undisturbed
    chance = random.Random(1)
    config = configuration(settings, tmp_path, execution("serial"))
    study, kills = Study(tmp_path / "study.zarr"), 0
    for _ in range(10):
        before = len(study.paths()) if study.exists else 0
        process = start(config)
        while process.poll() is None and (len(study.paths()) if study.exists else 0) == before:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3))
        if process.poll() is not None:
            break
        kill_tree(process)
        kills += 1
    finish(config)
    print(f"{kills} kills")
    assert kills >= 3
    assert snapshot(tmp_path / "study.zarr") == snapshot(reference)


@pytest.mark.storm
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "filled"),
    [("dask", "targets/vdvae"), ("ray", "targets/vdvae"), ("ray", "reconstructions/subj01/full")],
    ids=["dask", "ray", "ray while it paints"],
)
def test_a_killed_worker_costs_only_its_partitions(settings, undisturbed, tmp_path, kind, filled):
    reference, _ = undisturbed
    config = configuration(settings, tmp_path, execution(kind, 2))
    process = start(config)
    killed = 0
    deadline = time.monotonic() + 200
    study = Study(tmp_path / "study.zarr")
    while process.poll() is None and time.monotonic() < deadline and not killed:
        time.sleep(0.02)
        if not study.exists or not study.declared(filled):
            continue
        written = (Store(study.path, filled).markers() > 0).sum()
        if written < 1:
            continue
        for child in _children(process):
            if _is_worker(child, kind):
                child.kill()
                killed += 1
                break
    assert process.wait(280) == 0, (tmp_path / "stderr.txt").read_text()[-3000:]
    assert killed == 1
    assert snapshot(study.path) == snapshot(reference)
    attempts = np.concatenate([entry["attempts"] for entry in entries(study.path)])
    assert (attempts > 1).sum() <= 4, "only what the dead worker had in hand was done again"


KILL = """
import os, pathlib, signal

move = pathlib.Path.replace

def replace(self, target):
    if self.suffix == ".partial" and os.environ["KILL_AT"] in str(target):
        try:
            os.close(os.open(os.environ["KILLED"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return move(self, target)

pathlib.Path.replace = replace
"""


@pytest.mark.storm
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "at", "dies"),
    [
        ("dask", "targets/vdvae/latent/c/", False),
        ("ray", "reconstructions/subj01/full/image/c/", False),
        ("serial", "predictions/zarr.json", True),
        ("serial", "targets/vdvae/written/c/", True),
    ],
    ids=["dask", "ray", "a folder of stores", "a mark"],
)
def test_a_process_killed_in_the_middle_of_a_write(settings, undisturbed, tmp_path, monkeypatch, kind, at, dies):
    """SIGKILL after a file is written and before it gets its name."""
    reference, _ = undisturbed
    config = configuration(settings, tmp_path, execution(kind, 1 if kind == "serial" else 2))
    (tmp_path / "kill").mkdir()
    (tmp_path / "kill/sitecustomize.py").write_text(KILL)
    for name, value in {"PYTHONPATH": tmp_path / "kill", "KILL_AT": at, "KILLED": tmp_path / "killed"}.items():
        monkeypatch.setenv(name, str(value))
    process = start(config)
    if dies:
        assert process.wait(280) == -signal.SIGKILL
        assert len(list((tmp_path / "study.zarr").rglob("*.partial"))) == 1
        process = start(config)
    assert process.wait(280) == 0, (tmp_path / "stderr.txt").read_text()[-3000:]
    assert (tmp_path / "killed").exists()
    assert snapshot(tmp_path / "study.zarr") == snapshot(reference)


def _is_worker(process: psutil.Process, kind: str) -> bool:
    try:
        words = " ".join(process.cmdline())
        if kind == "ray":
            return words.startswith("ray::") and "Agent" not in words and "IDLE" not in words
        return "spawn_main" in words and process.cpu_times().user > 1
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


@pytest.mark.storm
def test_three_kills_of_a_serial_run_end_in_the_same_bytes(settings, tmp_path):
    config = configuration(settings, tmp_path / "whole", execution("serial"))
    seconds = finish(config)
    chance = random.Random(2)
    disturbed = configuration(settings, tmp_path / "disturbed", execution("serial"))
    for _ in range(3):
        process = start(disturbed)
        time.sleep(chance.uniform(0.1, 0.95) * seconds)
        kill_tree(process)
    finish(disturbed)
    assert snapshot(disturbed.parent / "study.zarr") == snapshot(config.parent / "study.zarr")
