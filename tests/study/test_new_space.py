"""docs/new_space.md, as a user follows it: its encoder and its configuration, run to a report."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from bdflow.config import parse
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline
from bdflow.stores import Store
from tests.conftest import SUBJECTS
from tests.support import logs, pages
from tests.support.parts import whole

(CODE,), (SPACES,) = ([block.text for block in pages.blocks("new_space.md", kind)] for kind in ("python", "yaml"))


@pytest.fixture
def encoders(tmp_path, monkeypatch):
    """The page's file, where Python finds it; also in other processes."""
    (tmp_path / "my_encoders.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    yield tmp_path
    sys.modules.pop("my_encoders", None)


def test_the_encoder_is_about_twenty_lines():
    lines = [line for line in CODE.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 20


def test_a_fourth_space_is_decoded_and_scored_in_the_report(settings, encoders):
    config = parse(settings(encoders, **yaml.safe_load(SPACES)))
    Pipeline(config).run()
    for subject in SUBJECTS:
        store = Store(config.study, f"predictions/{subject}/vit")
        assert store.read("latent").shape == (6, 17, 32)
        assert (store.read("alpha") == 1000).all()
        assert np.isfinite(store.read("pearson_r")).mean() > 0.9
    targets = whole(config.study, "targets/vit").read("latent")
    assert targets.shape == (46, 17, 32)
    assert len(np.unique(targets[:, 0], axis=0)) == 46, "every stimulus has its own class token"
    page = (encoders / "report/index.html").read_text(encoding="utf-8")
    assert ">vit<" in page
    assert "vit: mean r by token" in page


@pytest.mark.slow(kind="studies that change")
def test_a_space_added_later_leaves_the_others_pictures_and_scores(settings, encoders):
    added = yaml.safe_load(SPACES)["spaces"]
    three = {name: of for name, of in added.items() if name != "vit"}
    Pipeline(parse(settings(encoders, spaces=three))).run()
    pipeline = Pipeline(parse(settings(encoders, spaces=added)))
    states = {row.path: row.state.kind for row in pipeline.status()}
    assert {path for path, kind in states.items() if kind == "absent"} == {
        *(f"targets/vit/{part}" for part in ("shared", *SUBJECTS)),
        *(f"predictions/{subject}/vit" for subject in SUBJECTS),
    }
    assert all(states[path] == "sealed" for path in states if path.startswith("targets/") and "vit" not in path)


@pytest.mark.slow(kind="studies that change")
def test_latents_that_exist_already_are_a_space(settings, tmp_path, caplog):
    ids = np.array(whole(_ingested(settings, tmp_path), "stimuli").read("stimulus_id"))
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(len(ids), 5)).astype("f4")
    order = rng.permutation(len(ids))
    np.savez(tmp_path / "latents.npz", stimulus_id=ids[order], latent=latent[order])
    spaces = {"mine": {"encoder": f"array:{tmp_path / 'latents.npz'}"}}
    config = parse(settings(tmp_path, spaces=spaces, painters={}, features={"dtype": "float32"}))
    caplog.set_level("INFO", "bdflow")
    Pipeline(config).run()
    assert [line for line in logs.lines(caplog) if line.startswith("no report: the configuration has no painter")]
    np.testing.assert_array_equal(whole(config.study, "targets/mine").read("latent"), latent)
    moved = {"mine": {"encoder": f"array:{tmp_path / 'moved.npz'}"}}
    (tmp_path / "latents.npz").rename(tmp_path / "moved.npz")
    again = Pipeline(parse(settings(tmp_path, spaces=moved, painters={}, features={"dtype": "float32"})))
    assert {row.state.kind for row in again.status()} == {"sealed"}
    np.savez(tmp_path / "moved.npz", stimulus_id=ids[1:], latent=latent[1:])
    short = Pipeline(parse(settings(tmp_path, spaces=moved, painters={}, features={"dtype": "float32"})))
    with pytest.raises(InputError, match=f"no latent of stimulus {ids[0]} "):
        short.run(("features",), remake=True)


def _ingested(settings, root: Path) -> Path:
    config = parse(settings(root, painters={}))
    Pipeline(config).run(("ingest",))
    return Path(config.study)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"encoder": "clip_visoin"}, "did you mean `clip_vision`"),
        ({"encoder": "nowhere:Class"}, "cannot be imported"),
        ({"encoder": "json:loads"}, "not a class"),
        ({"encoder": "vdvae", "options": {"laten": "mean"}}, "options that the encoder takes: latent"),
        ({"encoder": "array:nowhere.npz"}, "cannot be read"),
    ],
)
def test_what_is_no_encoder_is_named(settings, tmp_path, space, words):
    with pytest.raises(InputError, match=words):
        Pipeline(parse(settings(tmp_path, spaces={"a": space}, painters={}))).context(looking=False)


def test_a_module_that_python_does_not_find_is_told_how(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lies_here.py").write_text("import not_installed_anywhere\n")
    Path("wrong_inside.py").write_text("1 / 0\n")
    config = parse(settings(tmp_path, spaces={"a": {"encoder": "lies_here:Class"}}, painters={}))
    with pytest.raises(InputError, match=r"`lies_here\.py` lies in this folder.*export PYTHONPATH=\$PWD"):
        Pipeline(config).context(looking=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="install `not_installed_anywhere`"):
        Pipeline(config).context(looking=False)
    config = parse(settings(tmp_path, spaces={"a": {"encoder": "wrong_inside:Class"}}, painters={}))
    with pytest.raises(InputError, match="correct the module"):
        Pipeline(config).context(looking=False)
