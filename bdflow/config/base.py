"""A section of the configuration, and which of its settings shape the content of which stores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Shapes:
    """The kinds of stores (the first part of their key) whose content a setting shapes; none: of no store."""

    kinds: tuple[str, ...]


NOT_CONTENT = Shapes(())


def shapes(*kinds: str) -> Shapes:
    """Annotation of a setting that shapes the content of these kinds of stores alone."""
    return Shapes(kinds)


@dataclass(frozen=True)
class Where:
    """Of a setting that has an effect only where others of its section, of which `holds` is asked, say so."""

    holds: Callable[[Any], bool]


def where(holds: Callable[[Any], bool]) -> Where:
    """Annotation of a setting that shapes content only where `holds` is true of its section."""
    return Where(holds)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def given(self, names: Collection[str]) -> tuple[str, ...]:
        """Those of these settings that the configuration gives; null, an empty list or mapping, and what a setting is
        without being given, give nothing: a configuration that was written out with all its defaults can be read."""
        fields = type(self).model_fields
        return tuple(
            name
            for name in fields
            if name in names
            and name in self.model_fields_set
            and getattr(self, name) not in (None, (), {}, fields[name].get_default(call_default_factory=True))
        )


def content(section: Section, kind: str | None = None) -> dict[str, object]:
    """The settings of a section that shape content, as JSON values: of all stores, or of those of one kind."""
    return {
        name: _value(getattr(section, name), kind)
        for name, field in type(section).model_fields.items()
        if _counts(field.metadata, kind) and _has_effect(section, field.metadata)
    }


def _counts(metadata: list[object], kind: str | None) -> bool:
    for mark in metadata:
        if isinstance(mark, Shapes):
            return bool(mark.kinds) if kind is None else kind in mark.kinds
    return True


def _has_effect(section: Section, metadata: list[object]) -> bool:
    return all(mark.holds(section) for mark in metadata if isinstance(mark, Where))


def _value(value: object, kind: str | None) -> object:
    if isinstance(value, Section):
        return content(value, kind)
    if isinstance(value, Mapping):
        return {str(key): _value(item, kind) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(item, kind) for item in value]
    return str(value) if isinstance(value, Path) else value
