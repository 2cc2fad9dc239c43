"""Which sessions of which subject are used: a number, from the first; a list of them; or either by subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

Chosen = int | tuple[int | str, ...]


def _sessions(given: object) -> object:
    """A number, a list of names or numbers, or either by subject; the numbers 1, 2, ... n are the number n."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        if not given:
            raise ValueError("no subject")
        return {str(subject): _sessions_of_one(sessions) for subject, sessions in given.items()}
    return _sessions_of_one(given)


def _sessions_of_one(given: object) -> Chosen:
    listed = isinstance(given, (list, tuple))
    every: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    numbers = all(type(one) is int and one >= 1 for one in every)
    names = listed and all(isinstance(one, str) and one.strip() for one in every)
    if not every or not (numbers or names):
        raise ValueError("not a number of sessions, 1 or more, a list of their names or numbers, or either by subject")
    if len(set(every)) < len(every):
        raise ValueError("a session is listed twice")
    if not listed:
        return int(every[0])
    ordered = tuple(sorted(every)) if numbers else tuple(every)
    return len(ordered) if ordered == tuple(range(1, len(ordered) + 1)) else ordered


Sessions = Annotated[Chosen | dict[str, Chosen] | None, BeforeValidator(_sessions)]


def sessions_of(sessions: Chosen | dict[str, Chosen], subject: str) -> Chosen:
    """Those of one subject."""
    return sessions[subject] if isinstance(sessions, dict) else sessions
