"""How large a study is: from NSD's files where they are there, from what is known of NSD where they are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bdflow.config import Config
from bdflow.datasets.reader import open_dataset
from bdflow.errors import InputError
from bdflow.models.config import VDVAEConfig
from bdflow.stores.paths import place
from bdflow.study.keys import SHARED

# NSD (docs/nsd.md): voxels of nsdgeneral in func1pt8mm, and the volumes they lie in
VOXELS = {"subj01": 15724, "subj02": 14278, "subj05": 13039, "subj07": 12682}
VOLUME = (81, 104, 83)
TRIALS, PHOTO, CAPTIONS, REGIONS = 750, 425, 5, 7
SPLITS = {37: (8859, 982), 40: (9000, 1000)}  # training and test stimuli a subject, by sessions


@dataclass(frozen=True)
class Subject:
    """One subject: training and test stimuli, voxels of the mask, trials of a session and voxels of a volume, sessions,
    and trials of training stimuli.
    """

    train: int
    test: int
    voxels: int
    trials: int
    volume: int
    sessions: int
    train_trials: int


@dataclass(frozen=True)
class Sizes:
    """What arithmetic and stores depend on; `parts` are stimuli by part, `source` says where all this is from."""

    subjects: Mapping[str, Subject]
    test: int
    parts: Mapping[str, int]
    photo: int
    captions: int
    regions: int
    source: str

    @property
    def stimuli(self) -> int:
        """Stimuli of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Networks:
    """What the networks are and cost, FLOP an item.

    Attributes
    ----------
    spaces, guess, image : shapes of the target spaces; pixels of a guess and a reconstruction.
    features, guessing : of one photo with its captions; of one guess.
    encoding, decoding, step : of the autoencoder, and of one evaluation of the UNet with one half of guidance.
    parameters : of all that paints, and of all that extracts.
    source : where this is from.
    """

    spaces: Mapping[str, tuple[int, ...]]
    guess: int
    image: int
    features: float
    guessing: float
    encoding: float
    decoding: float
    step: float
    painting_parameters: float
    extracting_parameters: float
    source: str

    def painting(self, variant: str, steps: int, strength: float) -> float:
        """FLOP of one reconstruction without its guess; of one condition alone, at most."""
        if variant == "only_vdvae":
            return 0.0
        if variant == "no_vdvae":
            return 2 * steps * self.step + self.decoding
        return self.encoding + 2 * int(strength * steps) * self.step + self.decoding


PUBLISHED = Networks(
    spaces={"vdvae": (VDVAEConfig().n_latents,), "clip_vision": (257, 768), "clip_text": (77, 768)},
    guess=64,
    image=512,
    features=0.078e12 + 0.162e12 + 5 * 0.0133e12,  # VDVAE, ViT-L/14, five captions; counted on these architectures
    guessing=0.157e12,
    encoding=1.12e12,
    decoding=2.51e12,
    step=1.203e12,
    painting_parameters=1126.8e6 + 84e6 + 125e6,
    extracting_parameters=125e6 + 304e6 + 124e6,
    source="the published networks",
)


def refuse_unknown_costs(config: Config) -> None:
    """Raise InputError for networks whose arithmetic is not counted here, rather than reckon with that of others."""
    named = {f"painters.{name}.kind": of.kind for name, of in config.painters.items()}
    named |= {f"spaces.{name}.encoder": of.encoder for name, of in config.spaces.items()}
    for key, value in named.items():
        if value in ("stable_diffusion", "sd_vae", "sd_text"):
            raise InputError(
                key,
                found=value,
                expected="networks whose cost is known: those of VDVAE, CLIP and Versatile Diffusion",
                action="run the stages for one subject and few sessions, and look at the timings that the study keeps",
            )


def sizes_of(config: Config) -> Sizes:
    """The real counts where NSD's files are there, else NSD's known ones.

    Raises
    ------
    InputError : files that are there and wrong; no files, and a subject, mask or test set that nothing is known of.
    """
    here = config.dataset.kind != "nsd" or (place(config.dataset.root) / "nsddata").is_dir()
    return _of_files(config) if here else _of_nsd(config)


