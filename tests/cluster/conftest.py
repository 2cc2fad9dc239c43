"""One executor of each kind for all tests here: starting Ray takes seconds."""

from collections.abc import Iterator

import pytest

from bdflow.cluster import Executor, Resources, open_executor

KINDS = ("serial", "dask", "ray")
REMOTE = ("dask", "ray")


@pytest.fixture(scope="package")
def opened() -> Iterator[dict[str, Executor]]:
    total = Resources(workers=4, threads=4, gpus=2, memory=8 * 2**30)
    executors = {kind: open_executor(kind, total=total, start_timeout=30) for kind in KINDS}
    yield executors
    for executor in executors.values():
        executor.close()


@pytest.fixture
def no_ray(opened: dict[str, Executor]) -> None:
    """The shared executor gives its Ray back: a process has one at a time. It starts another when it is used again."""
    opened["ray"].close()


@pytest.fixture(params=KINDS)
def executor(request: pytest.FixtureRequest, opened: dict[str, Executor]) -> Executor:
    return opened[request.param]


@pytest.fixture(params=REMOTE)
def remote(request: pytest.FixtureRequest, opened: dict[str, Executor]) -> Executor:
    return opened[request.param]
