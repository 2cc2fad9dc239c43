"""The configuration of a study: strict YAML, every setting of the paper, any overridable on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError, field_validator

from bdflow.errors import InputError

Variant = Literal["full", "only_vdvae", "no_vdvae", "no_clip_text", "no_clip_vision"]
Metric = Literal[
    "PixCorr", "SSIM", "AlexNet(2)", "AlexNet(5)", "Inception", "CLIP", "EffNet-B", "SwAV", "CLIP (bundle)"
]
PUBLISHED_METRICS: tuple[Metric, ...] = (
    "PixCorr", "SSIM", "AlexNet(2)", "AlexNet(5)", "Inception", "CLIP", "EffNet-B", "SwAV",
)  # fmt: skip
SPACES: tuple[str, ...] = ("vdvae", "clip_vision", "clip_text")
Count = Annotated[int, Field(ge=1)]


def _path_or_url(value: Any) -> Any:
    if not isinstance(value, str) or "://" not in value:
        return Path(value) if isinstance(value, str) else value
    if not value.startswith(("s3://", "gs://", "memory://")):
        raise ValueError("a URL other than s3://, gs:// or memory://")
    return value.rstrip("/")


Location = Annotated[Path | str, BeforeValidator(_path_or_url)]
"""A path, or (then it is a str) the URL of an object store."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class NSDSettings(Section):
    """Where NSD's files are and which of them are used."""

    root: Location
    captions: Location | None = None
    sessions: Count = 37
    preparation: str = "betas_fithrf_GLMdenoise_RR"
    space: str = "func1pt8mm"
    betas_format: Literal["auto", "nii.gz", "hdf5"] = "auto"
    mask: str = "nsdgeneral"
    test: str = "shared"
    bad_voxels: Literal["drop", "refuse"] = "drop"


class SpeedSettings(Section):
    """Switches that make painting faster and change no picture by more than rounding (docs/painting.md)."""

    joint_guidance: bool = True
    cached_conditions: bool = True
    channels_last: bool = False
    attention: Literal["fused", "plain"] = "fused"
    compile: Literal["none", "torch_compile", "cuda_graphs"] = "none"


class NetworkSettings(Section):
    """Which frozen networks, where they run and in which precision, and how they are called."""

    bundle: str = "tiny"
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    speed: SpeedSettings = SpeedSettings()


class FeatureSettings(Section):
    """How the three target spaces are extracted."""

    vdvae_latent: Literal["sample", "mean"] = "sample"
    dtype: Literal["float16", "float32"] = "float16"
    batch_size: Count = 32


class AlphaSettings(Section):
    """Ridge penalty of each target space, in scikit-learn's convention (||y - Xw||^2 + alpha ||w||^2)."""

    vdvae: Annotated[float, Field(gt=0)] = 50_000
    clip_vision: Annotated[float, Field(gt=0)] = 60_000
    clip_text: Annotated[float, Field(gt=0)] = 100_000


class ValidationSettings(Section):
    """Cross-validation within the training set: which stimuli are predicted from the others, and how."""

    method: Literal["leave_one_out", "k_fold"] = "leave_one_out"
    folds: Annotated[int, Field(ge=2)] = 5
    stimuli: Count = 512
    columns: Count = 1024


class RegressSettings(Section):
    """Ridge. `choose` takes the penalty from `alpha`, or from `grid` by cross-validation: one for each target space
    (from `validation.columns` latents drawn at random) or one for each latent. `weights` are kept for these spaces.
    """

    alpha: AlphaSettings = AlphaSettings()
    choose: Literal["fixed", "per_space", "per_target"] = "fixed"
    grid: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        1e3, 3e3, 1e4, 3e4, 6e4, 1e5, 3e5, 1e6,
    )  # fmt: skip
    validation: ValidationSettings = ValidationSettings()
    weights: tuple[Literal["vdvae", "clip_vision", "clip_text"], ...] = ()


