"""Stage 6: what the stores hold as one page: scores, every test stimulus with its reconstructions, how it was made.

Pictures stream block by block into a directory beside the old report, which the new one replaces when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bdflow.config import Config, yaml_text
from bdflow.errors import InputError
from bdflow.report import decoding, page, ranking, regions, similarity, tables
from bdflow.report.scores import Scores
from bdflow.stores import Store
from bdflow.stores.errors import disk_full_as_error
from bdflow.stores.journal import entries
from bdflow.study import keys, parts
from bdflow.study.in_effect import settings_in_effect
from bdflow.study.painting import picture_label, shown_of, spaces_of
from bdflow.study.parts import Joined
from bdflow.study.selection import Selected, selected, stores_of_pictures
from bdflow.study.stage import Context

MARKER = "bdflow-report.json"
BLOCK = 16
QUALITY = 85


def write(context: Context) -> Path:
    """Write the report of `context.subjects` to `report.path` of the configuration; return the path of its page.

    Raises
    ------
    NotReady : a store it reads is not sealed, or was made from something else.
    InputError : there is something at `report.path` that is not a report, or the study lies in it.
    StoreError : the disk is full; a report that was there stays.
    """
    if not context.config.painters:
        raise InputError(
            "painters",
            found="none in the configuration",
            expected="a painter",
            meaning="A report shows pictures and their scores.",
            action="add a painter to `painters` in the configuration",
        )
    target = context.config.report.path.resolve()
    stores = read_stores(context)
    _check_place(context, target)
    with disk_full_as_error(target), _replacing(target) as folder, ThreadPoolExecutor() as pool:
        (folder / MARKER).write_text(json.dumps({"generator": "bdflow report", "format": 2}) + "\n", encoding="utf-8")
        scores = Scores.read(stores, context.config, context.painted)
        pictures = _Pictures(context, stores, folder, pool)
        pictures.write()
        content = tables.page(
            context,
            stores,
            scores,
            gallery := _gallery(context, stores, scores),
            _examples(context, scores, gallery),
            regions.sheets(context, folder, thumbnail),
            regions.voxel_maps(context, folder),
            pictures.weight(),
            entries(context.study.path),
            _configuration(context),
        )
        (folder / "tables").mkdir()
        for name, text in scores.files().items():
            (folder / "tables" / name).write_text(text, encoding="utf-8")
        script = page.gallery_script(content).encode()
        (folder / page.GALLERY).write_bytes(script)
        with (folder / "index.html").open("w", encoding="utf-8") as file:
            file.writelines(page.html(content, len(script)))
    return context.config.report.path / "index.html"


def read_stores(context: Context) -> dict[str, Store]:
    """Every store that the report and the figures read, sealed, by path."""
    config = context.config
    paths = [*_photos(context), *decoding.paths(context), *similarity.paths(context)]
    for subject in context.painted:
        for painter in config.painters:
            paths.append(keys.metrics(painter, subject))
            if "guess" in spaces_of(config, painter):
                paths.append(keys.guesses(painter, subject))
            paths += stores_of_pictures(config, painter, subject)
    return {path: context.ready(path) for path in paths}


def _photos(context: Context) -> tuple[str, ...]:
    config = context.config
    return parts.stimuli(dict.fromkeys(part for s in context.painted for part in parts.of_pictures(config, s)))


def photos(context: Context, stores: Mapping[str, Store]) -> Joined:
    """What was shown, of all pictures of the report."""
    return Joined([stores[key] for key in _photos(context)])


def _configuration(context: Context) -> str:
    return yaml_text.write(settings_in_effect(context.config))


def _examples(context: Context, scores: Scores, gallery: Mapping[str, Any]) -> list[page.Example]:
    lines = {line.name: line for line in _lines(context.config)}
    guess = next((line.name for line in lines.values() if line.variant is None), "")

    def file(subject: str, number: int, kind: str) -> str:
        folder = subject or "shown"
        return f"images/{folder}/{number:05d}{lines[kind].suffix if kind else ''}.webp"

    return ranking.examples(scores, [captions for _, captions in gallery["stimuli"]], guess, file)


def _gallery(context: Context, stores: dict[str, Store], scores: Scores) -> dict[str, object]:
    """What the gallery's script knows: names, captions, and the scores of every picture."""
    stimuli, first = photos(context, stores), next(iter(context.config.painters))
    rows = stimuli.rows("stimulus_id", scores.stimulus_id)
    order = np.argsort(rows)
    texts = stimuli.read("caption", {"stimulus_id": rows[order]})[np.argsort(order)]
    return {
        "subjects": [{"name": s, "label": tables.label(s), "person": s in scores.people} for s in scores.subjects],
        "variants": [{"name": v} for v in scores.variants],
        "lines": [
            {**asdict(line), "absent": [s for s in scores.subjects if not _is_of(context.config, line, s)]}
            for line in _lines(context.config)
        ],
        "metrics": [{"name": name, "lower": scores.lower_is_better(name)} for name in scores.known],
        "thumbnail": context.config.report.thumbnail,
        "parts": [store.path for store in stimuli.stores],
        "part": (np.searchsorted(stimuli.starts, rows, side="right") - 1).tolist(),
        "stimuli": [
            [stimulus_id, [str(text) for text in captions if text]]
            for stimulus_id, captions in zip(scores.stimulus_id.tolist(), texts, strict=True)
        ],
        "scores": [
            [
                [[float(f"{x:.4g}") if np.isfinite(x) else None for x in values] for values in by_metric[kept]]
                for by_metric in by_variant
            ]
            for kept in [[not why for why in scores.missing]]
            for by_variant in scores.value
        ],
        "shown": [
            np.isin(scores.stimulus_id, stores[keys.metrics(first, s)].read("stimulus_id")).tolist()
            for s in scores.subjects
        ],
    }


