"""Keyed noise: the same item, the same draws, whatever came before and wherever it is drawn."""

import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from bdflow import random

KEYS = st.tuples(st.integers(0, 5), st.sampled_from(["prior", "posterior"]), st.integers(0, 5))


@given(KEYS, KEYS)
@settings(max_examples=100, deadline=None)
def test_draws_are_equal_exactly_when_keys_are(a, b):
    same = np.array_equal(random.normal((4,), *a), random.normal((4,), *b))
    assert same == (a == b)


def test_numbers_and_their_text_are_different_keys():
    assert not np.array_equal(random.normal((4,), 0, "p", 1, 2), random.normal((4,), 0, "p", "1", 2))
    assert not np.array_equal(random.normal((4,), 0, "p", 1, 23), random.normal((4,), 0, "p", 12, 3))


def test_another_process_draws_the_same():
    code = "from bdflow import random; print(random.normal((3,), 7, 'prior', 'subj01', 42).tobytes().hex())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == random.normal((3,), 7, "prior", "subj01", 42).tobytes().hex()


def test_distributions():
    normal = np.concatenate([random.normal((100,), 0, "p", i) for i in range(100)])
    uniform = np.concatenate([random.uniform((100,), 0, "p", i) for i in range(100)])
    assert normal.dtype == uniform.dtype == np.float32
    assert kstest(normal, "norm").pvalue > 0.01
    assert kstest(uniform, "uniform").pvalue > 0.01
