"""Classes by name: those that ship with bdflow, and a user's own as `package.module:Class`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from bdflow.errors import InputError


def resolve(name: str, shipped: Mapping[str, str], key: str) -> Any:
    """The class that a name of the configuration means.

    Parameters
    ----------
    name : a shipped name, or `package.module:Class` of a class that can be imported.
    shipped : shipped names, and where their classes are, as `package.module:Class`.
    key : the key of the configuration that holds the name, for errors.

    Raises
    ------
    InputError : an unknown name (the nearest is named), a module that cannot be imported, a class it does not have.
    """
    where = shipped.get(name, name)
    module, colon, attribute = where.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, shipped, 1)
        raise InputError(
            key,
            found=repr(name),
            expected="one of " + ", ".join(sorted(shipped)) + ", or a class of your own as package.module:Class",
            action=f"did you mean `{near[0]}`?" if near else "correct the name",
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of the user's may raise anything when it is imported
        raise InputError(
            key,
            found=f"{name!r}, which cannot be imported ({type(error).__name__}: {error})",
            expected="a class in a module that Python finds",
            action="correct the name, or put the module's folder on PYTHONPATH (on every machine that works)",
        ) from error
    if not isinstance(found, type):
        raise InputError(key, found=f"{name!r}, which is not a class", expected="a class", action="correct the name")
    return found
