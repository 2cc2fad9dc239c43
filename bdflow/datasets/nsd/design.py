"""NSD's experimental design, and the split of its stimuli into test and train.

Sources: the NSD data manual on ``nsd_expdesign.mat``; the paper's split, Ozcelik & VanRullen 2023.
"""

import re
from dataclasses import dataclass

import numpy as np

from bdflow.datasets.formats.hdf5 import OpenFile
from bdflow.errors import InputError, counted
from bdflow.stores.casts import misfits
from bdflow.stores.errors import StoreError
from bdflow.stores.paths import AnyPath, place, readable

_KEYS = ("masterordering", "subjectim", "sharedix")


def subject_index(subject: str) -> int:
    """``subj01`` -> 1, NSD's number of a subject. Raises InputError for any other form of name."""
    match = re.fullmatch(r"subj(\d\d)", subject) if isinstance(subject, str) else None
    if match is None or int(match[1]) < 1:
        raise InputError(
            f"subject {subject!r}",
            found="a name NSD does not use",
            expected="subj01, subj02, ...",
            action="write the subject as NSD names its folders.",
        )
    return int(match[1])


@dataclass(frozen=True)
class Design:
    """Which stimulus each subject saw on each trial.

    Attributes
    ----------
    masterordering : (trials,) 1-based positions in a subject's list of stimuli, the same for all subjects;
        positions up to ``n_shared`` are the shared stimuli.
    subjectim : (subjects, positions) 1-based stimulus numbers (nsd_id + 1).
    sharedix : (n_shared,) 1-based numbers of the stimuli shown to every subject.
    path : the file they came from.
    """

    masterordering: np.ndarray
    subjectim: np.ndarray
    sharedix: np.ndarray
    path: AnyPath

    def __post_init__(self) -> None:
        n_subjects, n_positions = self.subjectim.shape
        self._check_range("masterordering", self.masterordering, n_positions)
        self._check_range("subjectim", self.subjectim, None)
        self._check_range("sharedix", self.sharedix, None)
        for row in range(n_subjects):
            if np.unique(self.subjectim[row]).size != n_positions:
                raise InputError(
                    f"{self.path}, subjectim row {row + 1}",
                    found="a stimulus listed twice",
                    expected="every stimulus of a subject once",
                    action="use NSD's own nsd_expdesign.mat.",
                )
        shared = self.subjectim[:, : self.n_shared]
        if shared.shape[1] < self.n_shared or (np.sort(shared, axis=1) != np.sort(self.sharedix)).any():
            raise InputError(
                f"{self.path}, sharedix",
                found=f"{self.n_shared} shared stimuli that are not the first of every subject's list",
                expected="the first positions of subjectim to hold the stimuli of sharedix for all subjects",
                meaning="Test and training stimuli could not be told apart.",
                action="use NSD's own nsd_expdesign.mat.",
            )

    @classmethod
    def read(cls, path: str | AnyPath) -> "Design":
        """Read ``nsd_expdesign.mat`` as MATLAB writes it, also as version 7.3 (HDF5).

        Raises InputError for a missing file or key, impossible indices.
        """
        import scipy.io

        path = place(path)
        if not path.is_file():
            raise InputError(
                path,
                found="no such file",
                expected="NSD's experimental design",
                action="fetch nsd_expdesign.mat into this folder, or check the NSD root.",
            )
        try:
            content = _hdf5(path) if _is_hdf5(path) else scipy.io.loadmat(readable(path), variable_names=_KEYS)
        except (StoreError, InputError):
            raise
        except Exception as error:
            raise InputError(
                path,
                found=f"a file that is not readable as MATLAB's ({type(error).__name__}: {error})",
                expected="NSD's nsd_expdesign.mat",
                action="fetch the file again.",
            ) from error
        missing = [key for key in _KEYS if key not in content]
        if missing:
            raise InputError(
                path,
                found=f"a file with no {', no '.join(missing)}",
                expected=f"the arrays {', '.join(_KEYS)}",
                action="use NSD's own nsd_expdesign.mat",
            )
        arrays = {key: _integers(path, key, content[key]) for key in _KEYS}
        return cls(arrays["masterordering"].ravel(), arrays["subjectim"], arrays["sharedix"].ravel(), path)

    @property
    def n_trials(self) -> int:
        """Trials of the whole design (NSD: 30,000)."""
        return self.masterordering.size

    @property
    def n_shared(self) -> int:
        """Stimuli shown to every subject (NSD: 1,000)."""
        return self.sharedix.size

    def nsd_ids(self, subject: str, trials: int | np.ndarray) -> np.ndarray:
        """0-based stimulus of a subject's first `trials` trials, or of the trials listed (counted from 0), int64.
        Raises InputError.
        """
        chosen = np.arange(trials) if isinstance(trials, (int, np.integer)) else trials
        self._check_trials(int(chosen.max(initial=-1)) + 1)
        index = subject_index(subject)
        if index > len(self.subjectim):
            raise InputError(
                f"{self.path}, subject {subject}",
                found=f"a design of {counted(len(self.subjectim), 'subject')}",
                expected=f"a row for {subject}",
                action=f"choose among subj01 to subj{len(self.subjectim):02d} in `subjects`",
            )
        found: np.ndarray = self.subjectim[index - 1, self.masterordering[chosen] - 1] - 1
        return found

    def is_shared(self, n_trials: int) -> np.ndarray:
        """Whether each of the first `n_trials` trials shows a shared stimulus, (n_trials,) bool."""
        self._check_trials(n_trials)
        return self.masterordering[:n_trials] <= self.n_shared

    def check_stimuli(self, count: int) -> None:
        """Raise InputError if a subject saw a stimulus outside the `count` stimuli there are."""
        self._check_range("subjectim", self.subjectim, count, "stimuli in the stimulus file")

    def _check_trials(self, n_trials: int) -> None:
        if not 0 < n_trials <= self.n_trials:
            raise InputError(
                self.path,
                found=f"a design of {self.n_trials} trials",
                expected=f"a place for each of the {n_trials} trials of the sessions",
                meaning="Betas and design do not belong together.",
                action="use the design and the betas of one dataset.",
            )

    def _check_range(self, key: str, values: np.ndarray, upper: int | None, of: str = "positions") -> None:
        low, high = int(values.min()), int(values.max())
        if low < 1 or (upper is not None and high > upper):
            limit = "1 or more" if upper is None else f"1 to {upper} ({of})"
            raise InputError(
                f"{self.path}, {key}",
                found=f"numbers from {low} to {high}",
                expected=f"{limit}; NSD counts from 1",
                action="use design and stimuli of one dataset, the numbers as NSD ships them.",
            )


