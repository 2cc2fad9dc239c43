"""A dataset's files into stores. Betas session by session, stimuli by blocks, rows for ridge by blocks of voxels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from logging import getLogger
from typing import Any

import numpy as np

from bdflow.config import Config, content
from bdflow.datasets.contract import Split
from bdflow.datasets.reader import open_dataset
from bdflow.errors import InputError, counted
from bdflow.stores import Store, text
from bdflow.study import catalog, keys, parts, trials
from bdflow.study.designs import Design, response_kinds
from bdflow.study.graph import Counts, StoreDecl
from bdflow.study.keys import SHARED
from bdflow.study.noise_ceilings import ncsnr_of_repeats
from bdflow.study.stage import Context, Stage, Step, Work, pairs

log = getLogger(__name__)

Kind = tuple[str, str]  # (subject, kind of rows)


class Ingest(Stage):
    """Betas, stimuli, and the rows that ridge is fitted on."""

    name = "ingest"
    method = 3

    def stores(self, config: Config) -> Iterator[StoreDecl]:
        data, chunks = open_dataset(config), config.chunks
        for part in (SHARED, *config.subjects):
            settings: dict[str, Any] = {
                "dataset": content(config.dataset, "stimuli") | data.content("stimuli"),
                "part": part,
            }
            settings["sessions"] = _sessions(config, config.everybody if part == SHARED else (part,))
            layout, cut = partial(_stimuli, config, part), content(chunks, "stimuli")
            yield StoreDecl(keys.stimuli(part), layout, settings, partial(data.stimulus_inputs, part), chunks=cut)
        for subject in config.subjects:
            betas = keys.betas(subject)
            inputs = partial(data.beta_inputs, subject)
            own = content(config.dataset, "betas") | data.content("betas") | {"sessions": _sessions(config, (subject,))}
            yield StoreDecl(betas, partial(_betas, config, subject), own, inputs)
            for kind, design in response_kinds(config).items():
                settings = {"dataset": content(config.dataset, "responses")}
                settings |= {"rows": design.rows, "session_zscore": design.session_zscore}
                rows, cut = partial(_responses, config, subject, design), content(chunks, "responses")
                upstream = (betas, *parts.stimuli(parts.of_pictures(config, subject)))
                yield StoreDecl(keys.responses(subject, kind), rows, settings, upstream=upstream, chunks=cut)

    def steps(self, context: Context) -> Iterable[Step]:
        subjects, kinds = context.subjects, response_kinds(context.config)
        betas = tuple(keys.betas(subject) for subject in subjects)
        responses = tuple(keys.responses(subject, kind) for subject in subjects for kind in kinds)
        stimuli = parts.stimuli(parts.of_run(context))
        return (
            Step("betas", "sessions", (), betas, partial(_start_betas, context)),
            Step("stimuli", "partitions", (), stimuli, partial(_start_stimuli, context)),
            Step(
                "responses",
                "blocks of voxels",
                (*stimuli, *betas),
                responses,
                partial(_start_responses, context, kinds),
            ),
            Step("voxels", "subjects", (*betas, *responses), (), partial(_check_voxels, context, tuple(kinds))),
        )


# --- what the stores look like ----------------------------------------------------------------------------------------


def _sessions(config: Config, subjects: Iterable[str]) -> object:
    """The sessions of some subjects as a setting: one where all have the same, or the different ones. A further subject
    with sessions that another has changes nothing.
    """
    chosen = [config.dataset.sessions_of(subject) for subject in subjects]
    own = [list(of) if isinstance(of, tuple) else of for of in dict.fromkeys(chosen)]
    return own[0] if len(own) == 1 else sorted(own, key=str)


def _stimuli(config: Config, part: str, counts: Counts) -> catalog.Laid:
    height, width = counts.photo()
    sizes = {
        "stimulus_id": counts.stimuli(part),
        "y": height,
        "x": width,
        "rgb": 3,
        "caption_number": counts.captions(),
    }
    leave_out = config.dataset.without_caption == "leave_out"
    if leave_out:
        sizes["left_out"] = counts.left_out(part)
    return catalog.stimuli(config.chunks.stimuli, leave_out=leave_out), sizes


def _betas(config: Config, subject: str, counts: Counts) -> catalog.Laid:
    sizes = {"trial": counts.trials(subject), "voxel": counts.voxels(subject), "region": counts.regions(subject)}
    sizes |= {"axis": 3, "world": 4, "index": 4, "code": 1}
    return catalog.betas(counts.most_trials(subject), open_dataset(config).encoding()), sizes


def _responses(config: Config, subject: str, design: Design, counts: Counts) -> catalog.Laid:
    rows = counts.train_rows(subject, design.rows) + counts.test_stimuli(subject)
    units = open_dataset(config).encoding().units
    spec = catalog.responses(config.chunks.voxels, units, rows=design.rows, z_scored=design.session_zscore)
    return spec, {catalog.row_dim(design.rows): rows, "voxel": counts.voxels(subject)}


# --- steps ------------------------------------------------------------------------------------------------------------


def _start_betas(context: Context) -> Work:
    data = open_dataset(context.config)
    stores = {}
    for subject in context.subjects:
        mask, shown = data.mask(subject), data.trials(subject)
        i, j, k = np.nonzero(mask)
        given = {
            "grid": np.array(mask.shape),
            "affine": data.affine(subject),
            "affine_form": np.array([data.affine_form(subject)]),
            "stimulus_id": shown.stimulus,
            "session": shown.session,
            "run": shown.run,
            "condition": shown.condition,
            "i": i,
            "j": j,
            "k": k,
            "region": text(data.region_names(subject)),
            "roi": data.regions(subject).astype(np.uint8),
            "ncsnr": data.ncsnr(subject),
        }
        stores[subject] = context.declare(keys.betas(subject), given)
    return Work(pairs(stores), partial(SessionReader, context.config, stores))


def _start_stimuli(context: Context) -> Work:
    data, stores = open_dataset(context.config), {}
    for part in parts.of_run(context):
        ids, split = data.stimuli(part)
        given = {"stimulus_id": ids, "split": text(split)}
        if context.config.dataset.without_caption == "leave_out":
            given["without_caption"] = text(data.left_out(part))
        stores[part] = context.declare(keys.stimuli(part), given)
    for line in parts.left_out(stores.values()):
        log.warning("%s.", line)
    return Work(pairs(stores), partial(StimulusReader, context.config, stores))


def _start_responses(context: Context, kinds: dict[str, Design]) -> Work:
    betas = {subject: context.ready(keys.betas(subject)) for subject in context.subjects}
    stores: dict[Kind, Store] = {}
    data = open_dataset(context.config)
    for subject, of in betas.items():
        shown = trials.shown(of)
        stimuli = parts.joined(context, parts.stimuli(parts.of_pictures(context.config, subject)))
        ids, split = of_subject(stimuli.read("stimulus_id"), data.split[subject])
        for kind, design in kinds.items():
            row_ids, row_split, repeats = training_rows(ids, split, shown, design.rows)
            given = {"stimulus_id": row_ids, "split": text(row_split), "repeats": repeats}
            given["trial"] = first_trials(of, row_ids, row_split, design.rows)
            stores[subject, kind] = context.declare(keys.responses(subject, kind), given)
    return Work(pairs(stores), partial(RowMaker, betas, stores, kinds, context.config.dataset.bad_voxels))


def of_subject(ids: np.ndarray, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Those of `ids` that a subject's split has, and `test` or `train` of each; test ones first, in their order.

    A stimulus that is for testing in one subject may be for training in another.
    """
    test, train = np.isin(ids, list(split.test)), np.isin(ids, list(split.train or ()))
    return np.concatenate([ids[test], ids[train]]), np.repeat(np.array(["test", "train"]), [test.sum(), train.sum()])


