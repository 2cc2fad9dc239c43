"""What each part of a reconstruction is for: the paper's ablations (its Table 2), qualitatively, on planted brains.

Several simulated datasets (other scenes, other brains), each run through the whole pipeline and painted with the
demo's settings. PixCorr as
`bdflow.metrics.image_metrics` has it; CLIP identification is two-way, by the image embedding of the bundle's own CLIP.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from bdflow import random
from bdflow.config import load, parse
from bdflow.datasets.nsd import DESIGN, subject_index
from bdflow.metrics import image_metrics
from bdflow.models.latents import FeatureExtractor
from bdflow.pipeline import Pipeline, stages_until
from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.simulation.files import write_design
from bdflow.stores import Store
from tests.conftest import SPACES
from tests.support.parts import whole

SUBJECT = "subj01"
SEEDS = (1, 2, 3)
N_TEST = 40
VARIANTS = ("full", "only_vdvae", "no_vdvae", "no_clip_text", "no_clip_vision")
DIMENSIONS = {"n_shared": N_TEST, "n_own": 400, "stimulus_size": 212, "trials_per_session": 440}
DEMO = load("demo")
PAINTING = DEMO.painters["brain_diffuser"].model_dump(include={"steps", "strength"})
CHANCE_SD = np.sqrt(1 / 12 / N_TEST)
"""Of the mean of N_TEST two-way identifications by chance alone, each uniform on [0, 1]."""

Scores = dict[str, dict[str, float]]

pytestmark = pytest.mark.timeout(1800)
OVER_SEEDS = pytest.mark.slow(kind="science", case="ablations over seeds")
EACH_SEED = [pytest.param(n, marks=pytest.mark.slow(kind="science", case=f"ablations, seed {n}")) for n in SEEDS]


def dataset(root: Path, seed: int, **options) -> Path:
    return simulate(root, SimulateOptions(subjects=(SUBJECT,), seed=seed, **DIMENSIONS, **options))


def shuffled(root: Path, source: Path, seed: int) -> Path:
    """The same betas, said to be the responses to other stimuli: test and training stimuli each permuted."""
    shutil.copytree(source, root, copy_function=os.link)
    names = ("masterordering", "subjectim", "sharedix")
    content = scipy.io.loadmat(source / DESIGN)
    design = {name: content[name].astype(np.int64) for name in names}
    rng, row = random.generator(seed, "shuffled"), design["subjectim"][subject_index(SUBJECT) - 1]
    for part in (row[:N_TEST], row[N_TEST:]):
        part[:] = rng.permutation(part)
    (root / DESIGN).unlink()
    write_design(root / DESIGN, design)
    return root


def study_of(data: Path, settings, variants=("full",), upper_bound=False) -> Path:
    sections = {
        "subjects": [SUBJECT],
        "dataset": {"root": str(data), "sessions": 3},
        "spaces": {name: DEMO.spaces[name].model_dump() for name in SPACES},
        "painters": {"brain_diffuser": {**PAINTING, "variants": list(variants), "batch_size": 8}},
        "reconstruct": {"upper_bound": upper_bound},
        "chunks": {"stimuli": 64, "voxels": 256, "columns": 512, "images": 8},
        "study": str(data.with_suffix(".zarr")),
    }
    config = parse(settings(data.parent, **sections))
    Pipeline(config).run(tuple(stages_until("reconstruct")))
    return config.study


def scores(study: Path, extractor: FeatureExtractor) -> Scores:
    """{subject/variant: {"PixCorr": ..., "CLIP": ...}} of every reconstruction of a study."""
    found: Scores = {}
    stimuli = whole(study, "stimuli")
    for folder in sorted((study / "reconstructions/brain_diffuser").glob("*/*/")):
        name = f"{folder.parent.name}/{folder.name}"
        store = Store(study, f"reconstructions/brain_diffuser/{name}")
        made = store.read("image")[:, 0]
        truth = stimuli.read("image", {"stimulus_id": stimuli.rows("stimulus_id", store.read("stimulus_id"))})
        pixels = [
            image_metrics.pixcorr(a, image_metrics.at_size(b, *a.shape[:2])) for a, b in zip(truth, made, strict=True)
        ]
        seen, shown = (extractor.vision_embeddings(images)[:, 0] for images in (made, truth))
        found[name] = {"PixCorr": float(np.nanmean(pixels)), "CLIP": float(image_metrics.two_way(shown, seen).mean())}
    return found


class Measured(dict[int, dict[str, Scores]]):
    """By seed, measured when it is first asked for: scores of the `clear` brains, of `noisy` ones, and of the clear
    ones with `shuffled` betas."""

    def __init__(self, settings, folder: Callable[[str], Path]) -> None:
        self.settings, self.folder, self.extractor = settings, folder, FeatureExtractor("tiny")

    def __missing__(self, seed: int) -> dict[str, Scores]:
        root = self.folder(f"seed{seed}")
        clear = dataset(root / "clear", seed)
        study_of(clear, self.settings, upper_bound=True)
        studies = {
            "clear": study_of(clear, self.settings, VARIANTS),
            "noisy": study_of(dataset(root / "noisy", seed, noise_ceiling=3.0), self.settings),
            "shuffled": study_of(shuffled(root / "shuffled", clear, seed), self.settings),
        }
        self[seed] = {name: scores(study, self.extractor) for name, study in studies.items()}
        for name, rows in self[seed].items():
            for path, values in rows.items():
                print(f"seed {seed}, {name:8} {path:22} " + ", ".join(f"{k} {v:.3f}" for k, v in values.items()))
        shutil.rmtree(root)
        return self[seed]


@pytest.fixture(scope="module")
def measured(settings, tmp_path_factory) -> Measured:
    return Measured(settings, tmp_path_factory.mktemp)


def of_variants(measured, seed: int, metric: str, subject: str = SUBJECT) -> dict[str, float]:
    return {variant: measured[seed]["clear"][f"{subject}/{variant}"][metric] for variant in VARIANTS}


@pytest.mark.parametrize("seed", EACH_SEED)
def test_full_reconstructions_are_identified(measured, seed):
    assert of_variants(measured, seed, "CLIP")["full"] >= 0.85


def gap(measured, seed: int, metric: str, better: str, worse: str) -> float:
    """How much higher the least of some variants scores than the best of others (names, spaces between)."""
    of = of_variants(measured, seed, metric)
    return min(of[v] for v in better.split()) - max(of[v] for v in worse.split())


RANKS = {
    "only_vdvae has the best pixels": (
        "PixCorr",
        "only_vdvae",
        "full no_clip_text no_clip_vision no_vdvae",
        0.008,
        0.02,
    ),
    "no_vdvae the worst pixels": ("PixCorr", "full only_vdvae no_clip_text no_clip_vision", "no_vdvae", 0.005, 0.018),
    "only_vdvae the least meaning": ("CLIP", "full no_clip_text no_clip_vision no_vdvae", "only_vdvae", 0.015, 0.04),
}
"""Metric, variants that score higher, those that score lower, the least gap in a seed, that of the mean over seeds."""


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("seed", EACH_SEED)
def test_variants_rank_as_in_the_papers_table_2(measured, seed, rank):
    metric, better, worse, least, _ = RANKS[rank]
    assert gap(measured, seed, metric, better, worse) > least


@OVER_SEEDS
@pytest.mark.parametrize("rank", RANKS)
def test_over_seeds_they_rank_clearly(measured, rank):
    metric, better, worse, _, mean = RANKS[rank]
    found = [gap(measured, seed, metric, better, worse) for seed in SEEDS]
    assert np.mean(found) > mean, found


@pytest.mark.parametrize("seed", EACH_SEED)
def test_more_noise_lowers_the_scores(measured, seed):
    clear, noisy = (measured[seed][name][f"{SUBJECT}/full"] for name in ("clear", "noisy"))
    for metric in clear:
        assert noisy[metric] < clear[metric] - 0.05, metric


@pytest.mark.parametrize("seed", EACH_SEED)
def test_shuffled_betas_are_identified_at_chance(measured, seed):
    found = measured[seed]["shuffled"][f"{SUBJECT}/full"]
    assert abs(found["CLIP"] - 0.5) < 4 * CHANCE_SD


@pytest.mark.parametrize("seed", EACH_SEED)
def test_true_latents_give_clearly_better_reconstructions(measured, seed):
    true, predicted = (measured[seed]["clear"][f"{subject}/full"] for subject in ("true", SUBJECT))
    assert true["CLIP"] > predicted["CLIP"] + 0.005
    assert true["PixCorr"] > predicted["PixCorr"] + 0.005
