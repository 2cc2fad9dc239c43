"""Takagi & Nishimoto's findings about the generator's insides, qualitatively, on planted brains.

z_c explains higher areas beyond z, the more the more noise was taken away under the captions; z keeps what early areas
have.
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
LEVELS = {"z_c_2": 0.2, "z_c_8": 0.8}
DEMO = load("demo").model_dump()
PLACES = {"early": DEMO["spaces"]["z"]["ridge"]["regions"], "higher": DEMO["spaces"]["c"]["ridge"]["regions"]}

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow(kind="science", case="the generator's insides")]


@pytest.fixture(scope="module", params=[1, 2])
def config(request, settings, tmp_path_factory) -> Config:
    root = tmp_path_factory.mktemp(f"seed{request.param}")
    options = {"n_shared": 60, "n_own": 340, "stimulus_size": 212, "trials_per_session": 400, "noise_ceiling": 50}
    data = simulate(root / "nsd", SimulateOptions(subjects=(SUBJECT,), seed=request.param, **options))
    inside = {
        name: {"encoder": "sd_denoising", "decode": False, "options": {"strength": strength, "steps": 10}}
        for name, strength in LEVELS.items()
    }
    stages = ("ingest", "features", "encoding_features", "encode")
    sections = {
        "subjects": [SUBJECT],
        "dataset": {"root": str(data), "sessions": 3},
        "spaces": {"z": {"encoder": "sd_vae"}, **inside},
        "painters": {},
        "encode": {"spaces": [], "sets": {f"with_{name}": ["z", name] for name in LEVELS}, "stimuli": 200},
        "chunks": {"stimuli": 64, "voxels": 256, "columns": 512},
        "execution": {stage: {"executor": "dask", "workers": 2} for stage in stages},
    }
    config = parse(settings(root, **sections))
    Pipeline(config).run(stages)
    return config


def unique(config: Config) -> dict[str, dict[str, float]]:
    """By level, the mean unique variance of z and of z_c over voxels of early and of higher areas."""
    atlas = region_patterns.atlas(Pipeline(config).context(), SUBJECT, {})
    found: dict[str, dict[str, float]] = {}
    for name in LEVELS:
        store = Store(Path(config.study), f"encoding_sets/{SUBJECT}/with_{name}")
        values = dict(zip(("z", "z_c"), store.read("unique_r2"), strict=True))
        found[name] = {
            f"{band} {place}": float(np.nanmean(of[atlas.pattern(regions) > 0]))
            for band, of in values.items()
            for place, regions in PLACES.items()
        }
    print(found)
    return found


def test_the_unique_part_of_z_c_is_in_higher_areas_and_grows_with_noise(config):
    found = unique(config)
    weak, strong = found["z_c_2"], found["z_c_8"]
    assert strong["z_c higher"] > strong["z_c early"] + 0.03
    assert strong["z_c higher"] > weak["z_c higher"] + 0.03
    assert strong["z early"] > strong["z_c early"] + 0.03
    assert strong["z early"] > weak["z early"], "the more noise, the less z_c knows what z does"
