"""Workers of Dask that have fallen silent: said, and never ended for it.

A worker tells its scheduler every few seconds that it is there. One in a long call that keeps Python's lock (compiling,
some native code) does not, and is well; one whose event loop stands still does not either, and the run waits for it for
ever. From outside they look alike.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdflow.errors import counted

if TYPE_CHECKING:
    from distributed import Scheduler

log = logging.getLogger(__name__)

SILENT = 120.0  # seconds
LONGEST_STEP = 5.0  # seconds between two looks that count: while this process looks away, it does not hear either


@dataclass
class _Heard:
    at: float  # the scheduler's clock
    silence: float = 0.0
    said: bool = False


class Silence:
    """What the scheduler in this process has heard of its workers."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._heard: dict[str, _Heard] = {}
        self._looked = time.monotonic()

    def look(self, workers: Collection[str]) -> None:
        """Log which of these workers have been silent for `SILENT` seconds, once each, and which are heard again."""
        now = time.monotonic()
        step, self._looked = min(now - self._looked, LONGEST_STEP), now
        self._heard = {address: heard for address, heard in self._heard.items() if address in workers}
        for address, worker in list(self._scheduler.workers.items()):
            if address not in workers:
                continue
            heard = self._heard.setdefault(address, _Heard(worker.last_seen))
            if heard.at != worker.last_seen:
                if heard.said:
                    log.info("The process %d on %s is heard again.", worker.pid, worker.host)
                self._heard[address] = _Heard(worker.last_seen)
                continue
            heard.silence += step
            if heard.silence > SILENT and not heard.said:
                heard.said = True
                log.warning(
                    "A worker, process %d on %s, has not been heard for %s. Either a long call keeps it busy "
                    "(compiling, reading), or it stands still and the run waits for it. bdflow does not end it. If "
                    "this lasts: `py-spy dump -p %d` there shows what it does; `kill -9 %d` ends it, and another "
                    "worker does its tasks again.",
                    worker.pid, worker.host, _minutes(heard.silence), worker.pid, worker.pid,
                )  # fmt: skip


def _minutes(seconds: float) -> str:
    return counted(round(seconds / 60), "minute") if seconds >= 60 else counted(round(seconds), "second")
