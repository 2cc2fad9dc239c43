"""`score` on arrays and folders: planted pictures, references, what is matched with what, options, missing metrics."""

import numpy as np
import pytest
import torch
import xarray
from scipy.stats import pearsonr
from skimage.metrics import structural_similarity

import bdflow
from bdflow.metrics import image_metrics
from bdflow.metrics.statistics import estimate
from bdflow.models.judges.networks import load_panel
from bdflow.models.judges.weights import BUNDLE_CLIP
from tests.support.planted_pictures import planted, save

PIXELS = ("PixCorr", "SSIM")


@pytest.mark.parametrize("ssim", ["paper", "2d"])
def test_pixel_metrics_and_their_intervals_on_arrays(ssim):
    photos, made = planted()
    found = bdflow.score(photos, made, PIXELS, ssim=ssim)
    name = f"SSIM ({ssim})"
    assert list(found.values) == ["PixCorr", name]
    pairs = list(zip(photos, made, strict=True))
    expected = [pearsonr(a.ravel() / 255, b.ravel() / 255).statistic for a, b in pairs]
    np.testing.assert_allclose(found.values["PixCorr"], expected, rtol=1e-10)
    grey = [[(image / 255) @ image_metrics.GREY for image in pair] for pair in pairs]
    options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1.0}
    if ssim == "2d":
        expected = [structural_similarity(b, a, **options) for a, b in grey]
    else:
        columns = [zip(a.T, b.T, strict=True) for a, b in grey]
        expected = [np.mean([structural_similarity(b, a, **options) for a, b in pair]) for pair in columns]
    np.testing.assert_allclose(found.values[name], expected, rtol=1e-6)
    assert found.estimates[name] == estimate(found.values[name])
    assert found.to_dict()["PixCorr"]["n"] == 5
    assert f"{found.estimates[name].mean:.3f}" in found.table()


def test_photos_themselves_score_best_and_shuffled_ones_by_chance():
    photos, _ = planted(n=30)
    metrics = (*PIXELS, BUNDLE_CLIP)
    same = bdflow.score(photos, photos, metrics, bundle="tiny")
    assert {metric: e.mean for metric, e in same.estimates.items()} == pytest.approx(
        {"PixCorr": 1, "SSIM (paper)": 1, BUNDLE_CLIP: 1}
    )
    assert same.notices == ("30 of 30 pictures are their photos, pixel by pixel",)
    shuffled = bdflow.score(photos, np.roll(photos, 7, axis=0), metrics, bundle="tiny")
    assert abs(shuffled.estimates["PixCorr"].mean) < 0.02
    low, high = shuffled.estimates[BUNDLE_CLIP][1:3]
    assert low < 0.5 < high, "chance"


@pytest.mark.parametrize("distractors", ["photos", "reconstructions"])
def test_identification_follows_from_its_definition(distractors):
    photos, made = planted(n=6)
    found = bdflow.score(photos, made, [], bundle="tiny", distractors=distractors, batch_size=4)
    panel = load_panel({}, "tiny")
    a, b = (panel(images)[BUNDLE_CLIP].numpy() for images in (photos, made))
    (name,) = found.values
    assert name == BUNDLE_CLIP + ("" if distractors == "photos" else " (among reconstructions)")
    np.testing.assert_array_equal(found.values[name], image_metrics.two_way(a, b, distractors))


def test_several_pictures_of_a_stimulus(tmp_path):
    """PixCorr and SSIM are means over them; correlations with photos are averaged before they are compared."""
    photos, made = planted(n=6)
    both = np.stack([made, np.roll(made, 1, axis=0)], axis=1)
    metrics = (*PIXELS, BUNDLE_CLIP)
    found = bdflow.score(photos, both, metrics, bundle="tiny")
    each = [bdflow.score(photos, both[:, k], PIXELS) for k in (0, 1)]
    for metric in each[0].values:
        np.testing.assert_allclose(found.values[metric], np.mean([one.values[metric] for one in each], axis=0))
    panel = load_panel({}, "tiny")
    a = panel(photos)[BUNDLE_CLIP].numpy()
    b = np.stack([panel(np.ascontiguousarray(both[:, k]))[BUNDLE_CLIP].numpy() for k in (0, 1)], axis=1)
    np.testing.assert_array_equal(found.values[BUNDLE_CLIP], image_metrics.two_way(a, b))
    first = bdflow.score(photos, both, PIXELS, select="first")
    np.testing.assert_array_equal(first.values["PixCorr"], each[0].values["PixCorr"])
    names = [f"face{i}_{k}" for i in range(6) for k in (0, 1)]
    folders = save(tmp_path / "p", photos), save(tmp_path / "r", both.reshape(12, *photos.shape[1:]), names=names)
    in_files = bdflow.score(*folders, metrics, bundle="tiny")
    assert in_files.only.pictures == 2
    for metric, values in found.values.items():
        np.testing.assert_array_equal(in_files.values[metric], values)


def test_metrics_without_weights_are_missing_with_the_reason(tmp_path):
    found = bdflow.score(*planted(), weights=tmp_path)
    assert set(found.missing) == {"AlexNet(2)", "AlexNet(5)", "Inception", "CLIP", "EffNet-B", "SwAV"}
    assert all("no weights" in why and str(tmp_path) in why for why in found.missing.values())
    (line,) = [line for line in found.table().splitlines() if line.startswith("missing")]
    assert "AlexNet(2), AlexNet(5), Inception, CLIP, EffNet-B, SwAV: the weights" in line
    assert "CLIP (among reconstructions)" in bdflow.score(*planted(), distractors="reconstructions").missing
    every = bdflow.score(*planted(), "takagi,PixCorr")
    assert len(every.missing) == 7
    assert list(every.values) == ["PixCorr"]


