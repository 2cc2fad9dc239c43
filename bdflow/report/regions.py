"""The report's part on regions: the pictures they like to see, where `roi` was run, and slices of voxel maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bdflow.datasets.ceilings import noise_ceiling
from bdflow.regions.rescale import stretched
from bdflow.report.page import Sheet
from bdflow.stores import Store
from bdflow.study import encoding_models, keys, region_patterns
from bdflow.study.noise_ceilings import ceiling_of
from bdflow.study.stage import MEAN, Context
from bdflow.study.voxel_maps import REPEATS, importance, positions

FOLDER = "regions"
SEQUENTIAL = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], float)
CATEGORIES = np.array(
    [(42, 111, 176), (194, 87, 26), (47, 132, 87), (138, 79, 163), (176, 137, 0), (184, 51, 106), (74, 78, 85)], float
)
TITLES = {"r2": "R² from {model}", "unique": "unique R² of {band} in {model}", "share": "share of {band} in {model}"}
"""Maps of encoding models that are shown as they are."""
OUTSIDE = np.array((228, 228, 224), float)
Encode = Callable[[np.ndarray, int], bytes]


def sheets(context: Context, folder: Path, encode: Encode) -> list[Sheet]:
    """Write the pictures below `folder` and return what the page says of them; `encode` makes a WebP of an image."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)

    def picture(name: str, image: np.ndarray) -> str:
        (folder / FOLDER / f"{name}.webp").write_bytes(encode(image, context.config.report.thumbnail))
        return f"{FOLDER}/{name}.webp"

    def slices(name: str, image: np.ndarray) -> str:
        Image.fromarray(image).save(folder / FOLDER / f"{name}.png")
        return f"{FOLDER}/{name}.png"

    return [*(_painted(context, chosen, picture) for chosen in _painted_sets(context)), _slices(context, slices)]


def _painted_sets(context: Context) -> list[str]:
    """Sets of which every picture of this run's subjects is there."""
    made = {
        chosen: [s for name, s in region_patterns.keys_of(context) if name == chosen]
        for chosen in context.config.roi.sets
    }
    return [
        chosen
        for chosen, subjects in made.items()
        if subjects and all(context.is_sealed(_images(context, chosen, subject)) for subject in subjects)
    ]


def _images(context: Context, chosen: str, subject: str) -> str:
    """The pictures of the first painter."""
    return keys.region_images(chosen, next(iter(context.config.painters), ""), subject)


def _painted(context: Context, chosen: str, keep: Callable[[str, np.ndarray], str]) -> Sheet:
    settings, rows = context.config.roi, []
    regions = settings.sets[chosen]
    for subject in [subject for name, subject in region_patterns.keys_of(context) if name == chosen]:
        store = context.ready(_images(context, chosen, subject))
        images = [store.read("image", {"region": slice(r, r + 1)})[0, 0, 0] for r in range(len(regions))]
        files = [keep(f"{chosen}-{subject}-{r}", stretched(image)) for r, image in enumerate(images)]
        rows.append(("mean of predictions" if subject == MEAN else subject, files))
    return Sheet(
        f"What they like to see: {chosen.replace('_', ' ')}",
        regions,
        rows,
        f"Painted from the pattern that is 1 in a region and 0 elsewhere; latents rescaled by {settings.rescale}, "
        f"strength {settings.strengths[0]:g}, first of {settings.seeds} draws of noise. Histograms are stretched for "
        "display; the stores below rois hold the pictures as they were painted.",
    )


# --- slices ---------------------------------------------------------------------------------------------------


