"""`score`: the metrics on arrays and on folders of pictures."""

import numpy as np
import pytest
from PIL import Image

import bdflow
from bdflow.metrics import image_metrics
from bdflow.metrics.statistics import estimate


@pytest.fixture
def images(monkeypatch, tmp_path):
    for name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (5, 40, 40, 3), np.uint8)
    return photos, np.clip(photos + rng.integers(0, 60, photos.shape), 0, 255).astype(np.uint8)


def save(folder, images, suffix):
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"face{number}{suffix}")
    return folder


@pytest.mark.parametrize("ssim", ["paper", "2d"])
def test_pixel_metrics_and_their_intervals_on_arrays(images, ssim):
    photos, made = images
    found = bdflow.score(photos, made, ("PixCorr", "SSIM"), ssim=ssim)
    name = f"SSIM ({ssim})"
    assert list(found.values) == ["PixCorr", name]
    pairs = list(zip(photos, made, strict=True))
    np.testing.assert_array_equal(found.values["PixCorr"], [image_metrics.pixcorr(a, b) for a, b in pairs])
    np.testing.assert_array_equal(found.values[name], [image_metrics.ssim(a, b, ssim) for a, b in pairs])
    assert found.estimates[name] == estimate(found.values[name])
    assert found.to_dict()["PixCorr"]["n"] == 5
    assert f"{name:12}".strip() in found.table()


def test_metrics_without_weights_are_missing_with_the_reason(images, tmp_path):
    found = bdflow.score(*images, weights=tmp_path)
    assert set(found.missing) == {"AlexNet(2)", "AlexNet(5)", "Inception", "CLIP", "EffNet-B", "SwAV"}
    assert all("no weights" in why for why in found.missing.values())
    assert "missing: no weights" in found.table()
    assert "CLIP (among reconstructions)" in bdflow.score(*images, distractors="reconstructions").missing


def test_folders_are_matched_by_name(images, tmp_path):
    photos, made = images
    folders = save(tmp_path / "photos", photos, ".png"), save(tmp_path / "made", made, ".PNG")
    found = bdflow.score(*folders, metrics=("PixCorr",))
    assert found.names == ("face0", "face1", "face2", "face3", "face4")
    expected = bdflow.score(photos, made, ("PixCorr",))
    np.testing.assert_array_equal(found.values["PixCorr"], expected.values["PixCorr"])
    (folders[1] / "face3.PNG").unlink()
    with pytest.raises(bdflow.InputError, match="made named face3"):
        bdflow.score(*folders)


def test_what_cannot_be_scored_is_refused(images, tmp_path):
    photos, made = images
    for arguments, options, words in (
        ((photos, made[:-1]), {}, "one for each photo"),
        ((photos / 255, made), {}, "float64"),
        ((photos, tmp_path), {}, "two arrays, or two folders"),
        ((tmp_path, tmp_path), {}, "no pictures"),
        ((photos, made), {"metrics": ("FID",)}, "PixCorr"),
        ((photos, made), {"ssim": "3d"}, "paper, 2d"),
    ):
        with pytest.raises(bdflow.InputError, match=words):
            bdflow.score(*arguments, **options)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(bdflow.InputError, match="cannot be read"):
        bdflow.score(tmp_path, tmp_path)
