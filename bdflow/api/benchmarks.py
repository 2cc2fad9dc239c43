"""What parts of bdflow take on this machine. Heavy imports happen inside."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeGuard

from bdflow.errors import InputError, os_errors_named

__all__ = ["BENCHMARKS", "benchmark", "benchmark_options"]

BENCHMARKS = {
    "ridge": "Ridge through the real stage and stores, against matrix products and plain reading.",
    "diffusion": "Painting: batch sizes, precisions and switches, against matrix products.",
    "ingest": "A session of betas read and masked, against merely unpacking it.",
    "gpu": "All that is to be checked on a machine with a GPU, in one order, within half an hour.",
}
"""Names of benchmarks, and what each measures."""


@os_errors_named()
def benchmark(name: str, options: Sequence[str] = ()) -> dict[str, object]:
    """Measure a part of bdflow on this machine; print figures beside the machine's limits, and return them.

    Parameters
    ----------
    name : one of `BENCHMARKS`.
    options : as after `bdflow bench NAME` on the command line, such as `["--scale", "small", "--json", "ridge.json"]`;
        `["--help"]` prints all of them, and raises SystemExit.

    Raises
    ------
    InputError : an unknown name; less memory or disk than is needed, no GPU for `gpu`, a file that cannot be written.
    SystemExit : options that cannot be read; a check of `gpu` that failed.
    """
    if name not in BENCHMARKS:
        raise InputError(
            "benchmark", found=repr(name), expected=f"one of {', '.join(BENCHMARKS)}", action="correct the name"
        )
    found: dict[str, Any] = import_module(f"bdflow.benchmarks.{name}").main(list(options))
    return found


def benchmark_options(name: str) -> tuple[str, ...]:
    """The options of a benchmark, such as `--json`. They are read from its source: nothing heavy is imported."""
    spec = importlib.util.find_spec(f"bdflow.benchmarks.{name}")
    assert spec is not None
    assert spec.origin is not None
    calls = (node for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) if _adds(node))
    words = (word.value for call in calls for word in call.args if isinstance(word, ast.Constant))
    return tuple(word for word in words if isinstance(word, str) and word.startswith("--"))


def _adds(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"
