"""Principal components by the kernel: a feature space reduced without its features.

Of centred features Z (n, p) with Z Z^T = U diag(l) U^T, the scores on the first k components are U_k diag(l_k)^(1/2),
and those of other items (Z* Z^T) U_k diag(l_k)^(-1/2) (B. Schoelkopf, A. Smola and K.-R. Mueller 1998, "Nonlinear
component analysis as a kernel eigenvalue problem"; with a linear kernel this is PCA). Inner products of scores follow,
and all that ridge needs are those.

Pure; NumPy or CuPy arrays, as `bdflow.regression.ridge`.
"""

from __future__ import annotations

from typing import NamedTuple

from array_api_compat import array_namespace

from bdflow.errors import InputError, counted
from bdflow.regression.device import failures_raised
from bdflow.regression.ridge import Array


class Reduced(NamedTuple):
    """Inner products of scores.

    Attributes
    ----------
    kernel : (n, n) of training items.
    cross : (m, n) of other with training items.
    kept : share of the variance of the training features that the components have.
    """

    kernel: Array
    cross: Array
    kept: float


def components(kernel: Array, cross: Array, k: int) -> Reduced:
    """The first k principal components of the training features. Computed in float64, given back in the kernel's dtype.

    Parameters
    ----------
    kernel : (n, n) inner products of training features, centred over the training items.
    cross : (m, n) of other with training features, the former centred by the same means.
    k : components to keep.

    Raises
    ------
    InputError : the training features have fewer.
    """
    xp = array_namespace(kernel, cross)
    n = kernel.shape[0]
    with failures_raised(kernel):
        values, vectors = xp.linalg.eigh(xp.astype(kernel, xp.float64))
    # what rounding of the kernel alone gives is no component
    least = float(values[-1]) * n * float(xp.finfo(kernel.dtype).eps)
    rank = int(xp.sum(xp.astype(values > least, xp.int64)))
    if not 1 <= k <= rank:
        raise InputError(
            "principal components",
            found=counted(rank, "component"),
            expected=f"{k:,} at least, as asked for",
            meaning="There is one less than training stimuli, or fewer where there are fewer latents or some depend on "
            "others.",
            action=f"ask for {rank:,} or fewer, or leave the space as it is",
        )
    top, lengths = vectors[:, n - k :], values[n - k :]
    reduced = (top * lengths) @ top.T
    projected = (xp.astype(cross, xp.float64) @ top) @ top.T
    kept = float(xp.sum(lengths) / xp.sum(xp.where(values > 0, values, xp.zeros_like(values))))
    return Reduced(xp.astype(reduced, kernel.dtype), xp.astype(projected, kernel.dtype), kept)
