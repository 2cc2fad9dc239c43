"""What a user of plain xarray does with a study: without bdflow, in an environment that need not have it."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xarray
from zarr.storage import MemoryStore

KEPT_WARNINGS = (
    r"saving variable \S+ with floating point data as an integer dtype",  # betas have no code for what is missing
    "Consolidated metadata is currently not part in the Zarr format 3",
)


def opened(study: Path, path: str) -> xarray.Dataset:
    """One store, by its path."""
    return xarray.open_zarr(study / path, consolidated=False, chunks={})


def written_again(study: Path, paths: Iterable[str], folder: Path) -> None:
    """Each store as netCDF and as Zarr, and what is read from these again: the same values, types and attributes."""
    for path in paths:
        store = opened(study, path)
        file = folder / f"{path.replace('/', '-')}.nc"
        memory = MemoryStore()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for message in KEPT_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            store.to_netcdf(file, engine="h5netcdf")
            store.to_zarr(memory, zarr_format=3, consolidated=False)
            with xarray.open_dataset(file, engine="h5netcdf") as again:
                same(store, again)
            same(store, xarray.open_zarr(memory, consolidated=False))
        file.unlink()


def same(store: xarray.Dataset, again: xarray.Dataset) -> None:
    """Raise AssertionError unless both hold the same."""
    xarray.testing.assert_equal(store.load(), again.load())
    assert set(store.coords) == set(again.coords)
    assert store.attrs == plain(again.attrs)
    for name, of in store.variables.items():
        assert (of.dims, of.dtype.kind) == (
            again[name].dims,
            again[name].dtype.kind.replace("U", "T").replace("O", "T"),
        )
        assert plain(dict(of.attrs)) == plain(dict(again[name].attrs)), name


def plain(attrs: dict[str, object]) -> dict[str, object]:
    """Attributes with numbers of Python's own, for HDF5 gives numpy's; a list of one is one number there."""
    found = {name: np.asarray(value).tolist() for name, value in attrs.items()}
    return {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in found.items()}


def drawn(picture: xarray.DataArray, size: tuple[int, int]) -> np.ndarray:
    """The pixels (y, x, 3) of a figure of `size`, height and width, that `plot.imshow` fills."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = size
    figure = Figure(figsize=(width, height), dpi=1)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    picture.plot.imshow(ax=axes, add_labels=False)
    axes.set_axis_off()
    content = io.BytesIO()
    canvas.print_rgba(content)
    return np.frombuffer(content.getvalue(), "u1").reshape(height, width, 4)[..., :3]


def record(store: xarray.Dataset) -> dict[str, object]:
    """What bdflow keeps of a store."""
    found: dict[str, object] = json.loads(store.attrs["bdflow"])
    return found
