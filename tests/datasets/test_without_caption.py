"""Stimuli without a caption: refused where a space is made of captions, or left out of every space."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdflow import api
from bdflow.config import Config
from bdflow.datasets.reader import open_dataset
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline
from bdflow.stores import Store
from tests.datasets.test_doors import STRAIGHT, with_features
from tests.support import logs

SPACES = {"text": {"encoder": "clip_text", "ridge": STRAIGHT}}


def configuration(root: Path, without_caption: str, **sections: Any) -> Config:
    found = with_features("glmsingle_bids", root, spaces=SPACES, **sections)
    dataset = found.dataset.model_copy(update={"without_caption": without_caption})
    return found.model_copy(update={"dataset": dataset})


def lacking(config: Config) -> set[str]:
    """Stimuli of the sample that have no caption, from its reader alone."""
    whole = open_dataset(config).dataset
    ids = list(whole.stimuli())
    return {one for one, texts in zip(ids, whole.captions(ids), strict=True) if not texts}


def test_they_are_left_out_of_training_and_test_in_every_space(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configuration(tmp_path, "leave_out")
    gone, every = lacking(config), open_dataset(configuration(tmp_path, "refuse"))
    Pipeline(config).run(("ingest", "features", "regress"))
    said = logs.text(caplog)
    left = set()
    for subject in config.subjects:
        before = every.split[subject]
        rows = Store(config.study, f"responses/{subject}/trials_zscored")
        ids, split = rows.read("stimulus_id"), rows.read("split")
        assert set(ids[split == "test"].tolist()) == before.test - gone
        assert set(ids[split == "train"].tolist()) == before.train - gone
        left |= (before.test | before.train) & gone
        spaces = [Store(config.study, f"predictions/{subject}/{space}") for space in ("text", "features")]
        of_spaces = [store.read("stimulus_id").tolist() for store in spaces]
        assert of_spaces[0] == of_spaces[1]
        assert set(of_spaces[0]) == before.test - gone
        assert all(np.isfinite(store.read("latent")).all() for store in spaces)
    assert left & every.split[config.subjects[0]].train
    parts = [Store(config.study, f"stimuli/{part}") for part in ("shared", *config.subjects)]
    stored = [one for store in parts for one in store.read("without_caption").tolist()]
    assert sorted(stored) == sorted(left)
    words = f"{len(left)} stimuli without a caption"
    assert words in said
    assert min(left, key=list(every.dataset.stimuli()).index) in said
    text = " ".join(api.check_dataset(config).text().split())
    assert f"note: {words} left out of training and test, in every space" in text
    assert "neither part" not in text
    remarks = [row.remark for row in api.status(config) if row.remark]
    assert sum(int(remark.split()[0]) for remark in remarks) == len(left)


def test_without_the_setting_they_are_named_before_anything_is_made_of_captions(tmp_path: Path) -> None:
    config = configuration(tmp_path, "refuse")
    used = open_dataset(config).split.values()
    gone = frozenset().union(*(of.test | of.train for of in used)) & lacking(config)
    with pytest.raises(InputError, match=f"{len(gone)} stimuli without a caption") as error:
        api.run(config, until="features")
    assert "dataset.without_caption: leave_out" in str(error.value)
    assert "targets/text/shared" not in {row.path for row in api.status(config) if row.state.kind != "absent"}
    assert "dataset.without_caption: leave_out" in " ".join(api.check_dataset(config).text().split())


def test_a_subject_that_keeps_nothing_is_refused(tmp_path: Path) -> None:
    config = configuration(tmp_path, "leave_out")
    only = sorted(lacking(config) & open_dataset(configuration(tmp_path, "refuse")).split[config.subjects[0]].train)
    (tmp_path / "test.txt").write_text("\n".join(only), encoding="utf-8")
    dataset = config.dataset.model_copy(update={"split": str(tmp_path / "test.txt")})
    with pytest.raises(InputError, match=r"no test stimulus[\s\S]*have no caption and are left out"):
        api.check_dataset(config.model_copy(update={"dataset": dataset}))


@pytest.mark.slow(kind="datasets")
@pytest.mark.timeout(900)
def test_a_study_that_leaves_them_out_goes_to_a_report(tmp_path: Path) -> None:
    """With the tiny networks, text among what is painted from."""
    spaces = {name: {"encoder": name} for name in ("vdvae", "clip_vision", "clip_text")}
    painters = {"brain_diffuser": {"steps": 2, "controls": ["prior"]}}
    found = with_features(
        "glmsingle_bids", tmp_path, spaces=spaces, painters=painters, evaluate={"metrics": ["PixCorr"]}
    )
    config = found.model_copy(
        update={"dataset": found.dataset.model_copy(update={"without_caption": "leave_out"})}, deep=True
    )
    api.run(config)
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    data = open_dataset(config)
    left = {one for part in ("shared", *config.subjects) for one in data.left_out(part)}
    assert f"{len(left)} stimuli without a caption" in page
    shown = {
        one for s in config.subjects for one in Store(config.study, f"metrics/brain_diffuser/{s}").read("stimulus_id")
    }
    assert shown
    assert not shown & left
