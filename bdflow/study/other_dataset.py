"""Decode the trials of another dataset by the decoders of a study, such as imagery by those of perception.

Nothing is fitted again. Trials of a stimulus in a condition are averaged as the study's own test stimuli are, over the
same voxels; what that takes is checked first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bdflow.config import Config, content, load
from bdflow.datasets.formats.grids import Grid, check_same_grid, stated
from bdflow.datasets.reader import Reader
from bdflow.errors import InputError, counted, listed, without_secrets
from bdflow.stores import Provenance, Store
from bdflow.stores.metadata import folded
from bdflow.stores.spec import EVERY_CHUNK
from bdflow.study import catalog, keys, trials
from bdflow.study.coordinates import of_store
from bdflow.study.decoder import (
    Decoder,
    check_rule,
    responses_of,
    restandardised,
    statistics_of,
    written_whole,
    z_scored_patterns,
)
from bdflow.study.designs import Design, designs
from bdflow.study.stage import Context

if TYPE_CHECKING:
    import zarr

log = getLogger(__name__)

ROWS_A_CHUNK = 256
MOST_MISSING = 0.5
"""The largest share of the voxels of a row that may take their training mean."""


@dataclass(frozen=True)
class Rows:
    """Mean responses of a subject, a row a stimulus and condition, sorted by both.

    Attributes
    ----------
    stimulus, condition : (row,) str; the condition is empty where the dataset has one kind of trials alone.
    repeats : (row,) int32: trials that are averaged, where the voxel has them all.
    response : (row, voxel) float64, in the unit of the study's rows; NaN without a measurement in any of these trials.
    """

    stimulus: np.ndarray
    condition: np.ndarray
    repeats: np.ndarray
    response: np.ndarray


def open_other(study: Config, other: Config | str | Path, subjects: Sequence[str] = ()) -> tuple[Reader, list[str]]:
    """A dataset that a study's decoders are applied to, and whose trials.

    Parameters
    ----------
    other : a configuration, of which `dataset` and `subjects` count; a file may leave out all but `dataset`.
    subjects : by default those of the study that `other` names too.

    Raises
    ------
    InputError : a configuration that cannot be used; subjects that the two do not share.
    """
    if isinstance(other, str | Path):
        kept = {"study": study.study, "subjects": list(study.subjects), "report": study.report, "spaces": study.spaces}
        other = load(other, absent=kept)
    chosen = list(subjects) or [subject for subject in study.subjects if subject in other.subjects]
    unknown = [subject for subject in chosen if not (subject in study.subjects and subject in other.subjects)]
    if unknown or not chosen:
        raise InputError(
            "subjects",
            found=", ".join(unknown) or "none that both configurations have",
            expected=f"subjects of the study ({listed(study.subjects)}) and of the other dataset "
            f"({listed(other.subjects)})",
            action="choose among those that both configurations have in `subjects`",
        )
    return Reader(other.of_subjects(chosen)), chosen


def write_decoded(context: Context, data: Reader, out: Path, rule: str) -> dict[str, int]:
    """Decode the trials of a dataset for the subjects of `context`, and write a Zarr group for each subject and space.

    Parameters
    ----------
    data : the other dataset; its sessions, condition and mask are those of its own configuration.
    rule : re-standardisation by the statistics of the study, see `ridge.restandardise`.

    Returns
    -------
    How many rows each subject has.

    Raises
    ------
    InputError : `out` exists; a subject without trials there; other voxels or units than the study's; more than half
        of the voxels of a stimulus without a measurement. NotReady : the stage `regress` is not done.
    """
    import zarr

    check_rule(rule)
    subjects = context.subjects
    many: dict[str, int] = {}
    with written_whole(out) as partial:
        for subject in subjects:
            _check_ready(context, subject, rule)
            _check_voxels(context.ready(keys.betas(subject)), data, subject)
        title = {"title": "Latents decoded from the trials of another dataset, a group a subject and space"}
        zarr.create_group(partial, zarr_format=3, attributes=title)
        for subject in subjects:
            zarr.create_group(partial, path=subject, zarr_format=3)
            for design, spaces in designs(context.config).items():
                rows = rows_of(context.ready(keys.betas(subject)), data, subject, design.session_zscore)
                many[subject] = len(rows.stimulus)
                _write_decoded(partial, context, data, subject, design, spaces, rows, rule)
    return many


def rows_of(betas: Store, data: Reader, subject: str, session_zscore: bool) -> Rows:
    """The mean of the valid betas of each stimulus and condition, over the voxels of the dataset's mask.

    Parameters
    ----------
    betas : those of the study, whose unit counts.
    session_zscore : whether betas are first z-scored, by mean and SD of each voxel over the valid trials of the session
        that the dataset gives: with one condition asked for, over the trials of that condition alone.

    Raises
    ------
    InputError : no trial of a stimulus; betas in another unit than the study's where they are not z-scored.
    """
    if not session_zscore:
        _check_units(betas, data, subject)
    known, scale = data.trials(subject), 1.0 if session_zscore else data.encoding().divisor
    kinds, row = np.unique(np.stack([known.stimulus, known.condition]), axis=1, return_inverse=True)
    row = row.ravel()
    shape = (kinds.shape[1], int(data.mask(subject).sum()))
    sums, counts, repeats = np.zeros(shape), np.zeros(shape, np.int32), np.zeros(shape[0], np.int32)
    for session in data.sessions(subject):
        here, at = data.session_betas(subject, session), row[known.session == session]
        usable = here.valid.any(axis=1) & (known.stimulus[known.session == session] != "")
        values, valid = here.values, here.valid
        if session_zscore:
            values, valid = trials.session_z_scored(values, np.zeros(len(values), np.int32), valid)
        for number in np.unique(at[usable]):
            mine = usable & (at == number)
            sums[number] += np.where(valid[mine], values[mine], 0).sum(axis=0, dtype=np.float64)
            counts[number] += valid[mine].sum(axis=0, dtype=np.int32)
            repeats[number] += np.count_nonzero(mine)
    some = repeats > 0
    if not some.any():
        raise InputError(
            f"{data.settings.kind}, {subject}",
            found=f"{counted(len(known.stimulus), 'trial')}, none of a stimulus with a measurement",
            expected="one trial or more",
            action="fetch the betas of this subject, or ask for other sessions (`dataset.sessions`) or trials "
            "(`dataset.options`)",
        )
    lost = [str(stimulus) for stimulus in kinds[0, ~some] if stimulus]
    if lost:
        log.warning(
            "%s: %s left out, without a measurement in any voxel: first %s.",
            subject,
            counted(len(lost), "stimulus is", "stimuli are"),
            lost[0],
        )
    known_counts = counts[some]
    with np.errstate(invalid="ignore"):
        response = np.where(known_counts > 0, sums[some] / (np.maximum(known_counts, 1) * scale), np.nan)
    return Rows(kinds[0, some], kinds[1, some], repeats[some], response)


# --- what is decoded --------------------------------------------------------------------------------------------------


def _write_decoded(
    root: Path,
    context: Context,
    data: Reader,
    subject: str,
    design: Design,
    spaces: tuple[str, ...],
    rows: Rows,
    rule: str,
) -> None:
    """Write a group with `latent` (stimulus, ...) for each of the spaces of a design, block of latents by block."""
    z_scored, coords, voxels = _patterns(context, data, subject, design, spaces, rows)
    statistics = {space: statistics_of(context.ready(keys.predictions(subject, space)), rule) for space in spaces}
    arrays: dict[str, zarr.Array] = {}
    for space, block, raw in Decoder(context, subject).blocks(z_scored, spaces):
        if space not in arrays:
            predictions = context.ready(keys.predictions(subject, space))
            attrs = {
                "subject": subject,
                "space": space,
                "standardise": rule,
                "session_zscore": int(design.session_zscore),
                "voxels": voxels,
                "study": without_secrets(str(context.config.study)),
                "decoder": context.expected[keys.predictions(subject, space)].fingerprint,
            }
            record = {"provenance": _provenance(context, data, subject, space, rule).attrs()}
            shape, all_coords = (len(raw), *predictions.arrays["alpha"].shape), {**coords, **of_store(predictions)}
            arrays[space] = _array(root, f"{subject}/{space}", all_coords, folded(attrs, record), shape, raw.shape)
        here = {name: values[block] for name, values in statistics[space].items()}
        arrays[space][:, block] = restandardised(raw, space, rule, here)


def _array(
    root: Path,
    group: str,
    coords: dict[str, Any],
    attrs: dict[str, Any],
    shape: tuple[int, ...],
    block: tuple[int, ...],
) -> zarr.Array:
    """A group with its coordinates, and in it the array `latent` that is still to be filled."""
    import xarray
    import zarr

    opened = xarray.Dataset(None, coords, attrs)
    opened.to_zarr(root, group=group, mode="a", zarr_format=3, consolidated=False)
    return zarr.open_group(root, path=group, mode="r+").create_array(
        "latent",
        shape=shape,
        dtype="float32",
        chunks=(min(ROWS_A_CHUNK, len(coords["repeats"][1])), *block[1:]),
        config=EVERY_CHUNK,
        dimension_names=("stimulus", *catalog.space_dims(shape[1:])),
        attributes={
            "long_name": "decoded latent",
            "coordinates": " ".join(coords),
        },
    )


def _patterns(
    context: Context, data: Reader, subject: str, design: Design, spaces: tuple[str, ...], rows: Rows
) -> tuple[np.ndarray, dict[str, object], int]:
    """Z-scored rows (row, voxel), coordinates of what is decoded from them, and the number of voxels."""
    responses = responses_of(context, subject, spaces[0])
    used = context.ready(keys.system(subject, design.name)).read("used") == 1
    absent = np.isnan(rows.response)
    missing = (absent & used).sum(axis=1, dtype=np.int32)
    _check_missing(rows, missing, int(used.sum()), subject, design)
    filled = np.where(absent, responses.read("voxel_mean"), rows.response)
    coords: dict[str, Any] = {
        "stimulus_id": ("stimulus", rows.stimulus.astype(object), {"long_name": "the dataset's name of the stimulus"}),
        "repeats": ("stimulus", rows.repeats, {"long_name": "trials averaged, where the voxel has them all"}),
        "missing_voxels": (
            "stimulus",
            missing,
            {"long_name": f"of {used.sum()} voxels decoded from, those that took their training mean"},
        ),
    }
    if (rows.condition != "").any():
        coords["condition"] = ("stimulus", rows.condition.astype(object), {"long_name": "what the subject did"})
    return z_scored_patterns(responses, filled), coords, int(used.sum())


def _provenance(context: Context, data: Reader, subject: str, space: str, rule: str) -> Provenance:
    """The decoder, and the files and settings of the other dataset."""
    dataset = content(data.settings, "betas") | data.content("betas")
    settings = {
        "dataset": dataset | {"kind": data.settings.kind, "sessions": list(data.sessions(subject))},
        "standardise": rule,
    }
    predictions = keys.predictions(subject, space)
    upstream = {predictions: context.expected[predictions].fingerprint}
    return Provenance("decode", settings, data.beta_inputs(subject), upstream)


# --- what is checked --------------------------------------------------------------------------------------------------


def _check_ready(context: Context, subject: str, rule: str) -> None:
    """Raise NotReady without decoders, InputError without the statistics of the rule."""
    for design, spaces in designs(context.config).items():
        context.ready(keys.decoder(subject, design.name))
        for space in spaces:
            statistics_of(context.ready(keys.predictions(subject, space)), rule)


def _check_voxels(betas: Store, data: Reader, subject: str) -> None:
    """Raise InputError unless the dataset's voxels are those of the study's betas: one grid, and one mask."""
    if not data.sessions(subject):
        raise InputError(
            f"{data.settings.kind}, {subject}",
            found="no session with betas",
            expected="one session or more",
            action="fetch the betas of this subject, or leave it out",
        )
    shape = tuple(betas.read("grid").tolist())
    affine = stated(betas.read("affine"), int(betas.read("affine_form")[0]))
    check_same_grid([Grid(betas.path, shape, affine), data.dataset.grid(subject)], subject)
    mask, own = data.mask(subject), np.zeros(shape, bool)
    own[tuple(betas.read(axis) for axis in "ijk")] = True
    differ = np.argwhere(mask != own)
    if len(differ):
        first = tuple(differ[0].tolist())
        raise InputError(
            f"mask {data.mask_name or 'of the dataset'} of {subject}",
            found=f"{counted(int(mask.sum()), 'voxel')}, {counted(int((mask & ~own).sum()), 'other')} than the study's "
            f"and {int((own & ~mask).sum()):,} of the study's absent (first difference at {first})",
            expected=f"the {counted(int(own.sum()), 'voxel')} of {betas.path}",
            meaning="A decoder needs the voxels that it was fitted on.",
            action="set `dataset.mask` of the other dataset to the mask of the study",
        )


def _check_units(betas: Store, data: Reader, subject: str) -> None:
    own, other = trials.encoding_of(betas).units, data.encoding().units
    if own != other:
        raise InputError(
            f"betas of {data.settings.kind}, {subject}",
            found=f"betas in {other}",
            expected=f"{own}, as in {betas.path}",
            meaning="The decoder would take them for responses of another size.",
            action="decode by spaces with `ridge.session_zscore: true`, where units do not count",
        )


def _check_missing(rows: Rows, missing: np.ndarray, voxels: int, subject: str, design: Design) -> None:
    """Say how many voxels are missing; raise InputError where that is more than half of a row's."""
    if not missing.any():
        return
    worst = int(missing.argmax())
    if missing[worst] > MOST_MISSING * voxels:
        raise InputError(
            f"{subject}, stimulus {rows.stimulus[worst]}",
            found=f"no measurement in {missing[worst]:,} of the {counted(voxels, 'voxel')} that are decoded from",
            expected=f"at most {int(MOST_MISSING * voxels):,}",
            meaning="Voxels without a measurement take their training mean; too little would be left of the response.",
            action="fetch the betas again, or decode by regions that the session measured (`ridge.regions`)",
        )
    some = counted(int((missing > 0).sum()), "stimulus", "stimuli")
    log.warning(
        "%s, %s: %s of %d lack up to %d of %s that are decoded from, without a measurement in the other dataset; these "
        "take their training mean (z = 0).",
        subject,
        design.name,
        some,
        len(missing),
        int(missing.max()),
        counted(voxels, "voxel"),
    )
