"""Stage 1: NSD's files into stores. Betas session by session, responses by blocks of voxels, stimuli by blocks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np

from bdflow.config import Config
from bdflow.errors import InputError
from bdflow.nsd import NSD, Split, identity, split_stimuli, stimulus_order, voxel_mask
from bdflow.stage import Context, Expected, Work
from stores import Provenance, Store, catalog, text

NAME = "ingest"
ROI_FILES = ("prf-visualrois", "prf-eccrois", "floc-faces", "floc-words", "floc-places", "floc-bodies")
MISSING = np.int16(-32768)
BETA_SCALE = 300


class Dataset:
    """What the configuration selects of NSD: files, sessions, split and the order of stimuli."""

    def __init__(self, config: Config) -> None:
        settings = config.nsd
        self.config = config
        self.nsd = NSD(
            settings.root,
            preparation=settings.preparation,
            space=settings.space,
            betas_format=settings.betas_format,
            captions=settings.captions,
        )

    @cached_property
    def trials_per_session(self) -> dict[str, int]:
        sessions = self.config.nsd.sessions
        return {subject: self.nsd.trials_per_session(subject, sessions) for subject in self.config.subjects}

    @cached_property
    def split(self) -> Split:
        design = self.nsd.design()
        with self.nsd.stimuli() as stimuli:
            design.check_stimuli(stimuli.count)
            count = stimuli.count
        trials = {s: n * self.config.nsd.sessions for s, n in self.trials_per_session.items()}
        return split_stimuli(design, self.config.subjects, trials, self.config.nsd.test, count)

    def shown(self, subject: str) -> np.ndarray:
        """nsd_id of every trial of the subject."""
        n_trials = self.trials_per_session[subject] * self.config.nsd.sessions
        return self.nsd.design().nsd_ids(subject, n_trials)

    def roi_files(self, subject: str) -> list[str]:
        """The mask first, then those region files that exist."""
        present = self.nsd.roi_names(subject)
        return [self.config.nsd.mask, *(n for n in ROI_FILES if n in present and n != self.config.nsd.mask)]


def provenances(config: Config, known: Expected) -> dict[str, Provenance]:
    del known
    data, nsd = Dataset(config), config.nsd
    design = {data.nsd.design_path.name: identity(data.nsd.design_path)}
    if nsd.test != "shared":
        design["test"] = identity(nsd.test)
    chunks = config.chunks
    found = {
        "stimuli": Provenance(
            NAME,
            {
                "subjects": list(config.subjects),
                "sessions": nsd.sessions,
                "test": nsd.test,
                "chunk": chunks.stimuli,
            },
            {
                **design,
                data.nsd.stimuli_path.name: identity(data.nsd.stimuli_path),
                data.nsd.captions_path.name: identity(data.nsd.captions_path),
            },
        )
    }
    for subject in config.subjects:
        sessions = data.nsd.check_sessions(subject, nsd.sessions)
        files = [data.nsd.session_path(subject, session) for session in sessions]
        files += [data.nsd.roi(subject, name).path for name in data.roi_files(subject)]
        files.append(data.nsd.betas_folder(subject) / "ncsnr.nii.gz")
        betas = f"betas/{subject}"
        found[betas] = Provenance(
            NAME,
            {"sessions": nsd.sessions, "mask": nsd.mask},
            {**design, **{file.name: identity(file) for file in files}},
        )
        found[f"responses/{subject}"] = Provenance(
            NAME,
            {"bad_voxels": nsd.bad_voxels, "chunk": chunks.voxels},
            upstream={betas: found[betas].fingerprint, "stimuli": found["stimuli"].fingerprint},
        )
    return found


def works(context: Context) -> Iterator[Work]:
    data = Dataset(context.config)
    stores, tasks = {}, []
    for subject in context.subjects:
        stores[subject] = _declare_betas(context, data, subject)
        tasks += [(subject, partition) for partition in stores[subject].missing()]
    yield Work("betas", "sessions", list(stores.values()), tasks, partial(SessionReader, context.config, stores))

    stimuli = _declare_stimuli(context, data)
    yield Work(
        "stimuli",
        "partitions",
        [stimuli],
        stimuli.missing(),
        partial(StimulusReader, context.config, stimuli),
    )

    pairs, averages = {}, []
    for subject in context.subjects:
        betas = context.ready(f"betas/{subject}")
        responses = _declare_responses(context, data, subject, betas)
        pairs[subject] = (betas, responses)
        averages += [(subject, partition) for partition in responses.missing()]
    yield Work(
        "responses",
        "blocks of voxels",
        [responses for _, responses in pairs.values()],
        averages,
        partial(Averager, pairs, context.config.nsd.bad_voxels),
    )
    for subject, (_, responses) in pairs.items():
        if not responses.read("valid").any():
            raise InputError(
                f"responses/{subject}",
                found="no voxel that varies over the training stimuli",
                expected="voxels to decode from",
                action="check the betas and the mask of this subject",
            )


def _declare_betas(context: Context, data: Dataset, subject: str) -> Store:
    config, nsd = context.config, data.nsd
    mask_volume = nsd.roi(subject, config.nsd.mask)
    mask = voxel_mask(mask_volume)
    trials = data.trials_per_session[subject]
    labels, names = [], data.roi_files(subject)
    volumes = [nsd.roi(subject, name).data for name in names]
    ncsnr = nsd.ncsnr(subject)
    paths = [f"roi/{name}.nii.gz of {subject}" for name in names] + [f"ncsnr.nii.gz of {subject}"]
    session = nsd.open_session(subject, 1)
    for path, shape in [
        *zip(paths, [v.shape for v in [*volumes, ncsnr]], strict=True),
        (session.path, session.shape),
    ]:
        if tuple(shape) != mask.shape:
            raise InputError(
                path,
                found=f"volumes of shape {tuple(shape)}",
                expected=f"{mask.shape}, the shape of the mask {mask_volume.path}",
                meaning="Betas and masks are not of the same subject and space.",
                action="take both from one subject's folder and one space, such as func1pt8mm",
            )
    labels = [volume[mask] for volume in volumes]
    i, j, k = np.nonzero(mask)
    n_trials = trials * config.nsd.sessions
    return context.declare(
        f"betas/{subject}",
        catalog.betas(trials),
        {"trial": n_trials, "voxel": int(mask.sum()), "roi": len(names)},
        {
            "nsd_id": data.shown(subject),
            "session": np.repeat(np.arange(1, config.nsd.sessions + 1), trials),
            "i": i,
            "j": j,
            "k": k,
            "roi": text(names),
            "roi_label": np.stack(labels),
            "ncsnr": ncsnr[mask],
        },
    )


def _declare_stimuli(context: Context, data: Dataset) -> Store:
    ids, split, owner = stimulus_order(data.split)
    with data.nsd.stimuli() as stimuli:
        height, width, _ = stimuli.shape
    captions = data.nsd.captions()
    return context.declare(
        "stimuli",
        catalog.stimuli(context.config.chunks.stimuli),
        {"stimulus": len(ids), "y": height, "x": width, "rgb": 3, "caption_number": captions.per_stimulus},
        {"nsd_id": ids, "split": text(split), "owner": text(owner)},
    )


def _declare_responses(context: Context, data: Dataset, subject: str, betas: Store) -> Store:
    ids, split, _ = stimulus_order(data.split)
    shown, counts = np.unique(betas.read("nsd_id"), return_counts=True)
    mine = np.isin(ids, shown)
    return context.declare(
        f"responses/{subject}",
        catalog.responses(context.config.chunks.voxels),
        {"stimulus": int(mine.sum()), "voxel": betas.sizes["voxel"]},
        {
            "nsd_id": ids[mine],
            "split": text(split[mine]),
            "repeats": counts[np.searchsorted(shown, ids[mine])],
        },
    )


class SessionReader:
    """Streams one session a task: unpack, mask, store."""

    def __init__(self, config: Config, stores: dict[str, Store]) -> None:
        self.data, self.stores = Dataset(config), stores
        self.masks: dict[str, np.ndarray] = {}

    def __call__(self, task: tuple[str, int]) -> None:
        subject, partition = task
        if subject not in self.masks:
            self.masks[subject] = voxel_mask(self.data.nsd.roi(subject, self.data.config.nsd.mask))
        session = self.data.nsd.open_session(subject, partition + 1)
        self.stores[subject].write(
            partition, {"beta": as_int16(session.read_masked(self.masks[subject]), session.path)}
        )


def as_int16(betas: np.ndarray, path: Any) -> np.ndarray:
    """Betas as NSD stores them, int16 of 1/300 percent; not a number becomes the store's missing value.

    Raises InputError if values do not fit.
    """
    if betas.dtype == np.int16:
        return betas
    if betas.dtype.kind in "iu":
        scaled, bad = betas.astype(np.float64), np.zeros(betas.shape, bool)
    else:
        bad = ~np.isfinite(betas)
        scaled = np.rint(np.where(bad, 0, betas) * BETA_SCALE)
    if np.abs(scaled).max(initial=0) > np.iinfo(np.int16).max:
        raise InputError(
            path,
            found=f"betas up to {np.abs(scaled).max() / BETA_SCALE:g} percent signal change",
            expected=f"at most {np.iinfo(np.int16).max / BETA_SCALE:g}",
            meaning="NSD stores betas as int16 of 1/300 percent; floating-point files hold percent.",
            action="check the units of this file",
        )
    return np.where(bad, MISSING, scaled).astype(np.int16)


class StimulusReader:
    """Copies one block of photos and captions a task."""

    def __init__(self, config: Config, store: Store) -> None:
        self.data, self.store = Dataset(config), store
        self.captions = self.data.nsd.captions()

    def __call__(self, partition: int) -> None:
        store = self.store
        ids = store.read("nsd_id", store.spec.region(store.sizes, partition))
        with self.data.nsd.stimuli() as stimuli:
            images = stimuli.read(ids)
        texts = np.full((len(ids), store.sizes["caption_number"]), "", dtype=np.dtypes.StringDType())
        for row, found in zip(texts, self.captions.read(ids), strict=True):
            row[: len(found)] = found
        store.write(partition, {"image": images, "caption": texts})


class Averager:
    """Averages the repeats of each stimulus for one block of voxels a task, with training mean and SD."""

    def __init__(self, pairs: dict[str, tuple[Store, Store]], bad_voxels: str) -> None:
        self.pairs, self.bad_voxels = pairs, bad_voxels
        self.orders: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def _order(self, subject: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Trials sorted by stimulus; where each stimulus starts; which stimuli are for training."""
        if subject not in self.orders:
            betas, responses = self.pairs[subject]
            ids = responses.read("nsd_id")
            row = responses.rows("nsd_id", betas.read("nsd_id"))
            trials = np.argsort(row, kind="stable")
            starts = np.searchsorted(row[trials], np.arange(len(ids)))
            self.orders[subject] = (trials, starts, responses.read("split") == "train")
        return self.orders[subject]

    def __call__(self, task: tuple[str, int]) -> None:
        subject, partition = task
        betas, responses = self.pairs[subject]
        region = responses.spec.region(responses.sizes, partition)
        raw = betas.read("beta", region)
        trials, starts, train = self._order(subject)
        lost = (raw == MISSING).any(axis=0)
        sums = np.add.reduceat(raw[trials].astype(np.int32), starts, axis=0)
        response = (sums / (responses.read("repeats")[:, None] * float(BETA_SCALE))).astype(np.float32)
        mean = response[train].mean(axis=0, dtype=np.float64)
        scale = response[train].std(axis=0, ddof=1, dtype=np.float64) if train.sum() > 1 else np.zeros_like(mean)
        constant = (response[train] == response[train][:1]).all(axis=0)
        bad = lost | constant
        if self.bad_voxels == "refuse" and bad.any():
            first = int(region["voxel"].start + np.flatnonzero(bad)[0])
            i, j, k = (int(betas.read(axis)[first]) for axis in "ijk")
            raise InputError(
                f"betas/{subject}",
                found=f"{int(bad.sum())} constant or NaN voxels in this block, the first at ({i}, {j}, {k})",
                expected="none, as `nsd.bad_voxels: refuse` asks",
                action="set `nsd.bad_voxels: drop` to leave them out, or choose another mask",
            )
        response[:, lost] = np.nan
        responses.write(
            partition,
            {
                "response": response,
                "voxel_mean": np.where(lost, np.nan, mean).astype(np.float32),
                "voxel_scale": np.where(bad, 0, scale).astype(np.float32),
                "valid": (~bad).astype(np.uint8),
            },
        )
