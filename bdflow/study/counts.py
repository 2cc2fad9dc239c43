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
from bdflow.study.designs import Design, chosen_spaces, designs, response_kinds
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

    def most_trials(self, subject: str) -> int:
        return self._data.most_trials(subject)

    def trials(self, subject: str) -> int:
        return len(self._data.trials(subject).stimulus)

    def regions(self, subject: str) -> int:
        return len(self._data.region_names(subject))

    def left_out(self, part: str) -> int:
        return len(self._data.left_out(part))

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
            return self.context.ready(key).sizes["stimulus_id"]
        return len(self._data.stimuli(part)[0])

    # --- stimuli and rows -------------------------------------------------------------------------------------

    def _parts(self, subject: str) -> tuple[np.ndarray, np.ndarray]:
        """Training and test stimuli of a subject, each once: those of its rows, or, before there are any, of the split
        among what its usable trials show.
        """
        for kind in response_kinds(self.context.config):
            key = keys.responses(subject, kind)
            if self.context.is_sealed(key):
                rows = self.context.ready(key)
                ids, test = rows.read("stimulus_id"), rows.read("split") == "test"
                return np.unique(ids[~test]), np.unique(ids[test])
        shown, split = np.unique(self._shown(subject)), self._data.split[subject]
        train, test = (shown[np.isin(shown, list(part or ()))] for part in (split.train, split.test))
        return train, test

    def _shown(self, subject: str) -> np.ndarray:
        """Stimulus of each usable trial."""
        return trials.shown(self.context.ready(keys.betas(subject)))

    def train_stimuli(self, subject: str) -> int:
        return len(self._parts(subject)[0])

    def train_rows(self, subject: str, rows: str) -> int:
        train = self._parts(subject)[0]
        return len(train) if rows == "averaged" else int(np.isin(self._shown(subject), train).sum())

    def test_stimuli(self, subject: str) -> int:
        if subject == TRUE:
            stimuli = parts.joined(self.context, parts.stimuli(parts.of_pictures(self.context.config, TRUE)))
            return int((stimuli.read("split") == "test").sum())
        members = self.context.config.subjects if subject == MEAN else (subject,)
        test = self._parts(members[0])[1]
        for member in members[1:]:
            test = np.intersect1d(test, self._parts(member)[1])
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

    def token_kinds(self, space: str) -> tuple[str, ...]:
        return encoder_of(self.context.config, space).token_kinds

    def guess_size(self, painter: str) -> int:
        return painter_kind(self.context.config, painter).guess_size

    def image_size(self, painter: str) -> int:
        return painter_kind(self.context.config, painter).image_size

    def judge_width(self, metric: str) -> int:
        if metric == BUNDLE_CLIP:
            return open_bundle(self.context.config.networks.bundle).spaces["clip_vision"][-1]
        return layer_width(metric)
