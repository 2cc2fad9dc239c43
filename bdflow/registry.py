"""Classes by name: those that ship with bdflow, and a user's own as `package.module:Class`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from bdflow.errors import InputError, listed


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
            action=_how_to_be_found(module, error),
        ) from error
    if not isinstance(found, type):
        raise InputError(key, found=f"{name!r}, which is not a class", expected="a class", action="correct the name")
    return found


def _how_to_be_found(module: str, error: Exception) -> str:
    """What to do about a module that could not be imported."""
    top = module.partition(".")[0]
    if not isinstance(error, ModuleNotFoundError):
        return "correct the module: the error above is raised when Python imports it"
    if error.name != top and not module.startswith(f"{error.name}."):
        return f"install `{error.name}`, which the module imports"
    for name in (f"{top}.py", f"{top}/"):
        if error.name == top and Path(name).exists():
            return (
                f"`{name}` lies in this folder, where the bdflow command does not look: run `export PYTHONPATH=$PWD`, "
                "then the same command (where other machines work, on each of them)"
            )
    return "correct the name, or put the module's folder on PYTHONPATH (on every machine that works)"


def looked_at(kind: type) -> tuple[str, ...]:
    """The settings of some kinds alone that a class says it looks at; none where it says nothing."""
    return tuple(getattr(kind, "looks_at", ()))


def refuse_without_effect(
    given: Iterable[str],
    made: type,
    key: str,
    kind: str,
    shipped: Mapping[str, str],
    of: Callable[[Any], Collection[str]] = looked_at,
) -> None:
    """Raise InputError for settings that the class of this kind does not look at.

    Parameters
    ----------
    given : settings of the section that some kinds alone look at, and that the configuration gives.
    made : the class.
    key : the section that has the settings and `kind`.
    kind, shipped : the name of the kind, and those that ship, as in `resolve`.
    of : the settings that a class looks at.
    """
    looks_at = of(made)
    idle = [name for name in given if name not in looks_at]
    if not idle:
        return
    classes = {name: resolve(name, shipped, f"{key}.kind") for name in shipped}
    by: dict[str, list[str]] = {}
    for one in idle:
        knowing = ", ".join(name for name, other in classes.items() if one in of(other))
        by.setdefault(knowing or "a class of your own", []).append(f"`{one}`")
    known = "; ".join(f"of {kinds}: {', '.join(names)}" for kinds, names in by.items())
    raise InputError(
        f"{key}.kind {kind}",
        found=listed((f"`{key}.{name}`" for name in idle), 12) + ", which this kind does not look at",
        expected="of the settings that some kinds alone have: " + (", ".join(sorted(looks_at)) or "none"),
        meaning=f"{'They' if len(idle) > 1 else 'It'} would have no effect. Kinds that look at such settings, {known}.",
        action=f"remove {'them' if len(idle) > 1 else 'it'}, or correct `{key}.kind`"
        + ("" if kind in shipped else "; a class of your own names what it reads in `looks_at`"),
    )
