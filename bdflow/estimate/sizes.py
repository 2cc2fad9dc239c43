"""How large a study is: from its dataset's files; of NSD, without them, from what is known of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from bdflow.config import Config
from bdflow.datasets.reader import open_dataset
from bdflow.errors import InputError, NotAtHand
from bdflow.estimate.outlines import PUBLISHED_VDVAE, Vdvae, counted_vdvae
from bdflow.models.config import VDVAEConfig
from bdflow.stores.paths import place
from bdflow.study.keys import SHARED

# NSD (docs/nsd.md): voxels of nsdgeneral in func1pt8mm, and the volumes they lie in
VOXELS = {"subj01": 15724, "subj02": 14278, "subj05": 13039, "subj07": 12682}
VOLUME = (81, 104, 83)
TRIALS, PHOTO, CAPTIONS, REGIONS, BETA = 750, (425, 425), 5, 37, 2
SPLITS = {37: (8859, 982), 40: (9000, 1000)}  # training and test stimuli a subject, by sessions


@dataclass(frozen=True)
class Subject:
    """One subject: training and test stimuli, voxels of the mask, trials, those of the longest session, voxels of a
    volume, sessions, and trials of training stimuli.
    """

    train: int
    test: int
    voxels: int
    trials: int
    most_trials: int
    volume: int
    sessions: int
    train_trials: int


@dataclass(frozen=True)
class Sizes:
    """What arithmetic and stores depend on; `parts` are stimuli by part, `photo` height and width, `beta_bytes` of one
    beta in the dataset, `source` says where all this is from.
    """

    subjects: Mapping[str, Subject]
    test: int
    parts: Mapping[str, int]
    photo: tuple[int, int]
    captions: int
    regions: int
    beta_bytes: int
    source: str

    @property
    def stimuli(self) -> int:
        """Stimuli of all parts."""
        return sum(self.parts.values())

    @property
    def pixels(self) -> int:
        """Of a photo."""
        return math.prod(self.photo)


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
    vdvae : the VDVAE among them, which makes guesses; None where there is none.
    stable : the same of Stable Diffusion: its guess is the picture of z.
    unet : configuration of Stable Diffusion's UNet, for the shapes of its layers.
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
    vdvae: Vdvae | None = None
    stable: Networks | None = None
    unet: Mapping[str, Any] = field(default_factory=dict)

    def painter(self, kind: str) -> Networks:
        """The networks that a kind of painter uses. Raises InputError where their cost is not known."""
        return self._stable(f"painter {kind}") if kind == "stable_diffusion" else self

    def encoder(self, name: str) -> Networks:
        """The networks that an encoder is of; those of others than Stable Diffusion count as Brain-Diffuser's."""
        return self._stable(f"encoder {name}") if name.startswith("sd_") else self

    def _stable(self, where: str) -> Networks:
        if self.stable is None:
            raise InputError(
                where,
                found=f"{self.source}, without Stable Diffusion",
                expected="networks whose cost is known",
                action="name a bundle that holds Stable Diffusion in `networks.bundle` (docs/weights.md).",
            )
        return self.stable

    def painting(self, variant: str, steps: int, strength: float) -> float:
        """FLOP of one reconstruction without its guess; of one condition alone, at most."""
        if variant == "only_vdvae":
            return 0.0
        if variant in ("no_vdvae", "only_c"):
            return 2 * steps * self.step + self.decoding
        return self.encoding + 2 * int(strength * steps) * self.step + self.decoding


