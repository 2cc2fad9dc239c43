"""A small brain in NSD's format: where cortex, nsdgeneral and the ROIs lie, and what each voxel looks at."""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from bdflow import random
from bdflow.datasets.nsd import ROI_LABELS, subject_index

VOXEL_SIZE = 1.8  # mm
PHOTO = 8.4  # degrees of visual angle, the side of a photo in NSD

FLOC = {"face": "floc-faces", "words": "floc-words", "place": "floc-places", "body": "floc-bodies"}
"""NSD's localiser file of each kind of scene that it knows (scenes.LOCALISER_KINDS)."""

AREAS = {"V1": (1, 2), "V2": (3, 4), "V3": (5, 6), "hV4": (7,)}
"""Labels of prf-visualrois of each area, ventral first."""

_MIDDLE = (0.43, 0.6)
_STREAMS_END = 1.76
_STREAMS = ((-91, -18), (-18, 45), (45, 91))
"""Depths between which the streams' middle areas lie, and where the streams end; angles of the ventral, lateral and
parietal stream. NSD's subject 1: 5,917 of 27,638 voxels early, 2,770 in the middle; 15,724 in nsdgeneral."""

_GENERAL_SHARE = 0.17  # of cortex; NSD's subject 1: 15,724 of 107,104
_SHAPE_STEPS = (3, 5, 2)

_FURTHEST = 5.5  # degrees; a photo's corners are at 5.9
_HALF_MAGNIFICATION = 0.75  # degrees at which cortical magnification is half the fovea's (Horton & Hoyt 1991)
_ECCENTRICITIES = (0.5, 1.0, 2.0, 4.0)  # degrees, between the labels of prf-eccrois
_PRF_SIZE = {"V1": (0.25, 0.12), "V2": (0.35, 0.18), "V3": (0.5, 0.25), "hV4": (0.8, 0.4)}
"""A pRF's SD is the first number (degrees) plus the second times eccentricity: it grows with eccentricity and
from V1 to hV4, as in Dumoulin & Wandell 2008 and Amano et al. 2009 (round numbers)."""
_POLAR = {1: (0, 90), 2: (0, -90), 3: (90, 0), 4: (-90, 0), 5: (0, 90), 6: (0, -90), 7: (90, -90)}
"""Polar angle from the near to the far end of each prf-visualrois label: degrees above the horizontal meridian.
Areas meet at meridians: V1 and V2 at the vertical, V2 and V3 at the horizontal, V3v and hV4 at the upper
vertical one (Wandell et al. 2007)."""


@dataclass(frozen=True)
class Brain:
    """One subject's anatomy.

    Attributes
    ----------
    inside : (x, y, z) bool, the brain mask that NSD's betas carry (0 outside).
    rois : for each of NSD's ROI files an (x, y, z) int16 volume: -1 outside cortex, 0 none, 1.. labels.
    prf : (x, y, z, 3) float64, the population receptive field of every voxel of prf-visualrois: its centre to
        the right of and above fixation, and its SD, in degrees of visual angle; not a number elsewhere.
    """

    inside: np.ndarray
    rois: dict[str, np.ndarray]
    prf: np.ndarray

    @property
    def general(self) -> np.ndarray:
        """(x, y, z) bool: nsdgeneral."""
        return self.rois["nsdgeneral"] > 0

    def groups(self) -> np.ndarray:
        """early (prf-visualrois), category (floc-*) or other: (voxels,) str of nsdgeneral, in C order of
        (x, y, z).
        """
        early = self.rois["prf-visualrois"][self.general] > 0
        return np.where(early, "early", np.where(self.prefers().any(axis=1), "category", "other"))

    def prefers(self) -> np.ndarray:
        """(voxels, kinds) bool: the kinds of FLOC that each nsdgeneral voxel prefers; two where areas overlap."""
        return np.stack([self.rois[name][self.general] > 0 for name in FLOC.values()], axis=1)


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
    in NSD. `streams` takes V1 to V3 as early; in front of them, by angle, a ventral, a lateral and a parietal stream,
    which end well in front of nsdgeneral.
    """
    shape = volume_shape(subject, base)
    rng = random.generator(seed, "brain", subject)
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

    rois = {name: np.where(cortex, 0, -1).astype(np.int16) for name in ROI_LABELS}
    rois["nsdgeneral"][depth < 1] = 1
    for area, (low, high) in enumerate(((0, 0.17), (0.17, 0.31), (0.31, 0.43))):
        rois["prf-visualrois"][between(low, depth, high) & below] = 2 * area + 1
        rois["prf-visualrois"][between(low, depth, high) & ~below] = 2 * area + 2
    rois["prf-visualrois"][between(0.43, depth, 0.52) & below] = 7

    early = rois["prf-visualrois"] > 0
    prf = _retinotopy(rois["prf-visualrois"], depth, np.abs(angle), left)
    rois["prf-eccrois"][early] = 1 + np.searchsorted(_ECCENTRICITIES, np.hypot(*prf[early, :2].T), side="right")

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
    rois["streams"][depth < _MIDDLE[0]] = 1
    for label, sector in enumerate(_STREAMS, start=2):
        there = between(sector[0], angle, sector[1])
        rois["streams"][there & between(_MIDDLE[0], depth, _MIDDLE[1])] = label
        rois["streams"][there & between(_MIDDLE[1], depth, _STREAMS_END)] = label + len(_STREAMS)
    return Brain(inside, rois, prf)


def _retinotopy(labels: np.ndarray, depth: np.ndarray, medial: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Receptive fields, (x, y, z, 3), of the voxels with a label of prf-visualrois.

    Each area of each hemisphere maps its part of the opposite half of the visual field: polar angle runs with
    `depth`, eccentricity from the lateral side (fovea) to the `medial` one, and both evenly: by rank, so that
    each degree has as much cortex as cortical magnification gives it.
    """
    prf = np.full((*labels.shape, 3), np.nan)
    steps = np.linspace(0, _FURTHEST, 1001)
    scaled = steps / _HALF_MAGNIFICATION
    cortex = np.log1p(scaled) - scaled / (1 + scaled)  # integral of e / (e + e2)^2, area below an eccentricity
    for (label, polar), side in itertools.product(_POLAR.items(), (True, False)):
        here = (labels == label) & (left == side)
        count = here.sum()
        along, across = ((rankdata(v[here], "ordinal") - 0.5) / max(count, 1) for v in (depth, medial))
        eccentricity = np.interp(across * cortex[-1], cortex, steps)
        theta = np.radians(np.interp(along, (0, 1), polar))
        (size, slope) = next(_PRF_SIZE[area] for area, of in AREAS.items() if label in of)
        x = eccentricity * np.cos(theta) * (1 if side else -1)
        prf[here] = np.stack([x, eccentricity * np.sin(theta), size + slope * eccentricity], axis=-1)
    return prf
