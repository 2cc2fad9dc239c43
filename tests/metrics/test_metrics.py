"""The metrics against the reference values and scikit-image; statistics against planted truths."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, pearsonr
from skimage.metrics import structural_similarity

from bdflow.metrics import image_metrics, statistics
from bdflow.regression.average import mean_prediction

REFERENCE = Path(__file__).parents[1] / "reference/metrics_a.npz"


def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (40, 32, 3), np.uint8)
    return a, np.clip(a.astype(int) + rng.integers(-60, 60, a.shape), 0, 255).astype(np.uint8)


def test_every_value_of_the_reference_file():
    with np.load(REFERENCE) as reference:
        used = set()
        for i in range(len(reference["ground_truth"])):
            truth = reference["ground_truth"][i]
            picture = image_metrics.at_size(reference["reconstruction"][i], *truth.shape[:2])
            for name, found in (
                ("pixcorr", image_metrics.pixcorr(truth, picture)),
                ("ssim_paper", image_metrics.ssim(truth, picture)),
                ("ssim_2d", image_metrics.ssim(truth, picture, "2d")),
            ):
                assert found == pytest.approx(reference[name][i], abs=1e-6)
                used.add(name)
        truth, made = reference["features_ground_truth"], reference["features_reconstruction"]
        assert image_metrics.two_way(truth, made).mean() == pytest.approx(float(reference["two_way"]), abs=1e-6)
        distance = image_metrics.correlation_distance(truth, made)
        expected = reference["correlation_distance"]
        assert np.mean(distance) == pytest.approx(np.mean(expected), abs=1e-6)
        if expected.ndim:
            np.testing.assert_allclose(distance, expected, atol=1e-6, rtol=0)
        inputs = {"ground_truth", "reconstruction", "features_ground_truth", "features_reconstruction"}
        assert set(reference) == used | inputs | {"two_way", "correlation_distance"}


def test_ssim_equals_scikit_image():
    a, b = images()
    grey = [image / 255 @ image_metrics.GREY for image in (a, b)]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    assert image_metrics.ssim(a, b, "2d") == pytest.approx(structural_similarity(*grey, **options))
    assert image_metrics.ssim(a, b, "paper") == pytest.approx(structural_similarity(*grey, channel_axis=-1, **options))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_identical_images_score_one_and_both_metrics_are_symmetric(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (2, 20, 20, 3), np.uint8)
    for score in (image_metrics.pixcorr, image_metrics.ssim, lambda x, y: image_metrics.ssim(x, y, "2d")):
        assert score(a, a) == pytest.approx(1, abs=1e-12)
        assert score(a, b) == pytest.approx(score(b, a))
        assert -1 <= score(a, b) < 1


@pytest.mark.parametrize("rows", [1, 7, 32])
@pytest.mark.parametrize(
    "score",
    [image_metrics.pixcorr, image_metrics.ssim, lambda a, b: image_metrics.ssim(a, b, "2d")],
    ids=["pixcorr", "ssim", "ssim 2d"],
)
def test_no_bit_depends_on_the_rows_that_are_worked_on_at_once(monkeypatch, rows, score):
    a, b = images()
    monkeypatch.setattr(image_metrics, "BLOCK_ROWS", len(a))
    whole = score(a, b)
    monkeypatch.setattr(image_metrics, "BLOCK_ROWS", rows)
    assert score(a, b) == whole


def test_pixcorr_is_the_correlation_of_all_values():
    a, b = images()
    assert image_metrics.pixcorr(a, b) == pytest.approx(np.corrcoef(a.ravel() / 255, b.ravel() / 255)[0, 1], abs=1e-12)


@pytest.mark.parametrize("distractors", ["photos", "reconstructions"])
def test_two_way_counts_what_its_rule_says(distractors):
    rng = np.random.default_rng(0)
    truth, made = rng.normal(size=(2, 12, 4, 5))
    found = image_metrics.two_way(truth, made, distractors)
    for i in range(12):
        lower = 0
        for j in range(12):
            pair = (truth[j], made[i]) if distractors == "photos" else (truth[i], made[j])
            other, own = (np.corrcoef(p.ravel(), q.ravel())[0, 1] for p, q in (pair, (truth[i], made[i])))
            lower += other < own and i != j
        assert found[i] == pytest.approx(lower / 11)
    assert image_metrics.two_way(truth, truth, distractors).min() == 1


@pytest.mark.parametrize("distractors", ["photos", "reconstructions"])
def test_shuffled_pairs_are_at_chance_within_the_interval(distractors):
    """Each seed's 95% interval should hold 0.5: of 40 seeds at least 33 do (fewer: p < 0.005 if it is right)."""
    covered = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=(200, 30))
        made = (truth + 0.1 * rng.normal(size=truth.shape))[rng.permutation(len(truth))]
        found = statistics.estimate(image_metrics.two_way(truth, made, distractors), seed)
        covered.append(found.low <= 0.5 <= found.high)
        assert abs(found.mean - 0.5) < 0.1
    assert sum(covered) >= 33


