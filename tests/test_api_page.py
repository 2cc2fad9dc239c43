"""The examples of docs/api.md, run as they stand."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/api.md"


def test_the_examples_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, verbose=False)
    assert tried >= 20
    assert not failed
