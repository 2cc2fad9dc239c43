"""Folders that `bdflow export` wrote: pictures by painter, kind and subject, ids of their stimuli, digests."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from bdflow.errors import InputError, counted, listed
from bdflow.scoring.folders import SUFFIXES, FileImages

MANIFEST, TABLE = "manifest.json", "images.csv"
PHOTO = "photo"
COLUMNS = ("file", "stimulus_id", "subject", "painter", "kind", "picture", "sha256")
LONGEST = 150  # bytes of a name


@dataclass(frozen=True)
class Export:
    """What a folder of `bdflow export` holds: photos, if they were exported, and sets by `PAINTER/KIND/SUBJECT`.

    `selects` : by painter, which of several pictures of a stimulus its study scored: `all`, `first` or `best`.
    """

    folder: Path
    photos: FileImages | None
    sets: dict[str, FileImages]
    selects: dict[str, str]


def is_export(folder: Path) -> bool:
    """Whether a folder has the two files by which an export is known."""
    return (folder / MANIFEST).is_file() and (folder / TABLE).is_file()


def open_export(folder: Path) -> Export:
    """Read the table and the manifest; pictures are compared with their digests when they are read.

    Raises
    ------
    InputError : a table or manifest that is none, that disagree, or that name files which are not there; pictures that
        they do not name; stimuli of a set with different numbers of pictures.
    """
    rows, (digests, selects) = _rows(folder), _manifest(folder)
    wrong = [row["file"] for row in rows if digests.get(row["file"]) != row["sha256"]]
    if wrong:
        raise _broken(folder, f"other digests in {TABLE} than in {MANIFEST}: {listed(wrong)}")
    named = {row["file"] for row in rows}
    if len(named) < len(rows):
        raise _broken(folder, f"files that stand twice in {TABLE}")
    absent = sorted(name for name in named if not (folder / name).is_file())
    if absent:
        raise _broken(folder, f"no {listed(absent)}, which {TABLE} names")
    there = {file.relative_to(folder).as_posix() for file in (folder / "pictures").rglob("*")}
    strange = sorted(name for name in there - named if PurePosixPath(name).suffix.lower() in SUFFIXES)
    if strange:
        raise _broken(folder, f"{counted(len(strange), 'picture')} that {TABLE} does not name: {listed(strange)}")
    grouped: dict[str, dict[str, dict[int, Path]]] = {}
    for row in rows:
        name = PHOTO if row["kind"] == PHOTO else "/".join((row["painter"], row["kind"], row["subject"]))
        pictures = grouped.setdefault(name, {}).setdefault(row["stimulus_id"], {})
        number = int(row["picture"]) if row["picture"].isascii() and row["picture"].isdigit() else -1
        if number != len(pictures):
            raise _broken(
                folder, f"picture {row['picture'] or '(empty)'} of {row['stimulus_id']} in {name} out of order"
            )
        pictures[number] = folder / row["file"]
    sums = {folder / row["file"]: row["sha256"] for row in rows}
    sets = {}
    for name, stimuli in grouped.items():
        if len({len(pictures) for pictures in stimuli.values()}) > 1:
            raise _broken(folder, f"different numbers of pictures of the stimuli in {name}")
        files = {stimulus: list(pictures.values()) for stimulus, pictures in stimuli.items()}
        sets[name] = FileImages(f"{folder}, {name}", files, sums)
    return Export(folder, sets.pop(PHOTO, None), sets, selects)


def file_name(stimulus: str) -> str:
    """A stimulus's id as the name of a file on every system: what is not plain is written as in a URL. Long ids, and
    those that differ from another in upper and lower case alone, are told apart by a digest.
    """
    name = quote(stimulus, safe=" +,=@~()")
    if name.strip(". ") == name and name == name.lower() and len(name) <= LONGEST:
        return name
    digest = hashlib.blake2b(stimulus.encode(), digest_size=4).hexdigest()
    return f"{name[:LONGEST].strip('. ')}-{digest}"


def _rows(folder: Path) -> list[dict[str, str]]:
    try:
        text = (folder / TABLE).read_text(encoding="utf-8")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = list(reader)
    except (ValueError, csv.Error) as error:
        raise _broken(folder, f"a {TABLE} that cannot be read ({error})") from error
    if tuple(reader.fieldnames or ()) != COLUMNS or any(None in row or None in row.values() for row in rows):
        raise _broken(folder, f"a {TABLE} with other columns than {', '.join(COLUMNS)}")
    for row in rows:
        path = PurePosixPath(row["file"])
        if path.is_absolute() or ".." in path.parts or path.parts[:1] != ("pictures",):
            raise _broken(folder, f"a file outside the folder's pictures in {TABLE}: {row['file']}")
        if not row["stimulus_id"]:
            raise _broken(folder, f"no stimulus of {row['file']} in {TABLE}")
    return rows


def _manifest(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Digests by file, and `select` by painter."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = manifest["sha256"]
        selects = {name: str(of["select"]) for name, of in manifest["configuration"]["painters"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(folder, f"a {MANIFEST} that cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise _broken(folder, f"a {MANIFEST} without digests")
    if found.get(TABLE) != hashlib.sha256((folder / TABLE).read_bytes()).hexdigest():
        raise _broken(folder, f"a {TABLE} with another SHA-256 than {MANIFEST} says")
    return found, selects


def _broken(folder: Path, found: str) -> InputError:
    return InputError(
        folder,
        found=found,
        expected="the export of a study as it was written",
        meaning="Files were changed, added or lost after the export. To score changed pictures, copy them into a plain "
        f"folder without {TABLE} and {MANIFEST}.",
        action="copy the folder again, or export the study again",
    )
