"""What simulated areas like to see is what was planted in them: kinds by CLIP, eccentricity by where the energy lies.

The networks paint a thing into every picture, whatever the pattern; and a pattern of 1 in any voxels has something of a
pattern of 1 in all. What a region adds to that is measured against pictures of as strong patterns of random voxels.
"""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from bdflow.config import Config, load, parse
from bdflow.models.latents import FeatureExtractor
from bdflow.models.weights.bundle import open_bundle
from bdflow.pipeline import Pipeline, stages_until
from bdflow.regions.rescale import rescaled
from bdflow.simulation.brains import PHOTO
from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.simulation.scenes import scene
from bdflow.stores import Store
from bdflow.study.painting import painting
from tests.conftest import SPACES
from tests.support.parts import whole

SUBJECTS = ("subj01", "subj02", "subj05", "subj07")
AREAS = {"faces": "face", "words": "words", "places": "place", "bodies": "body"}
BANDS = ("ecc 0-0.5", "ecc 0.5-1", "ecc 1-2", "ecc 2-4", "ecc >4")
DRAWS = 8
BASELINE = [f"random 100 seed {number}" for number in range(DRAWS)]
CONTROLS = [f"random 100 seed {number}" for number in range(DRAWS, 2 * DRAWS)]
SEEDS = 16  # of 4, what the noise painted outweighs a weak area
GUESSES = 16

pytestmark = pytest.mark.timeout(1800)
AREAS_ARE_SHOWN = pytest.mark.slow(kind="science", case="kinds of regions")
BANDS_ARE_SHOWN = pytest.mark.slow(kind="science", case="eccentricity of regions")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Config:
    """The demo's brains to their decoders; CLIP's latents decoded with as light a penalty as the VDVAE's, so that weak
    areas show."""
    root = tmp_path_factory.mktemp("roi")
    simulate(root / "nsd", SimulateOptions(subjects=SUBJECTS))
    paths = [f"study={root / 'study.zarr'}", f"dataset.root={root / 'nsd'}", f"report.path={root / 'report'}"]
    stages = ("ingest", "features", "regress", "roi")
    paths += [f"execution.{stage}={{executor: serial}}" for stage in stages]
    painting = [*(f"spaces.{space}.ridge.alpha=1000" for space in SPACES), "painters.brain_diffuser.strength=0.75"]
    content = load("demo", [*paths, *painting]).model_dump()
    content["spaces"] = {name: content["spaces"][name] for name in SPACES}
    content["painters"] = {"brain_diffuser": content["painters"]["brain_diffuser"]}
    config = parse(content)
    Pipeline(config).run(tuple(stages_until("regress")))
    return config


def with_regions(study: Config, seeds: int, sets: dict[str, list[str]]) -> Config:
    """The study with pictures of these sets of regions."""
    roi = study.roi.model_copy(update={"sets": {name: tuple(of) for name, of in sets.items()}, "seeds": seeds})
    config = study.model_copy(update={"roi": roi})
    Pipeline(config).run(("roi",))
    return config


@pytest.fixture(scope="module")
def areas(study: Config) -> Config:
    """Areas and random voxels, with the pictures."""
    return with_regions(study, SEEDS, {"areas": [*AREAS, *BASELINE, *CONTROLS]})


@pytest.fixture(scope="module")
def bands(study: Config) -> Config:
    """Bands of eccentricity and random voxels; their latents are what is used, so one picture of each is enough."""
    return with_regions(study, 1, {"eccentricity": list(BANDS), "controls": list(CONTROLS)})


# --- kinds ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kinds(study) -> np.ndarray:
    """(kinds, features) how the bundle's CLIP sees training photos of each kind, less all training photos."""
    targets = whole(study.study, "targets/clip_vision")
    ids, train = targets.read("stimulus_id"), targets.read("split") == "train"
    seen = targets.read("latent")[:, 0].astype(np.float64)
    kind = np.array([scene(int(stimulus_id), 0, 16).attributes["kind"] for stimulus_id in ids])
    return np.stack([seen[train & (kind == name)].mean(axis=0) for name in AREAS.values()]) - seen[train].mean(axis=0)


@pytest.fixture(scope="module")
def likeness(areas, kinds) -> dict[str, dict[str, np.ndarray]]:
    """{subject: {region: (kinds,)}}: correlation with each kind of what CLIP sees in a region's pictures (the mean over
    seeds), less what it sees in those of random voxels."""
    extractor, found = FeatureExtractor("tiny"), {}
    for subject in (*SUBJECTS, "mean"):
        store = Store(areas.study, f"rois/areas/{subject}/images/brain_diffuser")
        images, regions = store.read("image")[:, 0], store.read("region").tolist()
        seen = extractor.vision_embeddings(images.reshape(-1, *images.shape[2:]))[:, 0]
        seen = dict(zip(regions, seen.reshape(len(regions), SEEDS, -1).mean(axis=1), strict=True))
        nothing = np.mean([seen[name] for name in BASELINE], axis=0)
        shown = [*AREAS, *CONTROLS]
        found[subject] = {name: np.corrcoef(seen[name] - nothing, kinds)[0, 1:] for name in shown}
        for name in shown[: len(AREAS)]:
            print(subject, name, dict(zip(AREAS.values(), found[subject][name].round(2).tolist(), strict=True)))
    return found


