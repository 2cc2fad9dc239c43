"""What a lab says of its tree: where the files are, and which columns of its tables mean what."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bdflow.config.base import Section
from bdflow.config.values import Count
from bdflow.datasets.contract import Units

KIND = "glmsingle"
VOLUMES = (".nii.gz", ".nii")
FIT = "derivatives/glmsingle/{subject}/{session}"
FUNC = f"{FIT}/func/{{subject}}_{{session}}_task-*"
ROIS = "derivatives/rois/{subject}/{subject}_space-T1w"


def words_of(pattern: str) -> list[str]:
    """The words in braces of a pattern."""
    return re.findall(r"\{([^{}]*)\}", pattern)


def _below(text: str) -> str:
    """A path below the root."""
    parts = text.split("/")
    if "" in parts or "." in parts or ".." in parts or "\\" in text or "://" in text:
        raise ValueError("expected a path below the root, without `.`, `..` and backslashes")
    return text


def _pattern(*words: str, needs: tuple[str, ...] = ()) -> Callable[[str], str]:
    def check(text: str) -> str:
        _below(text)
        found = words_of(text)
        if unknown := [word for word in found if word not in words]:
            raise ValueError(f"{{{unknown[0]}}} is none of " + ", ".join(f"{{{word}}}" for word in words))
        if absent := [word for word in needs if word not in found]:
            raise ValueError(f"there must be {{{absent[0]}}} in it")
        if re.search(r"[{}\[\]]|\*\*", re.sub(r"\{\w+\}", "", text)):
            raise ValueError("`[`, `]`, `**` and single braces have no meaning in a pattern; `*` and `?` do")
        return text

    return check


def _regions(text: str) -> str:
    dseg = any(text.endswith(f"_dseg{ending}") for ending in VOLUMES)
    if not dseg and not any(text.endswith(f"_mask{ending}") for ending in VOLUMES):
        raise ValueError("it must end with _dseg.nii.gz, _dseg.nii, _mask.nii.gz or _mask.nii")
    if dseg and ("region" in words_of(text) or "collection" not in words_of(text)):
        raise ValueError("a _dseg file holds several regions: {collection} must be in its name, {region} must not")
    if not dseg and "region" not in words_of(text):
        raise ValueError("a _mask file holds one region: {region} must be in its name")
    return text


def _several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


OfSession = Annotated[str, AfterValidator(_pattern("subject", "session", needs=("subject",)))]
OfRuns = Annotated[str, AfterValidator(_pattern("subject", "session", "run", needs=("subject",)))]
OfSubject = Annotated[str, AfterValidator(_pattern("subject"))]
OfConditions = Annotated[str, AfterValidator(_pattern("subject", "session"))]
OfRegions = Annotated[
    str, AfterValidator(_pattern("subject", "collection", "region", needs=("subject",))), AfterValidator(_regions)
]
OfNames = Annotated[str, AfterValidator(_pattern("subject", "collection", needs=("collection",)))]
Below = Annotated[str, AfterValidator(_below)]
Column = Annotated[str, Field(min_length=1)]
Cells = Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)]


Part = Literal["train", "test", "neither"]


def _train_and_test() -> dict[str, Part]:
    return {"train": "train", "test": "test"}


class GLMsingleSettings(Section):
    """`dataset.options` of the kind `glmsingle`. Paths are below `dataset.root`. In a pattern, `{subject}`,
    `{session}`, `{run}`, `{collection}` and `{region}` stand for names, `*` and `?` for any letters of one name.

    Betas

    betas : pattern of the files of betas, or several: of each session the first is read that has a file. The ending
        says what it is: `.npy`, `.hdf5` or `.h5` (GLMsingle's own, `betasmd`), `.mat` (MATLAB 7.3, `modelmd`),
        `.nii.gz` or `.nii` (x, y, z, trial).
    units : of the betas; None: as the file's JSON sidecar says (`Units`), or the fit's `DESIGNINFO.npy` for GLMsingle's
        own files.
    fit_mask : pattern of the mask whose voxels were fitted, where only those were; None: as `mask`.
    fit_order : in which order these were: `C` of (x, y, z), as numpy's `data[mask]` has them, or `F`, as MATLAB's.
        None: `C` for files that Python wrote; for MATLAB's it must be said.
    design : pattern of `DESIGNINFO.npy`, against which trials are checked.

    Trials

    trials : pattern of the tables of trials: one of each session, or with `{run}` one of each run.
    trial_rows : which rows are trials, by column one value or several: `{trial_type: image}`.
    stimulus_column : column with what was shown, as its `id` or its `file` (`stimulus_names`); `n/a` or empty: nothing.
    run_column : of the run's number; not used where the pattern has `{run}`.
    order_column : of the number of the beta, from 0 or 1; None: rows stand in the order in which the trials ran.
    condition_column : of a kind of trials, such as perception and imagery.
    fit_condition_column : of the condition's number in the fit, in the tables of trials and of conditions.
    conditions : pattern of the tables of conditions, against which trials are checked.

    Stimuli

    stimuli : table of the stimuli, a row each: `id_column`, `file_column`, and columns of `split_columns`.
    split_values : what a cell in a column of a split means.
    pictures : folder that the names of `file_column` are below; None: the root.
    captions : table of captions, a row each (`captions_id_column`, None: as `id_column`; `caption_column`), best first.

    Voxels

    mask : pattern of the mask that is used where no other is named.
    regions : patterns of `_dseg` files (their regions named by a table: `region_tables`; None: the file's own name with
        the ending `.tsv`) and of `_mask` files.
    noise_ceiling : pattern of its map; subjects without a file have none.
    noise_ceiling_unit, noise_ceiling_repeats : None: as the JSON sidecar says (`Units`, `Repeats`).
    """

    betas: Annotated[tuple[OfSession, ...], BeforeValidator(_several), Field(min_length=1)] = (
        f"{FIT}/TYPED_FITHRF_GLMDENOISE_RR.*",
    )
    units: Units | None = None
    fit_mask: OfSubject | None = None
    fit_order: Literal["C", "F"] | None = None
    design: OfSession | None = f"{FIT}/DESIGNINFO.npy"

    trials: OfRuns = f"{FUNC}_desc-SingletrialBetas_trials.tsv"
    trial_rows: dict[Column, Cells] = Field(default_factory=dict)
    stimulus_column: Column = "stimulus_id"
    stimulus_names: Literal["id", "file"] = "id"
    run_column: Column | None = "run"
    order_column: Column | None = "trial"
    condition_column: Column | None = None
    fit_condition_column: Column | None = "condition"
    conditions: OfConditions | None = f"{FUNC}_conditions.tsv"

    stimuli: Below = "stimuli/stimuli.tsv"
    id_column: Column = "stimulus_id"
    file_column: Column = "filename"
    split_columns: tuple[Column, ...] = ("set",)
    split_values: dict[str, Part] = Field(default_factory=_train_and_test)
    pictures: Below | None = "stimuli"
    captions: Below | None = "stimuli/captions.tsv"
    captions_id_column: Column | None = None
    caption_column: Column = "caption"

    mask: OfSubject | None = f"{ROIS}_desc-brain_mask.nii.gz"
    regions: Annotated[tuple[OfRegions, ...], BeforeValidator(_several)] = (
        f"{ROIS}_desc-{{collection}}_dseg.nii.gz",
        f"{ROIS}_label-{{region}}_mask.nii.gz",
    )
    region_tables: OfNames | None = None
    noise_ceiling: OfSubject | None = f"{ROIS}_desc-noiseceiling_statmap.nii.gz"
    noise_ceiling_unit: Literal["ncsnr", "percent", "fraction"] | None = None
    noise_ceiling_repeats: Count | None = None

    @model_validator(mode="after")
    def _sessions_agree(self) -> Self:
        by_session = {"session" in words_of(text) for text in self.betas}
        others = {"trials": self.trials, "design": self.design}
        by_session |= {"session" in words_of(text) for text in others.values() if text is not None}
        if len(by_session) > 1:
            raise ValueError("`betas`, `trials` and `design` must all have {session} in them, or none of them")
        return self

    def said(self, name: str) -> bool:
        """Whether the configuration states this option; else it has its default."""
        return name in self.model_fields_set
