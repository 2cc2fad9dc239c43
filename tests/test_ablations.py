"""What each part of a reconstruction is for: the paper's ablations (its Table 2), qualitatively, on planted brains.

Several simulated datasets (other scenes, other brains), each run through the whole pipeline and painted with the
demo's settings. PixCorr as
`bdflow.metrics` has it; CLIP identification is two-way, by the image embedding of the bundle's own CLIP.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from bdflow import metrics, noise
from bdflow.config import load, parse
from bdflow.models.latents import FeatureExtractor
from bdflow.nsd import DESIGN, subject_index
from bdflow.pipeline import Pipeline, stages_until
from bdflow.simulate import SimulateOptions, simulate
from bdflow.simulate_files import write_design
from stores import Store

SUBJECT = "subj01"
SEEDS = (1, 2, 3)
N_TEST = 40
VARIANTS = ("full", "only_vdvae", "no_vdvae", "no_clip_text", "no_clip_vision")
DIMENSIONS = {"n_shared": N_TEST, "n_own": 400, "stimulus_size": 212, "trials_per_session": 440}
DEMO = load("demo")
PAINTING = DEMO.reconstruct.model_dump(include={"steps", "strength"})
CHANCE_SD = np.sqrt(1 / 12 / N_TEST)
"""Of the mean of N_TEST two-way identifications by chance alone, each uniform on [0, 1]."""

Scores = dict[str, dict[str, float]]

pytestmark = [pytest.mark.storm, pytest.mark.timeout(1800)]


def dataset(root: Path, seed: int, **options) -> Path:
    return simulate(root, SimulateOptions(subjects=(SUBJECT,), seed=seed, **DIMENSIONS, **options))


def shuffled(root: Path, source: Path, seed: int) -> Path:
    """The same betas, said to be the responses to other stimuli: test and training stimuli each permuted."""
    shutil.copytree(source, root, copy_function=os.link)
    names = ("masterordering", "subjectim", "sharedix")
    content = scipy.io.loadmat(source / DESIGN)
    design = {name: content[name].astype(np.int64) for name in names}
    rng, row = noise.generator(seed, "shuffled"), design["subjectim"][subject_index(SUBJECT) - 1]
    for part in (row[:N_TEST], row[N_TEST:]):
        part[:] = rng.permutation(part)
    (root / DESIGN).unlink()
    write_design(root / DESIGN, design)
    return root


def study_of(data: Path, settings, variants=("full",), upper_bound=False) -> Path:
    sections = {
        "subjects": [SUBJECT],
        "nsd": {"root": str(data), "sessions": 3},
        "regress": {"alpha": DEMO.regress.alpha.model_dump()},
        "reconstruct": {**PAINTING, "variants": list(variants), "upper_bound": upper_bound, "batch_size": 8},
        "chunks": {"stimuli": 64, "voxels": 256, "columns": 512, "images": 8},
        "study": str(data.with_suffix(".zarr")),
        "execution": {stage: {"executor": "dask", "workers": 2} for stage in ("features", "reconstruct")},
    }
    config = parse(settings(data.parent, **sections))
    Pipeline(config, say=lambda line: None).run(tuple(stages_until("reconstruct")))
    return config.study


def scores(study: Path, extractor: FeatureExtractor) -> Scores:
    """{subject/variant: {"PixCorr": ..., "CLIP": ...}} of every reconstruction of a study."""
    found: Scores = {}
    stimuli = Store(study, "stimuli")
    for folder in sorted((study / "reconstructions").glob("*/*/")):
        name = f"{folder.parent.name}/{folder.name}"
        store = Store(study, f"reconstructions/{name}")
        made = store.read("image")
        truth = stimuli.read("image", {"stimulus": stimuli.rows("nsd_id", store.read("nsd_id"))})
        pixels = [metrics.pixcorr(a, metrics.at_size(b, *a.shape[:2])) for a, b in zip(truth, made, strict=True)]
        seen, shown = (extractor.vision_embeddings(images)[:, 0] for images in (made, truth))
        found[name] = {"PixCorr": float(np.nanmean(pixels)), "CLIP": float(metrics.two_way(shown, seen).mean())}
    return found


@pytest.fixture(scope="module")
def measured(settings, tmp_path_factory) -> dict[int, dict[str, Scores]]:
    """By seed: scores of the `clear` brains, of `noisy` ones, and of the clear ones with `shuffled` betas."""
    extractor, found = FeatureExtractor("tiny"), {}
    for seed in SEEDS:
        root = tmp_path_factory.mktemp(f"seed{seed}")
        clear = dataset(root / "clear", seed)
        study_of(clear, settings, upper_bound=True)
        studies = {
            "clear": study_of(clear, settings, VARIANTS),
            "noisy": study_of(dataset(root / "noisy", seed, noise_ceiling=3.0), settings),
            "shuffled": study_of(shuffled(root / "shuffled", clear, seed), settings),
        }
        found[seed] = {name: scores(study, extractor) for name, study in studies.items()}
        for name, rows in found[seed].items():
            for path, values in rows.items():
                print(f"seed {seed}, {name:8} {path:22} " + ", ".join(f"{k} {v:.3f}" for k, v in values.items()))
        shutil.rmtree(root)
    return found


def of_variants(measured, seed: int, metric: str, subject: str = SUBJECT) -> dict[str, float]:
    return {variant: measured[seed]["clear"][f"{subject}/{variant}"][metric] for variant in VARIANTS}


@pytest.mark.parametrize("seed", SEEDS)
def test_full_reconstructions_are_identified(measured, seed):
    assert of_variants(measured, seed, "CLIP")["full"] >= 0.85


def gaps(measured, metric: str, better: str, worse: str) -> list[float]:
    """By seed, how much higher the least of some variants scores than the best of others (names, spaces between)."""
    every = [of_variants(measured, seed, metric) for seed in SEEDS]
    return [min(of[v] for v in better.split()) - max(of[v] for v in worse.split()) for of in every]


@pytest.mark.parametrize(
    ("metric", "better", "worse", "least", "mean"),
    [
        ("PixCorr", "only_vdvae", "full no_clip_text no_clip_vision no_vdvae", 0.008, 0.02),
        ("PixCorr", "full only_vdvae no_clip_text no_clip_vision", "no_vdvae", 0.005, 0.012),
        ("CLIP", "full no_clip_text no_clip_vision no_vdvae", "only_vdvae", 0.03, 0.05),
    ],
    ids=["only_vdvae has the best pixels", "no_vdvae the worst pixels", "only_vdvae the least meaning"],
)
def test_variants_rank_as_in_the_papers_table_2(measured, metric, better, worse, least, mean):
    """In every seed, and clearly over seeds."""
    found = gaps(measured, metric, better, worse)
    assert min(found) > least, found
    assert np.mean(found) > mean, found


@pytest.mark.parametrize("seed", SEEDS)
def test_more_noise_lowers_the_scores(measured, seed):
    clear, noisy = (measured[seed][name][f"{SUBJECT}/full"] for name in ("clear", "noisy"))
    for metric in clear:
        assert noisy[metric] < clear[metric] - 0.05, metric


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffled_betas_are_identified_at_chance(measured, seed):
    found = measured[seed]["shuffled"][f"{SUBJECT}/full"]
    assert abs(found["CLIP"] - 0.5) < 4 * CHANCE_SD


@pytest.mark.parametrize("seed", SEEDS)
def test_true_latents_give_clearly_better_reconstructions(measured, seed):
    true, predicted = (measured[seed]["clear"][f"{subject}/full"] for subject in ("true", SUBJECT))
    assert true["CLIP"] > predicted["CLIP"] + 0.005
    assert true["PixCorr"] > predicted["PixCorr"] + 0.005
