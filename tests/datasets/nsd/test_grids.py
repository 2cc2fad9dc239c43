"""Volumes on another grid are refused wherever volumes are combined; NSD's own headers are not."""

import itertools
import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdflow.config import parse
from bdflow.datasets.formats.grids import Grid, affine_of, check_same_grid
from bdflow.datasets.formats.identity import identity
from bdflow.datasets.formats.volumes import voxel_mask
from bdflow.datasets.nsd import NSD
from bdflow.datasets.reader import Reader
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline
from bdflow.study import region_patterns
from tests.support import logs

QUIRKS = Path(__file__).parents[2] / "samples/nsd_quirks"
SPACE, BETAS = "func1pt8mm", "betas_fithrf_GLMdenoise_RR"
VOLUMES = {
    "mask": "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz",
    "region": "nsddata/ppdata/subj01/func1pt8mm/roi/floc-faces.nii.gz",
    "ncsnr": f"nsddata_betas/ppdata/subj01/{SPACE}/{BETAS}/ncsnr.nii.gz",
    "first session": f"nsddata_betas/ppdata/subj01/{SPACE}/{BETAS}/betas_session01.nii.gz",
    "last session": f"nsddata_betas/ppdata/subj01/{SPACE}/{BETAS}/betas_session03.nii.gz",
    "validity": "nsddata/ppdata/subj01/func1pt8mm/valid_session02.nii.gz",
}


@pytest.fixture
def root(tmp_path):
    return Path(shutil.copytree(QUIRKS, tmp_path / "nsd"))


def config(root: Path, subject: str = "subj01", **more):
    captions = root / "captions.npy"
    np.save(captions, np.full((225, 5), "a caption"))
    return parse(
        {
            "study": str(root.parent / "study.zarr"),
            "subjects": [subject],
            "dataset": {"root": str(root), "captions": str(captions), "sessions": 3 if subject == "subj01" else 2},
            "spaces": {"text": {"encoder": "clip_text"}},
            "report": {"path": str(root.parent / "report")},
            **more,
        }
    )


def reoriented(path: Path, affine, data=None, codes=(1, 1)) -> None:
    """Write a volume again with this affine, and other data if any."""
    image = nib.load(path)
    values = np.asarray(image.dataobj) if data is None else data
    again = nib.Nifti1Image(values, affine, dtype=values.dtype)
    again.set_sform(affine, codes[0])
    again.set_qform(None if codes[1] == 0 else affine, codes[1])
    nib.save(again, path)


def flipped(path: Path, axis: int = 0) -> None:
    """The same volume in space, stored from the other end of an axis."""
    image = nib.load(path)
    to = np.eye(4)
    to[axis, axis], to[axis, 3] = -1, image.shape[axis] - 1
    reoriented(path, image.affine @ to, np.flip(np.asarray(image.dataobj), axis).copy())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("which", VOLUMES)
def test_a_flipped_volume_with_a_matching_affine_is_refused(root, which, axis):
    """Accepted, 24 of 149 voxels of a mask that was flipped along x were other voxels."""
    path = root / VOLUMES[which]
    before = nib.load(path).affine
    flipped(path, axis)
    with pytest.raises(InputError) as error:
        Reader(config(root)).mask("subj01")
    for affine in (before, nib.load(path).affine):
        assert str(affine.round(4).tolist()) in str(error.value), "both affines"
    names = {"".join(nib.aff2axcodes(affine)) for affine in (before, nib.load(path).affine)}
    assert all(name in str(error.value) for name in names)
    with pytest.raises(InputError):
        Pipeline(config(root)).run(("ingest",))
    assert not (root.parent / "study.zarr/betas").exists(), "nothing half-written"


@pytest.mark.parametrize("which", VOLUMES)
def test_another_voxel_size_is_refused(root, which):
    path = root / VOLUMES[which]
    reoriented(path, nib.load(path).affine @ np.diag([1, 1.2, 1, 1]))
    with pytest.raises(InputError, match=r"voxels of \[1\.8, 2\.16, 1\.8\] mm"):
        Reader(config(root)).mask("subj01")


