"""Pictures of any kind as the RGB that was on the screen, and of any size as one size."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from bdflow.errors import InputError

BACKGROUND = 128
"""Grey behind transparent pixels, the usual background of experiments."""

METHOD = 2
"""Number of the way in which files of pictures are read: a part of `content` of each dataset that has such files, so
that stimuli that were read otherwise are stale. 2: turned as their EXIF tag says."""

Fit = Literal["stretch", "crop", "pad"]


@contextmanager
def open_upright(content: bytes, formats: tuple[str, ...] | None = None) -> Iterator[tuple[Image.Image, bool]]:
    """The picture in the bytes of a file as it is to be looked at, and whether it was turned or mirrored for that.

    Cameras store a picture as the sensor lies, and say in the EXIF tag Orientation how it is to be turned; viewers and
    browsers obey. No other function of bdflow opens a file of a picture. `formats` : those that are allowed, by PIL's
    names. Raises what PIL raises.
    """
    with Image.open(io.BytesIO(content), formats=formats) as image:
        try:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
            ImageOps.exif_transpose(image, in_place=True)
        except struct.error as error:
            raise ValueError(f"its EXIF tags: {error}") from error
        yield image, turned


def decode(content: bytes, where: object, background: int = BACKGROUND) -> np.ndarray:
    """The picture in the bytes of a file (PNG, JPEG, ...): (y, x, 3) uint8.

    It is turned as its EXIF tag says. Alpha is composited over `background`; grey, palettes and 16 bits become RGB.
    `where` names the file in errors.

    Raises
    ------
    InputError : no picture that can be read, or one whose values are on a scale that it does not say.
    """
    try:
        with open_upright(content) as (image, _):
            image.load()
            if why := _unknown_scale(image):
                raise InputError(
                    where,
                    found=f"a picture with {why}",
                    expected="8 bits a channel, or 16 with values up to 65535",
                    meaning="Which value is white is not known; read as usual, it could be black all over.",
                    action="save it as a PNG or JPEG of 8 bits",
                )
            return as_rgb(image, background)
    except InputError:
        raise
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # the text of UnidentifiedImageError is the address of an object
        said = "no known format" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
        raise InputError(
            where,
            found=f"no picture that can be read ({said})",
            expected="a picture, such as PNG or JPEG",
            action="write the file again",
        ) from error


def as_rgb(image: Image.Image, background: int = BACKGROUND) -> np.ndarray:
    """(y, x, 3) uint8 of an image of any mode, alpha composited over a grey `background`."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8), "L")
    if image.has_transparency_data:
        front = image.convert("RGBA")
        behind = Image.new("RGBA", front.size, (background,) * 3 + (255,))
        image = Image.alpha_composite(behind, front)
    return np.array(image.convert("RGB"))


def _unknown_scale(image: Image.Image) -> str:
    """What is wrong with the values of a picture, where they say nothing of what is white."""
    if image.mode in ("I", "F"):
        return f"{'whole numbers' if image.mode == 'I' else 'floating-point values'} of 32 bits"
    if image.mode.startswith("I;16"):
        highest = int(np.asarray(image).max())
        if 0 < highest < 256:
            return f"16 bits a channel, and no value above {highest}"
    return ""


def fitted(picture: np.ndarray, height: int, width: int, fit: Fit) -> np.ndarray:
    """A picture (y, x, 3) uint8 in another size, by Lanczos: `stretch` it; `crop` its middle, as large as can be, of
    the new shape; or `pad` it with grey. One that has the size is as it was.
    """
    if picture.shape[:2] == (height, width):
        return picture
    image = Image.fromarray(picture)
    if fit == "stretch":
        return np.array(image.resize((width, height), Image.Resampling.LANCZOS))
    ratios = height / image.height, width / image.width
    ratio = max(ratios) if fit == "crop" else min(ratios)
    size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    resized = image.resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (width, height), (BACKGROUND,) * 3)
    canvas.paste(resized, ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.array(canvas)
