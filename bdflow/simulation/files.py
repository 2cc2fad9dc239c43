"""NSD's files, written: design, stimulus table, NIfTI volumes and HDF5 betas, the same bytes every time."""

import gzip
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

from bdflow import random
from bdflow.simulation.brains import VOXEL_SIZE, affine

N_SUBJECTS = 8
"""Subjects of NSD's design; those that are not simulated still have their row."""


def make_design(n_shared: int, n_own: int, repeats: int, seed: int) -> dict[str, np.ndarray]:
    """``masterordering`` (1, trials), ``subjectim`` (8, positions), ``sharedix`` (1, n_shared), all 1-based.

    As in NSD: the first positions of every subject's list are the shared stimuli, all others are that
    subject's alone, and the repeats of a stimulus lie apart, so that ending early costs last repeats first.
    """
    rng = random.generator(seed, "design")
    n_positions = n_shared + n_own
    numbers = rng.permutation(n_shared + N_SUBJECTS * n_own) + 1
    shared, own = np.sort(numbers[:n_shared]), numbers[n_shared:]
    subjectim = np.hstack([np.tile(shared, (N_SUBJECTS, 1)), own.reshape(N_SUBJECTS, n_own)])
    when = np.arange(repeats)[:, None] + rng.uniform(0, 1.2, (repeats, n_positions))
    masterordering = np.argsort(when.ravel(), kind="stable") % n_positions + 1
    return {
        "masterordering": masterordering[None],
        "subjectim": subjectim,
        "sharedix": shared[None],
    }


def write_design(path: Path, design: dict[str, np.ndarray]) -> None:
    """Write ``nsd_expdesign.mat``; MATLAB's numbers are doubles."""
    write_matlab(path, {key: value.astype(np.float64) for key, value in design.items()}, "nsd_expdesign.mat")


def write_matlab(path: Path, content: Mapping[str, np.ndarray], name: str) -> None:
    """Write arrays, cells as arrays of objects, as NSD's file `name`; the same bytes every time."""
    buffer: Any = io.BytesIO()
    scipy.io.savemat(buffer, content, do_compression=True)
    title = f"MATLAB 5.0 MAT-file, simulated in the format of NSD's {name}".encode()
    path.write_bytes(title.ljust(116)[:116] + buffer.getvalue()[116:])  # scipy's own title holds the time


def write_stim_info(path: Path, design: dict[str, np.ndarray], repeats: int) -> None:
    """Write ``nsd_stim_info_merged.csv``: NSD's columns, with numbers of its own where NSD has COCO's."""
    n_stimuli = int(design["subjectim"].max())
    shared = set(design["sharedix"].ravel())
    order = design["masterordering"].ravel()
    trials = np.argsort(order, kind="stable").reshape(-1, repeats) + 1  # (positions, repeats), 1-based
    seen = np.zeros((n_stimuli + 1, N_SUBJECTS, repeats), np.int64)
    for subject in range(N_SUBJECTS):
        seen[design["subjectim"][subject], subject] = trials
    numbers = range(1, N_SUBJECTS + 1)
    header = ["", "cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000"]
    header += [f"subject{n}" for n in numbers]
    header += [f"subject{n}_rep{r}" for n in numbers for r in range(repeats)]
    lines = [",".join(header)]
    for i in range(n_stimuli):
        times = seen[i + 1]
        row = [i, i, "simulated", '"(0, 0, 0, 0)"', 0.0, i, False, False, (i + 1) in shared]
        row += [int(t[0] > 0) for t in times] + [int(t) for t in times.ravel()]
        lines.append(",".join(str(cell) for cell in row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_nifti(path: Path, shape: Sequence[int], dtype: np.dtype, volumes: Iterable[np.ndarray]) -> None:
    """Write `volumes` (x, y, z) one after another as a gzip-compressed NIfTI image; the same bytes every
    time.
    """
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_zooms((VOXEL_SIZE, VOXEL_SIZE, VOXEL_SIZE, 1.0)[: len(shape)])
    header.set_xyzt_units("mm")
    header.set_sform(affine(tuple(shape[:3])), code=1)  # type: ignore[arg-type]
    header["magic"], header["vox_offset"] = b"n+1", 352
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
        file.write(header.binaryblock + bytes(4))
        for volume in volumes:
            file.write(np.asarray(volume, dtype).tobytes(order="F"))


def write_hdf5(path: Path, shape: Sequence[int], dtype: np.dtype, volumes: Iterable[np.ndarray]) -> None:
    """Write a session as NSD's HDF5: ``betas`` (trial, z, y, x), one uncompressed chunk a voxel. Holds it
    whole.
    """
    x, y, z, trials = shape
    betas = np.empty((trials, z, y, x), dtype)
    for trial, volume in enumerate(volumes):
        betas[trial] = volume.T
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=betas, chunks=(trials, 1, 1, 1))
