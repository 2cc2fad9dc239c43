"""What the stores of `reconstruct` look like."""

from __future__ import annotations

from bdflow.config import Config
from bdflow.models.diffusion.kernels import BACKENDS, PARTS
from bdflow.study import catalog, picture_catalog
from bdflow.study.coordinates import of_space
from bdflow.study.graph import Counts
from bdflow.study.painting import shown_of
from bdflow.study.stage import MEAN


def mean_layout(config: Config, space: str, counts: Counts) -> catalog.Laid:
    shape = counts.shape(space)
    sizes = {"stimulus_id": counts.test_stimuli(MEAN), **catalog.space_sizes(shape)}
    places = of_space(counts, space)
    return catalog.predictions(shape, config.chunks.columns, places), sizes


def attention_layout(counts: Counts) -> catalog.Laid:
    return picture_catalog.attention(), {"part": len(PARTS), "kernel": len(BACKENDS)}


def guesses_layout(config: Config, painter: str, subject: str, counts: Counts) -> catalog.Laid:
    pixels = counts.guess_size(painter)
    sizes = {"stimulus_id": counts.test_stimuli(subject), "y": pixels, "x": pixels, "rgb": 3}
    return picture_catalog.guesses(config.chunks.images), sizes


def images_layout(config: Config, painter: str, subject: str, counts: Counts) -> catalog.Laid:
    pixels = counts.image_size(painter)
    sizes = {"stimulus_id": counts.test_stimuli(subject), "picture": config.painters[painter].pictures}
    return picture_catalog.reconstructions(config.chunks.images), {**sizes, "y": pixels, "x": pixels, "rgb": 3}


def selected_layout(config: Config, painter: str, subject: str, counts: Counts) -> catalog.Laid:
    sizes = {"variant": len(shown_of(config, painter, subject)), "stimulus_id": counts.test_stimuli(subject)}
    return picture_catalog.selected(config.chunks.images), {**sizes, "picture": config.painters[painter].pictures}
