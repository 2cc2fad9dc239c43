"""Benchmarks of painting: what is counted is what the page says; what is measured has its limit beside it."""

import os
from pathlib import Path

import pytest

from bdflow.benchmarks import guidance, preparing
from bdflow.benchmarks.guidance import Step

PAGE = Path(__file__).parents[2] / "docs" / "painting.md"


@pytest.mark.slow(kind="compiled and recorded")
def test_the_page_has_the_arithmetic_of_a_step_as_it_is_counted() -> None:
    assert guidance.table() in PAGE.read_text(encoding="utf-8")


def test_each_row_is_compared_with_the_one_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "counted", lambda name: Step(2e12, 1.9e12, 1.71e12))
    rows = [line.split(" | ")[1] for line in guidance.table().splitlines()[2:]]
    assert rows == ["2.000 TFLOP", "1.900 TFLOP, 5.0% less", "1.710 TFLOP, 10.0% less"]


def test_what_is_prepared_over_threads_is_measured_beside_the_machines_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preparing, "prior_shapes", lambda: [(2, 4, 4)])
    monkeypatch.setattr(preparing, "SIZE", 48)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    found = preparing.main(["--threads", "1", "2", "--pictures", "3"])
    assert os.environ["OMP_NUM_THREADS"] == "5"
    for row in found["threads"].values():
        assert set(row) == {"draws of a guess", "a photo resized to 48 px"}
        assert all(len(values) == 2 and min(values) > 0 for of in row.values() for values in of.values())
    said = capsys.readouterr().out
    assert said.count("of the processor") == 4
    assert "limit of the machine" in said
    with pytest.raises(SystemExit):
        preparing.main(["--threads", "4", "--pictures", "3"])
