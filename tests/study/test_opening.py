"""What `open_study` gives is saved elsewhere as it was read."""

import warnings

import numpy as np
import xarray
from zarr.storage import MemoryStore

from bdflow import open_study
from bdflow.stores import ArraySpec, Provenance, StoreSpec, Study

PATH = "betas/subj01"
STORED = np.array([[0, 1, -32768], [32767, 299, -300]], "i2")


def test_packed_betas_are_saved_without_a_warning_and_with_the_same_values(tmp_path):
    """No whole number stands for "missing" in betas, so xarray would warn if it had to pack them again."""
    study = Study(tmp_path / "study.zarr")
    study.create("a study", {})
    beta = ArraySpec("beta", ("trial", "voxel"), "i2", "beta", "1", attrs={"scale_factor": 1 / 300})
    store = study.declare(
        PATH, StoreSpec("Betas", (beta,)), {"trial": 2, "voxel": 3}, {}, Provenance("ingest", {}, {}, {})
    )
    store.write(0, {"beta": STORED})
    store.seal()
    study.consolidate()
    opened, memory = open_study(study.path)[PATH].to_dataset(), MemoryStore()
    np.testing.assert_array_equal(opened.beta, STORED * (1 / 300))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        opened.to_netcdf(tmp_path / "betas.nc", engine="h5netcdf")
        opened.to_zarr(memory, zarr_format=3, consolidated=False)
        with xarray.open_dataset(tmp_path / "betas.nc", engine="h5netcdf") as again:
            xarray.testing.assert_identical(again.load(), opened.load())
        xarray.testing.assert_identical(xarray.open_zarr(memory, consolidated=False).load(), opened.load())
