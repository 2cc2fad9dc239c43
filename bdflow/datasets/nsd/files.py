"""NSD's own files: betas, design, ROI masks, noise ceiling, stimuli and captions (Allen et al. 2022).

Layout and content: the NSD data manual. Every count (subjects, trials, stimuli, voxels) comes from the
files. What cannot be used raises `bdflow.errors.InputError`, naming the file.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from bdflow.datasets.formats.betas import BetaSession, open_session
from bdflow.datasets.formats.volumes import Volume, labelled, read_validity, read_volume
from bdflow.datasets.nsd.design import Design, subject_index
from bdflow.datasets.nsd.stimuli import Captions, Stimuli, missing
from bdflow.errors import InputError, listed
from bdflow.stores.casts import misfits
from bdflow.stores.paths import AnyPath, place

PREPARATION = "betas_fithrf_GLMdenoise_RR"
SPACE = "func1pt8mm"
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
STIM_INFO = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
CAPTIONS = "COCO_73k_annots_curated.npy"
ENDINGS = {"auto": (".nii.gz", ".hdf5"), "nii.gz": (".nii.gz",), "hdf5": (".hdf5",)}
"""By `betas_format`, how files of betas end, in the order in which they are taken."""

ROI_LABELS: dict[str, tuple[str, ...]] = {
    "nsdgeneral": ("nsdgeneral",),
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "prf-eccrois": ("ecc0pt5", "ecc1", "ecc2", "ecc4", "ecc4+"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
}


def roi_labels(name: str) -> dict[int, str]:
    """Names of the labels 1.. in NSD's ROI file `name`, as its colour tables give them. Raises InputError."""
    if name not in ROI_LABELS:
        raise InputError(
            f"ROI {name!r}",
            found="a collection whose labels are not known here",
            expected=", ".join(ROI_LABELS),
            action="use one of these, or the label numbers.",
        )
    return dict(enumerate(ROI_LABELS[name], start=1))


