"""The configuration of a study: strict YAML, every setting of the paper, any overridable on the command line."""

from bdflow.config.base import Section, content
from bdflow.config.dataset import OF_SOME_KINDS, DatasetSettings
from bdflow.config.execution import ClusterSettings, StageExecution
from bdflow.config.loading import load, parse, recipes
from bdflow.config.painting import ROLES, PainterSettings, PaintOptions
from bdflow.config.sections import (
    PUBLISHED_METRICS,
    TAKAGI_METRICS,
    Config,
    NetworkSettings,
    RidgeSettings,
    SpaceSettings,
    SpeedSettings,
)
from bdflow.config.values import ARRAY, OF_DATASET

__all__ = [
    "ARRAY",
    "OF_DATASET",
    "OF_SOME_KINDS",
    "PUBLISHED_METRICS",
    "ROLES",
    "TAKAGI_METRICS",
    "ClusterSettings",
    "Config",
    "DatasetSettings",
    "NetworkSettings",
    "PaintOptions",
    "PainterSettings",
    "RidgeSettings",
    "Section",
    "SpaceSettings",
    "SpeedSettings",
    "StageExecution",
    "content",
    "load",
    "parse",
    "recipes",
]
