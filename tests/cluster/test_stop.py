"""Ctrl-C, and a driver that is killed: nothing keeps running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = """
import os, sys, time
from pathlib import Path
import psutil
from bdflow.cluster import Resources, open_executor

FOLDER = Path(os.environ["FOLDER"])

class Quick:
    def __call__(self, task):
        time.sleep(0.01)

class Sleepy:
    def __call__(self, task):
        (FOLDER / f"pid{os.getpid()}").touch()
        time.sleep(0.01 if task < 20 else 300)

if __name__ == "__main__":
    executor = open_executor(sys.argv[1])
    two = Resources(workers=2)
    try:
        executor.run(Quick, range(4), resources=two)
        if sys.argv[2] == "idle":
            with executor:
                (FOLDER / "idle").touch()
                time.sleep(300)
        executor.run(Sleepy, range(100000), resources=two)
    except KeyboardInterrupt:
        left = [p.cmdline() for p in psutil.Process().children(recursive=True)]
        print("interrupted", [words for words in left if "resource_tracker" not in str(words)], flush=True)
        raise
"""
KINDS = ("serial", "dask", "ray")


def start(kind: str, folder: Path, *, idle: bool = False) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A driver whose workers are all in a long task of its second run, or wait for that one; with every process below
    it.
    """
    script = folder / "driver.py"
    script.write_text(SCRIPT)
    driver = subprocess.Popen(
        [sys.executable, script, kind, "idle" if idle else "busy"],
        env={**os.environ, "FOLDER": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wanted = 1 if kind == "serial" or idle else 2
    until = time.monotonic() + 60
    while len(list(folder.glob("idle" if idle else "pid*"))) < wanted:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1.0)
    return driver, psutil.Process(driver.pid).children(recursive=True)


def alive(processes: list[psutil.Process], timeout: float = 20) -> list[str]:
    _, left = psutil.wait_procs(processes, timeout=timeout)
    return [f"{p.pid} {p.name()}" for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


ONE_OF = pytest.mark.slow(kind="a driver is interrupted or killed")


@pytest.mark.parametrize(
    ("kind", "group", "idle"),
    [
        ("serial", False, False),
        ("dask", False, False),
        pytest.param("dask", True, False, marks=ONE_OF),
        pytest.param("ray", True, False, marks=ONE_OF),
        pytest.param("ray", True, True, marks=ONE_OF),
    ],
)
def test_ctrl_c(kind: str, group: bool, idle: bool, tmp_path: Path) -> None:
    """The signal reaches the driver alone, or, as from a terminal, every process of the group; in a run, or when
    workers wait for the next one.
    """
    driver, below = start(kind, tmp_path, idle=idle)
    (os.killpg if group else os.kill)(driver.pid, signal.SIGINT)
    out, err = driver.communicate(timeout=40)
    assert "interrupted []" in out, (out, err)
    assert driver.returncode == -signal.SIGINT
    # the signal may come while `queue.Empty` is dealt with, which Python then shows before
    own = err.rpartition("During handling of the above exception, another exception occurred:")[2]
    assert own.count("Traceback") == 1, err
    assert err.count("Traceback") == 1 + err.count("_queue.Empty"), err
    assert alive(below) == []


AGENTS = ("ray::RuntimeEnvAgent", "ray::DashboardAgent")


@pytest.mark.parametrize(
    ("kind", "idle"),
    [("dask", False), pytest.param("ray", False, marks=ONE_OF), pytest.param("ray", True, marks=ONE_OF)],
)
def test_a_killed_driver_leaves_nothing_running(kind: str, idle: bool, tmp_path: Path) -> None:
    driver, below = start(kind, tmp_path, idle=idle)
    below = [process for process in below if process.name()[:15] not in [name[:15] for name in AGENTS]]
    workers = [process.pid for process in below]
    assert all(int(file.name[3:]) in workers for file in tmp_path.glob("pid*"))
    driver.kill()
    driver.communicate(timeout=20)
    assert alive(below) == []


@pytest.mark.slow(kind="long checks")
def test_the_agents_of_ray_follow_a_killed_driver(tmp_path: Path) -> None:
    """Idle, they first try for a minute to report the death to a Ray that is gone."""
    driver, below = start("ray", tmp_path)
    driver.kill()
    driver.communicate(timeout=20)
    assert alive(below, timeout=90) == []


def test_close_while_nothing_runs_and_twice(tmp_path: Path) -> None:
    from bdflow.cluster import open_executor

    for kind in KINDS:
        executor = open_executor(kind)  # type: ignore[arg-type]
        executor.close()
        executor.close()