def _is_hdf5(path: AnyPath) -> bool:
    """Whether HDF5's signature is at the start, or after the 512 bytes of text that MATLAB 7.3 writes first."""
    with path.open("rb") as file:
        start = file.read(520)
    return b"\x89HDF\r\n\x1a\n" in (start[:8], start[512:])


def _hdf5(path: AnyPath) -> dict[str, np.ndarray]:
    """The arrays of a file of version 7.3, which has MATLAB's axes reversed."""
    with OpenFile(path, expected="NSD's nsd_expdesign.mat", action="fetch the file again.") as file:
        found = {key: dataset for key in _KEYS if (dataset := file.dataset(key)) is not None}
        return {key: np.asarray(dataset).T for key, dataset in found.items()}


def _integers(path: AnyPath, key: str, values: np.ndarray) -> np.ndarray:
    numbers = np.asarray(values)
    kind, found = numbers.dtype.kind, f"{numbers.dtype} of shape {numbers.shape}"
    whole = kind in "iuf" and numbers.ndim == 2 and numbers.size > 0
    if whole and (bad := misfits(numbers, np.int32)).any():
        whole, found = False, f"{numbers.dtype} values such as {numbers[bad][0]:.10g}"
    if not whole:
        raise InputError(
            f"{path}, {key}",
            found=found,
            expected="a matrix of whole numbers",
            action="use NSD's own nsd_expdesign.mat.",
        )
    if key != "subjectim" and 1 not in numbers.shape:
        raise InputError(
            f"{path}, {key}",
            found=f"shape {numbers.shape}",
            expected="one row",
            action="use NSD's own nsd_expdesign.mat.",
        )
    return numbers.astype(np.int64)
