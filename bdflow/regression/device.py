"""Arrays on the CPU, or on a GPU by way of CuPy."""

from typing import Any

import numpy as np


def to_device(values: np.ndarray, device: str) -> Any:
    """The array on "cpu" or "cuda". A copy to the GPU goes through a stream of its own, so that it may run in another
    thread beside what the GPU is busy with; it is complete on return.
    """
    if device == "cpu":
        return values
    import cupy

    with cupy.cuda.Stream(non_blocking=True) as stream:
        copied = cupy.asarray(values)
        stream.synchronize()
    return copied


def to_host(values: Any) -> np.ndarray:
    """The array as NumPy's."""
    return values if isinstance(values, np.ndarray) else values.get()
