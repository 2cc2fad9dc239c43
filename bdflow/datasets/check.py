"""What a dataset holds, told on one screen before anything runs: headers, tables and one session of each subject."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from bdflow.config import Config
from bdflow.datasets.ceilings import noise_ceiling
from bdflow.datasets.contract import Encoding
from bdflow.datasets.reader import Reader
from bdflow.datasets.splits import SHARED
from bdflow.errors import counted, listed

_NAMES = 40  # regions named of a collection
_WIDTH = 110
_PICTURES = 64  # looked at, evenly chosen


@dataclass(frozen=True)
class SubjectAccount:
    """What there is of one subject.

    Attributes
    ----------
    sessions : trials of each session that is used.
    conditions : trials of each condition; empty where there is one kind alone.
    shown, shared, test, train : stimuli that were shown (of those with a picture), of which several subjects see, and
        for testing and training. left_out : those without a caption that are left out of both.
    repeats : how many stimuli were shown once, twice, ...
    unknown : trials of no stimulus, or of one without a picture.
    shape, voxels : of the volumes; in the mask.
    session : the one whose betas were read.
    beta_range : least and largest valid beta of it, in the dataset's unit.
    invalid_voxels, invalid_betas : voxels of the mask without any valid beta in it; other betas that are not valid.
    cut_off : betas of it that int16 cut off.
    regions : voxels of each region within the mask.
    ceiling : unit and repeats of the noise ceiling as the dataset states it; empty without one.
    ceiling_percent : quartiles over the mask, in percent of variance of a mean of three trials; None without one.
    """

    sessions: Mapping[str, int]
    conditions: Mapping[str, int]
    shown: int
    shared: int
    test: int
    train: int
    repeats: Mapping[int, int]
    unknown: int
    shape: tuple[int, ...]
    voxels: int
    session: str
    beta_range: tuple[float, float]
    invalid_voxels: int
    invalid_betas: int
    cut_off: int
    regions: Mapping[str, int]
    ceiling: str
    ceiling_percent: tuple[float, float, float] | None
    left_out: int = 0


@dataclass(frozen=True)
class DatasetAccount:
    """What there is of a dataset, as far as a configuration uses it.

    Attributes
    ----------
    kind, root : as the configuration says.
    every_subject : subjects of the dataset.
    subjects : what there is of each that the configuration names.
    stimuli : with a picture.
    picture : height and width as they are stored.
    captions : how many stimuli of the study have none, one, two, ...
    left_out : those that it leaves out, since they have no caption.
    splits : names of the splits that come with it.
    split, encoding : as used.
    odd : what a user should know, a sentence each.
    """

    kind: str
    root: str
    every_subject: tuple[str, ...]
    subjects: Mapping[str, SubjectAccount]
    stimuli: int
    picture: tuple[int, int]
    captions: Mapping[int, int]
    splits: tuple[str, ...]
    split: str
    encoding: Encoding
    left_out: tuple[str, ...] = ()
    odd: tuple[str, ...] = field(default_factory=tuple)

    def text(self) -> str:
        """All of it, for a screen."""
        wrapped = (
            textwrap.fill(
                line, _WIDTH, break_on_hyphens=False, subsequent_indent=" " * (17 if line.startswith("  ") else 6)
            )
            for line in self._lines()
        )
        return "\n".join(wrapped)

    def _lines(self) -> Iterator[str]:
        yield f"{self.kind} at {self.root}"
        others = [name for name in self.every_subject if name not in self.subjects]
        yield _line("subjects", ", ".join(self.subjects) + (f"; others: {listed(others, 12)}" if others else ""))
        yield _line("stimuli", f"{self.stimuli:,} with a picture, {self.picture[0]} x {self.picture[1]} pixels (y, x)")
        yield _line("captions", _histogram(self.captions, "stimulus", "stimuli", "with"))
        scale = "" if self.encoding.divisor == 1 else f", divided by {self.encoding.divisor:g}"
        yield _line("betas", f"{self.encoding.dtype}{scale}: {self.encoding.units}")
        yield _line("split", self.split + (f"; the dataset has {listed(self.splits, 12)}" if self.splits else ""))
        for name, of in self.subjects.items():
            yield ""
            yield name
            trials = Counter(of.sessions.values())
            same = len(trials) == 1
            each = f"{next(iter(trials))} trials each" if same else f"{min(trials)} to {max(trials)} trials"
            yield _line("sessions", f"{len(of.sessions)} ({_ends(list(of.sessions))}), {each}, {_total(of):,} in all")
            if of.conditions:
                yield _line("conditions", ", ".join(f"{kind or 'none'} {n:,}" for kind, n in of.conditions.items()))
            yield _line("shown", f"{of.shown:,} stimuli: {_histogram(of.repeats, 'stimulus', 'stimuli', 'shown', 'x')}")
            yield _line("", f"{of.shared:,} shared; {of.test:,} for testing, {of.train:,} for training")
            yield _line("voxels", f"{of.voxels:,} in the mask, of {' x '.join(map(str, of.shape))}")
            low, high = of.beta_range
            yield _line(of.session, f"betas from {low:.4g} to {high:.4g}; {_invalid(of)}")
            yield _line("noise ceiling", _ceiling(of))
            yield from _regions(of.regions)
        for sentence in self.odd:
            yield ""
            yield f"note: {sentence}"


def check_dataset(config: Config) -> DatasetAccount:
    """Look into the dataset of a configuration.

    Raises
    ------
    InputError : a file that is missing, damaged or does not fit the others; a subject without test or training stimuli,
        but for a split that is for testing alone.
    """
    data = Reader(config, tests_alone=True)
    subjects = {subject: _subject(data, subject) for subject in config.subjects}
    parts = [data.stimuli(part)[0] for part in (SHARED, *config.subjects)]
    used = np.concatenate(parts)
    captions = Counter(len([text for text in found if text]) for found in data.read_captions(used))
    account = DatasetAccount(
        config.dataset.kind,
        str(config.dataset.root),
        tuple(data.dataset.subjects()),
        subjects,
        len(data.dataset.stimuli()),
        data.photo_shape(),
        dict(sorted(captions.items())),
        tuple(data.dataset.splits()),
        config.dataset.split,
        data.encoding(),
        tuple(one for part in (SHARED, *config.subjects) for one in data.left_out(part)),
    )
    data.read_photos(used[:: max(1, len(used) // _PICTURES)])
    advice = "" if all(of.train for of in subjects.values()) else data.split[config.subjects[0]].advice
    return replace(account, odd=tuple(_odd(account, advice)))


def _subject(data: Reader, subject: str) -> SubjectAccount:
    trials, mask, encoding = data.trials(subject), data.mask(subject), data.encoding()
    split = data.split[subject]
    everything = frozenset(data.dataset.stimuli())
    shown = Counter(stimulus for stimulus in trials.stimulus.tolist() if stimulus in everything)
    session = data.sessions(subject)[0]
    betas = data.dataset.betas(subject, session, mask)
    there = betas.valid.any(axis=0)
    values = betas.values[betas.valid].astype(np.float64) / encoding.divisor
    ends = np.iinfo(np.int16)
    cut = np.isin(betas.values, (ends.min, ends.max)) & betas.valid if encoding.cut_off else np.zeros(1, bool)
    conditions = Counter(trials.condition.tolist())
    stated, ncsnr = data.dataset.noise_ceiling(subject), data.ncsnr(subject)
    percent = noise_ceiling(ncsnr[~np.isnan(ncsnr)], 3)
    low, middle, high = np.quantile(percent, (0.25, 0.5, 0.75)).tolist() if percent.size else (np.nan,) * 3
    return SubjectAccount(
        dict(Counter(trials.session.tolist())),
        {} if set(conditions) == {""} else dict(conditions),
        len(shown),
        len(set(shown) & data.shared),
        len(split.test),
        len(split.train or ()),
        dict(sorted(Counter(shown.values()).items())),
        len(trials.stimulus) - sum(shown.values()),
        tuple(mask.shape),
        int(mask.sum()),
        session,
        (float(values.min()), float(values.max())) if values.size else (np.nan, np.nan),
        int((~there).sum()),
        int((~betas.valid[:, there]).sum()),
        int(cut.sum()),
        dict(zip(data.region_names(subject), data.regions(subject).sum(axis=1).tolist(), strict=True)),
        "" if stated is None else stated.unit + (f", {stated.repeats} repeats" if stated.repeats else ""),
        (low, middle, high) if percent.size else None,
        len(data.left_out_of(subject)),
    )


def _odd(account: DatasetAccount, no_training: str) -> Iterator[str]:
    """What is unusual, and what bdflow makes of it. `no_training` : what to do without training stimuli."""
    if not all(of.train for of in account.subjects.values()):
        yield (
            f"the split {account.split} has no training stimuli, so that a run refuses it. What to do: "
            + (
                no_training
                or "decode it with the decoders of another study (`decode --dataset`), or name another `dataset.split`"
            )
            + "."
        )
    if account.captions.get(0):
        none = account.captions[0]
        yield (
            f"{counted(none, 'stimulus has', 'stimuli have')} no caption. Target spaces made from captions need one of "
            "every stimulus: leave such spaces out of the recipe, add captions, or leave these stimuli out by "
            "`dataset.without_caption: leave_out`."
        )
    if account.left_out:
        gone = counted(len(account.left_out), "stimulus", "stimuli")
        yield f"{gone} without a caption left out of training and test, in every space: {listed(account.left_out, 12)}."
    for name, of in account.subjects.items():
        if len(set(of.sessions.values())) > 1:
            yield f"{name}: sessions differ in their number of trials, which is no fault."
        if of.unknown:
            yield (
                f"{name}: {counted(of.unknown, 'trial')} without a stimulus that has a picture. Their betas are kept "
                "and enter no row."
            )
        left = of.shown - of.test - of.train - of.left_out
        if left:
            yield f"{name}: {counted(left, 'stimulus', 'stimuli')} in neither part of the split; they are left out."
        empty = [region for region, voxels in of.regions.items() if not voxels]
        if empty:
            yield f"{name}: no voxel of the mask in {listed(empty, 12)}."
        if of.cut_off:
            yield f"{name}, {of.session}: {counted(of.cut_off, 'beta')} cut off by int16, used as they are."
        if not of.ceiling:
            yield f"{name}: no noise ceiling in the dataset. bdflow estimates one from repeated stimuli."
        if of.repeats.keys() == {1}:
            yield f"{name}: no stimulus was shown twice, so that no noise ceiling can be estimated."


def _regions(regions: Mapping[str, int]) -> Iterator[str]:
    """A line for each collection: its regions, and their voxels in the mask."""
    collections: dict[str, list[str]] = {}
    for region, voxels in regions.items():
        collection, _, name = region.partition("/")
        collections.setdefault(collection, []).append(f"{name} {voxels:,}")
    for number, (collection, names) in enumerate(collections.items()):
        yield _line("" if number else "regions", f"{collection}: {listed(names, _NAMES)}")
    if not collections:
        yield _line("regions", "none")


def _line(name: str, content: str) -> str:
    return f"  {name:14} {content}"


def _ends(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}" if len(names) > 3 else ", ".join(names)


def _total(of: SubjectAccount) -> int:
    return sum(of.sessions.values())


def _histogram(found: Mapping[int, int], one: str, several: str, before: str, after: str = "") -> str:
    parts = [f"{counted(n, one, several)} {before} {number}{after}" for number, n in sorted(found.items())]
    return "; ".join(parts)


def _invalid(of: SubjectAccount) -> str:
    parts = []
    if of.invalid_voxels:
        parts.append(f"{counted(of.invalid_voxels, 'voxel')} not measured")
    if of.invalid_betas:
        parts.append(f"{counted(of.invalid_betas, 'other beta')} without a value")
    return ", ".join(parts) or "all valid"


def _ceiling(of: SubjectAccount) -> str:
    if of.ceiling_percent is None:
        return of.ceiling or "none"
    low, middle, high = of.ceiling_percent
    return f"{of.ceiling}; for 3 trials {middle:.1f}% of variance (quartiles {low:.1f}, {high:.1f})"
