"""Noise ceilings: conversion between units, and estimates from repeated stimuli against NSD's definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdflow.datasets.ceilings import ncsnr_of, noise_ceiling
from bdflow.datasets.contract import NoiseCeiling
from bdflow.errors import InputError
from bdflow.study.noise_ceilings import ncsnr_of_repeats


def by_nsd(values: np.ndarray, stimulus: np.ndarray) -> np.ndarray:
    """As NSD's paper has it, for betas of variance 1 and as many repeats of each stimulus: written out."""
    groups = [values[stimulus == one] for one in np.unique(stimulus)]
    noise = np.mean([group.var(axis=0, ddof=1) for group in groups], axis=0)
    return np.sqrt(np.maximum(values.var(axis=0, ddof=1) - noise, 0) / noise)


def planted(ncsnr: np.ndarray, stimuli: int, repeats: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(stimuli, ncsnr.size)) * ncsnr
    stimulus = rng.permutation(np.repeat(np.arange(stimuli), repeats))
    return signal[stimulus] + rng.normal(size=(stimulus.size, ncsnr.size)), stimulus


def test_estimates_are_nsds_definition_and_the_planted_truth():
    truth = np.array([0, 0.2, 0.5, 1, 2, 5])
    values, stimulus = planted(truth, 800, 3)
    found = ncsnr_of_repeats(values, np.ones(values.shape, bool), stimulus)
    np.testing.assert_allclose(found, by_nsd(values, stimulus), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found, truth, rtol=0.08, atol=0.12)


def test_names_of_stimuli_units_and_offsets_change_nothing():
    values, stimulus = planted(np.array([0.5, 1.5]), 40, 4)
    valid = np.ones(values.shape, bool)
    expected = ncsnr_of_repeats(values, valid, stimulus)
    named = np.array([f"a {9 - number}.jpg" for number in stimulus])
    np.testing.assert_allclose(ncsnr_of_repeats(300 * values + 4000, valid, named), expected, rtol=1e-5)
    order = np.random.default_rng(1).permutation(len(values))
    np.testing.assert_allclose(ncsnr_of_repeats(values[order], valid, stimulus[order]), expected, rtol=1e-5)


def test_what_is_no_measurement_enters_nothing():
    """A voxel with missing trials is what it is without these trials."""
    values, stimulus = planted(np.array([1.0]), 30, 4)
    valid = np.random.default_rng(2).random(values.shape) < 0.7
    spoilt = np.where(valid, values, 1e6)
    kept = valid[:, 0]
    expected = ncsnr_of_repeats(values[kept], valid[kept], stimulus[kept])
    np.testing.assert_allclose(ncsnr_of_repeats(spoilt, valid, stimulus), expected, rtol=1e-6)
    assert np.isfinite(expected).all()


def test_many_voxels_are_each_what_it_is_alone():
    values, stimulus = planted(np.linspace(0, 2, 1030), 12, 3)
    valid = np.random.default_rng(3).random(values.shape) < 0.9
    found = ncsnr_of_repeats(values, valid, stimulus)
    for voxel in (0, 511, 512, 1029):
        one = slice(voxel, voxel + 1)
        np.testing.assert_allclose(found[one], ncsnr_of_repeats(values[:, one], valid[:, one], stimulus), rtol=1e-6)


def test_what_cannot_be_estimated_is_not_a_number():
    valid = np.ones((4, 1), bool)
    once = np.array(["a", "b", "c", "d"])
    assert np.isnan(ncsnr_of_repeats(np.arange(4.0)[:, None], valid, once)).all(), "no repeats"
    twice = np.array(["a", "a", "b", "b"])
    assert np.isnan(ncsnr_of_repeats(np.ones((4, 1)), valid, twice)).all(), "nothing varies"
    assert np.isnan(ncsnr_of_repeats(np.arange(4.0)[:, None], ~valid, twice)).all(), "no measurement"
    assert np.isnan(ncsnr_of_repeats(np.zeros((0, 2)), np.ones((0, 2), bool), once[:0])).all()
    assert np.isposinf(ncsnr_of_repeats(np.array([[1.0], [1], [2], [2]]), valid, twice)).all(), "repeats do not differ"
    assert ncsnr_of_repeats(np.array([[1.0], [2], [1], [2]]), valid, twice).tolist() == [0]


@given(st.floats(0, 20), st.sampled_from([1, 2, 3, 4.42, 12]))
def test_units_are_converted_to_and_fro(ncsnr, repeats):
    mask = np.ones((1, 1, 1), bool)
    percent = noise_ceiling(np.array(ncsnr), repeats)
    assert percent == pytest.approx(100 * ncsnr**2 / (ncsnr**2 + 1 / repeats), rel=1e-9, abs=1e-9)
    for unit, values in (("percent", percent), ("fraction", percent / 100)):
        found = ncsnr_of(NoiseCeiling(np.full((1, 1, 1), values), unit, repeats), mask, "s")
        assert found == pytest.approx(ncsnr, rel=1e-4, abs=1e-6)
    assert ncsnr_of(NoiseCeiling(np.full((1, 1, 1), ncsnr), "ncsnr"), mask, "s") == pytest.approx(ncsnr, rel=1e-6)


def test_ends_of_the_scale():
    values = np.array([0.0, 100, np.nan]).reshape(3, 1, 1)
    found = ncsnr_of(NoiseCeiling(values, "percent", 3), np.ones((3, 1, 1), bool), "s")
    assert found[0] == 0
    assert np.isposinf(found[1])
    assert np.isnan(found[2])
    np.testing.assert_array_equal(noise_ceiling(found, 3), [0, 100, np.nan])


@pytest.mark.parametrize(
    ("ceiling", "words"),
    [
        (NoiseCeiling(np.full((2, 1, 1), -0.1), "ncsnr"), "2 values such as -0.1; expected 0 or more"),
        (NoiseCeiling(np.full((2, 1, 1), 100.5), "percent", 3), "0 to 100"),
        (NoiseCeiling(np.full((2, 1, 1), 20.0), "fraction", 3), "0 to 1"),
        (NoiseCeiling(np.full((2, 1, 1), np.inf), "ncsnr"), "such as inf"),
        (NoiseCeiling(np.full((2, 1, 1), 0.5), "fraction"), "without its number of repeats"),
    ],
)
def test_ceilings_that_are_none(ceiling, words):
    with pytest.raises(InputError, match=words):
        ncsnr_of(ceiling, np.ones((2, 1, 1), bool), "sub-01")
