"""All that is to be checked on a machine with a GPU, in one order, within a time; what was found is written after each.

    bdflow bench gpu --json gpu.json                everything, in half an hour
    bdflow bench gpu --list                         what there is
    bdflow bench gpu --dry                          on the CPU, with the tiny bundle: painting alone
    bdflow bench gpu --only ridge ridge-full-4      some of it

Each check is a script of its own process: one that fails or takes too long does not end the others. A check whose
packages are not there, or for which the time is too short, is left out and named. The machine needs torch, CuPy,
transformers, xarray and NumPy, and of bdflow's other dependencies those that a check names. No line of what is checked
had met a device when this was written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bdflow import version
from bdflow.benchmarks.machine import check_output
from bdflow.cluster.limits import devices_here
from bdflow.errors import InputError

ROOT = Path(version.__file__).resolve().parents[1]  # a checkout, or where packages are installed


@dataclass(frozen=True)
class Check:
    """One step of the order.

    Attributes
    ----------
    minutes : that it is allowed.
    command : what Python is called with, in the folder that `bdflow` lies in; {dir} is the folder for large files,
        {json} where the step writes what it found.
    needs : packages without which it cannot run.
    dry : what Python is called with to try the same on the CPU in a minute; nothing, where that cannot be.
    """

    name: str
    minutes: float
    command: tuple[str, ...]
    needs: tuple[str, ...] = ("cupy",)
    dry: tuple[str, ...] = ()


PAINT = ("-m", "bdflow.benchmarks.diffusion", "--full", "--device", "cuda", "--json", "{json}")
RIDGE = (
    *("-m", "bdflow.benchmarks.ridge", "--scale", "full", "--keep"),
    *("--dir", "{dir}", "--runs", "1", "--sizes", "2", "--no-comparison"),
)
TORCH = ("torch", "diffusers", "transformers")
RECORDED = ("-m", "pytest", "-q", "tests/models/test_speed.py", "-k", "recorded")
COMPILED = ("--compile", "default", "cuda_graphs")
TINY = (
    *("-m", "bdflow.benchmarks.diffusion", "--batch-sizes", "1", "2", "--images", "2", "--steps", "4"),
    *("--json", "{json}"),
)
CHECKS = (
    Check("ridge", 3, ("-m", "bdflow.benchmarks.gpu_ridge", "--json", "{json}")),
    Check("graphs", 2, RECORDED, (*TORCH, "pytest", "hypothesis")),
    Check(
        "paint",
        3,
        ("-m", "bdflow.benchmarks.gpu_paint", "--full", "--device", "cuda", "--batch", "16", "--json", "{json}"),
        TORCH,
        ("-m", "bdflow.benchmarks.gpu_paint", "--scenes", "2", "--json", "{json}"),
    ),
    Check(
        "paint-eager",
        4,
        (*PAINT, "--dtypes", "float16", "bfloat16", "--batch-sizes", "1", "16", "--images", "16"),
        TORCH,
        (*TINY, "--dtypes", "float32", "bfloat16"),
    ),
    Check(
        "ridge-full-1",
        6,
        (*RIDGE, "--executor", "serial", "--workers", "1", "--gpus", "1", "--json", "{json}"),
    ),
    Check(
        "ridge-full-4",
        4,
        (*RIDGE, "--executor", "dask", "--workers", "4", "--gpus", "0.25", "--json", "{json}"),
        ("cupy", "dask", "distributed"),
    ),
    Check(
        "paint-compiled",
        6,
        (*PAINT, "--dtypes", "float16", "--batch-sizes", "16", "--images", "48", *COMPILED),
        TORCH,
    ),
    Check(
        "paint-recorded-bf16",
        2,
        (*PAINT, "--dtypes", "bfloat16", "--batch-sizes", "16", "--images", "48", "--compile", "cuda_graphs"),
        TORCH,
    ),
)


def run(check: Check, folder: Path, limit: float) -> dict[str, Any]:
    """What a check found; its last lines; how it ended."""
    found = folder / f"{check.name}.json"
    found.unlink(missing_ok=True)
    command = [part.replace("{dir}", str(folder)).replace("{json}", str(found)) for part in check.command]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=limit,
            check=False,
        )
        ended, output = f"exit code {done.returncode}", done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        ended = f"stopped after {limit:.0f} s"
        output = "".join(
            part.decode(errors="replace") for part in (late.stdout, late.stderr) if isinstance(part, bytes)
        )
    return {
        "ended": ended,
        "ok": ended == "exit code 0",
        "seconds": time.perf_counter() - start,
        "output": output.splitlines()[-60:],
        "found": json.loads(found.read_text(encoding="utf-8")) if found.is_file() else None,
    }


def lacking(check: Check) -> list[str]:
    """Packages that a check needs and this machine has not."""
    return [name for name in check.needs if find_spec(name) is None]


def run_all(checks: Sequence[Check], folder: Path, minutes: float, report: Path | None) -> dict[str, dict[str, Any]]:
    """Every check in order, within a time; `report` is written after each."""
    results: dict[str, dict[str, Any]] = {}
    end = time.perf_counter() + 60 * minutes
    folder.mkdir(parents=True, exist_ok=True)
    for check in checks:
        left = end - time.perf_counter()
        absent = lacking(check)
        if absent or left < 30:
            why = f"no package {', '.join(absent)}" if absent else "no time left"
            results[check.name] = {"ended": f"left out: {why}", "ok": False}
        else:
            results[check.name] = run(check, folder, min(60 * check.minutes, left))
        result = results[check.name]
        print(f"== {check.name}: {result['ended']} ({result.get('seconds', 0):.0f} s)", flush=True)
        print("\n".join(result.get("output", [])), flush=True)
        if report is not None:
            report.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def refuse_without_gpu() -> None:
    """Raise InputError on a machine where no GPU is seen."""
    if not devices_here():
        raise InputError(
            "this machine",
            found="no GPU that NVIDIA's driver shows, or none that CUDA_VISIBLE_DEVICES leaves",
            expected="at least one: these are checks of what runs on GPUs",
            action="run this on a machine with a GPU; `bdflow bench gpu --list` shows the checks anywhere",
        )


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    parser = argparse.ArgumentParser(
        "bdflow bench gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[check.name for check in CHECKS], default=None)
    parser.add_argument("--list", action="store_true", help="name the checks and what this machine lacks for them")
    parser.add_argument("--dry", action="store_true", help="try on the CPU what can be, with the tiny bundle")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm/bdflow-gpu"), help="for stores of 40 GB; left there")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    chosen = [check for check in CHECKS if options.only is None or check.name in options.only]
    if options.dry:
        chosen = [replace(check, command=check.dry) for check in chosen if check.dry]
    if options.list:
        for check in chosen:
            lacks = lacking(check)
            note = f"   (no package {', '.join(lacks)})" if lacks else ""
            print(f"{check.name:<16} {check.minutes:>3.0f} min  python {' '.join(check.command)}{note}")
        return {}
    if not options.dry:
        refuse_without_gpu()
    check_output(options.json)
    print(f"{len(chosen)} checks, at most {options.minutes:g} minutes; large files go to {options.dir}", flush=True)
    results = run_all(chosen, options.dir, options.minutes, options.json)
    if not all(result["ok"] for result in results.values()):
        sys.exit(1)
    return results


if __name__ == "__main__":
    main()
