"""Declarations: partitions tile the store, own whole chunks, and every violation is listed."""

import math
from itertools import product

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from bdflow.datasets.contract import Encoding
from bdflow.stores import ArraySpec, StoreError, StoreSpec
from bdflow.stores.spec import create_arrays
from bdflow.study import catalog, picture_catalog, score_catalog


@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 30)),
    chunks=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    multiples=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
@settings(max_examples=200, deadline=None)
def test_partitions_tile_the_store_and_own_whole_chunks(sizes, chunks, multiples):
    names = ("a", "b")
    array = ArraySpec("x", names, "f4", "x", chunks=dict(zip(names, chunks, strict=True)))
    cut = {n: c * m for n, c, m in zip(names, chunks, multiples, strict=True)}
    spec = StoreSpec("t", (array,), cut)
    lengths = dict(zip(names, sizes, strict=True))
    assert spec.problems(lengths) == []
    covered = np.zeros(sizes, int)
    owned: list[tuple[int, ...]] = []
    for partition in range(spec.n_partitions(lengths)):
        region = spec.region(lengths, partition)
        covered[region["a"], region["b"]] += 1
        owned += list(spec.chunks_of(lengths, array, partition))
    assert (covered == 1).all()
    grid = [range(math.ceil(s / min(c, s))) for s, c in zip(sizes, chunks, strict=True)]
    assert sorted(owned) == sorted(product(*grid))


def test_a_declaration_that_contradicts_itself_lists_every_problem():
    spec = StoreSpec(
        "t",
        (
            ArraySpec("x", ("a", "b"), "f4", "x", chunks={"a": 4}),
            ArraySpec("y", ("b",), "f4", "y"),
            ArraySpec("z", ("a",), "f4", "z", chunks={"a": 3}),
        ),
        {"a": 6},
    )
    problems = spec.problems({"a": 20, "b": 2})
    assert len(problems) == 2
    assert any("x: a partition of 6 a cuts chunks of 4" in p for p in problems)
    assert any("y: lacks a" in p for p in problems)
    assert spec.problems({"a": 20})[0] == "x: no size for dimension b"


def test_there_is_no_partition_beyond_the_last():
    spec = StoreSpec("t", (ArraySpec("x", ("a",), "f4", "x"),), {"a": 4})
    with pytest.raises(StoreError, match="partition 3 asked for; expected 0 to 2"):
        spec.region({"a": 10}, 3)


def test_check_lists_every_difference_from_disk(tmp_path):
    group = zarr.create_group(tmp_path / "g.zarr")
    sizes = {"a": 10, "b": 3}
    right = ArraySpec("x", ("a", "b"), "f4", "a thing", "m", {"a": 5})
    created = create_arrays(group.store, group.path, [(right, sizes)])["x"]
    assert list(right.check(created, sizes)) == []
    other = group.create_array("y", shape=(10, 3), chunks=(2, 3), dtype="f8", dimension_names=("a", "c"))
    wrong = " ".join(right.check(other, sizes))
    for word in ("dims", "chunks", "dtype", "long_name", "units", "crc32c"):
        assert word in wrong


@pytest.mark.parametrize(
    ("shape", "columns", "cut"),
    [((91168,), 4096, {"feature": 4096}), ((257, 768), 4096, {"token": 5}), ((77, 768), 100, {"token": 1})],
)
def test_target_spaces_are_cut_into_blocks_of_columns(shape, columns, cut):
    assert catalog.column_blocks(shape, columns) == cut
    sizes = {"stimulus_id": 1000, **dict(zip(catalog.space_dims(shape), shape, strict=True))}
    for spec in (catalog.predictions(shape, columns), catalog.targets(shape, "f2", 512, columns)):
        assert spec.problems(sizes) == []


def test_every_store_of_the_catalog_documents_every_array():
    specs = [
        catalog.stimuli(64),
        catalog.betas(750, Encoding("int16", "percent signal change", 300, cut_off=True)),
        catalog.betas(1066, Encoding("float32", "percent signal change")),
        catalog.responses(1024, "percent signal change"),
        catalog.targets((257, 768), "f2", 512, 4096),
        catalog.decoders(),
        catalog.predictions((91168,), 4096),
        picture_catalog.guesses(16),
        picture_catalog.reconstructions(16),
        score_catalog.metrics(16),
    ]
    for spec in specs:
        assert spec.title
        for array in spec.arrays:
            assert array.doc, f"{spec.title}/{array.name}"
            assert array.units not in ("1", "sRGB"), "an attribute `units` is a unit"
            assert len(array.dims) == 1 or array.name not in array.dims, "xarray cannot index by such a dimension"
