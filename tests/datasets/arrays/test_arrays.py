"""What a dataset in arrays gives, against the numbers that were written."""

import numpy as np
import pytest
import xarray as xr

from bdflow.datasets.contract import Encoding
from bdflow.datasets.formats.identity import identity
from bdflow.errors import InputError, NotAtHand
from tests.datasets.arrays.made import IDS, in_files, made, opened, png, stimuli, subject, text

ONES = np.ones((3, 1, 1), bool)


def placed(part: xr.Dataset, places: list[tuple[int, int, int]], shape: tuple[int, int, int], **attrs: object):
    """A subject whose voxels have places in a volume."""
    ijk = {name: ("voxel", np.array(values)) for name, values in zip("ijk", zip(*places, strict=True), strict=True)}
    return part.assign(ijk).assign_attrs(shape=list(shape), **attrs)


# --- stimuli --------------------------------------------------------------------------------------------------


def test_ids_are_text_of_any_kind_and_pictures_are_read_by_them(tmp_path):
    data = made(tmp_path)
    assert list(data.stimuli()) == IDS
    assert data.picture_shape() == (4, 5)
    found = data.pictures(["é", "a 1.png", "é"])
    assert found.shape == (3, 4, 5, 3)
    assert found.dtype == np.uint8
    assert found[:, 0, 0, 0].tolist() == [4, 1, 4]
    assert len(data.pictures([])) == 0
    with pytest.raises(InputError, match=r"stimulus 'a'.*no such id"):
        data.pictures(["a 1.png", "a"])


@pytest.mark.parametrize("kind", [object, str], ids=["string", "fixed_length_utf32"])
def test_text_of_both_kinds(tmp_path, kind):
    part = subject().assign(condition=("trial", np.array(["imagery"] * 6, kind)))
    part = part.assign({name: ("trial", part[name].values.astype(kind)) for name in ("session", "stimulus_id")})
    data = made(tmp_path, stimuli=stimuli().assign_coords(stimulus=np.array(IDS, kind)), anna=part)
    trials = data.trials("anna")
    assert trials.stimulus.tolist() == ["a 1.png", "b+c", "", "é", "a 1.png", "b+c"]
    assert trials.condition.tolist() == ["imagery"] * 6
    assert trials.stimulus.dtype.kind == trials.session.dtype.kind == trials.condition.dtype.kind == "U"


def test_captions_lose_blanks_and_empty_ones(tmp_path):
    given = [["", " two  words "], ["a", "b"], ["  ", ""], ["c", ""]]
    data = made(tmp_path, stimuli=stimuli().assign(caption=(("stimulus", "caption_number"), text(given))))
    assert data.captions(["d.e", "a 1.png", "b+c"]) == [[], ["two  words"], ["a", "b"]]
    assert data.captions_per_stimulus() == 2
    assert data.captions([]) == []


def test_without_captions_and_splits(tmp_path):
    data = made(tmp_path)
    assert data.captions(IDS[:2]) == [[], []]
    assert data.captions_per_stimulus() == 0
    assert data.splits() == {}


def test_splits_are_joined_by_id_in_whatever_order_they_are_written(tmp_path):
    part = xr.Dataset(
        {"part": (("split", "stimulus"), text([["test", "train", ""], ["train", "test", "test"]]))},
        coords={"split": text(["one", "two"]), "stimulus": text(["é", "a 1.png", "d.e"])},
    )
    found = made(tmp_path, splits=part).splits()
    assert list(found) == ["one", "two"]
    assert (found["one"].train, found["one"].test) == ({"a 1.png"}, {"é"})
    assert (found["two"].train, found["two"].test) == ({"é"}, {"a 1.png", "d.e"})


