"""Each kind of bad input is refused: named, with what was expected, and all that is wrong at once."""

import base64
import json
import shutil
import struct

import numpy as np
import pytest
import xarray as xr
import zarr

from tests.datasets.arrays.made import (
    IDS,
    changed,
    made,
    opened,
    placed,
    refused,
    stimuli,
    subject,
    text,
    tree,
    write,
)

ONES = np.ones((3, 1, 1), bool)


def with_beta(beta: np.ndarray, **attrs: object) -> xr.Dataset:
    part = subject(beta)
    part["beta"].attrs = attrs
    return part


WHOLE = np.arange(18, dtype="i2").reshape(6, 3)
FLOAT = WHOLE.astype("f4")
CEILING = {"dims": ("voxel",), "values": np.ones(3, "f4")}
STRUCTURE = {
    "no version": ({"root": xr.Dataset(attrs={"name": "x"})}, "no attribute bdflow_dataset; expected 1"),
    "version": ({"root": xr.Dataset(attrs={"name": "x", "bdflow_dataset": 2})}, "bdflow_dataset = 2; expected 1"),
    "true": ({"root": xr.Dataset(attrs={"name": "x", "bdflow_dataset": True})}, "bdflow_dataset = True; expected 1"),
    "no name": ({"root": xr.Dataset(attrs={"bdflow_dataset": 1})}, "no attribute name"),
    "no stimuli": ({"stimuli": None}, "no group stimuli"),
    "no ids": ({"stimuli": stimuli().drop_vars("stimulus")}, "stimuli: no array stimulus (stimulus) of text"),
    "no pictures": ({"stimuli": stimuli().drop_vars("image")}, "neither image nor image_file; expected one"),
    "two kinds of pictures": (
        {"stimuli": stimuli().assign(image_file=("stimulus", text(["a"] * 4)))},
        "image and image_file; expected one",
    ),
    "pictures of float": ({"stimuli": stimuli().astype("f4")}, "stimuli/image: values of type float32; expected uint8"),
    "grey pictures": ({"stimuli": stimuli().isel(rgb=[0])}, "stimuli/image: 1 along rgb; expected 3"),
    "channels first": (
        {"stimuli": stimuli().transpose("stimulus", "rgb", "y", "x")},
        "stimuli/image: dimensions (stimulus, rgb, y, x); expected (stimulus, y, x, rgb)",
    ),
    "numbers as ids": (
        {"stimuli": stimuli().assign_coords(stimulus=np.arange(4))},
        "stimuli/stimulus: values of type int64; expected text",
    ),
    "captions without a second axis": (
        {"stimuli": stimuli().assign(caption=("stimulus", text(["a"] * 4)))},
        "stimuli/caption: dimensions (stimulus); expected (stimulus, caption_number)",
    ),
    "no subjects": ({"anna": None}, "no group subjects"),
    "no session": ({"anna": subject().drop_vars("session")}, "subjects/anna: no array session (trial) of text"),
    "no stimulus": ({"anna": subject().drop_vars("stimulus_id")}, "no array stimulus_id (trial) of text"),
    "no betas": ({"anna": subject().drop_vars("beta")}, "no array beta (trial, voxel) of float32 or int16"),
    "float64": (
        {"anna": with_beta(FLOAT.astype("f8"), units="z")},
        "beta: values of type float64; expected float32 or int16",
    ),
    "int32": ({"anna": with_beta(WHOLE.astype("i4"), units="z")}, "values of type int32; expected float32 or int16"),
    "uint16": ({"anna": with_beta(WHOLE.astype("u2"), units="z")}, "values of type uint16; expected float32 or int16"),
    "turned betas": (
        {"anna": subject().transpose("voxel", "trial")},
        "beta: dimensions (voxel, trial); expected (trial, voxel)",
    ),
    "no units": (
        {"anna": with_beta(FLOAT)},
        "beta: no attribute units; expected percent signal change, z or arbitrary",
    ),
    "units": ({"anna": with_beta(FLOAT, units="percent")}, "units = percent; expected percent signal change, z"),
    "a scale of float": (
        {"anna": with_beta(FLOAT, units="z", scale_factor=0.5)},
        "scale_factor = 0.5; expected none: only betas of int16",
    ),
    "an offset": ({"anna": with_beta(WHOLE, units="z", add_offset=3)}, "add_offset = 3; expected none"),
    "scale 0": ({"anna": with_beta(WHOLE, units="z", scale_factor=0)}, "scale_factor = 0; expected a number above 0"),
    "scale < 0": ({"anna": with_beta(WHOLE, units="z", scale_factor=-2.0)}, "= -2.0; expected a number above 0"),
    "scale in words": ({"anna": with_beta(WHOLE, units="z", scale_factor="x")}, "= x; expected a number above 0"),
    "a scale that has no inverse": (
        {"anna": with_beta(WHOLE, units="z", scale_factor=1e-320)},
        "expected a number above 0",
    ),
    "a missing value of int16": (
        {"anna": with_beta(WHOLE, units="z", missing_value=-1)},
        "missing_value; expected none, since xarray would make each such value NaN",
    ),
    "a missing value of float": (
        {"anna": with_beta(FLOAT, units="z", missing_value=-1)},
        "missing_value; expected none, since no value but NaN",
    ),
    "unsigned": ({"anna": with_beta(WHOLE, units="z", _Unsigned="true")}, "an attribute _Unsigned; expected none"),
    "saturated floats": ({"anna": with_beta(FLOAT, units="z", saturates=True)}, "saturates; expected none: only int16"),
    "saturates in words": ({"anna": with_beta(WHOLE, units="z", saturates="no")}, "saturates = no; expected true or"),
    "runs of float": ({"anna": changed("run", ("trial",), np.ones(6))}, "run: values of type float64; expected whole"),
    "conditions of numbers": ({"anna": changed("condition", ("trial",), np.ones(6, int))}, "condition: values of type"),
    "places without a shape": ({"anna": placed(shape=None)}, "no attribute shape; expected the numbers of voxels"),
    "a flat shape": ({"anna": placed(shape=[2, 4])}, "the attribute shape = [2, 4]; expected the numbers of voxels"),
    "a shape of 0": ({"anna": placed(shape=[2, 0, 2])}, "the attribute shape = [2, 0, 2]; expected"),
    "two places": ({"anna": placed().drop_vars("k")}, "subjects/anna: i and j alone; expected i, j and k"),
    "places of float": (
        {"anna": placed().assign(i=("voxel", np.zeros(3)))},
        "i: values of type float64; expected whole numbers",
    ),
    "a shape without places": ({"anna": subject().assign_attrs(shape=[3, 1, 1])}, "shape without i, j and k"),
    "a small affine": ({"anna": placed(affine=np.eye(3).tolist())}, "expected 4 x 4 numbers, voxel to millimetre"),
    "a singular affine": ({"anna": placed(affine=np.diag([1.0, 0, 1, 1]).tolist())}, "expected 4 x 4 numbers"),
    "a code without an affine": ({"anna": placed(affine_form=1)}, "affine_form = 1; expected NIfTI's code"),
    "a code that is none": ({"anna": placed(affine=np.eye(4).tolist(), affine_form=9)}, "affine_form = 9; expected"),
    "masks without names": ({"anna": changed("roi", ("region", "voxel"), np.ones((1, 3), bool))}, "roi without region"),
    "names without masks": (
        {"anna": subject().assign_coords(region=text(["a/b"]))},
        "subjects/anna: region without roi",
    ),
    "regions of float": (
        {"anna": changed("roi", ("region", "voxel"), np.ones((1, 3))).assign_coords(region=text(["a/b"]))},
        "roi: values of type float64; expected bool",
    ),
    "validity without names": (
        {"anna": changed("valid", ("session_name", "voxel"), np.ones((2, 3), bool))},
        "valid without session_name",
    ),
    "validity of numbers": (
        {
            "anna": changed("valid", ("session_name", "voxel"), np.ones((2, 3))).assign_coords(
                session_name=text(["a", "b"])
            )
        },
        "valid: values of type float64; expected bool",
    ),
    "a ceiling without a unit": ({"anna": changed("noise_ceiling", **CEILING)}, "noise_ceiling: no attribute units"),
    "a ceiling of another unit": (
        {"anna": changed("noise_ceiling", units="r", **CEILING)},
        "units = r; expected ncsnr",
    ),
    "a ceiling of how many": (
        {"anna": changed("noise_ceiling", units="percent", **CEILING)},
        "no attribute repeats; expected how many trials a stimulus the percent is for",
    ),
    "repeats of 0": (
        {"anna": changed("noise_ceiling", units="percent", repeats=0, **CEILING)},
        "repeats = 0; expected",
    ),
    "a third of a repeat": (
        {"anna": changed("noise_ceiling", units="fraction", repeats=2.5, **CEILING)},
        "repeats = 2.5; expected a whole number",
    ),
    "a ceiling of integers": (
        {"anna": changed("noise_ceiling", ("voxel",), [1, 2, 3], units="ncsnr")},
        "noise_ceiling: values of type int64; expected floating-point numbers",
    ),
    "a slip": ({"anna": subject().assign(conditions=("trial", text(["x"] * 6)))}, "did you mean condition?"),
    "another slip": ({"anna": changed("noise_celing", **CEILING)}, "did you mean noise_ceiling?"),
    "no trial": ({"anna": subject().isel(trial=[])}, "nothing along trial"),
    "no voxel": ({"anna": subject().isel(voxel=[])}, "nothing along voxel"),
    "no stimulus at all": ({"stimuli": stimuli([])}, "nothing along stimulus"),
    "splits without ids": (
        {"splits": xr.Dataset({"part": (("split", "stimulus"), text([["test"]]))}, coords={"split": text(["a"])})},
        "splits: no array stimulus (stimulus) of text",
    ),
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_what_is_wrong_with_the_metadata(tmp_path, name):
    parts, said = STRUCTURE[name]
    data = made(tmp_path, **parts)
    for use in (lambda data: data.subjects(), lambda data: data.stimuli(), lambda data: data.encoding()):
        words = refused(data, use)
        assert said in words
        assert "docs/arrays.md" in words


def test_everything_that_is_wrong_with_the_metadata_is_said_at_once(tmp_path):
    data = made(
        tmp_path,
        root=xr.Dataset(attrs={"name": "x"}),
        stimuli=stimuli().drop_vars("image"),
        anna=with_beta(FLOAT.astype("f8")),
        ben=subject().drop_vars("session"),
    )
    words = refused(data, lambda data: data.stimuli())
    assert "found 5 things wrong" in words
    for said in ("bdflow_dataset", "image_file", "float64", "no attribute units", "subjects/ben: no array session"):
        assert said in words


def test_subjects_whose_betas_are_stored_in_several_ways(tmp_path):
    data = made(
        tmp_path,
        anna=with_beta(WHOLE, units="z", scale_factor=1 / 300),
        ben=with_beta(FLOAT, units="z"),
        cem=with_beta(WHOLE, units="z", scale_factor=1 / 300),
        dora=with_beta(WHOLE, units="arbitrary", saturates=True),
    )
    words = refused(data, lambda data: data.encoding())
    assert "stored in 3 ways" in words
    assert "anna, cem: int16 / 300, z; ben: float32, z; dora: int16, arbitrary, saturates" in words


@pytest.mark.parametrize("dtype", ["i2", "f4"])
@pytest.mark.parametrize("fill", [0.0, float("nan")])
def test_fill_values_as_xarray_writes_them(tmp_path, dtype, fill):
    """NaN in float betas is what xarray writes itself; anything else would turn values into NaN on opening."""
    encoding = {"/subjects/anna": {"beta": {"_FillValue": fill if dtype == "f4" else 0}}}
    data = made(tmp_path, encoding, anna=with_beta((WHOLE if dtype == "i2" else FLOAT), units="z"))
    if dtype == "f4" and np.isnan(fill):
        assert data.betas("anna", "s1", ONES).valid.all()
    else:
        assert "beta: an attribute _FillValue; expected none" in refused(data, lambda data: data.encoding())


def edited(path, edit) -> None:
    """The metadata of a group or array, edited by hand."""
    file = path / "zarr.json"
    found = json.loads(file.read_text())
    edit(found)
    file.write_text(json.dumps(found))


def test_lengths_that_differ(tmp_path):
    """xarray does not write such a group; other programs may."""
    root = write(tmp_path / "own.zarr", tree())
    zarr.create_array(root / "subjects/anna/run", data=np.ones(5, "i4"), dimension_names=["trial"])
    words = refused(opened(root), lambda data: data.subjects())
    assert "subjects/anna/run: 5 along trial; " in words
    assert "has 6" in words or "6 along trial" in words


def test_dimensions_without_names(tmp_path):
    root = write(tmp_path / "own.zarr", tree())
    edited(root / "subjects/anna/beta", lambda found: found.pop("dimension_names"))
    words = refused(opened(root), lambda data: data.subjects())
    assert "dimensions without names, of lengths (6, 3); expected (trial, voxel)" in words


@pytest.mark.parametrize("value", ["NaN", float("nan"), base64.b64encode(struct.pack("<d", float("nan"))).decode()])
def test_nan_in_all_its_writings(tmp_path, value):
    root = write(tmp_path / "own.zarr", tree())
    edited(root / "subjects/anna/beta", lambda found: found["attributes"].update(_FillValue=value))
    assert opened(root).betas("anna", "s1", ONES).valid.all()


# --- the folder -----------------------------------------------------------------------------------------------


def test_what_is_no_hierarchy(tmp_path):
    (tmp_path / "file.zip").write_bytes(b"x")
    assert "found a file" in refused(opened(tmp_path / "file.zip"), lambda data: data.stimuli())
    (tmp_path / "folder").mkdir()
    assert "a folder without zarr.json" in refused(opened(tmp_path / "folder"), lambda data: data.stimuli())
    zarr.create_group(tmp_path / "two.zarr", zarr_format=2)
    assert "found Zarr v2; expected Zarr v3" in refused(opened(tmp_path / "two.zarr"), lambda data: data.stimuli())
    zarr.create_array(tmp_path / "array.zarr", data=np.ones(3))
    assert "expected a Zarr v3 group" in refused(opened(tmp_path / "array.zarr"), lambda data: data.stimuli())


def test_groups_of_other_names(tmp_path):
    root = write(tmp_path / "own.zarr", tree())
    (root / "stimuli").rename(root / "stimulus")
    words = refused(opened(root), lambda data: data.stimuli())
    assert "no group stimuli" in words
    assert "stimulus: a name that means nothing; did you mean stimuli?" in words
    (root / "stimulus").rename(root / "stimuli")
    shutil.copytree(root / "stimuli", root / "split")
    assert "did you mean splits?" in refused(opened(root), lambda data: data.stimuli())


def test_subjects_without_a_group(tmp_path):
    root = write(tmp_path / "own.zarr", tree())
    shutil.rmtree(root / "subjects/anna")
    assert "subjects: no group in it" in refused(opened(root), lambda data: data.subjects())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
@pytest.mark.parametrize("of", ["", "stimuli", "subjects/anna", "subjects/anna/beta", "stimuli/stimulus"])
def test_damaged_metadata(tmp_path, of, content):
    root = write(tmp_path / "own.zarr", tree())
    (root / of / "zarr.json").write_bytes(content)
    words = refused(opened(root), lambda data: data.subjects())
    assert "metadata that cannot be read" in words
    assert str(root / of) in words


# --- chunks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "use"),
    [
        ("subjects/anna/beta/c/0/0", lambda data: data.betas("anna", "s1", ONES)),
        ("subjects/anna/session/c/0", lambda data: data.trials("anna")),
        ("subjects/anna/stimulus_id/c/0", lambda data: data.sessions("anna")),
        ("stimuli/stimulus/c/0", lambda data: data.stimuli()),
        ("stimuli/image/c/0/0/0/0", lambda data: data.pictures(IDS[:1])),
    ],
)
def test_chunks_that_are_lost_or_damaged(tmp_path, file, use):
    """Zarr would read a lost one as zeros, or as empty text."""
    root = write(tmp_path / "own.zarr", tree())
    whole = (root / file).read_bytes()
    (root / file).write_bytes(whole[:-3])
    assert "data that cannot be read" in refused(opened(root), use)
    (root / file).write_bytes(b"")
    assert "data that cannot be read" in refused(opened(root), use)
    (root / file).unlink()
    words = refused(opened(root), use)
    array, _, chunk = file.partition("/c/")
    assert f"{array}: found no file of the chunk c/{chunk}; expected every chunk" in words
    assert "write_empty_chunks=True" in words
    (root / file).write_bytes(whole)
    use(opened(root))


def test_chunks_that_were_left_out_since_they_hold_nothing(tmp_path):
    """As Zarr does by default: it cannot be told from a lost file."""
    root = write(tmp_path / "own.zarr", tree(anna=subject(np.zeros((6, 3), "i2"))), write_empty_chunks=False)
    assert "no file of the chunk c/0/0" in refused(opened(root), lambda data: data.betas("anna", "s1", ONES))
    root = write(tmp_path / "all.zarr", tree(anna=subject(np.zeros((6, 3), "i2"))))
    assert not opened(root).betas("anna", "s1", ONES).valid.any()


def test_a_lost_shard(tmp_path):
    encoding = {"/subjects/anna": {"beta": {"chunks": (2, 1), "shards": (4, 3)}}}
    root = write(tmp_path / "own.zarr", tree(), encoding=encoding)
    (root / "subjects/anna/beta/c/1/0").unlink()
    data = opened(root)
    assert data.betas("anna", "s1", ONES).valid.all()
    assert "no file of the chunk c/1/0" in refused(data, lambda data: data.betas("anna", "s2", ONES))
