"""Betas in every kind of file: whatever the order of axes, chunks and blocks, the same numbers in the same voxels."""

import pickle
import tracemalloc
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from bdflow.datasets.formats.betas import NiftiSession
from bdflow.datasets.glmsingle import sessions
from bdflow.datasets.glmsingle.sessions import FitMask, FitSession

SHAPE, TRIALS = (7, 6, 5), 11
RNG = np.random.default_rng(1)
BETAS = RNG.standard_normal((*SHAPE, TRIALS)).astype(np.float32)
BRAIN = RNG.random(SHAPE) < 0.6
MASK = RNG.random(SHAPE) < 0.3
MASKED = BETAS[BRAIN][:, None, None, :]
EXPECTED = BETAS[MASK].T
EXPECTED_OF_BRAIN = np.where(BRAIN[MASK], EXPECTED, np.nan)


def npy(path: Path, betas: np.ndarray, name: str = "betasmd") -> Path:
    np.save(path, {"pcnum": 2, name: betas, "R2": betas[..., 0]}, allow_pickle=True)
    return path


def hdf5(path: Path, name: str, betas: np.ndarray, **how) -> Path:
    with h5py.File(path, "w", userblock_size=512 if path.suffix == ".mat" else 0) as file:
        file.create_dataset(name, data=betas, **how)
    return path


def placed(order="C"):
    return FitMask(Path("brain_mask.nii.gz"), BRAIN, order)


@pytest.fixture(params=[None, 1, 500, 3000], ids=lambda block: f"blocks of {block}")
def block(request, monkeypatch):
    """The most bytes that are held at once: one voxel, a row, a slice, all."""
    if request.param is not None:
        monkeypatch.setattr(sessions, "_BLOCK", request.param)


CHUNKS = [None, (2, 3, 5, 4), (1, 1, 1, TRIALS), (7, 6, 5, 1)]


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_pickled_volumes(tmp_path, dtype):
    """In C's order, and in Fortran's."""
    for betas in (BETAS.astype(dtype), np.asfortranarray(BETAS.astype(dtype))):
        opened = FitSession(npy(tmp_path / "a.npy", betas))
        assert (opened.volume, opened.masked, opened.n_trials) == (SHAPE, None, TRIALS)
        found = opened.read_masked(MASK, None)
        assert found.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(found, EXPECTED.astype(dtype))


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_volumes_in_hdf5(tmp_path, chunks):
    for ending in (".hdf5", ".h5"):
        opened = FitSession(hdf5(tmp_path / f"a{ending}", "betasmd", BETAS, chunks=chunks))
        assert opened.grid(None).shape == SHAPE
        np.testing.assert_array_equal(opened.read_masked(MASK, None), EXPECTED)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_volumes_of_matlab(tmp_path, chunks):
    """MATLAB's axes come reversed."""
    how = {} if chunks is None else {"chunks": chunks[::-1], "compression": "gzip"}
    opened = FitSession(hdf5(tmp_path / "a.mat", "modelmd", BETAS.T, **how))
    assert (opened.volume, opened.n_trials) == (SHAPE, TRIALS)
    np.testing.assert_array_equal(opened.read_masked(MASK, None), EXPECTED)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("flat", [False, True], ids=["(V, 1, 1, T)", "(V, T)"])
def test_masked_voxels(tmp_path, flat):
    """They are placed by the mask, in C order of (x, y, z); others have no value."""
    betas = MASKED[:, 0, 0] if flat else MASKED
    for path in (
        npy(tmp_path / "a.npy", betas),
        npy(tmp_path / "f.npy", np.asfortranarray(betas)),
        hdf5(tmp_path / "a.hdf5", "betasmd", betas),
        hdf5(tmp_path / "c.mat", "modelmd", betas.T),
    ):
        opened = FitSession(path)
        assert (opened.volume, opened.masked, opened.n_trials) == (None, BRAIN.sum(), TRIALS)
        assert opened.grid(placed()).shape == SHAPE
        np.testing.assert_array_equal(opened.read_masked(MASK, placed()), EXPECTED_OF_BRAIN)


def test_masked_voxels_in_matlabs_order(tmp_path, refused):
    """`data(mask)` in MATLAB goes through x first; a file of MATLAB's does not say which order was used."""
    betas = BETAS.transpose(2, 1, 0, 3)[BRAIN.T]
    opened = FitSession(hdf5(tmp_path / "a.mat", "modelmd", betas.T))
    np.testing.assert_array_equal(opened.read_masked(MASK, placed("F")), EXPECTED_OF_BRAIN)
    assert not np.array_equal(opened.read_masked(MASK, placed("C")), EXPECTED_OF_BRAIN, equal_nan=True)
    refused(lambda: opened.read_masked(MASK, placed(None)), "a.mat", "order", "fit_order")


def test_masked_voxels_need_their_mask(tmp_path, refused):
    opened = FitSession(npy(tmp_path / "a.npy", MASKED))
    refused(lambda: opened.read_masked(MASK, None), "without their places", "fit_mask")
    other = BRAIN.copy()
    other[tuple(np.argwhere(BRAIN)[0])] = False
    wrong = FitMask(Path("other_mask.nii.gz"), other, None)
    refused(lambda: opened.read_masked(MASK, wrong), f"{BRAIN.sum()} voxels", f"{other.sum()}", "other_mask.nii.gz")
    refused(lambda: opened.grid(wrong), "other voxels")


