"""Betas of any kind of file as they are stored: the right value, or none, or an error that names the options."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdflow.datasets.formats.betas import open_session
from bdflow.datasets.nsd import as_stored, clipped
from bdflow.errors import InputError
from bdflow.simulation.files import write_hdf5

NAN, INF = float("nan"), float("inf")
PERCENT = st.one_of(
    st.floats(-100, 100, width=32), st.sampled_from([0.0, NAN, INF, -INF, 150.0, -109.3, 109.2233, 3e38, -1e-9])
)


def line(voxels: int) -> np.ndarray:
    return np.ones((1, 1, voxels), bool)


@settings(max_examples=150)
@given(
    st.lists(st.lists(PERCENT, min_size=3, max_size=3), min_size=1, max_size=4),
    st.sampled_from(["refuse", "clip", "invalid"]),
    st.sampled_from(["refuse", "invalid"]),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.sampled_from(["f4", "f8"]),
)
def test_floats_of_percent(rows, outliers, not_a_number, measured, dtype):
    """Against the rules, value by value."""
    betas = np.array(rows, dtype)
    trials = range(len(betas))
    expected, valid, refused = {}, {}, set()
    for voxel in range(3):
        present = measured[voxel] and any(betas[t, voxel] != 0 and not np.isnan(betas[t, voxel]) for t in trials)
        for t in trials:
            beta = float(betas[t, voxel])
            number = 0 if np.isnan(beta) else beta * 300 if np.isinf(beta) else round(beta * 300)
            valid[t, voxel], expected[t, voxel] = present, number
            if np.isnan(beta) and measured[voxel]:
                valid[t, voxel] = False
                refused |= {"not_a_number"} if not_a_number == "refuse" else set()
            elif not present:
                expected[t, voxel] = 0
            elif not -32768 <= number <= 32767:
                refused |= {"outliers"} if outliers == "refuse" else set()
                valid[t, voxel] = outliers == "clip"
                expected[t, voxel] = max(-32768, min(32767, number)) if outliers == "clip" else 0
    arguments = {"outliers": outliers, "not_a_number": not_a_number, "measured": np.array(measured)}
    if refused:
        with pytest.raises(InputError, match=r"file\.nii\.gz") as error:
            as_stored(betas, "file.nii.gz", line(3), **arguments)
        option = "not_a_number" if "not_a_number" in refused else "outliers"
        assert f"`dataset.{option}: invalid`" in str(error.value)
        return
    found = as_stored(betas, "file.nii.gz", line(3), **arguments)
    assert (found.values.dtype, found.valid.dtype) == (np.int16, bool)
    for at in expected:
        assert found.valid[at] == valid[at]
        assert found.values[at] == expected[at]


@settings(max_examples=100)
@given(
    st.lists(st.lists(st.integers(-(2**40), 2**40), min_size=2, max_size=2), min_size=1, max_size=3),
    st.sampled_from(["i2", "i4", "i8", "u2", "u4", "u8"]),
    st.sampled_from(["refuse", "clip", "invalid"]),
)
def test_integers_are_of_one_three_hundredth_percent(rows, dtype, outliers):
    info = np.iinfo(dtype)
    betas = np.array([[min(max(n, int(info.min)), int(info.max)) for n in row] for row in rows], dtype)
    beyond = [[not -32768 <= int(n) <= 32767 for n in row] for row in betas]
    if np.any(beyond) and outliers == "refuse":
        with pytest.raises(InputError, match=r"dataset\.outliers: clip"):
            as_stored(betas, "file", line(2))
        return
    found = as_stored(betas, "file", line(2), outliers=outliers)
    present = (betas != 0).any(axis=0)
    for t, row in enumerate(betas):
        for voxel, number in enumerate(row):
            cut = max(-32768, min(32767, int(number)))
            left_out = not present[voxel] or (beyond[t][voxel] and outliers == "invalid")
            assert found.valid[t, voxel] == (not left_out)
            assert found.values[t, voxel] == (0 if left_out else cut)


def test_the_ends_of_int16_are_measurements():
    betas = np.array([[-32768, 32767, 0], [5, 6, 0]], np.int16)
    found = as_stored(betas, "file", line(3))
    assert found.values.tolist() == betas.tolist()
    assert found.valid.tolist() == [[True, True, False]] * 2
    assert clipped(found.values).sum() == 2


def test_one_beta_of_150_percent_says_where_it_is_and_what_can_be_done(tmp_path):
    """It refused the session with no way on."""
    mask = np.zeros((3, 4, 5), bool)
    mask[1, 2, 1:4] = True
    betas = np.full((4, 3), 0.5, np.float32)
    betas[2, 1] = -150
    with pytest.raises(InputError) as error:
        as_stored(betas, "betas_session02.nii.gz", mask)
    for word in (
        "betas_session02.nii.gz",
        "1 beta too large",
        "-150 percent",
        "trial 2",
        "(1, 2, 2)",
        "clip",
        "invalid",
    ):
        assert word in str(error.value)
    assert as_stored(betas, "x", mask, outliers="clip").values[2, 1] == -32768
    left_out = as_stored(betas, "x", mask, outliers="invalid").valid
    assert np.argwhere(~left_out).tolist() == [[2, 1]]


def test_a_trial_that_is_not_a_number_anywhere_is_named():
    """It led to an error about something else."""
    betas = np.full((4, 3), 0.5, np.float32)
    betas[3] = NAN
    with pytest.raises(InputError) as error:
        as_stored(betas, "file", line(3))
    for word in (
        "3 betas that are not a number",
        "1 trial,",
        "every beta of trial 3",
        "`dataset.not_a_number: invalid`",
    ):
        assert word in str(error.value)
    assert as_stored(betas, "file", line(3), not_a_number="invalid").valid[:3].all()


@pytest.mark.parametrize("ending", ["nii.gz", "hdf5"])
def test_scaling_that_overflows_is_an_outlier(tmp_path, ending):
    betas = np.array([1, 2, 3e38], np.float32).reshape(1, 1, 3, 1)
    path = tmp_path / f"betas_session01.{ending}"
    if ending == "nii.gz":
        image = nib.Nifti1Image(betas, np.eye(4))
        image.header.set_slope_inter(10, 0)
        nib.save(image, path)
    else:
        write_hdf5(path, betas.shape, betas.dtype, np.moveaxis(betas, 3, 0))
    read = open_session(path).read_masked(line(3))
    with pytest.raises(InputError, match="too large, up to"):
        as_stored(read, path, line(3))
    assert as_stored(read, path, line(3), outliers="invalid").valid.tolist() == [[True, True, False]]
