"""Pictures and scores of a finished study as plain files, so that others can look at them and score them."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
from PIL import Image

from bdflow.scoring.exported import COLUMNS, MANIFEST, PHOTO, TABLE, file_name
from bdflow.stores import Store
from bdflow.study import keys, parts
from bdflow.study.in_effect import settings_in_effect
from bdflow.study.painting import shown_of, spaces_of
from bdflow.study.stage import Context
from bdflow.user_paths import check_new, new_folder
from bdflow.version import __version__

GUESS = "guess"


def write(context: Context, folder: Path, tables: Mapping[str, str], *, photos: bool = False) -> Path:
    """Write `pictures/PAINTER/KIND/SUBJECT/STIMULUS.png` for every guess, variant and control, `images.csv` (a row a
    picture), `tables` of scores by name, and `manifest.json`: configuration, fingerprints of the stores, and the
    SHA-256 of every file. With `photos`, what was shown too, below `pictures/photo`: mind whose they are.

    `folder` is new; it appears when all of it is written.

    Raises
    ------
    InputError : there is something at `folder`. NotReady : pictures that are not painted yet.
    """
    check_new(folder)
    config, stores = context.config, {key: context.ready(key) for key in _keys(context)}
    metrics = [keys.metrics(painter, subject) for painter in config.painters for subject in context.painted]
    with new_folder(folder) as partial:
        digests: dict[str, str] = {}
        rows = list(_pictures(context, stores, partial, digests, photos))
        _save(partial, TABLE, _table(rows).encode(), digests)
        for name, text in tables.items():
            _save(partial, f"tables/{name}", text.encode(), digests)
        manifest = {
            "made_by": f"bdflow {__version__}",
            "configuration": settings_in_effect(config),
            "stores": {key: context.expected[key].fingerprint for key in sorted([*stores, *metrics])},
            "sha256": dict(sorted(digests.items())),
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (partial / MANIFEST).write_text(text, encoding="utf-8")
    return folder


def _kinds(context: Context, painter: str, subject: str) -> Iterator[tuple[str, str]]:
    """(kind, key) of everything that a painter shows of a subject."""
    if "guess" in spaces_of(context.config, painter):
        yield GUESS, keys.guesses(painter, subject)
    for variant in shown_of(context.config, painter, subject):
        yield variant, keys.reconstructions(painter, subject, variant)


def _keys(context: Context) -> Iterator[str]:
    for painter in context.config.painters:
        for subject in context.painted:
            yield from (key for _, key in _kinds(context, painter, subject))


def _pictures(
    context: Context, stores: Mapping[str, Store], folder: Path, digests: dict[str, str], photos: bool
) -> Iterator[tuple[str, ...]]:
    """Writes the pictures; a row of `images.csv` for each."""
    shown: set[str] = set()
    for painter in context.config.painters:
        for subject in context.painted:
            for kind, key in _kinds(context, painter, subject):
                store = stores[key]
                ids = store.read("stimulus_id").tolist()
                shown.update(ids)
                several = store.sizes.get("picture", 1) > 1
                for row, stimulus in enumerate(ids):
                    (images,) = store.read("image", {"stimulus_id": slice(row, row + 1)})
                    for number, image in enumerate(images if images.ndim == 4 else images[None]):
                        name = file_name(stimulus) + (f"-{number}" if several else "")
                        file = f"pictures/{painter}/{kind}/{subject}/{name}.png"
                        digest = _save(folder, file, _png(image), digests)
                        yield file, stimulus, subject, painter, kind, str(number), digest
    if photos:
        every = parts.joined(context, parts.stimuli(parts.of_tests(context.config)))
        for row, stimulus in enumerate(every.read("stimulus_id").tolist()):
            if stimulus in shown:
                (image,) = every.read("image", {"stimulus_id": slice(row, row + 1)})
                file = f"pictures/{PHOTO}/{file_name(stimulus)}.png"
                yield file, stimulus, "", "", PHOTO, "0", _save(folder, file, _png(image), digests)


def _png(image: np.ndarray) -> bytes:
    out = BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def _save(folder: Path, name: str, content: bytes, digests: dict[str, str]) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    digests[name] = hashlib.sha256(content).hexdigest()
    return digests[name]


def _table(rows: list[tuple[str, ...]]) -> str:
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return out.getvalue()
