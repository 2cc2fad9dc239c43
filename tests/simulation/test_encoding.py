"""What the simulated voxels encode: receptive fields where the labels say, kinds in the areas of their name, and a
signal that a linear decoder can read."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from bdflow.datasets.ceilings import noise_ceiling
from bdflow.errors import InputError
from bdflow.simulation import brains
from bdflow.simulation.brains import AREAS, FLOC, PHOTO
from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.simulation.encoding import Components, encode, receptive_field
from bdflow.simulation.scenes import LOCALISER_KINDS, scene
from tests.support.planted import decoding_ceiling
from tests.support.stand_in import stand_in_features

SUBJECT = "subj01"
OPTIONS = SimulateOptions(subjects=(SUBJECT,), n_shared=50, n_own=300, stimulus_size=64, sessions=1)
SMALL = dataclasses.replace(OPTIONS, n_shared=10, n_own=30, volume_shape=(14, 16, 12))
LAYERS = ((3, 1, 1), (3, 4, 4), (3, 8, 8))


def pyramid(images: np.ndarray, captions: list[list[str]], nsd_ids: list[int]) -> dict[str, np.ndarray]:
    """As stand_in_features, but vdvae is colour at 1, 4 and 8 px, each less what the coarser ones hold: LAYERS."""
    fine = patches(images, 8)
    coarse = fine.reshape(len(fine), 3, 4, 2, 4, 2).mean(axis=(3, 5))
    whole = coarse.mean(axis=(2, 3), keepdims=True)
    levels = (whole, coarse - whole, fine - coarse.repeat(2, axis=2).repeat(2, axis=3))
    vdvae = np.concatenate([level.reshape(len(fine), -1) for level in levels], axis=1)
    return stand_in_features(images, captions, nsd_ids) | {"vdvae": vdvae}


def patches(images: np.ndarray, count: int) -> np.ndarray:
    """(n, 3, count, count): mean colours."""
    n, size = images.shape[:2]
    split = images.reshape(n, count, size // count, count, size // count, 3) / 255
    return split.mean(axis=(2, 4)).transpose(0, 3, 1, 2)


@dataclasses.dataclass
class Planted:
    """A simulated subject with its truth."""

    root: Path

    def __post_init__(self) -> None:
        self.truth = dict(np.load(self.root / "truth.npz"))
        self.summary = json.loads((self.root / "truth.json").read_text())
        self.anatomy = brains.brain(SUBJECT, OPTIONS.volume_shape, OPTIONS.seed)
        self.groups = self.anatomy.groups()
        self.prf, self.prefers = self[f"{SUBJECT}/prf"], self[f"{SUBJECT}/prefers"]
        self.kind = self["scene/kind"]
        signal = self["components"].astype(float) @ self[f"{SUBJECT}/weights"]
        self.signal = (signal - signal.mean(axis=0)) / signal.std(axis=0)
        rng = np.random.default_rng(0)
        self.response = signal + rng.normal(size=signal.shape) * self[f"{SUBJECT}/noise_sd"] / np.sqrt(3)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.truth[name]

    def layer(self, number: int) -> np.ndarray:
        """(stimuli, channels * positions): a layer's latents, rotated and scaled."""
        return self["components"][:, self["component_layer"] == number].astype(float)


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Planted:
    return Planted(simulate(tmp_path_factory.mktemp("colours") / "nsd", OPTIONS, features=pyramid, layers=LAYERS))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Planted:
    return Planted(simulate(tmp_path_factory.mktemp("tiny") / "nsd", OPTIONS))


