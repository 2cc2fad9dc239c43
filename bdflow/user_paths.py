"""Paths as users write them: `~` and variables of the environment are put in, what is no path is refused.

Text is expanded once, where it enters: in the configuration's fields and in the functions of the public interface. A
`pathlib.Path` is taken as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from bdflow.errors import InputError

VARIABLE = re.compile(r"\$(?:(\$)|\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))?", re.ASCII)
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|(?:s3|gs|memory):")
OBJECT_STORE = re.compile(r"(?:s3|gs|memory)://[^/\s:]+(?:/.*)?")


def expanded(text: str) -> str:
    """A path or URL with `~`, `~user`, `$NAME` and `${NAME}` put in; `$$` is a dollar sign.

    Raises
    ------
    ValueError : nothing, white space around it, a control character, a variable that is not set, an unknown user, or
        characters that this process's file names cannot have.
    """
    if not text.strip():
        raise ValueError("an empty path; write `.` for the current directory")
    if text != text.strip():
        raise ValueError("a path with white space around it")
    text = VARIABLE.sub(_variable, text)
    if text.startswith("~"):
        try:
            text = str(Path(text).expanduser())
        except RuntimeError as error:
            raise ValueError(f"{error}; a name that begins with `~` is written ./~...") from error
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("a path with a control character")
    try:
        text.encode()
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a name that file names in this locale ({sys.getfilesystemencoding()}) cannot have; "
            "set PYTHONUTF8=1, or a locale of UTF-8"
        ) from error
    return text


def _variable(match: re.Match[str]) -> str:
    if match[1]:
        return "$"
    name = match[2] or match[3]
    if not name:
        raise ValueError("a `$` without the name of a variable; a dollar sign is written `$$`")
    if name not in os.environ:
        raise ValueError(f"${name}, which is not set in the environment; a dollar sign is written `$$`")
    return os.environ[name]


def local(given: str | os.PathLike[str]) -> str:
    """The text of a local path, expanded if it is given as text; `./x` stays `./x`. ValueError, also for a URL."""
    text = expanded(given) if isinstance(given, str) else os.fspath(given)
    if URL.match(text):
        raise ValueError("a URL; only local paths are supported here (a folder of such a name is written ./NAME:)")
    return text


def location(text: str) -> Path | str:
    """A local path, or (then it is a str) the URL of an object store, expanded. Raises ValueError."""
    text = expanded(text)
    if not URL.match(text):
        return Path(text)
    if "://" in text and not text.startswith(("s3://", "gs://", "memory://")):
        raise ValueError("a URL other than s3://, gs:// or memory://")
    if not OBJECT_STORE.fullmatch(text) or {".", ".."} & set(text.split("/")):
        raise ValueError("a URL that names no place; expected such as s3://BUCKET/FOLDER/study.zarr")
    return text.rstrip("/")


def local_path(where: str, given: str | os.PathLike[str]) -> Path:
    """A path given as an argument. Raises InputError that names it, for what `local` does not take."""
    try:
        return Path(local(given))
    except ValueError as error:
        raise InputError(
            where, found=f"{str(given)!r}, {error}", expected="a path on this machine", action=f"correct `{where}`"
        ) from error


def any_place(where: str, given: str | os.PathLike[str]) -> Path | str:
    """As `local_path`, or the URL of an object store. Raises InputError."""
    if not isinstance(given, str):
        return local_path(where, given)
    try:
        return location(given)
    except ValueError as error:
        raise InputError(
            where,
            found=f"{given!r}, {error}",
            expected="a path, or a URL of an object store",
            action=f"correct `{where}`",
        ) from error


def escaped(path: Path) -> str:
    """Text that is expanded to this very path."""
    text = str(path).replace("$", "$$")
    return f"./{text}" if text.startswith("~") else text


def check_new(folder: Path) -> None:
    """Raises InputError if there is something at `folder`, or a file where one of its parents should be."""
    if folder.exists() or folder.is_symlink():
        raise InputError(
            folder, found="something there", expected="nothing", action="choose another folder, or move it away"
        )
    parent = next(place for place in folder.absolute().parents if place.exists())
    if not parent.is_dir():
        raise InputError(parent, found="a file", expected="a folder", action="choose another path")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` at the end: it appears when it is whole, and on errors not at all.

    Raises InputError as `check_new`.
    """
    check_new(folder)
    partial = folder.with_name(f"{folder.name}.partial-{token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        yield partial
        check_new(folder)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
