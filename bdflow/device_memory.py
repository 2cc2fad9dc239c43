"""Whether an error says that a device's memory was too small: libraries say it in types and words of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator

TYPES = ("OutOfMemoryError", "MemoryError")
"""Names of types that say it by themselves: torch's, CuPy's, Python's."""
WORDS = re.compile(
    r"out of memory"
    r"|(CUBLAS|CUSOLVER|CUSPARSE|CUDNN)_STATUS_ALLOC_FAILED"
    r"|CUFFT_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"
    r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|can't allocate memory|failed to allocate",
    re.IGNORECASE,
)
"""How errors of other types, such as RuntimeError, say it."""


def out_of_memory(error: BaseException) -> str | None:
    """The first line of what says that memory was too small, by the error or by one that led to it; None if none does.

    An error that ends the recording of a CUDA graph is often followed by another one, which says only that the
    recording failed.
    """
    for one in _chain(error):
        named = any(kind.__name__ in TYPES for kind in type(one).__mro__)
        if named or (isinstance(one, RuntimeError) and WORDS.search(str(one))):
            return str(one).splitlines()[0] if str(one) else "out of memory"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and not any(one is other for other in seen):
            seen.append(one)
            waiting += [one.__context__, one.__cause__]
            yield one
