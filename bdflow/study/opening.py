"""A study for analysis: every store as a lazy xarray dataset, found by stimulus and by the names of regions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray

from bdflow.errors import os_errors_named
from bdflow.stores import Study
from bdflow.stores.every_chunk import EveryChunkOfStudy
from bdflow.stores.metadata import COPY
from bdflow.stores.paths import zarr_store
from bdflow.stores.spec import PROGRESS
from bdflow.user_paths import any_place

IDS = "stimulus_id"
SCORES = "scores"
PACKED = ("scale_factor", "dtype", "fill_value")


@os_errors_named()
def open_study(path: str | Path) -> xarray.DataTree:
    """Open a study lazily.

    Parameters
    ----------
    path : a directory, or a URL (s3://, gs://, memory://) of an object store.

    Returns
    -------
    DataTree of Dask arrays, a node for each store (README.md lists them), without the journal, the marks of progress
    and the copies of metadata. Stimuli are found by id, and so are trials and rows:
    `tree["stimuli/shared"].image.sel(stimulus_id="02050")`.
    Regions are found by name: `tree["betas/subj01"].roi.sel(region="floc-faces/FFA-1")`.
    One node more, `scores`, holds the metrics of all stores `metrics/<painter>/<subject>` in one array,
    `value (painter, subject, variant, metric, stimulus_id)`, not a number where something was not painted or scored.

    Raises
    ------
    NotReady : no study there. InputError, StoreError : a place that cannot be read. When values are computed:
    CorruptChunk for a chunk that was lost (Zarr would take zeros for it), NotReady for one of an unfinished store.
    """
    study = Study(any_place("path", path))
    study.root()
    backend = cast(Any, EveryChunkOfStudy(zarr_store(study.path)))  # xarray takes Zarr's stores, its annotations do not
    # not open_groups: its Dask arrays of one name in several groups are taken for one another (xarray 2026.9)
    groups = xarray.open_datatree(backend, engine="zarr", chunks={}, zarr_format=3)
    kept = {
        node.path: node.to_dataset(inherit=False)
        for node in groups.subtree
        if node.path.strip("/").split("/")[0] != "runs"
    }
    shown = {name: _presented(group) for name, group in kept.items()}
    metrics = {name.strip("/"): of for name, of in shown.items() if name.startswith("/metrics/") and "value" in of}
    return xarray.DataTree.from_dict({**shown, **({f"/{SCORES}": all_scores(metrics)} if metrics else {})})


def all_scores(metrics: Mapping[str, xarray.Dataset]) -> xarray.Dataset:
    """The metrics of stores `metrics/<painter>/<subject>`, by path, in one array, lazily; see `open_study`.

    Variants, metrics and stimuli stand in the order in which they first appear.
    """
    painters: dict[str, dict[str, xarray.DataArray]] = {}
    for path, store in metrics.items():
        _, painter, subject = path.split("/")
        painters.setdefault(painter, {})[subject] = store["value"]
    every = [value for of in painters.values() for value in of.values()]
    dims = ("variant", "metric", "stimulus_id")
    order = {dim: list(dict.fromkeys(str(one) for value in every for one in value[dim].values)) for dim in dims}
    subjects = list(dict.fromkeys(subject for of in painters.values() for subject in of))
    nothing = xarray.full_like(every[0], np.nan).reindex(order)
    rows = [
        xarray.concat([of[one].reindex(order) if one in of else nothing for one in subjects], dim="subject")
        for of in painters.values()
    ]
    value = xarray.concat(rows, dim="painter").assign_coords(subject=subjects, painter=list(painters))
    value.attrs = every[0].attrs
    return value.to_dataset(name="value").assign_attrs(title="Scores: the metrics of all painters and subjects")


def _presented(store: xarray.Dataset) -> xarray.Dataset:
    store = store.drop_vars([PROGRESS, COPY], errors="ignore")
    ids = [str(name) for name, of in store.variables.items() if str(name).endswith(IDS) and of.ndim == 1]
    for of in store.variables.values():
        if "scale_factor" in of.encoding:  # saved as read: packed again, xarray warns that NaN would have no number
            of.encoding = {what: how for what, how in of.encoding.items() if what not in PACKED}
    for name in (name for name in ids if name not in store.dims):
        store = store.set_coords(name).set_xindex(name)
    return store
