"""What `bdflow status` shows: on narrow terminals, and of many stale stores."""

import pytest
from typer.testing import CliRunner

from bdflow import api
from bdflow.cli.main import app
from bdflow.cli.status import shortened, summary, table
from bdflow.pipeline import Row
from bdflow.stores import State

LONG = "decoders/subj01/trials-faces_words_places_bodie_cff0e2"
ROWS = [
    Row("betas/subj01", State("sealed", 4, 4), "1092 trial x 868 voxel", 1_700_000),
    Row(LONG, State("partial", 3, 4), "1 alpha x 64 stimulus x 300 train_stimulus", 95_000),
    Row("metrics/brain_diffuser/subj01", State("absent"), "", 0),
    Row("targets/clip_vision/shared", State("damaged", why=["zarr.json: gone"]), "", 0),
    Row(
        "predictions/subj01/vdvae", State("stale", 4, 4, ["upstream store betas/subj01 was made differently"]), "2 x", 5
    ),
]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200, None])
def test_no_line_is_wider_than_the_terminal_and_every_state_is_whole(width):
    head, *lines = table(ROWS, width)
    assert width is None or max(map(len, (head, *lines))) <= width
    assert [line.split()[-1] for line in lines] == [row.state.kind for row in ROWS]
    assert head.split()[-1] == "state"
    assert [("4/4" in line, "3/4" in line) for line in lines[:2]] == [(True, False), (False, True)]
    if width is None or width >= 130:
        assert LONG in lines[1]
        assert "64 stimulus x 300" in lines[1]
    else:
        assert lines[1].startswith("dec")
        assert "cff0e2" in lines[1], "the end of a name tells designs apart"


def test_at_80_columns_shapes_keep_their_numbers():
    assert "1092 x 868" in table(ROWS, 80)[1]


def test_names_lose_their_middle():
    assert shortened("targets/vdvae", 13) == "targets/vdvae"
    assert shortened("reconstructions/brain_diffuser/subj01/full", 20) == "recons...subj01/full"
    assert len(shortened(LONG, 21)) == 21


def test_a_line_sums_up():
    assert summary(ROWS) == "5 stores: 1 sealed, 1 partial, 1 stale, 1 damaged, 1 absent; 1.7 MiB on disk"


def test_a_reason_stands_once_however_many_stores_it_concerns(config):
    every = api.status(config)
    said = CliRunner().invoke(app, ["status", str(config), "--set", "dataset.bad_voxels=refuse"]).output
    stale = [
        row for row in api.status(api.load_config(config, ["dataset.bad_voxels=refuse"])) if row.state.kind == "stale"
    ]
    grouped = api.stale_by_reason(stale)
    own = 'settings.dataset.bad_voxels: made with "drop", now "refuse"'
    assert set(grouped) == {own, "made from stores that were made differently"}
    assert grouped[own] == ["responses/subj01/averaged", "responses/subj02/averaged"]
    assert sorted(path for paths in grouped.values() for path in paths) == sorted(row.path for row in stale)
    assert said.count(own) == 1
    assert f"stale, {own} (2 stores):\n  responses/subj01/averaged, responses/subj02/averaged\n" in said
    assert f"{len(every)} stores: {len(every) - len(stale)} sealed, 0 partial, {len(stale)} stale;" in said
