"""What the pipeline asks of a dataset. `dataset.kind` in the configuration names the reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bdflow.config import Config
from bdflow.registry import resolve

READERS = {"nsd": "bdflow.datasets.nsd:NSDReader"}


@dataclass(frozen=True)
class SessionBetas:
    """The betas of one session, over the voxels of the mask.

    Attributes
    ----------
    values : (trials, voxels) int16, 1/300 percent signal change. No value stands for "missing"; -32768 and 32767 are
        betas that are cut off there.
    valid : (trials, voxels) bool: whether it is a measurement. Others enter no mean.
    """

    values: np.ndarray
    valid: np.ndarray


class Reader(Protocol):
    """A dataset as a configuration selects it. Nothing is read before a method is called; every one raises InputError
    where a file is missing, damaged or does not fit the others.
    """

    def __init__(self, config: Config) -> None: ...

    def stimulus_inputs(self) -> Mapping[str, str]:
        """Digests of the files that say which stimuli there are, and show them, by what they are."""

    def beta_inputs(self, subject: str) -> Mapping[str, str]:
        """Digests of the files of a subject's betas, masks and noise ceiling, by what they are."""

    def stimuli(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """The stimuli of a part, test ones first: ids (int), and `test` or `train` of each.

        `part` : `shared`, what several subjects of the dataset saw, or a subject, what it alone saw, in the sessions
        that are used. No stimulus is in two parts, and adding a subject moves none from one to another.
        """

    def photo_shape(self) -> tuple[int, int]:
        """Height and width in pixels."""

    def captions_per_stimulus(self) -> int:
        """The most captions a stimulus has."""

    def read_photos(self, ids: np.ndarray) -> np.ndarray:
        """(n, y, x, 3) uint8."""

    def read_captions(self, ids: np.ndarray) -> Sequence[Sequence[str]]:
        """The captions of each stimulus."""

    def session_trials(self, subject: str) -> int:
        """Trials of each session."""

    def sessions(self, subject: str) -> Sequence[int]:
        """Numbers of the sessions that are used, ascending, from 1."""

    def shown(self, subject: str) -> np.ndarray:
        """Stimulus of every trial of these sessions, in the order of the scan."""

    def region_files(self, subject: str) -> list[str]:
        """Names of the mask and of the files of regions."""

    def mask(self, subject: str) -> np.ndarray:
        """(x, y, z) bool: the voxels to use. Where volumes of the subject do not share its grid (shape, axis
        directions, voxel size), InputError.
        """

    def affine(self, subject: str) -> np.ndarray:
        """(4, 4): from voxel indices along x, y and z to millimetres."""

    def affine_form(self, subject: str) -> int:
        """NIfTI's code of what the affine's millimetres are of (1: the scanner's); 0 where the files do not say."""

    def region_labels(self, subject: str) -> np.ndarray:
        """(files, voxels of the mask): the label of each voxel in each file of regions."""

    def ncsnr(self, subject: str) -> np.ndarray:
        """(voxels of the mask,): noise-ceiling signal-to-noise ratio; 0 without signal, NaN where it is not known."""

    def betas(self, subject: str, session: int, mask: np.ndarray) -> SessionBetas:
        """The betas of a session, by its place (from 0) in `sessions`."""


def open_dataset(config: Config) -> Reader:
    """The reader of a configuration's dataset. Raises InputError for a kind that there is not."""
    reader: Reader = resolve(config.dataset.kind, READERS, "dataset.kind")(config)
    return reader
