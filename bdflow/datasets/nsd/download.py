"""NSD's files from its public bucket, or a mirror: exactly those that a configuration reads; resumable and verified."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdflow.config import Config
from bdflow.datasets.formats.options import options
from bdflow.datasets.nsd import CAPTIONS, DESIGN, ROI_FILES, STIM_INFO, STIMULI, subject_index
from bdflow.datasets.nsd.dataset import MASK, NSDOptions, session_number
from bdflow.datasets.nsd.files import ENDINGS
from bdflow.errors import InputError, counted
from bdflow.stores.paths import RemotePath, place

SOURCE = "s3://natural-scenes-dataset"
TERMS = """\
The Natural Scenes Dataset (Allen et al. 2022, doi 10.1038/s41593-021-00962-x) belongs to its authors.
Its terms and conditions, and the data access agreement that its authors ask every user to fill in, are at
    http://naturalscenesdataset.org
Its photos come from Microsoft COCO, whose terms of use are at https://cocodataset.org/#termsofuse
bdflow cannot accept them for you: read them there. Fetching means that you have read and accepted them."""
RECORD = ".bdflow-fetched.json"
PIECE = 16 * 1024 * 1024
AT_ONCE = 4
TELL = 1_000_000_000
MIB = 1024 * 1024
PARTS = (5, 8, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 256, 512)
"""Lengths of parts (MiB) that programs upload large files in."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One file: its name below the root, its size in bytes and the object store's ETag."""

    name: str
    size: int
    e_tag: str


def command(
    config: Config, to: Path | None, source: str, accept: bool | Callable[[str], bool], only_list: bool
) -> list[Item]:
    """The files that a configuration reads; unless they are only listed, what is missing is fetched, once the terms
    of use are accepted.

    Raises InputError, StoreError, as `Fetch.run`; InputError also if the terms are not accepted.
    """
    where = to or config.dataset.root
    if not isinstance(where, Path):
        raise InputError(
            "dataset.root",
            found=f"{where}, which is no directory of this machine",
            expected="a directory to fetch to",
            action="name one (`--to DIR` on the command line), or correct `dataset.root`",
        )
    origin = source_of(source)
    job, items = Fetch(origin, where), listing(config, origin)
    missing = job.missing(items)
    total, left = (sum(item.size for item in some) / 1e9 for some in (items, missing))
    log.info(
        "%s: %s, %.3f GB; not yet in %s: %d, %.3f GB",
        origin,
        counted(len(items), "file"),
        total,
        where,
        len(missing),
        left,
    )
    if missing and not only_list:
        log.info("%s", TERMS)
        if not (accept if isinstance(accept, bool) else accept("Do you accept these terms?")):
            raise InputError(
                str(origin),
                found="terms of use that were not accepted",
                expected="that you have read and accepted them",
                meaning="Nothing was fetched.",
                action="read them (http://naturalscenesdataset.org), then accept them: answer yes when asked, or give "
                "accept_terms (`--accept-terms` on the command line)",
            )
        job.run(missing)
        log.info("%s: has all of the %s, with the content that %s has", where, counted(len(items), "file"), origin)
    if not (config.dataset.captions or (where / CAPTIONS).is_file() or any(item.name == CAPTIONS for item in items)):
        log.warning("%s is not among them: NSD does not publish it (see docs/places.md).", CAPTIONS)
    return items


def source_of(url: str) -> RemotePath:
    """The root to fetch from. Raises InputError for anything but a URL of an object store."""
    source = place(url)
    if not isinstance(source, RemotePath):
        raise InputError(
            "source", found=url, expected="a URL such as s3://BUCKET/FOLDER", action="correct the URL of the source"
        )
    return source


