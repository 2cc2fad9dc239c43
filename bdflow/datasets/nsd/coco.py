"""Captions of NSD's stimuli from COCO's own files, joined by the `cocoId` of `nsd_stim_info_merged.csv`."""

from __future__ import annotations

import functools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bdflow.datasets.formats.identity import missing
from bdflow.datasets.formats.tables import read_table
from bdflow.datasets.nsd.stimuli import Captions
from bdflow.errors import InputError, NotAtHand, listed
from bdflow.stores.paths import AnyPath, place

CURATED = "COCO_73k_annots_curated.npy"
STIM_INFO = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
FILES = ("captions_train2017.json", "captions_val2017.json")
FOLDERS = ("nsddata_stimuli/stimuli/nsd/annotations", "annotations", "")
"""Where COCO's captions lie below the NSD root: where nsd_access keeps them; as COCO's archive unpacks; at the root."""

_AGAIN = "fetch COCO's annotations of 2017 again (annotations_trainval2017.zip)"


def places(root: str | AnyPath) -> list[AnyPath]:
    """The folders in which COCO's captions are looked for, the first that has a file first."""
    return [place(root) / folder if folder else place(root) for folder in FOLDERS]


def caption_files(root: str | AnyPath, folder: str | AnyPath | None = None) -> list[AnyPath]:
    """COCO's captions of training and validation images: in `folder`, or each in the first of `places` that has it.

    Raises
    ------
    NotAtHand : one of them is in none of these folders.
    """
    folders = [place(folder)] if folder is not None else places(root)
    return [_first(folders, name) for name in FILES]


def open_captions(
    root: str | AnyPath, given: str | AnyPath | None = None, *, count: int | None = None
) -> Captions | CocoCaptions:
    """The captions of NSD's stimuli, from whichever files there are.

    Parameters
    ----------
    root : the folder that holds `nsddata`.
    given : a `.npy` file (stimulus, caption), or the folder of COCO's captions. None: the curated file at the root, or,
        where it is not there, COCO's own in one of `places`.
    count : how many stimuli there are; others have no captions of them.

    Raises
    ------
    NotAtHand : there is neither. InputError : they cannot be used.
    """
    if given is not None:
        location = place(given)
        if location.name.endswith(".npy") or not location.is_dir():
            return Captions(location, count=count)
        return CocoCaptions(root, folder=location, count=count)
    curated = place(root) / CURATED
    if curated.is_file():
        return Captions(curated, count=count)
    if not any((folder / name).is_file() for folder in places(root) for name in FILES):
        raise NotAtHand(
            curated,
            found=f"no captions: neither this file, nor {' and '.join(FILES)}",
            expected=f"captions of NSD's stimuli, here or COCO's own in one of {listed(places(root))}",
            action="fetch COCO's annotations of 2017 into one of these folders, or set `dataset.captions`",
        )
    return CocoCaptions(root, count=count)


