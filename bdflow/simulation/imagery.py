"""A session of NSD-Imagery beside a simulated core, in its files: what is seen, attended to and imagined.

The session is the real one in its order and size: twelve runs of six targets, eight times each, 720 betas. Perception
is the encoded picture; imagery and attention are the same pattern, weaker. Of a word that is the mean of its pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bdflow import random
from bdflow.datasets import nsd
from bdflow.datasets.nsd.imagery import FRAMES, TARGETS
from bdflow.datasets.nsd.imagery_trials import DESIGN, KINDS, RUNS, SETS, WORDS, behaviour_file, pair_list
from bdflow.simulation.brains import Brain
from bdflow.simulation.drawing import Pen
from bdflow.simulation.encoding import Components, Encoding
from bdflow.simulation.files import write_hdf5, write_matlab, write_nifti
from bdflow.simulation.scenes import scene

GAINS: Mapping[str, tuple[float, ...]] = {"vis": (1.0,), "att": (0.15, 0.3), "img": (0.45,)}
"""How strong the pattern of a picture is in each beta of a trial: attention has two, cue and detection."""
N_SHARED = 5
"""Targets of set B that are stimuli of the core; the sixth is an artwork, a scene that the core does not have."""

_REPEATS = 8
_SHAPES = (("bar", 0), ("bar", 45), ("bar", 90), ("bar", 135), ("crs", 0), ("crs", 45))
_WORDS = ("boat", "car", "tree", "cat", "flower", "ball")
_PICTURES = 2  # of a word
_CUES: Mapping[str, str] = {"A": "HRVLPE", "B": "WKBCDT", "C": "SZMYNF"}
_PREPARATION = f"nsdimagery{nsd.PREPARATION}"
_NOT_MEASURED = 0.01  # of the voxels of nsdgeneral
_COLUMNS = ("SUBJECT", "SESSION", "RUN", "TRIAL", "CONDITION", "CUE", "FRAMEFILE", "IMAGEFILE")
_GREY = (127, 127, 127)

File = Callable[[str | Path], Path]
"""Where a file below the root goes; its folder is made."""


@dataclass(frozen=True)
class Picture:
    """What can be shown.

    Attributes
    ----------
    set : A, B or C; target : which of its six targets it shows, from 0.
    name : of its file, without ending. image : (size, size, 3) uint8. captions : for networks that read.
    """

    set: str
    target: int
    name: str
    image: np.ndarray
    captions: list[str]


@dataclass(frozen=True)
class Trial:
    """One trial: `target` is its condition, `cue` the letter's target, both from 0; `picture` what its files name."""

    run: str
    target: int
    cue: int
    picture: int


def draw(design: Mapping[str, np.ndarray], n_stimuli: int, size: int, seed: int) -> list[Picture]:
    """Every picture of the session: bars and crosses, stimuli of the core and an artwork, two pictures of each word.

    Parameters
    ----------
    design : of the core, with `sharedix` of 5 stimuli or more.
    n_stimuli : of the core; scenes past them are its own.
    size, seed : of the core's stimuli.
    """
    found = []
    for target, (kind, degrees) in enumerate(_SHAPES):
        thing = "bar" if kind == "bar" else "cross"
        captions = [f"A white {thing} on a grey background.", f"A {thing} of {degrees} degrees."]
        found.append(Picture("A", target, f"{kind}_{degrees:03d}.0deg_450L_43W", _shape(kind, degrees, size), captions))
    shared = design["sharedix"].ravel().tolist()[:N_SHARED]
    for target, number in enumerate(shared):
        shown = scene(number - 1, seed, size)
        name = f"shared{target + 1:04d}_nsd{number:05d}"
        found.append(Picture("B", target, name, shown.image, shown.captions))
    artwork = scene(n_stimuli, seed, size)
    found.append(Picture("B", N_SHARED, "shared0000_nsd00000", artwork.image, artwork.captions))
    for target, word in enumerate(_WORDS):
        for number in range(_PICTURES):
            shown = scene(n_stimuli + 1 + target * _PICTURES + number, seed, size, kind=word)
            found.append(Picture(WORDS, target, f"{word}{number:04d}_nsd00000", shown.image, shown.captions))
    return found


