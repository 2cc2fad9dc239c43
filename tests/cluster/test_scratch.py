"""What a killed run leaves outside its study carries the study's name, and the next run of it sweeps it."""

import signal
import subprocess
import sys
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.synchronize import SemLock
from pathlib import Path

import psutil
import pytest

from bdflow.cluster import open_executor
from bdflow.cluster.scratch import SEMAPHORES, Scratch

SCRIPT = """
import sys
from pathlib import Path
from bdflow.cluster import Resources, open_executor
from bdflow.cluster.scratch import Scratch

def make():
    import time
    def work(task):
        print("working", flush=True)
        time.sleep(600)
    return work

if __name__ == "__main__":
    scratch = Scratch.of(sys.argv[1], Path(sys.argv[1]) / "study.zarr.scratch/workers")
    with open_executor("dask", scratch=scratch) as executor:
        executor.run(make, [1, 2], resources=Resources(workers=2))
"""


def left(scratch: Scratch) -> tuple[list[Path], list[Path]]:
    folders = list(scratch.folder.glob("*")) if scratch.folder and scratch.folder.exists() else []
    return folders, list(SEMAPHORES.glob(f"sem.{scratch.name}-*"))


@pytest.fixture
def scratch(tmp_path) -> Scratch:
    return Scratch.of(str(tmp_path), tmp_path / "study.zarr.scratch/workers")


def test_what_a_killed_cluster_left_is_swept(tmp_path, scratch):
    other = Scratch.of("another", scratch.folder)
    kept = other.make()
    (tmp_path / "script.py").write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    process = psutil.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={"PYTHONPATH": root},
    )
    assert process.stdout.readline() == b"working\n"
    family = [process, *process.children(recursive=True)]
    for member in family:
        member.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family)
    folders, semaphores = left(scratch)
    assert [folder for folder in folders if folder.name.startswith(scratch.name)]
    assert semaphores
    scratch.sweep()
    assert left(scratch) == ([kept], [])
    other.sweep()
    assert list(tmp_path.glob("*.scratch")) == []


def test_a_cluster_that_ends_leaves_nothing(tmp_path, scratch):
    with open_executor("dask", scratch=scratch) as executor:
        executor.run(lambda: str, [1])
        assert left(scratch)[0]
    assert left(scratch) == ([], [])
    assert list(tmp_path.glob("*.scratch")) == []


@pytest.mark.parametrize("library", [None, "joblib"])
def test_names_of_semaphores_are_as_before_afterwards(scratch, library, monkeypatch):
    monkeypatch.setattr(SemLock, "_make_name", staticmethod(SemLock._make_name))  # joblib's import changes it for good
    if library:
        loky = import_module("joblib.externals.loky.backend")
        monkeypatch.setattr(SemLock, "_make_name", staticmethod(loky._make_name))

    def name() -> str:
        return get_context("spawn").Lock()._semlock.name

    before = name().rpartition("-")[0]
    with scratch.named_semaphores():
        assert name().rpartition("-")[0] == f"/{scratch.name}"
    assert name().rpartition("-")[0] == before != f"/{scratch.name}"
    assert left(scratch) == ([], [])