class NSD:
    """The Natural Scenes Dataset below one folder, or any dataset in the same files and folders.

    Parameters
    ----------
    root : the folder that holds ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``, or its URL in an object
        store; files are then streamed from there.
    preparation : version of the betas, a folder's name.
    space : ``func1pt8mm`` or ``func1mm``.
    betas_format : ``nii.gz``, ``hdf5``, or ``auto`` (whichever is there; ``nii.gz`` where both are).
    captions : the captions' file, if it is not ``COCO_73k_annots_curated.npy`` at the root.
    """

    def __init__(
        self,
        root: str | AnyPath,
        *,
        preparation: str = PREPARATION,
        space: str = SPACE,
        betas_format: str = "auto",
        captions: str | AnyPath | None = None,
    ) -> None:
        self.root = place(root)
        if not self.root.is_dir():
            raise missing(self.root, "the folder that holds nsddata, nsddata_betas and nsddata_stimuli")
        if betas_format not in ENDINGS:
            raise InputError(
                "betas_format",
                found=repr(betas_format),
                expected=", ".join(ENDINGS),
                action="use one of these.",
            )
        self.preparation, self.space = preparation, space
        self._endings = ENDINGS[betas_format]
        self.design_path = self.root / DESIGN
        self.stimuli_path = self.root / STIMULI
        self.captions_path = place(captions) if captions is not None else self.root / CAPTIONS

    def design(self) -> Design:
        """The experimental design. Raises InputError."""
        return Design.read(self.design_path)

    def subjects(self) -> list[str]:
        """Subjects with betas on disk, ascending."""
        found = self.root.glob(f"nsddata_betas/ppdata/subj*/{self.space}/{self.preparation}")
        return sorted(path.parents[1].name for path in found)

    def betas_folder(self, subject: str) -> AnyPath:
        """Where a subject's betas are."""
        subject_index(subject)
        return self.root / "nsddata_betas/ppdata" / subject / self.space / self.preparation

    def session_path(self, subject: str, session: int) -> AnyPath:
        """The file of a session (counted from 1). Raises InputError if there is none."""
        folder = self.betas_folder(subject)
        paths = [folder / f"betas_session{session:02d}{ending}" for ending in self._endings]
        for path in paths:
            if path.is_file():
                return path
        raise missing(paths[0], f"the betas of {subject}, session {session}")

    def sessions(self, subject: str) -> list[int]:
        """Sessions of a subject present on disk, counted from 1, ascending."""
        names = [path.name for path in self.betas_folder(subject).glob("betas_session*")]
        stems = [name.removesuffix(ending) for name in names for ending in self._endings if name.endswith(ending)]
        numbers = {stem.removeprefix("betas_session") for stem in stems}
        return sorted(int(number) for number in numbers if number.isdecimal())

    def check_sessions(self, subject: str, sessions: int | Sequence[int]) -> list[int]:
        """Sessions 1 to `sessions`, or those listed; InputError naming every missing file if one is not there."""
        wanted = list(range(1, sessions + 1)) if isinstance(sessions, int) else sorted(sessions)
        present = set(self.sessions(subject))
        folder, ending = self.betas_folder(subject), self._endings[0]
        missing = [f"betas_session{n:02d}{ending}" for n in wanted if n not in present]
        if missing or not wanted:
            raise InputError(
                folder,
                found=f"no {', '.join(missing)}" if missing else f"sessions: {sessions}",
                expected=f"sessions {_runs(wanted)} of {subject}" if missing else "1 session or more",
                action="fetch what is missing, or set `dataset.sessions` to what there is "
                f"({_runs(present)}): a number, a list such as {sorted(present)[:3]}, or either by subject.",
            )
        return wanted

    def open_session(self, subject: str, session: int) -> BetaSession:
        """The betas of a session, to be streamed; only the header is read now. Raises InputError."""
        return open_session(self.session_path(subject, session))

    def trials_per_session(self, subject: str, sessions: int | Sequence[int]) -> int:
        """Trials in each of a subject's sessions 1 to `sessions`, or of those listed, from the headers alone
        (NSD: 750).

        The number most sessions have; InputError names one that has another number of trials or another
        volume shape, and says so if the design is not a whole number of such sessions or is shorter than
        these.
        """
        numbers = self.check_sessions(subject, sessions)
        opened = [self.open_session(subject, n) for n in numbers]
        trials = Counter(s.n_trials for s in opened).most_common(1)[0][0]
        shape = Counter(s.shape for s in opened).most_common(1)[0][0]
        for number, session in zip(numbers, opened, strict=True):
            for what, found, usual in (("trials", session.n_trials, trials), ("shape", session.shape, shape)):
                if found != usual:
                    raise InputError(
                        f"{session.path}, session {number} of {subject}",
                        found=f"{what}: {found}",
                        expected=f"{usual}, as in the other sessions",
                        meaning="Trials and stimuli of this session cannot be matched.",
                        action="fetch the file again, or leave this session out: list the others in "
                        "`dataset.sessions`.",
                    )
        design = self.design()
        if design.n_trials % trials or trials * max(numbers) > design.n_trials:
            raise InputError(
                f"{opened[0].path.parent}, sessions {_runs(numbers)}",
                found=f"{trials} trials a session",
                expected=f"a whole fraction of the {design.n_trials} trials of the design, and a place for each",
                meaning="Trials and stimuli cannot be matched.",
                action=f"use betas and {design.path.name} of one dataset.",
            )
        return trials

    def roi_names(self, subject: str) -> list[str]:
        """ROI volumes of a subject on disk, without those of single hemispheres."""
        names = sorted(path.name.removesuffix(".nii.gz") for path in self._roi_folder(subject).glob("*.nii.gz"))
        return [name for name in names if not name.startswith(("lh.", "rh."))]

    def roi(self, subject: str, name: str) -> Volume:
        """An ROI volume. Raises InputError for a missing or damaged file, or values that are not labels."""
        path = self._roi_folder(subject) / f"{name}.nii.gz"
        if not path.is_file():
            raise missing(path, f"the ROI {name} of {subject}", f"; there are {listed(self.roi_names(subject), 24)}")
        return labelled(read_volume(path))

    def ncsnr(self, subject: str) -> np.ndarray:
        """Noise-ceiling SNR per voxel, (x, y, z) float32; raises as `ncsnr_volume`."""
        return self.ncsnr_volume(subject).data

    def ncsnr_volume(self, subject: str) -> Volume:
        """Noise-ceiling SNR per voxel, float32: SD of the signal over SD of one trial's noise; 0 where there is no
        signal, not a number where it is not known.

        Raises InputError for a missing or damaged file, negative and infinite values.
        """
        volume = read_volume(self.betas_folder(subject) / "ncsnr.nii.gz")
        bad = (volume.data < 0) | np.isinf(volume.data) | misfits(volume.data, np.float32)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            raise InputError(
                volume.path,
                found=f"{volume.data[at]:g} at {at}",
                expected="a ratio of standard deviations: 0 or more, or not a number",
                action="fetch the file again.",
            )
        return replace(volume, data=volume.data.astype(np.float32))

    def valid(self, subject: str, session: int) -> Volume | None:
        """Whether a session (counted from 1) measured each voxel, bool; None where there is no such file.

        Raises InputError for a damaged file.
        """
        return read_validity(self.valid_path(subject, session))

    def valid_path(self, subject: str, session: int) -> AnyPath:
        """The file that says which voxels a session (counted from 1) measured; it need not be there."""
        subject_index(subject)
        return self.root / "nsddata/ppdata" / subject / self.space / f"valid_session{session:02d}.nii.gz"

    def stimuli(self) -> Stimuli:
        """The stimulus images; use as a context manager. Raises InputError."""
        return Stimuli(self.stimuli_path)

    def captions(self) -> Captions:
        """The captions of the stimuli. Raises InputError, also where they are not as many as the stimuli."""
        with self.stimuli() as stimuli:
            return Captions(self.captions_path, count=stimuli.count)

    def _roi_folder(self, subject: str) -> AnyPath:
        subject_index(subject)
        return self.root / "nsddata/ppdata" / subject / self.space / "roi"


def _runs(numbers: Iterable[int]) -> str:
    """1, 2, 3, 5 -> '1-3, 5'."""
    ordered = sorted(numbers)
    if not ordered:
        return "none"
    runs = np.split(np.asarray(ordered), np.flatnonzero(np.diff(ordered) > 1) + 1)
    return ", ".join(f"{r[0]}-{r[-1]}" if r.size > 1 else str(r[0]) for r in runs)
