"""A dataset as a configuration selects it: subjects, sessions, mask, split, size of pictures.

`dataset.kind` in the configuration names the dataset; everything here is the same for all of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import cached_property

import numpy as np

from bdflow.config import OF_DATASET, OF_SOME_KINDS, Config
from bdflow.datasets.ceilings import ncsnr_of
from bdflow.datasets.contract import Dataset, Encoding, Numbered, SessionBetas, Split, Trials
from bdflow.datasets.formats.grids import check_same_grid, stated
from bdflow.datasets.formats.identity import identity
from bdflow.datasets.formats.pictures import fitted
from bdflow.datasets.splits import SHARED, digest_of, read_split
from bdflow.errors import InputError, counted, listed
from bdflow.registry import refuse_without_effect, resolve

DATASETS = {
    "nsd": "bdflow.datasets.nsd:NSDDataset",
    "nsd_imagery": "bdflow.datasets.nsd.imagery:NSDImagery",
    "nsd_synthetic": "bdflow.datasets.nsd.synthetic:NSDSynthetic",
    "laion_fmri": "bdflow.datasets.laion_fmri:LaionFMRI",
    "glmsingle": "bdflow.datasets.glmsingle:GLMsingle",
    "arrays": "bdflow.datasets.arrays:Arrays",
}


class Reader:
    """The dataset of a configuration, as far as the configuration uses it.

    Nothing is read before a method is called; every one raises InputError where a file is missing, damaged or does not
    fit the others.

    Attributes
    ----------
    dataset : the whole dataset (`bdflow.datasets.contract.Dataset`).
    tests_alone : whether a split that is for testing alone will do: only to look at a dataset.
    """

    def __init__(self, config: Config, *, tests_alone: bool = False) -> None:
        self.config, self.settings, self.tests_alone = config, config.dataset, tests_alone
        made = resolve(self.settings.kind, DATASETS, "dataset.kind")
        given = self.settings.given(OF_SOME_KINDS)
        refuse_without_effect(given, made, "dataset", self.settings.kind, DATASETS)
        self.dataset: Dataset = made(self.settings)
        self._trials: dict[str, Trials] = {}
        self._masks: dict[str, np.ndarray] = {}
        self._regions: dict[str, tuple[list[str], np.ndarray]] = {}
        self._session: tuple[tuple[str, str], SessionBetas] | None = None

    def content(self, of: str) -> dict[str, object]:
        """What of `dataset.options` shapes `stimuli` or `betas`, as a setting of stores."""
        found = self.dataset.content().get(of)
        return {"options": dict(found)} if found else {}

    # --- stimuli ----------------------------------------------------------------------------------------------

    def stimulus_inputs(self, part: str) -> Mapping[str, str]:
        """Digests of the files that say which stimuli there are and show them, and of the split, by what they are; and
        of which stimuli are in this part, where that is up to which sessions there are.
        """
        found = {name: identity(file) for name, file in self.dataset.stimulus_files().items()}
        if self.settings.sessions is None:
            content = "\n".join(
                "\t".join(pair) for pair in zip(*(of.tolist() for of in self.stimuli(part)), strict=True)
            )
            found["part"] = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        return {**found, "split": SHARED if self.settings.split == SHARED else digest_of(self._split_of_subjects)}

    @cached_property
    def shared(self) -> frozenset[str]:
        """Stimuli that several subjects of the whole dataset see."""
        seen = Counter(stimulus for subject in self.dataset.subjects() for stimulus in self.dataset.seen(subject))
        return frozenset(stimulus for stimulus, subjects in seen.items() if subjects > 1)

    @cached_property
    def _split_of_subjects(self) -> dict[str, Split]:
        if self.settings.split == SHARED:
            return {subject: Split(self.shared) for subject in self.config.everybody}
        return read_split(self.settings.split, self.config.subjects, self.dataset)

    @cached_property
    def _places(self) -> dict[str, int]:
        """Where in the dataset's order each stimulus stands."""
        return {stimulus: place for place, stimulus in enumerate(self.dataset.stimuli())}

    @cached_property
    def split(self) -> dict[str, Split]:
        """Test and training stimuli of every subject: those that it was shown in the sessions that are used.

        Raises InputError where a subject is left without either; with `tests_alone`, only without test stimuli where
        the split is for testing alone.
        """
        found, gone = {}, self._without_caption
        for subject in self.config.subjects:
            given, shown = self._split_of_subjects[subject], self._shown(subject)
            test, train = (frozenset(part - gone) for part in _parts(given, shown))
            found[subject] = Split(test, train, given.advice)
            by_design = given.train is not None and not given.train
            if not test or (not train and not (self.tests_alone and by_design)):
                raise self._without(subject, "test" if not test else "training", given, shown)
        return found

    @cached_property
    def _shown_to_others(self) -> set[str]:
        """What subjects of the study were shown that the configuration is not for, as far as their files are there."""
        found: set[str] = set()
        for subject in self.config.everybody if self.settings.split == SHARED else ():
            if subject not in self.config.subjects:
                with suppress(InputError, OSError):
                    found |= self._shown(subject)
        return found

    def _shown(self, subject: str) -> set[str]:
        """Stimuli with a picture that a subject was shown in the sessions that are used."""
        return set(self.trials(subject).stimulus.tolist()) & self._places.keys()

    @cached_property
    def _without_caption(self) -> frozenset[str]:
        """Stimuli that are left out of every subject's split, since they have no caption."""
        if self.settings.without_caption == "refuse":
            return frozenset()
        parts = [_parts(self._split_of_subjects[subject], self._shown(subject)) for subject in self.config.subjects]
        parts.append((self._shown_to_others & self.shared, set()))
        used = sorted(frozenset().union(*(one for pair in parts for one in pair)), key=self._places.__getitem__)
        return frozenset(one for one, texts in zip(used, self.read_captions(used), strict=True) if not any(texts))

    def left_out_of(self, subject: str) -> list[str]:
        """Stimuli of a subject's split that `dataset.without_caption` leaves out."""
        test, train = _parts(self._split_of_subjects[subject], self._shown(subject))
        return sorted((test | train) & self._without_caption, key=self._places.__getitem__)

    def left_out(self, part: str) -> list[str]:
        """Stimuli of a part that `dataset.without_caption` leaves out, in the dataset's order."""
        seen = self.shared if part == SHARED else self._shown(part) - self.shared
        return sorted(self._without_caption & seen, key=self._places.__getitem__)

    def _without(self, subject: str, part: str, given: Split, shown: set[str]) -> InputError:
        """The error of a subject that a split leaves without test or training stimuli."""
        where, meaning = f"split {self.settings.split}, {subject}", ""
        found = f"no {part} stimulus among the {len(shown)} that were shown"
        if gone := len(shown & self._without_caption):
            found += f", of which {gone} have no caption and are left out (`dataset.without_caption`)"
        action = "use more sessions, or another split (`dataset.split`)"
        action += "; or add captions" if gone else ""
        if part == "training":
            splits = self.dataset.splits()
            advice = given.advice or next((split.advice for split in splits.values() if split.advice), "")
            own = [f"{OF_DATASET}{name}" for name, split in splits.items() if split.train is None or split.train]
            if self.settings.split == SHARED and shown <= self.shared:
                meaning = "All of them are shared: several subjects see each."
                action = "name a file of test ids in `dataset.split`"
                action += f", or a split of the dataset: {listed(own, 12)}" if own else ""
            elif given.train is not None and not given.train:
                meaning = "This split is for testing alone, by the decoders of another study."
            action = advice or action
        return InputError(where, found=found, expected=f"at least one {part} stimulus", meaning=meaning, action=action)

    def stimuli(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """The stimuli of a part: ids (n,) str, and `test` or `train` of each; test ones first, each in the dataset's
        order.

        `part` : `shared`, what several subjects of the dataset see, or a subject, what it alone sees, in the sessions
        that are used. No stimulus is in two parts, and adding a subject moves none from one to another. It says `test`
        where it is for testing in any subject.
        """
        everybody = self.split.values()
        test = frozenset().union(*(of.test for of in everybody))
        if part == SHARED:
            used = frozenset().union(*(of.test | (of.train or frozenset()) for of in everybody))
            others = (self._shown_to_others & self.shared) - self._without_caption
            test |= others
            here = (used & self.shared) | others
        else:
            own = self.split[part]
            here = (own.test | (own.train or frozenset())) - self.shared
        ordered = sorted(here, key=lambda stimulus: (stimulus not in test, self._places[stimulus]))
        split = ["test" if stimulus in test else "train" for stimulus in ordered]
        return np.array(ordered, dtype=str), np.array(split, dtype=str)

    def photo_shape(self) -> tuple[int, int]:
        """Height and width in pixels of every photo."""
        size = self.settings.image_size
        if size is None:
            return self.dataset.picture_shape()
        return (size, size) if isinstance(size, int) else size

    def read_photos(self, stimuli: Sequence[str] | np.ndarray) -> np.ndarray:
        """(n, y, x, 3) uint8. Raises InputError where pictures differ in size and no `dataset.image_size` is set."""
        ids = [str(stimulus) for stimulus in stimuli]
        pictures, (height, width) = self.dataset.pictures(ids), self.photo_shape()
        if self.settings.image_size is None:
            odd = [at for at, picture in enumerate(pictures) if picture.shape[:2] != (height, width)]
            if odd:
                other = "{} x {}".format(*pictures[odd[0]].shape[:2])
                raise InputError(
                    f"stimulus {ids[odd[0]]!r}",
                    found=f"a picture of {other} pixels (y, x), where the first is of {height} x {width}",
                    expected="pictures of one size, or `dataset.image_size`",
                    meaning="Photos are stored and compared in one size.",
                    action="set `dataset.image_size`, and `dataset.image_fit` to `crop`, `pad` or `stretch`",
                )
        if isinstance(pictures, np.ndarray) and pictures.shape[1:3] == (height, width):
            return pictures
        found = [fitted(picture, height, width, self.settings.image_fit) for picture in pictures]
        return np.stack(found) if found else np.zeros((0, height, width, 3), np.uint8)

    def captions_per_stimulus(self) -> int:
        """The most captions a stimulus has; 1 where none has any, which is then empty."""
        return max(1, self.dataset.captions_per_stimulus())

    def read_captions(self, stimuli: Sequence[str] | np.ndarray) -> Sequence[Sequence[str]]:
        """The captions of each stimulus."""
        return self.dataset.captions([str(stimulus) for stimulus in stimuli])

    # --- trials -----------------------------------------------------------------------------------------------

    def beta_inputs(self, subject: str) -> Mapping[str, str]:
        """Digests of the files of a subject's trials, betas, masks and noise ceiling, by what they are."""
        files = self.dataset.beta_files(subject, self.sessions(subject))
        return {name: identity(file) for name, file in files.items()}

    def sessions(self, subject: str) -> tuple[str, ...]:
        """Names of the sessions that are used, in the order of the scan. Raises InputError for one that is absent;
        of a dataset that numbers them, when it is read.
        """
        self._check(subject)
        wanted = self.settings.sessions_of(subject)
        numbered = self.dataset if isinstance(self.dataset, Numbered) else None
        if wanted is not None and numbered is not None:
            numbers = range(1, wanted + 1) if isinstance(wanted, int) else wanted
            return tuple(sorted(numbered.session_of(one) if isinstance(one, int) else one for one in numbers))
        known = tuple(self.dataset.sessions(subject))
        if wanted is None:
            return known
        chosen = known[:wanted] if isinstance(wanted, int) else tuple(str(one) for one in wanted)
        absent = [name for name in chosen if name not in known]
        if absent or not chosen or (isinstance(wanted, int) and len(chosen) < wanted):
            raise InputError(
                f"sessions of {subject}",
                found=f"no {listed(absent)}" if absent else counted(len(known), "session"),
                expected=f"{wanted if isinstance(wanted, int) else len(wanted)} sessions, as `dataset.sessions` asks",
                action=f"fetch what is missing, or set `dataset.sessions` to what there is ({listed(known, 12)}): a "
                "number, a list, or either by subject",
            )
        order = {name: place for place, name in enumerate(known)}
        return tuple(sorted(chosen, key=order.__getitem__))

    def _check(self, subject: str) -> None:
        """Raise InputError for a subject that the dataset does not have."""
        known = tuple(self.dataset.subjects())
        if subject not in known:
            raise InputError(
                f"subject {subject!r}",
                found="no such subject in the dataset",
                expected="one of " + listed(known, 12),
                action="correct `subjects`, or fetch this subject's files",
            )

    def trials(self, subject: str) -> Trials:
        """Every trial of the sessions that are used, in the order of the scan."""
        if subject not in self._trials:
            self._trials[subject] = self.dataset.trials(subject, self.sessions(subject))
        return self._trials[subject]

    def most_trials(self, subject: str) -> int:
        """Trials of the longest of the sessions that are used: of a partition of betas."""
        return max(Counter(self.trials(subject).session.tolist()).values())

    def encoding(self) -> Encoding:
        """How betas are stored."""
        return self.dataset.encoding()

    def betas(self, subject: str, partition: int) -> SessionBetas:
        """The betas of as many trials as the longest session has, from the `partition`-th such block on."""
        length, trials, mask = self.most_trials(subject), self.trials(subject), self.mask(subject)
        rows = slice(partition * length, min((partition + 1) * length, len(trials.session)))
        sessions, index = trials.session[rows], trials.index[rows]
        parts, following = [], trials.session[rows.stop : rows.stop + 1].tolist()
        for session in dict.fromkeys(sessions.tolist()):
            parts.append(_chosen(self._betas_of(subject, session, mask), index[sessions == session]))
        if following != sessions[-1:].tolist():  # no other block needs the last session
            self._session = None
        if len(parts) == 1:
            return parts[0]
        return SessionBetas(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "valid")))

    def session_betas(self, subject: str, session: str) -> SessionBetas:
        """The betas of a session's trials, in the order of `trials`."""
        trials = self.trials(subject)
        return _chosen(self._betas_of(subject, session, self.mask(subject)), trials.index[trials.session == session])

    def _betas_of(self, subject: str, session: str, mask: np.ndarray) -> SessionBetas:
        """A session's betas; the last one read is kept while the next block may need it too."""
        if self._session is None or self._session[0] != (subject, session):
            self._session = None
            self._session = (subject, session), self.dataset.betas(subject, session, mask)
        return self._session[1]

    # --- voxels -----------------------------------------------------------------------------------------------

    def mask(self, subject: str) -> np.ndarray:
        """(x, y, z) bool: the voxels to use. Raises InputError for a mask without voxels, or of another shape than the
        subject's volumes.
        """
        if subject not in self._masks:
            mask, shape = self.dataset.mask(subject, self.settings.mask), tuple(self.dataset.grid(subject).shape)
            if mask.shape != shape or not mask.any():
                raise InputError(
                    f"dataset.mask {self.settings.mask} of {subject}",
                    found=f"{counted(int(mask.sum()), 'voxel')} in a volume of shape {mask.shape}",
                    expected=f"one voxel or more, in a volume of shape {shape}",
                    action="choose another mask",
                )
            check_same_grid(self.dataset.grids(subject, self.sessions(subject)), subject)
            self._masks[subject] = mask
        return self._masks[subject]

    def affine(self, subject: str) -> np.ndarray:
        """(4, 4): from voxel indices along x, y and z to millimetres; the identity where the files state none."""
        found = self.dataset.grid(subject).affine
        return np.eye(4) if found is None else found

    def affine_form(self, subject: str) -> int:
        """NIfTI's code of what the affine's millimetres are of (1: the scanner's); 0 where the files do not say."""
        form = self.dataset.affine_form(subject)
        return form if stated(self.affine(subject), form) is not None else 0

    @property
    def mask_name(self) -> str | None:
        """Name of the mask, in the language of regions."""
        return self.settings.mask or self.dataset.default_mask

    def known_regions(self) -> list[str]:
        """Names that regions of any of the subjects may have, in the dataset's order."""
        found: dict[str, None] = {}
        for subject in self.config.everybody:
            with nullcontext() if subject in self.config.subjects else suppress(InputError, OSError):
                found |= dict.fromkeys(self.dataset.known_regions(subject))
        return list(found)

    def region_names(self, subject: str) -> list[str]:
        """Names of the regions, `collection/name`."""
        return list(self.dataset.region_names(subject))

    def regions(self, subject: str) -> np.ndarray:
        """(regions, voxels of the mask) bool, in the order of `region_names`."""
        names, mask = self.region_names(subject), self.mask(subject)
        volumes = self.dataset.regions(subject)
        for name in names:
            if volumes[name].shape != mask.shape:
                raise InputError(
                    f"region {name} of {subject}",
                    found=f"a volume of shape {volumes[name].shape}",
                    expected=f"{mask.shape}, as the mask",
                    action="take both from one subject and one space",
                )
        rows: Iterable[np.ndarray] = [volumes[name][mask] for name in names]
        return np.stack(list(rows)) if names else np.zeros((0, int(mask.sum())), bool)

    def ncsnr(self, subject: str) -> np.ndarray:
        """(voxels of the mask,) float32: SD of the signal over SD of one trial's noise; 0 without signal, NaN where the
        dataset does not say.
        """
        found = self.dataset.noise_ceiling(subject)
        mask = self.mask(subject)
        if found is None:
            return np.full(int(mask.sum()), np.nan, np.float32)
        return ncsnr_of(found, mask, subject)


def _parts(given: Split, shown: set[str]) -> tuple[set[str], set[str]]:
    """Test and training stimuli of a subject, of those that it was shown."""
    return shown & given.test, shown - given.test if given.train is None else (shown & given.train) - given.test


def _chosen(betas: SessionBetas, index: np.ndarray) -> SessionBetas:
    """The betas at these places of a session."""
    whole = len(index) == len(betas.values) and bool((index == np.arange(len(index))).all())
    return betas if whole else SessionBetas(betas.values[index], betas.valid[index])


def open_dataset(config: Config) -> Reader:
    """The dataset of a configuration. Raises InputError for a kind that there is not."""
    return Reader(config)
