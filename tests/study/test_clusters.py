"""Splits by cluster: planted clusters are found, whatever the order, and the file is a split that a study takes."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bdflow import api
from bdflow.config import Config, parse
from bdflow.datasets.reader import open_dataset
from bdflow.pipeline import Pipeline
from bdflow.study.clusters import DIMENSIONS, clusters, split_by_cluster
from tests.support.parts import whole


@pytest.fixture(scope="module", params=[(6,), (3, 300)])
def made(settings: Any, nsd: Any, tmp_path_factory: pytest.TempPathFactory, request: Any) -> tuple[Config, np.ndarray]:
    """A study whose space has three clusters of stimuli far from one another, in few dimensions and in many."""
    root = tmp_path_factory.mktemp("clusters")
    config = parse(settings(root, spaces={"text": {"encoder": "clip_text"}}, painters={}))
    ids = [one for part in ("shared", *config.subjects) for one in open_dataset(config).stimuli(part)[0].tolist()]
    rng = np.random.default_rng(0)
    truth = np.arange(len(ids)) % 5 % 3
    latent = 9 * rng.normal(size=(3, *request.param))[truth] + rng.normal(size=(len(ids), *request.param))
    np.savez(root / "latents.npz", stimulus_id=np.array(ids), latent=latent.astype(np.float32))
    config = parse(settings(root, spaces={"planted": {"encoder": f"array:{root / 'latents.npz'}"}}, painters={}))
    Pipeline(config).run(("ingest", "features"))
    return config, dict(zip(ids, truth.tolist(), strict=True))


def test_planted_clusters_are_found_the_largest_first(made: tuple[Config, dict[str, int]]) -> None:
    config, truth = made
    ids, found = clusters(Pipeline(config).context(), "planted", 3)
    assert sorted(ids) == sorted(truth)
    pairs = {(truth[one], int(cluster)) for one, cluster in zip(ids.tolist(), found, strict=True)}
    assert len(pairs) == 3, "each planted cluster is one that was found"
    sizes = np.bincount(found)
    assert (np.diff(sizes) <= 0).all()
    assert whole(config.study, "targets/planted").read("latent")[0].size in (6, 900)
    assert DIMENSIONS < 900, "one of the spaces is projected"


def test_the_file_is_a_split(made: tuple[Config, dict[str, int]], tmp_path: Any, capsys: Any) -> None:
    config, truth = made
    file = tmp_path / "split.json"
    written = api.write_split(config, file, space="planted", clusters=3, test=1)
    assert json.loads(file.read_text()) == written
    assert len({truth[one] for one in written["test"]}) == 1
    other = replace_split(config, str(file))
    of = open_dataset(other)
    for subject in config.subjects:
        assert of.split[subject].test <= set(written["test"])
        assert of.split[subject].train <= set(written["train"])
    with pytest.raises(api.InputError, match="nothing there"):
        api.write_split(config, file, space="planted", clusters=3)


def replace_split(config: Config, split: str) -> Config:
    return config.model_copy(update={"dataset": config.dataset.model_copy(update={"split": split})})


def test_the_same_seed_the_same_clusters(made: tuple[Config, dict[str, int]]) -> None:
    context = Pipeline(made[0]).context()
    assert split_by_cluster(context, "planted", 4, 0) == split_by_cluster(context, "planted", 4, 0)
    other = replace(context, config=context.config.model_copy(update={"seed": 7}))
    assert split_by_cluster(other, "planted", 3, 2)["about"]["seed"] == 7


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"space": "clip"}, "one of planted"),
        ({"clusters": 1}, "2 to 46"),
        ({"clusters": 47}, "47 clusters of 46 stimuli"),
        ({"test": 3}, "0 to 2"),
    ],
)
def test_what_there_is_not(
    made: tuple[Config, dict[str, int]], asked: dict[str, Any], words: str, tmp_path: Any
) -> None:
    with pytest.raises(api.InputError, match=words):
        api.write_split(made[0], tmp_path / "a.json", **{"space": "planted", "clusters": 3, **asked})
    assert list(tmp_path.iterdir()) == []
