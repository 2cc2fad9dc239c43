"""Ridge systems larger than memory: a Cholesky factor in panels of columns, each computed from those before it.

Left-looking: panel j is the kernel's columns less the products of earlier panels, divided by its own corner. Panels
are kept by the caller (in a store), so only two are in memory, and a factorisation that was interrupted goes on at
the next panel. A panel is held transposed: (w, n), row i is column start + i of the lower triangle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import scipy.linalg

from bdflow.regression.ridge import not_definite

Panel = tuple[int, np.ndarray]


def starts(n: int, width: int) -> Sequence[int]:
    """First columns of the panels."""
    return range(0, n, width)


def factor_panel(start: int, columns: np.ndarray, alpha: float, earlier: Iterable[Panel]) -> np.ndarray:
    """One panel of the Cholesky factor of K + alpha I.

    Parameters
    ----------
    start : its first column.
    columns : (w, n) these rows of the symmetric K; overwritten.
    alpha : ridge penalty, > 0.
    earlier : the panels before it, as (first column, (w, n)).

    Raises
    ------
    ValueError : the system is not positive definite in this precision.
    """
    width = len(columns)
    rest = columns[:, start:]
    rest[np.arange(width), np.arange(width)] += alpha
    for _, panel in earlier:
        rest -= panel[:, start : start + width].T @ panel[:, start:]
    try:
        corner = scipy.linalg.cholesky(rest[:, :width], lower=True)
    except np.linalg.LinAlgError:
        raise not_definite(alpha, columns.dtype) from None
    columns[:, :start] = 0
    columns[:, start:] = scipy.linalg.solve_triangular(corner, rest, lower=True)
    columns[:, start : start + width] = corner.T
    return columns


def solve(forward: Callable[[], Iterable[Panel]], backward: Callable[[], Iterable[Panel]], right: np.ndarray) -> None:
    """(K + alpha I)^-1 right in place of right, shape (n, m), by two walks through the panels."""
    for start, panel in forward():
        stop = start + len(panel)
        corner = panel[:, start:stop].T
        right[start:stop] = scipy.linalg.solve_triangular(corner, right[start:stop], lower=True)
        right[stop:] -= panel[:, stop:].T @ right[start:stop]
    for start, panel in backward():
        stop = start + len(panel)
        corner = panel[:, start:stop].T
        inner = right[start:stop] - panel[:, stop:] @ right[stop:]
        right[start:stop] = scipy.linalg.solve_triangular(corner, inner, lower=True, trans="T")
