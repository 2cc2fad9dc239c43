"""`GLMsingle`, the dataset of a lab: betas of GLMsingle, and tables that say what was shown."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from bdflow.config import DatasetSettings
from bdflow.datasets.contract import Encoding, NoiseCeiling, SessionBetas, Split, Trials, Units
from bdflow.datasets.formats.betas import NiftiSession
from bdflow.datasets.formats.grids import Grid, check_same_grid
from bdflow.datasets.formats.options import options
from bdflow.datasets.formats.values import measured
from bdflow.datasets.glmsingle import trials as tables
from bdflow.datasets.glmsingle.options import KIND, VOLUMES, GLMsingleSettings
from bdflow.datasets.glmsingle.patterns import Pattern, absent, natural, option, several
from bdflow.datasets.glmsingle.sessions import HDF5, NPY, FitMask, FitSession
from bdflow.datasets.glmsingle.sidecars import UNITS, sidecar, sidecar_path, unit_in
from bdflow.datasets.glmsingle.stimuli import Stimuli
from bdflow.datasets.glmsingle.volumes import RegionFile, read_ceiling, read_mask, read_regions, region_files, volume
from bdflow.errors import InputError, listed
from bdflow.stores.paths import AnyPath, place

log = logging.getLogger(__name__)

ENDINGS = (NPY, *HDF5, *VOLUMES)
ONLY = "session"
"""Name of a subject's session where the pattern of betas has no word for it."""


class _Space(NamedTuple):
    grid: Grid
    form: int


