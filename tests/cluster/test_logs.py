"""What workers log reaches the driver's log, wherever they are."""

import logging
import sys

import cloudpickle
import pytest

from bdflow.cluster import Executor, Resources

cloudpickle.register_pickle_by_value(sys.modules[__name__])
log = logging.getLogger("bdflow.models.of_a_test")
TWO = Resources(workers=2)


class Talkative:
    """Logs when it is made, and of every task."""

    def __init__(self) -> None:
        log.warning("made for %s", "work")

    def __call__(self, task: int) -> int:
        log.info("task %d", task)
        log.debug("not for users")
        if task == 9:
            log.warning("about to fail")
            raise ValueError("task 9")
        return task


class TalkativePhases(Talkative):
    def prepare(self, task: int) -> int:
        log.info("read %d", task)
        return task

    def work(self, inputs: int) -> int:
        return self(inputs)

    def finish(self, task: int, made: int) -> int:
        log.info("written %d", task)
        return made


@pytest.fixture(autouse=True)
def level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bdflow")


def records(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return sorted((record.levelname, record.getMessage()) for record in caplog.records if record.name == log.name)


def test_every_line_arrives_before_its_task_is_done(executor: Executor, caplog: pytest.LogCaptureFixture) -> None:
    """With its logger and level; what several workers say alike, once."""
    early: list[int] = []

    def on_done(done) -> None:
        early.extend([done.index] if f"task {done.index}" not in caplog.messages else [])

    executor.run(Talkative, range(5), resources=TWO, on_done=on_done)
    assert early == []
    assert records(caplog) == [*(("INFO", f"task {n}") for n in range(5)), ("WARNING", "made for work")]


def test_of_every_phase(executor: Executor, caplog: pytest.LogCaptureFixture) -> None:
    executor.run(TalkativePhases, range(3), resources=TWO)
    expected = [("INFO", f"{what} {n}") for what in ("read", "task", "written") for n in range(3)]
    assert records(caplog) == [*expected, ("WARNING", "made for work")]


def test_of_a_task_that_fails(executor: Executor, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="task 9"):
        executor.run(Talkative, [9], resources=TWO)
    assert ("WARNING", "about to fail") in records(caplog)
