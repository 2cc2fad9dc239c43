"""Voxel maps as NIfTI in the subject's own volumes, for nilearn, FSLeyes and the like."""

from __future__ import annotations

from pathlib import Path

from bdflow.study.stage import Context
from bdflow.study.voxel_maps import grid_of, in_volume, positions, voxel_maps


def write(context: Context, folder: Path) -> list[Path]:
    """Write every map of every subject of the run below `folder`/<subject>; return the files.

    Their affine, and the code that says what it is of, are the mask's.

    Raises
    ------
    NotReady : `ingest` is not done.
    """
    import nibabel

    files = []
    for subject in context.subjects:
        grid = grid_of(context, subject)
        at = positions(context, subject)
        (folder / subject).mkdir(parents=True, exist_ok=True)
        for name, values in voxel_maps(context, subject).items():
            filled = in_volume(values, at, grid.shape)
            image = nibabel.Nifti1Image(filled, grid.affine)
            image.header.set_sform(grid.affine, code=grid.form)
            image.header.set_qform(grid.affine, code=grid.form)
            image.header.set_xyzt_units("mm")
            files.append(folder / subject / f"{name}.nii.gz")
            nibabel.save(image, files[-1])
    return files
