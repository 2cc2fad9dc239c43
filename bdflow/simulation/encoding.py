"""What the simulated voxels encode: linear functions of the latents of the stimuli, and how well.

V1 to hV4 pool the VDVAE's spatial latents under their receptive fields; face, word, place and body areas respond to
what separates scenes of their own kind in CLIP's spaces; the rest of nsdgeneral mixes all. See docs/nsd.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse.linalg import eigsh
from scipy.special import ndtr

from bdflow import random
from bdflow.datasets.ceilings import noise_ceiling
from bdflow.datasets.nsd import roi_labels
from bdflow.simulation.brains import AREAS, FLOC, PHOTO, Brain

NOISE_SD = 1.5  # of one trial, percent signal change, median over voxels
REPEATS = 3  # of which the noise ceiling is stated, as in NSD

QUANTILES = (5, 25, 50, 75, 95)  # percent, as `summary` lists them

Layers = Sequence[tuple[int, int, int]]
"""(channels, height, width) of each layer of the flattened vdvae space, channel-major, as `Bundle.layers`."""

SHARES: dict[str, dict[str, float]] = {
    "early": {"local": 1.0},
    "category": {"vdvae": 0.05, "clip_vision": 0.5, "clip_text": 0.45},
    "other": {"vdvae": 0.4, "clip_vision": 0.35, "clip_text": 0.25},
}
"""Share of a voxel's signal variance from each latent space, by where the voxel lies; `local` is vdvae under the
receptive field."""

PREFERENCE = 0.5
"""Of a category voxel's CLIP part, the share along the direction of the kinds that its area prefers."""

_COMPONENTS = 40  # of a whole latent space
_CHANNELS = 8  # of a layer
_DENSITY = 0.3  # of a random mixture of a whole space's components
_NCSNR = {"early": 0.2, "category": 0.1, "other": -0.25}
_NCSNR_SPREAD = 0.45
"""log ncsnr: offset by where the voxel lies (visual and category areas are NSD's cleanest, Allen et al. 2022), and
SD within."""


@dataclass
class Components:
    """What voxels can encode: columns made linearly from the z-scored or centred latents of the stimuli.

    Attributes
    ----------
    values : (stimuli, components) float32.
    space : (components,) str, the latent space of each.
    layer : (components,) int, the vdvae layer of each; -1 for those of a whole space.
    position : (components, 3) float64, of those of a layer: the centre of its position to the right of and above
        fixation, and the position's height, degrees; not a number for others.
    layers : (channels, height, width) of the vdvae layers.
    made : arrays that say how they were made (see `of`).
    """

    values: np.ndarray
    space: np.ndarray
    layer: np.ndarray
    position: np.ndarray
    layers: Layers
    made: dict[str, np.ndarray]

    @property
    def spatial(self) -> bool:
        """Whether any layer has more than one position."""
        return any(h * w > 1 for _, h, w in self.layers)

    @classmethod
    def of(cls, latents: dict[str, np.ndarray], layers: Layers) -> "Components":
        """Components of `latents`, {space: (n, d)}; `layers` are those of the vdvae space.

        Of every whole space the leading ones of the z-scored latents, ``((latents - mean) / std) @
        basis/<space>``; of every vdvae layer (when any has more than one position) its leading channels at each
        position, ``(latents - mean) @ channels/<layer>``. The scale of each is the square root of its own, so that
        the first do not drown the others.
        """
        parts, space, layer, position = [], [], [], []
        made: dict[str, np.ndarray] = {}
        for name, values in latents.items():
            part, more = _whole(name, values)
            made |= more
            parts.append(part)
            space += [name] * part.shape[1]
            layer += [-1] * part.shape[1]
            position.append(np.full((part.shape[1], 3), np.nan))
        start = 0
        for number, (c, h, w) in enumerate(layers if any(h * w > 1 for _, h, w in layers) else ()):
            part, axes = _layer(latents["vdvae"][:, start : start + c * h * w].reshape(-1, c, h, w))
            start += c * h * w
            made[f"channels/{number}"] = axes
            parts.append(part)
            space += ["vdvae"] * part.shape[1]
            layer += [number] * part.shape[1]
            y, x = np.meshgrid(_centres(h)[::-1], _centres(w), indexing="ij")
            here = np.stack([x, y, np.full((h, w), PHOTO / h)], axis=-1).reshape(-1, 3)
            position.append(np.tile(here, (axes.shape[1], 1)))
        values = np.hstack(parts).astype(np.float32)
        return cls(values, np.array(space, dtype="U"), np.array(layer), np.concatenate(position), layers, made)

    def project(self, latents: dict[str, np.ndarray]) -> np.ndarray:
        """(n, components) float32 of other pictures' latents {space: (n, d)}, made as those of the stimuli were."""
        parts = []
        for name, values in latents.items():
            mean, std = self.made[f"mean/{name}"], self.made[f"std/{name}"]
            parts.append((values - mean) / np.where(std > 0, std, 1) @ self.made[f"basis/{name}"])
        start = 0
        for number, (c, h, w) in enumerate(self.layers if self.spatial else ()):
            columns = slice(start, start + c * h * w)
            start += c * h * w
            centred = (latents["vdvae"][:, columns] - self.made["mean/vdvae"][columns]).reshape(-1, c, h * w)
            axes = self.made[f"channels/{number}"]
            parts.append(np.einsum("ncp,ck->nkp", centred, axes).reshape(len(centred), -1))
        return np.hstack(parts).astype(np.float32)