@pytest.mark.parametrize("index", [1, 2, 5, 7])
def test_receptive_fields_agree_with_the_labels(index):
    anatomy = brains.brain(f"subj{index:02d}", OPTIONS.volume_shape, 0)
    labels = anatomy.rois["prf-visualrois"]
    assert (np.isfinite(anatomy.prf).all(axis=-1) == (labels > 0)).all()
    x, y, sd = np.moveaxis(anatomy.prf, -1, 0)
    eccentricity = np.hypot(x, y)
    for label in (1, 3, 5):
        assert (y[labels == label] > 0).all(), "ventral: upper visual field"
        assert (y[labels == label + 1] < 0).all(), "dorsal: lower visual field"
    assert (y[labels == 7] > 0).any()
    assert (y[labels == 7] < 0).any()
    middle = (labels.shape[0] - 1) / 2
    side = np.broadcast_to(np.arange(labels.shape[0])[:, None, None] - middle, labels.shape)
    assert (x[(labels > 0) & (side < 0)] > 0).all(), "the left hemisphere sees the right of the photo"
    assert (x[(labels > 0) & (side > 0)] < 0).all()
    for label, (low, high) in enumerate(((0, 0.5), (0.5, 1), (1, 2), (2, 4), (4, 6)), start=1):
        here = eccentricity[anatomy.rois["prf-eccrois"] == label]
        assert here.size > 20
        assert ((low <= here) & (here < high)).all()
    medians = []
    for numbers in AREAS.values():
        here = np.isin(labels, numbers)
        assert scipy.stats.spearmanr(eccentricity[here], sd[here])[0] > 0.99
        assert eccentricity[here].min() < 0.7
        assert eccentricity[here].max() > 4
        medians.append(np.median(sd[here]))
    assert medians == sorted(medians)
    early = eccentricity[labels > 0]
    assert (early < 1).sum() / 1 > 5 * ((early > 2) & (early < 4)).sum() / (4**2 - 2**2), (
        "more cortex a degree in the fovea"
    )


def test_receptive_field_on_a_grid():
    prf = np.array([[1.0, 2.0, 0.6], [-4.5, 0.0, 0.8], [0.0, 0.0, 3.0]])
    field = receptive_field(prf, 16, 16)
    np.testing.assert_allclose(field.sum(axis=0), 1)
    centres = (np.arange(16) + 0.5) / 16 * PHOTO - PHOTO / 2
    grid = field.reshape(16, 16, 3)
    assert centres @ grid[:, :, 0].sum(axis=0) == pytest.approx(1.0, abs=0.05)
    assert -centres @ grid[:, :, 0].sum(axis=1) == pytest.approx(2.0, abs=0.05), "rows run downwards"
    assert grid[:, 0, 1].sum() > 0.5, "at the left edge"
    assert grid[:, :, 2].max() / grid[:, :, 2].min() < 10, "wide"
    draws = np.random.default_rng(0).normal(size=(200_000, 2)) * 0.6 + (1.0, 2.0)
    edges = np.linspace(-PHOTO / 2, PHOTO / 2, 17)
    counts = np.histogram2d(-draws[:, 1], draws[:, 0], (edges, edges))[0]
    np.testing.assert_allclose(grid[:, :, 0], counts / counts.sum(), atol=0.002)


def explained(signal: np.ndarray, predictors: np.ndarray) -> float:
    """Share of variance of `signal` (n,) that a linear function of `predictors` (n, p) explains."""
    predictors = np.column_stack([np.ones(len(signal)), predictors])
    return 1 - (signal - predictors @ np.linalg.lstsq(predictors, signal)[0]).var() / signal.var()