class ReconstructSettings(Section):
    """How predictions become pictures (paper, section Methods: second stage). `solver`, `guidance_interval` and
    `feature_cache` are approximate modes, off by default (docs/painting.md).
    """

    variants: Annotated[tuple[Variant, ...], Field(min_length=1)] = ("full",)
    standardise: Literal["test_set", "held_out", "none"] = "test_set"
    steps: Count = 50
    strength: Annotated[float, Field(gt=0, le=1)] = 0.75
    guidance_scale: Annotated[float, Field(ge=0)] = 7.5
    mixing: Annotated[float, Field(ge=0, le=1)] = 0.4
    noise_index: Literal["authors", "diffusers"] = "authors"
    latent: Literal["sample", "mean"] = "sample"
    solver: Literal["ddim", "dpmpp_2m"] = "ddim"
    guidance_interval: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (0.0, 1.0)
    feature_cache: Count = 1
    upper_bound: bool = False
    subject_mean: bool = False
    batch_size: Count = 8
    encode_batch_size: Count | None = None
    decode_batch_size: Count | None = None

    @field_validator("guidance_interval")
    @classmethod
    def _low_below_high(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError("expected [low, high] with low below high")
        return value


class EvaluateSettings(Section):
    """Which metrics, by which protocol, and where the judging networks' weights lie besides the usual caches."""

    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = PUBLISHED_METRICS
    ssim: Literal["paper", "2d"] = "paper"
    distractors: Literal["photos", "reconstructions"] = "photos"
    weights: Path | None = None


class RoiSettings(Section):
    """Pictures that brain regions like to see (paper, section 3.4). `sets` are named lists of regions, one figure each,
    in the language of `bdflow.regions`; `masks` are further names: a NIfTI mask or a .npy pattern by subject.
    """

    sets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], Annotated[tuple[str, ...], Field(min_length=1)]] = {}
    masks: dict[Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")], dict[str, Path]] = {}
    rescale: Literal["training_norm", "deviation", "none"] = "training_norm"
    strengths: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1.0,)
    seeds: Count = 1


class EncodeSettings(Section):
    """Encoding models, from latents to voxels (`bdflow encode`): from which target spaces, and among which penalties
    each voxel's is chosen, by how well `stimuli` training stimuli are predicted from all others.
    """

    spaces: Annotated[tuple[Literal["vdvae", "clip_vision", "clip_text"], ...], Field(min_length=1)] = (
        "vdvae", "clip_vision", "clip_text",
    )  # fmt: skip
    grid: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        0.1, 0.3, 1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4,
    )  # fmt: skip
    stimuli: Count = 512


class ReportSettings(Section):
    path: Path
    thumbnail: Annotated[int, Field(ge=32, le=512)] = 160


class ChunkSettings(Section):
    """How arrays are cut; they shape files and parallelism, never values."""

    stimuli: Count = 64
    voxels: Count = 1024
    columns: Count = 4096
    images: Count = 16


class StageExecution(Section):
    """Where one stage runs: which executor, how many workers, threads, GPUs and memory ("4 GiB") each."""

    executor: Literal["serial", "dask", "ray"] = "serial"
    workers: Count = 1
    threads: Count = 1
    gpus: Annotated[float, Field(ge=0)] = 0.0
    memory: ByteSize | None = None


class ExecutionSettings(Section):
    """Where work runs. Nothing here changes a result."""

    ingest: StageExecution = StageExecution()
    features: StageExecution = StageExecution()
    regress: StageExecution = StageExecution()
    reconstruct: StageExecution = StageExecution()
    evaluate: StageExecution = StageExecution()
    roi: StageExecution = StageExecution()
    encode: StageExecution = StageExecution()


class AddressSettings(Section):
    """Clusters that run already: a Dask scheduler ("tcp://host:8786"), a Ray head ("host:6379", or "auto")."""

    dask: str | None = None
    ray: str | None = None


class SlurmSettings(Section):
    """How SLURM is asked for workers, as `sbatch` takes it; each worker is a job of the size its stage asks for."""

    partition: str | None = None
    account: str | None = None
    time: Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d+){0,2}$")] = "01:00:00"
    options: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    logs: Path = Path("slurm-logs")
    host: str | None = None


class ClusterSettings(Section):
    """On what the workers of Dask and Ray live; only the section of the chosen kind counts. `start_timeout` are the
    seconds a first worker may take; by default a minute, and on SLURM, where jobs queue, a day.
    """

    kind: Literal["local", "slurm", "address", "cuda"] = "local"
    start_timeout: Annotated[float, Field(gt=0)] | None = None
    dashboard: bool = False
    dashboard_host: str = "127.0.0.1"
    address: AddressSettings = AddressSettings()
    slurm: SlurmSettings = SlurmSettings()


class Config(Section):
    """One study. Paths are relative to the directory the command is given in. The study and NSD may lie in an object
    store (docs/places.md).
    """

    study: Location
    seed: int = 0
    subjects: Annotated[tuple[str, ...], Field(min_length=1)] = ("subj01", "subj02", "subj05", "subj07")
    nsd: NSDSettings
    networks: NetworkSettings = NetworkSettings()
    features: FeatureSettings = FeatureSettings()
    regress: RegressSettings = RegressSettings()
    reconstruct: ReconstructSettings = ReconstructSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    roi: RoiSettings = RoiSettings()
    encode: EncodeSettings = EncodeSettings()
    report: ReportSettings
    chunks: ChunkSettings = ChunkSettings()
    execution: ExecutionSettings = ExecutionSettings()
    cluster: ClusterSettings = ClusterSettings()

    def science(self) -> dict[str, Any]:
        """Every setting but where work runs and where the report goes, as JSON values: the study's record."""
        kept = self.model_dump(mode="json", exclude={"execution": True, "cluster": True, "report": True, "study": True})
        del kept["networks"]["device"], kept["networks"]["speed"], kept["features"]["batch_size"]
        for stage in ("", "encode_", "decode_"):
            del kept["reconstruct"][f"{stage}batch_size"]
        del kept["evaluate"]["weights"]
        return kept