@pytest.mark.parametrize("which", VOLUMES)
def test_another_shape_is_refused(root, which):
    path = root / VOLUMES[which]
    reoriented(path, nib.load(path).affine, np.asarray(nib.load(path).dataobj)[:, :-1])
    with pytest.raises(InputError, match=r"a volume of shape \(12, 1[01], 10\)"):
        Reader(config(root)).mask("subj01")


@pytest.mark.parametrize("how", ["identity", "no form code", "a shifted origin", "corner at zero"])
@pytest.mark.parametrize("which", VOLUMES)
def test_headers_that_say_nothing_of_axes_are_no_reason_to_refuse(root, which, how, caplog):
    expected = Reader(config(root)).mask("subj01")
    path = root / VOLUMES[which]
    affine = nib.load(path).affine.copy()
    if how == "identity":
        affine = np.eye(4)
    elif how == "corner at zero":
        affine[:3, 3] = 0
    elif how == "a shifted origin":
        affine[:3, 3] += [5, 0, -30]
    reoriented(path, affine, codes=(0, 0) if how == "no form code" else (1, 1))
    with caplog.at_level(logging.WARNING, "bdflow"):
        np.testing.assert_array_equal(Reader(config(root)).mask("subj01"), expected)
    assert ("origin" in logs.text(caplog)) == (how in ("a shifted origin", "corner at zero"))
    assert logs.text(caplog).count("origin than") <= 1, "said once for all volumes"


def test_hdf5_betas_have_no_affine_and_other_volumes_are_compared_all_the_same(root):
    assert NSD(root).open_session("subj04", 1).grid.affine is None
    Reader(config(root, "subj04")).mask("subj04")
    flipped(root / VOLUMES["ncsnr"].replace("subj01", "subj04"))
    with pytest.raises(InputError, match="LAS"):
        Reader(config(root, "subj04")).mask("subj04")


def test_a_flipped_region_is_found_where_the_mask_has_an_identity(root):
    """The first volume that states an affine is what the others are compared with."""
    reoriented(root / VOLUMES["mask"], np.eye(4))
    Reader(config(root)).mask("subj01")
    flipped(root / VOLUMES["region"])
    with pytest.raises(InputError, match="axes that run to"):
        Reader(config(root)).mask("subj01")


def affines(shape) -> list[np.ndarray]:
    """The 48 ways to store one volume: axes permuted and flipped, each with the affine that says so."""
    base, found = np.diag([1.8, 1.8, 1.8, 1.0]), []
    base[:3, 3] = -0.9 * (np.array(shape) - 1)
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            to = np.zeros((4, 4))
            to[3, 3] = 1
            for new, old in enumerate(order):
                to[old, new] = signs[new]
                to[old, 3] = shape[old] - 1 if signs[new] < 0 else 0
            found.append(base @ to)
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 47),
    st.integers(0, 47),
    st.floats(-40, 40),
    st.sampled_from([1.0, 1.001, 1.1, 0.5]),
    st.sampled_from([0.0, 0.1, 5.0, 30.0]),
)
def test_grids_agree_if_and_only_if_the_same_index_is_the_same_place_but_for_the_origin(one, other, shift, size, turn):
    shape = (7, 7, 7)
    of = affines(shape)
    angle = np.deg2rad(turn)
    turned = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    first, second = of[one].copy(), of[other].copy()
    first[:3, 3] += 11  # a place in the scanner, not around the centre
    second[:3, 3] += shift + 11
    second[:3, :3] = turned @ second[:3, :3] * size
    grids = (Grid("one", shape, first), Grid("other", shape, second))
    if np.abs(first[:3, :3] - second[:3, :3]).max() < 0.01 * 1.8:
        check_same_grid(grids, "subj01")
    else:
        with pytest.raises(InputError) as error:
            check_same_grid(grids, "subj01")
        assert str(first.round(4).tolist()) in str(error.value)
        assert str(second.round(4).tolist()) in str(error.value)


