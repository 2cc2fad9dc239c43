"""A study for analysis: every store as a lazy xarray dataset, found by stimulus and by the names of regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray

from bdflow.datasets.nsd.files import ROI_LABELS
from bdflow.errors import os_errors_named
from bdflow.stores import Study
from bdflow.stores.metadata import COPY
from bdflow.stores.paths import zarr_store
from bdflow.stores.store import PROGRESS
from bdflow.user_paths import any_place

IDS = "nsd_id"
NOT_CORTEX = "not cortex"


@os_errors_named()
def open_study(path: str | Path) -> xarray.DataTree:
    """Open a study lazily.

    Parameters
    ----------
    path : a directory, or a URL (s3://, gs://, memory://) of an object store.

    Returns
    -------
    DataTree of Dask arrays, a node for each store (README.md lists them), without the journal, the marks of progress
    and the copies of metadata. Stimuli are found by id: `tree["stimuli/shared"].image.sel(nsd_id=2050)`; `nsd_id` (and
    `photo_nsd_id`, `train_nsd_id`) are indexes of the dimension they label. `region` (roi, voxel) gives, beside
    `roi_label`, the name of each voxel's region in each collection: "" for none, "not cortex"; a collection whose names
    are not known keeps its numbers.

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
    if "roi_label" in store:
        store = store.assign_coords(region=_region_names(store))
    return store


def _region_names(store: xarray.Dataset) -> xarray.DataArray:
    def named(labels: np.ndarray, collections: list[str]) -> np.ndarray:
        texts = np.empty(labels.shape, dtype="U24")
        for row, collection in enumerate(collections):
            known = dict(enumerate(ROI_LABELS.get(collection, ()), start=1))
            for label in np.unique(labels[row]):
                text = {0: "", -1: NOT_CORTEX}.get(int(label), known.get(int(label), str(label)))
                texts[row][labels[row] == label] = text
        return texts

    labels = store.roi_label.transpose("roi", "voxel").chunk({"roi": -1})
    collections = [str(name) for name in labels.roi.values]
    names = labels.data.map_blocks(named, collections=collections, dtype="U24")
    attrs = {"long_name": "name of the region in that collection"}
    return xarray.DataArray(names, dims=("roi", "voxel"), attrs=attrs)
