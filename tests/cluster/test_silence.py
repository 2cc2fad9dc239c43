"""A worker whose process stands still is named, and is not ended; the run goes on as soon as it does."""

import logging
import os
import re
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

from bdflow.cluster import Completed, Resources
from bdflow.cluster.executors import silence

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Stopping:
    """The first to take task 3 stops its whole process, as SIGSTOP does; a file says which."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, task: int) -> int:
        if task == 3 and not self.file.exists():
            self.file.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return task


class Waking(logging.Handler):
    """Sends a signal to the stopped process, as soon as a warning names it."""

    def __init__(self, file: Path, sent: signal.Signals) -> None:
        super().__init__()
        self.file, self.sent, self.lines = file, sent, []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        named = re.search(r"process (\d+) on", line)
        if named and self.file.exists() and named[1] == self.file.read_text():
            self.lines.append((record.levelname, line))
            if record.levelno == logging.WARNING:
                os.kill(int(named[1]), self.sent)


@pytest.mark.parametrize(
    ("sent", "attempts"),
    [(signal.SIGCONT, 1), pytest.param(signal.SIGKILL, 2, marks=pytest.mark.slow(kind="executors"))],
)
def test_a_worker_that_stands_still_is_named(sent, attempts, opened, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(silence, "SILENT", 1.0)
    caplog.set_level(logging.INFO, silence.log.name)
    file, done = tmp_path / "stopped", list[Completed]()
    waking = Waking(file, sent)
    silence.log.addHandler(waking)
    try:
        opened["dask"].run(partial(Stopping, file), range(6), resources=Resources(workers=2), on_done=done.append)
    finally:
        silence.log.removeHandler(waking)
    assert sorted(found.result for found in done) == list(range(6))
    assert next(found.attempts for found in done if found.index == 3) == attempts
    (level, line), *_ = waking.lines
    assert level == "WARNING"
    assert f"process {file.read_text()} on 127.0.0.1, has not been heard for" in line
    assert f"`kill -9 {file.read_text()}` ends it" in line


def looked(*steps: tuple[float, float], monkeypatch: Any) -> list[float]:
    """Seconds of silence after each step: how long after the last look, and what the scheduler heard last."""
    clock = [0.0]
    monkeypatch.setattr(silence.time, "monotonic", lambda: clock[0])
    worker = SimpleNamespace(last_seen=0.0, pid=7, host="node1")
    watching, found = silence.Silence(SimpleNamespace(workers={"a": worker, "other": worker})), []
    watching.look(["a"])
    for seconds, heard in steps:
        clock[0], worker.last_seen = clock[0] + seconds, heard
        watching.look(["a"])
        found.append(watching._heard["a"].silence)
    return found


def test_time_in_which_nobody_listened_is_no_silence(monkeypatch, caplog):
    caplog.set_level(logging.INFO, silence.log.name)
    assert looked((1, 0), (3600, 0), (1, 0), monkeypatch=monkeypatch) == [1, 6, 7]
    assert not caplog.records


def test_it_is_said_once_and_taken_back(monkeypatch, caplog):
    caplog.set_level(logging.INFO, silence.log.name)
    steps = [(5.0, 0.0)] * 30 + [(1.0, 9.0)] * 2
    assert looked(*steps, monkeypatch=monkeypatch)[-2:] == [0, 1]
    warning, again = (record.getMessage() for record in caplog.records)
    assert "process 7 on node1, has not been heard for 2 minutes" in warning
    assert again == "The process 7 on node1 is heard again."
