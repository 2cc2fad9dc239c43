"""Log records of worker processes, which have no screen: collected there, carried by answers, logged by the driver."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

ROOT = "bdflow"
"""The logger above all of the package's own."""


@dataclass(frozen=True)
class Line:
    """One record: its logger's name, its level, and the message with its arguments filled in."""

    logger: str
    level: int
    message: str

    def log(self) -> None:
        """Log it again, in this process."""
        logging.getLogger(self.logger).log(self.level, "%s", self.message)


class Collector(logging.Handler):
    """Keeps the package's records of this process until they are taken; nothing else shows them meanwhile."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: list[Line] = []
        self._taking = threading.Lock()

    def attach(self) -> None:
        """Collect from now on."""
        root = logging.getLogger(ROOT)
        root.addHandler(self)
        root.setLevel(logging.INFO)
        root.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        with self._taking:
            self._lines.append(Line(record.name, record.levelno, record.getMessage()))

    def taken(self) -> tuple[Line, ...]:
        """The records since last time."""
        with self._taking:
            lines, self._lines = tuple(self._lines), []
        return lines
