"""A small brain in NSD's format: where cortex, nsdgeneral and the ROIs lie, and what each voxel encodes."""

import itertools
from dataclasses import dataclass

import numpy as np

from bdflow import noise
from bdflow.nsd import ROI_LABELS, subject_index

VOXEL_SIZE = 1.8  # mm
NOISE_SD = 1.5  # of one trial, percent signal change, median over voxels

_GENERAL_SHARE = 0.17  # of cortex; NSD's subject 1: 15,724 of 107,104
_SHAPE_STEPS = (3, 5, 2)
_COMPONENT_DENSITY = 0.3
_NCSNR_SPREAD = 0.5  # SD of log ncsnr


SHARES: dict[str, dict[str, float]] = {
    "early": {"vdvae": 0.9, "clip_vision": 0.1},
    "category": {"vdvae": 0.1, "clip_vision": 0.5, "clip_text": 0.4},
    "other": {"vdvae": 0.4, "clip_vision": 0.35, "clip_text": 0.25},
}
"""Share of a voxel's signal variance from each latent space, by where the voxel lies."""


@dataclass(frozen=True)
class Brain:
    """One subject's anatomy.

    Attributes
    ----------
    inside : (x, y, z) bool, the brain mask that NSD's betas carry (0 outside).
    rois : for each of NSD's ROI files an (x, y, z) int16 volume: -1 outside cortex, 0 none, 1.. labels.
    """

    inside: np.ndarray
    rois: dict[str, np.ndarray]

    @property
    def general(self) -> np.ndarray:
        """(x, y, z) bool: nsdgeneral."""
        return self.rois["nsdgeneral"] > 0

    def groups(self) -> np.ndarray:
        """Which of SHARES each nsdgeneral voxel follows, (voxels,) str, in C order of (x, y, z)."""
        early = self.rois["prf-visualrois"][self.general] > 0
        category = np.any([v[self.general] > 0 for n, v in self.rois.items() if n.startswith("floc-")], axis=0)
        return np.where(early, "early", np.where(category, "category", "other"))


@dataclass(frozen=True)
class Encoding:
    """What was planted in a subject's nsdgeneral voxels (C order of (x, y, z)).

    Attributes
    ----------
    weights : (components, voxels) float64; signal = components @ weights, in percent signal change.
    mean, noise_sd : (voxels,) percent signal change; `noise_sd` is of one trial.
    ncsnr : (voxels,) SD of the signal over the stimuli, over `noise_sd`.
    """

    weights: np.ndarray
    mean: np.ndarray
    noise_sd: np.ndarray
    ncsnr: np.ndarray


def volume_shape(subject: str, base: tuple[int, int, int]) -> tuple[int, int, int]:
    """The subject's (x, y, z): `base` and a few voxels more, different for each of eight subjects."""
    index = subject_index(subject)
    x, y, z = (n + (k * index) % step for n, k, step in zip(base, (1, 2, 1), _SHAPE_STEPS, strict=True))
    return x, y, z


def affine(shape: tuple[int, int, int]) -> np.ndarray:
    """(4, 4) voxel to millimetre, the origin in the middle of the volume."""
    matrix = np.diag([VOXEL_SIZE, VOXEL_SIZE, VOXEL_SIZE, 1.0])
    matrix[:3, 3] = -VOXEL_SIZE * (np.asarray(shape) - 1) / 2
    return matrix


