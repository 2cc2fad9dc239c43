"""The sample of a lab's tree, copies of it to spoil, and datasets of either."""

import shutil
from pathlib import Path

import pytest

from bdflow.config import DatasetSettings
from bdflow.datasets.glmsingle import GLMsingle
from bdflow.errors import InputError
from tests.support.messages import faults

SAMPLE = Path(__file__).parents[2] / "samples/glmsingle_bids"


@pytest.fixture(scope="session")
def sample() -> Path:
    return SAMPLE


@pytest.fixture
def root(tmp_path) -> Path:
    """A copy of the sample to spoil."""
    return Path(shutil.copytree(SAMPLE, tmp_path / "lab"))


@pytest.fixture(scope="session")
def dataset():
    """The dataset below a root, with these options."""

    def make(root, **options) -> GLMsingle:
        return GLMsingle(DatasetSettings(kind="glmsingle", root=root, options=options))

    return make


@pytest.fixture(scope="session")
def refused():
    """What is called raises an InputError with all these words, all its parts and no repr of Python's."""

    def check(call, *words) -> InputError:
        with pytest.raises(InputError) as error:
            call()
        for word in (*words, "found", "xpected", "What to do"):
            assert str(word) in str(error.value), (word, str(error.value))
        assert faults(error.value) == []
        return error.value

    return check