def test_pictures_in_files_of_several_kinds_sizes_and_places(tmp_path):
    (tmp_path / "far.png").write_bytes(png("RGB", (3, 2), (1, 2, 3)))
    (tmp_path / "near").mkdir()
    (tmp_path / "near/see through.png").write_bytes(png("RGBA", (4, 4), (255, 0, 0, 0)))
    (tmp_path / "near/grey.png").write_bytes(png("L", (1, 5), 9))
    paths = [str(tmp_path / "far.png"), "../near/see through.png", "", "../near/grey.png"]
    data = made(tmp_path, stimuli=in_files(paths))
    assert list(data.stimuli()) == ["a 1.png", "b+c", "é"]
    assert data.picture_shape() == (2, 3)
    far, through, grey = data.pictures(["a 1.png", "b+c", "é"])
    assert far.shape == (2, 3, 3)
    assert far[0, 0].tolist() == [1, 2, 3]
    assert (through == 128).all()
    assert grey.shape == (5, 1, 3)
    assert (grey == 9).all()
    (other,) = opened(tmp_path / "own.zarr", background=7).pictures(["b+c"])
    assert (other == 7).all()
    assert data.trials("anna").stimulus[3] == "é"
    with pytest.raises(InputError, match="no path of a picture"):
        data.pictures(["d.e"])
    assert data.captions(["d.e"]) == [[]]
    files = data.stimulus_files()
    assert files["picture of a 1.png"] == tmp_path / "far.png"
    assert len([name for name in files if name.startswith("picture of")]) == 3
    assert all(identity(file) for file in files.values())


def test_a_picture_that_is_missing_or_none_is_named(tmp_path):
    (tmp_path / "no.png").write_bytes(b"no picture")
    data = made(tmp_path, stimuli=in_files(["../no.png", "gone.png", "../no.png", "../no.png"]))
    with pytest.raises(InputError, match=r"no\.png, the picture of stimulus 'é'.*no picture that can be read"):
        data.pictures(["é"])
    with pytest.raises(NotAtHand, match=r"gone\.png.*the picture of stimulus 'b\+c'"):
        data.pictures(["b+c"])


# --- trials ---------------------------------------------------------------------------------------------------


def test_trials_in_the_order_of_the_array(tmp_path):
    session = ["late", "late", "late", "early", "early", "x"]
    part = subject(session=session).assign(run=("trial", np.array([1, 1, 2, 1, 2, 0], "u1")))
    data = made(tmp_path, anna=part)
    assert data.sessions("anna") == ("late", "early", "x")
    trials = data.trials("anna")
    assert trials.session.tolist() == session
    assert trials.run.tolist() == [1, 1, 2, 1, 2, 0]
    assert trials.index.tolist() == [0, 1, 2, 0, 1, 0]
    assert trials.condition.tolist() == [""] * 6
    assert trials.run.dtype == trials.index.dtype == np.int32
    assert data.seen("anna") == {"a 1.png", "b+c", "é"}


def test_a_subject_that_there_is_not(tmp_path):
    with pytest.raises(InputError, match=r"subject 'bea'.*no such subject.*one of anna"):
        made(tmp_path).trials("bea")


def test_subjects_of_any_name_ascending(tmp_path):
    data = made(tmp_path, **{"sub-02": subject(), "sub 1.b": subject()})
    assert data.subjects() == ("anna", "sub 1.b", "sub-02")
    assert data.sessions("sub 1.b") == ("s1", "s2")


# --- betas ----------------------------------------------------------------------------------------------------


def test_float_betas_of_a_session(tmp_path):
    beta = subject().beta.values
    data = made(tmp_path)
    assert data.encoding() == Encoding("float32", "z", 1.0, False)
    assert data.grid("anna").shape == (3, 1, 1)
    assert data.grid("anna").affine is None
    assert data.affine_form("anna") == 0
    mask = np.array([True, False, True]).reshape(3, 1, 1)
    found = data.betas("anna", "s2", mask)
    assert np.array_equal(found.values, beta[4:, [0, 2]])
    assert found.valid.all()
    assert found.values.dtype == np.float32


