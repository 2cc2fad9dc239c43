"""NSD as a configuration selects it: files, sessions, mask, split and the order of stimuli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from bdflow.config import Config
from bdflow.datasets.nsd.design import Split, split_stimuli, stimuli_of
from bdflow.datasets.nsd.files import NSD, Captions, voxel_mask
from bdflow.datasets.nsd.grids import check_same_grid
from bdflow.datasets.nsd.identity import identity
from bdflow.datasets.nsd.values import as_stored
from bdflow.datasets.reader import SessionBetas

ROI_FILES = ("prf-visualrois", "prf-eccrois", "floc-faces", "floc-words", "floc-places", "floc-bodies", "streams")


class NSDReader:
    """`bdflow.datasets.reader.Reader` of the Natural Scenes Dataset."""

    def __init__(self, config: Config) -> None:
        self.config, self.settings = config, config.dataset
        self._volumes: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    @cached_property
    def nsd(self) -> NSD:
        """The dataset's folder. Raises InputError if it is not there."""
        return NSD(
            self.settings.root,
            preparation=self.settings.preparation,
            space=self.settings.space,
            betas_format=self.settings.betas_format,
            captions=self.settings.captions,
        )

    # --- stimuli ----------------------------------------------------------------------------------------------

    def stimulus_inputs(self) -> Mapping[str, str]:
        nsd = self.nsd
        files = {"design": nsd.design_path, "stimuli": nsd.stimuli_path, "captions": nsd.captions_path}
        split = self.settings.split
        found = {name: identity(file) for name, file in files.items()}
        return {**found, "split": split if split == "shared" else identity(split)}

    @cached_property
    def split(self) -> Split:
        """Training and test stimuli of every subject."""
        design = self.nsd.design()
        with self.nsd.stimuli() as stimuli:
            design.check_stimuli(stimuli.count)
            count = stimuli.count
        subjects = sorted(self.config.subjects)
        trials = {s: self._trials(s) for s in subjects}
        return split_stimuli(design, subjects, trials, self.settings.split, count)

    def stimuli(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        return stimuli_of(self.nsd.design(), self.split, part)

    def photo_shape(self) -> tuple[int, int]:
        with self.nsd.stimuli() as stimuli:
            return stimuli.shape[0], stimuli.shape[1]

    @cached_property
    def _captions(self) -> Captions:
        return self.nsd.captions()

    def captions_per_stimulus(self) -> int:
        return int(self._captions.per_stimulus)

    def read_photos(self, ids: np.ndarray) -> np.ndarray:
        with self.nsd.stimuli() as stimuli:
            return stimuli.read(ids)

    def read_captions(self, ids: np.ndarray) -> Sequence[Sequence[str]]:
        found: Sequence[Sequence[str]] = self._captions.read(ids)
        return found

    # --- betas ------------------------------------------------------------------------------------------------

    def beta_inputs(self, subject: str) -> Mapping[str, str]:
        nsd = self.nsd
        sessions = nsd.check_sessions(subject, self.sessions(subject))
        files = {f"session {session:02d}": nsd.session_path(subject, session) for session in sessions}
        valid = {f"valid session {session:02d}": nsd.valid_path(subject, session) for session in sessions}
        files |= {name: path for name, path in valid.items() if path.is_file()}
        files |= {name: nsd.roi(subject, name).path for name in self.region_files(subject)}
        files["ncsnr"] = nsd.betas_folder(subject) / "ncsnr.nii.gz"
        files["design"] = nsd.design_path
        return {name: identity(file) for name, file in files.items()}

    @cached_property
    def _session_trials(self) -> dict[str, int]:
        return {
            subject: self.nsd.trials_per_session(subject, self.sessions(subject)) for subject in self.config.subjects
        }

    def session_trials(self, subject: str) -> int:
        return self._session_trials[subject]

    def sessions(self, subject: str) -> Sequence[int]:
        return self.settings.sessions_of(subject)

    def _trials(self, subject: str) -> np.ndarray:
        """Trials of the design (from 0) that the subject's sessions hold."""
        first, count = np.array(self.sessions(subject)) - 1, self.session_trials(subject)
        return (first[:, None] * count + np.arange(count)).ravel()

    def shown(self, subject: str) -> np.ndarray:
        return self.nsd.design().nsd_ids(subject, self._trials(subject))

    def region_files(self, subject: str) -> list[str]:
        present = self.nsd.roi_names(subject)
        return [self.settings.mask, *(n for n in ROI_FILES if n in present and n != self.settings.mask)]

    def mask(self, subject: str) -> np.ndarray:
        return self._read_volumes(subject)[0]

    def affine(self, subject: str) -> np.ndarray:
        return self.nsd.roi(subject, self.settings.mask).affine

    def affine_form(self, subject: str) -> int:
        return self.nsd.roi(subject, self.settings.mask).form

    def region_labels(self, subject: str) -> np.ndarray:
        return self._read_volumes(subject)[1]

    def ncsnr(self, subject: str) -> np.ndarray:
        return self._read_volumes(subject)[2]

    def _read_volumes(self, subject: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The mask; labels and noise ceiling of its voxels. Raises InputError where a volume has another grid."""
        if subject in self._volumes:
            return self._volumes[subject]
        nsd, sessions = self.nsd, self.sessions(subject)
        regions = [nsd.roi(subject, name) for name in self.region_files(subject)]
        ncsnr, mask = nsd.ncsnr_volume(subject), voxel_mask(regions[0])
        opened = [nsd.open_session(subject, session) for session in sessions]
        valid = [volume for session in sessions if (volume := nsd.valid(subject, session)) is not None]
        grids = [volume.grid for volume in (*regions, ncsnr)] + [session.grid for session in opened]
        check_same_grid([*grids, *(volume.grid for volume in valid)], subject)
        labels = np.stack([volume.data[mask] for volume in regions])
        self._volumes[subject] = mask, labels, ncsnr.data[mask]
        return self._volumes[subject]

    def betas(self, subject: str, session: int, mask: np.ndarray) -> SessionBetas:
        number = self.sessions(subject)[session]
        opened, valid = self.nsd.open_session(subject, number), self.nsd.valid(subject, number)
        return as_stored(
            opened.read_masked(mask),
            opened.path,
            mask,
            outliers=self.settings.outliers,
            not_a_number=self.settings.not_a_number,
            measured=None if valid is None else valid.data[mask],
        )
