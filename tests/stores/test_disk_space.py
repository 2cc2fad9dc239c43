"""Space on the disk is compared before work begins; both numbers are said."""

import shutil
from collections import namedtuple

import numpy as np
import pytest

from bdflow.stores import Provenance, StoreError, Study
from bdflow.stores.disk_space import space_warning, to_write
from bdflow.stores.spec import ArraySpec, StoreSpec

USAGE = namedtuple("USAGE", "total used free")
SPEC = StoreSpec(
    "test",
    (
        ArraySpec("latent", ("stimulus", "feature"), "f4", "raw", chunks={"stimulus": 10}),
        ArraySpec("image", ("stimulus", "feature"), "u1", "packed", chunks={"stimulus": 10}, codec="zstd"),
    ),
    {"stimulus": 10},
)


@pytest.fixture
def store(tmp_path):
    study = Study(tmp_path / "study.zarr")
    study.create("a study", {})
    return study.declare("x", SPEC, {"stimulus": 40, "feature": 1000}, {}, Provenance("s", {}, {}, {}))


def test_only_what_is_missing_counts(store):
    assert to_write(store) == (160_000, 40_000)
    block = {"latent": np.ones((10, 1000), "f4"), "image": np.ones((10, 1000), "u1")}
    store.write(0, block)
    assert to_write(store) == (120_000, 30_000)


def test_too_little_room(store, monkeypatch):
    def free(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: USAGE(10**9, 0, size))
        return space_warning([store], store.study)

    assert free(300_000) is None
    assert "0.16 MiB free" in free(170_000)
    with pytest.raises(StoreError, match=r"found 0\.14 MiB free; expected 0\.15 MiB at least"):
        free(150_000)