@AREAS_ARE_SHOWN
@pytest.mark.parametrize("subject", [*SUBJECTS, "mean"])
@pytest.mark.parametrize("area", AREAS)
def test_pictures_of_an_area_are_of_the_kind_it_prefers(likeness, subject, area):
    found = likeness[subject][area]
    own = list(AREAS).index(area)
    assert found[own] > np.delete(found, own).max(), found


@AREAS_ARE_SHOWN
def test_the_preference_is_clear_over_subjects(likeness):
    for own, area in enumerate(AREAS):
        found = np.mean([likeness[subject][area] for subject in SUBJECTS], axis=0)
        assert found[own] > np.delete(found, own).max() + 0.25, (area, found)


@AREAS_ARE_SHOWN
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


def of_patterns(study: Config, subject: str, space: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents of the bands and the controls; mean and SD of the training latents."""
    bands, controls = (
        Store(study.study, f"rois/{chosen}/{subject}/latents/{space}") for chosen in ("eccentricity", "controls")
    )
    assert controls.read("region").tolist() == CONTROLS
    latent = np.concatenate([bands.read("latent"), controls.read("latent")])
    return latent, bands.read("train_mean"), bands.read("train_std")


def changed(made: list[np.ndarray]) -> np.ndarray:
    """Energy (patterns, y, x) of the mean over seeds of what each pattern's picture has and the last one has not."""
    return np.square(np.mean([of[:-1].astype(float) - of[-1] for of in made], axis=0)).mean(axis=-1)


@pytest.fixture(scope="module")
def energy(bands) -> dict[str, dict[str, np.ndarray]]:
    """{subject: {"latents", "guesses": (bands + controls,)}}: mean eccentricity, in degrees, of the energy of what a
    pattern changes. In the latents of layers of 8 px and more, in SD; in guesses, the mean over seeds less that of the
    training mean's, all with the same noise. Rescaled by `deviation`, so that it does not matter how large a region is.
    Finished pictures are left out: the networks paint things over the guess, and no order holds in each subject.
    """
    study = bands
    networks: Any = painting(study, "brain_diffuser")
    found: dict[str, dict[str, np.ndarray]] = {}
    for subject in (*SUBJECTS, "mean"):
        latent, mean, std = of_patterns(study, subject, "vdvae")
        start, by_layer = 0, []
        for c, h, w in open_bundle("tiny").layers:
            moved = ((latent - mean) / std)[:, start : start + c * h * w].reshape(-1, c, h, w)
            start += c * h * w
            by_layer += [mean_eccentricity(np.square(moved).mean(axis=1))] if h >= 8 else []
        parts = rescaled(np.concatenate([latent, mean[None]]), mean, std, "deviation", 0.5)
        who, seeds = f"roi {subject}", [[seed] * len(parts) for seed in range(GUESSES)]
        guesses = [networks.guess(parts, who, seed) for seed in seeds]
        found[subject] = {
            "latents": np.mean(by_layer, axis=0),
            "guesses": mean_eccentricity(changed(guesses)),
        }
        for kind, values in found[subject].items():
            print(subject, kind, values[: len(BANDS)].round(2), "controls", values[len(BANDS) :].mean().round(2))
    return found


def levels(values: np.ndarray) -> tuple[float, float, float, float]:
    """Degrees within 2 degrees, from 2 to 4, beyond 4; and of random voxels."""
    bands, control = values[: len(BANDS)], values[len(BANDS) :].mean()
    return bands[:3].mean(), bands[3], bands[4], control


@BANDS_ARE_SHOWN
@pytest.mark.parametrize("subject", [*SUBJECTS, "mean"])
@pytest.mark.parametrize("kind", ["latents", "guesses"])
def test_bands_of_eccentricity_put_their_detail_where_they_see(energy, subject, kind):
    """In latents the two outer bands are too near to one another to be told apart in each subject: see below."""
    inner, middle, outer, control = levels(energy[subject][kind])
    below, above = (0.15, 0.05) if kind == "latents" else (0.05, 0.2)
    assert inner < control - below
    assert inner < middle
    assert outer > control + above
    assert kind == "latents" or middle < outer


@BANDS_ARE_SHOWN
@pytest.mark.parametrize("kind", ["latents", "guesses"])
def test_they_are_in_order_over_subjects(energy, kind):
    inner, middle, outer, control = np.mean([levels(energy[subject][kind]) for subject in SUBJECTS], axis=0)
    assert inner < middle < outer
    assert outer > control + 0.1
