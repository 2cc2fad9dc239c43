"""What a dataset gives to the pipeline, whatever its files are. `bdflow.datasets.reader` applies a configuration to it.

Stimuli are joined by their id alone, a text, never by a position or a number. Only betas touch volumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from bdflow.config import DatasetSettings
from bdflow.datasets.formats.grids import Grid
from bdflow.stores.paths import AnyPath

Units = Literal["percent signal change", "z", "arbitrary"]


@dataclass(frozen=True)
class Trials:
    """The trials of a subject, a row a beta, in the order of its sessions and of the betas in them.

    Attributes
    ----------
    stimulus : (trial,) str: id of what was shown; empty where nothing was.
    session : (trial,) str: one of the subject's `sessions`.
    run : (trial,) int32: number of the run in its session; 0 where it is not known.
    index : (trial,) int32: place of the beta in its session's file, from 0.
    condition : (trial,) str, such as `perception` or `imagery`; empty where there is one kind alone.
    """

    stimulus: np.ndarray
    session: np.ndarray
    run: np.ndarray
    index: np.ndarray
    condition: np.ndarray


@dataclass(frozen=True)
class Encoding:
    """How betas are stored: as they are in the dataset's files.

    Attributes
    ----------
    dtype : `int16` or `float32`.
    units : of a stored value divided by `divisor`.
    divisor : 300 for NSD's int16; 1 for betas that are stored in their unit.
    cut_off : whether int16's ends, -32768 and 32767, are betas that were larger. They are measurements all the same.
    """

    dtype: Literal["int16", "float32"]
    units: Units
    divisor: float = 1.0
    cut_off: bool = False


@dataclass(frozen=True)
class SessionBetas:
    """The betas of one session, over the voxels of a mask.

    Attributes
    ----------
    values : (trials, voxels), in the dataset's `Encoding`; 0 where not valid. No value stands for "missing".
    valid : (trials, voxels) bool: whether it is a measurement. Others enter no mean.
    """

    values: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class NoiseCeiling:
    """How much of a voxel's variance an ideal model can explain.

    Attributes
    ----------
    values : (x, y, z) float; NaN where it is not known.
    unit : `ncsnr` (SD of the signal over SD of one trial's noise), or the explainable variance of a mean over `repeats`
        trials as `percent` or `fraction`.
    repeats : trials a stimulus that a share is for, 1 / mean(1 / n) where they differ; ncsnr needs none.
    """

    values: np.ndarray
    unit: Literal["ncsnr", "percent", "fraction"]
    repeats: float | None = None


@dataclass(frozen=True)
class Split:
    """Ids of training and test stimuli. Ids that were never shown are left out, stimuli in neither too.

    Attributes
    ----------
    train : None: every stimulus that is not for testing. Empty: none is for training, by design of the split; then it
        serves to decode by the decoders of another study.
    advice : of such a split, what to do for a study.
    """

    test: frozenset[str]
    train: frozenset[str] | None = None
    advice: str = ""


class Dataset(Protocol):
    """A dataset. Nothing is read before a method is called; every one raises InputError where a file is missing,
    damaged or does not fit the others, naming it.
    """

    default_mask: str | None
    """Name of the mask that is used where the configuration names none; None: a mask without a name."""

    looks_at: ClassVar[tuple[str, ...]] = ()
    """Which settings of `bdflow.config.dataset.OF_SOME_KINDS` it reads. Others are refused when they are given."""

    def __init__(self, settings: DatasetSettings) -> None: ...

    # --- stimuli ----------------------------------------------------------------------------------------------

    def stimuli(self) -> Sequence[str]:
        """Id of every stimulus that can be shown as a picture, each once, in the order in which stores have them."""

    def picture_shape(self) -> tuple[int, int]:
        """Height and width of pictures, where all are of one size; of the first, where they are not."""

    def pictures(self, stimuli: Sequence[str]) -> Sequence[np.ndarray] | np.ndarray:
        """The picture of each stimulus as it was shown, (y, x, 3) uint8: turned as EXIF says, alpha composited,
        grey and palettes made RGB.

        Raises InputError naming a stimulus without a picture.
        """

    def captions(self, stimuli: Sequence[str]) -> Sequence[Sequence[str]]:
        """Captions of each stimulus, the best first, without blanks around them; none is allowed."""

    def captions_per_stimulus(self) -> int:
        """The most captions that a stimulus has."""

    def splits(self) -> Mapping[str, Split]:
        """Splits that come with the dataset, by name; none is allowed."""

    def content(self) -> Mapping[str, Mapping[str, object]]:
        """What of `dataset.options` shapes what the dataset gives, beside the content of its files, as JSON values: of
        `stimuli` (which there are, pictures, captions), and of `betas` (with trials, regions and noise ceilings).
        """

    def stimulus_files(self) -> Mapping[str, AnyPath]:
        """Files that say which stimuli there are, show them and describe them, by what they are."""

    # --- subjects ---------------------------------------------------------------------------------------------

    def subjects(self) -> Sequence[str]:
        """Every subject of the dataset, also those that a configuration does not name."""

    def sessions(self, subject: str) -> Sequence[str]:
        """Names of a subject's sessions that there are, in the order of the scan. Numbers in them may have gaps."""

    def trials(self, subject: str, sessions: Sequence[str] | None = None) -> Trials:
        """Every trial of these sessions, in their order; None: of all that there are. Of others no file is read where
        that can be.
        """

    def seen(self, subject: str) -> frozenset[str]:
        """Every stimulus the subject saw or was to see by design, whichever sessions are there: what decides which
        stimuli several subjects share. It does not depend on which files were fetched where the dataset says more.
        """

    def beta_files(self, subject: str, sessions: Sequence[str]) -> Mapping[str, AnyPath]:
        """Files of a subject's trials, betas of these sessions, masks, regions and noise ceiling, by what they are."""

    # --- voxels -----------------------------------------------------------------------------------------------

    def encoding(self) -> Encoding:
        """How betas are stored."""

    def grid(self, subject: str) -> Grid:
        """Shape and affine of the subject's volumes; no affine where the files state none."""

    def affine_form(self, subject: str) -> int:
        """NIfTI's code of what the affine's millimetres are of (1: the scanner's); 0 where the files do not say."""

    def mask(self, subject: str, name: str | None) -> np.ndarray:
        """(x, y, z) bool of a mask or region by name; None: the mask that the dataset itself suggests.

        Raises InputError for a name that there is not, listing what there is, and for a mask without voxels.
        """

    def regions(self, subject: str) -> Mapping[str, np.ndarray]:
        """(x, y, z) bool of every region by `collection/name`. They may overlap, and be empty."""

    def region_names(self, subject: str) -> Sequence[str]:
        """The names of `regions`, without reading volumes where that can be."""

    def known_regions(self, subject: str) -> Sequence[str]:
        """Names that the subject's regions may have, for expressions; without any file where that can be. Others of
        `region_names` have no name in expressions.
        """

    def grids(self, subject: str, sessions: Sequence[str]) -> Sequence[Grid]:
        """Where the voxels of the subject's volumes lie that are combined by index: mask, regions, noise ceiling, betas
        of these sessions.
        """

    def noise_ceiling(self, subject: str) -> NoiseCeiling | None:
        """The noise ceiling that comes with the dataset."""

    def betas(self, subject: str, session: str, mask: np.ndarray) -> SessionBetas:
        """All betas of a session in the voxels of `mask` (x, y, z), in C order of (x, y, z).

        A beta is valid if it is a number, and its voxel was measured in the session: as the dataset says, or, where it
        says nothing, if it is not the same in every trial.
        """


@runtime_checkable
class Numbered(Protocol):
    """A dataset that counts its sessions and stimuli: then a configuration may give numbers for their names."""

    def session_of(self, number: int) -> str:
        """Name of a session, from 1."""

    def stimulus_of(self, number: int) -> str:
        """Id of a stimulus, from 0."""