class GLMsingle:
    """`bdflow.datasets.contract.Dataset` of a lab's own data: GLMsingle's output in a BIDS tree, or any betas of single
    trials that patterns and tables describe (docs/glmsingle.md).

    Nothing is read before a method is called. Every method raises InputError where files are missing, damaged or
    contradict one another, naming them.

    Parameters
    ----------
    settings : `root`; `captions`, a table elsewhere than `options.captions`; `options`, of `GLMsingleSettings`.
    """

    default_mask: str | None = None
    looks_at = ("captions",)

    def __init__(self, settings: DatasetSettings) -> None:
        self.root = place(settings.root)
        self.settings = options(GLMsingleSettings, settings.options, KIND)
        captions = None if self.settings.captions is None else self.root / self.settings.captions
        elsewhere = None if settings.captions is None else place(settings.captions)
        self._stimuli = Stimuli(self.root, self.settings, elsewhere or captions)
        self._spaces: dict[str, _Space] = {}

    # --- stimuli ----------------------------------------------------------------------------------------------

    def stimuli(self) -> Sequence[str]:
        """Id of every stimulus of the table that has a picture, in its order."""
        return list(self._stimuli.ids)

    def picture_shape(self) -> tuple[int, int]:
        """Height and width of the first picture; others may have another size."""
        if not self._stimuli.ids:
            raise InputError(
                self._stimuli.path,
                found="no stimulus with a picture",
                expected="1 or more",
                action=f"correct the table, or name the column with files by {option('file_column')}",
            )
        height, width, _ = self._stimuli.picture(self._stimuli.ids[0]).shape
        return height, width

    def pictures(self, stimuli: Sequence[str]) -> Sequence[np.ndarray]:
        """The picture of each stimulus, (y, x, 3) uint8, each in its own size."""
        return [self._stimuli.picture(stimulus) for stimulus in stimuli]

    def captions(self, stimuli: Sequence[str]) -> Sequence[Sequence[str]]:
        """Captions of each stimulus in the order of their table; none is allowed."""
        self._stimuli.check(stimuli)
        return [list(self._stimuli.captions[stimulus]) for stimulus in stimuli]

    def captions_per_stimulus(self) -> int:
        """The most captions that a stimulus has."""
        return max((len(found) for found in self._stimuli.captions.values()), default=0)

    def splits(self) -> Mapping[str, Split]:
        """The splits that columns of the table of stimuli state, by the column's name."""
        return self._stimuli.splits()

    def content(self) -> Mapping[str, Mapping[str, object]]:
        """The options: which columns and rows of tables mean what, units, the order of a fit; how pictures are read."""
        given = self.settings.model_dump(mode="json")
        return {"stimuli": {**given, "read_pictures": self._stimuli.method}, "betas": given}

    def stimulus_files(self) -> Mapping[str, AnyPath]:
        """The tables of stimuli and captions, and every picture."""
        found = {"stimuli": self._stimuli.path}
        if self._stimuli.captions_path is not None:
            found["captions"] = self._stimuli.captions_path
        return found | {f"picture {stimulus}": self._stimuli.picture_path(stimulus) for stimulus in self._stimuli.ids}

    # --- subjects ---------------------------------------------------------------------------------------------

    @cached_property
    def _betas(self) -> dict[str, dict[str, list[AnyPath]]]:
        """Files of betas by subject and session; of each session those of the first pattern that has any."""
        if not self.root.is_dir():
            raise absent(self.root, "the folder of the dataset", "betas")
        found: dict[str, dict[str, list[AnyPath]]] = {}
        for text in self.settings.betas:
            here: dict[str, dict[str, list[AnyPath]]] = {}
            for file in Pattern("betas", text).find(self.root):
                if file.path.name.endswith(ENDINGS):
                    sessions = here.setdefault(file.values["subject"], {})
                    sessions.setdefault(file.values.get("session", ONLY), []).append(file.path)
            for subject, sessions in here.items():
                found[subject] = sessions | found.get(subject, {})
        if not found:
            what = (
                f"files of betas that fit {listed(self.settings.betas)}, with one of the endings {', '.join(ENDINGS)}"
            )
            raise absent(self.root, what, "betas")
        return found

    def subjects(self) -> Sequence[str]:
        """Every subject with a file of betas, `sub-2` before `sub-10`."""
        return sorted(self._betas, key=natural)

    def sessions(self, subject: str) -> Sequence[str]:
        """Every session of a subject that has a file of betas, `ses-2` before `ses-10`: as names go, so must time."""
        return sorted(self._of_subject(subject), key=natural)

    def _of_subject(self, subject: str) -> dict[str, list[AnyPath]]:
        if subject not in self._betas:
            raise InputError(
                f"{self.root}, subject {subject}",
                found="no file of betas of this subject",
                expected=f"one of the subjects {listed(self.subjects())}",
                action=f"correct the name, or the pattern of betas ({option('betas')})",
            )
        return self._betas[subject]

    def _beta_path(self, subject: str, session: str) -> AnyPath:
        files = self._of_subject(subject).get(session, [])
        if not files:
            raise InputError(
                f"{self.root}, {subject}, session {session}",
                found="no file of betas of this session",
                expected=f"one of the sessions {listed(self.sessions(subject))}",
                action=f"correct the name, or the pattern of betas ({option('betas')})",
            )
        if len(files) > 1:
            text = next(
                text
                for text in self.settings.betas
                if Pattern("betas", text, {"subject": subject, "session": session}).find(self.root)
            )
            raise several(f"{self.root}, {subject}, session {session}", files, Pattern("betas", text))
        return files[0]

    def _of_session(self, name: str, subject: str, session: str) -> Pattern | None:
        text = getattr(self.settings, name)
        return None if text is None else Pattern(name, text, {"subject": subject, "session": session})

    def _optional(self, name: str, subject: str, session: str) -> AnyPath | None:
        """A file that is used where it is there, and must be there where the configuration names it."""
        pattern = self._of_session(name, subject, session)
        if pattern is None:
            return None
        return (
            pattern.need(self.root, f"`{name}` of the session") if self.settings.said(name) else pattern.one(self.root)
        )

    # --- trials -----------------------------------------------------------------------------------------------

    @cached_property
    def _tables(self) -> tables.TrialTables:
        return tables.TrialTables(self.settings, self._stimuli.cells)

    def trials(self, subject: str, sessions: Sequence[str] | None = None) -> Trials:
        """Every trial of sessions that have betas. Tables, betas and the fit's own design must agree."""
        sessions = list(self.sessions(subject) if sessions is None else sessions)
        found = [self._session_trials(subject, session) for session in sessions]
        counts = [len(one) for one in found]
        return Trials(
            stimulus=np.array([stimulus for one in found for stimulus in one.stimulus], dtype=np.str_),
            session=np.repeat(np.array(sessions, dtype=np.str_), counts),
            run=np.array([run for one in found for run in one.run], np.int32),
            index=np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
            condition=np.array([condition for one in found for condition in one.condition], dtype=np.str_),
        )

    def _session_trials(self, subject: str, session: str) -> tables.SessionTrials:
        opened = self._open(subject, session)
        pattern = Pattern("trials", self.settings.trials, {"subject": subject, "session": session})
        files = pattern.find(self.root)
        if not files:
            raise absent(self.root / pattern.text, "the table of the session's trials", "trials")
        found = self._tables.read(files)
        tables.check_count(found, opened.n_trials, opened.path)
        design_path = self._optional("design", subject, session)
        design = None if design_path is None else tables.read_design(design_path)
        conditions_path, conditions = self._optional("conditions", subject, session), None
        if conditions_path is not None and self.settings.fit_condition_column is not None:
            conditions = tables.read_conditions(conditions_path, self.settings)
        if design is not None:
            tables.check_design(found, design, conditions)
        numbers = found.fitted if found.fitted is not None or design is None else design.stimorder
        if conditions is not None and conditions_path is not None and numbers is not None:
            tables.check_conditions(found, numbers, conditions, conditions_path)
        return found

    def seen(self, subject: str) -> frozenset[str]:
        """Every stimulus in the subject's tables of trials, also of sessions without betas."""
        self._of_subject(subject)
        by_session: dict[str, list[tables.Found]] = {}
        for file in Pattern("trials", self.settings.trials, {"subject": subject}).find(self.root):
            by_session.setdefault(file.values.get("session", ONLY), []).append(file)
        found = {stimulus for files in by_session.values() for stimulus in self._tables.read(files).stimulus}
        return frozenset(found - {""})

    def beta_files(self, subject: str, sessions: Sequence[str]) -> Mapping[str, AnyPath]:
        """Betas, tables and designs of these sessions; the subject's masks, regions and noise ceiling; and the JSON
        sidecars of those that have some.
        """
        found: dict[str, AnyPath] = {}
        for session in sessions:
            found[f"betas {session}"] = self._beta_path(subject, session)
            pattern = Pattern("trials", self.settings.trials, {"subject": subject, "session": session})
            for file in pattern.find(self.root):
                run = file.values.get("run")
                found[f"trials {session}" + ("" if run is None else f" run {run}")] = file.path
            for name in ("design", "conditions"):
                path = self._optional(name, subject, session)
                if path is not None:
                    found[f"{name} {session}"] = path
        for name in ("mask", "fit_mask", "noise_ceiling"):
            path = self._of_the_subject(name, subject)
            if path is not None:
                found[name.replace("_", " ")] = path
        for regions in self._region_files(subject):
            one = f" {next(iter(regions.labels.values()))}" if regions.table is None else ""
            found[f"regions {regions.collection}{one}"] = regions.path
            if regions.table is not None:
                found[f"names of regions {regions.collection}"] = regions.table
        sidecars = {f"sidecar of {name}": sidecar_path(path) for name, path in found.items()}
        return found | {name: path for name, path in sidecars.items() if path.is_file()}

    # --- voxels -----------------------------------------------------------------------------------------------

    def encoding(self) -> Encoding:
        """float32, in the unit that all sessions share."""
        return Encoding("float32", self._units)

    @cached_property
    def _units(self) -> Units:
        said: dict[Units, AnyPath] = {}
        for subject in self.subjects():
            for session in self.sessions(subject):
                unit = self._unit(subject, session)
                if unit is not None:
                    said.setdefault(unit, self._beta_path(subject, session))
        chosen = self.settings.units
        if chosen is not None:
            for unit, path in said.items():
                if unit != chosen:
                    log.warning("%s: its unit is said to be %s; the configuration says %s.", path, unit, chosen)
            return chosen
        if len(said) > 1:
            raise InputError(
                listed(said.values()),
                found=f"betas in {listed(said, joint=' and ')}",
                expected="one unit in all sessions of all subjects",
                action=f"bring them to one unit, or correct what is said and set {option('units')}",
            )
        return next(iter(said))

    def _unit(self, subject: str, session: str) -> Units | None:
        """The unit that files state. Raises InputError if they state none, and the settings neither."""
        path, chosen = self._beta_path(subject, session), self.settings.units
        action = f"set {option('units')} to what they are in: {listed(dict.fromkeys(UNITS.values()))}"
        unit = unit_in(sidecar(path), UNITS, path, action, needed=chosen is None)
        if unit is not None:
            return unit
        design = self._optional("design", subject, session) if not path.name.endswith(VOLUMES) else None
        percent = None if design is None else tables.read_design(design).percent
        if percent is None and chosen is None:
            raise InputError(
                path,
                found=f"betas without a unit: {sidecar_path(path)} has no `Units`, or is not there"
                + ("" if path.name.endswith(VOLUMES) else ", and no DESIGNINFO.npy says it of the fit"),
                expected="their unit",
                action=action,
            )
        return None if percent is None else "percent signal change" if percent else "arbitrary"

    def _open(self, subject: str, session: str) -> FitSession | NiftiSession:
        path = self._beta_path(subject, session)
        return NiftiSession(path) if path.name.endswith(VOLUMES) else FitSession(path)

    def _of_the_subject(self, name: str, subject: str) -> AnyPath | None:
        self._of_subject(subject)
        text = getattr(self.settings, name)
        pattern = None if text is None else Pattern(name, text, {"subject": subject})
        if pattern is None:
            return None
        return (
            pattern.one(self.root) if name == "noise_ceiling" else pattern.need(self.root, f"the {name} of {subject}")
        )

    def _fit_mask(self, subject: str) -> FitMask | None:
        path = self._of_the_subject("fit_mask" if self.settings.fit_mask is not None else "mask", subject)
        return None if path is None else FitMask(path, read_mask(path), self.settings.fit_order)

    def _region_files(self, subject: str) -> list[RegionFile]:
        self._of_subject(subject)
        return region_files(self.root, subject, self.settings)

    def _space(self, subject: str) -> _Space:
        """The one grid of all volumes of a subject; the affine of the first that states one."""
        if subject in self._spaces:
            return self._spaces[subject]
        found: list[tuple[Grid, int]] = []
        files = [(name, self._of_the_subject(name, subject)) for name in ("mask", "fit_mask", "noise_ceiling")]
        files += [("regions", file.path) for file in self._region_files(subject)]
        for name, path in files:
            if path is not None:
                one = volume(path, "a volume", name)
                found.append((one.grid, one.form))
        for session in self.sessions(subject):
            opened = self._open(subject, session)
            if isinstance(opened, NiftiSession):
                found.append((opened.grid, opened.form))
            else:
                fitted = self._fit_mask(subject) if opened.masked is not None else None
                found.append((opened.grid(fitted), 0))
        check_same_grid([grid for grid, _ in found], subject)
        space = next((_Space(*one) for one in found if one[0].affine is not None), _Space(*found[0]))
        self._spaces[subject] = space
        return space

    def grid(self, subject: str) -> Grid:
        """Shape of the subject's volumes; the affine of the first of mask, noise ceiling, regions and betas that states
        one.
        """
        return self._space(subject).grid

    def affine_form(self, subject: str) -> int:
        """NIfTI's code of what the affine's millimetres are of; 0 where no file states an affine."""
        space = self._space(subject)
        return space.form if space.grid.affine is not None else 0

    def mask(self, subject: str, name: str | None) -> np.ndarray:
        """(x, y, z) bool of a region `collection/name`, of all regions of a `collection`, of a region by its name alone
        where one collection has it; None: of the file that the option `mask` names.
        """
        self._space(subject)
        if name is None:
            path = self._of_the_subject("mask", subject)
            if path is None:
                raise InputError(
                    f"{self.root}, {subject}",
                    found="no mask",
                    expected="one that a name or the configuration states",
                    action=f"name a region, one of {listed(self.region_names(subject))}; or set {option('mask')}",
                )
            return read_mask(path)
        chosen = self._chosen(subject, name)
        found = np.zeros(self.grid(subject).shape, bool)
        for key, voxels in self._read_regions(subject, {key.partition("/")[0] for key in chosen}):
            if key in chosen:
                found |= voxels
        if not found.any():
            raise InputError(
                f"{self.root}, {subject}, mask {name}",
                found="no voxel",
                expected="1 or more",
                meaning="This subject does not have the region",
                action=f"choose another: {listed(self.region_names(subject))}",
            )
        return found

    def _chosen(self, subject: str, name: str) -> set[str]:
        keys = list(self.region_names(subject))
        for fits in (
            [key for key in keys if key == name],
            [key for key in keys if key.partition("/")[0] == name],
            [key for key in keys if key.partition("/")[2] == name],
        ):
            if fits and (len(fits) == 1 or fits[0].partition("/")[0] == name):
                return set(fits)
            if fits:
                break
        raise InputError(
            f"{self.root}, {subject}, mask {name}",
            found=f"several regions of this name: {listed(fits)}" if fits else "no region or collection of this name",
            expected=f"one of {listed(dict.fromkeys(key.partition('/')[0] for key in keys))}, {listed(keys, 16)}"
            if keys
            else "regions",
            action=f"correct the name, or {option('regions')}",
        )

    def _read_regions(self, subject: str, collections: set[str] | None = None) -> Iterable[tuple[str, np.ndarray]]:
        for file in self._region_files(subject):
            if collections is None or file.collection in collections:
                yield from read_regions(file)

    def regions(self, subject: str) -> Mapping[str, np.ndarray]:
        """(x, y, z) bool of every region by `collection/name`; some may have no voxel in this subject."""
        self._space(subject)
        return dict(self._read_regions(subject))

    def region_names(self, subject: str) -> Sequence[str]:
        """The names of `regions`, from tables and files' names alone."""
        return [f"{file.collection}/{name}" for file in self._region_files(subject) for name in file.labels.values()]

    def known_regions(self, subject: str) -> Sequence[str]:
        """The names of `regions`."""
        return self.region_names(subject)

    def grids(self, subject: str, sessions: Sequence[str]) -> Sequence[Grid]:
        """The one grid of all volumes of a subject, which were compared."""
        return [self.grid(subject)]

    def noise_ceiling(self, subject: str) -> NoiseCeiling | None:
        """The subject's noise ceiling; None where it has no file of it."""
        path = self._of_the_subject("noise_ceiling", subject)
        if path is None:
            return None
        self._space(subject)
        return read_ceiling(path, self.settings)

    def betas(self, subject: str, session: str, mask: np.ndarray) -> SessionBetas:
        """All betas of a session in the voxels of `mask` (x, y, z) bool, in C order of (x, y, z).

        Valid is what is a number, in voxels whose betas differ between trials of the session.
        """
        opened = self._open(subject, session)
        if isinstance(opened, NiftiSession):
            return measured(opened.read_masked(mask), opened.path)
        fitted = self._fit_mask(subject) if opened.masked is not None else None
        return measured(opened.read_masked(mask, fitted), opened.path)
