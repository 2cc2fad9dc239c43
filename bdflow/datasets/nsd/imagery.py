"""NSD-Imagery: what the subjects of NSD saw, attended to and imagined in one more session."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import model_validator

from bdflow.config import OF_SOME_KINDS, DatasetSettings
from bdflow.config.base import Section
from bdflow.datasets.contract import Split, Trials
from bdflow.datasets.formats.identity import missing
from bdflow.datasets.formats.options import options
from bdflow.datasets.formats.pictures import METHOD, decode
from bdflow.datasets.nsd import imagery_trials
from bdflow.datasets.nsd.coco import CocoCaptions, open_captions
from bdflow.datasets.nsd.imagery_trials import KINDS, SETS, WORDS, Run, Target, behaviour_file, without_ending
from bdflow.datasets.nsd.single_session import SingleSession
from bdflow.datasets.nsd.stimuli import Captions
from bdflow.errors import InputError, listed
from bdflow.stores.paths import AnyPath

FRAMES = "nsddata_stimuli/stimuli/nsdimagery/allstim"
TARGETS = f"{imagery_trials.EXPERIMENT}/rawtargetimages"
CONDITIONS = "conditions"
"""The split by condition: what was shown, imagined or attended to in `train_condition` is for training."""
_NO_TRAINING = (
    "to test on imagery what is trained on perception, set `dataset.options.train_condition: perception` and "
    f"`dataset.split: dataset:{CONDITIONS}`; to use the decoders of a study of NSD, decode this dataset by it (`decode "
    "--dataset`); or name a file of test ids in `dataset.split`"
)
_CORE = re.compile(r"\d{5}")


class ImageryOptions(Section):
    """condition : which trials there are. Runs of perception show pictures, those of imagery a letter; those of
    attention have two betas a trial, `attention cue` and `attention detection`.

    train_condition : trials of one more condition, to train on; those of `condition` are then stimuli of their own,
        `imagery/ID`.
    """

    condition: Literal["perception", "imagery", "attention", "all"] = "imagery"
    train_condition: Literal["perception", "imagery", "attention"] | None = None

    @model_validator(mode="after")
    def _two_conditions(self) -> Self:
        if self.train_condition is not None and self.condition in ("all", self.train_condition):
            raise ValueError("train_condition needs another condition to test on: perception, imagery or attention")
        return self


class NSDImagery(SingleSession):
    """`bdflow.datasets.contract.Dataset` of NSD-Imagery.

    Ids of stimuli are the core's nsd_id, from 0 in five digits, for its pictures; `A/NAME` and `B/NAME` for other
    target pictures, by file without ending; `C/WORD` for words, which have no picture; `C/NAME` for other pictures of
    words that were shown. With `train_condition`, those of `condition` begin with its name, such as `imagery/A/NAME`.
    """

    KIND: ClassVar[str] = "nsd_imagery"
    looks_at: ClassVar[tuple[str, ...]] = OF_SOME_KINDS
    SESSION: ClassVar[str] = "nsdimagery"

    def __init__(self, settings: DatasetSettings) -> None:
        super().__init__(settings)
        self.options = options(ImageryOptions, settings.options, self.KIND)
        self._trials: dict[str, Trials] = {}

    # --- stimuli ----------------------------------------------------------------------------------------------

    def stimuli(self) -> Sequence[str]:
        return list(self._stimuli)

    def picture_shape(self) -> tuple[int, int]:
        height, width = self.pictures(self.stimuli()[:1])[0].shape[:2]
        return int(height), int(width)

    def pictures(self, stimuli: Sequence[str]) -> Sequence[np.ndarray]:
        stimuli = [self._plain(stimulus) for stimulus in stimuli]
        core = [int(stimulus) for stimulus in dict.fromkeys(stimuli) if _CORE.fullmatch(stimulus)]
        found: dict[str, np.ndarray] = {}
        if core:
            with self.nsd.stimuli() as file:
                found = {f"{i:05d}": image for i, image in zip(core, file.read(core), strict=True)}
        for stimulus in dict.fromkeys(stimuli):
            if stimulus not in found:
                path = self._picture_path(stimulus)
                if not path.is_file():
                    raise missing(path, f"the picture of {stimulus}")
                found[stimulus] = decode(path.read_bytes(), path)
        return [found[stimulus] for stimulus in stimuli]

    def captions(self, stimuli: Sequence[str]) -> Sequence[Sequence[str]]:
        stimuli = [self._plain(stimulus) for stimulus in stimuli]
        found: dict[str, list[str]] = {self._plain(stimulus): [] for stimulus in self._stimuli}
        for target in self._targets:
            found[target.stimulus] = [target.name] if target.set == WORDS else []
        core = [stimulus for stimulus in dict.fromkeys(stimuli) if _CORE.fullmatch(stimulus)]
        read = self._captions.read([int(stimulus) for stimulus in core]) if core else []
        for stimulus, captions in zip(core, read, strict=True):
            found[stimulus] = [text for caption in captions if (text := caption.strip())]
        unknown = [stimulus for stimulus in stimuli if stimulus not in found]
        if unknown:
            raise self._unknown(unknown[0])
        return [found[stimulus] for stimulus in stimuli]

    def captions_per_stimulus(self) -> int:
        return max((len(captions) for captions in self.captions(self.stimuli())), default=0)

    def splits(self) -> Mapping[str, Split]:
        train = self.options.train_condition
        if train is None:
            return {"all": Split(frozenset(self._stimuli), frozenset(), _NO_TRAINING)}
        test = frozenset(one for one in self._stimuli if self._plain(one) != one)
        found = {CONDITIONS: Split(test, frozenset(self._stimuli) - test)}
        for of in SETS:
            mine = frozenset(one for one in test if self._set_of(one) == of)
            others = frozenset(one for one in found[CONDITIONS].train or () if self._set_of(one) != of)
            if mine and others:
                found[f"{CONDITIONS}/{of}"] = Split(mine, others)
        return found

    def content(self) -> Mapping[str, Mapping[str, object]]:
        """Which trials are read, and how files of pictures are."""
        given = self.options.model_dump(exclude_none=True)
        return {"stimuli": {**given, "read_pictures": METHOD}, "betas": given}

    def stimulus_files(self) -> Mapping[str, AnyPath]:
        root = self.nsd.root
        files = {f"targets {of}": imagery_trials.pair_list(root, of) for of in SETS} | {"design": self.nsd.design_path}
        shown = list(dict.fromkeys(map(self._plain, self._stimuli)))
        for stimulus in shown:
            if not _CORE.fullmatch(stimulus):
                files[f"picture {stimulus}"] = self._picture_path(stimulus)
        if any(_CORE.fullmatch(stimulus) for stimulus in shown):
            files["stimuli"] = self.nsd.stimuli_path
            captions = self._captions
            sources = captions.files if isinstance(captions, CocoCaptions) else [captions.path]
            files |= {f"captions {number}": path for number, path in enumerate(sources, start=1)}
        if self._shows_words:
            for subject in self._with_behaviour(("visC",)):
                files[f"behaviour {subject} visC"] = behaviour_file(root, subject, "visC")
        return files

    # --- subjects ---------------------------------------------------------------------------------------------

    def subjects(self) -> Sequence[str]:
        return self._known

    def _every_trial(self, subject: str) -> Trials:
        if subject not in self._trials:
            read = imagery_trials.read_trials(
                self.nsd.root, subject, self.SESSION, self._chosen, self._targets, self._name_of
            )
            if self.options.train_condition is not None:
                tested = np.isin(read.run, [run.number for run in self._runs_of(self.options.condition)])
                ids = [
                    self._tested(stimulus) if test else stimulus
                    for stimulus, test in zip(read.stimulus.tolist(), tested, strict=True)
                ]
                read = replace(read, stimulus=np.array(ids, str))
            self._trials[subject] = read
        return self._trials[subject]

    def _rows(self, subject: str) -> tuple[int, AnyPath]:
        return sum(run.columns.size for run in self._runs), self.nsd.root / imagery_trials.DESIGN

    def _trial_files(self, subject: str) -> dict[str, AnyPath]:
        root = self.nsd.root
        files = {f"targets {of}": imagery_trials.pair_list(root, of) for of in SETS}
        files |= {"design": self.nsd.design_path, "runs": root / imagery_trials.DESIGN}
        return files | {f"behaviour {run.name}": behaviour_file(root, subject, run.name) for run in self._chosen}

    # --- what was read ----------------------------------------------------------------------------------------

    @cached_property
    def _known(self) -> list[str]:
        return sorted(self._subjects_with_betas() | set(self._with_behaviour(imagery_trials.RUNS)))

    @cached_property
    def _runs(self) -> list[Run]:
        return imagery_trials.read_runs(self.nsd.root)

    @property
    def _chosen(self) -> list[Run]:
        """The runs whose trials are asked for, in the order of the session."""
        wanted = {run.number for condition in self._conditions for run in self._runs_of(condition)}
        return [run for run in self._runs if run.number in wanted]

    def _runs_of(self, condition: str) -> list[Run]:
        return [run for run in self._runs if condition == "all" or run.kind == KINDS[condition]]

    @property
    def _conditions(self) -> list[str]:
        """The conditions that are asked for, that of training first."""
        train, test = self.options.train_condition, self.options.condition
        return [test] if train is None else [train, test]

    @property
    def _shows_words(self) -> bool:
        """Whether runs are among them that show pictures of words."""
        return any(condition in ("perception", "all") for condition in self._conditions)

    def _tested(self, stimulus: str) -> str:
        """Id of a stimulus in trials of `condition`, where those of `train_condition` have its own."""
        return f"{self.options.condition}/{stimulus}"

    def _plain(self, stimulus: str) -> str:
        """Id of what was shown or meant, whichever the condition."""
        return stimulus if self.options.train_condition is None else stimulus.removeprefix(self._tested(""))

    def _set_of(self, stimulus: str) -> str:
        """The set of a stimulus with a picture: of what is no target, that of the words."""
        plain = self._plain(stimulus)
        return next((target.set for target in self._targets if target.stimulus == plain), WORDS)

    @cached_property
    def _targets(self) -> list[Target]:
        return imagery_trials.read_targets(self.nsd.root, self._name_of)

    @cached_property
    def _shared(self) -> np.ndarray:
        return self.nsd.design().sharedix

    def _name_of(self, of: str, name: str) -> str:
        """Id of a picture. In names, `sharedSSSS_nsdNNNNN`, both count from 1; nsd00000 is no picture of NSD.

        Raises InputError where the design of the core says otherwise.
        """
        stem = without_ending(name)
        match = re.fullmatch(r"(?:shared(?P<shared>\d+)|.*)_nsd(?P<nsd>\d+)", stem)
        if match is None or int(match["nsd"]) == 0:
            return f"{of}/{stem}"
        number, place = int(match["nsd"]), int(match["shared"] or 0)
        if match["shared"] and not (1 <= place <= self._shared.size and self._shared[place - 1] == number):
            has = f"{self._shared[place - 1]}" if 1 <= place <= self._shared.size else f"{self._shared.size} in all"
            raise InputError(
                f"picture {stem} of set {of}",
                found=f"shared stimulus {place} as stimulus {number}",
                expected=f"{has}, as sharedix in {self.nsd.design_path} has it",
                meaning="The name does not say which stimulus of NSD it is.",
                action="use the core and the imagery experiment of one dataset",
            )
        return f"{number - 1:05d}"

    @cached_property
    def _stimuli(self) -> dict[str, None]:
        """Stimuli with a picture, each once, in order: targets by set and number, then pictures of words; those to
        train on first.
        """
        *train, test = (self._shown_in(condition) for condition in self._conditions)
        return dict.fromkeys(train[0] + [self._tested(one) for one in test] if train else test)

    def _shown_in(self, condition: str) -> list[str]:
        """The stimuli with a picture that a condition has: targets, and in perception the pictures of words."""
        found = {target.stimulus: None for target in self._targets if target.set != WORDS}
        if condition in ("perception", "all"):
            runs = [run for run in self._runs if run.name == "visC"]
            shown = set()
            for subject in self._with_behaviour(("visC",)):
                trials = imagery_trials.read_trials(
                    self.nsd.root, subject, self.SESSION, runs, self._targets, self._name_of
                )
                shown |= set(trials.stimulus.tolist())
            for stimulus in sorted(shown):
                if _CORE.fullmatch(stimulus) or stimulus in self._frames:
                    found[stimulus] = None
        return list(found)

    @cached_property
    def _captions(self) -> Captions | CocoCaptions:
        return open_captions(self.nsd.root, self.settings.captions)

    @cached_property
    def _frames(self) -> dict[str, AnyPath]:
        """Of pictures of set C, by id, the first frame that shows them; frames differ in the letter of the cue."""
        every: list[AnyPath] = sorted((self.nsd.root / FRAMES).glob("*.png"), key=lambda path: path.name)
        found: dict[str, AnyPath] = {}
        for path in every:
            found.setdefault(f"{WORDS}/{without_ending(path.name)}", path)
        return found

    def _picture_path(self, stimulus: str) -> AnyPath:
        """The file of a picture that is not the core's."""
        names = {target.stimulus: target.name for target in self._targets if target.set != WORDS}
        if stimulus in names:
            return self.nsd.root / TARGETS / f"set{stimulus[0]}" / names[stimulus]
        if stimulus in self._frames and any(self._plain(one) == stimulus for one in self._stimuli):
            return self._frames[stimulus]
        raise self._unknown(stimulus)

    def _unknown(self, stimulus: str) -> InputError:
        word = any(target.stimulus == stimulus for target in self._targets)
        return InputError(
            f"stimulus {stimulus}",
            found="a word, which has no picture" if word else "no such stimulus, or no picture of it",
            expected=f"one of {listed(self._stimuli, 24)}",
            action="ask for stimuli that `stimuli` lists",
        )

    def _with_behaviour(self, runs: Sequence[str]) -> list[str]:
        """Subjects with a behaviour file of one of these runs, ascending."""
        files = (self.nsd.root / imagery_trials.BEHAVIOUR).glob("nsdimagery_subj*_*.tsv")
        names = [re.fullmatch(r"nsdimagery_(subj\d\d)_(\w+)\.tsv", path.name) for path in files]
        return sorted({match[1] for match in names if match is not None and match[2] in runs})
