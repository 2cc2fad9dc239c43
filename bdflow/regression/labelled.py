"""Arrays of all kinds for `decoder`: NumPy, CuPy, Dask, and the labels of xarray's."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj, is_dask_array, is_numpy_array

from bdflow.errors import InputError
from bdflow.regression.device import to_host
from bdflow.regression.ridge import Array

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Labels:
    """Dimensions and coordinates of the DataArrays that a decoder was fitted with; None where it was none."""

    voxel: Hashable | None
    voxel_labels: np.ndarray | None
    targets: xarray.DataArray | None  # the first row of Y alone

    @classmethod
    def of(cls, x: Array, y: Array) -> Labels:
        x_labels, y_labels = as_data_array(x), as_data_array(y)
        if x_labels is not None and x_labels.ndim != 2:
            raise wrong_array("X", x_labels, "(stimulus, voxel)")
        if x_labels is not None and y_labels is not None:
            _check_rows(x_labels, y_labels)
        voxel = voxel_labels = None
        if x_labels is not None:
            voxel = x_labels.dims[1]
            voxel_labels = x_labels.indexes[voxel].to_numpy() if voxel in x_labels.indexes else None
        return cls(voxel, voxel_labels, None if y_labels is None else y_labels[:0])

    def check_voxels(self, x: Array) -> None:
        labels = as_data_array(x)
        if labels is None or self.voxel is None:
            return
        if labels.ndim != 2 or labels.dims[1] != self.voxel:
            raise InputError(
                "X",
                found=f"dimensions {labels.dims}",
                expected=f"two, the second `{self.voxel}` as in training",
                action="transpose or rename it",
            )
        here = labels.indexes[self.voxel].to_numpy() if self.voxel in labels.indexes else None
        if here is not None and self.voxel_labels is not None and not np.array_equal(here, self.voxel_labels):
            raise InputError(
                "X",
                found=f"other labels along `{self.voxel}` than in training",
                expected="the voxels of the training set, in the same order",
                action=f"select them, such as X.sel({self.voxel}=...)",
            )

    def check_truth(self, x: Array, y: Array) -> None:
        """Raises InputError for true targets `y` of other rows than `x`, or of other targets than in training."""
        rows, true = as_data_array(x), as_data_array(y)
        if true is None:
            return
        if rows is not None:
            _check_rows(rows, true)
        if self.targets is None:
            return
        if true.dims[1:] != self.targets.dims[1:]:
            raise InputError(
                "y",
                found=f"dimensions {true.dims}",
                expected=f"rows, then {self.targets.dims[1:]} as in training",
                action="transpose or rename it",
            )
        for name in true.dims[1:]:
            both = name in true.indexes and name in self.targets.indexes
            if both and not np.array_equal(true.indexes[name], self.targets.indexes[name]):
                raise InputError(
                    "y",
                    found=f"other labels along `{name}` than in training",
                    expected="the targets of the training set, in the same order",
                    meaning="Predictions would be compared with other targets.",
                    action=f"select them, such as y.sel({name}=...)",
                )

    def labelled(self, found: Array, x: Array) -> Array:
        """Predictions (m,) or (m, t) with the labels of their rows from `x` and of their columns from the targets."""
        rows = as_data_array(x)
        if rows is None and self.targets is None:
            return found
        import xarray

        row_dim: Hashable
        if rows is not None:
            row_dim = rows.dims[0]
            coords = {name: c for name, c in rows.coords.items() if set(c.dims) <= {row_dim}}
        else:
            row_dim, coords = cast("xarray.DataArray", self.targets).dims[0], {}
        if self.targets is None:
            dims: tuple[Hashable, ...] = (row_dim, "target")[: found.ndim]
            return xarray.DataArray(found, coords, dims)
        targets = self.targets
        own = {name: c for name, c in targets.coords.items() if c.dims and targets.dims[0] not in c.dims}
        shaped = found.reshape((found.shape[0], *targets.shape[1:]))
        return xarray.DataArray(
            shaped, {**own, **coords}, (row_dim, *targets.dims[1:]), name=targets.name, attrs=targets.attrs
        )


def _check_rows(x: xarray.DataArray, y: xarray.DataArray) -> None:
    """Raises InputError unless the labels of the rows of both are the same, in the same order."""
    rows = x.dims[0]
    if rows != y.dims[0]:
        raise InputError(
            "Y",
            found=f"dimensions {y.dims}",
            expected=f"rows along `{rows}`, the first dimension of X",
            action="transpose or rename one of them",
        )
    for name in set(x.coords) & set(y.coords):
        a, b = x.coords[name], y.coords[name]
        if a.dims == b.dims == (rows,) and not np.array_equal(a.values, b.values):
            raise InputError(
                "Y",
                found=f"other `{name}` along `{rows}` than in X",
                expected="the same, in the same order",
                meaning="Rows of X and Y would be of different stimuli.",
                action=f"select both by `{name}`, such as Y.sel({name}=X.{name})",
            )


def as_data_array(values: Array) -> xarray.DataArray | None:
    """`values` if it is a DataArray; xarray is imported only if whoever made the array has done so."""
    xr = sys.modules.get("xarray")
    return values if xr is not None and isinstance(values, xr.DataArray) else None


def flat(values: Array) -> Array:
    """The array inside a DataArray, (n, t) where there are more dimensions; anything else as it is."""
    labels = as_data_array(values)
    if labels is None:
        return values
    data = labels.data
    return data.reshape((data.shape[0], -1)) if data.ndim > 2 else data


def on_host(values: Array) -> bool:
    """Whether scikit-learn's own checks apply: NumPy, lists, data frames."""
    return is_numpy_array(values) or not is_array_api_obj(values)


def computed(values: Array) -> Array:
    return cast(Array, values).compute() if is_dask_array(values) else values


def to_numpy(values: Array) -> np.ndarray:
    """The values of an array of any module, on the host."""
    return np.asarray(to_host(values) if hasattr(values, "get") else values)


def floating(name: str, values: Array) -> Array:
    """Finite float32 or float64 of shape (n, p), n and p above 0, in the array module given."""
    xp = array_namespace(values)
    if values.ndim != 2 or 0 in values.shape:
        raise wrong_array(name, values, "(rows, voxels), neither of them 0")
    if values.dtype not in (xp.float32, xp.float64):
        values = xp.astype(values, xp.float64)
    if not bool(xp.all(xp.isfinite(values))):
        raise wrong_array(name, values, "finite values")
    return values


def as_like(block: Array, like: Array) -> Array:
    """A computed block of targets in the dtype of `like`. Raises InputError for values that are not finite."""
    xp = array_namespace(block, like)
    values = xp.astype(block, like.dtype, copy=False)
    if not bool(xp.all(xp.isfinite(values))):
        raise wrong_array("Y", values, "finite values")
    return values


def wrong_array(name: str, values: Array, expected: str) -> InputError:
    found = f"an array of shape {tuple(values.shape)}" + (
        " with values that are not finite" if expected == "finite values" else ""
    )
    return InputError(f"RidgeDecoder, {name}", found=found, expected=expected, action=f"correct `{name}`")
