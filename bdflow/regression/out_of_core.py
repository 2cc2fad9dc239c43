"""Ridge systems larger than memory: a Cholesky factor in panels of columns, each computed from those before it.

Left-looking: panel j is the kernel's columns less the products of earlier panels, divided by its own corner. Panels
are kept by the caller (in a store), so only two are in memory, and a factorisation that was interrupted goes on at
the next panel. A panel is held transposed: (w, n), row i is column start + i of the lower triangle. NumPy or CuPy
arrays, as `bdflow.regression.ridge`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from array_api_compat import array_namespace

from bdflow.regression.ridge import Array, cholesky, solve_lower

Panel = tuple[int, Array]


def starts(n: int, width: int) -> Sequence[int]:
    """First columns of the panels."""
    return range(0, n, width)


def factor_panel(start: int, columns: Array, alpha: float, earlier: Iterable[Panel]) -> Array:
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
    width, xp = columns.shape[0], array_namespace(columns)
    rest, own = columns[:, start:], xp.arange(width)
    rest[own, own] += alpha
    for _, panel in earlier:
        rest -= panel[:, start : start + width].T @ panel[:, start:]
    corner = cholesky(rest[:, :width], alpha)
    columns[:, :start] = 0
    columns[:, start:] = solve_lower(corner, rest)
    columns[:, start : start + width] = corner.T
    return columns


def solve(forward: Callable[[], Iterable[Panel]], backward: Callable[[], Iterable[Panel]], right: Array) -> None:
    """(K + alpha I)^-1 right in place of right, shape (n, m), by two walks through the panels."""
    for start, panel in forward():
        stop = start + panel.shape[0]
        corner = panel[:, start:stop].T
        right[start:stop, :] = solve_lower(corner, right[start:stop, :])
        right[stop:, :] -= panel[:, stop:].T @ right[start:stop, :]
    for start, panel in backward():
        stop = start + panel.shape[0]
        corner = panel[:, start:stop].T
        inner = right[start:stop, :] - panel[:, stop:] @ right[stop:, :]
        right[start:stop, :] = solve_lower(corner, inner, transposed=True)
