"""A study of NSD-Imagery alone: trained on what was seen, tested on what was imagined."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdflow import api
from bdflow.config import Config, parse
from bdflow.datasets.reader import open_dataset
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline
from bdflow.stores import Store
from tests.datasets.test_doors import features

ROOT = Path(__file__).parents[2] / "samples/nsd_imagery"
EXPECTED = json.loads((ROOT / "expected.json").read_text(encoding="utf-8"))
ROWS, SUBJECTS = EXPECTED["imagery"]["rows_in_full"], list(EXPECTED["subjects"])
STRAIGHT = {"alpha": 30, "standardise": "none"}


def configuration(root: Path, split: str, spaces: dict[str, Any] | None = None, **sections: Any) -> Config:
    options = sections.pop("options", {"train_condition": "perception"})
    dataset = {"kind": "nsd_imagery", "root": str(ROOT), "split": split, "options": options, "image_size": 32}
    return parse(
        {
            "study": str(root / "study.zarr"),
            "subjects": SUBJECTS,
            "dataset": dataset,
            "spaces": spaces or {"vdvae": {"encoder": "vdvae"}},
            "report": {"path": str(root / "report"), "thumbnail": 32},
            "chunks": {"stimuli": 16, "voxels": 128, "images": 8},
            "features": {"dtype": "float32"},
            **sections,
        }
    )


def with_features(root: Path, split: str, spaces: dict[str, Any] | None = None, **sections: Any) -> Config:
    """A space of the twelve features of the pictures, beside others."""
    data = open_dataset(configuration(root, split, spaces, **sections))
    ids = list(data.dataset.stimuli())
    np.savez(
        root / "features.npz",
        stimulus_id=np.array(ids),
        latent=features(data.read_photos(ids)).astype(np.float32),
    )
    own = {"features": {"encoder": f"array:{root / 'features.npz'}", "ridge": STRAIGHT}}
    return configuration(root, split, own | (spaces or {}), **sections)


def test_what_is_imagined_is_a_stimulus_of_its_own(tmp_path: Path) -> None:
    """Its picture, captions and trials are those of the target; perception keeps the ids that it has alone."""
    both, alone = (
        open_dataset(configuration(tmp_path, "dataset:conditions", options=options)).dataset
        for options in ({"train_condition": "perception"}, {"condition": "perception"})
    )
    imagined = open_dataset(configuration(tmp_path, "dataset:all", options={})).dataset
    ids = list(imagined.stimuli())
    assert both.stimuli() == [*alone.stimuli(), *(f"imagery/{one}" for one in ids)]
    assert both.captions([f"imagery/{one}" for one in ids]) == imagined.captions(ids)
    pictures = both.pictures([f"imagery/{one}" for one in ids] + ids)
    for one, other in zip(pictures, imagined.pictures(ids + ids), strict=True):
        np.testing.assert_array_equal(one, other)
    assert both.captions(["imagery/C/zebra"]) == [["zebra"]]
    for subject in SUBJECTS:
        trials = both.trials(subject)
        tested = trials.condition == "imagery"
        assert trials.index.tolist() == [row[0] for row in ROWS if row[1][:3] in ("vis", "img")]
        assert trials.stimulus[~tested].tolist() == alone.trials(subject).stimulus.tolist()
        assert [one.removeprefix("imagery/") for one in trials.stimulus[tested]] == list(
            imagined.trials(subject).stimulus
        )
        assert all(one.startswith("imagery/") for one in trials.stimulus[tested])
        assert both.seen(subject) == frozenset(trials.stimulus.tolist())


def test_splits_by_condition_and_of_one_set_by_the_others(tmp_path: Path) -> None:
    splits = open_dataset(configuration(tmp_path, "dataset:conditions")).dataset.splits()
    assert set(splits) == {"conditions", "conditions/A", "conditions/B"}
    whole = splits["conditions"]
    assert len(whole.test) == EXPECTED["subjects"]["subj01"]["decoding"]["imagery"]["targets_of_sets_A_and_B"]
    assert all(one.startswith("imagery/") for one in whole.test)
    assert not any(one.startswith("imagery/") for one in whole.train)
    for of in "AB":
        part = splits[f"conditions/{of}"]
        assert part.test < whole.test
        assert part.train < whole.train
        assert not {one.removeprefix("imagery/") for one in part.test} & part.train
    assert splits["conditions/A"].test | splits["conditions/B"].test == whole.test
    reverse = {"condition": "perception", "train_condition": "imagery"}
    splits = open_dataset(configuration(tmp_path, "dataset:conditions", options=reverse)).dataset.splits()
    assert {name: (len(of.test), len(of.train)) for name, of in splits.items()} == {
        "conditions": (21, 12), "conditions/A": (6, 6), "conditions/B": (6, 6), "conditions/C": (9, 12)
    }  # fmt: skip


@pytest.mark.parametrize("split", ["conditions", "conditions/B"])
def test_imagery_is_decoded_from_perception_as_plain_ridge_does(split: str, tmp_path: Path) -> None:
    config = with_features(tmp_path, f"dataset:{split}")
    Pipeline(config).run(("ingest", "features", "regress"))
    of = split.partition("/")[2]
    for subject in SUBJECTS:
        data = open_dataset(configuration(tmp_path, "dataset:all", options={"condition": "all"}))
        betas = data.session_betas(subject, "nsdimagery")
        trials, used = data.trials(subject), betas.valid.all(axis=0)
        percent = betas.values[:, used] / 300
        means = {}
        for condition in ("perception", "imagery"):
            mine = trials.condition == condition
            means[condition] = {
                one: percent[mine & (trials.stimulus == one)].mean(axis=0)
                for one in dict.fromkeys(trials.stimulus[mine].tolist())
            }
        targets = open_dataset(configuration(tmp_path, "dataset:all", options={})).dataset.stimuli()
        of_set = {"": targets, "A": targets[:6], "B": targets[6:]}[of]
        shown = [one for one in means["perception"] if not of or one not in of_set]
        x = np.stack([means["perception"][one] for one in shown])
        y = features(data.read_photos(shown))
        mean, scale = x.mean(axis=0), x.std(axis=0, ddof=1)
        z = (x - mean) / scale
        weights = z.T @ np.linalg.solve(z @ z.T + 30 * np.eye(len(z)), y - y.mean(axis=0))
        found = Store(config.study, f"predictions/{subject}/features")
        tested = [one.removeprefix("imagery/") for one in found.read("stimulus_id").tolist()]
        assert sorted(tested) == sorted(of_set)
        patterns = (np.stack([means["imagery"][one] for one in tested]) - mean) / scale
        np.testing.assert_allclose(found.read("latent"), patterns @ weights + y.mean(axis=0), atol=1e-3 * y.std())


def test_a_split_for_testing_alone_is_looked_at_and_not_run(tmp_path: Path) -> None:
    alone = configuration(tmp_path, "dataset:all", options={})
    account = api.check_dataset(alone)
    assert {of.train for of in account.subjects.values()} == {0}
    assert "train_condition: perception" in " ".join(account.text().split())
    for split, options, words in (
        ("dataset:all", {}, "train_condition: perception"),
        ("shared", {}, "train_condition: perception"),
        ("shared", {"train_condition": "perception"}, "dataset:conditions/A"),
    ):
        with pytest.raises(InputError, match="no training stimulus") as error:
            api.run(configuration(tmp_path, split, options=options), until="ingest")
        assert words in str(error.value)
    synthetic = alone.model_copy(update={"dataset": alone.dataset.model_copy(update={"kind": "nsd_synthetic"})})
    assert "`dataset.split: shared`" in " ".join(api.check_dataset(synthetic).text().split())
    with pytest.raises(InputError, match="no training stimulus"):
        api.check_dataset(configuration(tmp_path, "shared", options={}))
    for wrong in ({"train_condition": "imagery"}, {"condition": "all", "train_condition": "imagery"}):
        with pytest.raises(InputError, match="another condition to test on"):
            open_dataset(configuration(tmp_path, "shared", options=wrong))


@pytest.mark.slow(kind="datasets")
@pytest.mark.timeout(900)
def test_a_study_of_imagery_goes_to_a_report(tmp_path: Path) -> None:
    """With the tiny networks; targets of sets A and B have no captions, so that no space is made of them."""
    painters = {
        "brain_diffuser": {"steps": 2, "controls": ["prior", "retrieval"], "text": None, "variants": ["no_clip_text"]}
    }
    spaces = {name: {"encoder": name} for name in ("vdvae", "clip_vision")}
    metrics = {"metrics": ["PixCorr", "CLIP (bundle)"]}
    config = with_features(tmp_path, "dataset:conditions", spaces, painters=painters, evaluate=metrics)
    api.run(config)
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    shown = len(list((tmp_path / "report/images/shown").iterdir()))
    for subject in SUBJECTS:
        assert subject in page
        scores = Store(config.study, f"metrics/brain_diffuser/{subject}")
        ids = scores.read("stimulus_id").tolist()
        assert len(ids) == shown == 12
        assert all(one.startswith("imagery/") for one in ids)
        assert np.isfinite(scores.read("value")).all()
        repeats = Store(config.study, f"responses/{subject}/averaged").read("repeats").tolist()
        assert Counter(repeats) == {4: 12, 2: 15, 1: 6}
