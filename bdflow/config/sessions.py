"""Which sessions of which subject are used: a number, from the first; their numbers; or either by subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator


def _sessions(given: object) -> object:
    """A number, numbers in ascending order, or either by subject; 1, 2, ... n are the number n."""
    if isinstance(given, Mapping):
        if not given:
            raise ValueError("no subject")
        return {str(subject): _sessions_of_one(sessions) for subject, sessions in given.items()}
    return _sessions_of_one(given)


def _sessions_of_one(given: object) -> int | tuple[int, ...]:
    listed = isinstance(given, (list, tuple))
    numbers: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    if not numbers or not all(type(number) is int and number >= 1 for number in numbers):
        raise ValueError("not a number of sessions, 1 or more, a list of their numbers, or either by subject")
    if len(set(numbers)) < len(numbers):
        raise ValueError("a session is listed twice")
    if not listed:
        return int(numbers[0])
    ordered = tuple(sorted(numbers))
    return len(ordered) if ordered == tuple(range(1, len(ordered) + 1)) else ordered


Sessions = Annotated[int | tuple[int, ...] | dict[str, int | tuple[int, ...]], BeforeValidator(_sessions)]


def numbers_of(sessions: int | tuple[int, ...] | dict[str, int | tuple[int, ...]], subject: str) -> tuple[int, ...]:
    """Numbers of a subject's sessions, ascending."""
    given = sessions[subject] if isinstance(sessions, dict) else sessions
    return tuple(range(1, given + 1)) if isinstance(given, int) else given
