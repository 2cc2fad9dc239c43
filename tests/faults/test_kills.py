"""Real kills, a handful: the same command again ends in the same bytes.

A crash at every write boundary of a store is simulated by `tests/stores/test_crashes.py`; here whole processes die.
"""

import os
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

from bdflow.stores import Store, Study
from bdflow.stores.journal import entries
from tests.conftest import execution, snapshot

BDFLOW = Path(sys.executable).with_name("bdflow")
MIXED = {
    **execution("dask", 2),
    "features": {"executor": "ray", "workers": 2},
    "reconstruct": {"executor": "ray", "workers": 2},
}


def configuration(settings, root: Path, where: dict) -> Path:
    root.mkdir(exist_ok=True)
    (root / "config.yaml").write_text(yaml.safe_dump(settings(root, execution=where), sort_keys=False))
    return root / "config.yaml"


def start(config: Path) -> psutil.Popen:
    command = [str(BDFLOW), "run", str(config), "--until", "evaluate"]
    return psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=(config.parent / "stderr.txt").open("a"))


def finish(config: Path) -> None:
    assert start(config).wait(280) == 0, (config.parent / "stderr.txt").read_text()[-3000:]


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


@pytest.mark.slow(kind="driver killed (kill -9, with its workers)")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("where", [MIXED, execution("serial")], ids=["dask and ray", "serial"])
def test_kills_of_the_whole_tree_end_in_the_same_bytes(settings, undisturbed, tmp_path, where, seed):
    """Two kills, each a random moment after a random number of stores is begun: they fall into the writing."""
    chance = random.Random(seed)
    config = configuration(settings, tmp_path, where)
    study, kills, progress = Study(tmp_path / "study.zarr"), 0, [0]
    for begun in sorted(chance.sample(range(len(Study(undisturbed).paths()) * 3 // 4), 2)):  # evaluation is left
        process = start(config)
        while process.poll() is None and (len(study.paths()) if study.exists else 0) < begun:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3))
        kills += process.poll() is None
        kill_tree(process)
        stores = [study.store(path) for path in (study.paths() if study.exists else [])]
        progress.append(sum(int((store.markers() > 0).sum()) for store in stores))
        for store in stores:
            assert list(store.damage()) == [], store.path
    finish(config)
    assert kills == 2
    assert snapshot(study.path) == snapshot(undisturbed)
    assert progress == sorted(progress), "nothing that was marked is lost"


@pytest.mark.slow(kind="worker killed")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "filled"),
    [
        ("dask", "targets/vdvae/subj01"),
        ("ray", "targets/vdvae/subj01"),
        ("ray", "reconstructions/brain_diffuser/subj01/full"),
    ],
    ids=["dask", "ray", "ray while it paints"],
)
def test_a_killed_worker_costs_only_its_partitions(settings, undisturbed, tmp_path, kind, filled):
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
    assert snapshot(study.path) == snapshot(undisturbed)
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


@pytest.mark.slow(kind="a process is killed while it writes")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "at", "dies"),
    [
        ("dask", "targets/vdvae/subj01/latent/c/", False),
        ("ray", "reconstructions/brain_diffuser/subj01/full/image/c/", False),
        ("serial", "predictions/zarr.json", True),
        ("serial", "targets/vdvae/subj01/written/c/", True),
    ],
    ids=["dask", "ray", "a folder of stores", "a mark"],
)
def test_a_process_killed_in_the_middle_of_a_write(settings, undisturbed, tmp_path, monkeypatch, kind, at, dies):
    """SIGKILL after a file is written and before it gets its name."""
    config = configuration(settings, tmp_path, execution(kind, 1 if kind == "serial" else 2))
    (tmp_path / "kill").mkdir()
    (tmp_path / "kill/sitecustomize.py").write_text(KILL)
    inherited = os.environ.get("PYTHONPATH", "")
    path = f"{tmp_path / 'kill'}{os.pathsep}{inherited}".rstrip(os.pathsep)
    for name, value in {"PYTHONPATH": path, "KILL_AT": at, "KILLED": tmp_path / "killed"}.items():
        monkeypatch.setenv(name, str(value))
    process = start(config)
    if dies:
        assert process.wait(280) == -signal.SIGKILL
        assert len(list((tmp_path / "study.zarr").rglob("*.partial"))) == 1
        process = start(config)
    assert process.wait(280) == 0, (tmp_path / "stderr.txt").read_text()[-3000:]
    assert (tmp_path / "killed").exists()
    assert snapshot(tmp_path / "study.zarr") == snapshot(undisturbed)


def _is_worker(process: psutil.Process, kind: str) -> bool:
    try:
        words = " ".join(process.cmdline())
        if kind == "ray":
            return words.startswith("ray::") and "Agent" not in words and "IDLE" not in words
        return "spawn_main" in words and process.cpu_times().user > 1
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