def brain(subject: str, base: tuple[int, int, int], seed: int) -> Brain:
    """An ellipsoid whose shell is cortex; nsdgeneral and its ROIs at the back (y ascends to the front).

    V1 to hV4 follow one another from the occipital pole, dorsal above and ventral below; in front of them
    lie the category areas, by their angle around the long axis: places medially below (PPA) and above (OPA,
    RSC), words and faces below, bodies at the side. The areas furthest in front lie outside nsdgeneral, as
    in NSD.
    """
    shape = volume_shape(subject, base)
    rng = noise.generator(seed, "brain", subject)
    x, y, z = (
        np.linspace(-1, 1, n).reshape([-1 if a == axis else 1 for a in range(3)]) / 0.94 for axis, n in enumerate(shape)
    )
    radius = np.sqrt(x**2 + y**2 + z**2)
    inside, cortex = radius < 1, (radius < 1) & (radius > 0.66)
    bend = rng.uniform(-0.12, 0.12, 3)
    front = y + bend[0] * x + bend[1] * z + bend[2] * x * z + rng.normal(0, 0.015, shape)
    depth = np.full(shape, np.inf)  # 0 at the occipital pole, 1 at the front end of nsdgeneral
    n_general = cortex.sum() * _GENERAL_SHARE * rng.uniform(0.85, 1.15)
    depth[cortex] = front[cortex].argsort().argsort() / n_general
    angle = np.degrees(np.arctan2(np.broadcast_to(z, shape), np.broadcast_to(np.abs(x), shape)))
    left, below = np.broadcast_to(x < 0, shape), np.broadcast_to(z < 0, shape)

    def between(low: float, value: np.ndarray, high: float) -> np.ndarray:
        return (low <= value) & (value < high)

    rois = {name: np.where(cortex, 0, -1).astype(np.int16) for name in ROI_LABELS if name != "streams"}
    rois["nsdgeneral"][depth < 1] = 1
    for area, (low, high) in enumerate(((0, 0.17), (0.17, 0.31), (0.31, 0.43))):
        rois["prf-visualrois"][between(low, depth, high) & below] = 2 * area + 1
        rois["prf-visualrois"][between(low, depth, high) & ~below] = 2 * area + 2
    rois["prf-visualrois"][between(0.43, depth, 0.52) & below] = 7

    early = rois["prf-visualrois"] > 0
    distance = np.broadcast_to(np.hypot(x, z), shape)[early]
    edges = np.quantile(distance, (0.15, 0.35, 0.6, 0.85))
    rois["prf-eccrois"][early] = 1 + np.searchsorted(edges, distance)

    ahead = (depth >= 0.43) & ~early
    for name, place, limits in (
        ("floc-faces", between(-48, angle, -18), (0.43, 0.64, 0.78, 0.92, 1.08, 1.2)),
        ("floc-words", between(-62, angle, -30) & left, (0.43, 0.62, 0.74, 0.86, 1.0, 1.15)),
        ("floc-bodies", between(-18, angle, 22), (0.43, 0.7, 0.86, 1.02, 1.15)),
    ):
        for label, (low, high) in enumerate(itertools.pairwise(limits), start=1):
            rois[name][ahead & place & between(low, depth, high)] = label
    for label, (sector, stretch) in enumerate(
        (((22, 45), (0.43, 0.75)), ((-91, -66), (0.55, 1.1)), ((62, 91), (0.7, 1.1))), start=1
    ):
        there = between(stretch[0], depth, stretch[1]) & between(sector[0], angle, sector[1])
        rois["floc-places"][ahead & there] = label
    return Brain(inside, rois)


def encode(
    groups: np.ndarray, components: np.ndarray, spaces: np.ndarray, ceiling: float, seed: int, subject: str
) -> Encoding:
    """Plant an encoding of `components` (stimuli, components), each of a latent space named in `spaces`.

    Each voxel takes a sparse random mixture of the components of each space, in the shares of its group
    (SHARES). Its ncsnr is log-normal, with the median that makes the median noise ceiling of three repeats
    `ceiling` percent.
    """
    rng = noise.generator(seed, "encoding", subject)
    n_voxels = groups.size
    weights = np.zeros((components.shape[1], n_voxels))
    for space in np.unique(spaces):
        mine = spaces == space
        drawn = rng.standard_normal((mine.sum(), n_voxels))
        drawn *= rng.random(drawn.shape) < _COMPONENT_DENSITY
        drawn[rng.integers(len(drawn), size=n_voxels), np.arange(n_voxels)] += 1.0
        share = np.array([SHARES[group].get(str(space), 0.0) for group in groups])
        weights[mine] = drawn / (components[:, mine] @ drawn).std(axis=0) * np.sqrt(share)
    noise_sd = NOISE_SD * np.exp(0.3 * rng.standard_normal(n_voxels))
    fraction = ceiling / 100
    median = np.sqrt(fraction / (1 - fraction) / 3)
    ncsnr = median * np.exp(_NCSNR_SPREAD * rng.standard_normal(n_voxels))
    weights *= ncsnr * noise_sd / (components @ weights).std(axis=0)
    return Encoding(weights, rng.normal(0.8, 0.6, n_voxels), noise_sd, ncsnr)
