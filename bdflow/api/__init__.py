"""What bdflow does, as functions: the command line calls these and nothing else. Heavy imports happen inside them."""

from typing import TYPE_CHECKING

from bdflow.api.benchmarks import BENCHMARKS, benchmark, benchmark_options
from bdflow.api.data import check_dataset, fetch_nsd, simulate, write_split
from bdflow.api.deployment import deploy
from bdflow.api.scores import score
from bdflow.api.studies import (
    RegionPictures,
    decode,
    decode_dataset,
    decode_file,
    draw_figures,
    duration,
    encode,
    export_pictures,
    load_config,
    paint_regions,
    plan,
    plan_text,
    recipes,
    rounding,
    run,
    serve,
    stale_by_reason,
    status,
    timings,
    verify,
    write_maps,
)
from bdflow.api.weights import check_bundle, describe_bundle, init_bundle
from bdflow.errors import InputError

if TYPE_CHECKING:
    from bdflow.api.studies import Outcome, Row, Timing

__all__ = [
    "BENCHMARKS",
    "InputError",
    "Outcome",
    "RegionPictures",
    "Row",
    "Timing",
    "benchmark",
    "benchmark_options",
    "check_bundle",
    "check_dataset",
    "decode",
    "decode_dataset",
    "decode_file",
    "deploy",
    "describe_bundle",
    "draw_figures",
    "duration",
    "encode",
    "export_pictures",
    "fetch_nsd",
    "init_bundle",
    "load_config",
    "paint_regions",
    "plan",
    "plan_text",
    "recipes",
    "rounding",
    "run",
    "score",
    "serve",
    "simulate",
    "stale_by_reason",
    "status",
    "timings",
    "verify",
    "write_maps",
    "write_split",
]
