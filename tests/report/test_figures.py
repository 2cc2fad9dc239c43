"""Figures for papers: all are drawn, hold what they should, and come out the same twice."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from bdflow.errors import InputError
from bdflow.report import figures
from bdflow.report.scores import Scores
from bdflow.report.writer import read_stores
from bdflow.study.stage import Context
from tests.report.test_report import SUBJECTS, TEST, VARIANTS, build

NAMES = {
    "scores", "distributions", "reconstructions_best", "reconstructions_median", "reconstructions_worst", "variants",
    "decoding",
}  # fmt: skip


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return build(tmp_path_factory.mktemp("study"))


@pytest.mark.slow(kind="long checks")
def test_every_figure_is_drawn_twice_the_same(context: Context, tmp_path: Path) -> None:
    files = figures.write(context, tmp_path / "a")
    assert {file.name for file in files} == {f"{name}.{suffix}" for name in NAMES for suffix in ("png", "svg")}
    figures.write(context, tmp_path / "b")
    for file in files:
        if file.suffix == ".png":
            image = Image.open(file).convert("L")
            assert min(image.size) > 200
            assert image.getextrema()[0] < 128, "something is drawn"
        else:
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    text = (tmp_path / "a/scores.svg").read_text()
    for word in (*SUBJECTS, *VARIANTS, "PixCorr", "SSIM (paper)"):
        assert f">{word}" in text, "text stays text, to be edited"
    assert "SwAV" not in text, "what is missing is not drawn"


def test_published_scores_stand_beside_comparable_ones_alone(context: Context) -> None:
    scores = Scores.read(read_stores(context), context.config, context.painted)
    for comparable in (False, True):
        figure = figures.score_figure(scores, comparable=comparable)
        crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
        assert [float(line.get_xdata()[0]) for line in crosses] == ([0.305, 0.143] if comparable else [])


def test_sheets_show_the_best_by_the_first_metric(context: Context) -> None:
    scores = Scores.read(read_stores(context), context.config, context.painted)
    ranked = figures._ranked(scores)
    assert sorted(ranked) == sorted(TEST.tolist())
    mean = dict(zip(scores.stimulus_id.tolist(), scores.average[0, 0], strict=True))
    assert ranked == sorted(ranked, key=lambda stimulus_id: -mean[stimulus_id])
    figure = figures.subject_figure(context, read_stores(context), scores, ranked[:3])
    names = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
    assert names == ["shown", "subj01, guess", *SUBJECTS]


def test_without_matplotlib_it_says_what_to_install(context: Context, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'bdflow\[figures\]'"):
        figures.write(context, tmp_path / "c")
    assert not (tmp_path / "c").exists()
