"""Two painters of one study, compared on the stimuli that both painted."""

import csv
from io import StringIO

import numpy as np
import pytest

from bdflow.config import parse
from bdflow.report import tables
from bdflow.report.scores import AVERAGE, Scores

VARIANTS = ("bd/full", "bd/only_vdvae", "sd/only_c", "sd/full")


@pytest.fixture
def scores() -> Scores:
    """`sd/full` is better by 0.2 in the first metric and as good in the second; one stimulus has no picture of it."""
    rng = np.random.default_rng(0)
    value = rng.uniform(0.2, 0.6, size=(2, len(VARIANTS), 2, 40))
    value[:, 3, 0] = value[:, 0, 0] + 0.2 + rng.normal(0, 0.05, (2, 40))
    value[:, 3, 1] = value[:, 0, 1] + rng.normal(0, 0.05, (2, 40))
    value[:, 3, :, 7] = np.nan
    return Scores(("subj01", "subj02"), VARIANTS, ("PixCorr", "CLIP"), ("", ""), np.arange(40), value)


def test_systems_are_compared_pair_by_pair(scores: Scores) -> None:
    assert scores.systems == ("bd/full", "sd/full")
    found = scores.between_systems
    assert {key[0] for key in found} == {"subj01", "subj02", AVERAGE}
    for row in scores.rows:
        both = scores.of(row)[[3, 0]]
        for m, metric in enumerate(scores.metrics):
            difference = found[row, "bd/full", "sd/full", metric]
            assert difference.n == 39
            np.testing.assert_allclose(difference.mean, np.nanmean(both[1, m] - both[0, m]))
        assert found[row, "bd/full", "sd/full", "PixCorr"].p < 0.01
        assert found[row, "bd/full", "sd/full", "PixCorr"].mean < -0.15
    assert found["subj01", "bd/full", "sd/full", "CLIP"].p > 0.01


def test_the_report_shows_both_and_their_difference(scores: Scores) -> None:
    table = tables.systems(scores)
    assert [name for name, _ in table.groups] == ["subj01", "subj02", "average of subjects"]
    for _, rows in table.groups:
        assert [row.cells[0] for row in rows] == ["bd/full", "sd/full", "bd/full minus sd/full"]
        assert rows[2].cells[-1] == "39"
        mean, p = rows[2].cells[1]
        assert mean[:5] in ("\u22120.19", "\u22120.20", "\u22120.21")
        assert p == "p = 0.001"
    first = tables.table_1(scores, comparable=False)
    assert [name for name, _ in first.groups] == ["bd/full", "sd/full", "published"]
    (lines,) = (text for name, text in scores.files().items() if name == "differences.csv")
    rows = [row for row in csv.DictReader(StringIO(lines)) if row["other_variant"] == "sd/full"]
    assert {(row["variant"], row["subject"]) for row in rows if row["variant"] == "bd/full"} == {
        ("bd/full", "subj01"), ("bd/full", "subj02"), ("bd/full", AVERAGE)
    }  # fmt: skip
    assert [row["variant"] for row in rows if row["variant"] == "sd/only_c"]


def test_one_painter_alone_is_compared_with_nobody() -> None:
    value = np.zeros((1, 2, 1, 3))
    alone = Scores(("subj01",), ("full", "only_vdvae"), ("PixCorr",), ("",), np.arange(3), value)
    assert alone.systems == ()
    assert alone.between_systems == {}
    assert not tables.systems(alone).groups
    assert tables.table_1(alone, comparable=False).caption.endswith("photos, full")


def test_a_variant_is_described_by_its_painter() -> None:
    """`full` of two painters is painted from different things; a painter of one's own has its variants' names."""
    spaces = {name: {"encoder": name} for name in ("vdvae", "clip_vision", "clip_text", "sd_vae", "sd_text")}
    other = {"kind": "my.painters:Mine", "variants": ["full", "no_sky"]}
    stable = {"kind": "stable_diffusion", "guess": "sd_vae", "vision": None, "text": "sd_text"}
    content = {"study": "s", "dataset": {"root": "d"}, "report": {"path": "r"}, "spaces": spaces}
    config = parse(content | {"painters": {"bd": {}, "sd": {**stable, "variants": ["full", "only_z"]}, "own": other}})
    assert tables.described(config) == {
        "bd/full": "guess, CLIP vision and CLIP text",
        "sd/full": "z and c",
        "sd/only_z": "z, under the empty text",
        "own/full": "full",
        "own/no_sky": "no sky",
    }
    alone = parse(content | {"painters": {"sd": {**stable, "variants": ["full"]}}})
    assert tables.described(alone) == {"full": "z and c"}