def _slices(context: Context, keep: Callable[[str, np.ndarray], str]) -> Sheet:
    of = {subject: _maps(context, subject) for subject in context.subjects}
    names = list(dict.fromkeys(name for maps in of.values() for name in maps))
    labelled = {name for maps in of.values() for name, values in maps.items() if values.dtype.kind == "i"}
    tops = {name: max(_top(maps[name]) for maps in of.values() if name in maps) for name in names}
    rows = []
    for subject, maps in of.items():
        at = positions(context, subject)
        files = []
        for number, name in enumerate(names):
            values = maps.get(name, np.full(len(at[0]), np.nan, np.float32))
            colours = _labels(values) if name in labelled and name in maps else _ramp(values, tops[name])
            files.append(keep(f"map-{subject}-{number}", montage(colours, at)))
        rows.append((subject, files))
    columns = [name if name in labelled else f"{name}: 0 to {tops[name]:.3g}" for name in names]
    return Sheet(
        "Voxel maps: the sagittal, coronal and axial slice with the most voxels",
        columns,
        rows,
        f"Noise ceiling: percent of variance, of averages over {REPEATS} trials. Importance (kept by ridge.weights): "
        "SD of the latent per SD of the voxel. R² and r (of the stage `encode`): of encoding models, on the test set; "
        "unique R² of a space: R² of the set less that of its other spaces. A voxel passes at a false discovery rate "
        f"of {encoding_models.FALSE_DISCOVERIES:.0%}. All maps, and p and q values, can be exported as NIfTI.",
        wide=True,
    )


def _maps(context: Context, subject: str) -> dict[str, np.ndarray]:
    """Maps (voxels,): floating point to be shown by value, integers as labels."""
    betas: Store = context.ready(keys.betas(subject))
    found: dict[str, np.ndarray] = {
        "noise ceiling": noise_ceiling(ceiling_of(context, subject).ncsnr, REPEATS).astype(np.float32)
    }
    for name, values in importance(context, subject).items():
        found[f"importance for {name.removeprefix('importance_')}"] = values
    shown = {one.name: one for one in encoding_models.maps(context, subject)}
    for one in shown.values():
        if one.kind == "r":
            passes = shown[one._replace(kind="passes").name].values == 1
            found[f"r from {one.model}, where it passes"] = np.where(passes, one.values, np.float32(np.nan))
        elif one.kind in TITLES:
            found[TITLES[one.kind].format(model=one.model, band=one.band)] = one.values
    mask = region_patterns.vocabulary(context.config).mask
    number: dict[str, int] = {}
    for region, inside in zip(betas.read("region").tolist(), betas.read("roi"), strict=True):
        collection = region.partition("/")[0]
        if collection != mask:
            number[collection] = number.get(collection, 0) + 1
            labels = found.setdefault(collection, np.zeros(len(inside), np.int16))
            labels[inside == 1] = number[collection]
    return found


def _top(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else 0.0


def _ramp(values: np.ndarray, top: float) -> np.ndarray:
    """(voxels, 3) colours of values from 0 to `top`; what is not a number as outside."""
    place = np.clip(np.nan_to_num(values) / (top or 1), 0, 1) * (len(SEQUENTIAL) - 1)
    colours = np.stack([np.interp(place, range(len(SEQUENTIAL)), channel) for channel in SEQUENTIAL.T], axis=1)
    return np.where(np.isfinite(values)[:, None], colours, OUTSIDE)


def _labels(values: np.ndarray) -> np.ndarray:
    """(voxels, 3) colours of labels; 0 and below pale."""
    return np.where((values > 0)[:, None], CATEGORIES[(values - 1) % len(CATEGORIES)], OUTSIDE - 24)


def montage(colours: np.ndarray, at: Sequence[np.ndarray], height: int = 120) -> np.ndarray:
    """Three slices beside one another, (y, x, 3) uint8: voxels (voxels, 3) at their places `at`, cut to the mask."""
    low = [int(axis.min()) for axis in at]
    place = tuple(axis - start + 1 for axis, start in zip(at, low, strict=True))
    volume = np.tile(OUTSIDE, (*(int(axis.max()) + 2 for axis in place), 1))
    volume[place] = colours
    parts = []
    for axis in range(3):
        fullest = int(np.bincount(place[axis]).argmax())
        upright = np.flip(np.take(volume, fullest, axis=axis).swapaxes(0, 1), axis=0)
        times = max(1, height // upright.shape[0])
        large = upright.repeat(times, axis=0).repeat(times, axis=1)
        pad = np.tile(OUTSIDE, (max(0, height - large.shape[0]), large.shape[1], 1))
        parts.append(np.concatenate([pad, large])[-max(height, large.shape[0]) :])
    tallest = max(part.shape[0] for part in parts)
    parts = [np.pad(part, ((tallest - len(part), 0), (2, 2), (0, 0)), constant_values=OUTSIDE[0]) for part in parts]
    return np.concatenate(parts, axis=1).round().astype(np.uint8)