def test_nan_and_constant_voxels_are_no_measurements(tmp_path):
    beta = np.array([[1, 5, 0], [np.nan, 5, 0], [3, 5, 0], [4, 5, 1], [7, 7, 7], [7, 8, np.nan]], "f4")
    data = made(tmp_path, anna=subject(beta, session=["s1"] * 4 + ["s2"] * 2))
    first, second = data.betas("anna", "s1", ONES), data.betas("anna", "s2", ONES)
    assert first.valid.tolist() == [[True, False, True], [False, False, True], [True, False, True], [True, False, True]]
    assert first.values.tolist() == [[1, 0, 0], [0, 0, 0], [3, 0, 0], [4, 0, 1]]
    assert second.valid.tolist() == [[False, True, False], [False, True, False]]


def test_a_session_of_one_trial_measured_what_is_a_number(tmp_path):
    beta = np.array([[1, 2, np.nan]], "f4")
    data = made(tmp_path, anna=subject(beta, ["é"], ["s"]))
    assert data.betas("anna", "s", ONES).valid.tolist() == [[True, True, False]]
    whole = made(tmp_path / "whole", anna=subject(np.array([[1, 2, 0]], "i2"), ["é"], ["s"]))
    assert whole.betas("anna", "s", ONES).valid.all()


@pytest.mark.parametrize("dtype", ["f4", "i2"])
def test_what_the_dataset_says_of_validity_counts(tmp_path, dtype):
    """Also of a constant voxel; sessions of `valid` may be in another order, and more."""
    beta = np.array([[1, 5, 9]] * 5 + [[2, 5, 8]], dtype)
    said = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1]], bool)
    part = subject(beta).assign(valid=(("session_name", "voxel"), said))
    data = made(tmp_path, anna=part.assign_coords(session_name=text(["s2", "gone", "s1"])))
    first, second = data.betas("anna", "s1", ONES), data.betas("anna", "s2", ONES)
    assert first.valid.tolist() == [[False, True, True]] * 4
    assert first.values.tolist() == [[0, 5, 9]] * 4
    assert second.valid.tolist() == [[True, False, True]] * 2
    assert second.values.tolist() == [[1, 0, 9], [2, 0, 8]]


def test_infinite_betas_are_refused_where_they_were_measured(tmp_path):
    beta = np.arange(18, dtype="f4").reshape(6, 3)
    beta[5, 1] = np.inf
    data = made(tmp_path, anna=subject(beta))
    assert data.betas("anna", "s1", ONES).valid.all()
    with pytest.raises(InputError, match=r"session s2.*not finite.*trial 1 \(counted from 0\), voxel 1"):
        data.betas("anna", "s2", ONES)
    part = subject(beta).assign(valid=(("session_name", "voxel"), np.array([[1, 1, 1], [1, 0, 1]], "u1")))
    data = made(tmp_path / "said", anna=part.assign_coords(session_name=text(["s1", "s2"])))
    assert data.betas("anna", "s2", ONES).valid.tolist() == [[True, False, True]] * 2


@pytest.mark.parametrize(
    ("scale", "divisor"), [(1 / 300, 300.0), (None, 1.0), (0.3, 1 / 0.3), (2.0, 0.5), (1 / 300.00001, 300.00001)]
)
def test_int16_betas_stay_as_they_are_and_have_a_divisor(tmp_path, scale, divisor):
    beta = np.array([[-32768, 0, 3]] * 3 + [[32767, 0, 4]] * 3, "i2")
    attrs = {} if scale is None else {"scale_factor": scale}
    part = subject(beta, ["é"] * 6, **attrs)
    data = made(tmp_path, anna=part)
    encoding = data.encoding()
    assert encoding.dtype == "int16"
    assert not encoding.cut_off
    assert encoding.divisor == pytest.approx(divisor, rel=1e-12)
    assert (encoding.divisor == 300) == (scale == 1 / 300)
    found = data.betas("anna", "s1", ONES)
    assert found.values.dtype == np.int16
    assert found.values.tolist() == beta[:4].tolist()
    assert found.valid.tolist() == [[True, False, True]] * 4


