"""How large a study is, exactly: from its dataset, its networks, and the stores that are sealed already."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bdflow.datasets.reader import Reader, open_dataset
from bdflow.models.encoders import encoder_of
from bdflow.models.judges.weights import BUNDLE_CLIP, layer_width
from bdflow.models.painters import painter_kind
from bdflow.models.weights.bundle import open_bundle
from bdflow.study import keys, parts, region_patterns, trials
from bdflow.study.designs import Design, chosen_spaces, designs
from bdflow.study.penalties import decoder_penalties
from bdflow.study.stage import MEAN, TRUE

if TYPE_CHECKING:
    from bdflow.study.stage import Context


class StudyCounts:
    """`bdflow.study.graph.Counts` of a run. The dataset is asked for what only `ingest` needs; everything later is
    counted in the study's own stores.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._voxels: dict[tuple[str, Design], int] = {}

    @cached_property
    def _data(self) -> Reader:
        return open_dataset(self.context.config)

    # --- the dataset ------------------------------------------------------------------------------------------

    def session_trials(self, subject: str) -> int:
        return self._data.session_trials(subject)

    def trials(self, subject: str) -> int:
        return self._data.session_trials(subject) * len(self._data.sessions(subject))

    def region_files(self, subject: str) -> int:
        return len(self._data.region_files(subject))

    def photo(self) -> tuple[int, int]:
        return self._data.photo_shape()

    def captions(self) -> int:
        return self._data.captions_per_stimulus()

    def voxels(self, subject: str) -> int:
        key = keys.betas(subject)
        if self.context.is_sealed(key):
            return self.context.ready(key).sizes["voxel"]
        return int(self._data.mask(subject).sum())

    def stimuli(self, part: str) -> int:
        key = keys.stimuli(part)
        if self.context.is_sealed(key):
            return self.context.ready(key).sizes["stimulus"]
        return len(self._data.stimuli(part)[0])

    # --- stimuli and rows -------------------------------------------------------------------------------------

    def _tests(self, subject: str) -> np.ndarray:
        """The test stimuli among those that a subject may have seen; of `mean` and `true` those of all subjects."""
        wanted = parts.of_pictures(self.context.config, subject)
        stimuli = parts.joined(self.context, parts.stimuli(wanted))
        return stimuli.read("nsd_id")[stimuli.read("split") == "test"]

    def _shown(self, subject: str) -> tuple[np.ndarray, np.ndarray]:
        """Stimulus of each usable trial; and which stimuli are for testing."""
        return trials.shown(self.context.ready(keys.betas(subject))), self._tests(subject)

    def train_stimuli(self, subject: str) -> int:
        shown, test = self._shown(subject)
        return len(np.setdiff1d(shown, test))

    def train_rows(self, subject: str, rows: str) -> int:
        if rows == "averaged":
            return self.train_stimuli(subject)
        shown, test = self._shown(subject)
        return int((~np.isin(shown, test)).sum())

    def test_stimuli(self, subject: str) -> int:
        test = self._tests(subject)
        if subject == TRUE:
            return len(test)
        members = self.context.config.subjects if subject == MEAN else (subject,)
        for member in members:
            test = test[np.isin(test, trials.shown(self.context.ready(keys.betas(member))))]
        return len(test)

    # --- ridge ------------------------------------------------------------------------------------------------

    def design_voxels(self, subject: str, design: Design) -> int:
        if (subject, design) not in self._voxels:
            used = region_patterns.used_voxels(self.context, subject, design)
            self._voxels[subject, design] = int(used.sum())
        return self._voxels[subject, design]

    def decoder_alphas(self, subject: str, design: Design) -> int:
        spaces = designs(self.context.config)[design]
        chosen = chosen_spaces(self.context.config, spaces)
        selection = {space: self.context.ready(keys.selection(subject, space)) for space in chosen}
        return len(decoder_penalties(self.context.config, spaces, selection)[1])

    # --- networks ---------------------------------------------------------------------------------------------

    def shape(self, space: str) -> tuple[int, ...]:
        return encoder_of(self.context.config, space).shape

    def layers(self, space: str) -> tuple[tuple[int, ...], ...]:
        return encoder_of(self.context.config, space).layers

    def guess_size(self, painter: str) -> int:
        return painter_kind(self.context.config, painter).guess_size

    def image_size(self, painter: str) -> int:
        return painter_kind(self.context.config, painter).image_size

    def judge_width(self, metric: str) -> int:
        if metric == BUNDLE_CLIP:
            return open_bundle(self.context.config.networks.bundle).spaces["clip_vision"][-1]
        return layer_width(metric)
