"""The grids that volumes lie on, compared before volumes are combined voxel by voxel.

Volumes of one subject are combined by index, so their axes must run the same way. What an affine says of that counts
where there is one: HDF5 has none, a NIfTI header without a form code none either (nibabel then makes one up, flipped
along x), and an identity says nothing. NSD's own affines are diagonal around the volume's centre, which is no place in
a scanner: only the origin is thereby meaningless, directions and voxel sizes are compared as any others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bdflow.errors import InputError

log = logging.getLogger(__name__)

_ZOOM = 0.01  # relative difference of voxel sizes that rounding explains
_COSINE = 0.01  # difference of direction cosines: half a degree


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie.

    Attributes
    ----------
    path : the file, or what it is.
    shape : (x, y, z).
    affine : (4, 4) voxel to millimetre; None where the file says nothing of it.
    """

    path: object
    shape: tuple[int, ...]
    affine: np.ndarray | None

    @property
    def directions(self) -> str:
        """Where the axes run to, such as RAS."""
        import nibabel as nib

        return "".join(code or "?" for code in nib.orientations.aff2axcodes(self.affine))

    @property
    def voxel_size(self) -> np.ndarray:
        """(3,) millimetres."""
        import nibabel as nib

        found: np.ndarray = nib.affines.voxel_sizes(self.affine)
        return found

    @property
    def centred(self) -> bool:
        """Whether the affine is diagonal and its origin at the volume's centre: not where the voxels are in space."""
        if self.affine is None or np.abs(self.affine[:3, :3] - np.diag(np.diag(self.affine)[:3])).max() > 1e-6:
            return False
        middle = self.affine[:3, :3] @ ((np.array(self.shape[:3]) - 1) / 2) + self.affine[:3, 3]
        return bool((np.abs(middle) <= 0.5 * self.voxel_size + 1e-3).all())


def form_of(header: object) -> int:
    """NIfTI's code of what an affine's millimetres are of (1: the scanner's); 0: the header states no affine."""
    import nibabel as nib

    if isinstance(header, nib.Nifti1Header):
        return int(header["sform_code"]) or int(header["qform_code"])
    return int(isinstance(header, nib.freesurfer.mghformat.MGHHeader))


def affine_of(header: Any) -> np.ndarray | None:
    """The affine that a header states: (4, 4); None without one, and for an identity."""
    import nibabel as nib

    found = header.get_best_affine() if isinstance(header, nib.Nifti1Header) else header.get_affine()
    return stated(np.asarray(found, np.float64), form_of(header))


def stated(affine: np.ndarray, form: int) -> np.ndarray | None:
    """An affine (4, 4) that says something: with a form code, and no identity; else None."""
    return affine if form and not np.array_equal(affine, np.eye(4)) else None


def check_same_grid(grids: Iterable[Grid], whose: str) -> None:
    """Raise InputError if volumes do not lie on one grid: another shape than the first, or axes of other directions or
    voxel sizes than the first that has an affine.

    A shifted origin alone is logged as a warning, once for all of `whose` volumes, unless both origins are the
    volume's centre.
    """
    grids = list(grids)
    first, placed = grids[0], [grid for grid in grids if grid.affine is not None]
    for grid in grids:
        if grid.shape != first.shape:
            raise _differs(grid, first, whose, f"a volume of shape {grid.shape}", str(first.shape))
    shifted = []
    for grid in placed[1:]:
        _check_axes(grid, placed[0], whose)
        shift = np.abs(_origin(grid) - _origin(placed[0])).max()
        if shift > 0.05 * placed[0].voxel_size.min() and not (grid.centred and placed[0].centred):
            shifted.append((shift, grid))
    if shifted:
        shift, grid = max(shifted, key=lambda pair: pair[0])
        log.warning(
            "%s: %d of the volumes have another origin than %s, by up to %.3g mm (%s). Voxels are matched by their "
            "index, as NSD's volumes are; where origins mean something, these are not the same voxels.",
            whose,
            len(shifted),
            placed[0].path,
            shift,
            grid.path,
        )


def _check_axes(grid: Grid, other: Grid, whose: str) -> None:
    assert grid.affine is not None
    assert other.affine is not None
    if not (np.isfinite(grid.affine).all() and np.isfinite(other.affine).all()):
        raise _differs(grid, other, whose, "an affine that is not finite", "numbers")
    if min(grid.voxel_size.min(), other.voxel_size.min()) <= 0:
        found, expected = (f"voxels of {of.voxel_size.tolist()} mm" for of in (grid, other))
        raise _differs(grid, other, whose, found, f"{expected}, above 0")
    if grid.directions != other.directions:
        raise _differs(grid, other, whose, f"axes that run to {grid.directions}", other.directions)
    if not np.allclose(grid.voxel_size, other.voxel_size, rtol=_ZOOM, atol=0):
        found, expected = (f"voxels of {of.voxel_size.round(4).tolist()} mm" for of in (grid, other))
        raise _differs(grid, other, whose, found, expected)
    turned = grid.affine[:3, :3] / grid.voxel_size - other.affine[:3, :3] / other.voxel_size
    if np.abs(turned).max() > _COSINE and not (grid.centred or other.centred):
        raise _differs(grid, other, whose, "turned axes", "axes of the same angles")
    if np.abs(turned).max() > _COSINE:
        log.warning(
            "%s: %s and %s have axes of different angles, and one of them a diagonal affine around its centre, which "
            "says nothing of angles. Voxels are matched by their index.",
            whose,
            grid.path,
            other.path,
        )


def _origin(grid: Grid) -> np.ndarray:
    assert grid.affine is not None
    found: np.ndarray = grid.affine[:3, 3]
    return found


def _differs(grid: Grid, other: Grid, whose: str, found: str, expected: str) -> InputError:
    affines = ", ".join(
        f"{name} {'none' if of.affine is None else of.affine.round(4).tolist()}"
        for name, of in (("its affine:", grid), (f"affine of {other.path}:", other))
    )
    return InputError(
        grid.path,
        found=found,
        expected=f"{expected}, as in {other.path} ({affines})",
        meaning=f"Its voxels are not those of the other volumes of {whose}: the same index is another place.",
        action="take all volumes from one subject's folder and one space, such as func1pt8mm; bring a volume of your "
        "own onto their grid (resample it, or reorder its axes together with its data)",
    )
