"""Names of the labels of NSD's ROI volumes, from the colour tables of FreeSurfer; and the regions they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bdflow.datasets.formats.grids import Grid, check_same_grid
from bdflow.datasets.formats.identity import missing
from bdflow.datasets.nsd.design import subject_index
from bdflow.datasets.nsd.files import NSD, ROI_LABELS
from bdflow.errors import InputError, listed
from bdflow.stores.paths import AnyPath, place

HEMISPHERES = ("lh.", "rh.")
_COLOURS = 4  # red, green, blue and transparency, which FreeSurfer's own tables have after the name


def table_path(root: str | AnyPath, subject: str, name: str) -> AnyPath:
    """The colour table of an ROI volume; volumes of single hemispheres, `lh.NAME`, have the one of both."""
    subject_index(subject)
    return place(root) / "nsddata/freesurfer" / subject / "label" / f"{_both(name)}.mgz.ctab"


def region_labels(root: str | AnyPath, subject: str, name: str) -> dict[int, str]:
    """Names of the labels above 0 of an ROI volume, by label, as they stand in its colour table. Names are text, also
    those that look like numbers. Not every label need have a voxel.

    Without a colour table, NSD's own collections have the labels that are known here (`ROI_LABELS`).

    Raises
    ------
    NotAtHand : no colour table, of a collection that is not known here. InputError : one that cannot be read, or has a
        label or a name twice.
    """
    path = table_path(root, subject, name)
    if not path.is_file():
        if _both(name) in ROI_LABELS:
            return dict(enumerate(ROI_LABELS[_both(name)], start=1))
        raise missing(path, f"the names of the labels of {name}, as `number name` in each line")
    found: dict[int, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        label, text = _entry(f"{path}, line {number}", words)
        if label <= 0:
            continue
        if label in found or text in found.values():
            what = f"label {label}" if label in found else f"the name {text!r}"
            raise InputError(
                f"{path}, line {number}",
                found=f"{what} a second time",
                expected="each label and each name once",
                meaning="A region would not be told apart from another.",
                action="correct the table, or fetch it again",
            )
        found[label] = text
    if not found:
        raise InputError(
            path, found="no label above 0", expected="`number name` in each line", action="fetch the table again"
        )
    return found


def collections(nsd: NSD, subject: str) -> list[str]:
    """ROI volumes of a subject whose labels have names, ascending; without those of single hemispheres.

    Other volumes, such as a mask of one's own, can be masks, but have no named regions.
    """
    names = nsd.roi_names(subject)
    return [name for name in names if name in ROI_LABELS or table_path(nsd.root, subject, name).is_file()]


def region_names(nsd: NSD, subject: str) -> list[str]:
    """`collection/name` of every named region of a subject, from the colour tables alone."""
    return [f"{collection}/{name}" for collection, _, name in _named(nsd, subject)]


def _named(nsd: NSD, subject: str) -> list[tuple[str, int, str]]:
    every = [(collection, region_labels(nsd.root, subject, collection)) for collection in collections(nsd, subject)]
    return [(collection, label, name) for collection, labels in every for label, name in labels.items()]


class Regions(Mapping[str, np.ndarray]):
    """(x, y, z) bool of every named region of a subject by `collection/name`; made when asked for, from labels.

    Parameters
    ----------
    nsd : where the volumes and tables are; `subject`, such as subj01.
    grid : what the volumes are compared with.

    Raises
    ------
    InputError : a volume that cannot be read, lies on another grid, or has a label without a name.
    """

    def __init__(self, nsd: NSD, subject: str, grid: Grid) -> None:
        self.nsd, self.subject, self.grid = nsd, subject, grid
        named = _named(nsd, subject)
        self._where = {f"{collection}/{name}": (collection, label) for collection, label, name in named}
        self._volumes: dict[str, np.ndarray] = {}

    def files(self) -> dict[str, AnyPath]:
        """Volumes and colour tables, by what they are."""
        folder = self.nsd.root / "nsddata/ppdata" / self.subject / self.nsd.space / "roi"
        found = {f"region {name}": folder / f"{name}.nii.gz" for name, _ in self._where.values()}
        tables = {f"labels {name}": table_path(self.nsd.root, self.subject, name) for name, _ in self._where.values()}
        return found | {what: path for what, path in tables.items() if path.is_file()}

    def __getitem__(self, key: str) -> np.ndarray:
        collection, label = self._where[key]
        if collection not in self._volumes:
            self._volumes[collection] = self._read(collection)
        found: np.ndarray = self._volumes[collection] == label
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def _read(self, collection: str) -> np.ndarray:
        volume = self.nsd.roi(self.subject, collection)
        check_same_grid([self.grid, volume.grid], self.subject)
        known = [label for name, label in self._where.values() if name == collection]
        unknown = np.setdiff1d(volume.data[volume.data > 0], known)
        if unknown.size:
            raise InputError(
                volume.path,
                found=f"labels without a name: {listed(unknown)}",
                expected=f"the labels of {table_path(self.nsd.root, self.subject, collection)}, up to {max(known)}",
                meaning="The volume and its names are not of the same parcellation.",
                action="fetch both again, or add the names to the table",
            )
        return volume.data.astype(np.int16)


def _both(name: str) -> str:
    """The volume of both hemispheres."""
    return name[len(HEMISPHERES[0]) :] if name.startswith(HEMISPHERES) else name


def _lines(path: AnyPath) -> Sequence[str]:
    try:
        return path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            path, found=f"no text ({error})", expected="a colour table in UTF-8", action="fetch the table again"
        ) from error


def _entry(where: str, words: Sequence[str]) -> tuple[int, str]:
    """Label and name of a line: `number name`, perhaps followed by a colour."""
    try:
        label = int(words[0])
        if len(words) not in (2, 2 + _COLOURS):
            raise ValueError
        for word in words[2:]:
            int(word)
    except ValueError:
        raise InputError(
            where,
            found=repr(" ".join(words)[:200]),
            expected="a number and a name without blanks, or these and a colour of four numbers",
            action="correct the table, or fetch it again",
        ) from None
    return label, words[1]
