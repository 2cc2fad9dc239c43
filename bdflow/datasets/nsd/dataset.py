"""NSD behind the contract of datasets: `bdflow.datasets.contract.Dataset` of its own files.

A stimulus's id is its nsd_id, counted from 0, in five digits: `02950`. A session is named by its file: `session03`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from bdflow.config import OF_SOME_KINDS, DatasetSettings, Section
from bdflow.datasets.contract import Encoding, NoiseCeiling, SessionBetas, Split, Trials
from bdflow.datasets.formats.grids import Grid
from bdflow.datasets.formats.options import options
from bdflow.datasets.formats.volumes import Volume, voxel_mask
from bdflow.datasets.nsd import color_tables
from bdflow.datasets.nsd.coco import CocoCaptions, open_captions
from bdflow.datasets.nsd.design import Design, subject_index
from bdflow.datasets.nsd.files import NSD, ROI_LABELS
from bdflow.datasets.nsd.stimuli import Captions
from bdflow.datasets.nsd.values import BETA_SCALE, as_stored
from bdflow.errors import InputError
from bdflow.stores.paths import AnyPath

MASK = "nsdgeneral"
FileName = Annotated[str, Field(pattern=r"^\w[^/\\\s]*$")]
ROI_FILES = ("prf-visualrois", "prf-eccrois", "floc-faces", "floc-words", "floc-places", "floc-bodies", "streams")


def stimulus_id(nsd_id: int) -> str:
    """Id of a stimulus of NSD, from its nsd_id (counted from 0): five digits, so that ids sort as numbers do."""
    return f"{nsd_id:05d}"


def nsd_id_of(stimulus: str) -> int:
    """nsd_id, counted from 0, of a stimulus. Raises InputError for what is no id of NSD."""
    if not (stimulus.isascii() and stimulus.isdecimal()) or stimulus_id(int(stimulus)) != stimulus:
        raise InputError(
            f"stimulus {stimulus!r}",
            found="no id of NSD",
            expected="the nsd_id, counted from 0, in five digits, such as 02950",
            action="correct the id",
        )
    return int(stimulus)


def session_name(number: int) -> str:
    """Name of a session, from 1."""
    return f"session{number:02d}"


def session_number(session: str) -> int:
    """Number of a session, from 1. Raises InputError for what is no name of a session of NSD."""
    digits = session.removeprefix("session")
    if not (digits.isascii() and digits.isdecimal()) or session_name(int(digits)) != session or int(digits) < 1:
        raise InputError(
            f"session {session!r}",
            found="no session of NSD",
            expected="a number, or a name such as session03",
            action="correct `dataset.sessions`",
        )
    return int(digits)


class NSDOptions(Section):
    """`dataset.options` of NSD.

    atlases : further collections of regions, files of `roi` with a colour table, such as `HCP_MMP1`.
    """

    atlases: tuple[FileName, ...] = ()


class NSDDataset:
    """The Natural Scenes Dataset (Allen et al. 2022), or any dataset in the same files and folders."""

    default_mask: str | None = MASK
    looks_at: ClassVar[tuple[str, ...]] = OF_SOME_KINDS

    def __init__(self, settings: DatasetSettings) -> None:
        self.settings = settings
        self.options = options(NSDOptions, settings.options, "nsd")
        self._volumes: dict[tuple[str, str], Volume] = {}

    @cached_property
    def nsd(self) -> NSD:
        """The dataset's folder. Raises InputError if it is not there."""
        settings = self.settings
        return NSD(
            settings.root,
            preparation=settings.preparation,
            space=settings.space,
            betas_format=settings.betas_format,
            captions=settings.captions,
        )

    def session_of(self, number: int) -> str:
        return session_name(number)

    def stimulus_of(self, number: int) -> str:
        return stimulus_id(number)

    # --- stimuli ----------------------------------------------------------------------------------------------

    @cached_property
    def _design(self) -> Design:
        return self.nsd.design()

    @cached_property
    def _stimulus_count(self) -> int:
        with self.nsd.stimuli() as stimuli:
            self._design.check_stimuli(stimuli.count)
            return stimuli.count

    def stimuli(self) -> Sequence[str]:
        return [stimulus_id(number) for number in range(self._stimulus_count)]

    def picture_shape(self) -> tuple[int, int]:
        with self.nsd.stimuli() as stimuli:
            return stimuli.shape[0], stimuli.shape[1]

    def pictures(self, stimuli: Sequence[str]) -> np.ndarray:
        with self.nsd.stimuli() as file:
            return file.read(np.array([nsd_id_of(stimulus) for stimulus in stimuli], np.int64))

    @cached_property
    def _captions(self) -> Captions | CocoCaptions:
        return open_captions(self.nsd.root, self.settings.captions, count=self._stimulus_count)

    def captions(self, stimuli: Sequence[str]) -> Sequence[Sequence[str]]:
        return self._captions.read(np.array([nsd_id_of(stimulus) for stimulus in stimuli], np.int64))

    def captions_per_stimulus(self) -> int:
        return int(self._captions.per_stimulus)

    def splits(self) -> Mapping[str, Split]:
        return {}

    def stimulus_files(self) -> Mapping[str, AnyPath]:
        nsd = self.nsd
        found = self._captions
        captions = (
            {f"captions {number}": path for number, path in enumerate(found.files, start=1)}
            if isinstance(found, CocoCaptions)
            else {"captions": found.path}
        )
        return {"design": nsd.design_path, "stimuli": nsd.stimuli_path, **captions}

    def content(self) -> Mapping[str, Mapping[str, object]]:
        return {"betas": {"atlases": list(self.options.atlases)}} if self.options.atlases else {}

    # --- subjects ---------------------------------------------------------------------------------------------

    def subjects(self) -> Sequence[str]:
        return [f"subj{number:02d}" for number in range(1, len(self._design.subjectim) + 1)]

    def sessions(self, subject: str) -> Sequence[str]:
        return [session_name(number) for number in self.nsd.sessions(subject)]

    def trials(self, subject: str, sessions: Sequence[str] | None = None) -> Trials:
        sessions = self.sessions(subject) if sessions is None else sessions
        numbers = [session_number(session) for session in sessions]
        count = self.nsd.trials_per_session(subject, numbers)
        index = np.arange(count)
        trials = ((np.array(numbers) - 1)[:, None] * count + index).ravel()
        shown = [stimulus_id(nsd_id) for nsd_id in self._design.nsd_ids(subject, trials).tolist()]
        return Trials(
            np.array(shown, dtype=str),
            np.repeat(np.array(sessions, dtype=str), count),
            np.zeros(len(trials), np.int32),
            np.tile(index, len(numbers)).astype(np.int32),
            np.full(len(trials), "", dtype=str),
        )

    def seen(self, subject: str) -> frozenset[str]:
        row = self._design.subjectim[subject_index(subject) - 1]
        return frozenset(stimulus_id(number - 1) for number in row.tolist())

    def beta_files(self, subject: str, sessions: Sequence[str]) -> Mapping[str, AnyPath]:
        nsd = self.nsd
        numbers = nsd.check_sessions(subject, [session_number(session) for session in sessions])
        files = {f"session {number:02d}": nsd.session_path(subject, number) for number in numbers}
        valid = {f"valid session {number:02d}": nsd.valid_path(subject, number) for number in numbers}
        files |= {name: path for name, path in valid.items() if path.is_file()}
        for name in self._collections(subject):
            files[name] = nsd.roi(subject, name).path
            table = color_tables.table_path(nsd.root, subject, name)
            files |= {f"labels {name}": table} if table.is_file() else {}
        return {**files, "ncsnr": nsd.betas_folder(subject) / "ncsnr.nii.gz", "design": nsd.design_path}

    # --- voxels -----------------------------------------------------------------------------------------------

    def encoding(self) -> Encoding:
        return Encoding("int16", "percent signal change", float(BETA_SCALE), cut_off=True)

    @property
    def _mask_file(self) -> str:
        return (self.settings.mask or MASK).partition("/")[0]

    def _collections(self, subject: str) -> list[str]:
        """Names of the mask's file and of the files of regions that there are."""
        present = self.nsd.roi_names(subject)
        found = [self._mask_file, *(name for name in ROI_FILES if name in present), *self.options.atlases]
        return list(dict.fromkeys(found))

    def _volume(self, subject: str, name: str) -> Volume:
        if (subject, name) not in self._volumes:
            self._volumes[subject, name] = self.nsd.roi(subject, name)
        return self._volumes[subject, name]

    def grid(self, subject: str) -> Grid:
        return self._volume(subject, self._mask_file).grid

    def affine_form(self, subject: str) -> int:
        return self._volume(subject, self._mask_file).form

    def mask(self, subject: str, name: str | None) -> np.ndarray:
        file, slash, label = (name or MASK).partition("/")
        volume = self._volume(subject, file)
        if not slash:
            return voxel_mask(volume)
        numbers = {text: number for number, text in self._labels(subject, file).items()}
        if label not in numbers:
            raise InputError(
                f"dataset.mask {name}",
                found=f"no region {label!r} in {volume.path}",
                expected="one of " + ", ".join(numbers),
                action="correct the name, or name the file alone for all its regions",
            )
        found: np.ndarray = volume.data == numbers[label]
        return found

    def _labels(self, subject: str, collection: str) -> dict[int, str]:
        """Names of the labels of a file: of its colour table, NSD's, or their numbers."""
        table = color_tables.table_path(self.nsd.root, subject, collection)
        known = {}
        if collection in ROI_LABELS or table.is_file() or collection in self.options.atlases:
            known = color_tables.region_labels(self.nsd.root, subject, collection)
        numbers = np.unique(self._volume(subject, collection).data)
        return {int(n): known.get(int(n), str(int(n))) for n in numbers if n > 0} | known

    def regions(self, subject: str) -> Mapping[str, np.ndarray]:
        found = {}
        for collection in self._collections(subject):
            data = self._volume(subject, collection).data
            for number, name in sorted(self._labels(subject, collection).items()):
                found[f"{collection}/{name}"] = data == number
        return found

    def region_names(self, subject: str) -> Sequence[str]:
        return list(self.regions(subject))

    def known_regions(self, subject: str) -> Sequence[str]:
        known = []
        for file in dict.fromkeys((self._mask_file, *ROI_FILES, *self.options.atlases)):
            names: Iterable[str] = ROI_LABELS.get(file, ())
            table = color_tables.table_path(self.settings.root, subject, file)
            if not names and (file in self.options.atlases or table.is_file()):
                names = color_tables.region_labels(self.settings.root, subject, file).values()
            known += [f"{file}/{name}" for name in names]
        return known

    def grids(self, subject: str, sessions: Sequence[str]) -> Sequence[Grid]:
        nsd, numbers = self.nsd, [session_number(session) for session in sessions]
        volumes = [self._volume(subject, name) for name in self._collections(subject)]
        volumes.append(nsd.ncsnr_volume(subject))
        valid = [volume for number in numbers if (volume := nsd.valid(subject, number)) is not None]
        opened = [nsd.open_session(subject, number).grid for number in numbers]
        return [*(volume.grid for volume in volumes), *opened, *(volume.grid for volume in valid)]

    def noise_ceiling(self, subject: str) -> NoiseCeiling | None:
        return NoiseCeiling(self.nsd.ncsnr_volume(subject).data, "ncsnr")

    def betas(self, subject: str, session: str, mask: np.ndarray) -> SessionBetas:
        number = session_number(session)
        opened, valid = self.nsd.open_session(subject, number), self.nsd.valid(subject, number)
        return as_stored(
            opened.read_masked(mask),
            opened.path,
            mask,
            outliers=self.settings.outliers,
            not_a_number=self.settings.not_a_number,
            measured=None if valid is None else valid.data[mask],
        )
