"""A chunk that is not there is an error wherever bdflow reads: Zarr alone takes zeros or empty texts for it."""

import json
import pickle
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray

from bdflow import open_study
from bdflow.stores import ArraySpec, CorruptChunk, NotReady, Provenance, Store, StoreSpec, Study, text
from bdflow.stores.paths import zarr_store

PATH = "targets/vdvae/shared"
SPEC = StoreSpec(
    "A store",
    (
        ArraySpec("latent", ("row", "feature"), "f4", "latent", chunks={"row": 2, "feature": 2}),
        ArraySpec("packed", ("row",), "i2", "whole numbers", chunks={"row": 2}, codec="zstd"),
        ArraySpec("caption", ("row",), "str", "captions", chunks={"row": 4}),
        ArraySpec("label", ("feature",), "i2", "label", chunks={"feature": 3}, role="given"),
    ),
    {"row": 4},
)
SIZES = {"row": 10, "feature": 3}
LATENT = np.arange(1, 31, dtype="f4").reshape(10, 3)
CHUNKS = [("latent", "4/1", 2), ("latent", "0/0", 0), ("packed", "3", 1), ("caption", "2", 2), ("label", "0", None)]


@pytest.fixture(params=["folder", "object store"])
def study(request, tmp_path) -> Study:
    name = "".join(sign if sign.isalnum() else "-" for sign in request.node.name)
    study = Study(tmp_path / "study.zarr" if request.param == "folder" else f"memory://lost-{name}/study.zarr")
    study.create("a study", {})
    given = {"label": np.arange(3)}
    store = study.declare(PATH, SPEC, SIZES, given, Provenance("features", {}, {}, {}))
    for partition in (0, 2):
        write(store, partition)
    return study


def write(store: Store, partition: int) -> None:
    here = LATENT[4 * partition : 4 * partition + 4]
    texts = text([f"row {row}" for row in here[:, 0]])
    store.write(partition, {"latent": here, "packed": here[:, 0].astype("i2"), "caption": texts})


def sealed(study: Study) -> Store:
    store = study.store(PATH)
    write(store, 1)
    store.seal()
    return study.store(PATH)


def lose(study: Study, array: str, chunk: str) -> None:
    where = study.path / PATH / array / "c"
    for part in chunk.split("/"):
        where = where / part
    assert where.is_file()
    where.unlink() if isinstance(where, Path) else where.parent.bucket.delete(where.name)


@pytest.mark.parametrize(("array", "chunk", "owner"), CHUNKS)
def test_reading_names_the_chunk_that_is_lost(study, array, chunk, owner):
    store = sealed(study)
    whole = store.read(array)
    lose(study, array, chunk)
    at = tuple(int(part) for part in chunk.split("/"))
    out = np.empty(whole.shape, whole.dtype)
    ways = [lambda: Store(study.path, PATH).read(array), lambda: store.read(array, {})]
    ways += [lambda: store.read_into(out, array)] if array != "caption" else []
    ways += [lambda: store.read(array, {"row": np.array([0, 6, 9])})] if owner is not None else []
    for way in ways:
        with pytest.raises(CorruptChunk) as error:
            way()
        assert (error.value.array, error.value.chunk, error.value.partition) == (array, at, owner)
        assert (error.value.why, error.value.remedy) == ("no file", "repair")


def test_what_needs_no_lost_chunk_is_read(study):
    store = sealed(study)
    lose(study, "latent", "4/1")
    np.testing.assert_array_equal(store.read("latent", {"row": slice(0, 8)}), LATENT[:8])
    np.testing.assert_array_equal(store.read("latent", {"feature": slice(0, 2)}), LATENT[:, :2])


def test_a_partition_that_is_not_written_is_no_row_of_zeros(study):
    store = study.store(PATH)
    np.testing.assert_array_equal(store.read("latent", {"row": slice(0, 4)}), LATENT[:4])
    with pytest.raises(
        NotReady, match=r"chunk c/[23]/[01]: found no file, in partition 1, which is not written"
    ) as error:
        store.read("latent")
    assert error.value.remedy == "run"
    lazy = open_study(str(study.path))[PATH].latent
    np.testing.assert_array_equal(lazy[8:].values, LATENT[8:])
    with pytest.raises(NotReady, match=r"chunk c/2/0: found no file, of a store that is not finished"):
        lazy[4:6, :2].compute()


def test_what_a_killed_declaration_left_is_no_store_of_zeros(study):
    """Its attributes come last."""
    document = study.path / PATH / "zarr.json"
    document.write_bytes(json.dumps(json.loads(document.read_bytes()) | {"attributes": {}}).encode())
    lazy = open_study(str(study.path))[PATH].label
    np.testing.assert_array_equal(lazy, np.arange(3))
    lose(study, "label", "0")
    with pytest.raises(NotReady, match="label, chunk c/0: found no file, of a store that is not finished"):
        lazy.compute()


@pytest.mark.parametrize("consolidated", [True, False])
def test_arrays_that_are_read_later_name_it_too(study, consolidated):
    store = sealed(study)
    if consolidated:
        study.consolidate()
    tree = open_study(str(study.path))
    lazy, own = tree[PATH].dataset, store.dataset()
    lose(study, "latent", "1/0")
    for latent in (lazy.latent, own.latent, pickle.loads(pickle.dumps(lazy.latent))):
        np.testing.assert_array_equal(latent[4:].compute(), LATENT[4:])
        with dask.config.set(scheduler="threads"), pytest.raises(CorruptChunk) as error:
            latent.mean().compute()
        assert (error.value.store, error.value.array, error.value.chunk) == (PATH, "latent", (1, 0))
        assert "(declared" not in str(error.value)
        assert pickle.loads(pickle.dumps(error.value)).chunk == (1, 0)


def test_plain_xarray_cannot_know_it(study):
    """Why the documentation says to open studies by `open_study`, or to verify them first."""
    sealed(study)
    lose(study, "latent", "1/0")
    plain = xarray.open_zarr(zarr_store(study.path), group=PATH, consolidated=False, zarr_format=3)
    assert plain.latent[2, 0] == 0


def test_verify_finds_it_in_every_array(study):
    store = sealed(study)
    for array, chunk, _ in CHUNKS:
        lose(study, array, chunk)
    found = {(one.array, "/".join(map(str, one.chunk)), one.partition, one.why) for one in store.damage()}
    assert found == {(*one, "no file") for one in CHUNKS}