@dataclass(frozen=True)
class Encoding:
    """What was planted in a subject's nsdgeneral voxels (C order of (x, y, z)).

    Attributes
    ----------
    weights : (components, voxels) float32; signal = components @ weights, in percent signal change.
    mean, noise_sd : (voxels,) percent signal change; `noise_sd` is of one trial.
    ncsnr : (voxels,) SD of the signal over the stimuli, over `noise_sd`.
    prf : (voxels, 3) receptive fields: right, up, SD in degrees; not a number outside V1 to hV4.
    prefers : (voxels, kinds) bool, the kinds of `simulate_brain.FLOC` that a voxel prefers.
    """

    weights: np.ndarray
    mean: np.ndarray
    noise_sd: np.ndarray
    ncsnr: np.ndarray
    prf: np.ndarray
    prefers: np.ndarray


def receptive_field(prf: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height * width, voxels): how much each voxel sees of each position of a grid over the photo; sums to 1.

    The integral over each position of the voxel's Gaussian, `prf` (voxels, 3). What lies outside the photo is blank,
    and does not count.
    """
    right, up, sd = np.asarray(prf, np.float64).T

    def along(centre: np.ndarray, count: int) -> np.ndarray:
        edges = np.linspace(-PHOTO / 2, PHOTO / 2, count + 1)[:, None]
        return np.diff(ndtr((edges - centre) / sd), axis=0)

    field = along(-up, height)[:, None] * along(right, width)[None]
    return (field / field.sum(axis=(0, 1))).reshape(height * width, -1)


def encode(anatomy: Brain, parts: Components, kind: np.ndarray, ceiling: float, seed: int, subject: str) -> Encoding:
    """Plant an encoding of the components; `kind` (stimuli,) is what each scene shows.

    Every voxel's signal is a sum of parts, each scaled to its share of variance (SHARES): receptive fields on the
    vdvae layers with random channel weights; sparse random mixtures of whole spaces' components; and in category areas,
    along the direction of the preferred kinds (`directions`). The ncsnr is log-normal around a mean that depends on
    where the voxel lies, scaled so that the median noise ceiling of three repeats is `ceiling` percent.
    """
    rng = random.generator(seed, "encoding", subject)
    groups, prefers, prf = anatomy.groups(), anatomy.prefers(), anatomy.prf[anatomy.general]
    early = np.flatnonzero(groups == "early")
    weights = np.zeros((len(parts.space), groups.size))
    if parts.spatial:
        weights[:, early] = _local(parts, prf[early], rng)
    towards = directions(parts, kind)
    for space in dict.fromkeys(parts.space):
        rows = np.flatnonzero((parts.space == space) & (parts.layer < 0))
        name = str(space)
        share = np.array([SHARES[group].get(name, 0.0) for group in groups])
        if name == "vdvae" and not parts.spatial:
            share[early] = SHARES["early"]["local"]
        drawn = rng.standard_normal((rows.size, groups.size)) * (rng.random((rows.size, groups.size)) < _DENSITY)
        drawn[rng.integers(rows.size, size=groups.size), np.arange(groups.size)] += 1.0
        own = towards[rows] @ prefers.T
        preferred = np.where(own.any(axis=0) & name.startswith("clip"), PREFERENCE, 0.0)
        for part, of in ((drawn, 1 - preferred), (own, preferred)):
            weights[rows] += _unit(parts.values[:, rows], part) * np.sqrt(share * of)
    noise_sd = NOISE_SD * np.exp(0.3 * rng.standard_normal(groups.size))
    ncsnr = np.exp(np.array([_NCSNR[group] for group in groups]) + _NCSNR_SPREAD * rng.standard_normal(groups.size))
    ncsnr *= np.sqrt(ceiling / (100 - ceiling) / REPEATS) / np.median(ncsnr)
    weights = _unit(parts.values, weights) * ncsnr * noise_sd
    mean = rng.normal(0.8, 0.6, groups.size)
    return Encoding(weights.astype(np.float32), mean, noise_sd, ncsnr, prf, prefers)


def directions(parts: Components, kind: np.ndarray) -> np.ndarray:
    """(components, kinds): in each CLIP space, what best tells scenes of each kind of FLOC from all others.

    Fisher's discriminant on the whole space's components, the covariance shrunk by a tenth of its mean; each gives a
    signal of variance 1, higher for that kind. 0 outside CLIP's spaces, and for a kind of which there is no scene, or
    no other.
    """
    found = np.zeros((len(parts.space), len(FLOC)))
    of = np.stack([kind == name for name in FLOC], axis=1).astype(float)
    for space in ("clip_vision", "clip_text"):
        rows = np.flatnonzero((parts.space == space) & (parts.layer < 0))
        if not rows.size:
            continue
        values = parts.values[:, rows] - parts.values[:, rows].mean(axis=0)
        covariance = values.T.astype(np.float64) @ values / len(values)
        covariance += 0.1 * np.trace(covariance) / rows.size * np.eye(rows.size)
        found[rows] = _unit(values, np.linalg.solve(covariance, values.T @ (of - of.mean(axis=0))))
    return found


def summary(anatomy: Brain, planted: Encoding, parts: Components, kind: np.ndarray) -> dict[str, object]:
    """What was planted in a subject, for a person to read.

    Coverage, for each shape of layer: how many voxels' worth of receptive fields lie on a position, and the share of
    positions with fewer than the layer has channels, which no decoder tells apart by these voxels alone.
    """
    groups = anatomy.groups()
    signal = parts.values @ planted.weights
    signal = (signal - signal.mean(axis=0)) / signal.std(axis=0)
    ceilings = noise_ceiling(planted.ncsnr, REPEATS)
    label = anatomy.rois["prf-visualrois"][anatomy.general]
    fields, preferences = {}, {}
    coverage: list[dict[str, Any]] = []
    for area, labels in AREAS.items():
        x, y, sd = planted.prf[np.isin(label, labels)].T
        fields[area] = {"voxels": x.size, "eccentricity": _quantiles(np.hypot(x, y)), "sd": _quantiles(sd)}
    for column, name in enumerate(FLOC):
        own, here = kind == name, planted.prefers[:, column]
        shown = own.any() and not own.all() and here.any()
        more = signal[own][:, here].mean(axis=0) - signal[~own][:, here].mean(axis=0) if shown else np.zeros(0)
        preferences[name] = {"voxels": int(here.sum()), "more_than_for_others_in_sd": _quantiles(more)}
    early = groups == "early"
    for c, h, w in parts.layers if parts.spatial else ():
        seen = receptive_field(planted.prf[early], h, w).sum(axis=1)
        poorly = float((seen < min(c, _CHANNELS)).mean())
        grid = {"layer": [c, h, w], "voxels_per_position": _quantiles(seen), "poorly_covered": round(poorly, 3)}
        if grid not in coverage:
            coverage.append(grid)
    return {
        "volume_shape": list(anatomy.inside.shape),
        "voxels": int(groups.size),
        "voxels_by_group": {group: int((groups == group).sum()) for group in SHARES},
        "voxels_by_roi": {
            file: {text: int((labels[anatomy.general] == n).sum()) for n, text in roi_labels(file).items()}
            for file, labels in anatomy.rois.items()
        },
        "noise_ceiling_percent": {
            "nsdgeneral": _quantiles(ceilings),
            **{group: _quantiles(ceilings[groups == group]) for group in SHARES},
        },
        "receptive_fields_degrees": fields,
        "preferences": preferences,
        "coverage": coverage,
    }


def _local(parts: Components, prf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(components, voxels): each layer under the receptive fields; layers in shares drawn around `_layer_share`.

    Channel weights are random, but a layer's leading channel always counts positively: activity of a patch of cortex
    then means more of the same in its part of the photo, as contrast does.
    """
    weights = np.zeros((len(parts.space), len(prf)))
    mean_share = np.array([_layer_share(max(h, w)) for _, h, w in parts.layers])
    share = mean_share[:, None] * rng.exponential(1, (len(parts.layers), len(prf)))
    share /= share.sum(axis=0)
    for number, (_, h, w) in enumerate(parts.layers):
        rows = np.flatnonzero(parts.layer == number)
        field = receptive_field(prf, h, w)
        field[field < 1e-3 * field.max(axis=0)] = 0
        channels = rng.standard_normal((rows.size // (h * w), 1, len(prf)))
        channels[:1] = np.abs(channels[:1])
        part = (channels * field).reshape(rows.size, -1)
        weights[rows] = _unit(parts.values[:, rows], part) * np.sqrt(share[number])
    return weights


def _layer_share(edge: int) -> float:
    """How much of a receptive field's signal a layer of this many positions across gets, before they are scaled to
    sum to 1.
    """
    return min(edge, 8) if edge > 1 else 0.5


def _whole(name: str, values: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    mean, std = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    scored = (values - mean) / np.where(std > 0, std, 1)
    count = min(_COMPONENTS, len(scored) - 1, values.shape[1])
    power, vectors = eigsh(scored @ scored.T / len(scored), count, v0=np.ones(len(scored)))
    kept = np.argsort(power)[::-1]
    kept = kept[power[kept] > 1e-9 * power.max()]
    basis = scored.T @ vectors[:, kept] / np.sqrt(power[kept] * len(scored))
    basis *= np.sign(basis.sum(axis=0)) * power[kept] ** -0.25 / power.max() ** 0.25
    return scored @ basis, {f"basis/{name}": basis, f"mean/{name}": mean, f"std/{name}": std}


def _layer(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leading channels of a layer (n, c, h, w) at each position, (n, channels * h * w); their axes (c, channels)."""
    centred = values - values.mean(axis=0, dtype=np.float64)
    flat = np.moveaxis(centred, 1, -1).reshape(-1, values.shape[1])
    power, axes = np.linalg.eigh(flat.T @ flat / len(flat))
    kept = np.argsort(power)[::-1][:_CHANNELS]
    kept = kept[power[kept] > 1e-9 * power.max()]
    axes = axes[:, kept] * np.where(axes[:, kept].sum(axis=0) < 0, -1, 1)
    axes *= power[kept] ** -0.25 / power.max() ** 0.25
    return np.moveaxis((flat @ axes).reshape(len(values), *values.shape[2:], -1), -1, 1).reshape(len(values), -1), axes


def _centres(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count * PHOTO - PHOTO / 2


def _unit(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`weights`, each column scaled so that ``values @ weights`` has SD 1; those without any variance become 0."""
    sd = (values @ weights).std(axis=0)
    return np.divide(weights, sd, out=np.zeros(weights.shape), where=sd > 1e-12)


def _quantiles(values: np.ndarray) -> list[float]:
    return [round(float(np.percentile(values, q)), 2) for q in QUANTILES] if values.size else []