def test_int16_that_xarray_scaled_and_that_saturates(tmp_path):
    beta = np.array([[-1.5, 0.01, 3]] * 3 + [[2, 0.02, 4]] * 3, "f4")
    encoding = {"/subjects/anna": {"beta": {"dtype": "int16", "scale_factor": 1 / 300}}}
    data = made(tmp_path, encoding, anna=subject(beta, saturates=True))
    assert data.encoding() == Encoding("int16", "z", 300.0, True)
    assert np.array_equal(data.betas("anna", "s1", ONES).values, np.round(beta[:4] * 300))


# --- voxels ---------------------------------------------------------------------------------------------------

SHAPE = (3, 2, 2)
EVERY = list(np.ndindex(SHAPE))


@pytest.mark.parametrize("dtype", ["f4", "i2"])
@pytest.mark.parametrize("order", ["C", "F", "mixed"])
def test_voxels_of_any_order_come_in_c_order(tmp_path, order, dtype):
    """The value of a beta tells its place; so does the mask."""
    places = [place for place in EVERY if place != (1, 0, 1)]
    if order == "F":
        places.sort(key=lambda place: place[::-1])
    elif order == "mixed":
        places = [places[at] for at in np.random.default_rng(1).permutation(len(places))]
    code = np.array([100 * i + 10 * j + k + 1 for i, j, k in places])
    beta = (code + 1000 * np.arange(6)[:, None]).astype(dtype)
    part = placed(subject(beta, ["é"] * 6), places, SHAPE, affine=np.diag([2.0, 2, 3, 1]).tolist())
    part = part.assign(
        roi=(("region", "voxel"), np.array([[i == 2 for i, _, _ in places], [j == 0 for _, j, _ in places]])),
        noise_ceiling=("voxel", code.astype("f4"), {"units": "ncsnr"}),
    ).assign_coords(region=text(["a/x", "a/y"]))
    encoding = {"/subjects/anna": {"beta": {"chunks": (4, 3)}}}
    data = made(tmp_path, encoding, anna=part)
    assert data.grid("anna").shape == SHAPE
    assert np.array_equal(data.grid("anna").affine, np.diag([2, 2, 3, 1]))
    assert data.affine_form("anna") == 2

    known = data.mask("anna", None)
    assert [place for place in EVERY if not known[place]] == [(1, 0, 1)]
    x, y = (data.regions("anna")[name] for name in ("a/x", "a/y"))
    assert [place for place in EVERY if x[place]] == [place for place in EVERY if place[0] == 2]
    assert [place for place in EVERY if y[place]] == [p for p in EVERY if p[1] == 0 and p != (1, 0, 1)]
    ceiling = data.noise_ceiling("anna").values
    assert np.isnan(ceiling[1, 0, 1])

    for mask in (known, x, y, x & y, np.ones(SHAPE, bool)):
        inside = [place for place in EVERY if mask[place]]
        expected = [0 if place == (1, 0, 1) else 100 * place[0] + 10 * place[1] + place[2] + 1 for place in inside]
        found = data.betas("anna", "s2", mask)
        there = np.array(inside != []) & (np.array(expected) > 0)
        assert np.array_equal(found.valid, np.repeat(there[None], 2, axis=0))
        assert np.array_equal(found.values[:, there], np.array(expected)[there] + [[4000], [5000]])
        assert (found.values[:, ~there] == 0).all()
        assert np.array_equal(ceiling[mask][there], np.array(expected)[there])