def test_signals_follow_what_is_at_the_receptive_field(colours):
    """The photo's colours at the place of a V1 voxel explain its signal better than those opposite of fixation, and
    nowhere better than near there."""
    images = np.stack([scene(int(i), 0, 64).image for i in colours["nsd_id"]])
    seen = patches(images, 8)
    area = colours.anatomy.rois["prf-visualrois"][colours.anatomy.general]
    far = np.isin(area, AREAS["V1"]) & (np.hypot(*colours.prf[:, :2].T) > 2)
    at = np.array(
        [[explained(s, seen[:, :, i, j]) for i in range(8) for j in range(8)] for s in colours.signal[:, far].T]
    )
    x, y = (np.clip((v / PHOTO + 0.5) * 8, 0, 7).astype(int) for v in (colours.prf[far, 0], -colours.prf[far, 1]))
    nearest = 8 * y + x
    voxels = np.arange(len(at))
    assert (at[voxels, nearest] > at[voxels, 63 - nearest]).mean() > 0.75
    best = at.argmax(axis=1)
    apart = np.hypot(best // 8 - nearest // 8, best % 8 - nearest % 8) * PHOTO / 8
    assert np.median(apart) < 1.5


@pytest.mark.parametrize("which", ["colours", "tiny"])
def test_weights_lie_under_the_receptive_field(which, request):
    planted = request.getfixturevalue(which)
    weights, place = planted[f"{SUBJECT}/weights"], planted["component_position"]
    early = planted.groups == "early"
    assert not weights[:, ~early][planted["component_layer"] >= 0].any()
    assert not weights[:, early][planted["component_layer"] < 0].any()
    for number, (_, h, w) in enumerate(planted.summary["layers"]):
        rows = planted["component_layer"] == number
        if h * w == 1:
            continue
        power = weights[rows][:, early] ** 2
        centre = place[rows, :2].T @ power / power.sum(axis=0)
        off = np.hypot(*(centre - np.clip(planted.prf[early, :2].T, -PHOTO / 2, PHOTO / 2)))
        assert (off < place[rows, 2][0] / 2 + planted.prf[early, 2]).mean() > 0.95


@pytest.mark.parametrize("which", ["colours", "tiny"])
def test_areas_respond_to_their_kinds(which, request):
    """By how many SD a voxel responds more to scenes of a kind than to all others."""
    planted = request.getfixturevalue(which)
    early = planted.groups == "early"
    assert list(FLOC) == list(planted["kinds"]) == list(LOCALISER_KINDS)
    for column, kind in enumerate(FLOC):
        shown = planted.kind == kind
        more = planted.signal[shown].mean(axis=0) - planted.signal[~shown].mean(axis=0)
        own = planted.prefers[:, column]
        assert (more[own] > 0.3).mean() > 0.95, kind
        assert np.median(more[own]) > 0.8
        assert np.median(np.abs(more[early])) < 0.5 * np.median(more[own])
        other = planted.prefers.any(axis=1) & ~own
        assert np.median(more[other]) < 0.25


@pytest.mark.parametrize("which", ["colours", "tiny"])
def test_ceilings_are_distributed_as_in_nsd(which, request):
    planted = request.getfixturevalue(which)
    ceilings = noise_ceiling(planted[f"{SUBJECT}/ncsnr"], 3)
    assert np.median(ceilings) == pytest.approx(30)
    low, high = np.percentile(ceilings, (5, 95))
    assert low < 12
    assert 58 < high < 78
    assert scipy.stats.skew(ceilings) > 0.2
    assert np.median(ceilings[planted.groups == "early"]) > np.median(ceilings[planted.groups == "other"])
    assert planted.summary["subjects"][SUBJECT]["noise_ceiling_percent"]["nsdgeneral"][2] == 30


def decode(train: np.ndarray, other: np.ndarray, targets: np.ndarray, alpha: float = 1000.0) -> np.ndarray:
    """Ridge regression of `targets` on z-scored responses, at `other`."""
    mean, std = train.mean(axis=0), train.std(axis=0)
    train, other = (train - mean) / std, (other - mean) / std
    dual = np.linalg.solve(train @ train.T + alpha * np.eye(len(train)), targets - targets.mean(axis=0))
    return other @ (train.T @ dual) + targets.mean(axis=0)


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each column; 0 where one is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return (a * b).sum(axis=0) / np.where(scale > 0, scale, 1)


@pytest.mark.parametrize("which", ["colours", "tiny"])
def test_ridge_recovers_the_spatial_layers(which, request):
    """From 300 stimuli to 50 others: layers up to 8 px to three quarters of the best linear decoder's correlation."""
    planted = request.getfixturevalue(which)
    shared = np.flatnonzero(np.isin(planted["nsd_id"], shared_ids(planted.root)))
    own = np.setdiff1d(np.arange(350), shared)
    for number, (_, h, _) in enumerate(planted.summary["layers"]):
        if h > 8:
            continue
        latents = planted.layer(number)
        r = correlation(decode(planted.response[own], planted.response[shared], latents[own]), latents[shared])
        ceiling = decoding_ceiling(planted.root, SUBJECT, latents, planted["nsd_id"], repeats=3)
        power = latents.var(axis=0)
        reached, possible = (np.average(v, weights=power) for v in (r, ceiling))
        assert possible > 0.7
        assert reached > 0.75 * possible, (number, reached, possible)


def shared_ids(root: Path) -> np.ndarray:
    from bdflow.datasets.nsd import NSD

    return NSD(root).design().sharedix - 1


@pytest.mark.parametrize("subject", ["subj01", "subj02", "subj05", "subj07"])
def test_a_pattern_on_an_area_decodes_to_its_kind(tiny, subject):
    """1 on an area's voxels, 0 elsewhere: of the localisers' kinds, the decoded CLIP latents are most like its own."""
    names = ("components", "component_space", "component_layer", "component_position")
    parts = Components(*(tiny[name] for name in names), tiny.summary["layers"], {})
    anatomy = brains.brain(subject, OPTIONS.volume_shape, OPTIONS.seed)
    planted = encode(anatomy, parts, tiny.kind, 30.0, OPTIONS.seed, subject)
    signal = parts.values @ planted.weights
    response = signal + np.random.default_rng(0).normal(size=signal.shape) * planted.noise_sd / np.sqrt(3)
    patterns = response.mean(axis=0) + planted.prefers.T * response.std(axis=0)
    for space in ("clip_vision", "clip_text"):
        latents = tiny["components"][:, tiny["component_space"] == space].astype(float)
        decoded = decode(response, patterns, latents) - latents.mean(axis=0)
        means = np.stack([latents[tiny.kind == kind].mean(axis=0) for kind in FLOC]) - latents.mean(axis=0)
        like = np.corrcoef(decoded, means)[:4, 4:]
        assert (like.argmax(axis=1) == np.arange(4)).all(), (space, like.round(2))


def test_a_pattern_on_an_eccentricity_decodes_to_detail_there(colours):
    """1 on the voxels of an eccentricity: where the decoded 8 px layer differs from its mean."""
    labels = colours.anatomy.rois["prf-eccrois"][colours.anatomy.general]
    rings = np.stack([labels == label for label in range(1, 6)])
    patterns = colours.response.mean(axis=0) + rings * colours.response.std(axis=0)
    latents = colours.layer(2)
    energy = ((decode(colours.response, patterns, latents) - latents.mean(axis=0)) / latents.std(axis=0)) ** 2
    away = np.hypot(*colours["component_position"][colours["component_layer"] == 2, :2].T)
    centre = energy @ away / energy.sum(axis=1)
    assert centre[:2].max() < away.mean() < centre[3:].min()


def test_truth_tells_what_is_covered(colours):
    (*_, fine) = colours.summary["subjects"][SUBJECT]["coverage"]
    seen = receptive_field(colours.prf[colours.groups == "early"], 8, 8).sum(axis=1)
    assert fine["layer"] == [3, 8, 8]
    assert fine["poorly_covered"] == pytest.approx((seen < 3).mean(), abs=0.001)
    assert seen.min() > 0.3, "the whole photo is seen"
    assert seen.sum() == pytest.approx((colours.groups == "early").sum())


def test_without_layers_and_with_wrong_ones(tmp_path):
    one = simulate(tmp_path / "one", SMALL, features=pyramid)
    truth = json.loads((one / "truth.json").read_text())
    assert "no layer has positions" in truth["v1_to_hv4_encode"]
    assert truth["subjects"][SUBJECT]["coverage"] == []
    with pytest.raises(InputError, match="51 latents in 2 layers"):
        simulate(tmp_path / "two", SMALL, features=pyramid, layers=LAYERS[:2])
    two = simulate(tmp_path / "two", SMALL, features=pyramid, layers=LAYERS)
    again = simulate(tmp_path / "again", SMALL, features=pyramid, layers=LAYERS)
    for name in ("truth.npz", "truth.json"):
        assert (two / name).read_bytes() == (again / name).read_bytes() != (one / name).read_bytes()
    with pytest.raises(InputError, match="layers"):
        simulate(two, SMALL, features=pyramid)
