"""How a function of networks is compiled, by the name of a mode."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

MODES = {"default": "default", "reduce_overhead": "reduce-overhead", "max_autotune": "max-autotune"}
"""Modes of `torch.compile` by what settings call them."""
REUSED = ("reduce_overhead", "max_autotune")
"""Modes that record CUDA graphs, and so give each result in the memory of the one before."""
SHAPES = 64  # of one function: sizes of batches, halves of guidance, conditions that are there


def compiled(function: Callable[P, T], mode: str) -> Callable[P, T]:
    """The function, compiled whole unless the mode is none of `MODES`. Every shape is compiled once. Results are those
    of the function, in memory of their own.
    """
    if mode not in MODES:
        return function
    made: Callable[P, T] = torch.compile(function, fullgraph=True, dynamic=False, mode=MODES[mode])
    limits: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(limits, "recompile_limit") else "cache_size_limit"

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with limits.patch(**{limit: SHAPES}):
            if mode not in REUSED:
                return made(*args, **kwargs)
            torch.compiler.cudagraph_mark_step_begin()
            return _own(made(*args, **kwargs))

    return call


def _own(values: Any) -> Any:
    return tuple(map(_own, values)) if isinstance(values, tuple) else values.clone()
