"""Small datasets in arrays, written by xarray as users write them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from bdflow.config import DatasetSettings
from bdflow.datasets.arrays import Arrays
from bdflow.errors import InputError
from tests.support.messages import faults

IDS = ["a 1.png", "b+c", "d.e", "é"]


def text(values: Any) -> np.ndarray:
    return np.asarray(values).astype(object)


def stimuli(ids: list[str] = IDS, size: tuple[int, int] = (4, 5)) -> xr.Dataset:
    """Pictures that tell their stimulus: all pixels of number n are n + 1."""
    values = np.arange(1, len(ids) + 1, dtype="u1")[:, None, None, None]
    image = np.broadcast_to(values, (len(ids), *size, 3))
    return xr.Dataset({"image": (("stimulus", "y", "x", "rgb"), image)}, coords={"stimulus": text(ids)})


def png(mode: str, size: tuple[int, int], colour: object) -> bytes:
    """A file of one colour."""
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "png")
    return file.getvalue()


def in_files(paths: list[str]) -> xr.Dataset:
    """Stimuli whose pictures are files."""
    return stimuli().drop_vars("image").assign(image_file=("stimulus", text(paths)))


def subject(
    beta: np.ndarray | None = None,
    shown: list[str] | None = None,
    session: list[str] | None = None,
    **attrs: object,
) -> xr.Dataset:
    """Six trials of three voxels, in sessions `s1` (4) and `s2` (2), without places."""
    if beta is None:
        beta = np.arange(18, dtype="f4").reshape(6, 3) ** 2
    return xr.Dataset(
        {
            "beta": (("trial", "voxel"), beta, {"units": "z", **attrs}),
            "stimulus_id": ("trial", text(shown or [IDS[0], IDS[1], "", IDS[3], IDS[0], IDS[1]])),
            "session": ("trial", text(session or ["s1"] * 4 + ["s2"] * 2)),
        }
    )


def tree(**parts: xr.Dataset | None) -> dict[str, xr.Dataset]:
    """A whole dataset, with these groups instead of or beside those it has: `root`, `stimuli`, `splits`, or a
    subject's; None: without it.
    """
    found: dict[str, xr.Dataset | None] = {
        "/": xr.Dataset(attrs={"bdflow_dataset": 1, "name": "small"}),
        "/stimuli": stimuli(),
        "/subjects/anna": subject(),
    }
    for name, part in parts.items():
        found[{"root": "/", "stimuli": "/stimuli", "splits": "/splits"}.get(name, f"/subjects/{name}")] = part
    return {name: part for name, part in found.items() if part is not None}


def write(path: Any, groups: Mapping[str, xr.Dataset], **more: Any) -> Any:
    """Write the groups as one hierarchy."""
    given = {"zarr_format": 3, "consolidated": False, "write_empty_chunks": True, **more}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        xr.DataTree.from_dict(dict(groups)).to_zarr(path, **given)
    return path


def opened(path: Path | str, **options: object) -> Arrays:
    return Arrays(DatasetSettings(kind="arrays", root=path, options=options))


def made(folder: Path, encoding: Any = None, **parts: xr.Dataset | None) -> Arrays:
    """The dataset of `tree`, written and opened."""
    return opened(write(folder / "own.zarr", tree(**parts), encoding=encoding))


def refused(data: Arrays, use: Callable[[Arrays], object]) -> str:
    """The words of the error of a use, which has all its parts, each time it is tried."""
    with pytest.raises(InputError) as first:
        use(data)
    with pytest.raises(InputError) as second:
        use(data)
    assert str(first.value) == str(second.value)
    assert faults(first.value) == []
    return str(first.value)


def changed(name: str, dims: tuple[str, ...], values: object, **attrs: object) -> xr.Dataset:
    """A subject with this array instead of its own."""
    return subject().assign({name: (dims, np.asarray(values), attrs)})


def placed(shape: object = (2, 2, 2), ijk: object = ([0, 1, 1], [0, 0, 1], [0, 0, 0]), **attrs: object) -> xr.Dataset:
    """A subject whose voxels have places."""
    part = subject().assign({name: ("voxel", np.array(values)) for name, values in zip("ijk", ijk, strict=True)})
    return part.assign_attrs({"shape": shape, **attrs} if shape else attrs)
