"""A study for analysis: every store as a lazy xarray dataset, found by stimulus and by the names of regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import xarray

from bdflow.errors import os_errors_named
from bdflow.stores import Study
from bdflow.stores.metadata import COPY
from bdflow.stores.paths import zarr_store
from bdflow.stores.store import PROGRESS
from bdflow.user_paths import any_place

IDS = "stimulus_id"


@os_errors_named()
def open_study(path: str | Path) -> xarray.DataTree:
    """Open a study lazily.

    Parameters
    ----------
    path : a directory, or a URL (s3://, gs://, memory://) of an object store.

    Returns
    -------
    DataTree of Dask arrays, a node for each store (README.md lists them), without the journal, the marks of progress
    and the copies of metadata. Stimuli are found by id:
    `tree["stimuli/shared"].image.sel(stimulus_id="02050")`; `stimulus_id` (and `photo_stimulus_id`,
    `train_stimulus_id`) are indexes of the dimension they label.
    Regions are found by name: `tree["betas/subj01"].roi.sel(region="floc-faces/FFA-1")`.

    Raises
    ------
    NotReady : no study there. InputError, StoreError : a place that cannot be read.
    """
    study = Study(any_place("path", path))
    study.root()
    backend = cast(Any, zarr_store(study.path))  # xarray takes Zarr's stores, its annotations do not
    groups = xarray.open_groups(backend, engine="zarr", chunks={}, zarr_format=3)
    kept = {name: group for name, group in groups.items() if name.strip("/").split("/")[0] != "runs"}
    return xarray.DataTree.from_dict({name: _presented(group) for name, group in kept.items()})


def _presented(store: xarray.Dataset) -> xarray.Dataset:
    store = store.drop_vars([PROGRESS, COPY], errors="ignore")
    for name in [str(name) for name, values in store.variables.items() if str(name).endswith(IDS) and values.ndim == 1]:
        store = store.set_coords(name).set_xindex(name)
    return store
