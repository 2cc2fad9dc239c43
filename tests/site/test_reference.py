"""The pages that are made from the code: every public name, and every setting with a type, a default and a meaning."""

import importlib
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
        assert f"| `{shown}` |" in page, key


def test_a_row_says_type_default_meaning_and_what_becomes_stale(reference):
    page = reference.settings_page()
    assert (
        "| `painters.NAME.strength` | number above 0 to 1 | `0.75` | how far the guess is noised, in (0, 1]. | " in page
    )
    assert "| `execution.STAGE.workers` | whole number from 1 | `1` | processes. | nothing |" in page
    assert "| `dataset.root` | path or text | required | " in page
