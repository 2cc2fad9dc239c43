"""What a user hands in, as photos and sets of pictures that belong together, stimulus by stimulus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bdflow.errors import InputError, counted, listed
from bdflow.scoring.exported import Export, file_name, is_export, open_export
from bdflow.scoring.files import ARRAYS, TENSORS, divided, is_zarr, open_file, open_zarr
from bdflow.scoring.folders import FileImages, by_stimulus, folder_sets
from bdflow.scoring.pixels import SCALES, Scale
from bdflow.scoring.sources import ArrayImages, Images
from bdflow.stores.paths import AnyPath, RemotePath, place
from bdflow.user_paths import any_place, local_path

Given = Any
"""A path, or an array: of numpy, torch or xarray."""
FORMS = "a folder of PNG or JPEG files, the export of a study, or .npy, .npz, .pt, .safetensors or Zarr"


@dataclass(frozen=True)
class Set:
    """Pictures of one subject, variant or method, with the rows of pictures and photos of the same stimuli."""

    name: str
    images: Images
    rows: tuple[int, ...]
    photos: tuple[int, ...]


@dataclass(frozen=True)
class Matched:
    """Photos, and the sets of pictures that are compared with them.

    Attributes
    ----------
    ids : of the photos' rows: ids, or numbers from 0.
    left_out : photos that no set shows. places : what was handed in, in words.
    selects : of an export, by painter, which of several pictures of a stimulus its study scored.
    """

    photos: Images
    ids: tuple[str, ...]
    sets: tuple[Set, ...]
    left_out: int
    places: tuple[str, str]
    selects: Mapping[str, str] = field(default_factory=dict)


def open_all(
    photos: Given,
    pictures: Given | None,
    *,
    subset: bool = False,
    photos_range: Scale | None = None,
    pictures_range: Scale | None = None,
) -> Matched:
    """Open both, and put together what belongs together.

    Parameters
    ----------
    photos, pictures : as `bdflow.score` takes them; without `pictures`, `photos` is an export with photos.
    subset : leave out photos without pictures, instead of refusing them.

    Raises
    ------
    InputError : what cannot be read, or cannot be put together.
    """
    exported = None
    for option, scale in (("photos_range", photos_range), ("pictures_range", pictures_range)):
        if scale is not None and scale not in SCALES:
            raise InputError(option, found=repr(scale), expected=", ".join(SCALES), action="choose among these")
    if pictures is None:
        pictures = photos
        if not _is_export("PHOTOS", photos):
            raise InputError(
                "PICTURES",
                found="nothing",
                expected="pictures to be scored, unless PHOTOS is the export of a study",
                action="name both, PHOTOS and PICTURES",
            )
    if _is_export("PICTURES", pictures):
        exported = open_export(local_path("PICTURES", pictures))
    shown = _photos(photos, exported, photos_range)
    sets = _sets(pictures, exported, shown, pictures_range)
    if exported is not None:
        shown = _renamed(shown, exported)
    places = tuple(str(given) if isinstance(given, str | Path) else "an array" for given in (photos, pictures))
    found = _matched(shown, sets, subset, exported is not None, (places[0], places[1]))
    return found if exported is None else replace(found, selects=exported.selects)


def _photos(given: Given, exported: Export | None, scale: Scale | None) -> Images:
    if not isinstance(given, str | Path):
        found: Images = _memory("photos", given, scale, "--photos-range")
    else:
        path = _place("PHOTOS", given)
        if isinstance(path, RemotePath):
            found = _remote(path, scale, "--photos-range", shown=True)
        elif is_export(path):
            same = exported is not None and exported.folder.resolve() == path.resolve()
            photos = exported.photos if exported is not None and same else open_export(path).photos
            if photos is None:
                raise InputError(
                    path,
                    found="an export without photos",
                    expected="the photos that were shown",
                    action="name a folder of photos as PHOTOS, or export with --photos",
                )
            found = photos
        elif path.is_dir() and not is_zarr(path):
            sets = folder_sets(path)
            if set(sets) != {""}:
                raise InputError(
                    path,
                    found=f"folders of pictures: {listed(sets)}",
                    expected="one folder of photos",
                    action="name one of them",
                )
            found = FileImages(str(path), {name: [file] for name, file in sets[""].items()})
        else:
            found = _file(path, scale, "--photos-range", shown=True)
    if found.several > 1:
        raise InputError(
            found.where,
            found=f"{found.several} photos of each stimulus",
            expected="one photo of each stimulus; several pictures of it are allowed",
            action="hand in one photo of each; or were PHOTOS and PICTURES exchanged?",
        )
    return found


def _sets(given: Given, exported: Export | None, photos: Images, scale: Scale | None) -> dict[str, Images]:
    if exported is not None:
        return dict(exported.sets)
    if not isinstance(given, str | Path):
        return {"": _memory("pictures", given, scale, "--pictures-range")}
    path = _place("PICTURES", given)
    if isinstance(path, RemotePath):
        return {"": _remote(path, scale, "--pictures-range", shown=False)}
    if path.is_dir() and not is_zarr(path):
        return {
            name: FileImages(str(path / name), by_stimulus(str(path / name), files, photos.ids or ()))
            for name, files in folder_sets(path).items()
        }
    return {"": _file(path, scale, "--pictures-range", shown=False)}


def _place(where: str, given: str | Path) -> AnyPath:
    """A path, or the URL of an object store, in which Zarr may lie."""
    return place(any_place(where, given))


def _is_export(where: str, given: Given) -> bool:
    path = _place(where, given) if isinstance(given, str | Path) else None
    return isinstance(path, Path) and is_export(path)


def _remote(path: RemotePath, scale: Scale | None, option: str, *, shown: bool) -> ArrayImages:
    if is_zarr(path):
        return open_zarr(path, scale, option, shown=shown)
    raise InputError(
        path,
        found="no Zarr array or group there",
        expected="Zarr; folders of pictures and other files are read from a disk alone",
        action="correct the URL, or copy the files to this machine and name their path",
    )


def _file(path: Path, scale: Scale | None, option: str, *, shown: bool) -> ArrayImages:
    file, name = divided(path)
    if is_zarr(file) and not name:
        return open_zarr(file, scale, option, shown=shown)
    if not file.exists():
        raise InputError(path, found="nothing there", expected=FORMS, action="correct the path")
    if not file.is_file() or file.suffix.lower() not in (*TENSORS, *ARRAYS):
        raise InputError(path, found="a file of another kind", expected=FORMS, action="convert it")
    return open_file(file, name, scale, option)


def _memory(where: str, given: Given, scale: Scale | None, option: str) -> ArrayImages:
    """An array of numpy, torch (on any device) or xarray (with ids, if it has the coordinate `stimulus_id`)."""
    values, ids = given, None
    coordinates = getattr(given, "coords", None)
    if isinstance(coordinates, Mapping) and "stimulus_id" in coordinates:
        along = coordinates["stimulus_id"].dims
        if along != given.dims[:1]:
            raise InputError(
                where,
                found=f"dimensions {listed(given.dims)}, and stimulus_id along {listed(along) or 'none of them'}",
                expected="stimulus_id along the first dimension",
                meaning="Rows would be given the ids of something else.",
                action=f"transpose the array: .transpose({', '.join(map(repr, along))}{', ' if along else ''}...)",
            )
        ids = [str(item) for item in np.asarray(coordinates["stimulus_id"]).tolist()]
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float().numpy() if "bfloat16" in str(values.dtype) else values.numpy()
    return ArrayImages(where, np.asarray(values), scale, option, ids)


# --- what belongs together ------------------------------------------------------------------------------------


def _renamed(photos: Images, exported: Export) -> Images:
    """Photos in a plain folder by ids, where they are named as the export names files."""
    if not isinstance(photos, FileImages) or photos.digests:
        return photos
    ids = {name for images in exported.sets.values() for name in images.names}
    of_file = {file_name(stimulus): stimulus for stimulus in ids}
    files = {name if name in ids else of_file.get(name, name): file for name, file in photos.files.items()}
    return FileImages(photos.where, files) if len(files) == len(photos.files) else photos


def _matched(photos: Images, sets: Mapping[str, Images], subset: bool, loose: bool, places: tuple[str, str]) -> Matched:
    found = []
    for name, images in sets.items():
        if (photos.ids is None) != (images.ids is None):
            raise _by_order(photos, images)
        if images.ids is None:
            if len(photos) != len(images):
                raise InputError(
                    images.where,
                    found=f"pictures of {counted(len(images), 'stimulus', 'stimuli')}",
                    expected=f"{len(photos)}, one for each photo of {photos.where}",
                    meaning="Arrays are matched by order.",
                    action="hand in the pictures in the order of the photos, one for each",
                )
            found.append(Set(name, images, tuple(range(len(photos))), tuple(range(len(photos)))))
            continue
        place = {stimulus: row for row, stimulus in enumerate(images.ids)}
        known = set(photos.names)
        unknown = [stimulus for stimulus in images.ids if stimulus not in known]
        lacking = [stimulus for stimulus in photos.names if stimulus not in place]
        if unknown or (lacking and not (subset or loose)):
            raise _unmatched(photos, images, unknown, lacking)
        both = [(place[stimulus], row) for row, stimulus in enumerate(photos.names) if stimulus in place]
        found.append(Set(name, images, tuple(a for a, _ in both), tuple(b for _, b in both)))
    used = {row for one in found for row in one.photos}
    if len(used) < len(photos) and not subset:
        lacking = [stimulus for row, stimulus in enumerate(photos.names) if row not in used]
        raise _unmatched(photos, next(iter(sets.values())), [], lacking)
    return Matched(photos, photos.names, tuple(found), len(photos) - len(used), places)


def _by_order(photos: Images, images: Images) -> InputError:
    named, unnamed = (photos, images) if images.ids is None else (images, photos)
    return InputError(
        "PHOTOS, PICTURES",
        found=f"ids in {named.where}, and none in {unnamed.where}",
        expected="ids in both, or in none: then both are arrays in one order",
        meaning="By which order these belong together is unknown.",
        action="save the array as .npz with its ids beside it: numpy.savez(file, pictures=..., stimulus_id=...)",
    )


def _unmatched(photos: Images, images: Images, unknown: Sequence[str], lacking: Sequence[str]) -> InputError:
    words = []
    if unknown:
        words.append(f"{len(unknown)} of {len(images)} names in {images.where} without a photo: {listed(unknown, 5)}")
    if lacking:
        words.append(
            f"{len(lacking)} of {len(photos)} photos in {photos.where} without a picture: {listed(lacking, 5)}"
        )
    option = "; to score the stimuli that have both, say --subset" if lacking and not unknown else ""
    return InputError(
        "PHOTOS, PICTURES",
        found="; ".join(words),
        expected="a photo and a picture of every name (of files, without .png, .jpg, .jpeg)",
        action=f"add, rename or remove these{option}",
    )
