"""What benchmarks wrote with --json, compared with what a configuration will do: used, scaled by FLOP, or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from bdflow.config import Config
from bdflow.errors import InputError, listed
from bdflow.estimate.devices import GPUS, USUAL, chosen, known
from bdflow.estimate.rates import DEFAULTS, MEASURED, Figures, Rate, of_gpu
from bdflow.estimate.sizes import Networks

SAME = 0.25
"""Networks whose FLOP an image differ by no more than this are of one size: switches change a tenth of them."""
ENOUGH_FLOP, ENOUGH_BYTES = 1e12, 1e7
"""Of ridge and of a session: less than this takes so little time that start-up cannot be told from the rate."""
LARGE_FLOP = 1e13
"""Ridge of so many FLOP reaches what large studies reach; of fewer, its rate may be further off."""
BENCHMARKS = ("ridge", "diffusion", "ingest")


class Device(TypedDict):
    """What a benchmark ran on: `kind` gpu or cpu, its name, how many GPUs or threads."""

    kind: str
    name: str
    count: float


class BenchmarkFigures(TypedDict):
    """What benchmarks write, as far as it is read here; a file may hold something else, which `one` refuses."""

    device: Device


RidgeFigures = TypedDict(
    "RidgeFigures",
    {
        "device": Device,
        "scale": str,
        "arithmetic (FLOP)": float,
        "disk write, disk read (B/s)": tuple[float, float],
        "start (s)": float,
        "rate (FLOP/s)": float,
        "sgemm (FLOP/s)": float,
        "plain store reading (B/s)": float,
    },
)
IngestFigures = TypedDict(
    "IngestFigures", {"device": Device, "unpacked (B)": float, "trials": int, "rate (B/s)": float}
)


class Switches(TypedDict):
    """The switches of `networks.speed`, of which one is named here."""

    compile: str


class Row(TypedDict):
    """Painting in one precision, with some switches, in batches of one size."""

    switches: str
    dtype: str
    batch_size: int
    speed: Switches
    start_s: float
    seconds_an_image: float
    peak_bytes: float | None


class Bundle(TypedDict):
    """The networks that painted; `image`: pixels a side."""

    name: str
    image: int


class DiffusionFigures(TypedDict):
    """`matrix_flops`: FLOP a second of matrix products, by precision."""

    device: Device
    bundle: Bundle
    steps: int
    strength: float
    flop_an_image: float
    matrix_flops: dict[str, float]
    rows: list[Row]


def figures(
    files: Sequence[Path], config: Config, networks: Networks, gpu: str | None = None, here: str | None = None
) -> Figures:
    """Defaults, and over them what benchmarks wrote with --json: of ridge, diffusion, ingest, and gpu.

    Parameters
    ----------
    networks : what the configuration's networks cost; figures of others are refused.
    gpu : which GPU to plan with, as a user names it. here : the driver's name of this machine's GPU.

    Raises
    ------
    InputError : a file that cannot be read, or that no benchmark wrote; figures of another device, of networks of
        another size, of another precision or way of compiling than the configuration's; an unknown GPU.
    """
    asked = None if gpu is None else chosen(gpu)
    found = Figures({**DEFAULTS})
    if asked:
        found = replace(found, gpu=GPUS[asked].name, why_gpu="--gpu")
    elif here:
        found = replace(found, gpu=here, why_gpu="the GPU of this machine")
    name = known(found.gpu) or USUAL
    if known(found.gpu) is None:
        found = replace(found, notes=(f"of a {found.gpu} nothing is known: planned as an {GPUS[USUAL].name}",))
    found = replace(found, rates={**found.rates, **of_gpu(name, config.networks.dtype, config.networks.vdvae_dtype)})
    for file in files:
        found = _Reader(file, config, networks, asked).taken(found)
    return found


def noted(found: Figures, note: str) -> Figures:
    """With one more note."""
    return replace(found, notes=(*found.notes, note))


def check_files(files: Sequence[Path]) -> None:
    """Raise InputError for a file that holds no JSON, before sizes and networks are looked at for minutes."""
    for file in files:
        _json(file)


def _json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _not_figures(file, f"a file that cannot be read as JSON ({error})") from error


def _not_figures(file: Path, what: str) -> InputError:
    return InputError(
        file,
        found=what,
        expected="what a benchmark writes with --json",
        action="run the benchmark on the machine in question, with --json and this file's name",
    )


class _Reader:
    """One file, and what it is compared with."""

    def __init__(self, file: Path, config: Config, networks: Networks, asked: str | None) -> None:
        self.file, self.config, self.networks, self.asked = file, config, networks, asked

    def taken(self, found: Figures) -> Figures:
        content = _json(self.file)
        if not isinstance(content, dict):
            raise _not_figures(self.file, "JSON of another form")
        if "benchmark" in content:
            return self.one(found, content)
        checks = [
            each["found"]
            for each in content.values()
            if isinstance(each, dict) and each.get("ok") is True and isinstance(each.get("found"), dict)
        ]
        usable = [each for each in checks if each.get("benchmark") in BENCHMARKS]
        if not usable:
            raise _not_figures(self.file, "JSON of another form, or checks of a GPU of which none that measures passed")
        refused: list[InputError] = []
        for each in usable:
            try:
                found = self.one(found, each)
            except InputError as error:
                refused.append(error)
        if len(refused) == len(usable):
            raise refused[0]
        notes = tuple(f"{self.file.name}, {error.found}: not used; expected {error.expected}" for error in refused)
        return replace(found, notes=(*found.notes, *notes))

    def one(self, found: Figures, content: dict[str, object]) -> Figures:
        """Figures of one benchmark."""
        readers: dict[str, Callable[[Figures, Any], Figures]] = {
            "ridge": self.ridge,
            "diffusion": self.diffusion,
            "ingest": self.ingest,
        }
        try:
            reader = readers.get(str(content["benchmark"]))
            if reader is None:
                raise _not_figures(self.file, f"figures of {content['benchmark']}, which no plan needs")
            found = reader(found, content)
            for name, rate in {**found.rates, "image": found.image}.items():
                if rate is not None and not (0 if name.startswith("start") else 1e-300) <= rate.value < math.inf:
                    raise ValueError(f"{name}: {rate.value}, not a number above 0")
        except InputError:
            raise
        except (KeyError, TypeError, IndexError, ArithmeticError, ValueError, AttributeError) as error:
            why = f"JSON that lacks what is needed ({type(error).__name__}: {error})"
            raise _not_figures(self.file, why) from error
        return found

    def refuse(self, found: str, expected: str, action: str, benchmark: str = "") -> InputError:
        meaning = "Figures of something else say nothing about this run, and are not scaled to it."
        remedy = f"bench:{benchmark}" if benchmark else ""
        return InputError(self.file, found=found, expected=expected, meaning=meaning, action=action, remedy=remedy)

    def device(self, content: BenchmarkFigures, on_gpu: bool, where: str, benchmark: str) -> str:
        """The name of the device it was measured on. Refuses another kind than the configuration's, or another GPU than
        the one that was named. `benchmark`: name and options of the one that measures what is missing.
        """
        kind, name = content["device"]["kind"], str(content["device"]["name"])
        wanted = "gpu" if on_gpu else "cpu"
        words = {"gpu": "a GPU", "cpu": "a CPU"}
        if kind != wanted:
            raise self.refuse(
                f"figures of {words[kind]} ({name})",
                f"those of {words[wanted]}, on which this configuration computes ({where})",
                "measure there, or leave this file out",
                benchmark,
            )
        if kind == "gpu" and self.asked is not None and known(name) != self.asked:
            raise self.refuse(
                f"figures of another GPU ({name})",
                f"those of the {GPUS[self.asked].name} that --gpu names",
                "leave --gpu out, to plan with the GPU of the figures; or leave this file out",
            )
        return name

    def with_gpu(self, found: Figures, content: BenchmarkFigures, name: str) -> Figures:
        """The GPU of figures is the one that is planned with."""
        if content["device"]["kind"] != "gpu" or found.gpu == name:
            return found
        return replace(found, gpu=name, why_gpu=self.file.name)

    def ridge(self, found: Figures, content: RidgeFigures) -> Figures:
        gpus = self.config.execution.regress.gpus
        benchmark = "ridge --scale full" + (" --gpus 1 --workers 1" if gpus else "")
        name = self.device(content, bool(gpus), f"execution.regress.gpus is {gpus:g}", benchmark)
        scale, count = str(content["scale"]), float(content["device"]["count"])
        source, flop = f"{self.file.name}: {name}, scale {scale}", float(content["arithmetic (FLOP)"])
        within = MEASURED if flop >= LARGE_FLOP else 1.5
        write, _ = content["disk write, disk read (B/s)"]
        new = {
            "write": Rate(float(write), "B/s", source, True, MEASURED),
            "start regress": Rate(float(content["start (s)"]), "s to start regress", source, True, 1.5),
        }
        rate, gemm = float(content["rate (FLOP/s)"]), float(content["sgemm (FLOP/s)"])
        plain = Rate(float(content["plain store reading (B/s)"]), "B/s", source, True, MEASURED)
        if flop < ENOUGH_FLOP:
            if not gpus:
                new["core"] = Rate(gemm / count, "FLOP/s a core", source, True, MEASURED)
            found = noted(
                found,
                f"{self.file.name}: {flop / 1e12:.2g} TFLOP at scale {scale} are too few to tell the rates of ridge "
                "and of reading from start-up: of this file, matrix products, the disk and start-up are used "
                "(the benchmark ridge with --scale small, or full, tells more)",
            )
        elif gpus:
            new["read"] = plain
            new["gpu ridge"] = Rate(rate / count, "FLOP/s a GPU", source, True, within)
        else:
            new["read"] = plain
            new["core"] = Rate(gemm / count, "FLOP/s a core", source, True, MEASURED)
            new["ridge"] = Rate(rate / gemm, "of the core rate", source, True, within)
        found = self.with_gpu(found, content, name)
        return replace(found, rates={**found.rates, **new})

    def ingest(self, found: Figures, content: IngestFigures) -> Figures:
        name = self.device(content, False, "ingest", "ingest")
        if content["unpacked (B)"] < ENOUGH_BYTES:
            return noted(
                found,
                f"{self.file.name}: a session of {content['unpacked (B)'] / 1e6:.2g} MB is too short to tell the rate "
                "of reading from start-up: not used (the benchmark ingest with --trials 100 tells more)",
            )
        within = MEASURED if content["unpacked (B)"] > 1e8 else 1.5
        source = f"{self.file.name}: {name}, sessions of {content['trials']:,} trials"
        rate = Rate(float(content["rate (B/s)"]), "B/s a worker", source, True, within)
        return replace(found, rates={**found.rates, "unpack": rate})

    def diffusion(self, found: Figures, content: DiffusionFigures) -> Figures:
        """The row of this configuration's precision and way of compiling whose batch is nearest to its own."""
        config, on_gpu = self.config, bool(self.config.execution.reconstruct.gpus)
        painters = [of for of in config.painters.values() if of.kind != "stable_diffusion"]
        if not painters:
            raise self.refuse(
                "figures of Brain-Diffuser's networks",
                "those of networks that this configuration paints with",
                "leave this file out",
            )
        where = f"execution.reconstruct.gpus is {config.execution.reconstruct.gpus:g}"
        benchmark = "diffusion" + (" --full --device cuda" if on_gpu else "")
        name = self.device(content, on_gpu, where, f"{benchmark} --dtypes {config.networks.dtype}")
        self.same_size(content)
        dtype, compile_mode = config.networks.dtype, config.networks.speed.compile
        rows = self.rows(content, "dtype", dtype, lambda row: row["dtype"], f"--dtypes {dtype}")
        content = {**content, "rows": rows}
        option = "without --compile" if compile_mode == "none" else f"--compile {compile_mode}"
        rows = self.rows(content, "speed.compile", compile_mode, lambda row: row["speed"]["compile"], option)
        speed, notes = config.networks.speed.model_dump(), []
        exact = [row for row in rows if row["speed"] == speed]
        if not exact:
            notes.append(f"{self.file.name}: no row has all switches of networks.speed; the quickest row is taken")
        batch = max(of.batch_size for of in painters)
        row = min(exact or rows, key=lambda row: (abs(row["batch_size"] - batch), row["seconds_an_image"]))
        source = f"{self.file.name}: {name}, {dtype}, {row['switches']}, batch {row['batch_size']}"
        if row["batch_size"] != batch:
            notes.append(f"{self.file.name}: batch {row['batch_size']} is the nearest to painters.batch_size {batch}")
        paths = {(of.steps, of.strength) for of in painters}
        if paths != {(content["steps"], content["strength"])}:
            steps = listed(sorted({of.steps for of in painters}))
            notes.append(
                f"{self.file.name}: measured with {content['steps']} steps, scaled by FLOP to {steps} of the same "
                "networks on the same device"
            )
        threads = config.execution.reconstruct.threads
        if not on_gpu and threads != content["device"]["count"]:
            notes.append(
                f"{self.file.name}: measured with {content['device']['count']:g} threads, "
                f"execution.reconstruct.threads is {threads}: taken as it is"
            )
        rates = {
            **found.rates,
            "start reconstruct": Rate(float(row["start_s"]), "s to start painting", source, True, 1.5),
        }
        if on_gpu:
            rate = float(content["matrix_flops"][row["dtype"]])
            rates["gpu"] = Rate(rate, "FLOP/s a GPU", source, True, MEASURED)
            own = content["matrix_flops"].get(config.networks.vdvae_dtype)
            if own is not None:
                rates["gpu vdvae"] = Rate(float(own), "FLOP/s a GPU", f"{source}, for the VDVAE", True, MEASURED)
        return replace(
            self.with_gpu(found, content, name),
            rates=rates,
            image=Rate(float(row["seconds_an_image"]), "s an image a device", source, True, MEASURED),
            flop=self.networks.painting("full", content["steps"], content["strength"]),
            peak_bytes=float(row.get("peak_bytes") or 0),
            notes=(*found.notes, *notes),
        )

    def same_size(self, content: DiffusionFigures) -> None:
        """Refuse networks of another size: small ones reach another part of a device's rate."""
        flop, bundle = float(content["flop_an_image"]), content["bundle"]
        own = self.networks.painting("full", content["steps"], content["strength"])
        if bundle["image"] == self.networks.image and abs(flop / own - 1) <= SAME:
            return
        raise self.refuse(
            f"figures of other networks ({bundle['name']}: {bundle['image']} px, {flop / 1e12:.3g} TFLOP an image)",
            f"those of {self.networks.source}: {self.networks.image} px, {own / 1e12:.3g} TFLOP with as many steps",
            f"measure with networks of this size (--full, or --bundle {self.config.networks.bundle}), or leave this "
            "file out",
        )

    def rows(
        self, content: DiffusionFigures, setting: str, wanted: str, of: Callable[[Row], str], option: str
    ) -> list[Row]:
        """The rows that have a setting's value; refused if there is none."""
        if not content["rows"]:
            raise IndexError("no rows")
        same = [row for row in content["rows"] if of(row) == wanted]
        if same:
            return same
        there = listed(sorted({str(of(row)) for row in content["rows"]}))
        raise self.refuse(
            f"figures of {setting} {there}",
            f"those of {wanted}, as networks.{setting} is",
            f"measure with it (the benchmark diffusion, {option}), or leave this file out",
        )
