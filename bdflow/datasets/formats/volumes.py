"""Three-dimensional NIfTI volumes: labels, masks and maps."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bdflow.datasets.formats.grids import Grid, affine_of, form_of
from bdflow.datasets.formats.identity import missing
from bdflow.errors import InputError
from bdflow.stores.casts import holds, misfits
from bdflow.stores.errors import StoreError
from bdflow.stores.paths import AnyPath


@dataclass(frozen=True)
class Volume:
    """A volume of a NIfTI file.

    Attributes
    ----------
    data : (x, y, z); of regions int64: -1 outside cortex, 0 none, 1.. labels.
    affine : (4, 4) voxel to millimetre, as nibabel has it.
    path : the file.
    stated : the affine, or None where the header states none (`bdflow.datasets.formats.grids.affine_of`).
    form : NIfTI's code of what the affine's millimetres are of; 0: not known.
    """

    data: np.ndarray
    affine: np.ndarray
    path: AnyPath
    stated: np.ndarray | None
    form: int

    @property
    def grid(self) -> Grid:
        """Where its voxels lie."""
        return Grid(self.path, self.data.shape, self.stated)


def voxel_mask(volume: Volume, path: str | AnyPath | None = None) -> np.ndarray:
    """Voxels inside the ROI, (x, y, z) bool: any label above 0 (-1 is "not cortex"). InputError if there is none."""
    mask = volume.data > 0
    if not mask.any():
        raise InputError(
            path or volume.path,
            found=f"no voxel above 0 (values {np.unique(volume.data)[:5].tolist()})",
            expected="1 or more in the voxels to use",
            meaning="No voxel is in the mask.",
            action="choose another mask.",
        )
    return mask


def read_validity(path: AnyPath) -> Volume | None:
    """Whether a session measured each voxel, bool; None where there is no such file.

    Raises
    ------
    InputError : a damaged file; values other than 0 and 1.
    """
    if not path.is_file():
        return None
    volume = read_volume(path)
    if not np.isin(volume.data, (0, 1)).all():
        raise InputError(
            path,
            found=f"values {np.unique(volume.data)[:5].tolist()}",
            expected="1 where the session measured the voxel, 0 elsewhere",
            action="fetch the file again",
        )
    return replace(volume, data=volume.data == 1)


def _image(path: AnyPath) -> Any:
    import nibabel as nib

    if isinstance(path, Path):
        return nib.load(path)
    content = path.read_bytes()
    return nib.Nifti1Image.from_bytes(gzip.decompress(content) if path.suffix == ".gz" else content)


def labelled(volume: Volume) -> Volume:
    """A volume of labels, as int64. Raises InputError for values that are none: not whole, or beyond int16."""
    data = volume.data
    bad = misfits(data, np.int16)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        what = "a label that is too large" if float(data[at]).is_integer() else "values that are not whole numbers"
        raise InputError(
            volume.path,
            found=f"{what}: {data[at]:.10g} at {at}",
            expected=f"labels: -1 outside cortex, 0, 1, ...; {holds(np.int16)}",
            meaning="In masks and regions a label is a name, and every voxel above 0 is inside.",
            action="use one of the dataset's own masks or regions; give labels smaller numbers; of a map of values "
            "make a mask of 0 and 1 by a threshold of your choice.",
        )
    return replace(volume, data=data.astype(np.int64))


def read_volume(path: AnyPath, expected: str = "a NIfTI volume", action: str = "fetch the file again.") -> Volume:
    """A three-dimensional NIfTI volume, float64. Raises InputError, with these words."""
    if not path.is_file():
        raise missing(path, expected)
    try:
        image = _image(path)
        kind = image.get_data_dtype().kind
        if kind not in "fiu":
            raise ValueError(f"voxels of dtype {image.get_data_dtype()}, not real numbers")
        data = np.asarray(image.dataobj, np.float64)
    except StoreError:
        raise
    except Exception as error:
        raise InputError(
            path,
            found=f"a file that cannot be read ({type(error).__name__}: {error})",
            expected=expected,
            action=action,
        ) from error
    if data.ndim != 3:
        raise InputError(
            path, found=f"shape {data.shape}", expected=f"{expected}, with three axes (x, y, z)", action=action
        )
    form = form_of(image.header)
    return Volume(data, np.asarray(image.affine), path, affine_of(image.header), form)
