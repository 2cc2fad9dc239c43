"""What bdflow does with a study: run it, look at it, decode, paint, serve. Heavy imports happen inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bdflow.errors import InputError, os_errors_named
from bdflow.user_paths import local_path

if TYPE_CHECKING:
    import numpy as np
    import xarray

    from bdflow.config import Config
    from bdflow.estimate.plan import Plan
    from bdflow.pipeline import Outcome, Pipeline, Row
    from bdflow.stores import Damage
    from bdflow.timings import Timing

__all__ = [
    "Outcome",
    "RegionPictures",
    "Row",
    "Timing",
    "decode",
    "decode_dataset",
    "decode_file",
    "draw_figures",
    "duration",
    "encode",
    "export_pictures",
    "load_config",
    "paint_regions",
    "plan",
    "plan_text",
    "recipes",
    "rounding",
    "run",
    "serve",
    "stale_by_reason",
    "status",
    "timings",
    "verify",
    "write_maps",
]


@os_errors_named()
def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file, or a shipped recipe by its name, with overrides such as `ridge.alpha=1000`.

    Raises
    ------
    InputError : no such file, not YAML, an unknown key (the nearest valid one is named) or a value out of range.
    """
    from bdflow.config import load

    return load(path, overrides)


def recipes() -> dict[str, Path]:
    """The configurations that ship with bdflow, by name."""
    from bdflow.config import recipes as shipped

    return shipped()


def pipeline_of(config: Config | str | Path, subjects: Sequence[str] = ()) -> Pipeline:
    """The pipeline of a configuration, for the functions of this package. Raises InputError."""
    from bdflow.pipeline import Pipeline

    loaded = load_config(config) if isinstance(config, str | Path) else config
    return Pipeline(loaded, subjects)


@os_errors_named()
def run(
    config: Config | str | Path,
    *,
    until: str = "",
    only: str = "",
    subjects: Sequence[str] = (),
    remake: bool = False,
    command: str = "",
) -> Outcome:
    """Run the pipeline: ingest, features, regress, reconstruct, evaluate, report. Resumes where it was stopped.

    Parameters
    ----------
    config : a configuration, or what `load_config` takes.
    until : stop after this stage.
    only : run this stage alone; also `roi`, `encoding_features` and `encode`, which run on demand.
    subjects : fill only these subjects' stores; all by default. Files of the others are not needed.
    remake : replace stores that were made from something else.
    command : noted in the journal.

    Returns
    -------
    Outcome : how many partitions were computed (0: all was there), the seconds, and the path of the report.

    Raises
    ------
    InputError : an unknown stage or subject, input that cannot be used. NotReady : a store was made from something else
    (and `remake` is off), or a stage left out is not done. StoreError, ClusterError : as each says; what is written
    stays valid.
    """
    from bdflow.pipeline import chosen_stages

    stages = chosen_stages(until, only)
    return pipeline_of(config, subjects).run(stages, remake=remake, command=command)


@os_errors_named()
def status(config: Config | str | Path, *, subjects: Sequence[str] = ()) -> list[Row]:
    """Every store: path, state (absent, partial, sealed, or stale and why), shape and bytes. Computes nothing.

    Parameters
    ----------
    subjects : leave out stores of other subjects; all by default.

    Raises
    ------
    InputError : a configuration or input that cannot be used.
    """
    return pipeline_of(config, subjects).status()


