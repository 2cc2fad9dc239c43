"""Takagi & Nishimoto's findings about the generator's insides, qualitatively, on planted brains.

The more noise was taken away under the captions, the less z_c knows what z does of early areas. The UNet's bottleneck,
which has read the captions, explains higher areas beyond z. (z_c itself does so hardly here: what a small picture means
is not linear in its latent.)

Differences of one brain vary with its noise. Of six brains (seeds 1 to 6), z's unique variance beside much noise was
above that beside little by 0.016 to 0.026 in early areas, and above that of higher areas by 0.010 to 0.028, 0.020 on
average. What is as small as that is asked of the average over seeds; of each seed, the order.
"""

from pathlib import Path

import numpy as np
import pytest

from bdflow.config import Config, load, parse
from bdflow.pipeline import Pipeline
from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.stores import Store
from bdflow.study import region_patterns

SUBJECT = "subj01"
SEEDS = (1, 2)
INSIDES = {
    "z_c_2": {"strength": 0.2},
    "z_c_8": {"strength": 0.8},
    "middle": {"strength": 0.8, "step": 1, "layer": "mid_block"},
}
DEMO = load("demo").model_dump()
PLACES = {"early": DEMO["spaces"]["z"]["ridge"]["regions"], "higher": DEMO["spaces"]["c"]["ridge"]["regions"]}

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow(kind="science", case="the generator's insides")]


def study_of(seed: int, settings, root: Path) -> Config:
    sizes = {"n_shared": 60, "n_own": 340, "stimulus_size": 212, "trials_per_session": 400, "noise_ceiling": 50}
    data = simulate(root / "nsd", SimulateOptions(subjects=(SUBJECT,), seed=seed, **sizes))
    inside = {
        name: {"encoder": "sd_denoising", "decode": False, "options": {"steps": 10, **options}}
        for name, options in INSIDES.items()
    }
    stages = ("ingest", "features", "encoding_features", "encode")
    sections = {
        "subjects": [SUBJECT],
        "dataset": {"root": str(data), "sessions": 3},
        "spaces": {"z": {"encoder": "sd_vae"}, **inside},
        "painters": {},
        "encode": {"spaces": [], "sets": {f"with_{name}": ["z", name] for name in INSIDES}, "stimuli": 200},
        "chunks": {"stimuli": 64, "voxels": 256, "columns": 512},
    }
    config = parse(settings(root, **sections))
    Pipeline(config).run(stages)
    return config


def unique(config: Config) -> dict[str, dict[str, float]]:
    """By set, the mean unique variance of z and of the other space over voxels of early and of higher areas."""
    atlas = region_patterns.atlas(Pipeline(config).context(), SUBJECT, {})
    found: dict[str, dict[str, float]] = {}
    for name in INSIDES:
        store = Store(Path(config.study), f"encoding_sets/{SUBJECT}/with_{name}")
        values = dict(zip(("z", "inside"), store.read("unique_r2"), strict=True))
        found[name] = {
            f"{band} {place}": float(np.nanmean(of[atlas.pattern(regions) > 0]))
            for band, of in values.items()
            for place, regions in PLACES.items()
        }
    print(found)
    return found


@pytest.fixture(scope="module")
def found(settings, tmp_path_factory) -> dict[int, dict[str, dict[str, float]]]:
    """By seed."""
    return {seed: unique(study_of(seed, settings, tmp_path_factory.mktemp(f"seed{seed}"))) for seed in SEEDS}


@pytest.mark.parametrize("seed", SEEDS)
def test_more_noise_leaves_more_of_early_areas_to_z_alone(found, seed):
    weak, strong = found[seed]["z_c_2"], found[seed]["z_c_8"]
    assert strong["z early"] > weak["z early"] + 0.01
    assert strong["z early"] > strong["z higher"]


def test_what_is_left_to_z_lies_in_early_areas_and_what_the_latent_adds_in_higher_ones(found):
    mean = {name: np.mean([of["z_c_8"][name] for of in found.values()]) for name in found[SEEDS[0]]["z_c_8"]}
    assert mean["z early"] > mean["z higher"] + 0.01
    assert mean["inside higher"] > mean["inside early"]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bottleneck_knows_the_captions(found, seed):
    of = found[seed]["middle"]
    assert of["inside higher"] > of["inside early"] + 0.03
    assert of["inside higher"] > of["z higher"] + 0.03
    assert of["z early"] > of["z higher"]