@dataclass(frozen=True)
class Line:
    """A kind of picture: a painter's guess (`variant` None) or a variant; `usual` ones are shown first."""

    name: str
    label: str
    painter: str
    variant: str | None
    usual: bool
    pictures: int = 1
    select: str = "all"

    @property
    def suffix(self) -> str:
        """Of the files with these pictures."""
        return "-" + self.name.replace("/", "-")


def _lines(config: Config) -> list[Line]:
    """In the order of the configuration, each painter's guess first."""
    found, words = [], tables.described(config)
    for painter, settings in config.painters.items():
        if "guess" in spaces_of(config, painter):
            guess = tables.GUESSES.get(settings.kind, "the guess")
            found.append(Line(picture_label(config, painter, "guess"), guess, painter, None, True))
        for number, variant in enumerate((*settings.variants, *settings.controls)):
            label = picture_label(config, painter, variant)
            found.append(Line(label, words[label], painter, variant, number == 0, settings.pictures, settings.select))
    return found


def _is_of(config: Config, line: Line, subject: str) -> bool:
    """Whether a subject has pictures of this kind: true latents have no controls."""
    return line.variant is None or line.variant in shown_of(config, line.painter, subject)


# --- pictures -------------------------------------------------------------------------------------------------


class _Pictures:
    """Writes the thumbnails below `folder`/images: `shown`, and by subject the guess and each variant, named by the
    number of the stimulus among those of the report: an id may be no name of a file.
    """

    def __init__(self, context: Context, stores: dict[str, Store], folder: Path, pool: Executor) -> None:
        self.config, self.subjects, self.photos = context.config, context.painted, photos(context, stores)
        self.stores, self.folder, self.pixels = stores, folder, context.config.report.thumbnail
        self.pool, self.files, self.nbytes = pool, 0, 0
        first = next(iter(self.config.painters))
        shown = [stores[keys.metrics(first, subject)].read("stimulus_id") for subject in self.subjects]
        self.ids = np.unique(np.concatenate(shown))
        self.numbers = {stimulus: number for number, stimulus in enumerate(self.ids.tolist())}

    def write(self) -> None:
        self._thumbnails(self.photos, "shown", "", np.sort(self.photos.rows("stimulus_id", self.ids)))
        for subject in self.subjects:
            for line in _lines(self.config):
                if not _is_of(self.config, line, subject):
                    continue
                made: Store | Selected = (
                    self.stores[keys.guesses(line.painter, subject)]
                    if line.variant is None
                    else (selected(self.config, self.stores.__getitem__, line.painter, subject, line.variant))
                )
                self._thumbnails(made, subject, line.suffix)

    def weight(self) -> str:
        return (
            f"{self.files:,} pictures, {self.nbytes / 2**20:.1f} MiB in all, are loaded as they come into view; "
            f"each is at most {self.pixels} px: the stores hold them in full size."
        )

    def _thumbnails(
        self, made: Store | Joined | Selected, folder: str, suffix: str, rows: np.ndarray | None = None
    ) -> None:
        store = made.images if isinstance(made, Selected) else made
        ids = store.read("stimulus_id")
        rows = np.arange(len(ids)) if rows is None else rows
        place = self.folder / "images" / folder
        place.mkdir(parents=True, exist_ok=True)
        for start, stop in pairwise([*range(0, len(rows), BLOCK), len(rows)]):
            block = rows[start:stop]
            images = made.shown(block) if isinstance(made, Selected) else made.read("image", {"stimulus_id": block})
            thumbnails = self.pool.map(thumbnail, images, [self.pixels] * len(images))
            for stimulus_id, data in zip(ids[block].tolist(), thumbnails, strict=True):
                (place / f"{self.numbers[stimulus_id]:05d}{suffix}.webp").write_bytes(data)
                self.files, self.nbytes = self.files + 1, self.nbytes + len(data)


def thumbnail(image: np.ndarray, pixels: int) -> bytes:
    """An image (y, x, 3) uint8 as WebP of at most `pixels` a side; smaller ones keep their size."""
    picture = Image.fromarray(image)
    picture.thumbnail((pixels, pixels), Image.Resampling.LANCZOS, reducing_gap=None)
    out = BytesIO()
    picture.save(out, "WEBP", quality=QUALITY, method=4)
    return out.getvalue()


# --- the place ------------------------------------------------------------------------------------------------


def _sibling(target: Path, suffix: str) -> Path:
    return target.parent / f"{target.name}.{suffix}"


def _check_place(context: Context, target: Path) -> None:
    for place in (target, _sibling(target, "partial"), _sibling(target, "replaced")):
        if place.exists() and not (place / MARKER).is_file() and not _empty(place):
            raise InputError(
                place,
                found="files that are not a report of bdflow",
                expected="an earlier report, an empty directory, or nothing",
                meaning="The report replaces what is there; nothing was changed.",
                action="choose another `report.path` in the configuration, or move what is there away",
            )
    for key, path in (("study", context.study.path), ("dataset.root", context.config.dataset.root)):
        if isinstance(path, Path) and path.resolve().is_relative_to(target):
            raise InputError(
                target,
                found=f"`{key}` ({path}) inside `report.path`",
                expected="a directory of its own for the report, which is replaced as a whole",
                action="choose another `report.path` in the configuration",
            )


def _empty(place: Path) -> bool:
    return place.is_dir() and not any(place.iterdir())


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new directory that takes the place of `target` at the end; until then, and on errors, the old one stays."""
    partial, replaced = _sibling(target, "partial"), _sibling(target, "replaced")
    target.parent.mkdir(parents=True, exist_ok=True)
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)