def _of_files(config: Config) -> Sizes:
    data = open_dataset(config)
    parts = {part: data.stimuli(part) for part in (SHARED, *config.subjects)}
    test = np.concatenate([ids[split == "test"] for ids, split in parts.values()])
    subjects = {}
    for s in config.subjects:
        shown, mask = data.shown(s), data.mask(s)
        train, tested = np.setdiff1d(shown, test), np.intersect1d(shown, test)
        rows = int((~np.isin(shown, test)).sum())
        subjects[s] = Subject(
            len(train), len(tested), int(mask.sum()), data.session_trials(s), mask.size, len(data.sessions(s)), rows
        )
    return Sizes(
        subjects,
        len(test),
        {part: len(ids) for part, (ids, _) in parts.items()},
        data.photo_shape()[0],
        data.captions_per_stimulus(),
        max(len(data.region_files(s)) for s in config.subjects),
        f"files below {config.dataset.root}",
    )


def _of_nsd(config: Config) -> Sizes:
    settings = config.dataset
    sessions = settings.sessions if isinstance(settings.sessions, int) else 0
    unknown = [s for s in config.subjects if s not in VOXELS]
    odd = [
        f"dataset.{name} = {value}"
        for name, value, known in (
            ("mask", settings.mask, settings.mask == "nsdgeneral"),
            ("space", settings.space, settings.space == "func1pt8mm"),
            ("split", settings.split, settings.split == "shared"),
            ("sessions", settings.sessions, sessions in SPLITS),
        )
        if not known
    ]
    if unknown or odd:
        raise InputError(
            settings.root,
            found="no NSD there, and " + ", ".join(unknown + odd),
            expected=f"NSD's files, or settings whose sizes are known: {', '.join(VOXELS)}, nsdgeneral, func1pt8mm, "
            f"shared, {' or '.join(map(str, SPLITS))} sessions",
            action="plan where the data is, or with these settings",
        )
    train, test = SPLITS[sessions]
    x, y, z = VOLUME
    rows = TRIALS * sessions - 3 * test
    subjects = {s: Subject(train, test, VOXELS[s], TRIALS, x * y * z, sessions, rows) for s in config.subjects}
    parts = {SHARED: test, **dict.fromkeys(subjects, train)}
    return Sizes(subjects, test, parts, PHOTO, CAPTIONS, REGIONS, "NSD as published (no files are there)")


def networks_of(config: Config) -> Networks:
    """The bundle's networks. Small ones are run once and counted; of the published ones the cost is known."""
    name = config.networks.bundle
    if name != "tiny" and not Path(name).is_dir():
        return PUBLISHED
    from bdflow.models.weights.bundle import open_bundle

    opened = open_bundle(name)
    if {space: opened.spaces.get(space) for space in PUBLISHED.spaces} == dict(PUBLISHED.spaces):
        return PUBLISHED
    return _counted(config)


def _counted(config: Config) -> Networks:
    from torch.utils.flop_counter import FlopCounterMode

    from bdflow.config import PaintOptions
    from bdflow.models.latents import FeatureExtractor
    from bdflow.models.versatile.painter import Painter
    from bdflow.models.weights.bundle import describe_bundle

    def flop(work: object, *given: object) -> float:
        with FlopCounterMode(display=False) as counter:
            work(*given)  # type: ignore[operator]
        return float(counter.get_total_flops())

    extractor = FeatureExtractor(config.networks.bundle)
    zeros = {s: np.zeros((1, *shape), np.float32) for s, shape in extractor.spaces.items()}
    size = extractor.image_size
    features = flop(extractor, np.zeros((1, size, size, 3), np.uint8), [[f"caption {i}" for i in range(5)]], [0])
    one, two = (Painter(config.networks.bundle, options=PaintOptions(steps=steps, strength=1.0)) for steps in (1, 2))
    guess = np.zeros((1, one.guess_size, one.guess_size, 3), np.uint8)
    conditions = (zeros["clip_vision"], zeros["clip_text"], "plan", [0])
    started, longer = flop(one.paint, guess, *conditions), flop(two.paint, guess, *conditions)
    step = (longer - started) / 2
    encoding = started - flop(one.paint, None, *conditions)
    known = {network.name: network.parameters for network in describe_bundle(config.networks.bundle).networks}
    clip = known.get("clip_vision", 0) + known.get("clip_text", 0)
    return Networks(
        extractor.spaces,
        one.guess_size,
        one.image_size,
        features,
        flop(one.guess, zeros["vdvae"], "plan", [0]),
        encoding,
        started - encoding - 2 * step,
        step,
        sum(known.values()) - clip,
        clip + known.get("vdvae", 0),
        f"bundle {config.networks.bundle}, counted",
    )
