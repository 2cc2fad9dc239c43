"""One more session of a subject beside NSD's core: what NSD-Imagery and NSD-synthetic have in common.

Mask, regions and noise ceiling are the core's; betas and validity the session's own.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np

from bdflow.config import DatasetSettings
from bdflow.datasets.contract import Encoding, NoiseCeiling, SessionBetas, Trials
from bdflow.datasets.formats.betas import BetaSession, open_session
from bdflow.datasets.formats.grids import Grid, check_same_grid
from bdflow.datasets.formats.identity import missing
from bdflow.datasets.formats.volumes import Volume, read_validity, voxel_mask
from bdflow.datasets.nsd import color_tables
from bdflow.datasets.nsd.design import subject_index
from bdflow.datasets.nsd.files import ENDINGS, NSD
from bdflow.datasets.nsd.values import BETA_SCALE, as_stored
from bdflow.errors import InputError, listed
from bdflow.stores.paths import AnyPath

_MASK = "nsdgeneral"


class SingleSession(ABC):
    """`bdflow.datasets.contract.Dataset` of an experiment with one session a subject, but for its stimuli and trials.

    KIND : the name of the dataset. SESSION : of its session, in the names of folders and files.
    """

    KIND: ClassVar[str]
    SESSION: ClassVar[str]
    default_mask: str | None = _MASK
    looks_at: ClassVar[tuple[str, ...]] = ("preparation", "space", "betas_format", "outliers", "not_a_number")

    def __init__(self, settings: DatasetSettings) -> None:
        self.settings = settings
        self._grids: dict[str, tuple[Grid, int]] = {}

    @cached_property
    def nsd(self) -> NSD:
        """The files of the core."""
        return NSD(self.settings.root, preparation=self.settings.preparation, space=self.settings.space)

    # --- what an experiment says of itself --------------------------------------------------------------------

    @abstractmethod
    def subjects(self) -> Sequence[str]: ...

    @abstractmethod
    def _every_trial(self, subject: str) -> Trials:
        """Trials of the session, whether its betas are there or not."""

    @abstractmethod
    def _rows(self, subject: str) -> tuple[int, AnyPath]:
        """How many betas the session has by design, and the file that says so."""

    @abstractmethod
    def _trial_files(self, subject: str) -> dict[str, AnyPath]:
        """Files that say what the betas are of, by what they are."""

    def content(self) -> Mapping[str, Mapping[str, object]]:
        """Nothing but the files' content."""
        return {}

    # --- subjects ---------------------------------------------------------------------------------------------

    def sessions(self, subject: str) -> Sequence[str]:
        self._check_subject(subject)
        return [self.SESSION] if any(path.is_file() for path in self._beta_paths(subject)) else []

    def trials(self, subject: str, sessions: Sequence[str] | None = None) -> Trials:
        for session in sessions or ():
            self._check_session(subject, session)
        if not self.sessions(subject):
            nothing = np.zeros(0, np.int32)
            return Trials(np.zeros(0, str), np.zeros(0, str), nothing, nothing, np.zeros(0, str))
        self._opened(subject)
        return self._every_trial(subject)

    def seen(self, subject: str) -> frozenset[str]:
        self._check_subject(subject)
        return frozenset(self._every_trial(subject).stimulus.tolist()) - {""}

    def beta_files(self, subject: str, sessions: Sequence[str]) -> Mapping[str, AnyPath]:
        files: dict[str, AnyPath] = {}
        for session in sessions:
            self._check_session(subject, session)
            files[f"session {session}"] = self._beta_path(subject)
            if self._valid_path(subject).is_file():
                files[f"valid {session}"] = self._valid_path(subject)
        regions = color_tables.Regions(self.nsd, subject, self.grid(subject)).files()
        mask = {f"region {self._mask_file}": self._roi_path(subject, self._mask_file)}
        return files | self._trial_files(subject) | mask | regions | {"ncsnr": self._ncsnr_path(subject)}

    # --- voxels -----------------------------------------------------------------------------------------------

    def encoding(self) -> Encoding:
        return Encoding(dtype="int16", units="percent signal change", divisor=float(BETA_SCALE), cut_off=True)

    def grid(self, subject: str) -> Grid:
        return self._placed(subject)[0]

    def affine_form(self, subject: str) -> int:
        return self._placed(subject)[1]

    def mask(self, subject: str, name: str | None) -> np.ndarray:
        name = _MASK if name is None else name
        if "/" not in name:
            volume = self.nsd.roi(subject, name)
            check_same_grid([self.grid(subject), volume.grid], subject)
            return voxel_mask(volume)
        regions = color_tables.Regions(self.nsd, subject, self.grid(subject))
        if name not in regions:
            raise InputError(
                f"{subject}, region {name}",
                found="no such region",
                expected=f"one of {listed(regions, 40)}",
                action="correct the name, or take a whole volume: "
                + (listed(self.nsd.roi_names(subject), 40) or "there is none"),
            )
        found: np.ndarray = regions[name]
        if not found.any():
            raise InputError(
                f"{subject}, region {name}",
                found="no voxel",
                expected="1 or more",
                meaning="The subject does not have this region.",
                action="choose another mask",
            )
        return found

    def regions(self, subject: str) -> Mapping[str, np.ndarray]:
        return color_tables.Regions(self.nsd, subject, self.grid(subject))

    def region_names(self, subject: str) -> Sequence[str]:
        return color_tables.region_names(self.nsd, subject)

    @property
    def _mask_file(self) -> str:
        return (self.settings.mask or _MASK).partition("/")[0]

    def known_regions(self, subject: str) -> Sequence[str]:
        return self.region_names(subject)

    def grids(self, subject: str, sessions: Sequence[str]) -> Sequence[Grid]:
        valid = self._valid(subject)
        return [self.grid(subject), self._opened(subject).grid, *(() if valid is None else (valid.grid,))]

    def noise_ceiling(self, subject: str) -> NoiseCeiling | None:
        """The core's, of pictures that were seen in its sessions; these sessions have none of their own."""
        volume = self.nsd.ncsnr_volume(subject)
        check_same_grid([self.grid(subject), volume.grid], subject)
        return NoiseCeiling(volume.data, "ncsnr")

    def betas(self, subject: str, session: str, mask: np.ndarray) -> SessionBetas:
        self._check_session(subject, session)
        opened, valid = self._opened(subject), self._valid(subject)
        if valid is not None:
            check_same_grid([opened.grid, valid.grid], subject)
        read = opened.read_masked(mask)
        found = as_stored(
            read,
            opened.path,
            mask,
            outliers=self.settings.outliers,
            not_a_number=self.settings.not_a_number,
            measured=None if valid is None else valid.data[mask],
        )
        return SessionBetas(found.values, found.valid)

    # --- files ------------------------------------------------------------------------------------------------

    def _placed(self, subject: str) -> tuple[Grid, int]:
        """The grid of the mask, and the form of its affine; the session's own volumes are compared with it."""
        if subject not in self._grids:
            self._check_subject(subject)
            mask, valid = self.nsd.roi(subject, self._mask_file), self._valid(subject)
            grids = [mask.grid]
            if self.sessions(subject):
                grids.append(open_session(self._beta_path(subject)).grid)
            if valid is not None:
                grids.append(valid.grid)
            check_same_grid(grids, subject)
            self._grids[subject] = mask.grid, mask.form
        return self._grids[subject]

    def _opened(self, subject: str) -> BetaSession:
        opened, (rows, said) = open_session(self._beta_path(subject)), self._rows(subject)
        if opened.n_trials != rows:
            raise InputError(
                opened.path,
                found=f"{opened.n_trials} betas",
                expected=f"{rows}, as many as {said} has",
                meaning="Betas and stimuli cannot be matched.",
                action="use betas and experiment of one dataset; fetch both again",
            )
        return opened

    def _valid(self, subject: str) -> Volume | None:
        """Which voxels the session measured, bool; None where there is no such file."""
        return read_validity(self._valid_path(subject))

    def _valid_path(self, subject: str) -> AnyPath:
        return self._ppdata(subject) / f"valid_{self.SESSION}.nii.gz"

    def _roi_path(self, subject: str, name: str) -> AnyPath:
        return self._ppdata(subject) / "roi" / f"{name}.nii.gz"

    def _ncsnr_path(self, subject: str) -> AnyPath:
        return self.nsd.betas_folder(subject) / "ncsnr.nii.gz"

    def _ppdata(self, subject: str) -> AnyPath:
        subject_index(subject)
        return self.nsd.root / "nsddata/ppdata" / subject / self.settings.space

    def _beta_paths(self, subject: str) -> list[AnyPath]:
        """Where the betas may be, in the order in which they are taken."""
        subject_index(subject)
        folder = self.nsd.root / "nsddata_betas/ppdata" / subject / self._folder
        return [folder / f"betas_{self.SESSION}{ending}" for ending in ENDINGS[self.settings.betas_format]]

    def _beta_path(self, subject: str) -> AnyPath:
        paths = self._beta_paths(subject)
        for path in paths:
            if path.is_file():
                return path
        raise missing(paths[0], f"the betas of {self.SESSION} of {subject}")

    @property
    def _folder(self) -> str:
        return f"{self.settings.space}/{self.SESSION}{self.settings.preparation}"

    def _subjects_with_betas(self) -> set[str]:
        found = self.nsd.root.glob(f"nsddata_betas/ppdata/subj*/{self._folder}/betas_{self.SESSION}.*")
        names = {path.parents[2].name for path in found}
        return {name for name in names if re.fullmatch(r"subj\d\d", name)}

    def _check_subject(self, subject: str) -> None:
        subject_index(subject)
        if subject not in self.subjects():
            raise InputError(
                f"{self.nsd.root}, {subject}",
                found=f"no files of {self.SESSION} of this subject",
                expected=f"one of {listed(self.subjects()) or 'the subjects of NSD'}",
                action="fetch them, or leave the subject out of `subjects`",
            )

    def _check_session(self, subject: str, session: str) -> None:
        self._check_subject(subject)
        if session != self.SESSION:
            raise InputError(
                f"{subject}, session {session}",
                found="no such session",
                expected=self.SESSION,
                action="use the name of the session as the dataset has it",
            )
