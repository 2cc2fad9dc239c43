"""How large a study is: from NSD's files where they are there, from what is known of NSD where they are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bdflow.config import Config
from bdflow.errors import InputError
from bdflow.models.config import VDVAEConfig
from stores.place import place

# NSD (docs/nsd.md): voxels of nsdgeneral in func1pt8mm, and the volumes they lie in
VOXELS = {"subj01": 15724, "subj02": 14278, "subj05": 13039, "subj07": 12682}
VOLUME = (81, 104, 83)
TRIALS, PHOTO, CAPTIONS, REGIONS = 750, 425, 5, 7
SPLITS = {37: (8859, 982), 40: (9000, 1000)}  # training and test stimuli a subject, by sessions


@dataclass(frozen=True)
class Subject:
    """One subject: training and test stimuli, voxels of the mask, and its sessions' shape."""

    train: int
    test: int
    voxels: int
    trials: int
    volume: int


@dataclass(frozen=True)
class Sizes:
    """What arithmetic and stores depend on. `trials` is of one session; `source` says where all this is from."""

    subjects: Mapping[str, Subject]
    sessions: int
    test: int
    stimuli: int
    photo: int
    captions: int
    regions: int
    source: str


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


def sizes_of(config: Config) -> Sizes:
    """The real counts where NSD's files are there, else NSD's known ones.

    Raises
    ------
    InputError : files that are there and wrong; no files, and a subject, mask or test set that nothing is known of.
    """
    return _of_files(config) if (place(config.nsd.root) / "nsddata").is_dir() else _of_nsd(config)


def _of_files(config: Config) -> Sizes:
    from bdflow.nsd import NSD, split_stimuli, stimulus_order, voxel_mask

    nsd, settings = NSD(config.nsd.root, preparation=config.nsd.preparation, space=config.nsd.space), config.nsd
    trials = {s: nsd.trials_per_session(s, settings.sessions) for s in config.subjects}
    with nsd.stimuli() as stimuli:
        count, photo = stimuli.count, stimuli.shape[0]
    seen = {s: n * settings.sessions for s, n in trials.items()}
    split = split_stimuli(nsd.design(), config.subjects, seen, settings.test, count)
    ids, part, _ = stimulus_order(split)
    subjects = {}
    for s in config.subjects:
        mask = voxel_mask(nsd.roi(s, settings.mask))
        subjects[s] = Subject(len(split.train[s]), len(split.test[s]), int(mask.sum()), trials[s], mask.size)
    regions = max(len(nsd.roi_names(s)) for s in config.subjects)
    return Sizes(
        subjects,
        settings.sessions,
        int((part == "test").sum()),
        len(ids),
        photo,
        nsd.captions().per_stimulus,
        regions,
        f"files below {settings.root}",
    )


def _of_nsd(config: Config) -> Sizes:
    settings = config.nsd
    unknown = [s for s in config.subjects if s not in VOXELS]
    odd = [
        f"nsd.{name} = {value}"
        for name, value, known in (
            ("mask", settings.mask, settings.mask == "nsdgeneral"),
            ("space", settings.space, settings.space == "func1pt8mm"),
            ("test", settings.test, settings.test == "shared"),
            ("sessions", settings.sessions, settings.sessions in SPLITS),
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
    train, test = SPLITS[settings.sessions]
    x, y, z = VOLUME
    subjects = {s: Subject(train, test, VOXELS[s], TRIALS, x * y * z) for s in config.subjects}
    stimuli = test + train * len(subjects)
    return Sizes(
        subjects, settings.sessions, test, stimuli, PHOTO, CAPTIONS, REGIONS, "NSD as published (no files are there)"
    )


def networks_of(config: Config) -> Networks:
    """The bundle's networks. Small ones are run once and counted; of the published ones the cost is known."""
    name = config.networks.bundle
    if name != "tiny" and not Path(name).is_dir():
        return PUBLISHED
    from bdflow.models.bundle import open_bundle

    opened = open_bundle(name)
    if dict(opened.spaces) == dict(PUBLISHED.spaces):
        return PUBLISHED
    return _counted(config)


def _counted(config: Config) -> Networks:
    import numpy as np
    from torch.utils.flop_counter import FlopCounterMode

    from bdflow.models.bundle import describe_bundle
    from bdflow.models.config import PaintOptions
    from bdflow.models.latents import FeatureExtractor, Painter

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
