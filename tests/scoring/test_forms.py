"""Every form in which pictures come gives the same scores: folders, .npy, .npz, tensors, safetensors, Zarr, stores."""

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from safetensors.torch import save_file

import bdflow
from bdflow.scoring.folders import decode
from tests.support.planted_pictures import planted, save

PHOTOS, MADE = planted()
IDS = [f"face{i}" for i in range(5)]


def first(images: np.ndarray) -> np.ndarray:
    """Colours first."""
    return np.ascontiguousarray(np.moveaxis(images, -1, 1))


def floats(images: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    return (first(images) / 255).astype(dtype)


def write_pt(path: Path, images: np.ndarray) -> str:
    torch.save(torch.from_numpy(floats(images)), path.with_suffix(".pt"))
    return str(path.with_suffix(".pt"))


def write_half(path: Path, images: np.ndarray) -> str:
    torch.save(torch.from_numpy(floats(images)).half(), path.with_suffix(".pt"))
    return str(path.with_suffix(".pt"))


def write_old_pt(path: Path, images: np.ndarray) -> str:
    file = path.with_suffix(".pt")
    torch.save(torch.from_numpy(floats(images)), file, _use_new_zipfile_serialization=False)
    return str(file)


def write_view(path: Path, images: np.ndarray) -> str:
    """What `tensor[1:]` of a larger one and a permutation of axes leave in a file."""
    wide = torch.from_numpy(np.concatenate([images[:1], images]))
    torch.save(wide[1:].permute(0, 3, 1, 2), path.with_suffix(".pt"))
    return str(path.with_suffix(".pt"))


def write_dictionary(path: Path, images: np.ndarray) -> str:
    tensors = {"recons": torch.from_numpy(floats(images)), "clip": torch.zeros(5, 2)}
    torch.save(tensors, path.with_suffix(".pt"))
    return f"{path.with_suffix('.pt')}:recons"


def write_safetensors(path: Path, images: np.ndarray) -> str:
    save_file({"images": torch.from_numpy(images)}, path.with_suffix(".safetensors"))
    return str(path.with_suffix(".safetensors"))


def write_npy(path: Path, images: np.ndarray) -> str:
    np.save(path.with_suffix(".npy"), images)
    return str(path.with_suffix(".npy"))


def write_fortran(path: Path, images: np.ndarray) -> str:
    np.save(path.with_suffix(".npy"), np.asfortranarray(floats(images, np.float64)))
    return str(path.with_suffix(".npy"))


def write_npz(path: Path, images: np.ndarray) -> str:
    np.savez(path.with_suffix(".npz"), images=images)
    return str(path.with_suffix(".npz"))


def write_zarr(path: Path, images: np.ndarray) -> str:
    group = zarr.open_group(str(path.with_suffix(".zarr")), mode="w")
    group.create_array("images", data=images, chunks=(2, 24, 24, 3))
    return f"{path.with_suffix('.zarr')}/images"


def write_zarr_2(path: Path, images: np.ndarray) -> str:
    group = zarr.open_group(str(path.with_suffix(".zarr")), mode="w", zarr_format=2)
    group.create_array("pictures", data=floats(images))
    return str(path.with_suffix(".zarr"))


ORDERED = [
    write_pt, write_half, write_old_pt, write_view, write_dictionary, write_safetensors, write_npy, write_fortran,
    write_npz, write_zarr, write_zarr_2,
]  # fmt: skip


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return bdflow.score(PHOTOS, MADE, "PixCorr").values["PixCorr"]


@pytest.mark.parametrize("write", ORDERED)
def test_arrays_in_files(write, expected, tmp_path):
    found = bdflow.score(write(tmp_path / "all_images", PHOTOS), write(tmp_path / "recons", MADE), "PixCorr")
    np.testing.assert_array_equal(found.values["PixCorr"], expected)


def test_arrays_with_ids_are_matched_by_id(expected, tmp_path):
    shown = save(tmp_path / "photos", PHOTOS)
    order = [3, 0, 4, 1, 2]
    np.savez(tmp_path / "made.npz", pictures=MADE[order], stimulus_id=[IDS[i] for i in order])
    group = zarr.open_group(str(tmp_path / "made.zarr"), mode="w")
    group.create_array("image", data=MADE[order])
    group.create_array("stimulus_id", data=np.array([IDS[i] for i in order], np.dtypes.StringDType()))
    for made in ("made.npz", "made.zarr", "made.zarr/image"):
        found = bdflow.score(shown, tmp_path / made, "PixCorr")
        np.testing.assert_array_equal(found.values["PixCorr"], expected)


@pytest.mark.parametrize(("scale", "low", "high"), [("-1..1", -1, 1), ("0..255", 0, 255)])
def test_other_scales_are_read_when_they_are_named(scale, low, high, expected):
    made = (MADE / 255 * (high - low) + low).astype(np.float32)
    found = bdflow.score(PHOTOS, made, "PixCorr", pictures_range=scale)
    np.testing.assert_array_equal(found.values["PixCorr"], expected)


def test_files_of_every_plain_kind_are_read_as_rgb(tmp_path):
    grey = PHOTOS[0, :, :, 0]
    image = Image.fromarray(grey)
    opaque = np.dstack([PHOTOS[0], np.full(grey.shape, 255, np.uint8)])
    for number, (kind, want) in enumerate(
        [
            (image, np.dstack([grey] * 3)),
            (image.convert("1"), np.array(image.convert("1").convert("RGB"))),
            (Image.fromarray(opaque, "RGBA"), PHOTOS[0]),
            (image.convert("P"), np.dstack([grey] * 3)),
        ]
    ):
        kind.save(tmp_path / f"{number}.png")
        np.testing.assert_array_equal(decode((tmp_path / f"{number}.png").read_bytes(), "x"), want)
