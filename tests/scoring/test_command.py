"""`bdflow score` from the command line, and what it writes."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import bdflow
from bdflow.cli.main import app
from bdflow.report import score_page
from tests.support.planted_pictures import planted, save

METRICS = ["--metrics", "PixCorr,SSIM", "--bundle", "tiny"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("own")
    photos, made = planted(n=12)
    names = [f"<{i}> & é" for i in range(12)]
    save(root / "made" / "subj01", made, names=names)
    save(root / "made" / "subj02", np.roll(made, 1, axis=0), names=names)
    return save(root / "photos", photos, names=names), root / "made"


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_table_and_a_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "scores"
    done = CliRunner().invoke(app, ["score", *map(str, folders), *METRICS, "--out", str(out)])
    assert done.exit_code == 0, done.output
    expected = bdflow.score(*folders, ["PixCorr", "SSIM"], bundle="tiny")
    assert expected.table() in done.output
    assert sorted(file.name for file in out.iterdir()) == ["index.html", "scores.csv", "table.csv"]
    with (out / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["set"] for row in rows] == ["subj01"] * 12 + ["subj02"] * 12
    for name, one in expected.sets.items():
        mine = [row for row in rows if row["set"] == name]
        assert [row["stimulus_id"] for row in mine] == list(one.stimuli)
        for metric, values in one.values.items():
            np.testing.assert_allclose([float(row[metric]) for row in mine], values, rtol=1e-8)
    with (out / "table.csv").open(encoding="utf-8", newline="") as file:
        table = {(row["set"], row["metric"]): row for row in csv.DictReader(file)}
    mean, low, high, n = expected.sets["subj02"].estimates["SSIM (paper)"]
    row = table["subj02", "SSIM (paper)"]
    assert [float(row[key]) for key in ("mean", "low", "high", "n")] == pytest.approx([mean, low, high, n])


def test_the_page_stands_alone_and_shows_before_it_tells(folders: tuple[Path, Path], tmp_path: Path) -> None:
    found = bdflow.score(*folders, "published", bundle="tiny", out=tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag != "script"
        source = attributes.get("src") or attributes.get("href") or ""
        assert source.startswith("data:image/webp") or source in ("", "scores.csv", "table.csv"), source
    assert "http" not in re.sub(r"data:[^\"]+", "", text)
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == ["pictures", "scores", "distributions", "making"]
    assert sum(tag == "img" for tag, _ in page.tags) == 2 * 2 * 3 * score_page.SHOWN, "photo and picture, three strips"
    (line,) = [line for line in page.text.splitlines() if line.startswith("missing")]
    assert "AlexNet(2), AlexNet(5), Inception" in line
    for one in found.sets.values():
        best = one.stimuli[score_page.ordered(one)[0]]
        assert best in page.text
        for metric in found.metrics:
            assert f"{one.estimates[metric].mean:.3f}".replace("-", "\u2212") in page.text


def test_the_order_is_by_mean_rank() -> None:
    values = {"PixCorr": np.array([0.1, 0.9, np.nan, 0.5]), "EffNet-B": np.array([0.9, 0.2, 0.1, 0.5])}
    scores = bdflow.scoring.result.SetScores(tuple("abcd"), 1, values, {})
    assert score_page.ordered(scores) == [2, 1, 3, 0]  # ranks: 1; 1 and 2; 2 and 3; 3 and 4


def test_what_fails_leaves_nothing(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(page: object) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr(score_page, "html", broken)
    with pytest.raises(RuntimeError):
        bdflow.score(*folders, "PixCorr", out=tmp_path / "out")
    (folders[0] / "more.png").write_bytes(b"")
    with pytest.raises(bdflow.InputError):
        bdflow.score(*folders, "PixCorr", out=tmp_path / "out")
    (folders[0] / "more.png").unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_told_without_a_traceback(folders: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(app, ["score", str(folders[0]), str(folders[1] / "nowhere")])
    assert isinstance(done.exception, bdflow.InputError)
    assert "correct the path" in str(done.exception)
