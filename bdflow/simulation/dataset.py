"""Write a small dataset in exactly NSD's files: scenes for stimuli, voxels encode their latents linearly.

What was planted is written beside the data as ``truth.json`` and ``truth.npz``, for tests; the pipeline
never reads it. Sources: the NSD data manual for files and types; Allen et al. 2022 for the noise ceiling.
"""

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from threadpoolctl import threadpool_limits

from bdflow import random
from bdflow.datasets import nsd
from bdflow.errors import InputError
from bdflow.simulation.brains import FLOC, brain
from bdflow.simulation.encoding import NOISE_SD, QUANTILES, Components, Encoding, Layers, encode, summary
from bdflow.simulation.files import N_SUBJECTS, make_design, write_design, write_hdf5, write_nifti, write_stim_info
from bdflow.simulation.imagery import N_SHARED, Session, draw
from bdflow.simulation.scenes import scene

FORMAT = 3
_BATCH = 32  # stimuli drawn, and their features extracted, at once

Features = Callable[[np.ndarray, list[list[str]], list[str]], dict[str, np.ndarray]]
"""(images (n, y, x, 3) uint8, captions, stimulus ids) -> latents (n, ...) of each space, each image's own."""

Progress = Callable[[str, int, int], None]
"""(what is being made, how many are done, of how many)"""


