"""How many threads BLAS, OpenMP and torch take, so that workers do not fight for cores."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

# Every Dask nanny leaves this in its process, and so in all that process starts. It gives memory back after every
# large array: millions of page faults, half the speed of a network.
TRIM, TRIM_OF_DASK = "MALLOC_TRIM_THRESHOLD_", "65536"


def environment(threads: int) -> dict[str, str]:
    """The variables that libraries read when they are loaded."""
    return dict.fromkeys(VARIABLES, str(threads))


def untrimmed() -> None:
    """Take Dask's `TRIM` out of this process's environment; another value is the user's own, and stays."""
    if os.environ.get(TRIM) == TRIM_OF_DASK:
        del os.environ[TRIM]


def limit(threads: int) -> None:
    """Set this thread's and process's limits: for libraries loaded already and for those to come."""
    from threadpoolctl import threadpool_limits

    os.environ.update(environment(threads))
    threadpool_limits(limits=threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """`limit`, undone at the end: what was loaded before gets back its own number, newcomers the default."""
    from threadpoolctl import ThreadpoolController

    variables = {name: os.environ.get(name) for name in VARIABLES}
    before = {lib.filepath: lib.num_threads for lib in ThreadpoolController().lib_controllers}
    torch = sys.modules.get("torch")
    torch_before = torch.get_num_threads() if torch is not None else None
    limit(threads)
    try:
        yield
    finally:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        default = _default_threads()
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(torch_before or default)
        for lib in ThreadpoolController().lib_controllers:
            lib.set_num_threads(before.get(lib.filepath, default) or default)


def _default_threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) > 0 else len(os.sched_getaffinity(0))
