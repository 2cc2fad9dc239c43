"""MATLAB's files up to version 7: arrays, and cells of numbers and texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bdflow.datasets.formats.identity import missing
from bdflow.errors import InputError
from bdflow.stores.errors import StoreError
from bdflow.stores.paths import AnyPath, readable


def read_matlab(path: AnyPath, what: str, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Variables of a `.mat` file, each at least two-dimensional, as MATLAB has them.

    Parameters
    ----------
    path : the file; `what` it is, for errors.
    names : variables that there must be; `optional` ones are left out where they are not there.

    Raises
    ------
    NotAtHand : no such file. InputError : it cannot be read, or a variable is not there.
    """
    import scipy.io

    if not path.is_file():
        raise missing(path, what)
    try:
        content = scipy.io.loadmat(readable(path), variable_names=[*names, *optional])
    except StoreError:
        raise
    except Exception as error:
        raise InputError(
            path,
            found=f"a file that is not readable as MATLAB's ({type(error).__name__}: {error})",
            expected=f"{what}, in MATLAB's version 7 or before",
            action="fetch the file again",
        ) from error
    absent = [name for name in names if not isinstance(content.get(name), np.ndarray)]
    if absent:
        raise InputError(
            path,
            found=f"a file with no array {absent[0]}",
            expected=f"{what}, with {', '.join(names)}",
            action="fetch the file again",
        )
    return {name: content[name] for name in [*names, *optional] if isinstance(content.get(name), np.ndarray)}


def text_of(cell: object, where: str) -> str:
    """The text in a cell. Raises InputError for anything else."""
    values = np.asarray(cell)
    if values.dtype.kind != "U" or values.size != 1:
        raise InputError(
            where, found=f"{values.dtype} of shape {values.shape}", expected="a text", action="fetch the file again"
        )
    return str(values.item()).strip()


def whole_of(cell: object, where: str) -> int:
    """The whole number in a cell. Raises InputError for anything else."""
    values = np.asarray(cell)
    if values.dtype.kind not in "iuf" or values.size != 1 or not float(values.item()).is_integer():
        raise InputError(
            where,
            found=f"{values.dtype} of shape {values.shape}" if values.size != 1 else f"{values.item()}",
            expected="a whole number",
            action="fetch the file again",
        )
    return int(values.item())