@dataclass(frozen=True)
class SimulateOptions:
    """Size and content of a simulated dataset; the same options give the same files.

    Attributes
    ----------
    subjects : which of subj01 to subj08 get betas.
    n_shared, n_own : stimuli shown to all subjects (the test stimuli), and to one alone (training).
    repeats : how often each is shown over the whole design.
    trials_per_session : must divide all trials; None: what divides them into 4 sessions or a few more.
    sessions : sessions that are written, the first of the design; None: all. With fewer, the last repeats of
        some stimuli are missing.
    volume_shape : (x, y, z) to start from; each subject's own is a few voxels larger.
    stimulus_size : pixels of a side.
    noise_ceiling : median over nsdgeneral for three repeats, percent of variance.
    seed : of everything that is drawn.
    betas_format : nii.gz or hdf5.
    imagery : whether each subject also has a session of NSD-Imagery (`bdflow.simulation.imagery`).
    """

    subjects: tuple[str, ...] = ("subj01", "subj02", "subj05", "subj07")
    n_shared: int = 64
    n_own: int = 300
    repeats: int = 3
    trials_per_session: int | None = None
    sessions: int | None = None
    volume_shape: tuple[int, int, int] = (24, 28, 22)
    stimulus_size: int = 425
    noise_ceiling: float = 30.0
    seed: int = 0
    betas_format: str = "nii.gz"
    imagery: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "subjects", tuple(self.subjects))
        object.__setattr__(self, "volume_shape", tuple(int(n) for n in self.volume_shape))
        numbers = {nsd.subject_index(subject) for subject in self.subjects}
        if not numbers or max(numbers) > N_SUBJECTS or len(numbers) < len(self.subjects):
            raise _option("subjects", self.subjects, f"different ones of subj01 to subj{N_SUBJECTS:02d}")
        for name in ("n_shared", "n_own", "repeats"):
            if getattr(self, name) < 1:
                raise _option(name, getattr(self, name), "1 or more")
        if min(self.volume_shape) < 8 or len(self.volume_shape) != 3:
            raise _option("volume_shape", self.volume_shape, "three sizes of 8 or more")
        if not 0 < self.noise_ceiling < 100:
            raise _option("noise_ceiling", self.noise_ceiling, "between 0 and 100 (percent)")
        if self.betas_format not in ("nii.gz", "hdf5"):
            raise _option("betas_format", self.betas_format, "nii.gz or hdf5")
        if self.imagery and self.n_shared < N_SHARED:
            raise _option("n_shared", self.n_shared, f"{N_SHARED} or more, which targets of imagery are")
        if self.n_trials % self.session_trials:
            raise _option("trials_per_session", self.session_trials, f"a divisor of all {self.n_trials} trials")
        if not 1 <= self.n_sessions <= self.n_trials // self.session_trials:
            raise _option("sessions", self.sessions, f"1 to {self.n_trials // self.session_trials}")

    @property
    def n_trials(self) -> int:
        """Trials of the whole design."""
        return (self.n_shared + self.n_own) * self.repeats

    @property
    def session_trials(self) -> int:
        """Trials of a session."""
        if self.trials_per_session is not None:
            return self.trials_per_session
        return max((n for n in range(1, self.n_trials // 4 + 1) if self.n_trials % n == 0), default=1)

    @property
    def n_sessions(self) -> int:
        """Sessions that are written."""
        return self.n_trials // self.session_trials if self.sessions is None else self.sessions

    @property
    def n_stimuli(self) -> int:
        """Stimuli in the stimulus file (NSD: 73,000)."""
        return self.n_shared + N_SUBJECTS * self.n_own


def chosen_options(
    options: SimulateOptions | None, subjects: tuple[str, ...], shared: int, own: int, seed: int, imagery: bool
) -> SimulateOptions:
    """The options given or, instead of them, the usual ones with single sizes; what is empty or 0 keeps its default.

    Raises
    ------
    InputError : a size out of range, or both.
    """
    if options is None:
        usual = SimulateOptions(seed=seed)
        return SimulateOptions(
            subjects=subjects or usual.subjects,
            n_shared=shared or usual.n_shared,
            n_own=own or usual.n_own,
            seed=seed,
            imagery=imagery,
        )
    if subjects or shared or own or seed or imagery:
        raise InputError(
            "simulate",
            found="`options` and single ones (subjects, shared, own, seed or imagery)",
            expected="one of them",
            meaning="Both say how large the dataset is.",
            action="leave out the single ones, or `options`",
        )
    return options


def simulate(
    root: str | Path,
    options: SimulateOptions | None = None,
    *,
    bundle: str = "tiny",
    features: Features | None = None,
    layers: Layers | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the dataset of `options` to `root`, whole or not at all; return at once if it is already there.

    The voxels encode the latents that `features` gives; by default those of `bundle`'s three target spaces.
    `layers` are the (channels, height, width) of their vdvae space, channel-major; by default `bundle`'s, or with
    `features` of your own none: then nothing is known of where a latent lies in the photo, and V1 to hV4 encode
    random mixtures of the whole space instead of what is in their receptive fields (truth.json says so).
    Only stimuli that a simulated subject is shown are drawn; all others are black and without captions.
    Raises InputError where `root` holds anything else, the disk is full, or `layers` do not add up to the vdvae space.
    """
    root, options = Path(root), options or SimulateOptions()
    name = bundle if features is None else getattr(features, "__qualname__", type(features).__qualname__)
    if features is None and layers is None:
        from bdflow.models.weights.bundle import open_bundle

        layers = open_bundle(bundle).layers
    sizes = asdict(options)
    if not options.imagery:
        del sizes["imagery"]  # as in datasets that were written before there was this option
    given = {"format": FORMAT, "features": name, "layers": layers or (), "options": sizes}
    made_of = json.loads(json.dumps(given))
    if _already_there(root, made_of):
        return root
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        extract = features or _bundle_features(bundle, options.seed)
        with threadpool_limits(1):  # so that the bytes do not depend on the number of cores
            _Writer(partial, options, extract, layers or (), progress).write(made_of)
        partial.replace(root)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(
            root,
            found="a full disk",
            expected="space for the simulated dataset",
            meaning="Nothing was kept.",
            action="free some space, or simulate fewer stimuli or smaller volumes.",
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return root


class _Writer:
    def __init__(
        self,
        root: Path,
        options: SimulateOptions,
        features: Features,
        layers: Layers,
        progress: Progress | None,
    ) -> None:
        self.root, self.options, self.features, self.layers = root, options, features, layers
        self.progress = progress or (lambda what, done, total: None)

    def write(self, made_of: dict) -> None:
        options = self.options
        self.design = make_design(options.n_shared, options.n_own, options.repeats, options.seed)
        shown = np.unique(self.design["subjectim"][[nsd.subject_index(s) - 1 for s in options.subjects]]) - 1
        self._write_design()
        latents, attributes = self._write_stimuli(shown)
        _check_layers(self.layers, latents)
        parts = Components.of(latents, self.layers)
        truth: dict[str, Any] = {
            "nsd_id": shown,
            "components": parts.values,
            "component_space": parts.space,
            "component_layer": parts.layer,
            "component_position": parts.position,
            "kinds": np.array(list(FLOC)),
            **parts.made,
            **{f"scene/{key}": value for key, value in attributes.items()},
        }
        self.session: Session | None = None
        if options.imagery:
            self.session, more = self._write_imagery(parts)
            truth |= more
        subjects = {}
        for number, subject in enumerate(options.subjects):
            self.progress("subjects", number, len(options.subjects))
            planted, subjects[subject] = self._write_subject(subject, shown, parts, attributes["kind"])
            truth |= {f"{subject}/{key}": value for key, value in asdict(planted).items()}
        self.progress("subjects", len(options.subjects), len(options.subjects))
        np.savez_compressed(self.root / "truth.npz", **truth)
        early = "receptive fields" if parts.spatial else "whole vdvae space, no layer has positions"
        content = {**made_of, "v1_to_hv4_encode": early, "quantiles": QUANTILES, "subjects": subjects}
        text = json.dumps(content, indent=2)
        text = re.sub(r"[\[{][^][{}]*[]}]", lambda leaf: re.sub(r"\s+", " ", leaf[0]), text)  # one line each
        (self.root / "truth.json").write_text(text + "\n", encoding="utf-8")

    def _file(self, path: str | Path) -> Path:
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        return full

    def _write_design(self) -> None:
        write_design(self._file(nsd.DESIGN), self.design)
        write_stim_info(self._file(nsd.STIM_INFO), self.design, self.options.repeats)

    def _write_stimuli(self, shown: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Draw the stimuli of `shown`; write images and captions; return their latents, {space: (n, d)
        float32}, and the scenes' attributes, {name: (n,)}.
        """
        options = self.options
        size = options.stimulus_size
        captions = np.full((options.n_stimuli, 5), "", dtype=object)
        found: dict[str, list[np.ndarray]] = {}
        scenes: list[dict[str, str | int | float]] = []
        with h5py.File(self._file(nsd.STIMULI), "w") as file:
            brick = file.create_dataset(
                "imgBrick",
                (options.n_stimuli, size, size, 3),
                np.uint8,
                chunks=(1, size, size, 3),
                compression="gzip",
                compression_opts=1,
            )
            for start in range(0, shown.size, _BATCH):
                self.progress("stimuli", start, shown.size)
                ids = shown[start : start + _BATCH]
                drawn = [scene(int(i), options.seed, size) for i in ids]
                scenes += [one.attributes for one in drawn]
                for nsd_id, one in zip(ids, drawn, strict=True):
                    brick[nsd_id] = one.image
                    captions[nsd_id] = one.captions
                images, names = np.stack([one.image for one in drawn]), [nsd.stimulus_id(int(i)) for i in ids]
                for space, values in self.features(images, [one.captions for one in drawn], names).items():
                    found.setdefault(space, []).append(np.asarray(values, np.float32).reshape(ids.size, -1))
            self.progress("stimuli", shown.size, shown.size)
        np.save(self._file(nsd.CAPTIONS), captions.astype(str), allow_pickle=False)
        names = [name for name in scenes[0] if all(name in one for one in scenes)]
        attributes = {name: np.array([one[name] for one in scenes]) for name in names}
        return {space: np.concatenate(parts) for space, parts in found.items()}, attributes

    def _write_subject(
        self, subject: str, shown: np.ndarray, parts: Components, kind: np.ndarray
    ) -> tuple[Encoding, dict[str, object]]:
        options = self.options
        anatomy = brain(subject, options.volume_shape, options.seed)
        shape = anatomy.inside.shape
        for name, labels in anatomy.rois.items():
            path = f"nsddata/ppdata/{subject}/{nsd.SPACE}/roi/{name}.nii.gz"
            write_nifti(self._file(path), labels.shape, labels.dtype, [labels])
        planted = encode(anatomy, parts, kind, options.noise_ceiling, options.seed, subject)

        folder = f"nsddata_betas/ppdata/{subject}/{nsd.SPACE}/{nsd.PREPARATION}"
        ncsnr = np.zeros(shape, np.float32)
        ncsnr[anatomy.general] = planted.ncsnr
        write_nifti(self._file(f"{folder}/ncsnr.nii.gz"), shape, ncsnr.dtype, [ncsnr])

        rng = random.generator(options.seed, "background", subject)
        mean, noise_sd = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        mean[anatomy.inside] = rng.normal(0, 0.3, anatomy.inside.sum())
        noise_sd[anatomy.inside] = NOISE_SD * np.exp(0.3 * rng.standard_normal(anatomy.inside.sum()))
        mean[anatomy.general], noise_sd[anatomy.general] = planted.mean, planted.noise_sd
        signal = (parts.values - parts.values.mean(axis=0)) @ planted.weights
        row = np.searchsorted(shown, self._trials(subject))
        for session in range(1, options.n_sessions + 1):
            rows = row[(session - 1) * options.session_trials : session * options.session_trials]

            def volumes(session: int = session, rows: np.ndarray = rows) -> Iterator[np.ndarray]:
                draws = random.generator(options.seed, "noise", subject, session)
                for trial_row in rows:
                    volume = mean.copy()
                    volume[anatomy.general] += signal[trial_row]
                    drawn = draws.standard_normal(int(anatomy.inside.sum()), dtype=np.float32)
                    volume[anatomy.inside] += noise_sd[anatomy.inside] * drawn
                    yield np.clip(np.rint(300 * volume), -32768, 32767).astype(np.int16)

            file = self._file(f"{folder}/betas_session{session:02d}.{options.betas_format}")
            write = write_nifti if options.betas_format == "nii.gz" else write_hdf5
            write(file, (*shape, rows.size), np.dtype(np.int16), volumes())
        if self.session is not None:
            self.session.write_subject(
                self._file, subject, anatomy, planted, parts, mean, noise_sd, options.betas_format
            )
        return planted, summary(anatomy, planted, parts, kind)

    def _write_imagery(self, parts: Components) -> tuple[Session, dict[str, np.ndarray]]:
        """Draw the session's pictures and write what is the same for every subject; and what was planted."""
        options = self.options
        pictures = draw(self.design, options.n_stimuli, options.stimulus_size, options.seed)
        names = [picture.name for picture in pictures]
        latents = self.features(
            np.stack([picture.image for picture in pictures]), [picture.captions for picture in pictures], names
        )
        flat = {space: np.asarray(values, np.float32).reshape(len(names), -1) for space, values in latents.items()}
        session = Session(pictures, parts.project(flat), options.seed)
        session.write_experiment(self._file)
        return session, {
            "imagery/pictures": np.array(names),
            "imagery/components": session.components,
            "imagery/mixtures": session.mixtures,
        }

    def _trials(self, subject: str) -> np.ndarray:
        """0-based stimulus of every trial of the design."""
        positions = self.design["masterordering"].ravel() - 1
        return self.design["subjectim"][nsd.subject_index(subject) - 1, positions] - 1


def _check_layers(layers: Layers, latents: dict[str, np.ndarray]) -> None:
    found, expected = sum(c * h * w for c, h, w in layers), latents["vdvae"].shape[1] if "vdvae" in latents else 0
    if layers and found != expected:
        raise InputError(
            "layers",
            found=f"{found} latents in {len(layers)} layers",
            expected=f"{expected}, as many as the vdvae space has",
            action="give (channels, height, width) of every layer of that space, in its order.",
        )


def _bundle_features(bundle: str, seed: int) -> Features:
    import torch

    from bdflow.models.latents import FeatureExtractor

    extractor = FeatureExtractor(bundle, seed=seed, vdvae_latent="mean")

    def extract(*stimuli: Any) -> dict[str, np.ndarray]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the other half of threadpool_limits: torch's own matrix library
        try:
            return extractor(*stimuli)
        finally:
            torch.set_num_threads(threads)

    return extract


def _already_there(root: Path, made_of: dict) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        truth = json.loads((root / "truth.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        truth = {}
    different = [key for key, value in made_of.items() if truth.get(key) != value]
    if not different:
        return True
    old, new = truth.get("options", {}), made_of["options"]
    names = ", ".join(key for key in {**new, **old} if old.get(key) != new.get(key)) or ", ".join(different)
    raise InputError(
        root,
        found=f"a dataset simulated with other options ({names})" if truth else "files that simulate did not write",
        expected="no folder, an empty one, or the same simulated dataset",
        meaning="Nothing was changed there.",
        action="choose another folder, or remove this one.",
    )


def _option(name: str, found: object, expected: str) -> InputError:
    return InputError(f"simulate option {name}", found=str(found), expected=expected, action="change this option.")
