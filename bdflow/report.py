"""Stage 6: what the stores hold as one page: scores, every test stimulus with its reconstructions, how it was made.

Pictures stream block by block into a directory beside the old report, which the new one replaces when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from bdflow import report_page, report_tables
from bdflow.errors import InputError
from bdflow.report_page import Picture, Stimulus
from bdflow.stage import TRUE, Context
from stores import Store
from stores.journal import entries
from stores.store import no_space

MARKER = "bdflow-report.json"
RANKED_BY = "PixCorr"
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
    target = context.config.report.path.resolve()
    stores = _stores(context)
    _check_place(context, target)
    with no_space(target), _replacing(target) as folder, ThreadPoolExecutor() as pool:
        (folder / MARKER).write_text(json.dumps({"generator": "bdflow report", "format": 1}) + "\n")
        gallery = _Gallery(context, stores, folder, pool)
        page = report_tables.page(
            context, stores, gallery.stimuli(), gallery.weight(), entries(context.study.path), _configuration(context)
        )
        with (folder / "index.html").open("w", encoding="utf-8") as file:
            file.writelines(report_page.html(page))
    return context.config.report.path / "index.html"


def _stores(context: Context) -> dict[str, Store]:
    """Every store the report reads, sealed, by path."""
    predictions = [p for p in context.expected if p.startswith("predictions/") and p.split("/")[1] in context.subjects]
    paths = ["stimuli", *predictions]
    paths += [f"{kind}/{subject}" for subject in context.subjects for kind in ("betas", "responses")]
    for subject in context.painted:
        paths += [f"guesses/{subject}", f"metrics/{subject}"]
        paths += [f"reconstructions/{subject}/{variant}" for variant in context.config.reconstruct.variants]
    return {path: context.ready(path) for path in paths}


def _configuration(context: Context) -> str:
    return yaml.safe_dump(context.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


# --- pictures -------------------------------------------------------------------------------------------------


class _Gallery:
    """Writes the thumbnails below `folder`/images and collects the rows that show them."""

    def __init__(self, context: Context, stores: dict[str, Store], folder: Path, pool: Executor) -> None:
        self.subjects, self.variants = context.painted, context.config.reconstruct.variants
        self.stores, self.folder, self.pixels = stores, folder, context.config.report.thumbnail
        self.pool, self.files, self.nbytes = pool, 0, 0

    def stimuli(self) -> list[Stimulus]:
        """The test stimuli, best mean `RANKED_BY` first."""
        shown = {
            subject: {int(i) for i in self.stores[f"metrics/{subject}"].read("nsd_id")} for subject in self.subjects
        }
        truths, captions = self._truths(np.array(sorted(set().union(*shown.values())), "i4"))
        pictures: dict[int, list[list[Picture]]] = {nsd_id: [] for nsd_id in truths}
        ranks: dict[int, list[float]] = {nsd_id: [] for nsd_id in truths}
        for subject in self.subjects:
            guesses = self._thumbnails(f"guesses/{subject}", subject, "guess")
            painted = {
                variant: self._thumbnails(f"reconstructions/{subject}/{variant}", subject, variant)
                for variant in self.variants
            }
            scores = report_tables.scores(self.stores[f"metrics/{subject}"])
            source = report_tables.source(subject)
            for nsd_id in truths:
                row: list[Picture] = []
                if nsd_id in shown[subject]:
                    row.append(self._picture(guesses[nsd_id], f"Guess for stimulus {nsd_id} from {source}", "guess"))
                    for variant in self.variants:
                        by_metric = {name: values[nsd_id] for name, values in scores[variant].items()}
                        if subject != TRUE:
                            ranks[nsd_id].append(by_metric[RANKED_BY])
                        label = variant if len(self.variants) > 1 else "reconstruction"
                        alt = f"Reconstruction of stimulus {nsd_id} from {source}, {variant}"
                        named = tuple(zip(report_tables.short_names(by_metric), by_metric.values(), strict=True))
                        row.append(self._picture(painted[variant][nsd_id], alt, label, named))
                pictures[nsd_id].append(row)
        rows = [
            Stimulus(
                nsd_id,
                captions[nsd_id],
                report_tables.mean(ranks[nsd_id]),
                self._picture(truths[nsd_id], f"Photo shown: {captions[nsd_id]}", ""),
                pictures[nsd_id],
            )
            for nsd_id in truths
        ]
        return sorted(rows, key=lambda row: (np.isnan(row.score), -row.score, row.nsd_id))

    def weight(self) -> str:
        return (
            f"{self.files} pictures, {self.nbytes / 2**20:.1f} MiB in all, are loaded as you scroll; "
            f"each is at most {self.pixels} px: the stores hold them in full size."
        )

    def _picture(
        self, made: tuple[str, int, int], alt: str, label: str, scores: tuple[tuple[str, float], ...] = ()
    ) -> Picture:
        return Picture(*made, alt, label, scores)

    def _truths(self, ids: np.ndarray) -> tuple[dict[int, tuple[str, int, int]], dict[int, str]]:
        store = self.stores["stimuli"]
        rows = np.sort(store.rows("nsd_id", ids))
        captions = {}
        order = store.read("nsd_id")[rows].tolist()
        for nsd_id, texts in zip(order, store.read("caption", {"stimulus": rows}), strict=True):
            captions[nsd_id] = next((str(text) for text in texts if text), "no caption")
        made = self._thumbnails("stimuli", "shown", "", rows)
        return {nsd_id: made[nsd_id] for nsd_id in ids.tolist()}, captions

    def _thumbnails(
        self, path: str, folder: str, name: str, rows: np.ndarray | None = None
    ) -> dict[int, tuple[str, int, int]]:
        """Write a thumbnail of each image of a store: by nsd_id its file, width and height on the page."""
        store = self.stores[path]
        ids = store.read("nsd_id")
        rows = np.arange(len(ids)) if rows is None else rows
        height, width = store.sizes["y"], store.sizes["x"]
        scale = self.pixels / max(height, width)
        (self.folder / "images" / folder).mkdir(parents=True, exist_ok=True)
        found = {}
        for start, stop in pairwise([*range(0, len(rows), BLOCK), len(rows)]):
            block = rows[start:stop]
            images = store.read("image", {"stimulus": block})
            thumbnails = self.pool.map(thumbnail, images, [self.pixels] * len(images))
            for nsd_id, data in zip(ids[block].tolist(), thumbnails, strict=True):
                file = f"images/{folder}/nsd{nsd_id:05d}{'-' * bool(name)}{name}.webp"
                (self.folder / file).write_bytes(data)
                self.files, self.nbytes = self.files + 1, self.nbytes + len(data)
                found[nsd_id] = (file, round(width * scale), round(height * scale))
        return found


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
    for key, path in (("study", context.study.path), ("nsd.root", context.config.nsd.root)):
        if path.resolve().is_relative_to(target):
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
