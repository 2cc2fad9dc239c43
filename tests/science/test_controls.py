"""What controls say of planted brains, and of a brain of noise (of such, one in twenty beats the prior by chance)."""

import csv
import html
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdflow.config import Config, parse
from bdflow.pipeline import Pipeline
from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.stores import Store
from tests.conftest import painter

SUBJECT = "subj01"
METRICS = ["PixCorr", "CLIP (bundle)"]
CONTROLS = ["prior", "retrieval", "mean_image"]
SIGNAL, NOISE = 30.0, 1e-9  # noise ceilings, percent of variance

pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow(kind="science", case="controls")]


@pytest.fixture(scope="module", params=[SIGNAL, NOISE])
def config(request: Any, settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp(f"ceiling{request.param:g}")
    sizes = {"n_shared": 60, "n_own": 300, "stimulus_size": 212, "trials_per_session": 360}
    data = simulate(root / "nsd", SimulateOptions(subjects=(SUBJECT,), noise_ceiling=request.param, seed=1, **sizes))
    sections = {
        "subjects": [SUBJECT],
        "dataset": {"root": str(data), "sessions": 3},
        "spaces": {
            "vdvae": {"encoder": "vdvae", "ridge": {"alpha": 1000}},
            "clip_vision": {"encoder": "clip_vision", "ridge": {"alpha": 10_000}},
            "clip_text": {"encoder": "clip_text", "ridge": {"alpha": 10_000}},
        },
        "painters": painter(steps=8, strength=0.65, controls=CONTROLS),
        "reconstruct": {"upper_bound": True},
        "evaluate": {"metrics": METRICS},
        "chunks": {"stimuli": 64, "voxels": 256, "columns": 512, "images": 16},
    }
    config = parse(settings(root, **sections))
    Pipeline(config).run()
    return config


def scores(config: Config, subject: str = SUBJECT) -> dict[str, dict[str, float]]:
    """By metric and kind of picture, the mean over test stimuli."""
    store = Store(Path(config.study), f"metrics/brain_diffuser/{subject}")
    value, kinds = np.nanmean(store.read("value"), axis=-1), store.read("variant").tolist()
    found = {
        metric: {kind: float(value[k, m]) for k, kind in enumerate(kinds)} for m, metric in enumerate(METRICS)
    }  # fmt: skip
    print(config.study, subject, found)
    return found


def planted(config: Config) -> bool:
    return f"ceiling{SIGNAL:g}" in str(config.study)


def test_what_knows_nothing_is_at_chance(config: Config) -> None:
    clip = scores(config)["CLIP (bundle)"]
    assert abs(clip["prior"] - 0.5) < 0.1
    assert abs(clip["mean_image"] - 0.5) < 0.1
    if not planted(config):
        assert abs(clip["full"] - 0.5) < 0.1
        assert abs(clip["retrieval"] - 0.5) < 0.1


def test_what_is_planted_is_beyond_the_prior(config: Config) -> None:
    found, best = scores(config), scores(config, "true")
    with (config.report.path / "tables/beyond_prior.csv").open() as file:
        tests = {row["metric"]: row for row in csv.DictReader(file) if row["subject"] == SUBJECT}
    assert tests.keys() == set(METRICS)
    if planted(config):
        clip = found["CLIP (bundle)"]
        assert clip["prior"] + 0.1 < clip["retrieval"] < best["CLIP (bundle)"]["full"]
        assert clip["full"] > clip["prior"] + 0.1
        assert found["PixCorr"]["full"] > found["PixCorr"]["prior"] + 0.05
    for metric in METRICS:
        assert (tests[metric]["better"] == "True") == planted(config), metric


def test_the_report_says_so_in_words(config: Config) -> None:
    page = html.unescape((config.report.path / "index.html").read_text(encoding="utf-8"))
    assert ("The reconstructions: nothing beat the prior." in page) != planted(config)
    words = "The reconstructions: better than the prior in PixCorr (1 of 1 subject), CLIP (bundle) (1 of 1 subject)."
    assert (words in page) == planted(config)