class CocoCaptions:
    """Captions of NSD's stimuli in COCO's files, in the order of COCO's annotation ids; as `Captions` are read.

    The files are parsed once in a process, whichever objects ask. Images that NSD does not have are ignored; a stimulus
    without captions has none.

    Parameters
    ----------
    root : the folder that holds `nsddata`.
    folder : where COCO's captions lie, if in none of `places`.
    count : how many stimuli there are, if known; InputError where the table has another number.

    Attributes
    ----------
    files : the table of stimuli, COCO's captions of training and of validation images.
    count : number of stimuli (NSD: 73,000).
    per_stimulus : most captions that a stimulus has.
    """

    def __init__(self, root: str | AnyPath, *, folder: str | AnyPath | None = None, count: int | None = None) -> None:
        table = place(root) / STIM_INFO
        if not table.is_file():
            raise missing(table, "the table of NSD's stimuli, which has their cocoId")
        self.files = (table, *caption_files(root, folder))
        self._captions = _joined(self.files, tuple(_stamp(file) for file in self.files))
        self.count = len(self._captions)
        self.per_stimulus = max((len(captions) for captions in self._captions), default=0)
        if count is not None and count != self.count:
            raise InputError(
                table,
                found=f"{self.count:,} stimuli",
                expected=f"{count:,}, as many as there are pictures",
                meaning="Captions and pictures cannot be matched.",
                action="use the table and the pictures of one dataset",
            )

    def read(self, nsd_ids: Sequence[int] | np.ndarray) -> list[list[str]]:
        """Captions of each of `nsd_ids` (from 0), in that order, without blanks around them; empty ones dropped.

        Raises
        ------
        InputError : an id that there is not.
        """
        ids = np.asarray(nsd_ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InputError(
                f"{self.files[0]}, nsd_ids",
                found=f"{ids.dtype} of shape {ids.shape}",
                expected="a list of whole numbers",
                action="hand in one nsd_id for each stimulus",
            )
        outside = [int(i) for i in ids if not 0 <= i < self.count]
        if outside:
            raise InputError(
                f"{self.files[0]}, nsd_id {outside[0]}",
                found=f"an id outside the {self.count:,} stimuli",
                expected=f"0 to {self.count - 1}",
                action="use design, stimuli and captions of one dataset",
            )
        return [list(self._captions[int(i)]) for i in ids]


def _first(folders: Sequence[AnyPath], name: str) -> AnyPath:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    more = f", nor in {listed(folders[1:])}" if folders[1:] else ""
    raise missing(folders[0] / name, "COCO's captions", more)


def _stamp(path: AnyPath) -> tuple[object, ...]:
    """What changes when the file does."""
    if isinstance(path, Path):
        status = path.stat()
        return status.st_size, status.st_mtime_ns, status.st_ino
    return path.version()


@functools.lru_cache(maxsize=4)
def _joined(files: tuple[AnyPath, ...], stamps: tuple[tuple[object, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """Captions of every stimulus by its nsd_id. `stamps` tells contents of the same files apart."""
    table, *annotations = files
    coco_ids = _coco_ids(table)
    wanted, found = frozenset(coco_ids), defaultdict[int, dict[int, str]](dict)
    for file in annotations:
        for image, number, caption in _parsed(file, wanted):
            if number in found[image]:
                raise InputError(
                    f"{file}, annotation {number}",
                    found=f"a second caption of image {image} with this id",
                    expected="each annotation once, over both files",
                    action=_AGAIN,
                )
            found[image][number] = caption.strip()
    return tuple(tuple(text for _, text in sorted(found[image].items()) if text) for image in coco_ids)


def _coco_ids(path: AnyPath) -> list[int]:
    """COCO's id of every stimulus, by its nsd_id."""
    table = read_table(path, "the table of NSD's stimuli", ["cocoId", "nsdId"])
    nsd_ids, coco_ids = table.whole("nsdId"), table.whole("cocoId")
    by_id = dict(zip(nsd_ids, coco_ids, strict=True))
    gaps = sorted(set(range(len(nsd_ids))) - set(nsd_ids))
    if gaps or not nsd_ids:
        twice = [number for number, rows in Counter(nsd_ids).items() if rows > 1]
        raise InputError(
            f"{path}, column nsdId",
            found=f"{twice[0]} twice" if twice else f"no {gaps[0]}, in {len(nsd_ids):,} rows" if gaps else "no rows",
            expected="every number from 0 once",
            meaning="Captions would be joined to other stimuli.",
            action="use NSD's own nsd_stim_info_merged.csv",
        )
    return [by_id[i] for i in range(len(nsd_ids))]


def _parsed(path: AnyPath, wanted: frozenset[int]) -> list[tuple[int, int, str]]:
    """Image, annotation id and caption of all annotations of the images that are wanted.

    Every object of the file is reduced to that as soon as it is read: 90 MB of text are never held as a tree.
    """

    def reduced(item: dict[str, object]) -> object:
        if "annotations" in item:
            return item
        if "caption" not in item:
            return None
        image, number, caption = (item.get(key) for key in ("image_id", "id", "caption"))
        if type(image) is not int or type(number) is not int or type(caption) is not str:
            raise InputError(
                f"{path}, annotation {json.dumps(number)[:100]}",
                found=f"image_id {json.dumps(image)[:100]}, caption {json.dumps(caption)[:100]}",
                expected="numbers as `image_id` and `id`, and a text as `caption`",
                action=_AGAIN,
            )
        return (image, number, caption) if image in wanted else ()

    try:
        content = json.loads(path.read_bytes(), object_hook=reduced)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            path,
            found=f"no readable JSON ({error})",
            expected="COCO's captions, an object with a list `annotations`",
            action=_AGAIN,
        ) from error
    every = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(every, list) or not every or not all(isinstance(one, tuple) for one in every):
        raise InputError(
            path,
            found="no list `annotations` of captions",
            expected="COCO's captions, an object with a list `annotations`, each with `image_id`, `id` and `caption`",
            action="use COCO's captions_train2017.json and captions_val2017.json, not its instances or keypoints",
        )
    return [one for one in every if one]
