"""The configuration of a study: every setting of the paper, each annotated where it does not shape content.

Every setting enters the fingerprints of the stores whose section it stands in, unless it says otherwise here:
`NOT_CONTENT` for where work runs and where files lie, `shapes(...)` for what only some kinds of stores depend on,
`where(...)` for what has an effect only beside other settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from bdflow.config.base import NOT_CONTENT, Section, content, shapes, where
from bdflow.config.encoding import EncodeSettings
from bdflow.config.execution import ClusterSettings, ExecutionSettings
from bdflow.config.painting import PainterSettings
from bdflow.config.sessions import Sessions, sessions_of
from bdflow.config.values import (
    OF_DATASET,
    Count,
    EncoderName,
    LocalPath,
    Location,
    Name,
    Options,
    Penalties,
    Positive,
    Switch,
    Whole,
    path_or,
)
from bdflow.errors import InputError

Metric = Literal[
    "PixCorr", "SSIM", "AlexNet(2)", "AlexNet(5)", "Inception", "CLIP", "EffNet-B", "SwAV", "CLIP (bundle)",
    "Takagi AlexNet(2)", "Takagi AlexNet(5)", "Takagi AlexNet(fc7)", "Takagi Inception", "Takagi CLIP",
    "Takagi CLIP(6)", "Takagi CLIP(12)",
]  # fmt: skip
PUBLISHED_METRICS: tuple[Metric, ...] = (
    "PixCorr", "SSIM", "AlexNet(2)", "AlexNet(5)", "Inception", "CLIP", "EffNet-B", "SwAV",
)  # fmt: skip
TAKAGI_METRICS: tuple[Metric, ...] = (
    "Takagi AlexNet(2)", "Takagi AlexNet(5)", "Takagi AlexNet(fc7)", "Takagi Inception", "Takagi CLIP",
    "Takagi CLIP(6)", "Takagi CLIP(12)",
)  # fmt: skip
FolderName = Annotated[str, Field(pattern=r"^\w[^/\\\s]*$")]
RegionName = Annotated[str, Field(pattern=r"^\w[^/\\\s]*(/\w[^/\\]*)?$")]
Pixels = Annotated[Whole, Field(ge=1, le=4096)]
Rows = Literal["averaged", "trials"]
Choose = Literal["fixed", "per_space", "per_target"]
Standardise = Literal["test_set", "held_out", "none"]


# --- the dataset ----------------------------------------------------------------------------------------------


def _looks_at_values(of: DatasetSettings) -> bool:
    """Whether a kind of dataset asks what to do with outliers and NaN: NSD's, and perhaps a class of one's own."""
    return of.kind not in ("laion_fmri", "glmsingle", "arrays")


class DatasetSettings(Section):
    """Where the data is, and what of it is used. `kind` names the dataset: `nsd`, another of `bdflow.datasets.reader`,
    or a class of one's own, `package.module:Class` (`bdflow.datasets.contract.Dataset`).

    captions : of NSD, NSD-Imagery and `glmsingle`: where they are, if not at their usual place.
    preparation, space, betas_format, outliers, not_a_number : of NSD, NSD-Imagery and NSD-synthetic (docs/nsd.md).
    sessions : how many, from the first; a list of their names, or of NSD's numbers, `[1, 3]`; either by subject,
        `{subj01: 3, subj04: [1, 3]}`; null: all there are.
    mask : the mask or region whose voxels are used; null: what the dataset suggests, of NSD `nsdgeneral`.
    split : `shared` (stimuli that several subjects see are for testing), `dataset:NAME` (a split that comes with the
        dataset), or a file of stimulus ids (docs/datasets.md).
    image_size : pixels of a side of the photos as they are stored, or (y, x); null: as they are, if all are alike.
    image_fit : how a picture of another shape is brought to that size: `crop`, `pad` (grey), `stretch`.
    without_caption : of stimuli without a caption, where a space is made of captions: `refuse`; or `leave_out`, of
        every space, so that all have the same rows.
    bad_voxels : of voxels that cannot be decoded from, constant ones and those without a valid beta for some
        stimulus.
    outliers : of betas beyond what int16 of 1/300 percent holds, as floating-point files may have: `refuse`; `clip`, as
        NSD did; `invalid`, to leave them out of means.
    not_a_number : of betas that are NaN: `refuse`, or `invalid`.
    options : further settings of this kind of dataset.
    """

    kind: str = "nsd"
    root: Annotated[Location, NOT_CONTENT]
    captions: Annotated[Location | None, NOT_CONTENT] = None
    sessions: Annotated[Sessions, NOT_CONTENT] = None
    preparation: Annotated[FolderName, NOT_CONTENT] = "betas_fithrf_GLMdenoise_RR"
    space: Annotated[FolderName, NOT_CONTENT] = "func1pt8mm"
    betas_format: Annotated[Literal["auto", "nii.gz", "hdf5"], NOT_CONTENT] = "auto"
    mask: Annotated[RegionName | None, shapes("betas")] = None
    split: Annotated[str, path_or("shared", OF_DATASET), NOT_CONTENT] = "shared"
    image_size: Annotated[Pixels | tuple[Pixels, Pixels] | None, shapes("stimuli")] = None
    image_fit: Annotated[
        Literal["crop", "pad", "stretch"], shapes("stimuli"), where(lambda of: of.image_size is not None)
    ] = "crop"
    without_caption: Annotated[Literal["refuse", "leave_out"], shapes("stimuli")] = "refuse"
    bad_voxels: Annotated[Literal["drop", "refuse"], shapes("responses")] = "drop"
    outliers: Annotated[Literal["refuse", "clip", "invalid"], shapes("betas"), where(_looks_at_values)] = "refuse"
    not_a_number: Annotated[Literal["refuse", "invalid"], shapes("betas"), where(_looks_at_values)] = "refuse"
    options: Annotated[Options, NOT_CONTENT] = Field(default_factory=dict)

    def sessions_of(self, subject: str) -> int | tuple[int | str, ...] | None:
        """How many sessions of a subject, from the first; which; or None: all there are."""
        return None if self.sessions is None else sessions_of(self.sessions, subject)


# --- networks -------------------------------------------------------------------------------------------------


Precision = Literal["float32", "bfloat16", "float16"]


class SpeedSettings(Section):
    """Switches that make painting faster and change no picture by more than rounding (docs/painting.md).

    joint_guidance : the conditional and the unconditional half of guidance go through the UNet as one batch.
    cached_conditions : keys and values of the conditions, which no step changes, are computed once a batch; those of
        `nothing` once for all.
    channels_last : memory order of the convolutions' images.
    attention : `fused`: torch's scaled_dot_product_attention, which chooses a kernel for each call. `flash`, `cudnn`,
        `efficient`, `math`: that kernel of it, in the UNet. `measured`: on a CUDA device the fastest for the UNet, and
        for the autoencoder, measured once before anything is painted and recorded in the study. `plain`: without it.
    compile : how the UNet and both halves of the autoencoder are called. `none`: as they are. `default`,
        `reduce_overhead` and `max_autotune`: compiled, once a batch shape, by the mode of `torch.compile` of that name.
        `cuda_graphs`: their kernels are recorded once a batch shape, without being compiled.
    """

    joint_guidance: Switch = True
    cached_conditions: Switch = True
    channels_last: Switch = False
    attention: Literal["fused", "plain", "flash", "cudnn", "efficient", "math", "measured"] = "fused"
    compile: Literal["none", "default", "reduce_overhead", "max_autotune", "cuda_graphs"] = "none"


class NetworkSettings(Section):
    """Which frozen networks, where they run and in which precision, and how they are called. The bundle's content
    counts, not where it lies.

    dtype : of all networks but the VDVAE and the judges, which compute in float32.
    vdvae_dtype : of the VDVAE: it draws each pixel's value from a mixture, where a small difference may turn a choice.
    """

    bundle: Annotated[str, path_or("tiny"), NOT_CONTENT] = "tiny"
    device: Annotated[str, NOT_CONTENT] = "cpu"
    dtype: Precision = "float32"
    vdvae_dtype: Annotated[Precision, NOT_CONTENT] = "float32"  # but of what the VDVAE makes: `dtype_of`
    speed: Annotated[SpeedSettings, NOT_CONTENT] = SpeedSettings()

    @property
    def device_kind(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]

    def arithmetic(self, *, dtype: str = "", switches: bool = False, **batches: int) -> dict[str, object]:
        """What decides how results of these networks round: the kind of device; on CUDA whether float32 is multiplied
        as TF32, which it never is; and in half precision or fp8, where it moves pixels by several levels, how many
        items go through at once and the `speed` switches, where they matter. `dtype`: of the network, if it is another
        one.
        """
        found: dict[str, object] = {"device": self.device_kind}
        if self.device_kind == "cuda":
            found["tf32"] = False  # as bdflow.models.weights.precision settles it
        if (dtype or self.dtype) != "float32":
            found["batches"] = batches
            if switches:
                found["speed"] = self.speed.model_dump()
        return found


# --- target spaces, and ridge ---------------------------------------------------------------------------------


class FeatureSettings(Section):
    """How latents are stored, and how many stimuli go through an encoder at once."""

    dtype: Literal["float16", "float32"] = "float16"
    batch_size: Annotated[Count, NOT_CONTENT] = 32


class ValidationSettings(Section):
    """Cross-validation within the training set: what is predicted from the rest, and how.

    method : `leave_one_out` and `k_fold` leave all rows of a stimulus out together, predict `stimuli` of them, drawn at
        random, and score by R^2. `k_fold_rows` is what scikit-learn's and himalaya's RidgeCV do: folds are runs of rows
        in the order of presentation, every row is predicted, and the score is the mean squared error, averaged over
        folds. Trials of one stimulus then lie in several folds, so that penalties are chosen too small.
    columns : latents, drawn at random, that choose a penalty of a whole space.
    """

    method: Literal["leave_one_out", "k_fold", "k_fold_rows"] = "leave_one_out"
    folds: Annotated[Whole, Field(ge=2)] = 5
    stimuli: Count = 512
    columns: Count = 1024


class RidgeSettings(Section):
    """Ridge, for every space that does not say otherwise.

    rows : training rows: `averaged` (one a stimulus, the mean of its trials) or `trials` (one a trial, with the
        stimulus's latent repeated). Test stimuli are averaged in both.
    session_zscore : each voxel by its mean and SD over the trials of a session, before trials are averaged.
    regions : which voxels, in the language of regions (docs/roi.md), such as `V1 | V2`; null: all of the mask.
    intercept : predictions get the mean of the training targets; without it latents are predicted around 0.
    alpha : penalty, in scikit-learn's convention (||y - Xw||^2 + alpha ||w||^2), where it is not chosen.
    choose : `fixed`, or by cross-validation among `grid`: one penalty a space (`per_space`), or one a latent
        (`per_target`).
    standardise : how predictions are brought to the mean and SD of the training latents: by their statistics over the
        `test_set` (as Brain-Diffuser), over `held_out` training stimuli, or not at all (`none`).
    weights : keep the coefficients, and how much each voxel counts.
    """

    rows: Rows = "averaged"
    session_zscore: Switch = False
    regions: str | None = None
    intercept: Switch = True
    alpha: Positive = 60_000
    choose: Choose = "fixed"
    grid: Penalties = (1e3, 3e3, 1e4, 3e4, 6e4, 1e5, 3e5, 1e6)
    standardise: Standardise = "test_set"
    weights: Switch = False
    validation: ValidationSettings = ValidationSettings()


class SpaceRidgeSettings(Section):
    """Where a space differs from `ridge`; what is not given is as there."""

    rows: Rows | None = None
    session_zscore: Switch | None = None
    regions: str | None = None
    intercept: Switch | None = None
    alpha: Positive | None = None
    choose: Choose | None = None
    grid: Penalties | None = None
    standardise: Standardise | None = None
    weights: Switch | None = None


class SpaceSettings(Section):
    """A target space. `encoder` is a registered name (`vdvae`, `clip_vision`, `clip_text`, `sd_vae`, `sd_text`,
    `sd_denoising`), a class of one's own, `package.module:Class`, or `array:PATH` for latents that exist already;
    `options` go to the encoder.

    decode : whether ridge predicts it from voxels; without it the space is for encoding models alone.
    """

    encoder: EncoderName
    options: Options = Field(default_factory=dict)
    decode: Annotated[Switch, NOT_CONTENT] = True
    ridge: SpaceRidgeSettings = SpaceRidgeSettings()


# --- pictures and their scores -----------------------------------------------------------------------------------


class ReconstructSettings(Section):
    """Whose pictures are painted beside those of each subject: from the mean of all subjects' predictions (`mean`),
    and from the true latents (`true`), what perfect decoding would give.
    """

    upper_bound: Annotated[Switch, NOT_CONTENT] = False
    subject_mean: Annotated[Switch, NOT_CONTENT] = False


def _has_distractors(of: EvaluateSettings) -> bool:
    """Whether any metric is identification among what `distractors` says: all but those of pixels, distances, and
    those that are always among reconstructions.
    """
    return not {*of.metrics} <= {"PixCorr", "SSIM", "EffNet-B", "SwAV", *TAKAGI_METRICS}


class EvaluateSettings(Section):
    """Which metrics (those named `Takagi` are always identification among reconstructions, as Takagi & Nishimoto),
    by which protocol the others, and where the judging networks' weights lie besides the usual caches."""

    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = PUBLISHED_METRICS
    ssim: Annotated[Literal["paper", "2d"], where(lambda of: "SSIM" in of.metrics)] = "paper"
    distractors: Annotated[Literal["photos", "reconstructions"], where(_has_distractors)] = "photos"
    weights: Annotated[LocalPath | None, NOT_CONTENT] = None


MaskName = Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")]


class RoiSettings(Section):
    """Pictures that brain regions like to see (paper, section 3.4). `sets` are named lists of regions, one figure each,
    in the language of `bdflow.regions.language`; `masks` are further names: a NIfTI mask or a .npy pattern by subject.
    """

    sets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], Annotated[tuple[str, ...], Field(min_length=1)]] = (
        Field(default_factory=dict)
    )
    masks: Annotated[dict[MaskName, dict[str, LocalPath]], NOT_CONTENT] = Field(default_factory=dict)
    rescale: Literal["training_norm", "deviation", "none"] = "training_norm"
    strengths: Penalties = (1.0,)
    seeds: Count = 1


