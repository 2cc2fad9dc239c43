"""Patterns in another unit decode to something: what is far too large or too even is said in the log."""

import numpy as np
import pytest

from bdflow.study.decoder import warn_of_units


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (300, "SDs from the mean"),
        (1, ""),
        (0.2, ""),
        (1 / 100, "change by less than 0.03"),
        (1 / 300, "nearly"),
    ],
)
def test_patterns_in_another_unit(scale, said, caplog):
    """`decode` z-scores by the training rows; voxels that are left out are 0."""
    rng = np.random.default_rng(0)
    mean, used = rng.normal(0.5, 1, 40), np.arange(40) < 30
    percent = mean + rng.normal(size=(5, 40))
    z_scored = np.where(used, percent * scale - mean, 0).astype(np.float32)
    warn_of_units("subj01", z_scored, "percent signal change")
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


def test_one_pattern_or_none_has_no_spread(caplog):
    for number in (0, 1):
        warn_of_units("subj01", np.ones((number, 4), np.float32), "z")
    warn_of_units("subj01", np.zeros((3, 4), np.float32), "z")
    assert not caplog.text