PUBLISHED_STABLE = Networks(
    spaces={"sd_vae": (6400,), "sd_text": (77, 768)},
    guess=320,
    image=512,
    features=0.428e12 + 5 * 0.0133e12,
    guessing=0.974e12,
    encoding=1.12e12,
    decoding=2.51e12,
    step=0.803e12,
    painting_parameters=859.5e6 + 84e6 + 123e6,
    extracting_parameters=84e6 + 123e6,
    source="the published networks",
    unet={
        "in_channels": 4,
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
)
PUBLISHED = Networks(
    spaces={"vdvae": (VDVAEConfig().n_latents,), "clip_vision": (257, 768), "clip_text": (77, 768)},
    guess=64,
    image=512,
    features=PUBLISHED_VDVAE.encoding + 0.162e12 + 5 * 0.0133e12,  # and ViT-L/14, five captions; counted
    guessing=PUBLISHED_VDVAE.decoding,
    encoding=1.12e12,
    decoding=2.51e12,
    step=1.203e12,
    painting_parameters=1126.8e6 + 84e6 + PUBLISHED_VDVAE.parameters,
    extracting_parameters=PUBLISHED_VDVAE.parameters + 304e6 + 124e6,
    source="the published networks",
    vdvae=PUBLISHED_VDVAE,
    stable=PUBLISHED_STABLE,
)


def sizes_of(config: Config) -> Sizes:
    """The real counts where the dataset's files are there, else NSD's known ones.

    Raises
    ------
    InputError : files that are there and wrong; no files, and another dataset than NSD, or a subject, mask or test set
        that nothing is known of.
    """
    if config.dataset.kind == "nsd" and not (place(config.dataset.root) / "nsddata").is_dir():
        return _of_nsd(config)
    try:
        return _of_files(config)
    except NotAtHand as error:
        if config.dataset.kind == "nsd":
            raise
        raise NotAtHand(
            error.where,
            found=error.found,
            expected=error.expected,
            meaning=f"Sizes are known beforehand of NSD alone; of {config.dataset.kind} a plan needs the files that "
            "say which stimuli, trials, voxels and regions there are, and the headers of the betas.",
            action=error.action,
        ) from error


def _of_files(config: Config) -> Sizes:
    data = open_dataset(config)
    parts = {part: data.stimuli(part) for part in (SHARED, *config.subjects)}
    test = np.concatenate([ids[split == "test"] for ids, split in parts.values()])
    subjects = {}
    for s in config.subjects:
        shown, mask, split = data.trials(s).stimulus, data.mask(s), data.split[s]
        train = list(split.train or ())
        subjects[s] = Subject(
            len(train),
            len(split.test),
            int(mask.sum()),
            len(data.trials(s).stimulus),
            data.most_trials(s),
            mask.size,
            len(data.sessions(s)),
            int(np.isin(shown, train).sum()),
        )
    return Sizes(
        subjects,
        len(test),
        {part: len(ids) for part, (ids, _) in parts.items()},
        data.photo_shape(),
        data.captions_per_stimulus(),
        max(len(data.region_names(s)) for s in config.subjects),
        np.dtype(data.encoding().dtype).itemsize,
        f"files below {config.dataset.root}",
    )


def _of_nsd(config: Config) -> Sizes:
    settings = config.dataset
    sessions = 40 if settings.sessions is None else settings.sessions if isinstance(settings.sessions, int) else 0
    unknown = [s for s in config.subjects if s not in VOXELS]
    odd = [
        f"dataset.{name} = {value}"
        for name, value, known in (
            ("mask", settings.mask, settings.mask in (None, "nsdgeneral")),
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
    subjects = {
        s: Subject(train, test, VOXELS[s], TRIALS * sessions, TRIALS, x * y * z, sessions, rows)
        for s in config.subjects
    }
    parts = {SHARED: test, **dict.fromkeys(subjects, train)}
    return Sizes(subjects, test, parts, PHOTO, CAPTIONS, REGIONS, BETA, "NSD as published (no files are there)")


def networks_of(config: Config) -> Networks:
    """The bundle's networks. Small ones are run once and counted; of the published ones the cost is known."""
    name = config.networks.bundle
    if name != "tiny" and not Path(name).is_dir():
        return PUBLISHED
    from bdflow.models.weights.bundle import open_bundle
    from bdflow.models.weights.manifest import STABLE, VERSATILE

    opened, found = open_bundle(name), []
    for family, published, count in (
        (VERSATILE, PUBLISHED, _counted),
        (STABLE, PUBLISHED_STABLE, _counted_stable),
    ):
        if opened.holds(family):
            same = {space: opened.spaces.get(space) for space in published.spaces} == dict(published.spaces)
            found.append(published if same else count(config))
    return replace(found[0], stable=found[-1] if opened.holds(STABLE) else None)


def _flop(work: Callable[..., object], *given: object) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work(*given)
    return float(counter.get_total_flops())


def _counted(config: Config) -> Networks:
    from bdflow.config import PaintOptions
    from bdflow.models.latents import FeatureExtractor
    from bdflow.models.versatile.painter import Painter
    from bdflow.models.weights.bundle import describe_bundle, open_bundle
    from bdflow.models.weights.manifest import FAMILIES, VERSATILE

    extractor = FeatureExtractor(config.networks.bundle)
    zeros = {s: np.zeros((1, *shape), np.float32) for s, shape in extractor.spaces.items()}
    size = extractor.image_size
    features = _flop(extractor, np.zeros((1, size, size, 3), np.uint8), [[f"caption {i}" for i in range(5)]], ["0"])
    one, two = (Painter(config.networks.bundle, options=PaintOptions(steps=steps, strength=1.0)) for steps in (1, 2))
    guess = np.zeros((1, one.guess_size, one.guess_size, 3), np.uint8)
    conditions = (zeros["clip_vision"], zeros["clip_text"], "plan", ["0"])
    started, longer = _flop(one.paint, guess, *conditions), _flop(two.paint, guess, *conditions)
    step = (longer - started) / 2
    encoding = started - _flop(one.paint, None, *conditions)
    described = describe_bundle(config.networks.bundle).networks
    known = {network.name: network.parameters for network in described if network.name in FAMILIES[VERSATILE]}
    clip = known.get("clip_vision", 0) + known.get("clip_text", 0)
    return Networks(
        extractor.spaces,
        one.guess_size,
        one.image_size,
        features,
        _flop(one.guess, zeros["vdvae"], "plan", ["0"]),
        encoding,
        started - encoding - 2 * step,
        step,
        sum(known.values()) - clip,
        clip + known.get("vdvae", 0),
        f"bundle {config.networks.bundle}, counted",
        counted_vdvae(open_bundle(config.networks.bundle).vdvae_config),
    )


def _counted_stable(config: Config) -> Networks:
    """Counted on outlines: networks without weights."""
    import torch

    from bdflow.models.weights.bundle import open_bundle

    bundle = open_bundle(config.networks.bundle)
    unet, vae, text = (cast(Any, bundle.build(name).eval()) for name in ("sd_unet", "sd_vae", "sd_text"))
    here: Any = {"device": "meta"}
    channels, edge, _ = bundle.z_shape
    wide, shape = bundle.stable_size * edge // bundle.z_size, bundle.shape_of("sd_text")
    condition, one = torch.zeros(1, *shape, **here), torch.zeros(1, **here)
    tokens = torch.zeros(1, shape[0], dtype=torch.int64, **here)
    with torch.inference_mode():
        encoding, features = (
            _flop(vae.encode, torch.zeros(1, 3, size, size, **here)) for size in (bundle.stable_size, bundle.z_size)
        )
        decoding, guessing = (_flop(vae.decode, torch.zeros(1, channels, size, size, **here)) for size in (wide, edge))
        known = {"encoder_hidden_states": condition, "cross_attention_kwargs": {"text": condition}}
        step = _flop(partial(unet, **known), torch.zeros(1, channels, wide, wide, **here), one)
        features += 5 * _flop(partial(text, input_ids=tokens))
    sizes = [sum(value.numel() for value in module.parameters()) for module in (unet, vae, text)]
    return Networks(
        {space: bundle.shape_of(space) for space in PUBLISHED_STABLE.spaces},
        bundle.z_size,
        bundle.stable_size,
        features,
        guessing,
        encoding,
        decoding,
        step,
        sum(sizes),
        sum(sizes[1:]),
        f"bundle {config.networks.bundle}, counted",
        unet=bundle.manifest.network("sd_unet").config(),
    )