class ReportSettings(Section):
    path: LocalPath
    thumbnail: Annotated[Whole, Field(ge=32, le=512)] = 160


class ChunkSettings(Section):
    """How arrays are cut; they shape files and parallelism, never values."""

    stimuli: Annotated[Count, shapes("stimuli", "targets")] = 64
    voxels: Annotated[Count, shapes("responses", "weights", "importance", "encoding", "encoding_sets")] = 1024
    columns: Annotated[Count, shapes("targets", "selection", "predictions", "weights")] = 4096
    images: Annotated[Count, shapes("guesses", "reconstructions", "judges", "similarities", "metrics")] = 16


class Config(Section):
    """One study. Paths are relative to the directory the command is given in; `~` and `$NAME` are put in
    (`bdflow.user_paths`). The study and the data may lie in an object store (docs/places.md).
    """

    study: Annotated[Location, NOT_CONTENT]
    seed: Whole = 0
    subjects: Annotated[tuple[FolderName, ...], Field(min_length=1)] = ("subj01", "subj02", "subj05", "subj07")
    dataset: DatasetSettings
    networks: NetworkSettings = NetworkSettings()
    features: FeatureSettings = FeatureSettings()
    spaces: Annotated[dict[Name, SpaceSettings], Field(min_length=1)]
    ridge: RidgeSettings = RidgeSettings()
    painters: dict[Name, PainterSettings] = Field(default_factory=dict)
    reconstruct: ReconstructSettings = ReconstructSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    roi: RoiSettings = RoiSettings()
    encode: EncodeSettings = EncodeSettings()
    report: Annotated[ReportSettings, NOT_CONTENT]
    chunks: ChunkSettings = ChunkSettings()
    execution: Annotated[ExecutionSettings, NOT_CONTENT] = ExecutionSettings()
    cluster: Annotated[ClusterSettings, NOT_CONTENT] = ClusterSettings()
    _everybody: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="after")
    def _held_out_stimuli(self) -> Self:
        if self.ridge.validation.method == "k_fold_rows":
            for space in self.decoded_spaces:
                if self.ridge_of(space).standardise == "held_out":
                    raise ValueError(
                        f"ridge.validation.method: found k_fold_rows, and standardise: held_out of the space {space}; "
                        "expected leave_one_out or k_fold, which predict stimuli that were left out as a whole"
                    )
        return self

    @model_validator(mode="after")
    def _kept_features_or_compiled_networks(self) -> Self:
        for name, painter in self.painters.items():
            if painter.feature_cache > 1 and self.networks.speed.compile != "none":
                raise ValueError(
                    f"painters.{name}.feature_cache: found {painter.feature_cache}, with networks.speed.compile: "
                    f"{self.networks.speed.compile}; expected one of the two: what is compiled is a whole evaluation"
                )
        return self

    @model_validator(mode="after")
    def _something_is_decoded(self) -> Self:
        if not self.decoded_spaces:
            raise ValueError("spaces: found none that is decoded; expected at least one without `decode: false`")
        return self

    @model_validator(mode="after")
    def _sets_have_names_of_their_own(self) -> Self:
        for name in self.encode.sets:
            if name in self.spaces:
                raise ValueError(
                    f"encode.sets: found the name {name}, which a space has; expected another one, since maps are "
                    "named by both"
                )
        return self

    def ridge_of(self, space: str) -> RidgeSettings:
        """How a space is decoded: `ridge`, with what the space says otherwise."""
        own = self.spaces[space].ridge.model_dump(exclude_none=True)
        return self.ridge.model_copy(update=own)

    @property
    def decoded_spaces(self) -> dict[str, SpaceSettings]:
        """The spaces that ridge predicts from voxels."""
        return {name: space for name, space in self.spaces.items() if space.decode}

    @property
    def encoded_spaces(self) -> tuple[str, ...]:
        """The spaces that encoding models are fitted from."""
        return tuple(self.spaces) if self.encode.spaces is None else self.encode.spaces

    def of_subjects(self, chosen: Sequence[str]) -> Config:
        """The configuration for some of its subjects (none named: for all): what concerns the others alone is left out,
        so that none of their files is needed. Raises InputError for a subject that it does not have.
        """
        unknown = [name for name in chosen if name not in self.subjects]
        if unknown:
            raise InputError(
                "subjects",
                found=", ".join(unknown),
                expected="subjects of the configuration: " + ", ".join(self.subjects),
                action="add them to `subjects` in the configuration, or choose among these",
            )
        if not chosen:
            return self
        found = self.model_copy(update={"subjects": tuple(name for name in self.subjects if name in chosen)})
        found._everybody = self.everybody
        return found

    def of_everybody(self) -> Config:
        """The configuration for all subjects of the study."""
        found = self.model_copy(update={"subjects": self.everybody})
        found._everybody = ()
        return found

    @property
    def everybody(self) -> tuple[str, ...]:
        """All subjects of the study, also where this configuration is for some of them (`of_subjects`)."""
        return self._everybody or self.subjects

    def science(self) -> dict[str, object]:
        """Every setting that shapes content, as JSON values: the study's record."""
        return content(self) | {"subjects": list(self.everybody)}
