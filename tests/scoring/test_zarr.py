"""Pictures in Zarr, on a disk and in an object store: lost chunks are no black pictures, and ids are never left out."""

from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr

import bdflow
from bdflow.stores import ArraySpec, CorruptChunk, Provenance, StoreSpec, Study, text
from bdflow.stores.paths import place, zarr_store
from tests.scoring.test_refusals import refused
from tests.support.planted_pictures import planted

PHOTOS, MADE = planted()
IDS = [f"face{i}" for i in range(5)]
ORDER = [3, 0, 4, 1, 2]
DIMS = ("stimulus_id", "y", "x", "rgb")


def write(where: str, images: np.ndarray, ids: list[str] | None, *, zarr_format: int = 3) -> str:
    """A group of Zarr with a chunk a picture."""
    group = zarr.open_group(zarr_store(place(where)), mode="w", zarr_format=zarr_format)
    group.create_array("image", data=images, chunks=(1, *images.shape[1:]))
    if ids is not None:
        group.create_array("stimulus_id", data=np.array(ids, np.dtypes.StringDType()))
    return where


def sealed(where: str, images: np.ndarray, ids: list[str]) -> str:
    """A store of a study."""
    study = Study(place(where))
    study.create("a study", {})
    spec = StoreSpec(
        "Pictures",
        (
            ArraySpec("image", DIMS, "u1", "a picture", chunks={"stimulus_id": 1, "y": 99, "x": 99, "rgb": 3}),
            ArraySpec("stimulus_id", ("stimulus_id",), "str", "id", chunks={"stimulus_id": 9}, role="coordinate"),
        ),
    )
    sizes = dict(zip(DIMS, images.shape, strict=True))
    store = study.declare("pictures", spec, sizes, {"stimulus_id": text(ids)}, Provenance("a", {}, {}, {}))
    store.write(0, {"image": images})
    store.seal()
    return f"{where}/pictures"


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return bdflow.score(PHOTOS, MADE, "PixCorr").values["PixCorr"]


@pytest.mark.parametrize("make", [write, sealed])
def test_zarr_in_an_object_store_is_read_as_on_a_disk(make, expected, tmp_path):
    ids = [IDS[i] for i in ORDER]
    made = make(f"memory://score-{make.__name__}/made.zarr", MADE[ORDER], ids)
    shown = make(str(tmp_path / "shown.zarr"), PHOTOS, list(IDS))
    for pictures in (made, f"{made}/image"):
        found = bdflow.score(shown, pictures, "PixCorr")
        np.testing.assert_array_equal(found.values["PixCorr"], expected)
    np.testing.assert_array_equal(bdflow.score(made, shown, "PixCorr").values["PixCorr"], expected[ORDER])


def test_what_is_not_zarr_in_an_object_store():
    words = refused("no Zarr array or group there; expected Zarr", PHOTOS, "memory://score-nothing/pictures")
    assert "copy the files to this machine" in words
    refused("a URL other than s3://, gs:// or memory://", PHOTOS, "https://example.org/a.zarr")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_lost_chunk_of_ones_own_zarr_is_no_black_picture(zarr_format, tmp_path):
    made = write(str(tmp_path / "made.zarr"), MADE, list(IDS), zarr_format=zarr_format)
    chunk = "c/2/0/0/0" if zarr_format == 3 else "2.0.0.0"
    (tmp_path / "made.zarr/image" / chunk).unlink()
    shown = write(str(tmp_path / "shown.zarr"), PHOTOS, list(IDS))
    assert "write_empty_chunks=True" in refused(f"no file of the chunk image/{chunk}", shown, made)


@pytest.mark.parametrize("array", ["image", "stimulus_id"])
@pytest.mark.parametrize("where", ["disk", "object store"])
def test_a_lost_chunk_of_a_study_is_named(array, where, tmp_path):
    root = str(tmp_path / "made.zarr") if where == "disk" else f"memory://score-lost-{array[:5]}/made.zarr"
    made = sealed(root, MADE, list(IDS))
    chunk = place(made) / array / "c" / "0"
    chunk = chunk if array == "stimulus_id" else chunk / "0" / "0" / "0"
    chunk.unlink() if isinstance(chunk, Path) else chunk.parent.bucket.delete(chunk.name)
    with pytest.raises(CorruptChunk, match=f"pictures/{array}, chunk c/0.*found no file"):
        bdflow.score(PHOTOS, made, "PixCorr")


def test_ids_of_other_rows_are_not_left_out(tmp_path):
    """Photos and pictures would be matched by their order."""
    made = write(str(tmp_path / "made.zarr"), MADE[ORDER], [*IDS, "one more"])
    refused("stimulus_id: found ids of shape (6,); expected one for each of the 5 rows of image", PHOTOS, made)


def test_ids_of_an_array_of_xarray_belong_to_its_first_dimension():
    """Of five pictures of each of five stimuli, ids of stimuli would name pictures."""
    several = np.stack([MADE] * 5)
    given = xarray.DataArray(several, {"stimulus_id": list(IDS)}, ("picture", *DIMS))
    photos = xarray.DataArray(PHOTOS, {"stimulus_id": list(IDS)}, DIMS)
    words = refused("stimulus_id along stimulus_id; expected stimulus_id along the first dimension", photos, given)
    assert ".transpose('stimulus_id', ...)" in words
    right = bdflow.score(photos, given.transpose("stimulus_id", ...), "PixCorr")
    np.testing.assert_allclose(right.values["PixCorr"], bdflow.score(PHOTOS, MADE, "PixCorr").values["PixCorr"])
    refused("stimulus_id along none of them", photos, given.isel(stimulus_id=0).expand_dims("row"))
