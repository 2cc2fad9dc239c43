"""Arrays on the CPU, or on a GPU by way of CuPy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
from array_api_compat import is_cupy_array

from bdflow.errors import InputError

INSTALL = "pip install 'bdflow[gpu]' for CUDA 12, 'bdflow[gpu13]' for CUDA 13"


def to_device(values: np.ndarray, device: str) -> Any:
    """The array on "cpu" or "cuda". On a GPU what the current stream does next sees the whole of it, and `values` may
    be written again on return.

    Raises
    ------
    InputError : "cuda", and CuPy is not installed or cannot be loaded.
    """
    return values if device == "cpu" else cupy_module().asarray(values)


def to_host(values: Any) -> np.ndarray:
    """The array as NumPy's."""
    return values if isinstance(values, np.ndarray) else values.get()


def device_budget(share: float = 1.0) -> int:
    """Bytes of the GPU that this process may still take: what is free on it, and what CuPy holds and does not use.
    Where several workers use it, at most the `share` of its memory that is this one's, less what it uses.
    """
    cupy = cupy_module()
    free, total = cupy.cuda.Device().mem_info
    pool = cupy.get_default_memory_pool()
    return int(min(free + pool.free_bytes(), share * total - pool.used_bytes()))


def cupy_module() -> Any:
    """CuPy. Raises InputError if it cannot be loaded."""
    try:
        import cupy
        import cupyx  # noqa: F401
    except ImportError as error:
        why = "no package CuPy" if find_spec("cupy") is None else f"a CuPy that cannot be loaded ({error})"
        raise _no_cupy("ridge on a GPU", why) from error
    return cupy


def refuse_without_cupy(stage: str) -> None:
    """Raise InputError if a stage is to compute on GPUs and CuPy is not installed. Nothing is loaded for it."""
    if find_spec("cupy") is None:
        raise _no_cupy(f"execution.{stage}.gpus", "no package CuPy")


def _no_cupy(where: str, found: str) -> InputError:
    return InputError(
        where,
        found=found,
        expected="it installed for the CUDA of the GPU: ridge and encoding models compute on GPUs with it",
        action=f"install it ({INSTALL}), or set `gpus: 0` for this stage",
    )


@contextmanager
def failures_raised(values: object) -> Iterator[None]:
    """Inside, linear algebra that fails raises `numpy.linalg.LinAlgError`. CuPy's says nothing of it by itself, and
    returns numbers.
    """
    if not is_cupy_array(values):
        yield
        return
    from cupyx import errstate

    with errstate(linalg="raise"):
        yield
