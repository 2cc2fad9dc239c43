"""What lies in a folder of a study, told apart without following it: files, folders, and neither."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Literal

from bdflow.stores.paths import AnyPath, RemotePath

Kind = Literal["file", "folder", "other"]
PARTIAL = ".partial"


def entries(where: AnyPath) -> dict[str, Kind]:
    """Names in a folder and what they are (where links lead); nothing where there is no folder."""
    if isinstance(where, RemotePath):
        folders, objects = where.bucket.children()
        return {**dict.fromkeys(folders, "folder"), **dict.fromkeys(objects, "file")}
    found: dict[str, Kind] = {}
    try:
        listed = sorted(os.scandir(where), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return found
    for entry in listed:
        found[entry.name] = kind_of(entry)
    return found


def kind_of(entry: os.DirEntry[str]) -> Kind:
    """What an entry is; a link is what it leads to, and neither if it leads nowhere."""
    try:
        return "file" if entry.is_file() else "folder" if entry.is_dir() else "other"
    except OSError:
        return "other"


def strangers(where: AnyPath, belongs: Callable[[tuple[str, ...]], Kind | None]) -> Iterator[tuple[str, str]]:
    """What is below a folder and does not belong there: its name from there, and what it is.

    Parameters
    ----------
    belongs : what belongs at a place, given as parts of its name; None for nothing. Only folders that belong are
        entered. Files that interrupted writes left (`*.partial`) are no strangers: the next run deletes them.
    """
    words = {"file": "a file", "folder": "a folder", "other": "neither a file nor a folder"}
    if isinstance(where, RemotePath):
        for name in sorted(where.bucket.sizes()):
            if belongs(tuple(name.split("/"))) != "file":
                yield name, "an object that is no part of it"
        return
    stack: list[tuple[str, ...]] = [()]
    while stack:
        at = stack.pop()
        for name, kind in entries(where.joinpath(*at)).items():
            inner = (*at, name)
            wanted = belongs(inner)
            if wanted == kind:
                if kind == "folder":
                    stack.append(inner)
            elif wanted is not None:
                yield "/".join(inner), f"{words[kind]} where {words[wanted]} belongs"
            elif not (kind == "file" and name.endswith(PARTIAL)):
                yield "/".join(inner), f"{words[kind]} that is no part of it"