def _shape(kind: str, degrees: int, size: int) -> np.ndarray:
    """(size, size, 3) uint8: a white bar, or two that cross, on grey; degrees counter-clockwise from horizontal."""
    canvas = Image.new("RGB", (2 * size, 2 * size), _GREY)
    pen = Pen(ImageDraw.Draw(canvas), size, size, 2 * size)
    for turned in (degrees, degrees + 90)[: 2 if kind == "crs" else 1]:
        along = 0.4 * np.array([np.cos(np.radians(turned)), np.sin(np.radians(turned))])
        across = 0.05 * np.array([-along[1], along[0]]) / 0.4
        corners = [along + across, along - across, -along - across, -along + across]
        pen.polygon([(float(x), float(y)) for x, y in corners], (255, 255, 255))
    return np.asarray(canvas.reduce(2))


@dataclass(frozen=True)
class Session:
    """The session of every subject: its pictures, and what voxels encode of each, `components` (picture, component)."""

    pictures: Sequence[Picture]
    components: np.ndarray
    seed: int

    @cached_property
    def trials(self) -> list[Trial]:
        """In the order of the session. Half of the cues of vision are another target's."""
        found = []
        for run in RUNS:
            of, rng = run[3], random.generator(self.seed, "imagery", run)
            every = np.repeat(np.arange(_REPEATS), 6), np.tile(np.arange(6), _REPEATS)
            for place in rng.permutation(len(every[0])).tolist():
                repeat, target = int(every[0][place]), int(every[1][place])
                other = (target + 1 + int(rng.integers(5))) % 6
                cue = other if run.startswith(KINDS["perception"]) and repeat % 2 else target
                own = self._of(of, target)
                found.append(Trial(run, target, cue, own[repeat // 2 % len(own)]))
        return found

    @cached_property
    def mixtures(self) -> np.ndarray:
        """(betas, pictures): the signal of a beta is `mixtures @ (components @ weights)`, components centred."""
        rows = []
        for trial in self.trials:
            shown = (
                [trial.picture] if trial.run.startswith(KINDS["perception"]) else self._of(trial.run[3], trial.target)
            )
            row = np.zeros(len(self.pictures))
            row[shown] = 1 / len(shown)
            rows += [gain * row for gain in GAINS[trial.run[:3]]]
        return np.array(rows)

    def _of(self, of: str, target: int) -> list[int]:
        return [i for i, picture in enumerate(self.pictures) if (picture.set, picture.target) == (of, target)]

    def write_experiment(self, file: File) -> None:
        """Targets, design and frames: what is the same for every subject."""
        for of in SETS:
            path, cells = pair_list(Path(), of), np.empty((6, 3), dtype=object)
            for target in range(6):
                picture = self.pictures[self._of(of, target)[0]]
                name = _WORDS[target] if of == WORDS else f"{picture.name}.png"
                cells[target] = [float(target + 1), name, _CUES[of][target]]
            write_matlab(file(str(path)), {"pair_list": cells}, path.name)
        for picture in self.pictures:
            if picture.set != WORDS:
                Image.fromarray(picture.image).save(file(f"{TARGETS}/set{picture.set}/{picture.name}.png"))
        for of, number, cue in dict.fromkeys(
            (trial.run[3], trial.picture, trial.cue) for trial in self.trials if not trial.run.startswith("img")
        ):
            picture, letter = self.pictures[number], _CUES[of][cue]
            Image.fromarray(_frame(picture.image, letter)).save(file(f"{FRAMES}/{picture.name}_cue{letter}.png"))
        runs = np.empty((1, len(RUNS)), dtype=object)
        for number, run in enumerate(RUNS):
            runs[0, number] = _onsets(run, [trial.target for trial in self.trials if trial.run == run])
        write_matlab(file(DESIGN), {"stimulus": runs}, Path(DESIGN).name)

    def write_subject(
        self,
        file: File,
        subject: str,
        anatomy: Brain,
        planted: Encoding,
        parts: Components,
        mean: np.ndarray,
        noise_sd: np.ndarray,
        betas_format: str,
    ) -> None:
        """Behaviour, betas and which voxels were measured.

        Parameters
        ----------
        mean, noise_sd : (x, y, z) percent signal change, as in the subject's other sessions.
        """
        self._write_behaviour(file, subject)
        rng = random.generator(self.seed, "imagery voxels", subject)
        general = np.flatnonzero(anatomy.general)
        measured = anatomy.inside.copy()
        lost = rng.choice(general, max(1, round(_NOT_MEASURED * general.size)), replace=False)
        measured.ravel()[lost] = False
        shape = measured.shape
        valid = file(f"nsddata/ppdata/{subject}/{nsd.SPACE}/valid_nsdimagery.nii.gz")
        write_nifti(valid, shape, np.dtype(np.int16), [measured.astype(np.int16)])
        signal = self.mixtures @ ((self.components - parts.values.mean(axis=0)) @ planted.weights)

        def volumes() -> Iterator[np.ndarray]:
            draws = random.generator(self.seed, "imagery noise", subject)
            for beta in signal:
                volume = mean.copy()
                volume[anatomy.general] += beta
                drawn = draws.standard_normal(int(anatomy.inside.sum()), dtype=np.float32)
                volume[anatomy.inside] += noise_sd[anatomy.inside] * drawn
                volume[~measured] = 0
                yield np.clip(np.rint(300 * volume), -32768, 32767).astype(np.int16)

        folder = f"nsddata_betas/ppdata/{subject}/{nsd.SPACE}/{_PREPARATION}"
        write = write_nifti if betas_format == "nii.gz" else write_hdf5
        betas = file(f"{folder}/betas_nsdimagery.{betas_format}")
        write(betas, (*shape, len(signal)), np.dtype(np.int16), volumes())

    def _write_behaviour(self, file: File, subject: str) -> None:
        for number, run in enumerate(RUNS, start=1):
            rows = ["\t".join(_COLUMNS)]
            for place, trial in enumerate([trial for trial in self.trials if trial.run == run], start=1):
                letter, name = _CUES[run[3]][trial.cue], self.pictures[trial.picture].name
                imagined = run.startswith(KINDS["imagery"])
                shown = (f"cue{letter}.png", "NaN") if imagined else (f"{name}_cue{letter}.png", f"{name}.png")
                cells = (nsd.subject_index(subject), 1, number, place, trial.target + 1, letter, *shown)
                rows.append("\t".join(map(str, cells)))
            file(str(behaviour_file(Path(), subject, run))).write_text("\n".join(rows) + "\n", encoding="utf-8")


def _onsets(run: str, targets: Sequence[int]) -> np.ndarray:
    """(time, 36) with 1 at onsets. Columns, six each: vision of any set; attention's cue, its detection; imagery of A;
    of B; of C.
    """
    epochs = len(GAINS[run[:3]])
    first = {"vis": 0, "att": 6, "img": 18 + 6 * SETS.index(run[3])}[run[:3]]
    found = np.zeros((4 * epochs * len(targets), 36))
    for place, target in enumerate(targets):
        for epoch in range(epochs):
            found[4 * (epochs * place + epoch), first + 6 * epoch + target] = 1
    return found


def _frame(image: np.ndarray, letter: str) -> np.ndarray:
    """A picture within a grey border, and the letter on it."""
    size = len(image)
    canvas = Image.new("RGB", (size + 2 * (size // 8),) * 2, _GREY)
    canvas.paste(Image.fromarray(image), (size // 8, size // 8))
    Pen(ImageDraw.Draw(canvas), canvas.width / 2, canvas.height / 2, size).text(0, 0, 0.15, letter, (255, 255, 255))
    return np.asarray(canvas)
