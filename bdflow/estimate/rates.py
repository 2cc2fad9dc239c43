"""How fast the machines are: as benchmarks measured them where their figures are given, else assumed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bdflow.config import Config
from bdflow.errors import InputError

HERE = "docs/benchmarks.md"


@dataclass(frozen=True)
class Rate:
    """A number, its unit, where it is from, and whether it was measured for this plan."""

    value: float
    unit: str
    source: str
    measured: bool = False


DEFAULTS: Mapping[str, Rate] = {
    "core": Rate(160e9, "FLOP/s a core", "float32 products on two cores of a Sapphire Rapids Xeon: 320 GFLOP/s"),
    "gpu": Rate(790e12, "FLOP/s a GPU", "bfloat16 products on an H200; its maker's other GPUs differ"),
    "ridge": Rate(0.85, "of the core rate", f"{HERE}, ridge"),
    "gpu ridge": Rate(40e12, "FLOP/s a GPU", "float32 products on an H200, a guess"),
    "painting on gpu": Rate(0.6, "of the GPU rate", "the aim of `reconstruct` at its best batch"),
    "features on gpu": Rate(0.3, "of the GPU rate", "a guess: small networks, pictures prepared on the CPU"),
    "networks on cpu": Rate(0.25, "of the core rate", "the tiny networks in the demo"),
    "unpack": Rate(850e6, "B/s a worker", "docs/nsd.md, a session of NSD by ISA-L"),
    "photos": Rate(150e6, "B/s a worker", "a guess: photos read and compressed"),
    "read": Rate(0.64e9, "B/s", f"{HERE}, targets from disk"),
    "write": Rate(0.39e9, "B/s", f"{HERE}, disk"),
    "judging": Rate(0.224, "pictures/s of two cores", f"{HERE}, all five networks"),
    "judging on gpu": Rate(40.0, "pictures/s a GPU", "a guess: bound by reading and resizing"),
    "pixels": Rate(70.0, "pictures/s a worker at 512 px", "a guess from the demo"),
    "start": Rate(6.0, "s a stage", "Dask or Ray, and networks, in the demo"),
}


@dataclass(frozen=True)
class Figures:
    """Rates by name; seconds of one image of `flop` and bytes of GPU memory, if painting was measured."""

    rates: Mapping[str, Rate]
    image: Rate | None = None
    flop: float = 0.0
    peak_bytes: float = 0.0


def figures(files: Sequence[Path], config: Config) -> Figures:
    """Defaults, and over them what benchmarks wrote with --json: of ridge and of diffusion.

    Raises
    ------
    InputError : a file that cannot be read, or that no benchmark wrote.
    """
    found = Figures(dict(DEFAULTS))
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise _not_figures(file, f"a file that cannot be read as JSON ({error})") from error
        try:
            if isinstance(content, dict) and content.get("kind") == "diffusion":
                found = _diffusion(found, file, content, config)
            elif isinstance(content, dict) and "sgemm (FLOP/s)" in content:
                found = _ridge(found, file, content)
            else:
                raise _not_figures(file, "JSON of another form")
            for name, rate in {**found.rates, "image": found.image}.items():
                if rate is not None and not 0 < rate.value < math.inf:
                    raise ValueError(f"{name}: {rate.value}, not a number above 0")
        except InputError:
            raise
        except (KeyError, TypeError, IndexError, ArithmeticError, ValueError, AttributeError) as error:
            raise _not_figures(file, f"JSON that lacks what is needed ({type(error).__name__}: {error})") from error
    return found


def _not_figures(file: Path, what: str) -> InputError:
    return InputError(
        file,
        found=what,
        expected="what benchmarks/ridge.py or benchmarks/diffusion.py writes with --json",
        action="run one of these benchmarks on the machine in question, with --json and this file's name",
    )


def _ridge(found: Figures, file: Path, content: dict[str, Any]) -> Figures:
    write, _ = content["disk write, disk read (B/s)"]
    new = {
        "core": Rate(content["sgemm (FLOP/s)"] / content["cores"], "FLOP/s a core", file.name, True),
        "ridge": Rate(content["fraction of sgemm"], "of the core rate", file.name, True),
        "read": Rate(content["plain store reading (B/s)"], "B/s", file.name, True),
        "write": Rate(write, "B/s", file.name, True),
    }
    return replace(found, rates={**found.rates, **new})


def _diffusion(found: Figures, file: Path, content: dict[str, Any], config: Config) -> Figures:
    """The row of this configuration's precision whose batch is nearest to its own."""
    if not content["rows"]:
        raise IndexError("no rows")
    wanted, batch = config.networks.dtype, max((p.batch_size for p in config.painters.values()), default=1)
    same = [row for row in content["rows"] if row["dtype"] == wanted] or content["rows"]
    row = min(same, key=lambda row: (abs(row["batch_size"] - batch), row["seconds_an_image"]))
    device = content["machine"]["device"]
    text = f"{file.name}: {device}, {row['dtype']}, batch {row['batch_size']}"
    image = Rate(float(row["seconds_an_image"]), "s an image a device", text, True)
    rates = dict(found.rates)
    if config.networks.device != "cpu":
        rates["gpu"] = Rate(content["machine"]["matrix_flops"][row["dtype"]], "FLOP/s a GPU", file.name, True)
    return replace(
        found,
        rates=rates,
        image=image,
        flop=float(content["flop_an_image"]),
        peak_bytes=float(row.get("peak_bytes") or 0),
    )