def listing(config: Config, source: RemotePath) -> list[Item]:
    """Every file that the configuration reads, as it is at the source; captions and files of what a session measured
    only if they are there.

    Raises InputError naming every file that is not there.
    """
    nsd, found, absent = config.dataset, [], []
    top = _folder(source, "")
    for name in (DESIGN, STIMULI):
        item = _folder(source, name.rpartition("/")[0]).get(name)
        found.append(item) if item else absent.append(name)
    found += [top[CAPTIONS]] if CAPTIONS in top else []
    table = _folder(source, STIM_INFO.rpartition("/")[0]).get(STIM_INFO)
    found += [table] if table and CAPTIONS not in top else []
    endings = ENDINGS[nsd.betas_format]
    for subject in config.subjects:
        subject_index(subject)
        rois = _folder(source, f"nsddata/ppdata/{subject}/{nsd.space}/roi")
        regions = {name.rpartition("/")[2].removesuffix(".nii.gz"): item for name, item in rois.items()}
        mask = (nsd.mask or MASK).partition("/")[0]
        if mask not in regions:
            absent.append(f"nsddata/ppdata/{subject}/{nsd.space}/roi/{mask}.nii.gz")
        found += [regions[name] for name in dict.fromkeys((mask, *ROI_FILES)) if name in regions]
        atlases = options(NSDOptions, nsd.options, "nsd").atlases
        absent += [f"nsddata/ppdata/{subject}/{nsd.space}/roi/{name}.nii.gz" for name in atlases if name not in regions]
        found += [regions[name] for name in atlases if name in regions]
        labels = f"nsddata/freesurfer/{subject}/label"
        tables, wanted = _folder(source, labels), dict.fromkeys((mask, *ROI_FILES, *atlases))
        found += [tables[name] for of in wanted if (name := f"{labels}/{of}.mgz.ctab") in tables]
        folder = f"nsddata_betas/ppdata/{subject}/{nsd.space}/{nsd.preparation}"
        betas = _folder(source, folder)
        numbers = _session_numbers(config, subject, betas)
        volumes = f"nsddata/ppdata/{subject}/{nsd.space}"
        valid = _folder(source, volumes)
        optional = [f"{volumes}/valid_session{n:02d}.nii.gz" for n in numbers]
        found += [valid[name] for name in optional if name in valid]
        names = [[f"{folder}/ncsnr.nii.gz"]]
        names += [[f"{folder}/betas_session{n:02d}{end}" for end in endings] for n in numbers]
        for choices in names:
            there = [betas[name] for name in choices if name in betas]
            found += there[:1]
            absent += [] if there else choices[:1]
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise InputError(
            source,
            found=f"no {', '.join(absent[:5])}{more}",
            expected="every file that the configuration reads",
            action="correct dataset.sessions, .preparation, .space or subjects, or fetch from another source",
        )
    return found


def _session_numbers(config: Config, subject: str, betas: Iterable[str]) -> list[int]:
    """Numbers of the sessions that the configuration reads, of those whose files are named in `betas`."""
    wanted = config.dataset.sessions_of(subject)
    if wanted is None:
        found = {match[1] for name in betas if (match := re.search(r"betas_session(\d+)\.(?:nii\.gz|hdf5)$", name))}
        return sorted(int(number) for number in found)
    if isinstance(wanted, int):
        return list(range(1, wanted + 1))
    return sorted(one if isinstance(one, int) else session_number(one) for one in wanted)


def _folder(source: RemotePath, folder: str) -> dict[str, Item]:
    found = source.bucket.files(folder)
    prefix = folder + "/" if folder else ""
    return {prefix + name: Item(prefix + name, size, e_tag) for name, (size, e_tag) in found.items()}