@pytest.mark.parametrize("affine", [np.full((4, 4), np.nan), np.diag([0.0, 1.8, 1.8, 1]), np.diag([np.inf, 1, 1, 1])])
def test_affines_that_are_none(affine):
    grids = (Grid("one", (3, 3, 3), np.diag([1.8, 1.8, 1.8, 1])), Grid("other", (3, 3, 3), affine))
    with pytest.raises(InputError):
        check_same_grid(grids, "subj01")


def test_what_a_header_states():
    header = nib.Nifti1Header()
    header.set_data_shape((4, 4, 4))
    assert affine_of(header) is None, "nibabel would make up one that is flipped along x"
    header.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    np.testing.assert_allclose(affine_of(header), np.diag([2.0, 2, 2, 1]))
    header.set_sform(np.eye(4), 2)
    assert affine_of(header) is None


# --- a user's masks ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = Path(shutil.copytree(QUIRKS, tmp_path_factory.mktemp("study") / "nsd"))
    pipeline = Pipeline(config(root))
    pipeline.run(("ingest",))
    return root


def region_of(root: Path, mask: Path) -> np.ndarray:
    of = config(root, roi={"masks": {"mine": {"subj01": str(mask)}}, "sets": {"own": ["mine"]}})
    return region_patterns.made(Pipeline(of).context(), "subj01", ["mine"])["pattern"][0]


@pytest.mark.parametrize("how", ["as it is", "flipped", "identity", "shifted", "another size"])
def test_masks_of_ones_own_lie_on_the_same_grid(study, tmp_path, how, caplog):
    faces = NSD(study).roi("subj01", "floc-faces")
    path = tmp_path / "mine.nii.gz"
    shutil.copy(study / VOLUMES["region"], path)
    if how == "flipped":
        flipped(path)
    if how == "identity":
        reoriented(path, np.eye(4))
    if how == "shifted":
        reoriented(path, faces.affine + shift_of(7))
    if how == "another size":
        reoriented(path, faces.affine @ np.diag([1, 1, 2, 1]))
    if how in ("flipped", "another size"):
        with pytest.raises(InputError, match=r"affine of .*betas/subj01"):
            region_of(study, path)
        return
    with caplog.at_level(logging.WARNING, "bdflow"):
        found = region_of(study, path)
    mask = voxel_mask(NSD(study).roi("subj01", "nsdgeneral"))
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(faces.data[mask] > 0))
    assert found.sum() == (faces.data[mask] > 0).sum()
    said = {"as it is": "", "identity": "says nothing of its axes", "shifted": "another origin"}[how]
    assert said in logs.text(caplog)
    assert bool(logs.text(caplog)) == bool(said)


def shift_of(mm: float) -> np.ndarray:
    found = np.zeros((4, 4))
    found[:3, 3] = mm
    return found


@pytest.mark.parametrize("value", [0.4, np.nan, np.inf, 1e6, -1e300])
def test_masks_of_ones_own_hold_labels(study, tmp_path, value):
    """A map of probabilities has no voxels above 0 that would be meant; a NaN was outside without a word."""
    path = tmp_path / "mine.nii.gz"
    data = np.asarray(nib.load(study / VOLUMES["region"]).dataobj).copy()
    data[3, 4, 5] = value
    shutil.copy(study / VOLUMES["region"], path)
    reoriented(path, np.eye(4), data)
    with pytest.raises(InputError, match=r"\(3, 4, 5\)"):
        region_of(study, path)


def test_the_digest_of_a_file_of_validity_counts(root):
    reader = Reader(config(root))
    inputs = reader.beta_inputs("subj01")
    assert inputs["valid session 02"] == identity(root / VOLUMES["validity"])
    (root / VOLUMES["validity"]).unlink()
    assert "valid session 02" not in Reader(config(root)).beta_inputs("subj01")
