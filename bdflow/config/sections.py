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
from bdflow.config.dataset import DatasetSettings, FolderName
from bdflow.config.encoding import EncodeSettings
from bdflow.config.execution import ClusterSettings, ExecutionSettings
from bdflow.config.painting import PainterSettings
from bdflow.config.values import (
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
Rows = Literal["averaged", "trials"]
Choose = Literal["fixed", "per_space", "per_target"]
Standardise = Literal["test_set", "held_out", "none"]


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

    bundle : a folder of published weights (docs/weights.md), or `tiny`, the small networks that ship.
    device : as torch names it: `cpu`, `cuda`, `cuda:1`.
    dtype : of all networks but the VDVAE and the judges, which compute in float32.
    vdvae_dtype : of the VDVAE: it draws each pixel's value from a mixture, where a small difference may turn a choice.
    speed : switches of painting.
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
    """How latents are stored, and how many stimuli go through an encoder at once.

    dtype : of stored latents. float16 halves the disk; its steps are far smaller than what ridge can predict.
    batch_size : stimuli that go through an encoder at once.
    """

    dtype: Literal["float16", "float32"] = "float16"
    batch_size: Annotated[Count, NOT_CONTENT] = 32


class ValidationSettings(Section):
    """Cross-validation within the training set: what is predicted from the rest, and how.

    method : `leave_one_out` and `k_fold` leave all rows of a stimulus out together, predict `stimuli` of them, drawn at
        random, and score by R^2. `k_fold_rows` is what scikit-learn's and himalaya's RidgeCV do: folds are runs of rows
        in the order of presentation, every row is predicted, and the score is the mean squared error, averaged over
        folds. Trials of one stimulus then lie in several folds, so that penalties are chosen too small.
    folds : of `k_fold` and `k_fold_rows`.
    stimuli : training stimuli that are predicted, drawn at random, or all if there are fewer.
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
    grid : the penalties that are tried.
    standardise : how predictions are brought to the mean and SD of the training latents: by their statistics over the
        `test_set` (as Brain-Diffuser), over `held_out` training stimuli, or not at all (`none`).
    weights : keep the coefficients, and how much each voxel counts.
    validation : how penalties are chosen, and what `held_out` leaves out.
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
    """Where a space differs from `ridge`; what is not given is as there.

    rows, session_zscore, regions, intercept, alpha, choose, grid, standardise, weights : as in `ridge`; null: as there.
    """

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

    encoder : what makes its latents of stimuli.
    options : further settings of this encoder.
    ridge : where this space differs from `ridge`; of a space that is not decoded nothing may be given.
    decode : whether ridge predicts it from voxels; without it the space is for encoding models alone.
    """

    encoder: EncoderName
    options: Options = Field(default_factory=dict)
    decode: Annotated[Switch, NOT_CONTENT] = True
    ridge: SpaceRidgeSettings = SpaceRidgeSettings()

    @model_validator(mode="after")
    def _ridge_where_it_decodes(self) -> Self:
        idle = self.ridge.given(type(self.ridge).model_fields)
        if idle and not self.decode:
            raise ValueError(
                f"ridge: found {', '.join(f'`ridge.{name}`' for name in idle)}, and decode: false, so that no ridge is "
                "fitted; encoding models have penalties of their own (`encode`). Expected a space that is decoded, or "
                "no settings of ridge: leave them out, or set each to null"
            )
        return self


# --- pictures and their scores -----------------------------------------------------------------------------------


class ReconstructSettings(Section):
    """Whose pictures are painted beside those of each subject: from the mean of all subjects' predictions (`mean`),
    and from the true latents (`true`), what perfect decoding would give.

    upper_bound : paint `true`.
    subject_mean : paint `mean`, in runs of all subjects.
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
    by which protocol the others, and where the judging networks' weights lie besides the usual caches.

    metrics : which; by default the paper's eight (docs/evaluation.md).
    ssim : `paper`: what the paper's tables were made with; `2d`: the usual one.
    distractors : what two-way identification is among: other `photos`, as in the paper, or other `reconstructions`.
    weights : the folder of the judging networks' published weights.
    """

    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = PUBLISHED_METRICS
    ssim: Annotated[Literal["paper", "2d"], where(lambda of: "SSIM" in of.metrics)] = "paper"
    distractors: Annotated[Literal["photos", "reconstructions"], where(_has_distractors)] = "photos"
    weights: Annotated[LocalPath | None, NOT_CONTENT] = None


MaskName = Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")]


class RoiSettings(Section):
    """Pictures that brain regions like to see (paper, section 3.4). `sets` are named lists of regions, one figure each,
    in the language of `bdflow.regions.language`; `masks` are further names: a NIfTI mask or a .npy pattern by subject.

    sets : lists of regions, by the name of their figure.
    masks : further names for regions: a file by subject.
    rescale : `training_norm` gives each latent the norm of the training latents; `deviation` gives their distance from
        the training mean that of the training latents, times the strength; `none` leaves them (docs/roi.md).
    strengths : what patterns are multiplied by; a picture for each.
    seeds : pictures of each pattern, from noise of their own.
    """

    sets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], Annotated[tuple[str, ...], Field(min_length=1)]] = (
        Field(default_factory=dict)
    )
    masks: Annotated[dict[MaskName, dict[str, LocalPath]], NOT_CONTENT] = Field(default_factory=dict)
    rescale: Literal["training_norm", "deviation", "none"] = "training_norm"
    strengths: Penalties = (1.0,)
    seeds: Count = 1


class ReportSettings(Section):
    """Where the report is written.

    path : a folder on a disk; `index.html` in it opens from a file.
    thumbnail : pixels of a side of its small pictures.
    """

    path: LocalPath
    thumbnail: Annotated[Whole, Field(ge=32, le=512)] = 160


class ChunkSettings(Section):
    """How arrays are cut; they shape files and parallelism, never values.

    stimuli : stimuli of a chunk of photos and latents.
    voxels : voxels of a chunk of responses, weights and encoding maps.
    columns : latents of a chunk.
    images : pictures of a chunk.
    """

    stimuli: Annotated[Count, shapes("stimuli", "targets")] = 64
    voxels: Annotated[Count, shapes("responses", "weights", "importance", "encoding", "encoding_sets")] = 1024
    columns: Annotated[Count, shapes("targets", "selection", "predictions", "weights")] = 4096
    images: Annotated[Count, shapes("guesses", "reconstructions", "judges", "similarities", "metrics")] = 16


class Config(Section):
    """One study. Paths are relative to the directory the command is given in; `~` and `$NAME` are put in
    (`bdflow.user_paths`). The study and the data may lie in an object store (docs/places.md).

    study : where everything is stored: a folder, or the URL of an object store.
    seed : of all noise that is drawn.
    subjects : whose data is used, by the dataset's names.
    dataset : which data.
    networks : which frozen networks, and how they are called.
    features : how latents are stored.
    spaces : what is decoded, by names of your own.
    ridge : how it is decoded.
    painters : what makes pictures, by names of your own; without any a study ends with predictions.
    reconstruct : whose pictures are painted beside those of each subject.
    evaluate : which scores, by which protocol.
    roi : what `bdflow roi` paints.
    encode : what `bdflow encode` fits.
    report : where the report is written.
    chunks : how arrays are cut.
    execution : where each stage runs.
    cluster : on what workers live.
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
