"""Does the science come out? Planted truth: what can be decoded is decoded, to its ceiling; what cannot, is not."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bdflow.config import parse
from bdflow.datasets.nsd import nsd_id_of
from bdflow.pipeline import Pipeline, stages_until
from bdflow.simulation.dataset import simulate
from bdflow.stores import Store
from tests.conftest import OF_350, SPACES, spaces
from tests.support.parts import whole
from tests.support.planted import decoding_ceiling

SUBJECT = "subj01"
N_TEST = OF_350.n_shared


def study_of(root: Path, name: str, settings) -> Path:
    sections = {
        "subjects": [SUBJECT],
        "dataset": {"root": str(root / name), "sessions": 3},
        "features": {"dtype": "float32"},
        "spaces": spaces(1000)
        | {"vdvae": {"encoder": "vdvae", "options": {"latent": "mean"}, "ridge": {"alpha": 1000}}},
        "study": str(root / f"{name}.zarr"),
    }
    config = parse(settings(root, **sections))
    Pipeline(config).run(tuple(stages_until("regress")))
    return config.study


@pytest.fixture(scope="module")
def root(tmp_path_factory, nsd_of_350) -> Path:
    root = tmp_path_factory.mktemp("science")
    (root / "clear").symlink_to(nsd_of_350)
    simulate(root / "noisy", dataclasses.replace(OF_350, noise_ceiling=2.0))
    return root


@pytest.fixture(scope="module")
def clear(root, settings) -> Path:
    return study_of(root, "clear", settings)


@pytest.fixture(scope="module")
def noisy(root, settings) -> Path:
    return study_of(root, "noisy", settings)


def correlations(study: Path, space: str) -> np.ndarray:
    return Store(study, f"predictions/{SUBJECT}/{space}").read("pearson_r").ravel()


def ceilings(root: Path, study: Path, name: str, space: str) -> np.ndarray:
    targets = whole(study, f"targets/{space}")
    ids = targets.read("stimulus_id")
    numbers = np.array([nsd_id_of(one) for one in ids.tolist()])
    return decoding_ceiling(root / name, SUBJECT, targets.read("latent").reshape(len(ids), -1), numbers, repeats=3)


@pytest.mark.parametrize("space", SPACES)
def test_predictions_reach_the_planted_ceiling_and_never_pass_it(root, clear, space):
    """300 training stimuli lose some of what infinitely many would allow; chance over the latents stays small."""
    found, ceiling = correlations(clear, space), ceilings(root, clear, "clear", space)
    assert np.nanmean(found) >= 0.6 * ceiling.mean()
    assert np.nanmean(found) <= ceiling.mean() + 3 / np.sqrt(N_TEST)
    assert np.corrcoef(found, ceiling)[0, 1] > 0.3, "latents that can be decoded better are decoded better"


@pytest.mark.parametrize("space", SPACES)
def test_more_noise_lowers_predictions_as_it_lowers_the_ceiling(root, clear, noisy, space):
    lower = ceilings(root, noisy, "noisy", space)
    assert lower.mean() < ceilings(root, clear, "clear", space).mean()
    assert np.nanmean(correlations(noisy, space)) < np.nanmean(correlations(clear, space))


def test_the_noise_ceiling_in_the_files_is_the_planted_one(root, clear):
    betas, responses = Store(clear, f"betas/{SUBJECT}"), Store(clear, f"responses/{SUBJECT}/averaged")
    assert 25 < np.median(100 / (1 + 1 / (3 * betas.read("ncsnr") ** 2))) < 35
    truth = np.load(root / "clear/truth.npz")
    shown = [nsd_id_of(one) for one in responses.read("stimulus_id").tolist()]
    rows = np.searchsorted(truth["nsd_id"], shown)
    signal = truth["components"][rows] @ truth[f"{SUBJECT}/weights"]
    response = responses.read("response")
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(signal.T, response.T, strict=True)]
    explained = 1 / (1 + 1 / (3 * betas.read("ncsnr").astype(float) ** 2))
    assert np.corrcoef(np.square(r), explained)[0, 1] > 0.8


def test_shuffled_stimuli_are_decoded_at_chance(clear):
    from bdflow.regression import ridge, streaming

    responses = Store(clear, f"responses/{SUBJECT}/averaged")
    x, split = responses.read("response"), responses.read("split")
    train, test, _, _ = ridge.z_score(x[split == "train"], x[split == "test"])
    (hat_matrix,) = ridge.hat_matrices(train, test, [1000.0])
    order = np.random.default_rng(0).permutation((split == "train").sum())
    for space in SPACES:
        targets = whole(clear, f"targets/{space}")
        y = targets.read("latent").reshape(targets.sizes["stimulus_id"], -1)
        ids = responses.read("stimulus_id")
        y_train = y[targets.rows("stimulus_id", ids[split == "train"])][order]
        y_test = y[targets.rows("stimulus_id", ids[split == "test"])]
        r = streaming.predict_block([hat_matrix], [y_train], [y_test]).pearson_r
        assert abs(np.nanmedian(r)) < 3 / np.sqrt(N_TEST)
        assert np.nanmedian(r) < np.nanmedian(correlations(clear, space)) / 2
