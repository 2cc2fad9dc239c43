"""Progress: lines where nobody watches, a bar on a terminal."""

import contextlib
import io
import os
import pty
import sys
import threading
import time

import pytest

from bdflow.cluster import Executor, Progress
from bdflow.cluster.progress import duration


def test_plain_lines_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    out = io.StringIO()
    with Progress("features", 90, stream=out) as progress:
        for _ in range(90):
            now += 0.32
            progress.advance()
    lines = out.getvalue().splitlines()
    assert lines[0] == "features: 16/90 partitions in 5.1 s, 3.1/s, 24 s left"
    assert lines[-1] == "features: 90/90 partitions in 29 s, 3.1/s"
    assert len(lines) == 6


def test_what_was_done_before_is_not_rated(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    out = io.StringIO()

    def work() -> None:
        nonlocal now
        with Progress("fit", 12, already=8, unit="blocks", stream=out, every=1) as progress:
            for _ in range(2):
                now += 10
                progress.advance()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        work()
    assert out.getvalue().splitlines() == [
        "fit: 9/12 blocks in 10 s, 10 s each, 30 s left",
        "fit: 10/12 blocks in 20 s, 10 s each, 20 s left",
        "fit: stopped at 10/12 blocks in 20 s, 10 s each",
    ]


def test_it_is_fed_by_an_executor_and_writes_to_stderr(
    opened: dict[str, Executor], capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("first", "second"):
        with Progress(label, 5) as progress:
            opened["serial"].run(lambda: abs, range(5), on_done=progress.advance)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" in ")[0] for line in err.splitlines()] == [
        "first: 5/5 partitions",
        "second: 5/5 partitions",
    ]


def test_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("report", 0):
        pass
    assert capsys.readouterr().err == "report: 0/0 partitions in 0.0 s, -\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    ours, theirs = pty.openpty()
    parts: list[bytes] = []

    def look() -> None:
        with contextlib.suppress(OSError):  # the terminal was closed
            while part := os.read(ours, 1 << 16):
                parts.append(part)

    looking = threading.Thread(target=look)
    looking.start()
    with os.fdopen(theirs, "w") as terminal:
        for label in ("[features]", "guess"):
            with Progress(label, 40, stream=terminal) as progress:
                for _ in range(30):
                    progress.advance()
                    time.sleep(0.01)
    looking.join()
    os.close(ours)
    shown = b"".join(parts).decode()
    for words in ("[features]", "/40", "partitions, ", "/s", "guess: 30/40 partitions in"):
        assert words in shown
    assert "\x1b[" in shown


def test_durations() -> None:
    seconds = (0.04, 9.94, 9.96, 119, 120, 185, 7199, 7200, 7800)
    texts = (
        "0.0 s",
        "9.9 s",
        "10 s",
        "119 s",
        "2 min 00 s",
        "3 min 05 s",
        "119 min 59 s",
        "2 h 00 min",
        "2 h 10 min",
    )
    assert tuple(duration(value) for value in seconds) == texts
    assert sys.modules["bdflow.cluster.progress"]
