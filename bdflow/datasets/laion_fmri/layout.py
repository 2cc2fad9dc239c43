"""Where the files of LAION-fMRI's launch release lie."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from bdflow.datasets.formats.identity import missing
from bdflow.errors import InputError, listed
from bdflow.stores.paths import AnyPath

BETAS = "_task-images_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
TRIALS = "_task-images_desc-SingletrialBetas_trials.tsv"


class Layout:
    """Paths of files, and what folders hold. Only methods that list folders look at the disk.

    Parameters
    ----------
    root : folder that holds `derivatives`.
    stimuli : folder of the stimulus files; None: `stimuli` below the root.
    """

    def __init__(self, root: AnyPath, stimuli: AnyPath | None) -> None:
        self.glmsingle = root / "derivatives/glmsingle-tedana"
        self.anatomical = root / "derivatives/anatomical"
        self.rois = root / "derivatives/rois"
        self.stimuli = root / "stimuli" if stimuli is None else stimuli

    # --- subjects and sessions ----------------------------------------------------------------------------------

    def subjects(self) -> list[str]:
        """Subjects with betas of at least one session. Raises NotAtHand where there is no folder of them."""
        if not self.glmsingle.is_dir():
            raise missing(self.glmsingle, "the folder of LAION-fMRI's betas")
        names = ordered(folder.name for folder in self.glmsingle.glob("sub-*"))
        return [name for name in names if next(self._with(name, BETAS), None) is not None]

    def sessions(self, subject: str) -> list[str]:
        """Sessions of a subject whose betas are there, in the order of their numbers."""
        return ordered(self._with(subject, BETAS))

    def sessions_with_trials(self, subject: str) -> list[str]:
        """Sessions of a subject whose table of trials is there, with or without betas."""
        return ordered(self._with(subject, TRIALS))

    def _with(self, subject: str, suffix: str) -> Iterator[str]:
        for folder in (self.glmsingle / subject).glob("ses-*"):
            func = folder / "func"
            found = [file.name for file in below(func, f"*{suffix}")]
            expected = f"{subject}_{folder.name}{suffix}"
            if found and found != [expected]:
                raise InputError(
                    func,
                    found=f"the files {listed(found)}",
                    expected=f"{expected} alone, as the folders are named",
                    meaning="It is not plain whose trials these are.",
                    action="move the others away, or fetch the folder again",
                )
            if found:
                yield folder.name

    def betas(self, subject: str, session: str) -> AnyPath:
        return self._func(subject, session) / f"{subject}_{session}{BETAS}"

    def trials(self, subject: str, session: str) -> AnyPath:
        return self._func(subject, session) / f"{subject}_{session}{TRIALS}"

    def _func(self, subject: str, session: str) -> AnyPath:
        return self.glmsingle / subject / session / "func"

    # --- volumes ------------------------------------------------------------------------------------------------

    def rsquare(self, subject: str) -> AnyPath:
        """Mean R2 of GLMsingle's model over sessions."""
        return self.glmsingle / subject / f"{subject}_task-images_space-T1w_stat-rsquare_desc-R2mean_statmap.nii.gz"

    def noise_ceiling(self, subject: str, which: str) -> AnyPath:
        name = f"{subject}_task-images_space-T1w_desc-Noiseceiling{which}_statmap.nii.gz"
        return self.glmsingle / subject / name

    def brain(self, subject: str) -> AnyPath:
        """The anatomical brain mask on the grid of the betas; the file without `res` is finer."""
        folder = self.anatomical / subject / "ses-PrismaAnat/anat"
        return folder / f"{subject}_ses-PrismaAnat_space-T1w_res-1pt8_desc-brain_mask.nii.gz"

    def regions(self, subject: str) -> dict[str, AnyPath]:
        """Masks of regions on the grid of the betas, by `category/NAME`; NAME without hyphens, as the dataset's own
        package spells it. Raises InputError where two files of a category are one name.
        """
        start, end = f"{subject}_space-T1w_res-1pt8_label-", "_mask.nii.gz"
        found: dict[str, AnyPath] = {}
        for path in below(self.rois / subject, f"*/{start}*{end}"):
            name = f"{path.parent.name}/{one_spelling(path.name[len(start) : -len(end)])}"
            if name in found:
                raise InputError(
                    path.parent,
                    found=f"two files of {name}: {found[name].name} and {path.name}",
                    expected="one file for each region; hyphens in its name do not count",
                    action="move the one away that you do not want",
                )
            found[name] = path
        return dict(sorted(found.items()))


def below(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """What lies below a folder and matches, in the order of its path; nothing where there is no folder."""
    found: list[AnyPath] = list(folder.glob(pattern))
    return sorted(found, key=str)


def one_spelling(label: str) -> str:
    """A region's name without hyphens: FFA-1 and FFA1 are one."""
    return label.replace("-", "")


def ordered(names: Iterable[str]) -> list[str]:
    """Names by the numbers in them: ses-2 before ses-10."""
    return sorted(names, key=_parts)


def _parts(name: str) -> list[tuple[int, str]]:
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
