"""One process at a time on a directory."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from bdflow.cluster import Executor, Resources
from bdflow.stores import StoreError
from bdflow.stores.locks import exclusive

HOLD = """
import sys, time
from bdflow.stores.locks import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_told_who(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError) as caught, exclusive(tmp_path):
            pass
        for words in (str(tmp_path), f"process {holder.pid} on ", "What to do: wait"):
            assert words in str(caught.value)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with exclusive(tmp_path):
        pass


def test_twice_in_one_process(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(StoreError, match="this very process"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def _wait(up: Event) -> None:
    up.set()
    time.sleep(30)


def test_children_do_not_inherit_it(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    up = fork.Event()
    with exclusive(tmp_path):
        forked = fork.Process(target=_wait, args=(up,))
        forked.start()
        assert up.wait(30)
        spawned = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        with exclusive(tmp_path):
            pass
    finally:
        forked.kill()
        spawned.kill()
        forked.join()
        spawned.wait()


def test_workers_do_not_inherit_it(opened: dict[str, Executor], tmp_path: Path) -> None:
    with exclusive(tmp_path):
        opened["dask"].run(lambda: abs, range(3), resources=Resources(workers=3))
    with exclusive(tmp_path):
        pass


def test_it_needs_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), exclusive(tmp_path / "nowhere"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), exclusive(tmp_path / "file"):
        pass
