"""Settings that one kind of dataset has: `dataset.options`, read strictly."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError

from bdflow.config import Section
from bdflow.errors import InputError, listed

S = TypeVar("S", bound=Section)


def options(section: type[S], given: Mapping[str, object], kind: str) -> S:
    """The settings in `dataset.options` of a dataset of this kind.

    Raises
    ------
    InputError : unknown keys (the nearest valid one is named), missing ones and wrong values, all at once.
    """
    try:
        return section.model_validate(dict(given))
    except ValidationError as error:
        found, actions = [], []
        for one in error.errors():
            key = ".".join(("dataset.options", *(str(part) for part in one["loc"])))
            if one["type"] == "extra_forbidden":
                near = difflib.get_close_matches(str(one["loc"][-1]), section.model_fields, 1)
                found.append(f"unknown key `{key}`")
                actions.append(f"did you mean `dataset.options.{near[0]}`?" if near else f"remove `{key}`")
            elif one["type"] == "missing":
                found.append(f"no `{key}`")
                actions.append(f"add `{key}`")
            else:
                said = one["msg"].removeprefix("Value error, ")
                found.append(f"`{key}` = {one['input']!r:.200} ({said[:1].lower()}{said[1:]})")
                actions.append(f"correct `{key}`")
        raise InputError(
            f"dataset.kind {kind}",
            found=listed(found, joint="; "),
            expected="options of these: " + (", ".join(section.model_fields) or "none"),
            action=listed(dict.fromkeys(actions), joint="; "),
        ) from None
