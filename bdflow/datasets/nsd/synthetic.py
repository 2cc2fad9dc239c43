"""NSD-synthetic: what the subjects of NSD saw of synthetic pictures in one more session."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import ClassVar

import h5py
import numpy as np

from bdflow.config import DatasetSettings
from bdflow.config.base import Section
from bdflow.datasets.contract import Split, Trials
from bdflow.datasets.formats.hdf5 import OpenFile
from bdflow.datasets.formats.identity import missing
from bdflow.datasets.formats.matlab import read_matlab
from bdflow.datasets.formats.options import options
from bdflow.datasets.formats.tables import read_table
from bdflow.datasets.nsd.single_session import SingleSession
from bdflow.errors import InputError, listed
from bdflow.stores.paths import AnyPath, no_answer

EXPERIMENT = "nsddata/experiments/nsdsynthetic"
DESIGN = f"{EXPERIMENT}/nsdsynthetic_expdesign.mat"
INFORMATION = f"{EXPERIMENT}/nsdsyntheticimageinformation.csv"
STIMULI = "nsddata_stimuli/stimuli/nsdsynthetic"
_AGAIN = "fetch the file again"
_NO_TRAINING = (
    "to use the decoders of a study of NSD, decode this dataset by it (`decode --dataset`); for a study of these "
    "pictures alone, take `dataset.split: shared`, or name a file of test ids"
)


class SyntheticOptions(Section):
    """None."""


class NSDSynthetic(SingleSession):
    """`bdflow.datasets.contract.Dataset` of NSD-synthetic.

    Ids of stimuli are `synthetic/001`, ... for those that all subjects saw, and `subj01/color/01`, ... for a subject's
    own, both from 1 in the order of their files.
    """

    KIND: ClassVar[str] = "nsd_synthetic"
    SESSION: ClassVar[str] = "nsdsynthetic"

    def __init__(self, settings: DatasetSettings) -> None:
        super().__init__(settings)
        options(SyntheticOptions, settings.options, self.KIND)
        self._own_counts: dict[str, int] = {}

    # --- stimuli ----------------------------------------------------------------------------------------------

    def stimuli(self) -> Sequence[str]:
        own = [stimulus for subject in self._with_own_stimuli for stimulus in self._ids(subject)[self._common :]]
        return _common_ids(self._common) + own

    def picture_shape(self) -> tuple[int, int]:
        with _brick(self._common_path) as brick:
            return int(brick.shape[1]), int(brick.shape[2])

    def pictures(self, stimuli: Sequence[str]) -> Sequence[np.ndarray]:
        places = [self._place(stimulus) for stimulus in stimuli]
        found: dict[tuple[AnyPath, int], np.ndarray] = {}
        for path in dict.fromkeys(path for path, _ in places):
            with _brick(path) as brick:
                for row in sorted({row for other, row in places if other == path}):
                    found[path, row] = brick[row]
        return [found[place] for place in places]

    def captions(self, stimuli: Sequence[str]) -> Sequence[Sequence[str]]:
        for stimulus in stimuli:
            self._place(stimulus)
        return [[] for _ in stimuli]

    def captions_per_stimulus(self) -> int:
        return 0

    def splits(self) -> Mapping[str, Split]:
        return {"all": Split(frozenset(self.stimuli()), frozenset(), _NO_TRAINING)}

    def stimulus_files(self) -> Mapping[str, AnyPath]:
        files = {"design": self.nsd.root / DESIGN, "stimuli": self._common_path}
        return files | {f"stimuli {subject}": self._own_path(subject) for subject in self._with_own_stimuli}

    # --- subjects ---------------------------------------------------------------------------------------------

    def subjects(self) -> Sequence[str]:
        return self._known

    def _every_trial(self, subject: str) -> Trials:
        order, run = self._design
        ids = np.array(self._ids(subject), str)
        if order.max() > ids.size:
            raise InputError(
                f"{self.nsd.root / DESIGN}, masterordering",
                found=f"stimulus {order.max()}",
                expected=f"1 to {ids.size}: {self._common} in {self._common_path} and then "
                f"{ids.size - self._common} in {self._own_path(subject)}",
                meaning="Design and pictures do not belong together.",
                action="use the design and the pictures of one dataset",
            )
        count = order.size
        return Trials(
            ids[order - 1],
            np.full(count, self.SESSION),
            run,
            np.arange(count, dtype=np.int32),
            np.full(count, ""),
        )

    def _rows(self, subject: str) -> tuple[int, AnyPath]:
        return self._design[0].size, self.nsd.root / DESIGN

    def _trial_files(self, subject: str) -> dict[str, AnyPath]:
        files = {"design": self.nsd.root / DESIGN, "stimuli": self._common_path}
        return files | {"own stimuli": self._own_path(subject)}

    # --- what was read ----------------------------------------------------------------------------------------

    @cached_property
    def _known(self) -> list[str]:
        return sorted(self._subjects_with_betas() | set(self._with_own_stimuli))

    @cached_property
    def _design(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of each trial's stimulus, from 1, and its run, from 1; 0 where the file does not say."""
        path = self.nsd.root / DESIGN
        found = read_matlab(path, "the design of NSD-synthetic", ["masterordering"], ["stimpattern"])
        order = found["masterordering"]
        plain = order.dtype.kind in "iuf" and order.size and 1 in order.shape
        broken = order[order % 1 != 0] if plain else order
        if not plain or broken.size:
            raise InputError(
                f"{path}, masterordering",
                found=f"the number {broken[0]:g}" if plain else f"{order.dtype} of shape {order.shape}",
                expected="a row of whole numbers",
                action=_AGAIN,
            )
        if order.min() < 1:
            raise InputError(
                f"{path}, masterordering",
                found=f"{order.min():g}",
                expected="1 or more; NSD counts from 1",
                action=_AGAIN,
            )
        numbers = order.ravel().astype(np.int64)
        if "stimpattern" not in found:
            return numbers, np.zeros(numbers.size, np.int32)
        pattern = found["stimpattern"]
        shape = pattern.shape
        runs = pattern.reshape(-1, shape[-1]).sum(axis=1) if pattern.dtype.kind in "iufb" else np.zeros(1)
        if not np.isin(pattern, (0, 1)).all() or pattern.ndim != 3 or shape[0] != 1 or runs.sum() != numbers.size:
            raise InputError(
                f"{path}, stimpattern",
                found=f"{pattern.dtype} of shape {shape}, {int(runs.sum())} trials",
                expected=f"(1, run, time) of 0 and 1, with the {numbers.size} trials of masterordering",
                meaning="Which run a trial is of is not known.",
                action=_AGAIN,
            )
        return numbers, np.repeat(np.arange(1, runs.size + 1), runs.astype(np.int64)).astype(np.int32)

    @property
    def _common_path(self) -> AnyPath:
        return self.nsd.root / STIMULI / "nsdsynthetic_stimuli.hdf5"

    def _own_path(self, subject: str) -> AnyPath:
        return self.nsd.root / STIMULI / f"nsdsynthetic_colorstimuli_{subject}.hdf5"

    @cached_property
    def _common(self) -> int:
        """Number of stimuli that all subjects saw."""
        with _brick(self._common_path) as brick:
            return int(brick.shape[0])

    def _ids(self, subject: str) -> list[str]:
        """Ids of a subject's stimuli in the order in which the design counts them."""
        if subject not in self._own_counts:
            with _brick(self._own_path(subject)) as brick:
                count = int(brick.shape[0])
            self._check_information(count)
            self._own_counts[subject] = count
        own = [f"{subject}/color/{number:02d}" for number in range(1, self._own_counts[subject] + 1)]
        return _common_ids(self._common) + own

    def _check_information(self, own: int) -> None:
        """Raise InputError where NSD's table of the pictures has another number of them."""
        path = self.nsd.root / INFORMATION
        if not path.is_file():
            return
        numbers = read_table(path, "the table of synthetic pictures", ["Image number"]).whole("Image number")
        if sorted(numbers) != list(range(1, self._common + own + 1)):
            raise InputError(
                path,
                found=f"{len(numbers)} pictures, numbers {min(numbers, default=0)} to {max(numbers, default=0)}",
                expected=f"1 to {self._common + own}, each once: {self._common} of all and {own} of a subject's own",
                meaning="The table and the pictures do not belong together.",
                action="use both of one dataset",
            )

    def _place(self, stimulus: str) -> tuple[AnyPath, int]:
        """File and row of a picture."""
        match = re.fullmatch(r"(?:synthetic|(subj\d\d)/color)/\d+", stimulus)
        if match is not None:
            subject, row = match[1], int(stimulus.rpartition("/")[2]) - 1
            if subject is None and stimulus in _common_ids(self._common):
                return self._common_path, row
            if subject is not None and stimulus in self._ids(subject):
                return self._own_path(subject), row
        raise InputError(
            f"stimulus {stimulus}",
            found="no such stimulus",
            expected=f"one of {listed(self.stimuli())}",
            action="ask for the pictures of stimuli that there are",
        )

    @cached_property
    def _with_own_stimuli(self) -> list[str]:
        files = (self.nsd.root / STIMULI).glob("nsdsynthetic_colorstimuli_subj*.hdf5")
        names = [re.fullmatch(r"nsdsynthetic_colorstimuli_(subj\d\d)\.hdf5", path.name) for path in files]
        return sorted(match[1] for match in names if match is not None)


def _common_ids(count: int) -> list[str]:
    return [f"synthetic/{number:03d}" for number in range(1, count + 1)]


@contextmanager
def _brick(path: AnyPath) -> Iterator[h5py.Dataset]:
    """The pictures of a file, (picture, y, x, 3) uint8; what cannot be read of them raises InputError."""
    expected = "pictures of NSD-synthetic, a dataset imgBrick (picture, y, x, 3) of uint8"
    if not path.is_file():
        raise missing(path, expected)
    with OpenFile(path, expected=expected, action=_AGAIN) as file:
        brick = file.dataset("imgBrick")
        if brick is None or brick.ndim != 4 or brick.shape[-1] != 3 or brick.dtype != np.uint8 or not len(brick):
            raise InputError(path, found=file.found("imgBrick"), expected=expected, action=_AGAIN)
        try:
            yield brick
        except OSError as error:
            no_answer(file.source)
            raise InputError(
                path, found=f"data that cannot be read ({error})", expected=expected, action=_AGAIN
            ) from error