def training_rows(
    ids: np.ndarray, split: np.ndarray, shown: np.ndarray, rows: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stimulus, part and number of trials of each row of a subject's responses, in the order of `ids`.

    Parameters
    ----------
    ids, split : every stimulus the subject may have seen, and whether it is for `test` or `train`.
    shown : stimulus of each of the subject's trials that are usable.
    rows : `averaged`: a row a stimulus; `trials`: a row a training trial (those of a stimulus beside each other, in the
        order of the scan), and one a test stimulus.
    """
    known, counts = np.unique(shown, return_counts=True)
    mine = np.isin(ids, known)
    ids, split = ids[mine], split[mine]
    repeats = counts[np.searchsorted(known, ids)]
    if rows == "averaged":
        return ids, split, repeats
    times = np.where(split == "train", repeats, 1)
    return np.repeat(ids, times), np.repeat(split, times), np.repeat(np.where(split == "train", 1, repeats), times)


def first_trials(betas: Store, ids: np.ndarray, split: np.ndarray, rows: str) -> np.ndarray:
    """The trial (row,) of each row of a subject's responses, or the first of those that are averaged; positions in the
    betas.
    """
    usable = np.flatnonzero(trials.usable(betas))
    shown = betas.read("stimulus_id")[usable]
    order = np.argsort(shown, kind="stable")
    first = np.searchsorted(shown, ids, sorter=order)
    if rows == "trials":
        starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        number = np.arange(len(ids)) - np.repeat(starts, np.diff([*starts, len(ids)]))
        first = first + np.where(split == "train", number, 0)
    found: np.ndarray = usable[order[first]].astype(np.int32)
    return found


def _check_voxels(context: Context, kinds: tuple[str, ...]) -> Work:
    """Say what of the betas is missing or cut off, and which voxels are dropped. InputError if none is left."""
    for subject in context.subjects:
        betas = context.ready(keys.betas(subject))
        for kind in kinds:
            key = keys.responses(subject, kind)
            account = trials.Account.read(betas, context.ready(key))
            if kind == kinds[0]:
                for line in account.lines():
                    log.warning("%s: %s.", betas.path, line)
            for line in account.dropped():
                log.warning("%s: not decoded from: %s.", key, line)
            if account.incomplete + account.constant == account.voxels:
                raise InputError(
                    key,
                    found="no voxel that can be decoded from: " + "; ".join(account.dropped()),
                    expected="voxels that vary over the training stimuli, with a measurement of every stimulus",
                    action="check the betas and the mask of this subject; leave sessions out by `dataset.sessions`, or "
                    "average trials (`ridge.rows: averaged`), where single trials are missing",
                )
    return Work()


# --- workers ----------------------------------------------------------------------------------------------------------


class SessionReader:
    """Streams the session or two that a block of trials is from: unpack, mask, store."""

    def __init__(self, config: Config, stores: dict[str, Store]) -> None:
        self.data, self.stores = open_dataset(config), stores

    def __call__(self, task: tuple[str, int]) -> None:
        subject, partition = task
        betas = self.data.betas(subject, partition)
        valid = betas.valid.astype(np.uint8)
        counted = np.count_nonzero(valid, axis=1).astype(np.int32)
        self.stores[subject].write(partition, {"beta": betas.values, "valid": valid, "valid_voxels": counted})


class StimulusReader:
    """Copies one block of photos and captions a task."""

    def __init__(self, config: Config, stores: dict[str, Store]) -> None:
        self.data, self.stores = open_dataset(config), stores

    def __call__(self, task: tuple[str, int]) -> None:
        part, partition = task
        store = self.stores[part]
        ids = store.read("stimulus_id", store.spec.region(store.sizes, partition))
        texts = np.full((len(ids), store.sizes["caption_number"]), "", dtype=np.dtypes.StringDType())
        for row, found in zip(texts, self.data.read_captions(ids), strict=True):
            row[: len(found)] = found
        store.write(partition, {"image": self.data.read_photos(ids), "caption": texts})


class RowMaker:
    """Makes the rows of one block of voxels of one subject a task, with training mean and SD."""

    def __init__(
        self, betas: dict[str, Store], stores: dict[Kind, Store], kinds: dict[str, Design], bad_voxels: str
    ) -> None:
        self.betas, self.stores, self.kinds, self.bad_voxels = betas, stores, kinds, bad_voxels
        self.orders: dict[Kind, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def _order(self, kind: Kind) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Trials sorted by row; where each row starts; which rows are for training."""
        if kind not in self.orders:
            responses, betas = self.stores[kind], self.betas[kind[0]]
            usable, shown = np.flatnonzero(trials.usable(betas)), trials.shown(betas)
            ids, repeats = responses.read("stimulus_id"), responses.read("repeats")
            first = np.concatenate([[True], ids[1:] != ids[:-1]])  # of the rows of a stimulus
            mine = np.isin(shown, ids)
            usable, shown = usable[mine], shown[mine]
            order = np.argsort(ids[first], kind="stable")
            stimulus = order[np.searchsorted(ids[first], shown, sorter=order)]
            in_rows = usable[np.argsort(stimulus, kind="stable")]
            starts = np.concatenate([[0], np.cumsum(repeats)[:-1]])
            self.orders[kind] = (in_rows, starts, responses.read("split") == "train")
        return self.orders[kind]

    def __call__(self, task: tuple[str, str, int]) -> None:
        subject, kind, partition = task
        betas, responses, design = self.betas[subject], self.stores[subject, kind], self.kinds[kind]
        region = responses.spec.region(responses.sizes, partition)
        raw, valid = betas.read("beta", region), betas.read("valid", region) == 1
        encoding = trials.encoding_of(betas)
        missing, cut_off = (~valid).sum(axis=0), (trials.cut_off(raw, encoding) & valid).sum(axis=0)
        in_rows, starts, train = self._order((subject, kind))
        if design.session_zscore:
            values, valid = trials.session_z_scored(raw, betas.read("session"), valid)
        else:
            values = np.where(valid, raw, 0).astype(np.int32 if encoding.dtype == "int16" else np.float64)
        counts = np.add.reduceat(valid[in_rows], starts, axis=0, dtype=np.int32)
        lost = (counts == 0).any(axis=0)
        scaled = 1.0 if design.session_zscore else encoding.divisor
        sums = np.add.reduceat(values[in_rows], starts, axis=0)
        response = (sums / (np.maximum(counts, 1) * scaled)).astype(np.float32)
        mean = response[train].mean(axis=0, dtype=np.float64)
        scale = response[train].std(axis=0, ddof=1, dtype=np.float64) if train.sum() > 1 else np.zeros_like(mean)
        constant = (response[train] == response[train][:1]).all(axis=0)
        bad = lost | constant
        if self.bad_voxels == "refuse" and bad.any():
            first = int(region["voxel"].start + np.flatnonzero(bad)[0])
            i, j, k = (int(betas.read(axis)[first]) for axis in "ijk")
            raise InputError(
                betas.path,
                found=f"{counted(int(bad.sum()), 'voxel')} in this block that cannot be decoded from: "
                f"{int(lost.sum())} without a measurement of some stimulus, {int((constant & ~lost).sum())} constant; "
                f"the first at ({i}, {j}, {k})",
                expected="none, as `dataset.bad_voxels: refuse` asks",
                action="set `dataset.bad_voxels: drop` to leave them out, or choose another mask",
            )
        response[:, lost] = np.nan
        something = trials.usable(betas) & (betas.read("stimulus_id") != "")
        ceiling = ncsnr_of_repeats(values[something], valid[something], betas.read("stimulus_id")[something])
        responses.write(
            partition,
            {
                "response": response,
                "voxel_mean": np.where(lost, np.nan, mean).astype(np.float32),
                "voxel_scale": np.where(bad, 0, scale).astype(np.float32),
                "valid": (~bad).astype(np.uint8),
                "ncsnr_repeats": ceiling,
                "missing_trials": missing.astype(np.int32),
                "clipped_trials": cut_off.astype(np.int32),
            },
        )
