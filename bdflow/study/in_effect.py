"""A configuration as a record shows it, and as it can be run again."""

from __future__ import annotations

from typing import Any

from bdflow.config import OF_SOME_KINDS, ROLES, Config
from bdflow.datasets.reader import DATASETS
from bdflow.models.painters import PAINTER_SETTINGS, PAINTERS, of_this_kind
from bdflow.registry import looked_at, resolve


def settings_in_effect(config: Config) -> dict[str, Any]:
    """Every setting as JSON values, without those that the chosen kinds of dataset and painters do not look at."""
    found: dict[str, Any] = config.model_dump(mode="json")
    dataset = looked_at(resolve(config.dataset.kind, DATASETS, "dataset.kind"))
    found["dataset"] = _without(found["dataset"], {*OF_SOME_KINDS}.difference(dataset))
    for name, settings in config.painters.items():
        kind = resolve(settings.kind, PAINTERS, f"painters.{name}.kind")
        idle = {*PAINTER_SETTINGS, *ROLES}.difference(of_this_kind(kind))
        found["painters"][name] = _without(found["painters"][name], idle)
    return found


def _without(section: dict[str, object], idle: set[str]) -> dict[str, object]:
    return {name: value for name, value in section.items() if name not in idle}