def stale_by_reason(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Paths of stale stores by what changed, in words; a reason stands once, however many stores it concerns."""
    from bdflow.stores.provenance import grouped

    return grouped({row.path: row.state.why for row in rows if row.state.kind == "stale"})


def rounding() -> str:
    """By how much values of one store may differ with what its record does not hold, in words."""
    from bdflow.study.rounding import STATEMENT

    return STATEMENT


@os_errors_named()
def timings(config: Config | str | Path) -> list[Timing]:
    """What partitions took in all runs of the study, by stage and work: seconds, bytes, retries, workers."""
    return pipeline_of(config).timings()


@os_errors_named()
def plan(
    config: Config | str | Path,
    figures: Sequence[str | Path] = (),
    gpu: str | None = None,
    *,
    subjects: Sequence[str] = (),
) -> Plan:
    """Hours, GPU-hours, disk and memory of every stage, before anything runs; the data need not be there.

    Parameters
    ----------
    figures : files that `bdflow bench` wrote with --json, used instead of the shipped rates.
    gpu : which GPU to plan with: `a100`, `3090`, `h100` or `h200`; by default that of the figures, else this machine's,
        else an A100.
    subjects : what a run for these alone takes; all by default.

    Raises
    ------
    InputError : a configuration or file that cannot be used; figures of another device, or of other networks.
    """
    return pipeline_of(config, subjects).plan([local_path("figures", file) for file in figures], gpu)


def plan_text(found: Plan) -> tuple[object, list[str]]:
    """A plan for a terminal: a table of rich, and lines to print below it."""
    from bdflow.estimate.table import lines, table

    return table(found), list(lines(found))


@os_errors_named()
def verify(config: Config | str | Path, *, repair: bool = False, command: str = "") -> list[Damage]:
    """Compare every file of the study with what was written: metadata with its copy, chunks with their checksums.

    Returns
    -------
    list of Damage : `CorruptMetadata` and `CorruptChunk`, written or computed again with `repair`; `Unexpected`, what
        is no part of the study, which is only named.

    Raises
    ------
    NotReady : no study there. CorruptChunk : damage in a store of another configuration, which cannot be repaired.
    """
    return pipeline_of(config).verify(repair=repair, command=command)


@os_errors_named()
def decode(
    config: Config | str | Path,
    patterns: np.ndarray | xarray.DataArray,
    subject: str,
    *,
    standardise: str = "none",
    units: str | None = None,
) -> xarray.DataTree:
    """Decode patterns of responses with a subject's stored decoder; nothing is fitted again.

    Parameters
    ----------
    patterns : shape (k, voxels), the voxels of the betas in their order, in the unit of the rows: that of the betas, or
        z-scores where `ridge.session_zscore` is on. Of a DataArray, rows keep their coordinates, such as ids of
        stimuli; its voxels are those along `voxel`, or else along its last dimension, and where it has their places
        `i`, `j` and `k`, these are compared with the betas'.
    standardise : `test_set`, `held_out` or `none`, see docs/ridge.md.
    units : that unit, to be checked: `percent signal change`, `z` or `arbitrary`. Needed where spaces are decoded from
        rows in different units; then only those in this one are decoded.

    Returns
    -------
    A node for each target space with `latent` (pattern, ...) float32; rows of a DataArray keep their dimension's name.

    Raises
    ------
    InputError : patterns, their names or units that do not fit, an unknown subject or rule. NotReady : `regress` is not
        done.
    """
    from bdflow.study import decoder

    decoder.check_rule(standardise)
    return decoder.decoded_tree(pipeline_of(config, (subject,)).context(), subject, patterns, standardise, units)


@os_errors_named()
def decode_file(
    config: Config | str | Path,
    patterns: str | Path,
    subject: str,
    out: str | Path,
    *,
    standardise: str = "none",
    units: str | None = None,
) -> int:
    """As `decode`, from a .npy file into a new Zarr group; returns the number of patterns. Raises what `decode` raises,
    and InputError if `out` exists or `patterns` is not an array."""
    from bdflow.study import decoder

    decoder.check_rule(standardise)
    target = local_path("out", out)
    values = decoder.read_array(local_path("patterns", patterns), "an array (patterns, voxels)")
    decoder.write(pipeline_of(config, (subject,)).context(), subject, values, target, standardise, units)
    return len(values)


@os_errors_named()
def decode_dataset(
    config: Config | str | Path,
    other: Config | str | Path,
    out: str | Path,
    *,
    subjects: Sequence[str] = (),
    standardise: str = "none",
) -> dict[str, int]:
    """Decode the trials of another dataset, averaged by stimulus and condition, with a study's stored decoders; nothing
    is fitted again. Returns the number of rows of each subject. A Zarr group for each subject and space is written.

    Parameters
    ----------
    other : a configuration, of which `dataset` and `subjects` count; a file may leave out all but `dataset`.
    out : a new directory, for `xarray.open_datatree`.
    subjects : by default those of the study that `other` names too. standardise : see `decode`.

    Raises
    ------
    InputError : voxels, units or subjects that do not fit; `out` exists. NotReady : the stage `regress` is not done.
    """
    from bdflow.study.other_dataset import open_other, write_decoded

    target = local_path("out", out)
    study = load_config(config) if isinstance(config, str | Path) else config
    data, chosen = open_other(study, other, subjects)
    return write_decoded(pipeline_of(study, chosen).context(), data, target, standardise)


@dataclass(frozen=True)
class RegionPictures:
    """What `paint_regions` made: stores of the study, and figures."""

    stores: list[str]
    figures: list[Path]


@os_errors_named()
def paint_regions(
    config: Config | str | Path,
    regions: Sequence[str] = (),
    *,
    mask: str | Path | None = None,
    subjects: Sequence[str] = (),
    out: str | Path = "figures",
    remake: bool = False,
    command: str = "",
) -> RegionPictures:
    """Paint patterns of brain areas by the stored decoders, and draw the figures.

    Parameters
    ----------
    regions : expressions such as "V1" or "faces - bodies"; by default those of `roi.sets`.
    mask : NIfTI mask or .npy pattern of the one subject.

    Raises
    ------
    InputError : no region, an expression that cannot be read, a mask without its subject. NotReady : no decoder.
    """
    from bdflow.study.keys import REGION_SETS
    from bdflow.study.region_patterns import on_demand

    target, file = local_path("out", out), None if mask is None else local_path("mask", mask)
    pipeline = pipeline_of(config, subjects)
    if regions or file:
        chosen = pipeline.subjects if subjects else ()
        pipeline = pipeline_of(on_demand(pipeline.config, regions, file, chosen), pipeline.subjects)
    if not pipeline.config.roi.sets:
        raise InputError(
            "roi.sets",
            found="no regions",
            expected="at least one region to paint",
            action="name one (`--region EXPR` on the command line), or a set of them in `roi.sets`",
        )
    pipeline.run(("roi",), remake=remake, command=command)
    stores = [str(pipeline.study.path / REGION_SETS / name) for name in pipeline.config.roi.sets]
    return RegionPictures(stores, pipeline.region_figures(target))


@os_errors_named()
def encode(
    config: Config | str | Path,
    *,
    subjects: Sequence[str] = (),
    remake: bool = False,
    command: str = "",
) -> list[str]:
    """Fit encoding models: how well the latents of each target space, and of sets of spaces, predict every voxel;
    return their stores. Latents of spaces that are not decoded are made first. How many voxels pass, by the false
    discovery rate, is logged.

    Raises
    ------
    NotReady : `ingest` or `features` is not done.
    """
    pipeline = pipeline_of(config, subjects)
    pipeline.run(("encoding_features", "encode"), remake=remake, command=command)
    return pipeline.encoding_models()


@os_errors_named()
def write_maps(config: Config | str | Path, out: str | Path, *, subjects: Sequence[str] = ()) -> list[Path]:
    """Voxel maps as NIfTI in each subject's space, a folder for each below `out`. Raises NotReady."""
    return pipeline_of(config, subjects).maps(local_path("out", out))


@os_errors_named()
def export_pictures(
    config: Config | str | Path, out: str | Path, *, subjects: Sequence[str] = (), photos: bool = False
) -> Path:
    """Write every picture of a study as PNG, a table of them, the scores and a manifest of digests; return the folder.

    Parameters
    ----------
    out : a new folder. photos : what was shown too; mind whose photos they are.

    Raises
    ------
    InputError : there is something at `out`. NotReady : the stage `evaluate` is not done.
    """
    return pipeline_of(config, subjects).pictures(local_path("out", out), photos=photos)


@os_errors_named()
def draw_figures(config: Config | str | Path, out: str | Path, *, subjects: Sequence[str] = ()) -> list[Path]:
    """Figures for papers from a finished study, as PNG and SVG. Raises NotReady."""
    return pipeline_of(config, subjects).figures(local_path("out", out))


@os_errors_named()
def serve(
    config: Config | str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8750,
    token: str | None = "",
    items: int = 64,
    nbytes: int = 64 * 2**20,
    waiting: int = 512,
    subjects: Sequence[str] = (),
) -> None:
    """Pictures over HTTP until it is stopped, see docs/serve.md. `items`, `nbytes`: the most of one request; `waiting`:
    pictures accepted and not yet answered. `token`: empty makes one, None answers everybody on this machine. Raises
    InputError, NotReady."""
    pipeline = pipeline_of(config, subjects)
    pipeline.serve(host=host, port=port, token=token, items=items, nbytes=nbytes, waiting=waiting)


def duration(seconds: float) -> str:
    """Seconds as the report writes them."""
    from bdflow.report.making import duration as written

    return written(seconds)