def test_a_mask_of_another_shape(tmp_path, refused):
    opened = FitSession(npy(tmp_path / "a.npy", BETAS))
    refused(lambda: opened.read_masked(MASK.T, None), "(7, 6, 5)", "(5, 6, 7)", "a.npy")


def test_an_empty_mask_and_a_full_one(tmp_path):
    opened = FitSession(npy(tmp_path / "a.npy", BETAS))
    assert opened.read_masked(np.zeros(SHAPE, bool), None).shape == (TRIALS, 0)
    np.testing.assert_array_equal(opened.read_masked(np.ones(SHAPE, bool), None), BETAS.reshape(-1, TRIALS).T)


def test_what_is_no_betas(tmp_path, refused):
    for name, path in {
        "int16": npy(tmp_path / "integers.npy", BETAS.astype(np.int16)),
        "(7, 6, 5)": hdf5(tmp_path / "three.hdf5", "betasmd", BETAS[..., 0]),
        "datasets betas": hdf5(tmp_path / "other.hdf5", "betas", BETAS),
        "modelmd": hdf5(tmp_path / "python.mat", "betasmd", BETAS.T),
        "pcnum": npy(tmp_path / "other.npy", BETAS, "modelmd"),
    }.items():
        refused(lambda path=path: FitSession(path), path, name)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files(tmp_path, refused, share):
    for path in (
        npy(tmp_path / "a.npy", BETAS),
        hdf5(tmp_path / "a.hdf5", "betasmd", BETAS),
        hdf5(tmp_path / "a.mat", "modelmd", BETAS.T, chunks=True, compression="gzip"),
    ):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        refused(lambda path=path: FitSession(path).read_masked(MASK, None), path)


def test_a_damaged_chunk(tmp_path, refused):
    path = hdf5(tmp_path / "a.hdf5", "betasmd", BETAS, chunks=(7, 6, 5, 1), fletcher32=True)
    content = bytearray(path.read_bytes())
    at = content.index(BETAS[..., 3].tobytes())
    content[at + 40] ^= 0xFF
    path.write_bytes(content)
    refused(lambda: FitSession(path).read_masked(MASK, None), path, "cannot be read", "nothing of this session")


def test_a_matlab_file_of_an_older_version(tmp_path, refused):
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x01IM" + bytes(500))
    refused(lambda: FitSession(tmp_path / "a.mat"), "a.mat", "7.3")


@pytest.mark.parametrize("kind", ["npy", "fortran", "hdf5", "mat"])
def test_memory_is_the_result_and_a_block(tmp_path, monkeypatch, kind):
    """Of a file of 24 MB never more than a block of 1 MB beside what is asked for."""
    monkeypatch.setattr(sessions, "_BLOCK", 1 << 20)
    shape = (40, 40, 30, 128)
    path = {
        "npy": lambda betas: npy(tmp_path / "a.npy", betas),
        "fortran": lambda betas: npy(tmp_path / "a.npy", np.asfortranarray(betas)),
        "hdf5": lambda betas: hdf5(tmp_path / "a.hdf5", "betasmd", betas),
        "mat": lambda betas: hdf5(tmp_path / "a.mat", "modelmd", betas.T),
    }[kind](np.zeros(shape, np.float32))
    mask = np.zeros(shape[:3], bool)
    mask[::8, ::8, ::8] = True
    opened = FitSession(path)
    tracemalloc.start()
    opened.read_masked(mask, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


# --- NIfTI --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_with_and_without_compression(tmp_path, ending):
    affine = np.diag([2.0, 2, 2.5, 1])
    image = nib.Nifti1Image(BETAS, affine)
    image.header.set_sform(affine, 1)
    nib.save(image, tmp_path / f"a{ending}")
    opened = NiftiSession(tmp_path / f"a{ending}")
    assert (opened.shape, opened.n_trials, opened.form) == (SHAPE, TRIALS, 1)
    np.testing.assert_array_equal(opened.affine, affine)
    np.testing.assert_array_equal(opened.read_masked(MASK), EXPECTED)
    for trial, volume in opened.iter_volumes():
        np.testing.assert_array_equal(volume, BETAS[..., trial])


def test_damaged_nifti_without_compression(tmp_path, refused):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(BETAS, np.eye(4)), path)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    refused(lambda: NiftiSession(path).read_masked(MASK), path, f"trial {TRIALS - 1}", "truncated or damaged")
    path.write_bytes(content + b"x")
    refused(lambda: NiftiSession(path).read_masked(MASK), path, "data after the last")
    path.write_bytes(content[:200])
    refused(lambda: NiftiSession(path), path, "no readable header")


def test_sessions_can_be_sent_to_another_process(tmp_path):
    opened = pickle.loads(pickle.dumps(FitSession(npy(tmp_path / "a.npy", BETAS))))
    np.testing.assert_array_equal(opened.read_masked(MASK, None), EXPECTED)
