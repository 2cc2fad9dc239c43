"""What bdflow logged; what other libraries log beside it (Dask, when a machine stalls) is none of a test's business."""

import logging

import pytest


def records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Records of bdflow's own loggers, in order."""
    return [record for record in caplog.records if record.name.partition(".")[0] == "bdflow"]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Their messages."""
    return [record.getMessage() for record in records(caplog)]


def text(caplog: pytest.LogCaptureFixture) -> str:
    """Their messages, a line each."""
    return "\n".join(lines(caplog))
