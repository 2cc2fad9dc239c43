"""Patterns with names: rows of a DataArray keep their coordinates, its voxels are compared with the subject's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bdflow.errors import InputError, listed
from bdflow.study import catalog, keys
from bdflow.study.stage import Context

if TYPE_CHECKING:
    import xarray

VOXELS = "voxel"
LATENT = catalog.space_dims((1, 1))


@dataclass(frozen=True)
class Patterns:
    """`values` (patterns, voxels), the name of the dimension of rows, and what is known of these rows."""

    values: np.ndarray
    dim: str = "pattern"
    labels: xarray.Coordinates | None = None

    def named(self, latents: xarray.Dataset) -> xarray.Dataset:
        """Latents of these rows with their coordinates. Raises InputError where a name means something else there."""
        if self.labels is None:
            return latents
        twice = sorted({*map(str, self.labels)} & {*map(str, latents.variables)})
        if twice:
            raise InputError(
                "patterns",
                found=f"coordinates of the rows that latents have too: {listed(twice)}",
                expected="names that mean one thing",
                action="rename or drop them (DataArray.rename, DataArray.drop_vars)",
            )
        return latents.assign_coords(self.labels)


def taken(context: Context, subject: str, patterns: np.ndarray | xarray.DataArray) -> Patterns:
    """Values and names of patterns, which may be an array or a DataArray.

    Of a DataArray with a dimension `voxel`, that is the one of voxels; else it is the last one. Coordinates `i`, `j`
    and `k` of its voxels are compared with those of the subject's betas.

    Raises
    ------
    InputError : the rows' dimension is named as one of latents; other voxels, or in another order. NotReady : voxels
        are to be compared and `ingest` is not done.
    """
    import xarray

    if not isinstance(patterns, xarray.DataArray):
        return Patterns(np.asarray(patterns))
    if patterns.ndim != 2:
        return Patterns(patterns.values)
    if VOXELS in patterns.dims:
        patterns = patterns.transpose(..., VOXELS)
    dim, voxels = patterns.dims
    if dim in LATENT:
        raise InputError(
            "patterns",
            found=f"rows along a dimension named `{dim}`",
            expected=f"another name than the dimensions of latents: {listed(LATENT)}",
            action="rename it (DataArray.rename)",
        )
    _refuse_other_voxels(context, subject, patterns)
    return Patterns(patterns.values, str(dim), patterns.isel({voxels: 0}, drop=True).coords if patterns.size else None)


def _refuse_other_voxels(context: Context, subject: str, patterns: xarray.DataArray) -> None:
    voxels = patterns.dims[1]
    given = {axis: patterns[axis].values for axis in "ijk" if axis in patterns.coords}
    given = {axis: places for axis, places in given.items() if patterns[axis].dims == (voxels,)}
    betas = context.ready(keys.betas(subject)) if given else None
    for axis, places in given.items():
        assert betas is not None
        own = betas.read(axis)
        if len(own) == len(places) and not np.array_equal(own, places):
            first = int(np.flatnonzero(own != places)[0])
            raise InputError(
                "patterns",
                found=f"voxel {first} at {axis} = {places[first]}",
                expected=f"{axis} = {own[first]}, as in {betas.path}",
                meaning="These are other voxels, or they are in another order.",
                action=f"bring them in the order of {betas.path}",
            )
