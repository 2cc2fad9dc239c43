"""Reading NSD's files: the same numbers as nibabel, h5py and scipy; one clear error for each kind of bad input."""

import gzip
import shutil
import tracemalloc
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from bdflow.datasets import nsd
from bdflow.datasets.ceilings import noise_ceiling
from bdflow.datasets.formats.betas import open_session
from bdflow.datasets.formats.identity import identity
from bdflow.datasets.formats.volumes import voxel_mask
from bdflow.datasets.nsd import NSD
from bdflow.errors import InputError
from bdflow.simulation.files import make_design, write_design, write_hdf5, write_nifti

SHAPE = (7, 6, 5)
TRIALS = 12
BETAS = f"nsddata_betas/ppdata/subj01/{nsd.SPACE}/{nsd.PREPARATION}"
ROIS = f"nsddata/ppdata/subj01/{nsd.SPACE}/roi"
STIMULI = 4 + 8 * 4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of two sessions, random numbers in NSD's files."""
    root = tmp_path_factory.mktemp("nsd")
    rng = np.random.default_rng(0)
    for path in (nsd.DESIGN, nsd.STIMULI, f"{BETAS}/x", f"{ROIS}/x"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    write_design(root / nsd.DESIGN, make_design(n_shared=4, n_own=4, repeats=3, seed=0))
    for session in (1, 2):
        betas = rng.integers(-3000, 3000, (TRIALS, *SHAPE), dtype=np.int16)
        np.save(root / f"session{session}.npy", betas)
        write_nifti(root / f"{BETAS}/betas_session{session:02d}.nii.gz", (*SHAPE, TRIALS), betas.dtype, betas)
    labels = np.where(rng.random(SHAPE) < 0.3, 1, -1).astype(np.int16)
    write_nifti(root / f"{ROIS}/nsdgeneral.nii.gz", SHAPE, labels.dtype, [labels])
    ncsnr = rng.random(SHAPE, dtype=np.float32)
    write_nifti(root / f"{BETAS}/ncsnr.nii.gz", SHAPE, ncsnr.dtype, [ncsnr])
    with h5py.File(root / nsd.STIMULI, "w") as file:
        file["imgBrick"] = rng.integers(0, 256, (STIMULI, 8, 8, 3), dtype=np.uint8)
    texts = np.array([[f"caption {k} of {i}" if k < 4 else "" for k in range(5)] for i in range(STIMULI)])
    np.save(root / nsd.CAPTIONS, texts)
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy of it to spoil."""
    return Path(shutil.copytree(made, tmp_path / "nsd"))


def session(root, number=1):
    return root / f"{BETAS}/betas_session{number:02d}.nii.gz"


def check(error, *words):
    """The message names all `words`, and says what to do."""
    for word in (*words, "found", "expected", "What to do"):
        assert str(word) in str(error.value), (word, str(error.value))


def test_betas_equal_nibabel(made):
    data = NSD(made)
    mask = voxel_mask(data.roi("subj01", "nsdgeneral"))
    opened = data.open_session("subj01", 2)
    expected = np.asarray(nib.load(session(made, 2)).dataobj)
    assert (opened.shape, opened.n_trials, opened.dtype) == (SHAPE, TRIALS, np.int16)
    assert (expected == np.moveaxis(np.load(made / "session2.npy"), 0, 3)).all()
    np.testing.assert_array_equal(opened.read_masked(mask), expected[mask].T)
    for trial, volume in opened.iter_volumes():
        np.testing.assert_array_equal(volume, expected[..., trial])
    assert trial == TRIALS - 1
    out = np.zeros((TRIALS, mask.sum()), np.int16)
    assert opened.read_masked(mask, out) is out
    assert (out == expected[mask].T).all()
    with pytest.raises(ValueError, match="out is"):
        opened.read_masked(mask, out[:, 1:])


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    trials=st.integers(1, 5),
    dtype=st.sampled_from(["<i2", ">i2", "<f4", ">f4", "<u2", "<f8"]),
    chunked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_both_formats_give_the_same(tmp_path_factory, shape, trials, dtype, chunked, seed):
    folder = tmp_path_factory.mktemp("formats")
    rng = np.random.default_rng(seed)
    betas = rng.integers(0, 3000, (trials, *shape)).astype(dtype)
    if betas.dtype.kind == "f":
        betas[0, 0, 0, 0] = np.nan
    mask = rng.random(shape) < 0.5
    header = nib.Nifti1Header(endianness="<" if dtype[0] == "<" else ">")
    image = nib.Nifti1Image(np.moveaxis(betas, 0, 3), np.eye(4), header, dtype=np.dtype(dtype))
    nib.save(image, folder / "betas_session01.nii.gz")
    if chunked:
        write_hdf5(folder / "betas_session01.hdf5", (*shape, trials), betas.dtype, betas)
    else:
        with h5py.File(folder / "betas_session01.hdf5", "w") as file:
            file["betas"] = betas.transpose(0, 3, 2, 1)
    expected = betas[:, mask]
    for ending in ("nii.gz", "hdf5"):
        opened = open_session(folder / f"betas_session01.{ending}")
        found = opened.read_masked(mask)
        assert found.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal([v.copy() for _, v in opened.iter_volumes()], betas)


def test_scaled_nifti_gives_scaled_floats(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 2, 2), np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, tmp_path / "a.nii.gz")
    opened = open_session(tmp_path / "a.nii.gz")
    expected = nib.load(tmp_path / "a.nii.gz").get_fdata()
    assert opened.dtype == np.float32
    np.testing.assert_allclose(opened.read_masked(np.ones((2, 3, 2), bool)), expected.reshape(-1, 2).T)


@pytest.mark.parametrize("ending", ["nii.gz", "hdf5"])
def test_memory_does_not_grow_with_the_session(tmp_path, ending):
    """Beside the result: 16 times the trials, the same memory."""
    shape, peaks = (24, 24, 24), []
    mask = np.zeros(shape, bool)
    mask[3, :4, 5] = True
    for trials in (10, 160):
        path = tmp_path / f"{trials}.{ending}"
        volumes = (np.full(shape, t, np.int16) for t in range(trials))
        (write_nifti if ending == "nii.gz" else write_hdf5)(path, (*shape, trials), np.dtype(np.int16), volumes)
        opened, out = open_session(path), np.empty((trials, 4), np.int16)
        tracemalloc.start()
        opened.read_masked(mask, out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (out == np.arange(trials)[:, None]).all()
    assert peaks[1] < peaks[0] + 50_000


def damaged(content: bytes, how: str) -> bytes:
    return {
        "half": content[: len(content) // 2],
        "no trailer": content[:-8],
        "checksum": content[:-8] + bytes(4) + content[-4:],
        "length": content[:-4] + b"\x01\x02\x03\x04",
        "garbage": content + b"garbage",
        "flipped": content[:-900] + bytes([content[-900] ^ 16]) + content[-899:],
        "header": content[:40],
        "empty": b"",
        "not gzip": b"no gzip at all" * 10,
    }[how]


@pytest.mark.parametrize(
    "how", ["half", "no trailer", "checksum", "length", "garbage", "flipped", "header", "empty", "not gzip"]
)
def test_damaged_gzip(root, how):
    path = session(root)
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(InputError) as error:
        NSD(root).open_session("subj01", 1).read_masked(np.ones(SHAPE, bool))
    check(error, path, "fetch the file again", "trial" if how not in ("header", "empty", "not gzip") else "header")


def test_truncation_names_trial_and_bytes(root):
    path, size = session(root), 2 * int(np.prod(SHAPE))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[: 352 + 3 * size + 10]))
    with pytest.raises(InputError) as error:
        NSD(root).open_session("subj01", 1).read_masked(np.ones(SHAPE, bool))
    check(error, path, "trial 3 ", f"{3 * size + 10:,}", f"{TRIALS * size:,}")


def test_gzip_of_several_members(root):
    path, expected = session(root), np.load(root / "session1.npy")
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]) + bytes(64))
    found = NSD(root).open_session("subj01", 1).read_masked(np.ones(SHAPE, bool))
    assert (found == expected.reshape(TRIALS, -1)).all()


def test_more_data_than_the_header_says(root):
    path = session(root)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(10)))
    with pytest.raises(InputError) as error:
        NSD(root).open_session("subj01", 1).read_masked(np.ones(SHAPE, bool))
    check(error, path, f"after the last of the {TRIALS} trials")


def test_mask_of_another_shape(made):
    with pytest.raises(InputError) as error:
        NSD(made).open_session("subj01", 1).read_masked(np.ones((7, 6, 4), bool))
    check(error, session(made), "(7, 6, 5)", "(7, 6, 4)")


def test_no_voxel_in_the_mask(root):
    path = root / f"{ROIS}/nsdgeneral.nii.gz"
    write_nifti(path, SHAPE, np.dtype(np.int16), [np.full(SHAPE, -1)])
    with pytest.raises(InputError) as error:
        voxel_mask(NSD(root).roi("subj01", "nsdgeneral"))
    check(error, path, "no voxel above 0")


def test_trials_per_session(root):
    data = NSD(root)
    assert data.trials_per_session("subj01", 2) == TRIALS
    betas = np.load(root / "session1.npy")
    write_nifti(session(root, 2), (*SHAPE, 11), betas.dtype, betas[:11])
    shutil.copy(session(root, 1), session(root, 3))
    with pytest.raises(InputError) as error:
        data.trials_per_session("subj01", 3)
    check(error, session(root, 2), "trials: 11", TRIALS)
    write_nifti(session(root, 2), (6, 7, 5, TRIALS), betas.dtype, betas.reshape(TRIALS, 6, 7, 5))
    with pytest.raises(InputError) as error:
        data.trials_per_session("subj01", 3)
    check(error, session(root, 2), "(6, 7, 5)", SHAPE)
    shutil.copy(session(root, 1), session(root, 2))
    with pytest.raises(InputError) as error:
        data.trials_per_session("subj01", 3)
    check(error, "12 trials a session", "24 trials of the design")


def test_missing_sessions_are_all_named(root):
    session(root, 2).rename(session(root, 4))
    data = NSD(root)
    assert data.sessions("subj01") == [1, 4]
    assert data.check_sessions("subj01", 1) == [1]
    with pytest.raises(InputError) as error:
        data.check_sessions("subj01", 5)
    check(error, BETAS, "betas_session02.nii.gz, betas_session03.nii.gz, betas_session05.nii.gz", "(1, 4)")
    with pytest.raises(InputError) as error:
        data.open_session("subj01", 2)
    check(error, "betas_session02.nii.gz")


def test_stimuli_in_the_asked_order(made):
    ids = [7, 3, 3, 35, 0, 4, 5]
    with NSD(made).stimuli() as stimuli, h5py.File(made / nsd.STIMULI) as file:
        assert (stimuli.count, stimuli.shape) == (STIMULI, (8, 8, 3))
        np.testing.assert_array_equal(stimuli.read(ids), file["imgBrick"][:][ids])
        assert stimuli.read([]).shape == (0, 8, 8, 3)
        for outside in (-1, STIMULI):
            with pytest.raises(InputError) as error:
                stimuli.read([0, outside])
            check(error, made / nsd.STIMULI, f"nsd_id {outside}", f"0 to {STIMULI - 1}")


@pytest.mark.parametrize(
    ("key", "shape", "dtype"),
    [("images", (4, 8, 8, 3), "u1"), ("imgBrick", (4, 8, 8), "u1"), ("imgBrick", (4, 8, 8, 3), "f4")],
)
def test_stimuli_without_the_images(root, key, shape, dtype):
    with h5py.File(root / nsd.STIMULI, "w") as file:
        file[key] = np.zeros(shape, dtype)
    with pytest.raises(InputError) as error:
        NSD(root).stimuli()
    check(error, root / nsd.STIMULI, "imgBrick", key)


def test_captions(root):
    captions = NSD(root).captions()
    assert captions.read([5, 0]) == [[f"caption {k} of {i}" for k in range(4)] for i in (5, 0)]
    assert (captions.count, captions.per_stimulus) == (STIMULI, 5)
    with pytest.raises(InputError) as error:
        captions.read([STIMULI])
    check(error, root / nsd.CAPTIONS, f"nsd_id {STIMULI}")
    texts = np.load(root / nsd.CAPTIONS)
    for spoilt, word in ((texts[:9], "captions of 9 stimuli"), (texts.astype(object), "Pickle"), (texts[:, 0], "U")):
        np.save(root / nsd.CAPTIONS, spoilt, allow_pickle=True)
        with pytest.raises(InputError) as error:
            NSD(root).captions()
        check(error, root / nsd.CAPTIONS, word)


def test_design_equals_the_formula(made):
    design = NSD(made).design()
    raw = scipy.io.loadmat(made / nsd.DESIGN)
    expected = raw["subjectim"][2, raw["masterordering"][0].astype(int) - 1].astype(int) - 1
    np.testing.assert_array_equal(design.nsd_ids("subj03", 20), expected[:20])
    np.testing.assert_array_equal(design.is_shared(24), raw["masterordering"][0] <= 4)
    with pytest.raises(InputError) as error:
        design.nsd_ids("subj01", 25)
    check(error, "24 trials", 25)
    with pytest.raises(InputError) as error:
        design.nsd_ids("subj09", 5)
    check(error, "subj09", "8 subjects")
    design.check_stimuli(STIMULI)
    with pytest.raises(InputError) as error:
        design.check_stimuli(STIMULI - 1)
    check(error, "subjectim", STIMULI, f"1 to {STIMULI - 1}")


@pytest.mark.parametrize(
    ("key", "spoil", "word"),
    [
        ("masterordering", lambda a: None, "no masterordering"),
        ("masterordering", lambda a: a - 1, "numbers from 0"),
        ("masterordering", lambda a: a + 1, "numbers from 2 to 9"),
        ("masterordering", lambda a: a + 0.5, "float64"),
        ("subjectim", lambda a: a - 1, "numbers from 0"),
        ("subjectim", lambda a: a[:, [0, 1, 2, 3, 4, 5, 6, 6]], "listed twice"),
        ("sharedix", lambda a: a + 1, "4 shared stimuli that are not"),
    ],
)
def test_bad_design(root, key, spoil, word):
    content = {k: v for k, v in scipy.io.loadmat(root / nsd.DESIGN).items() if k[0] != "_"}
    content[key] = spoil(content[key])
    scipy.io.savemat(root / nsd.DESIGN, {k: v for k, v in content.items() if v is not None})
    with pytest.raises(InputError) as error:
        NSD(root).design()
    check(error, root / nsd.DESIGN, key, word)


@pytest.mark.parametrize(
    ("path", "read"),
    [
        (nsd.DESIGN, NSD.design),
        (nsd.STIMULI, NSD.stimuli),
        (nsd.CAPTIONS, NSD.captions),
        (f"{ROIS}/nsdgeneral.nii.gz", lambda data: data.roi("subj01", "nsdgeneral")),
        (f"{BETAS}/ncsnr.nii.gz", lambda data: data.ncsnr("subj01")),
    ],
)
def test_files_that_are_missing_or_something_else(root, path, read):
    (root / path).write_bytes(b"something else")
    with pytest.raises(InputError) as error:
        read(NSD(root))
    check(error, root / path)
    (root / path).unlink()
    with pytest.raises(InputError) as error:
        read(NSD(root))
    check(error, root / path)


def test_no_root(tmp_path):
    with pytest.raises(InputError) as error:
        NSD(tmp_path / "elsewhere")
    check(error, tmp_path / "elsewhere", "nsddata_betas")


@pytest.mark.parametrize("name", ["subj1", "subj00", "1", "Subj01", "subj001"])
def test_subject_names(name):
    assert nsd.subject_index("subj07") == 7
    with pytest.raises(InputError) as error:
        nsd.subject_index(name)
    check(error, name, "subj01")


def test_noise_ceiling_and_labels(made):
    assert noise_ceiling(np.array([0.0, 1.0]), 3).tolist() == [0.0, 75.0]
    assert nsd.roi_labels("prf-visualrois")[7] == "hV4"
    assert NSD(made).roi_names("subj01") == ["nsdgeneral"]
    assert NSD(made).ncsnr("subj01").dtype == np.float32
    with pytest.raises(InputError) as error:
        nsd.roi_labels("floc-hands")
    check(error, "floc-hands", "floc-faces")


def test_identity_sees_ends_and_length(tmp_path):
    path, content = tmp_path / "a", bytearray(300_000)
    seen = set()
    for change in (None, 0, 65_535, 299_999, 240_000):
        if change is not None:
            content[change] ^= 1
        path.write_bytes(content)
        seen.add(identity(path))
    path.write_bytes(content + b"\0")
    assert len(seen | {identity(path)}) == 6
    (tmp_path / "b").write_bytes(content + b"\0")
    assert identity(tmp_path / "b") == identity(path)
    with pytest.raises(InputError):
        identity(tmp_path / "c")
