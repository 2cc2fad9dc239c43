"""What z and c are each for: Takagi & Nishimoto's findings, qualitatively, on planted brains, by the demo's recipe.

Layout lies in early visual cortex and in z, meaning in higher areas and in c. CLIP identification is two-way, by the
image embedding of the bundle's own CLIP.
"""

from pathlib import Path

import numpy as np
import pytest

from bdflow.config import Config, load, parse
from bdflow.pipeline import Pipeline, stages_until
from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.stores import Store

SUBJECT = "subj01"
SEEDS = (1, 2)
SPACES = ("z", "c")
N_TEST = 40
DIMENSIONS = {"n_shared": N_TEST, "n_own": 400, "stimulus_size": 212, "trials_per_session": 440}
DEMO = load("demo").model_dump()
REGIONS = {name: DEMO["spaces"][name]["ridge"]["regions"] for name in SPACES}

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow(kind="science", case="two systems")]


def other(space: str, regions: str) -> dict:
    """A space as the demo decodes it, from other regions."""
    own = DEMO["spaces"][space]
    return {**own, "ridge": {**own["ridge"], "regions": regions}}


@pytest.fixture(scope="module", params=SEEDS)
def config(request, settings, tmp_path_factory) -> Config:
    """Painted and judged as in the demo; beside it, each space decoded from the other one's regions."""
    root = tmp_path_factory.mktemp(f"seed{request.param}")
    data = simulate(root / "nsd", SimulateOptions(subjects=(SUBJECT,), seed=request.param, **DIMENSIONS))
    spaces = {name: DEMO["spaces"][name] for name in SPACES}
    spaces |= {"z_higher": other("z", REGIONS["c"]), "c_early": other("c", REGIONS["z"])}
    sections = {
        "subjects": [SUBJECT],
        "dataset": {"root": str(data), "sessions": 3},
        "spaces": spaces,
        "painters": {"takagi": DEMO["painters"]["stable_diffusion"]},
        "reconstruct": {"upper_bound": True},
        "evaluate": {"metrics": ["PixCorr", "CLIP (bundle)"]},
        "chunks": {"stimuli": 64, "voxels": 256, "columns": 512, "images": 8},
    }
    config = parse(settings(root, **sections))
    Pipeline(config).run(tuple(stages_until("evaluate")))
    return config


def decoded(config: Config, space: str) -> float:
    """Mean over latents of the correlation with the truth over test stimuli."""
    return float(np.nanmean(Store(config.study, f"predictions/{SUBJECT}/{space}").read("pearson_r")))


def scores(config: Config, metric: str, subject: str = SUBJECT) -> dict[str, float]:
    """By variant, the mean over test stimuli."""
    store = Store(Path(config.study), f"metrics/takagi/{subject}")
    value = store.read("value")[:, store.read("metric").tolist().index(metric)]
    found = dict(zip(store.read("variant").tolist(), np.nanmean(value, axis=1).tolist(), strict=True))
    print(subject, metric, {name: round(score, 3) for name, score in found.items()})
    return found


def test_z_is_decoded_from_early_areas_and_c_from_higher_ones(config):
    found = {space: decoded(config, space) for space in ("z", "z_higher", "c", "c_early")}
    print(found)
    assert found["z"] > found["z_higher"] + 0.08
    assert found["c"] > found["c_early"] + 0.2


def test_z_has_the_better_pixels_and_c_the_better_meaning(config):
    pixels, meaning = scores(config, "PixCorr"), scores(config, "CLIP (bundle)")
    assert pixels["only_z"] > pixels["only_c"] + 0.03
    assert meaning["only_c"] > meaning["only_z"] + 0.1


def test_both_together_are_near_the_better_of_each(config):
    for metric, alone in (("PixCorr", "only_z"), ("CLIP (bundle)", "only_c")):
        found = scores(config, metric)
        assert found["full"] > found[alone] - 0.03, metric


def test_true_latents_give_better_pictures(config):
    for metric in ("PixCorr", "CLIP (bundle)"):
        assert scores(config, metric, "true")["full"] > scores(config, metric)["full"], metric
