"""What simulated areas like to see is what was planted in them: kinds by CLIP, eccentricity by where the energy lies.

The networks paint a thing into every picture, whatever the pattern; and a pattern of 1 in any voxels has something of a
pattern of 1 in all. What a region adds to that is measured against pictures of as strong patterns of random voxels.
"""

import numpy as np
import pytest
from scipy.stats import binom

from bdflow.config import Config, load
from bdflow.models.bundle import open_bundle
from bdflow.models.latents import FeatureExtractor
from bdflow.painting import painter
from bdflow.pipeline import Pipeline, stages_until
from bdflow.rescale import rescaled
from bdflow.scenes import scene
from bdflow.simulate import SimulateOptions, simulate
from bdflow.simulate_brain import PHOTO
from stores import Store

SUBJECTS = ("subj01", "subj02", "subj05", "subj07")
AREAS = {"faces": "face", "words": "words", "places": "place", "bodies": "body"}
BANDS = ("ecc 0-0.5", "ecc 0.5-1", "ecc 1-2", "ecc 2-4", "ecc >4")
DRAWS = 8
BASELINE = [f"random 100 seed {number}" for number in range(DRAWS)]
CONTROLS = [f"random 100 seed {number}" for number in range(DRAWS, 2 * DRAWS)]
SEEDS = 4