def test_correlation_distance_of_the_same_the_opposite_and_the_unrelated():
    a = np.random.default_rng(0).normal(size=(6, 3, 1000))
    np.testing.assert_allclose(image_metrics.correlation_distance(a, 7 * a + 2), 0, atol=1e-12)
    np.testing.assert_allclose(image_metrics.correlation_distance(a, -a), 2)
    assert np.abs(image_metrics.correlation_distance(a[:-1], a[1:]) - 1).max() < 0.1


def test_unit_features_are_the_same_in_numpy_and_torch():
    a = np.random.default_rng(0).normal(3, 2, size=(5, 7, 11)).astype(np.float32)
    here, there = image_metrics.unit(a), image_metrics.unit(torch.from_numpy(a)).numpy()
    np.testing.assert_allclose(here, there, atol=1e-6)
    np.testing.assert_allclose(here @ here.T, np.corrcoef(a.reshape(5, -1)), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
def test_constant_features_have_no_correlation_whatever_rounding_leaves(dtype, to):
    """The mean of 1000 times 0.1 is not 0.1: what is left would have length 1, and correlate."""
    values = np.concatenate([np.full((1, 1000), c) for c in (0, 0.1, 1 / 3, 2.7, 123.456)]).astype(dtype)
    varied = np.random.default_rng(0).normal(size=(1, 1000)).astype(dtype)
    found = np.asarray(image_metrics.unit(to(np.concatenate([values, varied]))))
    assert np.isnan(found[:-1]).all()
    assert np.square(found[-1]).sum() == pytest.approx(1, abs=1e-5)
    each = np.concatenate([values[:2], varied])
    assert np.isnan(image_metrics.correlation_distance(each, each)).tolist() == [True, True, False]


@pytest.mark.parametrize("distractors", ["photos", "reconstructions"])
def test_a_distractor_without_a_correlation_is_neither_beaten_nor_lost_to(distractors):
    photos = np.random.default_rng(0).normal(size=(4, 30))
    pictures = photos + np.random.default_rng(1).normal(scale=0.1, size=(4, 30))
    flat = pictures if distractors == "reconstructions" else photos
    flat[2] = 0.1
    np.testing.assert_array_equal(image_metrics.two_way(photos, pictures, distractors), [1, 1, np.nan, 1])
    flat[1] = flat[3] = 0.1
    assert np.isnan(image_metrics.two_way(photos, pictures, distractors)).all(), "no distractor is left"


def test_a_picture_that_no_network_tells_from_a_flat_one_has_no_identification():
    correlation = np.array([[0.5, 0.1], [np.nan, np.nan]])
    np.testing.assert_array_equal(image_metrics.identification(correlation), [1, np.nan])
    np.testing.assert_array_equal(image_metrics.identification(correlation, "reconstructions"), [np.nan, np.nan])


def test_a_flat_picture_has_no_pixcorr():
    a, _ = images()
    assert np.isnan(image_metrics.pixcorr(a, np.full_like(a, 7)))


def test_what_cannot_be_is_refused():
    a, b = images()
    with pytest.raises(ValueError, match="protocol"):
        image_metrics.ssim(a, b, "3d")
    with pytest.raises(ValueError, match="above 10 px"):
        image_metrics.ssim(a[:10], b[:10])
    with pytest.raises(ValueError, match="two-way"):
        image_metrics.two_way(np.ones((3, 2)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="distractors"):
        image_metrics.identification(np.eye(3), "others")
    with pytest.raises(ValueError, match="distances"):
        image_metrics.correlation_distance(np.ones((3, 2)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="paired"):
        statistics.difference(np.ones(3), np.ones(2))


# --- statistics -----------------------------------------------------------------------------------------------------


def test_the_interval_is_about_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(2, 3, size=900)
    found = statistics.estimate(values)
    assert found.mean == pytest.approx(values.mean())
    assert [found.low - found.mean, found.high - found.mean] == pytest.approx([-0.196, 0.196], rel=0.15)
    assert statistics.estimate(values) == found
    holed = np.append(values, np.nan)
    assert statistics.estimate(holed).mean == pytest.approx(found.mean)
    assert statistics.estimate(holed).n == 900


def test_an_interval_needs_two_scores_and_spread():
    assert np.isnan(statistics.estimate(np.full(4, np.nan))).tolist() == [True, True, True, False]
    one = statistics.estimate(np.array([0.3, np.nan]))
    assert (one.mean, one.n) == (0.3, 1)
    assert np.isnan(one.low)
    assert statistics.estimate(np.full(5, 0.25)) == (0.25, 0.25, 0.25, 5)


def test_the_paired_test_finds_a_difference_and_is_right_about_none():
    rng = np.random.default_rng(2)
    a = rng.normal(size=300)
    assert statistics.difference(a + 0.2 + 0.3 * rng.normal(size=300), a).p <= 0.001
    p = [statistics.difference(a, a + 0.3 * rng.normal(size=300), seed).p for seed in range(60)]
    assert 0.3 < np.mean(p) < 0.7
    assert np.mean(np.array(p) < 0.1) < 0.25
    holed = a.copy()
    holed[:10] = np.nan
    assert statistics.difference(holed, a).n == 290
    assert statistics.difference(a, a).p == 1


# --- the mean of subjects -------------------------------------------------------------------------------------------


def test_the_mean_prediction_is_scored_as_any_other():
    rng = np.random.default_rng(3)
    true = rng.normal(2, 3, size=(40, 2, 5)).astype(np.float32)
    each = [true + rng.normal(size=true.shape) for _ in range(4)]
    true[:, 0, 0] = 1
    means, scales = ([np.full((2, 5), first + s) for s in range(4)] for first in (0, 1))
    found = mean_prediction(each, means, scales, true)
    mean = np.mean(each, axis=0)
    np.testing.assert_allclose(found["latent"], mean, rtol=1e-6)
    np.testing.assert_allclose(found["prediction_std"], mean.std(0), rtol=1e-5)
    assert (found["train_mean"] == 1.5).all()
    assert (found["train_std"] == 2.5).all()
    r = np.corrcoef(mean[:, 1, 2], true[:, 1, 2])[0, 1]
    assert found["pearson_r"][1, 2] == pytest.approx(r, abs=1e-5)
    r2 = 1 - np.square(mean - true).sum(0)[1, 2] / np.square(true - true.mean(0)).sum(0)[1, 2]
    assert found["r2"][1, 2] == pytest.approx(r2, abs=1e-4)
    assert np.isnan([found["pearson_r"][0, 0], found["r2"][0, 0]]).all()
    assert {values.dtype for values in found.values()} == {np.dtype("float32")}


@pytest.mark.parametrize("feature", ["inception", "alexnet5", "clip", "clip_h6"])
def test_several_pictures_of_a_photo_are_identified_as_takagi_and_nishimoto_do(feature):
    """The photo is fixed, the distractors are pictures, and correlations are means over the pictures of an item."""
    stored = np.load(REFERENCE.with_name("takagi_identification_a.npz"))
    truth, pictures = stored[f"{feature}.truth"], stored[f"{feature}.generated"]
    expected = stored[f"{feature}.correlation"].mean(axis=2)  # photo, item
    np.testing.assert_allclose(image_metrics.correlations(truth, pictures), expected.T, atol=1e-6)
    found = image_metrics.two_way(truth, pictures, "reconstructions")
    np.testing.assert_allclose(found, stored[f"{feature}.accuracy_per_image"], atol=1e-12)
    assert found.mean() == pytest.approx(float(stored[f"{feature}.accuracy"]))
    reverse = image_metrics.two_way(truth, pictures, "photos")
    assert (reverse != found).any(), "the other rule is another measure"


def test_one_picture_each_is_the_usual_protocol():
    rng = np.random.default_rng(0)
    truth, made = rng.normal(size=(2, 6, 3, 4))
    for rule in ("photos", "reconstructions"):
        one = image_metrics.two_way(truth, made, rule)
        np.testing.assert_array_equal(image_metrics.two_way(truth, made[:, None], rule), one)
        np.testing.assert_allclose(image_metrics.two_way(truth, np.stack([made] * 3, axis=1), rule), one)
    with pytest.raises(ValueError, match="among"):
        image_metrics.two_way(truth, made[:, :0][:, None])


@pytest.mark.parametrize("n", [3, 5, 50, 982])
def test_p_of_a_correlation_is_scipys(n):
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((2, 40, n))
    r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)])
    expected = [pearsonr(a, b, alternative="greater").pvalue for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(statistics.correlation_p(r, n), expected, rtol=1e-6)


def test_p_of_a_correlation_is_how_often_gaussian_vectors_have_one_as_high():
    """20,000 pairs, one of each pair the same skewed vector, as predictions may be."""
    rng = np.random.default_rng(0)
    x, y = rng.exponential(size=30), rng.standard_normal((20_000, 30))
    x = (x - x.mean()) / np.linalg.norm(x - x.mean())
    y -= y.mean(axis=1, keepdims=True)
    p = statistics.correlation_p(y @ x / np.linalg.norm(y, axis=1), 30)
    for level in (0.01, 0.05, 0.5, 0.9):
        assert abs((p < level).mean() - level) < 4 * np.sqrt(level * (1 - level) / len(y))


def test_p_of_what_says_nothing_is_not_a_number():
    found = statistics.correlation_p(np.array([1.0, -1.0, 0.0, np.nan]), 10)
    np.testing.assert_allclose(found, [0, 1, 0.5, np.nan])
    assert np.isnan(statistics.correlation_p(np.array([1.0, 0.3]), 2)).all()


def test_false_discoveries_are_as_many_as_asked_for():
    """In 400 families of 20 true effects and 80 of none, what passes at 5% is false as often as Benjamini and Hochberg
    say: in 4% (5% times the share of no effect).
    """
    rng = np.random.default_rng(1)
    p = rng.random((400, 100))
    p[:, :20] = norm.sf(rng.standard_normal((400, 20)) + 3)
    passed = np.array([statistics.false_discovery_q(family) < 0.05 for family in p])
    false = passed[:, 20:].sum(axis=1) / np.maximum(passed.sum(axis=1), 1)
    assert abs(false.mean() - 0.04) < 4 * false.std() / np.sqrt(len(false))
    assert passed[:, :20].mean() > 0.5


def test_q_by_the_definition_and_without_what_is_not_a_number():
    p = np.array([0.04, np.nan, 0.001, 0.9, 0.03, np.nan])
    sizes = [sum(other <= limit for other in p) for limit in p]
    steps = {limit: limit * 4 / size for limit, size in zip(p, sizes, strict=True)}
    expected = [min(step for limit, step in steps.items() if limit >= one) if one == one else np.nan for one in p]
    np.testing.assert_allclose(statistics.false_discovery_q(p), expected)
    assert np.isnan(statistics.false_discovery_q(np.full(3, np.nan))).all()
