"""docs/own_data.md and docs/arrays.md, as a user follows them: the page's code, run, and its dataset opened."""

import re
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

from bdflow import api
from bdflow.config import OF_DATASET, parse
from bdflow.datasets.arrays.forms import SPLITS, STIMULI, SUBJECT
from tests.datasets.arrays.made import opened
from tests.support import pages

PAGE = pages.text_of("own_data.md")
(CODE,), (YAML,) = ([block.text for block in pages.blocks("own_data.md", kind)] for kind in ("python", "yaml"))


@pytest.fixture
def written(tmp_path, monkeypatch):
    """What the page's code leaves behind: its variables, and `own.zarr` in the working folder."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(CODE, "own_data.md", "exec"), names)
    return names


def test_the_dataset_of_the_page_opens_as_it_was_written(written):
    given = yaml.safe_load(YAML)
    data = opened(given["dataset"]["root"])
    assert given["dataset"]["kind"] == "arrays"
    assert list(data.subjects()) == given["subjects"]
    assert list(data.stimuli()) == written["ids"].tolist()
    assert np.array_equal(data.pictures(data.stimuli()), written["pictures"])
    assert data.picture_shape() == (64, 64)
    assert data.captions(["picture 07.png"]) == [["picture number 7"]]
    assert data.captions_per_stimulus() == 1
    split = data.splits()[given["dataset"]["split"].removeprefix(OF_DATASET)]
    assert split.test == {f"picture {n:02d}.png" for n in range(6)}
    assert split.train == set(data.stimuli()) - split.test
    for name, (brain, early, volumes, shown, session, ncsnr, affine) in written["subjects"].items():
        assert data.sessions(name) == ("ses-01", "ses-02")
        trials = data.trials(name)
        assert trials.stimulus.tolist() == shown.tolist()
        assert trials.session.tolist() == session.tolist()
        assert trials.index.tolist() == [*range(48), *range(48)]
        assert data.grid(name).shape == brain.shape
        assert np.array_equal(data.grid(name).affine, affine)
        assert np.array_equal(data.mask(name, None), brain)
        assert np.array_equal(data.mask(name, given["dataset"]["mask"]), early)
        ceiling = data.noise_ceiling(name)
        assert ceiling.unit == "ncsnr"
        assert np.array_equal(ceiling.values[brain], ncsnr[brain].astype("f4"))
        second = data.betas(name, "ses-02", early)
        assert second.valid.all()
        assert np.array_equal(second.values, volumes[early].T[48:].astype("f4"))


def test_the_dataset_of_the_page_is_one_that_xarray_opens(written):
    found = xr.open_datatree("own.zarr", engine="zarr", chunks={}, consolidated=False)
    assert set(found["subjects"].children) == {"anna", "ben"}
    assert found["subjects/anna/beta"].dims == ("trial", "voxel")


def test_subjects_written_one_by_one_as_the_page_says(written, tmp_path):
    tree, where = written["tree"], tmp_path / "one by one.zarr"
    (call,) = re.findall(r"`dataset\.to_zarr\((.*?)\)`", PAGE, re.DOTALL)
    assert "own.zarr" in call
    rest = {name: part for name, part in tree.items() if not name.startswith("/subjects")}
    same = {"zarr_format": 3, "consolidated": False, "write_empty_chunks": True}
    xr.DataTree.from_dict(rest).to_zarr(where, **same)
    for name in ("anna", "ben"):
        dataset = tree[f"/subjects/{name}"]
        words = call.replace('"own.zarr"', "where").replace("subjects/anna", f"subjects/{name}")
        eval(f"dataset.to_zarr({words})", {"dataset": dataset, "where": where})
    data, other = opened(where), opened("own.zarr")
    for name in ("anna", "ben"):
        mask = data.mask(name, None)
        assert np.array_equal(data.betas(name, "ses-01", mask).values, other.betas(name, "ses-01", mask).values)


def test_the_check_says_what_the_page_shows(written):
    """The page's configuration, and its screen as far as the page has it."""
    text = api.check_dataset(parse(yaml.safe_load(YAML))).text()
    (screen,) = re.findall(r"\n\n((?:    .*\n|\n)+)", PAGE[PAGE.index("Of the numbers above:") :])[:1]
    shown = textwrap.dedent(screen).strip().partition("  ...")[0].strip()
    assert shown.startswith("arrays at own.zarr")
    assert text.startswith(shown)


@pytest.mark.parametrize("forms", [STIMULI, SPLITS, SUBJECT])
def test_the_page_of_the_format_has_every_array(forms):
    page = pages.text_of("arrays.md")
    for name, form in forms.items():
        rows = [line for line in page.splitlines() if re.match(rf"\| (`\w+`, )*`{name}`", line)]
        dims = f"({', '.join(form.dims)})"
        assert any(dims in row for row in rows), name
        marked = any(re.match(rf"\| `{name}` \*", row) for row in rows)
        assert marked == form.required, name


@pytest.mark.slow(kind="datasets")
@pytest.mark.timeout(900)
def test_the_configuration_of_the_page_runs_to_a_report(written, capsys):
    """Also with the control that the page's made-up betas, which are noise, cannot beat."""
    given = yaml.safe_load(YAML)
    given["painters"]["brain_diffuser"]["controls"] = ["prior"]
    config = parse(given)
    for word in ("shown 4x", "6 for testing, 18 for training", "visual: early 108"):
        assert word in api.check_dataset(config).text()
    api.run(config)
    page = Path("own/report/index.html").read_text(encoding="utf-8")
    assert "nothing beat the prior" in page
