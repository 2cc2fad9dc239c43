"""LAION-fMRI as `bdflow.datasets.contract.Dataset`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import model_validator

from bdflow.config import DatasetSettings, Section
from bdflow.config.values import Location, Positive
from bdflow.datasets.contract import Encoding, NoiseCeiling, SessionBetas, Split, Trials
from bdflow.datasets.formats.betas import NiftiSession
from bdflow.datasets.formats.grids import Grid, check_same_grid
from bdflow.datasets.formats.options import options
from bdflow.datasets.formats.pictures import METHOD
from bdflow.datasets.formats.values import measured
from bdflow.datasets.formats.volumes import Volume, labelled, read_volume, voxel_mask
from bdflow.datasets.laion_fmri.captions import read_captions
from bdflow.datasets.laion_fmri.embeddings import embedding_files, read_embeddings
from bdflow.datasets.laion_fmri.layout import Layout, one_spelling
from bdflow.datasets.laion_fmri.splits import Splits
from bdflow.datasets.laion_fmri.stimuli import Stimuli
from bdflow.datasets.laion_fmri.trials import SessionTrials, read_trials
from bdflow.errors import InputError, counted, listed
from bdflow.stores.paths import AnyPath, place

log = logging.getLogger(__name__)

KIND = "laion_fmri"
BRAIN, RSQUARE = "brain", "rsquare"
_REPEATS = {"4rep": 4, "12rep": 12}
_OWNERS = {"p01": "sub-01", "p02": "sub-06", "p03": "sub-05", "p04": "sub-03", "p05": "sub-07"}
"""Whose a stimulus of one subject is, by the end of its name; the numbers are not those of the subjects."""
_MOST_NAMES = 80


class LaionOptions(Section):
    """`dataset.options` of LAION-fMRI.

    stimuli : folder of the stimulus files (a path or URL); None: `stimuli` below `dataset.root`.
    splits : folder of the package's splits, POOL/NAME.json (a path or URL); None: no splits come with the dataset.
    noise_ceiling : which of the dataset's noise ceilings; None: none.
    noise_ceiling_repeats : what number of repeats `Allrep` is for, 1 / mean(1 / n); with it alone.
    """

    stimuli: Location | None = None
    splits: Location | None = None
    noise_ceiling: Literal["4rep", "12rep", "Allrep"] | None = "12rep"
    noise_ceiling_repeats: Positive | None = None

    @model_validator(mode="after")
    def _repeats_of_all(self) -> LaionOptions:
        if (self.noise_ceiling == "Allrep") != (self.noise_ceiling_repeats is not None):
            raise ValueError(
                "`noise_ceiling_repeats` goes with `noise_ceiling: Allrep`, and with it alone: that map is of stimuli "
                "with 4 and 12 repeats, and the number of repeats that it is for stands in no file"
            )
        return self


class LaionFMRI:
    """LAION-fMRI's launch release: `bdflow.datasets.contract.Dataset`, whose docstrings say what methods give.

    Every method raises InputError where a file is missing (NotAtHand), damaged or does not fit the others, naming it.
    A subject or session that there is not is an InputError listing those that there are.
    """

    default_mask: str | None = RSQUARE
    looks_at = ()

    def __init__(self, settings: DatasetSettings) -> None:
        self.settings = settings
        self.options = options(LaionOptions, settings.options, KIND)
        folder = self.options.stimuli
        self.layout = Layout(place(settings.root), None if folder is None else place(folder))
        self._stimuli = Stimuli(self.layout.stimuli)
        self._sessions: dict[str, list[str]] = {}
        self._tables: dict[tuple[str, str], SessionTrials] = {}
        self._opened: dict[tuple[str, str], NiftiSession] = {}

    # --- stimuli ------------------------------------------------------------------------------------------------

    def stimuli(self) -> Sequence[str]:
        """Names of the stimulus table, in its order, whether or not they were shown."""
        return list(self._stimuli.rows)

    def picture_shape(self) -> tuple[int, int]:
        """Height and width of the first picture; the dataset's are 1000 x 1000."""
        (first,) = self.pictures(self.stimuli()[:1])
        return int(first.shape[0]), int(first.shape[1])

    def pictures(self, stimuli: Sequence[str]) -> list[np.ndarray]:
        """(y, x, 3) uint8 of each; PNG with alpha is composited on grey 128, what was around the pictures."""
        return self._stimuli.pictures(stimuli)

    def captions(self, stimuli: Sequence[str]) -> list[list[str]]:
        """People's captions by their rank in the dataset, the best first, then the language model's."""
        self._stimuli.check(stimuli, "the stimuli asked for")
        return [list(self._captions.get(name, ())) for name in stimuli]

    def captions_per_stimulus(self) -> int:
        """The most captions that a stimulus has: 6 in the launch release."""
        return max(len(captions) for captions in self._captions.values())

    @property
    def _captions_path(self) -> AnyPath:
        return self.layout.stimuli / "task-images_desc-captions.csv"

    @cached_property
    def _captions(self) -> dict[str, tuple[str, ...]]:
        return read_captions(self._captions_path, self._stimuli.rows)

    def splits(self) -> Mapping[str, Split]:
        """Splits by POOL/NAME from the folder `dataset.options.splits`; none without it."""
        folder = self.options.splits
        return {} if folder is None else Splits(place(folder))

    def content(self) -> Mapping[str, Mapping[str, object]]:
        """Which noise ceiling, and how files of pictures are read; where files lie is no content."""
        which, repeats = self.options.noise_ceiling, self.options.noise_ceiling_repeats
        return {
            "stimuli": {"read_pictures": METHOD},
            "betas": {"noise_ceiling": which, "noise_ceiling_repeats": repeats},
        }

    def stimulus_files(self) -> Mapping[str, AnyPath]:
        """Table, pictures and captions."""
        return {
            "stimuli": self._stimuli.table_path,
            "pictures": self._stimuli.pictures_path,
            "captions": self._captions_path,
        }

    def embeddings(self, name: str, stimuli: Sequence[str]) -> np.ndarray:
        """Embeddings of the stimuli by one of the models whose files come with the dataset: (stimuli, dimensions)
        float32, in no unit.

        Parameters
        ----------
        name : of the model, such as `CLIP` or `DINOv2`; there must be a file of it.

        Raises
        ------
        InputError : no file of that model (listing those that there are), or one that is damaged; a stimulus that the
            file lacks, or whose embedding it calls not valid.
        """
        self._stimuli.check(stimuli, "the stimuli asked for")
        files = embedding_files(self.layout.stimuli)
        if name not in files:
            raise InputError(
                self.layout.stimuli,
                found=f"embeddings of {listed(files) or 'no model'}",
                expected=f"a file of {name}",
                action="fetch it, or choose a model that is there",
            )
        return read_embeddings(files[name], stimuli)

    # --- subjects -----------------------------------------------------------------------------------------------

    def subjects(self) -> Sequence[str]:
        """Subjects with betas of at least one session."""
        found = self.layout.subjects()
        if not found:
            raise InputError(
                self.layout.glmsingle,
                found="no folder of a subject with single-trial betas",
                expected="folders sub-01/ses-01/func and so on, as LAION-fMRI's launch release has them",
                action="fetch betas of a subject, or correct `dataset.root`",
            )
        return found

    def sessions(self, subject: str) -> Sequence[str]:
        """Sessions whose betas are there, by their number; a table of trials without betas makes no session."""
        if subject not in self._sessions:
            found = self.layout.sessions(subject) if "/" not in subject else []
            if not found:
                raise InputError(
                    f"subject {subject!r}",
                    found=f"no single-trial betas in {self.layout.glmsingle}",
                    expected=f"one of {listed(self.subjects())}",
                    action="correct `subjects` in the configuration, or fetch this subject's betas",
                )
            self._sessions[subject] = found
        return list(self._sessions[subject])

    def trials(self, subject: str, sessions: Sequence[str] | None = None) -> Trials:
        """Every trial of sessions whose betas are there. Row i of a table is volume i of the session."""
        sessions = self.sessions(subject) if sessions is None else sessions
        tables = [self._fitting_trials(subject, session) for session in sessions]
        counts = [len(table.labels) for table in tables]
        return Trials(
            stimulus=np.array([label for table in tables for label in table.labels], np.str_),
            session=np.repeat(np.array(sessions, np.str_), counts),
            run=np.concatenate([table.runs for table in tables]),
            index=np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
            condition=np.full(sum(counts), "", np.str_),
        )

    def seen(self, subject: str) -> frozenset[str]:
        """Stimuli that the table calls shared, those whose name ends as the subject's own do, and all that its tables
        of trials name, of sessions with or without betas.
        """
        self.sessions(subject)
        sessions = self.layout.sessions_with_trials(subject)
        shown = {label for session in sessions for label in self._trials(subject, session).labels}
        shared = self._stimuli.shared
        owners = {name: _owner(name) for name in self._stimuli.rows if name not in shared}
        others = sorted(name for name in shown if owners.get(name, subject) not in (subject, None))
        if others:
            log.warning(
                "%s was shown %s that by %s another subject alone was to see: %s. They count as seen by both.",
                subject,
                counted(len(others), "stimulus", "stimuli"),
                "its name" if len(others) == 1 else "their names",
                listed(others),
            )
        return shared | shown | {name for name, owner in owners.items() if owner == subject}

    def beta_files(self, subject: str, sessions: Sequence[str]) -> Mapping[str, AnyPath]:
        """Betas and tables of trials of these sessions, the masks and regions that are there, the noise ceiling."""
        files: dict[str, AnyPath] = {}
        for session in sessions:
            files[f"betas {session}"] = self._there(subject, session)
            files[f"trials {session}"] = self.layout.trials(subject, session)
        masks = {BRAIN: self.layout.brain(subject), RSQUARE: self.layout.rsquare(subject)}
        files |= {f"mask {name}": path for name, path in masks.items() if path.is_file()}
        files |= {f"region {name}": path for name, path in self.layout.regions(subject).items()}
        which = self.options.noise_ceiling
        if which is not None:
            files[f"noise ceiling {which}"] = self.layout.noise_ceiling(subject, which)
        return files

    def _there(self, subject: str, session: str) -> AnyPath:
        """The betas of a session. Raises InputError for one that there is not."""
        sessions = self.sessions(subject)
        if session not in sessions:
            raise InputError(
                f"{self.layout.glmsingle}, {subject}",
                found=f"no betas of a session {session!r}",
                expected=f"one of {listed(sessions, _MOST_NAMES)}",
                action="choose sessions that are there, or fetch this one",
            )
        return self.layout.betas(subject, session)

    def _trials(self, subject: str, session: str) -> SessionTrials:
        key = (subject, session)
        if key not in self._tables:
            self._tables[key] = read_trials(self.layout.trials(subject, session), session, self._stimuli)
        return self._tables[key]

    def _fitting_trials(self, subject: str, session: str) -> SessionTrials:
        """The trials of a session, as many as its betas have volumes."""
        betas, table = self._open(subject, session), self._trials(subject, session)
        if len(table.labels) != betas.n_trials:
            raise InputError(
                table.path,
                found=counted(len(table.labels), "row"),
                expected=f"{betas.n_trials:,}, one for each volume of {betas.path}",
                meaning="Which stimulus a beta is of cannot be told.",
                action="fetch the table and the betas of this session again",
            )
        return table

    # --- voxels -------------------------------------------------------------------------------------------------

    def encoding(self) -> Encoding:
        """float32, percent signal change, as the files have them."""
        return Encoding("float32", "percent signal change")

    def grid(self, subject: str) -> Grid:
        """Shape and affine of the betas of the subject's first session."""
        return self._first(subject).grid

    def affine_form(self, subject: str) -> int:
        """NIfTI's code in the betas of the subject's first session."""
        return self._first(subject).form

    def _first(self, subject: str) -> NiftiSession:
        return self._open(subject, self.sessions(subject)[0])

    def _open(self, subject: str, session: str) -> NiftiSession:
        """The betas of a session, of which only the header is read."""
        key = (subject, session)
        if key not in self._opened:
            opened = NiftiSession(self._there(subject, session))
            if opened.dtype.kind != "f":
                raise InputError(
                    opened.path,
                    found=f"values of type {opened.dtype} without a scale",
                    expected="floating-point numbers, percent signal change",
                    meaning="The unit of whole numbers is not known.",
                    action="fetch the file again",
                )
            self._opened[key] = opened
        return self._opened[key]

    def mask(self, subject: str, name: str | None) -> np.ndarray:
        """`rsquare`, where the mean R2 over sessions is a number and not 0 (None means it too); `brain`, the anatomical
        mask; a category, all of its regions; or a region, by `category/NAME` or, where one category alone has it, NAME.
        """
        self.sessions(subject)
        if name is None or name == RSQUARE:
            return self._rsquare(subject)
        members = [one for one in self.layout.regions(subject) if one.partition("/")[0] == name]
        if members:
            regions = self.regions(subject)
            found: np.ndarray = np.logical_or.reduce([regions[one] for one in members])
            return found
        path = self.layout.brain(subject) if name == BRAIN else self._region(subject, name)
        return voxel_mask(labelled(self._volume(subject, path, "a mask on the grid of the betas")))

    def _rsquare(self, subject: str) -> np.ndarray:
        volume = self._volume(subject, self.layout.rsquare(subject), "the mean R2 over sessions")
        mask: np.ndarray = (volume.data != 0) & ~np.isnan(volume.data)
        if not mask.any():
            raise InputError(
                volume.path,
                found="no voxel with another R2 than 0",
                expected="the mean R2 over sessions, 0 outside the brain",
                meaning="No voxel is in the mask.",
                action="fetch the file again, or choose `dataset.mask: brain`",
            )
        return mask

    def _region(self, subject: str, name: str) -> AnyPath:
        files = self.layout.regions(subject)
        category, _, label = name.rpartition("/")
        asked = one_spelling(label)
        found = [one for one in files if one.rpartition("/")[2] == asked and category in ("", one.rpartition("/")[0])]
        if len(found) == 1:
            return files[found[0]]
        raise InputError(
            f"{self.layout.rois}, {subject}",
            found=f"{name!r} in more than one category: {listed(found)}" if found else f"no mask or region {name!r}",
            expected=f"one of {listed([BRAIN, RSQUARE, *files], _MOST_NAMES)}",
            action="write the region with its category" if found else "choose one that is there, or fetch its file",
        )

    def regions(self, subject: str) -> Mapping[str, np.ndarray]:
        """Every region on the grid of the betas by `category/NAME`; none where no file of one was fetched."""
        grids, masks = [self.grid(subject)], {}
        for name, path in self.layout.regions(subject).items():
            volume = labelled(read_volume(path, f"the mask of {name}"))
            grids.append(volume.grid)
            masks[name] = volume.data > 0
        check_same_grid(grids, subject)
        return masks

    def region_names(self, subject: str) -> Sequence[str]:
        """The names of `regions`, from the names of the files."""
        self.sessions(subject)
        return list(self.layout.regions(subject))

    def known_regions(self, subject: str) -> Sequence[str]:
        """The names of `regions`."""
        return self.region_names(subject)

    def grids(self, subject: str, sessions: Sequence[str]) -> Sequence[Grid]:
        """Of the betas of these sessions; masks, regions and noise ceilings are compared where they are read."""
        return [self.grid(subject), *(self._open(subject, session).grid for session in sessions)]

    def noise_ceiling(self, subject: str) -> NoiseCeiling | None:
        """Percent, of the mean over as many repeats as `dataset.options.noise_ceiling` says; None where it is null."""
        which = self.options.noise_ceiling
        if which is None:
            return None
        volume = self._volume(subject, self.layout.noise_ceiling(subject, which), f"the noise ceiling {which}")
        beyond = ~np.isnan(volume.data) & ~((volume.data >= 0) & (volume.data <= 100))
        if beyond.any():
            raise InputError(
                volume.path,
                found=f"{counted(int(beyond.sum()), 'value')} beyond percent, the first {volume.data[beyond][0]:g}",
                expected="percent, 0 to 100, or NaN",
                action="fetch the file again",
            )
        return NoiseCeiling(volume.data, "percent", _REPEATS.get(which, self.options.noise_ceiling_repeats))

    def _volume(self, subject: str, path: AnyPath, what: str) -> Volume:
        """A volume on the grid of the subject's betas. Raises InputError for one on another."""
        volume = read_volume(path, what)
        check_same_grid([self.grid(subject), volume.grid], subject)
        return volume

    def betas(self, subject: str, session: str, mask: np.ndarray) -> SessionBetas:
        """float32 percent. Valid is what is a number, in voxels that are not the same in every trial of the session;
        outside the brain the files have zeros or NaN.
        """
        self._fitting_trials(subject, session)
        opened = self._open(subject, session)
        check_same_grid([self.grid(subject), opened.grid], subject)
        return measured(opened.read_masked(mask), opened.path)


def _owner(name: str) -> str | None:
    """The subject that alone was to see a stimulus, None where its name does not say."""
    match = re.search(r"_(p\d\d)\.[^.]+$", name)
    return None if match is None else _OWNERS.get(match[1])
