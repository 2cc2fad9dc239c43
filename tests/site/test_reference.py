"""The pages that are made from the code: every public name, and every setting with a type, a default and a meaning."""

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

import bdflow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs/site"))
    return importlib.import_module("reference_pages")


def test_every_public_name_has_an_entry(reference):
    page = reference.python_page()
    for name in bdflow.__all__:
        assert f"heading: bdflow.{name}\n" in page or name == "__version__", name


def test_every_setting_has_a_type_and_a_meaning(reference):
    rows = [row for key, model in reference.sections() for row in reference.settings(key, model)]
    assert len(rows) > 130
    assert [row.key for row in rows if not (row.meaning and row.type)] == []
    assert len({row.key for row in rows}) == len(rows)


def test_every_setting_that_tests_know_stands_on_the_page(reference):
    known = yaml.safe_load((ROOT / "tests/study/stale.yaml").read_text(encoding="utf-8"))
    page = reference.settings_page()
    for key in known:
        shown = key.replace("spaces.vdvae", "spaces.NAME").replace("painters.brain_diffuser", "painters.NAME")
        assert f"| {cell(shown)} |" in page, key


def cell(key: str) -> str:
    """A key as the page shows it: a line breaks behind a dot alone."""
    return f"<code>{key.replace('.', '.<wbr>')}</code>"


def test_a_row_says_type_default_meaning_and_what_becomes_stale(reference):
    page = reference.settings_page()
    strength = "number above 0 to 1 | `0.75` | how far the guess is noised, in (0, 1]."
    assert f"| {cell('painters.NAME.strength')} | {strength} | " in page
    workers = "whole number from 1 | `1` | processes, of `dask`"
    assert f"| {cell('execution.STAGE.workers')} | {workers}" in page
    assert f"| {cell('dataset.root')} | path or text | required | " in page
    sessions = "one of<br>• whole number<br>• list of (whole number or text)<br>• "
    assert f"| {cell('dataset.sessions')} | {sessions}" in page


def entries(text: str, section: str) -> list[str]:
    """Names of a section's entries, in a docstring that is rewritten."""
    parts = [block.splitlines() for block in text.split("\n\n")]
    found = [block[2:] for block in parts if block[0].strip() == section]
    return [name for block in found for line in block if line[:1].strip() for name in line.split(", ")]


def test_docstrings_are_read_as_they_are_meant(monkeypatch):
    """Every entry that the page shows is a parameter; no text is taken for an entry, and no entry for text."""
    monkeypatch.syspath_prepend(str(ROOT / "docs/site"))
    rewritten = importlib.import_module("docstrings").rewritten
    seen = 0
    for name in bdflow.__all__:
        of = getattr(bdflow, name)
        if not callable(of) or (isinstance(of, type) and issubclass(of, (Exception, bdflow.Config))):
            continue
        text = rewritten(inspect.getdoc(of) or "")
        shown = entries(text, "Parameters")
        assert set(shown) <= set(inspect.signature(of).parameters), (name, shown)
        assert " : " not in "".join(text.split("Raises")[:1]), name
        seen += len(shown)
    assert seen > 40
    assert rewritten(
        "A.\n\nParameters\n----------\na, b : one,\n    of two. c : more.\n\nd : left as it is"
    ).splitlines()[2:] == [
        "Parameters",
        "----------",
        "a, b",
        "    one, of two.",
        "c",
        "    more.",
        "",
        "d : left as it is",
    ]
    assert rewritten("A.\n\nReturns\n-------\nA node for\neach space.") == "A.\n\n**Returns:** A node for each space."
