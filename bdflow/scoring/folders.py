"""Folders of PNG and JPEG files, named by stimulus; also those below a folder, one for each set of pictures."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from bdflow.datasets.formats.pictures import open_upright
from bdflow.errors import InputError, counted, listed
from bdflow.scoring.sources import Images, Several

SUFFIXES = (".png", ".jpg", ".jpeg")
OTHER_PICTURES = (".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif", ".heic", ".ppm")
NUMBERED = re.compile(r"(.+)[_-](\d+)")
PLAIN = ("RGB", "L", "P", "1", "LA", "RGBA", "PA", "La", "RGBa")
BIT_DEPTH = 24  # the place of this byte in a PNG file


class FileImages(Images):
    """Pictures in files.

    Parameters
    ----------
    where : names them in errors. files : id -> the files of its pictures, for each id as many.
    digests : SHA-256 that files must have; those that are not in it may have any.
    """

    def __init__(
        self, where: str, files: Mapping[str, Sequence[Path]], digests: Mapping[Path, str] | None = None
    ) -> None:
        self.where, self.files, self.digests = where, dict(files), dict(digests or {})
        self.ids = tuple(self.files)
        self.several = len(next(iter(self.files.values())))

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: Sequence[int]) -> list[Several]:
        assert self.ids is not None
        return [[self._read(file) for file in self.files[self.ids[row]]] for row in rows]

    def _read(self, file: Path) -> np.ndarray:
        content = file.read_bytes()
        expected = self.digests.get(file)
        if expected is not None and hashlib.sha256(content).hexdigest() != expected:
            raise InputError(
                file,
                found="another SHA-256 than the one in manifest.json and images.csv",
                expected="the file that was exported",
                meaning="It was changed or damaged after the export.",
                action="copy it again, or export the study again",
            )
        return decode(content, file)


def decode(content: bytes, where: object) -> np.ndarray:
    """The picture in the bytes of a PNG or JPEG file: (y, x, 3) uint8. Grey and palettes become RGB.

    Raises
    ------
    InputError : another format, a damaged file; what has no single RGB picture of 8 bits: transparency, 16 bits, CMYK,
        several frames, a picture that is to be turned before it is shown.
    """
    try:
        with open_upright(content, ("PNG", "JPEG")) as (image, turned):
            why = _refusal(image, content, turned)
            if not why:
                image.load()
                colours = image.convert("RGBA") if image.has_transparency_data else image
                if colours.mode != "RGBA" or np.asarray(colours.getchannel("A")).min() == 255:
                    return np.array(colours.convert("RGB"))
                why = "transparent pixels"
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        said = "neither PNG nor JPEG" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(
            where,
            found=f"a file that cannot be read as a picture ({said})",
            expected="a whole PNG or JPEG file",
            action="write it again, or take it out of the folder",
        ) from error
    raise InputError(
        where,
        found=f"a picture with {why}",
        expected="RGB, grey or a palette, with 8 bits a channel and no transparency",
        meaning="What it looks like depends on the program that shows it.",
        action="save it as a plain PNG in RGB",
    )


def _refusal(image: Image.Image, content: bytes, turned: bool) -> str:
    deep = image.format == "PNG" and len(content) > BIT_DEPTH and content[BIT_DEPTH] > 8
    if deep or image.mode.startswith(("I", "F")):
        return "16 bits a channel"
    if image.mode not in PLAIN:
        return f"the colours {image.mode}"
    if getattr(image, "n_frames", 1) > 1:
        return f"{image.n_frames} frames"  # type: ignore[attr-defined]
    if turned:
        return "an EXIF tag that turns it"
    return ""


def pictures_in(folder: Path) -> dict[str, Path]:
    """Name without ending -> file, of the PNG and JPEG files right in a folder; other files that are no pictures are
    passed over. Raises InputError for names that stand twice, and for pictures in other formats.
    """
    there = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    strange = [file.name for file in there if file.suffix.lower() in OTHER_PICTURES]
    if strange:
        raise InputError(
            folder,
            found=f"pictures in other formats: {listed(strange)}",
            expected="PNG or JPEG files",
            action="convert them, or move them away",
        )
    files = [file for file in there if file.suffix.lower() in SUFFIXES]
    found = {file.stem: file for file in files}
    if len(found) < len(files):
        twice = sorted({file.stem for file in files if found[file.stem] != file})
        raise InputError(
            folder,
            found=f"several files named {listed(twice)}",
            expected="one file of each name (without its ending)",
            action="keep one of each",
        )
    return found


def folder_sets(folder: Path) -> dict[str, dict[str, Path]]:
    """Set -> its pictures by name: the folder itself, called "", or the folders below it by their paths.

    Raises InputError for a folder without pictures, and for one with pictures beside folders of pictures.
    """
    own = pictures_in(folder)
    below = {}
    for place in sorted(p for p in folder.rglob("*") if p.is_dir() and not _hidden(p.relative_to(folder))):
        found = pictures_in(place)
        if found:
            below[place.relative_to(folder).as_posix()] = found
    if own and below:
        raise InputError(
            folder,
            found=f"pictures, and folders with pictures: {listed(below)}",
            expected="either pictures, or a folder for each set of pictures",
            meaning="It is unclear what is to be scored.",
            action="name one of the folders, or move the others away",
        )
    if not own and not below:
        raise InputError(
            folder,
            found="no pictures",
            expected="a folder of PNG or JPEG files",
            action="correct the path, or put the pictures there",
        )
    return below or {"": own}


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def by_stimulus(folder: str, files: Mapping[str, Path], ids: Sequence[str]) -> dict[str, list[Path]]:
    """Id -> the files of its pictures: of those named as an id, or (all of them) `ID_0`, `ID_1`, ...

    Names that belong to no id are ids of their own: matching tells what to do about them.

    Raises
    ------
    InputError : stimuli with different numbers of pictures, or numbers that leave some out.
    """
    known = set(ids)
    if set(files) & known or not files:
        return {name: [file] for name, file in files.items()}
    found: dict[str, dict[int, Path]] = {}
    for name, file in files.items():
        match = NUMBERED.fullmatch(name)
        if match is None or match[1] not in known:
            return {name: [file] for name, file in files.items()}
        numbers = found.setdefault(match[1], {})
        if int(match[2]) in numbers:
            raise InputError(
                file,
                found=f"a second picture number {int(match[2])} of {match[1]}",
                expected="each number once",
                action="keep one of them",
            )
        numbers[int(match[2])] = file
    counts = {stimulus: len(numbers) for stimulus, numbers in found.items()}
    most = max(counts.values())
    few = [stimulus for stimulus, count in counts.items() if count < most]
    if few:
        raise InputError(
            folder,
            found=f"{counted(most, 'picture')} of most stimuli, and fewer of {listed(few)}",
            expected="as many pictures of each stimulus",
            meaning="Means over different numbers of pictures cannot be compared.",
            action="add what is missing, or keep as many of each",
        )
    return {stimulus: [numbers[number] for number in sorted(numbers)] for stimulus, numbers in found.items()}