def test_the_identity_is_no_affine_and_a_code_may_be_given(tmp_path):
    places = [(0, 0, 0), (1, 1, 1), (2, 0, 1)]
    shifted = np.eye(4)
    shifted[0, 3] = 5
    data = made(
        tmp_path,
        anna=placed(subject(), places, SHAPE, affine=np.eye(4).tolist()),
        ben=placed(subject(), places, SHAPE, affine=shifted.tolist(), affine_form=1),
        cem=placed(subject(), places, SHAPE),
    )
    assert data.grid("anna").affine is data.grid("cem").affine is None
    assert [data.affine_form(one) for one in ("anna", "ben", "cem")] == [0, 1, 0]
    assert data.grid("ben").affine[0, 3] == 5


def with_regions() -> xr.Dataset:
    roi = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0], [0, 1, 0]], "u1")
    part = subject().assign(roi=(("region", "voxel"), roi))
    return part.assign_coords(region=text(["v/one", "v/two/x", "empty/none", "w/one"]))


def test_regions_overlap_are_empty_and_make_masks(tmp_path):
    data = made(tmp_path, anna=with_regions())
    assert data.region_names("anna") == ("v/one", "v/two/x", "empty/none", "w/one")
    regions = data.regions("anna")
    assert list(regions) == list(data.region_names("anna"))
    assert [regions[name].ravel().tolist() for name in regions] == [
        [True, False, True],
        [False, False, True],
        [False, False, False],
        [False, True, False],
    ]
    assert regions["w/one"].dtype == bool
    assert data.mask("anna", "v/two/x").ravel().tolist() == [False, False, True]
    assert data.mask("anna", "v").ravel().tolist() == [True, False, True]
    assert data.mask("anna", None).all()
    with pytest.raises(InputError, match=r"mask 'one'.*one of v/one, v/two/x, empty/none, w/one"):
        data.mask("anna", "one")
    for empty in ("empty/none", "empty"):
        with pytest.raises(InputError, match="no voxel in it"):
            data.mask("anna", empty)
    with pytest.raises(KeyError):
        regions["v"]


def test_without_regions_and_ceiling(tmp_path):
    data = made(tmp_path)
    assert data.region_names("anna") == ()
    assert dict(data.regions("anna")) == {}
    assert data.noise_ceiling("anna") is None
    with pytest.raises(InputError, match="it has no regions"):
        data.mask("anna", "nsdgeneral")


def test_a_dataset_may_have_no_region_at_all(tmp_path):
    part = subject().assign(roi=(("region", "voxel"), np.zeros((0, 3), bool)))
    data = made(tmp_path, anna=part.assign_coords(region=text([])))
    assert data.region_names("anna") == ()


@pytest.mark.parametrize(
    ("unit", "values", "attrs"),
    [
        ("ncsnr", [0, np.nan, 7], {}),
        ("percent", [0, 100, 50], {"repeats": 3}),
        ("fraction", [1, 0, 0.5], {"repeats": 2}),
    ],
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_noise_ceilings_keep_their_unit(tmp_path, unit, values, attrs, dtype):
    part = subject().assign(noise_ceiling=("voxel", np.array(values, dtype), {"units": unit, **attrs}))
    found = made(tmp_path, anna=part).noise_ceiling("anna")
    assert (found.unit, found.repeats) == (unit, attrs.get("repeats"))
    assert np.array_equal(found.values.ravel(), values, equal_nan=True)


def test_a_mask_of_another_shape_and_a_session_that_there_is_not(tmp_path):
    data = made(tmp_path)
    with pytest.raises(InputError, match=r"volumes of shape \(3, 1, 1\); expected the mask's shape \(1, 3, 1\)"):
        data.betas("anna", "s1", ONES.reshape(1, 3, 1))
    with pytest.raises(InputError, match=r"session 's3'.*no trial of it.*one of s1, s2"):
        data.betas("anna", "s3", ONES)
    with pytest.raises(TypeError, match="boolean mask"):
        data.betas("anna", "s1", ONES.astype(int))
