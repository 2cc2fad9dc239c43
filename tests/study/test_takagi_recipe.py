"""The shipped recipe of Takagi & Nishimoto, whole, on simulated brains with `streams`, by small networks."""

from typing import Any

import numpy as np
import pytest
import yaml

from bdflow.config import Config, parse, recipes
from bdflow.pipeline import Pipeline
from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.stores import Store
from bdflow.study.encoding_models import models
from tests.conftest import execution

pytestmark = [pytest.mark.slow(kind="recipes"), pytest.mark.timeout(900)]
SUBJECTS = ("subj01",)
TINY_LAYERS = {"down_blocks.2": "down_blocks.1", "up_blocks.1": "up_blocks.0", "up_blocks.3": "up_blocks.1"}
"""Layers of the full UNet, and what stands for them in the tiny one, which has two blocks a side."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """As shipped but for sizes: subjects, sessions, networks, steps, components, chunks, and no GPU. There are more
    training trials than voxels of a region, as in NSD: penalties as small as the recipe's need that.
    """
    root = tmp_path_factory.mktemp("takagi")
    sizes = {"n_shared": 8, "n_own": 120, "volume_shape": (14, 16, 12), "stimulus_size": 64, "trials_per_session": 128}
    nsd = simulate(root / "nsd", SimulateOptions(subjects=SUBJECTS, **sizes))
    content: dict[str, Any] = yaml.safe_load(recipes()["takagi_nishimoto"].read_text(encoding="utf-8"))
    content |= {"study": str(root / "study.zarr"), "subjects": list(SUBJECTS), "execution": execution("serial")}
    content["dataset"] |= {"root": str(nsd), "sessions": 3}
    content["networks"] |= {"bundle": "tiny", "device": "cpu", "dtype": "float32"}
    content["painters"]["stable_diffusion"] |= {"steps": 10, "pictures": 2, "batch_size": 4}
    content["report"]["path"] = str(root / "report")
    content["chunks"] = {"stimuli": 16, "voxels": 128, "columns": 512, "images": 4}
    content["ridge"]["validation"] |= {"folds": 3}
    for space in content["spaces"].values():
        if space["encoder"] == "sd_denoising":
            options = space["options"]
            step = options.get("step")
            options |= {"steps": 10} | ({"step": max(1, step // 5)} if step else {})
            if "layer" in options:
                options["layer"] = TINY_LAYERS.get(options["layer"], options["layer"])
    content["encode"] |= {"components": dict.fromkeys(content["encode"]["components"], 5), "stimuli": 12}
    return parse(content)


def test_it_runs_from_files_to_a_report_and_to_encoding_models(config: Config) -> None:
    pipeline = Pipeline(config)
    pipeline.run()
    pipeline.run(("encoding_features", "encode"))
    states = {row.path: row.state.kind for row in pipeline.status()}
    assert set(states.values()) == {"sealed"}
    assert len(models(config)) == 2 + 6 + 15 + 7
    for subject in SUBJECTS:
        for space, region in (("z", "early"), ("c", "ventral")):
            (system,) = [key for key in states if key.startswith(f"systems/{subject}/") and region in key]
            assert system.split("/")[-1].startswith(f"trials_no_intercept-{region}_")
            assert np.isfinite(Store(config.study, f"predictions/{subject}/{space}").read("latent")).all()
        images = Store(config.study, f"reconstructions/stable_diffusion/{subject}/full").arrays["image"].shape
        assert images[1] == 2
        for model in models(config):
            kind = "encoding_sets" if model in config.encode.sets else "encoding"
            assert np.isfinite(Store(config.study, f"{kind}/{subject}/{model}").read("r2")).any()
    page = (config.report.path / "index.html").read_text(encoding="utf-8")
    assert "Takagi AlexNet(2)" in page
