"""PixCorr and SSIM against the reference values and scikit-image."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from bdflow import metrics

REFERENCE = Path(__file__).parent / "reference/metrics_a.npz"


def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (40, 32, 3), np.uint8)
    return a, np.clip(a.astype(int) + rng.integers(-60, 60, a.shape), 0, 255).astype(np.uint8)


def test_reference_values():
    with np.load(REFERENCE) as reference:
        for i in range(len(reference["ground_truth"])):
            truth = reference["ground_truth"][i]
            picture = metrics.at_size(reference["reconstruction"][i], *truth.shape[:2])
            assert metrics.pixcorr(truth, picture) == pytest.approx(reference["pixcorr"][i], abs=1e-6)
            assert metrics.ssim(truth, picture) == pytest.approx(reference["ssim_paper"][i], abs=1e-6)
            assert metrics.ssim(truth, picture, "2d") == pytest.approx(reference["ssim_2d"][i], abs=1e-6)


def test_ssim_equals_scikit_image():
    a, b = images()
    grey = [image / 255 @ metrics.GREY for image in (a, b)]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    assert metrics.ssim(a, b, "2d") == pytest.approx(structural_similarity(*grey, **options))
    assert metrics.ssim(a, b, "paper") == pytest.approx(structural_similarity(*grey, channel_axis=-1, **options))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_identical_images_score_one_and_both_metrics_are_symmetric(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (2, 20, 20, 3), np.uint8)
    for score in metrics.pixel_metrics("paper").values():
        assert score(a, a) == pytest.approx(1)
        assert score(a, b) == pytest.approx(score(b, a))
        assert -1 <= score(a, b) < 1


def test_two_way_reference_and_chance():
    with np.load(REFERENCE) as reference:
        truth, found = reference["features_ground_truth"], reference["features_reconstruction"]
        assert metrics.two_way(truth, found).mean() == pytest.approx(float(reference["two_way"]), abs=1e-6)
    rng = np.random.default_rng(0)
    scores = [metrics.two_way(*rng.normal(size=(2, 40, 3, 5))).mean() for _ in range(30)]
    assert abs(np.mean(scores) - 0.5) < 0.03
    assert metrics.two_way(truth, truth).min() == 1
    with pytest.raises(ValueError, match="two-way"):
        metrics.two_way(truth, found[:3])


def test_a_flat_picture_has_no_pixcorr():
    a, _ = images()
    assert np.isnan(metrics.pixcorr(a, np.full_like(a, 7)))


def test_what_cannot_be_is_refused():
    a, b = images()
    with pytest.raises(ValueError, match="protocol"):
        metrics.ssim(a, b, "3d")
    with pytest.raises(ValueError, match="above 10 px"):
        metrics.ssim(a[:10], b[:10])
