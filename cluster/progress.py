"""How far a run is: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import IO, Any


class Progress:
    """Counts what is done of `total`; `advance` fits `Executor.run(on_done=...)`.

    Parameters
    ----------
    label : what is being done.
    total : how many there are, those done before included.
    already : how many were done before (they do not count for the rate).
    unit : what is counted.
    stream : where to write (default: stderr at that moment).
    every : least seconds between two plain lines.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        already: int = 0,
        unit: str = "partitions",
        stream: IO[str] | None = None,
        every: float = 5.0,
    ) -> None:
        self.label, self.total, self.already, self.unit = label, total, already, unit
        self.done = already
        self._stream, self._every = stream, every
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        stream = self._stream if self._stream is not None else sys.stderr
        self._out = stream
        self._start = self._said = time.monotonic()
        if stream.isatty():
            self._open_bar(stream)
        return self

    def advance(self, completed: object = None) -> None:
        """One more is done."""
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=self._rate())
            return
        now = time.monotonic()
        if now - self._said >= self._every and self.done < self.total:
            self._said = now
            self._write(self._line())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._write(self._last_line(stopped=kind is not None))

    def _open_bar(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}, {task.fields[rate]},", markup=False),
            TimeElapsedColumn(),
            TextColumn("+"),
            TimeRemainingColumn(),
            console=Console(file=stream),
            transient=True,
        )
        self._task = self._bar.add_task(self.label, total=self.total, completed=self.already, unit=self.unit, rate="-")
        self._bar.start()

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()

    def _rate(self) -> str:
        seconds = time.monotonic() - self._start
        fresh = self.done - self.already
        if not fresh or not seconds:
            return "-"
        if fresh >= seconds:
            return f"{fresh / seconds:.1f}/s"
        return f"{duration(seconds / fresh)} each"

    def _line(self) -> str:
        seconds = time.monotonic() - self._start
        fresh = self.done - self.already
        left = duration((self.total - self.done) * seconds / fresh)
        count = f"{self.done}/{self.total} {self.unit} in {duration(seconds)}"
        return f"{self.label}: {count}, {self._rate()}, {left} left"

    def _last_line(self, *, stopped: bool) -> str:
        count = f"{self.done}/{self.total} {self.unit}"
        took = duration(time.monotonic() - self._start)
        end = "stopped at " if stopped else ""
        return f"{self.label}: {end}{count} in {took}, {self._rate()}"


def duration(seconds: float) -> str:
    """Seconds as people read them: `0.4 s`, `16 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
