"""docs/datasets.md: the screen of its example, the methods of the contract, and the kinds that ship."""

import re
import textwrap
from pathlib import Path

from bdflow import api
from bdflow.config import parse
from bdflow.datasets.contract import Dataset, Numbered
from bdflow.datasets.reader import DATASETS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")


def test_the_check_says_what_the_page_shows(tmp_path, monkeypatch):
    """Every line of the page's screen; of one that is abridged by `...`, its beginning."""
    monkeypatch.chdir(ROOT)
    config = parse(
        {
            "study": str(tmp_path / "study.zarr"),
            "subjects": ["sub-01"],
            "dataset": {
                "kind": "laion_fmri",
                "root": "tests/samples/laion_fmri",
                "mask": "laion/laiongeneral",
                "split": "dataset:shared/tau",
                "options": {"splits": "tests/samples/laion_fmri/splits"},
            },
            "spaces": {"clip_vision": {"encoder": "clip_vision"}},
            "report": {"path": str(tmp_path / "report")},
        }
    )
    said = " ".join(api.check_dataset(config).text().split())
    (screen,) = re.findall(r"\n\n((?:    .*\n|\n)+)", PAGE[PAGE.index("(abridged):") :])[:1]
    shown = [line.strip() for line in textwrap.dedent(screen).splitlines() if line.strip()]
    assert len(shown) > 12
    for line in shown:
        assert " ".join(line.removesuffix("...").split()) in said, line


def test_the_page_has_every_method_of_the_contract():
    rows = [line for line in PAGE[PAGE.index("## A class of your own") :].splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)", row.split("|")[1])}
    members = {name for of in (Dataset, Numbered) for name in vars(of) if not name.startswith("_")}
    assert named == members | {"default_mask", "__init__"}


def test_the_page_has_every_kind():
    table = PAGE[: PAGE.index("```yaml")]
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))) == set(DATASETS)
