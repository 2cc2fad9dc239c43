"""The array door: a dataset that its user has prepared as one Zarr hierarchy (docs/arrays.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import Field

from bdflow.config import DatasetSettings, Section
from bdflow.config.values import Whole
from bdflow.datasets.arrays.opening import Hierarchy, open_hierarchy
from bdflow.datasets.arrays.stimuli import Stimuli
from bdflow.datasets.arrays.subject import Subject
from bdflow.datasets.contract import Encoding, NoiseCeiling, SessionBetas, Split, Trials
from bdflow.datasets.formats.grids import Grid
from bdflow.datasets.formats.options import options
from bdflow.datasets.formats.pictures import BACKGROUND, METHOD
from bdflow.errors import InputError, listed
from bdflow.stores.paths import AnyPath, place

KIND = "arrays"


class ArraysOptions(Section):
    """`dataset.options` of a dataset in arrays.

    background : grey, 0 to 255, behind transparent pixels of pictures in files.
    """

    background: Annotated[Whole, Field(ge=0, le=255)] = BACKGROUND


class Arrays:
    """`bdflow.datasets.contract.Dataset` of one Zarr v3 hierarchy, in a folder or an object store.

    At the first use all metadata are read and checked; a subject's small arrays at its first use. Pictures are read by
    the row. Betas are read by the session and the chunks that hold voxels of the mask.
    """

    default_mask: str | None = None

    def __init__(self, settings: DatasetSettings) -> None:
        self.settings = settings
        self._subjects: dict[str, Subject] = {}

    def __reduce__(self) -> tuple[type[Arrays], tuple[DatasetSettings]]:
        return type(self), (self.settings,)

    @cached_property
    def _hierarchy(self) -> Hierarchy:
        return open_hierarchy(place(self.settings.root))

    @cached_property
    def _stimuli(self) -> Stimuli:
        given = options(ArraysOptions, self.settings.options, KIND)
        hierarchy = self._hierarchy
        return Stimuli(hierarchy.root, hierarchy.stimuli, hierarchy.splits, given.background)

    def _subject(self, subject: str) -> Subject:
        groups = self._hierarchy.subjects
        if subject not in groups:
            raise InputError(
                f"{self._hierarchy.root}, subject {subject!r}",
                found="no such subject",
                expected=f"one of {listed(groups, 16)}",
                action="correct `subjects`, or write this subject into the dataset",
            )
        if subject not in self._subjects:
            known = frozenset(self._stimuli.rows)
            self._subjects[subject] = Subject(groups[subject], self._hierarchy.encoding, known)
        return self._subjects[subject]

    # --- stimuli ----------------------------------------------------------------------------------------------

    def stimuli(self) -> Sequence[str]:
        """Id of every stimulus that has a picture, in the order of /stimuli."""
        return self._stimuli.pictured

    def picture_shape(self) -> tuple[int, int]:
        """Height and width of pictures; of the first, where they are files."""
        return self._stimuli.picture_shape()

    def pictures(self, stimuli: Sequence[str]) -> Sequence[np.ndarray] | np.ndarray:
        """(y, x, 3) uint8 of each stimulus. Raises InputError for an id that there is not, for one without a picture,
        and for a file that is missing or is no picture.
        """
        return self._stimuli.pictures(stimuli)

    def captions(self, stimuli: Sequence[str]) -> Sequence[Sequence[str]]:
        """Captions of each stimulus, in the order of caption_number. Raises InputError for an id that there is not."""
        return self._stimuli.captions(stimuli)

    def captions_per_stimulus(self) -> int:
        """The most captions that a stimulus has."""
        return self._stimuli.captions_per_stimulus

    def splits(self) -> Mapping[str, Split]:
        """The splits in /splits. Raises InputError for an id that /stimuli does not have, or an unknown part."""
        return self._stimuli.splits

    def content(self) -> Mapping[str, Mapping[str, object]]:
        """The grey behind transparent pixels, and how files of pictures are read."""
        return {
            "stimuli": {**options(ArraysOptions, self.settings.options, KIND).model_dump(), "read_pictures": METHOD}
        }

    def stimulus_files(self) -> Mapping[str, AnyPath]:
        """Every file below /stimuli and /splits, and of pictures."""
        return self._stimuli.files()

    # --- subjects ---------------------------------------------------------------------------------------------

    def subjects(self) -> Sequence[str]:
        """Names of the groups below /subjects, ascending."""
        return tuple(self._hierarchy.subjects)

    def sessions(self, subject: str) -> Sequence[str]:
        """Names of a subject's sessions, in the order of the trials."""
        return tuple(self._subject(subject).content.sessions)

    def trials(self, subject: str, sessions: Sequence[str] | None = None) -> Trials:
        """Every trial of these sessions, in the order of the array; None: of all. Raises InputError for a stimulus that
        /stimuli does not have, and for a session whose trials are not one after another.
        """
        every = self._subject(subject).content.trials
        if sessions is None:
            return every
        rows = np.isin(every.session, list(sessions))
        return Trials(*(getattr(every, part.name)[rows] for part in fields(Trials)))

    def seen(self, subject: str) -> frozenset[str]:
        """Every stimulus that a trial of the subject shows: the dataset says nothing of any other."""
        return frozenset(self.trials(subject).stimulus.tolist()) - {""}

    def beta_files(self, subject: str, sessions: Sequence[str]) -> Mapping[str, AnyPath]:
        """Every file below the subject's group but the betas of other sessions."""
        return self._subject(subject).files(sessions)

    # --- voxels -----------------------------------------------------------------------------------------------

    def encoding(self) -> Encoding:
        """How betas of all subjects are stored."""
        return self._hierarchy.encoding

    def grid(self, subject: str) -> Grid:
        """Shape and affine as the subject's attributes say; without i, j and k a line of voxels, and no affine."""
        return self._subject(subject).grid()

    def affine_form(self, subject: str) -> int:
        """NIfTI's code of what the affine's millimetres are of: the attribute affine_form, 2 (some space) where there
        is none, 0 without an affine.
        """
        return self._subject(subject).affine_form()

    def mask(self, subject: str, name: str | None) -> np.ndarray:
        """(x, y, z) bool of a region, `collection/name`, or of all regions of a `collection`; None: every voxel that
        there are betas of. Raises InputError for a name that there is not, and for a region without voxels.
        """
        return self._subject(subject).mask(name)

    def regions(self, subject: str) -> Mapping[str, np.ndarray]:
        """(x, y, z) bool of each region by `collection/name`, each made when it is asked for."""
        return self._subject(subject).regions()

    def region_names(self, subject: str) -> Sequence[str]:
        """Names of the regions, in the order of roi."""
        return self._subject(subject).content.regions

    def known_regions(self, subject: str) -> Sequence[str]:
        """The names of `regions`."""
        return self.region_names(subject)

    def grids(self, subject: str, sessions: Sequence[str]) -> Sequence[Grid]:
        """The one grid that a subject has."""
        return [self.grid(subject)]

    def noise_ceiling(self, subject: str) -> NoiseCeiling | None:
        """The noise ceiling, NaN where there are no betas."""
        return self._subject(subject).noise_ceiling()

    def betas(self, subject: str, session: str, mask: np.ndarray) -> SessionBetas:
        """All betas of a session in the voxels of `mask` (x, y, z), in C order of (x, y, z).

        Voxels of the mask that the dataset has no betas of are not valid. Raises InputError for a session that there is
        not, a mask of another shape, chunks that are missing or damaged, and betas that are infinite.
        """
        return self._subject(subject).betas(session, mask)