def test_folders_are_matched_by_name_and_pictures_resized(tmp_path):
    photos, made = planted()
    small = np.stack([image_metrics.at_size(image, 16, 16) for image in made])
    names = [f"face{i}" for i in (3, 1, 4, 0, 2)]
    folders = save(tmp_path / "photos", photos), save(tmp_path / "made", small[[3, 1, 4, 0, 2]], ".PNG", names)
    found = bdflow.score(*folders, metrics="PixCorr")
    assert found.names == ("face0", "face1", "face2", "face3", "face4")
    back = [image_metrics.at_size(image, 24, 24) for image in small]
    expected = [image_metrics.pixcorr(a, b) for a, b in zip(photos, back, strict=True)]
    np.testing.assert_array_equal(found.values["PixCorr"], expected)
    at = bdflow.score(*folders, metrics="PixCorr", size=16)
    expected = [image_metrics.pixcorr(image_metrics.at_size(a, 16, 16), b) for a, b in zip(photos, small, strict=True)]
    np.testing.assert_array_equal(at.values["PixCorr"], expected)


def test_a_folder_for_each_subject(tmp_path):
    photos, made = planted()
    shown = save(tmp_path / "photos", photos)
    for k, subject in enumerate(("subj01", "subj02")):
        save(tmp_path / "made" / subject, np.roll(made, k, axis=0))
    found = bdflow.score(shown, tmp_path / "made", PIXELS)
    assert list(found.sets) == ["subj01", "subj02"]
    for k, one in enumerate(found.sets.values()):
        expected = bdflow.score(photos, np.roll(made, k, axis=0), PIXELS)
        np.testing.assert_array_equal(one.values["PixCorr"], expected.values["PixCorr"])
    assert found.table().splitlines()[1].startswith("subj01")
    with pytest.raises(bdflow.InputError, match="2 sets of pictures"):
        found.values
    next((tmp_path / "made/subj02").iterdir()).unlink()
    with pytest.raises(bdflow.InputError, match="without a picture"):
        bdflow.score(shown, tmp_path / "made", PIXELS)
    loose = bdflow.score(shown, tmp_path / "made", PIXELS, subset=True)
    assert [len(one.stimuli) for one in loose.sets.values()] == [5, 4]
    assert any("do not show the same stimuli" in notice for notice in loose.notices)


def test_a_subset_is_scored_when_asked_for(tmp_path):
    photos, made = planted()
    folders = save(tmp_path / "photos", photos), save(tmp_path / "made", made[:3])
    found = bdflow.score(*folders, PIXELS, subset=True)
    np.testing.assert_array_equal(found.values["PixCorr"], bdflow.score(photos[:3], made[:3], PIXELS).values["PixCorr"])
    assert "2 photos without a picture left out" in found.notices


def test_arrays_of_torch_and_xarray():
    photos, made = planted()
    expected = bdflow.score(photos, made, PIXELS).values["PixCorr"]
    tensors = [torch.from_numpy(images / np.float32(255)).permute(0, 3, 1, 2) for images in (photos, made)]
    np.testing.assert_array_equal(bdflow.score(*tensors, PIXELS).values["PixCorr"], expected)
    ids = [f"s{i}" for i in range(5)]
    arrays = [xarray.DataArray(v, dims=("stimulus", "y", "x", "rgb")) for v in (photos, made[::-1])]
    named = [arrays[0].assign_coords(stimulus_id=("stimulus", ids))]
    named.append(arrays[1].assign_coords(stimulus_id=("stimulus", ids[::-1])))
    found = bdflow.score(*named, PIXELS)
    assert found.names == tuple(ids)
    np.testing.assert_array_equal(found.values["PixCorr"], expected)


def test_results_do_not_depend_on_batches_or_threads():
    photos, made = planted(n=7)
    metrics = (*PIXELS, BUNDLE_CLIP)
    whole = bdflow.score(photos, made, metrics, bundle="tiny")
    parts = bdflow.score(photos, made, metrics, bundle="tiny", batch_size=3, threads=1)
    for metric, values in whole.values.items():
        np.testing.assert_allclose(parts.values[metric], values, atol=1e-6)


def test_sets_with_like_pictures_are_told_in_one_line(tmp_path):
    photos, made = planted(6)
    save(tmp_path / "photos", photos)
    for name, times in (("a", 3), ("b", 5), ("c", 1)):
        save(tmp_path / "pictures" / name, np.concatenate([np.repeat(made[:1], times, axis=0), made[times:]]))
    found = bdflow.score(tmp_path / "photos", tmp_path / "pictures", ("PixCorr",))
    assert found.notices == ("2 to 4 of 6 pictures in a, b are the same as another picture",)


def test_exchanged_colours_are_noticed():
    photos, made = planted()
    assert bdflow.score(photos, made, PIXELS).notices == ()
    (notice,) = bdflow.score(photos, made[..., ::-1], PIXELS).notices
    assert "BGR" in notice


def test_a_flat_picture_has_no_correlation_and_this_is_said():
    photos, made = planted()
    made[2] = 90
    found = bdflow.score(photos, made, PIXELS)
    assert np.isnan(found.values["PixCorr"][2])
    assert found.estimates["PixCorr"].n == 4
    assert any("PixCorr is not defined for 1 of 5 stimuli" in notice for notice in found.notices)
