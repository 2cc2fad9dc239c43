"""The types of settings: numbers, truths, text and paths are what they are, or refused; nothing is guessed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ByteSize, Field

from bdflow import user_paths
from bdflow.config.yaml_text import Guess

ARRAY = "array:"
"""What begins the name of an encoder whose latents exist already, before the path of their file."""

OF_DATASET = "dataset:"
"""What begins the name of a split that comes with the dataset."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text; a name that looks like a number goes in quotes")
    return value


def _location(value: object) -> object:
    return _local(value) if isinstance(value, Path) else user_paths.location(_text(value))


def _local(value: object) -> object:
    return Path(user_paths.local(value if isinstance(value, Path) else _text(value)))


def path_or(word: str, beginning: str | None = None) -> BeforeValidator:
    """Reads a word that has a meaning of its own, a text that begins in a way of its own, or that of a local path."""

    def read(value: object) -> object:
        if isinstance(value, Path):
            return user_paths.local(value)
        if value == word or (beginning is not None and _text(value).startswith(beginning)):
            return value
        return user_paths.local(_text(value))

    return BeforeValidator(read)


def _encoder(value: object) -> object:
    text = _text(value)
    return ARRAY + user_paths.local(text.removeprefix(ARRAY)) if text.startswith(ARRAY) else text


def _as_they_are(value: object) -> object:
    if isinstance(value, Guess):
        raise ValueError(f"`{value}` can be read in two ways; write a plain number, true or false, or put it in quotes")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value}, which is not finite")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        _as_they_are(item)
    return value


def _size(value: object) -> object:
    if isinstance(value, (bool, float)) or (isinstance(value, int) and value < 0):
        raise ValueError("expected bytes, or a size such as 4 GiB")
    return value


Switch = Annotated[bool, Field(strict=True)]
"""true or false, not 1 or `yes`."""
Whole = Annotated[int, Field(strict=True)]
"""A whole number, not text, a truth or a float."""
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number, not text or a truth."""
Count = Annotated[Whole, Field(ge=1)]
Positive = Annotated[Real, Field(gt=0)]
Share = Annotated[Real, Field(ge=0, le=1)]
Memory = Annotated[ByteSize, BeforeValidator(_size)]
LocalPath = Annotated[Path, BeforeValidator(_local)]
Location = Annotated[Path | str, BeforeValidator(_location)]
"""A path, or (then it is a str) the URL of an object store."""
EncoderName = Annotated[str, BeforeValidator(_encoder)]
"""A name, or `array:PATH` with the path expanded."""
Options = Annotated[dict[str, Any], BeforeValidator(_as_they_are)]
"""Settings that only a class of the user's knows: nothing in them can be read in two ways."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Penalties = Annotated[tuple[Positive, ...], Field(min_length=1)]