class Fetch:
    """Brings files from `source` below `folder`.

    A file comes in pieces, into `<name>.partial`, goes on where it was cut off, and gets its name when size and ETag
    are verified. What came is recorded with the time of its last change: it is read again only if that differs.
    """

    def __init__(self, source: RemotePath, folder: Path) -> None:
        self.source, self.folder = source, folder
        self.record: dict[str, dict[str, Any]] = {}
        if (folder / RECORD).is_file():
            try:
                content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            except ValueError:
                content = None
            if isinstance(content, dict) and all(isinstance(of, dict) for of in content.values()):
                self.record = content
            else:
                log.warning(
                    "%s: found no readable record of earlier downloads in it. Files that are there are read whole and "
                    "compared, which takes longer; a new record is written.",
                    folder / RECORD,
                )

    def missing(self, items: Sequence[Item]) -> list[Item]:
        """Those not there as they should be; the others may be read for it."""
        return [item for item in items if not self._there(item)]

    def run(self, items: Sequence[Item]) -> list[Item]:
        """Fetch what is missing; returns what was fetched.

        Raises
        ------
        InputError : there is no space, or what came is not what the object store says it is.
        StoreError : the object store does not answer.
        """
        wanted = self.missing(items)
        needed = sum(item.size - self._begun(item) for item in wanted)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise InputError(
                self.folder,
                found=f"{free / 1e9:.1f} GB free",
                expected=f"space for {needed / 1e9:.1f} GB",
                action="free some space, or choose another directory",
            )
        for number, item in enumerate(wanted, start=1):
            begun = self._begun(item)
            note = f", from {begun:,} on" if begun else ""
            log.info("%d of %d: %s (%s bytes%s)", number, len(wanted), item.name, f"{item.size:,}", note)
            self._bring(item)
        return wanted

    def _there(self, item: Item) -> bool:
        file = self.folder / item.name
        if not file.is_file() or file.stat().st_size != item.size:
            return False
        known = self.record.get(item.name, {})
        if known == {"e_tag": item.e_tag, "changed": file.stat().st_mtime_ns}:
            return True
        if verified(file, item) is False:
            log.warning("%s: its content is not what %s has. Fetching it again.", file, self.source)
            return False
        self._remember(item)
        return True

    def _partial(self, item: Item) -> Path:
        """Where it lies until it is whole; of another version there, nothing is taken."""
        version = hashlib.sha256(item.e_tag.encode()).hexdigest()[:8]
        file = self.folder / item.name
        return file.with_name(f"{file.name}.{version}.partial")

    def _begun(self, item: Item) -> int:
        partial = self._partial(item)
        return min(partial.stat().st_size, item.size) if partial.is_file() else 0

    def _bring(self, item: Item) -> None:
        partial = self._partial(item)
        partial.parent.mkdir(parents=True, exist_ok=True)
        begun = self._begun(item)
        with partial.open("ab") as file:
            file.truncate(begun)
            done = begun
            for piece in self._pieces(item, begun):
                file.write(piece)
                file.flush()
                if (done + len(piece)) // TELL > done // TELL:
                    log.info("  %.1f of %.1f GB", (done + len(piece)) / 1e9, item.size / 1e9)
                done += len(piece)
            os.fsync(file.fileno())
        if verified(partial, item) is False:
            partial.unlink()
            raise InputError(
                f"{self.source}/{item.name}",
                found="content that does not match the checksum of its source (its ETag)",
                expected=f"ETag {item.e_tag}",
                meaning="It was damaged on its way, or changed at its source; it was not kept.",
                action="run the same command again",
            )
        partial.replace(self.folder / item.name)
        self._remember(item)

    def _pieces(self, item: Item, begun: int) -> Iterator[bytes]:
        """The rest of a file, in order; some are on their way at a time."""
        bucket = self.source.bucket
        starts = list(range(begun, item.size, PIECE))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            ahead = [
                pool.submit(bucket.read_range, item.name, at, min(at + PIECE, item.size)) for at in starts[:AT_ONCE]
            ]
            for at in [*starts[AT_ONCE:], *[-1] * len(ahead)]:
                yield ahead.pop(0).result()
                if at >= 0:
                    ahead.append(pool.submit(bucket.read_range, item.name, at, min(at + PIECE, item.size)))

    def _remember(self, item: Item) -> None:
        changed = (self.folder / item.name).stat().st_mtime_ns
        self.record[item.name] = {"e_tag": item.e_tag, "changed": changed}
        partial = self.folder / (RECORD + ".partial")
        partial.write_text(json.dumps(self.record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        partial.replace(self.folder / RECORD)


def verified(file: Path, item: Item) -> bool | None:
    """Whether a file is what its ETag says: an MD5, or an MD5 of MD5s of parts. None if it is neither."""
    digest, _, parts = item.e_tag.strip('"').partition("-")
    if file.stat().st_size != item.size:
        return False
    if len(digest) != 32 or (parts and not parts.isdecimal()):
        return None
    if not parts:
        return _md5s(file, max(item.size, 1))[0].hex() == digest
    lengths = [mib * MIB for mib in PARTS if -(-item.size // (mib * MIB)) == int(parts)]
    if any(hashlib.md5(b"".join(_md5s(file, length))).hexdigest() == digest for length in lengths):
        return True
    return None


def _md5s(file: Path, length: int) -> list[bytes]:
    """MD5 of each part of this length."""
    found: list[bytes] = []
    with file.open("rb") as content:
        while True:
            left, md5, some = length, hashlib.md5(usedforsecurity=False), False
            while left and (piece := content.read(min(left, MIB))):
                md5.update(piece)
                left, some = left - len(piece), True
            if not some:
                return found or [md5.digest()]
            found.append(md5.digest())