pytestmark = [pytest.mark.storm, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Config:
    """The demo's brains to their decoders, and pictures of their areas, bands and random voxels."""
    root = tmp_path_factory.mktemp("roi")
    simulate(root / "nsd", SimulateOptions(subjects=SUBJECTS))
    paths = [f"study={root / 'study.zarr'}", f"nsd.root={root / 'nsd'}", f"report.path={root / 'report'}"]
    stages = ("ingest", "features", "regress", "roi")
    paths += [f"execution.{stage}={{executor: dask, workers: 2}}" for stage in stages]
    sets = {"areas": [*AREAS, *BASELINE, *CONTROLS], "eccentricity": list(BANDS)}
    config = load("demo", [*paths, f"roi={{sets: {sets}, seeds: {SEEDS}}}"])
    pipeline = Pipeline(config, say=lambda line: None)
    pipeline.run((*stages_until("regress"), "roi"))
    return config


# --- kinds ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kinds(study) -> np.ndarray:
    """(kinds, features) how the bundle's CLIP sees training photos of each kind, less all training photos."""
    targets = Store(study.study, "targets/clip_vision")
    ids, train = targets.read("nsd_id"), targets.read("split") == "train"
    seen = targets.read("latent")[:, 0].astype(np.float64)
    kind = np.array([scene(int(nsd_id), 0, 16).attributes["kind"] for nsd_id in ids])
    return np.stack([seen[train & (kind == name)].mean(axis=0) for name in AREAS.values()]) - seen[train].mean(axis=0)


@pytest.fixture(scope="module")
def likeness(study, kinds) -> dict[str, dict[str, np.ndarray]]:
    """{subject: {region: (kinds,)}}: correlation with each kind of what CLIP sees in a region's pictures (the mean over
    seeds), less what it sees in those of random voxels."""
    extractor, found = FeatureExtractor("tiny"), {}
    for subject in (*SUBJECTS, "mean"):
        store = Store(study.study, f"rois/areas/{subject}/images")
        images, regions = store.read("image")[:, 0], store.read("region").tolist()
        seen = extractor.vision_embeddings(images.reshape(-1, *images.shape[2:]))[:, 0]
        seen = dict(zip(regions, seen.reshape(len(regions), SEEDS, -1).mean(axis=1), strict=True))
        nothing = np.mean([seen[name] for name in BASELINE], axis=0)
        shown = [*AREAS, *CONTROLS]
        found[subject] = {name: np.corrcoef(seen[name] - nothing, kinds)[0, 1:] for name in shown}
        for name in shown[: len(AREAS)]:
            print(subject, name, dict(zip(AREAS.values(), found[subject][name].round(2).tolist(), strict=True)))
    return found


@pytest.mark.parametrize("subject", [*SUBJECTS, "mean"])
@pytest.mark.parametrize("area", AREAS)
def test_pictures_of_an_area_are_of_the_kind_it_prefers(likeness, subject, area):
    found = likeness[subject][area]
    own = list(AREAS).index(area)
    assert found[own] > np.delete(found, own).max(), found


def test_the_preference_is_clear_over_subjects(likeness):
    for own, area in enumerate(AREAS):
        found = np.mean([likeness[subject][area] for subject in SUBJECTS], axis=0)
        assert found[own] > np.delete(found, own).max() + 0.25, (area, found)


def test_random_voxels_prefer_nothing(likeness):
    """Each kind is found in one of four controls, as chance has it; on average none is liked more than another."""
    found = np.array([likeness[subject][name] for subject in SUBJECTS for name in CONTROLS])
    counts = np.bincount(found.argmax(axis=1), minlength=len(AREAS))
    print("controls", dict(zip(AREAS.values(), counts.tolist(), strict=True)), found.mean(axis=0).round(2))
    assert counts.max() <= binom.ppf(0.999, len(found), 1 / len(AREAS))
    areas = np.mean([[likeness[s][area][own] for own, area in enumerate(AREAS)] for s in SUBJECTS])
    assert np.abs(found.mean(axis=0)).max() < areas / 3


# --- eccentricity ---------------------------------------------------------------------------------------------


def eccentricity(size: int) -> np.ndarray:
    """Degrees from fixation of each pixel of a photo."""
    along = (np.arange(size) + 0.5) / size * PHOTO - PHOTO / 2
    return np.hypot(*np.meshgrid(along, along))


def mean_eccentricity(energy: np.ndarray) -> np.ndarray:
    """Of each map of energy (..., y, x), degrees."""
    return (energy * eccentricity(energy.shape[-1])).sum(axis=(-1, -2)) / energy.sum(axis=(-1, -2))


@pytest.fixture(scope="module")
def energy(study) -> dict[str, dict[str, np.ndarray]]:
    """{subject: {"guesses", "images", "latents": (bands,)}}: mean eccentricity of what a band changes, against the
    mean latent painted with the same noise; of latents, of the layers of 8 px and more, in SD."""
    networks, found = painter(study), {}
    layers = open_bundle("tiny").layers
    for subject in (*SUBJECTS, "mean"):
        parts = {}
        for space in ("vdvae", "clip_vision", "clip_text"):
            mean, std = (
                Store(study.study, f"rois/eccentricity/{subject}/{space}").read(f"train_{s}") for s in ("mean", "std")
            )
            parts[space] = np.repeat(rescaled(mean[None], mean, std, study.roi.rescale), SEEDS, axis=0)
            if space == "vdvae":
                moved = (Store(study.study, f"rois/eccentricity/{subject}/vdvae").read("latent") - mean) / std
        guess = networks.guess(parts["vdvae"], f"roi {subject}", range(SEEDS))
        image = networks.paint(guess, parts["clip_vision"], parts["clip_text"], f"roi {subject}", range(SEEDS))
        found[subject] = {}
        for kind, nothing in (("guesses", guess), ("images", image)):
            made = Store(study.study, f"rois/eccentricity/{subject}/{kind}").read("image")[:, 0]
            found[subject][kind] = mean_eccentricity(np.square(made - nothing.astype(float)).mean(axis=(1, -1)))
        start, by_layer = 0, []
        for c, h, w in layers:
            if h >= 8:
                by_layer.append(
                    mean_eccentricity(np.square(moved[:, start : start + c * h * w].reshape(-1, c, h, w)).mean(axis=1))
                )
            start += c * h * w
        found[subject]["latents"] = np.mean(by_layer, axis=0)
        for kind, values in found[subject].items():
            print(subject, kind, values.round(2))
    return found


@pytest.mark.parametrize("subject", [*SUBJECTS, "mean"])
def test_bands_of_eccentricity_put_their_detail_where_they_see(energy, subject):
    """In the guesses, which carry the layout; the tiny diffusion model paints its thing at one place for all bands."""
    guesses, latents = energy[subject]["guesses"], energy[subject]["latents"]
    assert np.corrcoef(guesses, range(len(BANDS)))[0, 1] > 0.9, guesses
    assert guesses[:2].max() < guesses[2:].min() + 0.1, guesses
    assert guesses[-1] - guesses[0] > 0.3, guesses
    assert guesses.argmax() == len(BANDS) - 1
    assert latents[-1] - latents[:2].mean() > 0.15, latents