def recipes() -> dict[str, Path]:
    """The configurations that ship with bdflow, by name."""
    package = Path(__file__).parent
    installed, checkout = package / "configs", package.parent / "configs"
    folder = installed if installed.is_dir() else checkout
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file (or a shipped recipe by its name) and apply `key.subkey=value` overrides.

    Raises
    ------
    InputError : no such file, not YAML, an unknown key (the nearest valid one is named) or a value out of range.
    """
    file = Path(path)
    if not file.is_file():
        shipped = recipes()
        if str(path) not in shipped:
            raise InputError(
                path,
                found="no such file",
                expected="a configuration, or the name of a shipped one: " + ", ".join(sorted(shipped)),
                action="correct the path, or start from a copy of a shipped configuration",
            )
        file = shipped[str(path)]
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise InputError(
            file, found=f"text that is not YAML ({err})", expected="a YAML mapping", action="mend the file"
        ) from err
    if not isinstance(content, dict):
        raise InputError(
            file,
            found=type(content).__name__,
            expected="a mapping of settings",
            action="start from a copy of a shipped configuration",
        )
    for override in overrides:
        _override(content, override)
    return parse(content, file)


def parse(content: dict[str, Any], where: object = "configuration") -> Config:
    """Check a configuration given as a dictionary. Raises InputError naming every wrong key at once."""
    try:
        config = Config.model_validate(content)
    except ValidationError as err:
        lines = [_explain(error) for error in err.errors()]
        raise InputError(
            where,
            found="; ".join(line for line, _ in lines),
            expected="the settings of configs/brain_diffuser.yaml",
            action="; ".join(dict.fromkeys(hint for _, hint in lines)),
        ) from None
    for key, listed in (
        ("reconstruct.variants", config.reconstruct.variants),
        ("evaluate.metrics", config.evaluate.metrics),
    ):
        if len(set(listed)) < len(listed):
            raise InputError(
                where, found=f"`{key}` {list(listed)}", expected="each once", action="drop the repeated one"
            )
    if {"mean", "true"} & set(config.subjects):
        raise InputError(
            where,
            found=f"subjects {list(config.subjects)}",
            expected="names other than `mean` and `true`",
            meaning="These are the average of all subjects and the upper bound.",
            action="rename the subject",
        )
    stages = [name for name, value in config.execution if isinstance(value, StageExecution)]
    elsewhere = [name for name in stages if getattr(config.execution, name).executor != "serial"]
    in_memory = [key for key, at in (("study", config.study), ("nsd.root", config.nsd.root)) if _in_memory(at)]
    if elsewhere and in_memory:
        raise InputError(
            where,
            found=f"`{in_memory[0]}` in memory://, and stages on other executors than serial: {', '.join(elsewhere)}",
            expected="serial for every stage",
            meaning="Other processes do not see this one's memory.",
            action="set execution.STAGE.executor to serial, or choose another place",
        )
    if len(set(config.subjects)) < len(config.subjects):
        raise InputError(
            where,
            found=f"subjects {list(config.subjects)}",
            expected="each subject once",
            action="drop the repeated one",
        )
    return config


def _in_memory(location: Path | str) -> bool:
    return isinstance(location, str) and location.startswith("memory://")


def _override(content: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise InputError(
            f"--set {override}",
            found="no `=`",
            expected="KEY=VALUE, such as reconstruct.steps=20",
            action="give the key, an equals sign and the value",
        )
    *parents, last = key.strip().split(".")
    place = content
    for name in parents:
        child = place.setdefault(name, {})
        if not isinstance(child, dict):
            raise InputError(
                f"--set {override}",
                found=f"`{name}`, which is a value",
                expected="a section",
                action="correct the key",
            )
        place = child
    place[last] = yaml.safe_load(text)


def _explain(error: Any) -> tuple[str, str]:
    """One validation error as (what was found, what to do)."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        near = _nearest(location)
        return f"unknown key `{key}`", f"did you mean `{near}`?" if near else "remove it"
    if error["type"] == "missing":
        return f"no `{key}`", f"add `{key}`"
    return f"`{key}` = {error['input']!r} ({error['msg'].lower()})", f"correct `{key}`"


def _nearest(location: Sequence[str]) -> str | None:
    """The valid key most like a misspelt one, wherever it belongs; its own section first among equals."""
    section = ".".join(location[:-1])

    def likeness(key: str) -> tuple[float, bool]:
        parent, _, name = key.rpartition(".")
        return difflib.SequenceMatcher(None, name, location[-1]).ratio(), parent == section

    best = max(_all_keys(Config), key=likeness)
    return best if likeness(best)[0] >= 0.6 else None


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _all_keys(field.annotation, f"{prefix}{name}.")
