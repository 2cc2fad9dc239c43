"""The report's part on regions: the pictures they like to see, where `roi` was run, and slices of voxel maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bdflow.datasets.ceilings import noise_ceiling
from bdflow.errors import counted
from bdflow.regions.rescale import stretched
from bdflow.report import palette
from bdflow.report.page import Sheet, VoxelMap
from bdflow.report.plots import colour_bar
from bdflow.stores import Store
from bdflow.study import encoding_models, keys, region_patterns
from bdflow.study.noise_ceilings import ceiling_of
from bdflow.study.stage import MEAN, Context
from bdflow.study.voxel_maps import REPEATS, importance, positions

FOLDER = "regions"
TITLES = {"r2": "R² from {model}", "unique": "unique R² of {band} in {model}", "share": "share of {band} in {model}"}
"""Maps of encoding models that are shown as they are."""
UNITS = {"noise ceiling": "percent of variance"}
NOTHING = np.array((128, 128, 128, 96), float)
"""Voxels without a value or a region, RGBA: grey on light and on dark paper."""
LISTED = 24  # regions in a legend
MAPS_NOTE = (
    f"The sagittal, coronal and axial slice with the most voxels. Noise ceiling: of averages over {REPEATS} trials. "
    "Importance (kept by ridge.weights): SD of the latent per SD of the voxel. R² and r (of the stage `encode`): of "
    "encoding models, on the test set; unique R² of a space: R² of the set less that of its other spaces. A voxel "
    f"passes at a false discovery rate of {encoding_models.FALSE_DISCOVERIES:.0%}. All maps, and p and q values, can "
    "be exported as NIfTI."
)
GAP = 6  # pixels
Encode = Callable[[np.ndarray, int], bytes]


def sheets(context: Context, folder: Path, encode: Encode) -> list[Sheet]:
    """Write the pictures that regions like to see below `folder`, and return what the page says of them; `encode` makes
    a WebP of an image.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)

    def picture(name: str, image: np.ndarray) -> str:
        (folder / FOLDER / f"{name}.webp").write_bytes(encode(image, context.config.report.thumbnail))
        return f"{FOLDER}/{name}.webp"

    return [_painted(context, chosen, picture) for chosen in _painted_sets(context)]


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


def voxel_maps(context: Context, folder: Path) -> list[VoxelMap]:
    """Write slices of every map below `folder`, and return what the page says of them."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    of = {subject: _maps(context, subject) for subject in context.subjects}
    at = {subject: positions(context, subject) for subject in context.subjects}
    found = []
    for number, name in enumerate(dict.fromkeys(name for maps in of.values() for name in maps)):
        values = {subject: maps[name] for subject, maps in of.items() if name in maps}
        top = max(_top(one) for one in values.values())
        files = []
        for subject, one in values.items():
            file = f"{FOLDER}/map-{subject}-{number}.png"
            Image.fromarray(montage(_ramp(one, top), at[subject])).save(folder / file)
            files.append((subject, file))
        found.append(VoxelMap(name, files, colour_bar(top, name), note=UNITS.get(name, "")))
    return [*found, *_collections(context, folder, at)]


def _collections(context: Context, folder: Path, at: Mapping[str, Sequence[np.ndarray]]) -> list[VoxelMap]:
    """The regions of each collection, in the same colours for every subject."""
    mask = region_patterns.vocabulary(context.config).mask
    of: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for subject in context.subjects:
        betas: Store = context.ready(keys.betas(subject))
        for region, inside in zip(betas.read("region").tolist(), betas.read("roi"), strict=True):
            collection, _, name = region.partition("/")
            if collection != mask:
                of.setdefault(collection, {}).setdefault(subject, {})[name] = inside == 1
    found = []
    for number, (collection, by_subject) in enumerate(of.items()):
        names = list(dict.fromkeys(name for regions in by_subject.values() for name in regions))
        colours = {name: palette.REGIONS[k % len(palette.REGIONS)] for k, name in enumerate(names)}
        files = []
        for subject, regions in by_subject.items():
            painted = np.tile(NOTHING, (len(at[subject][0]), 1))
            for name, inside in regions.items():
                painted[inside] = (*bytes.fromhex(colours[name][1:]), 255)
            file = f"{FOLDER}/regions-{subject}-{number}.png"
            Image.fromarray(montage(painted, at[subject])).save(folder / file)
            files.append((subject, file))
        more = len(names) - LISTED
        said = f"And {counted(more, 'region')} more. " if more > 0 else ""
        said += "Colours repeat." if len(names) > len(palette.REGIONS) else ""
        found.append(VoxelMap(collection, files, regions=list(colours.items())[:LISTED], note=said.strip()))
    return found


def _maps(context: Context, subject: str) -> dict[str, np.ndarray]:
    """Maps (voxels,), floating point."""
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
    return found


def _top(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else 0.0


def _ramp(values: np.ndarray, top: float) -> np.ndarray:
    """(voxels, 4) colours of values from 0 to `top`, RGBA."""
    colours = np.column_stack([palette.ramp(np.nan_to_num(values) / (top or 1)), np.full(len(values), 255.0)])
    return np.where(np.isfinite(values)[:, None], colours, NOTHING)


def montage(colours: np.ndarray, at: Sequence[np.ndarray], height: int = 160) -> np.ndarray:
    """Three slices beside one another, (y, x, 4) uint8 RGBA: voxels (voxels, 4) at their places `at`, cut to where
    voxels are; what is outside is transparent. All slices have one scale, of whole pixels a voxel.
    """
    place = tuple(axis - int(axis.min()) for axis in at)
    volume = np.zeros((*(int(axis.max()) + 1 for axis in place), 4))
    volume[place] = colours
    slices = []
    for axis in range(3):
        fullest = int(np.bincount(place[axis]).argmax())
        slices.append(np.flip(np.take(volume, fullest, axis=axis).swapaxes(0, 1), axis=0))
    tallest = max(len(one) for one in slices)
    times = max(1, height // tallest)
    parts = []
    for one in slices:
        above = (tallest - len(one)) // 2
        padded = np.pad(one, ((above, tallest - len(one) - above), (0, 0), (0, 0)))
        parts.append(np.pad(padded.repeat(times, axis=0).repeat(times, axis=1), ((0, 0), (GAP, GAP), (0, 0))))
    return np.concatenate(parts, axis=1).round().astype(np.uint8)
