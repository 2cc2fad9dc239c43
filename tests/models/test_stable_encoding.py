"""The second recipe's encoding models, on brains whose early areas answer to z and whose category areas answer to c."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bdflow.config import Config, parse
from bdflow.models.encoders import Stimuli, encoder_of
from bdflow.models.weights.bundle import open_bundle
from bdflow.pipeline import Pipeline
from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.stores import Store
from bdflow.study.encoding_models import passes
from tests.support.regions import voxels_in

from .test_stable_bundle import published, text

__all__ = ["published", "text"]  # fixtures: a small bundle of Stable Diffusion
SUBJECT = "subj01"


@pytest.fixture(scope="module")
def encoded(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("planted")
    config = parse(
        {
            "study": str(root / "study.zarr"),
            "subjects": [SUBJECT],
            "dataset": {"root": str(root / "nsd"), "sessions": 2},
            "networks": {"bundle": str(published)},
            "spaces": {"z": {"encoder": "sd_vae", "options": {"latent": "mean"}}, "c": {"encoder": "sd_text"}},
            "encode": {"stimuli": 100, "sets": {"z_and_c": ["z", "c"]}, "grid": [1, 10, 100, 1000], "share_steps": 2},
            "report": {"path": str(root / "report")},
        }
    )
    encoders = {"vdvae": encoder_of(config, "z"), "clip_text": encoder_of(config, "c")}
    for encoder in encoders.values():
        encoder.load()

    def planted(images: np.ndarray, captions: Sequence[Sequence[str]], ids: list[int]) -> dict[str, np.ndarray]:
        """z in the place of the simulator's layout, c in that of its meaning."""
        stimuli = Stimuli(np.asarray(ids), images, captions)
        return {name: encoder.work(encoder.prepare(stimuli)) for name, encoder in encoders.items()}

    options = SimulateOptions(
        (SUBJECT,), n_shared=40, n_own=160, stimulus_size=64, trials_per_session=300, noise_ceiling=50
    )
    simulate(root / "nsd", options, features=planted, layers=[open_bundle(published).z_shape])
    Pipeline(config).run(("ingest", "features", "encode"))
    return config


def test_maps_show_z_in_early_and_c_in_higher_areas(encoded: Config) -> None:
    """Each alone, and as unique variance of both together."""
    betas = Store(encoded.study, f"betas/{SUBJECT}")
    early = voxels_in(betas, "prf-visualrois")
    higher = (
        np.any([voxels_in(betas, f"floc-{name}") for name in ("faces", "words", "places", "bodies")], axis=0) & ~early
    )
    alone = {space: Store(encoded.study, f"encoding/{SUBJECT}/{space}") for space in ("z", "c")}
    both = Store(encoded.study, f"encoding_sets/{SUBJECT}/z_and_c")
    unique = dict(zip(both.read("band").tolist(), both.read("unique_r2"), strict=True))
    for place, own, other in ((early, "z", "c"), (higher, "c", "z")):
        found = {space: store.read("pearson_r")[place].mean() for space, store in alone.items()}
        passed = {space: passes(store.read("p"))[place].mean() for space, store in alone.items()}
        variance = {space: values[place].mean() for space, values in unique.items()}
        assert found[own] > found[other] + 0.1
        assert passed[own] > passed[other]
        assert variance[own] > 0.03
        assert variance[other] < 0.02
