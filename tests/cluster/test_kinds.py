"""Kinds of clusters that this machine can only play: dask-cuda by a stand-in; and the dashboards of both."""

import os
import sys
import types
import urllib.request
from functools import partial
from pathlib import Path

import cloudpickle
import pytest

from bdflow.cluster import ClusterError, Completed, Resources, open_executor
from bdflow.cluster.access import dask_dashboard_warning, ray_dashboard_warning
from bdflow.cluster.phases import DEPTH
from bdflow.cluster.threads import TRIM, VARIABLES

from .test_phases import Meeting

cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(sys.modules[Meeting.__module__])
TWO = Resources(workers=2, gpus=1)


class Double:
    def __call__(self, task: int) -> int:
        return 2 * task


@pytest.fixture
def dask_cuda(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """A module `dask_cuda` whose cluster takes what dask-cuda documents, and starts plain workers."""
    from distributed import LocalCluster

    asked: list[dict] = []

    class LocalCUDACluster(LocalCluster):
        def __init__(
            self,
            CUDA_VISIBLE_DEVICES=None,
            n_workers=None,
            threads_per_worker=1,
            memory_limit="auto",
            local_directory=None,
            protocol=None,
            **options,
        ):
            made = {"devices": CUDA_VISIBLE_DEVICES, "workers": n_workers, "threads": threads_per_worker}
            asked.append({**made, "memory": memory_limit, **options})
            super().__init__(
                n_workers=n_workers,
                threads_per_worker=threads_per_worker,
                memory_limit=memory_limit,
                local_directory=local_directory,
                **options,
            )

    module = types.ModuleType("dask_cuda")
    module.LocalCUDACluster = LocalCUDACluster  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    return asked


@pytest.mark.slow(kind="devices of workers")
def test_dask_cuda_gets_one_worker_a_device(dask_cuda: list[dict]) -> None:
    done: list[Completed] = []
    with open_executor("dask", cuda=True) as executor:
        executor.run(Double, range(20), resources=TWO, on_done=done.append)
        assert [(one["devices"], one["workers"], one["memory"]) for one in dask_cuda] == [(["0", "1"], 2, 0)]
        assert dask_cuda[0]["threads"] == DEPTH
        assert dask_cuda[0]["host"] == "127.0.0.1"
        executor.run(Double, range(3), resources=Resources(workers=2))
        assert len(dask_cuda) == 1, "workers without a GPU need no dask-cuda"
        with pytest.raises(ClusterError, match="one worker for each device"):
            executor.run(Double, range(3), resources=Resources(workers=1, gpus=2))
        with pytest.raises(ClusterError, match="3 GPUs"):
            executor.check(Resources(workers=4, gpus=1))
    assert sorted(c.result for c in done) == list(range(0, 40, 2))


class Environment:
    """What the worker's process was started with: libraries read it when they are loaded."""

    def __call__(self, task: int) -> dict[str, str]:
        lines = Path("/proc/self/environ").read_text(encoding="utf-8").split("\0")
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.mark.slow(kind="executors")
def test_its_workers_overlap_phases_in_the_environment_of_own_clusters(
    dask_cuda: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = dict(os.environ)
    found: dict[bool, set[tuple[str | None, ...]]] = {}
    names = (*VARIABLES, TRIM)
    for cuda in (True, False):
        done: list[Completed] = []
        resources = Resources(threads=2, gpus=1)
        with open_executor("dask", cuda=cuda) as executor:
            executor.run(Environment, range(2), resources=resources, on_done=done.append)
            found[cuda] = {tuple(completed.result.get(name) for name in names) for completed in done}
            if cuda:
                executor.run(partial(Meeting, 12), range(12), resources=resources)
        assert dict(os.environ) == before
    assert len(dask_cuda) == 1
    assert found[True] == found[False] == {(*("2" for _ in VARIABLES), None)}


def test_without_dask_cuda_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with open_executor("dask", cuda=True) as executor, pytest.raises(ClusterError, match="bdflow\\[gpu\\]"):
        executor.run(Double, range(3), resources=TWO)


def dashboards(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("bdflow.cluster.executors")]


@pytest.mark.slow(kind="dashboards")
@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_dashboards_are_logged_and_on_the_loopback(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bdflow")
    with open_executor(kind, dashboard="127.0.0.1") as executor:  # type: ignore[arg-type]
        executor.run(Double, range(3))
        executor.run(Double, range(3))
        line, *warnings = dashboards(caplog)
        assert [words.partition(":")[0] for words in warnings] == (
            ["Dask's dashboard asks for no password"] if kind == "dask" else []
        )
        words, _, address = line.partition(": ")
        assert words == f"{kind.capitalize()}'s dashboard"
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=20) as page:
            assert page.status == 200
            assert b"<html" in page.read().lower()
    with open_executor(kind) as executor:  # type: ignore[arg-type]
        executor.run(Double, range(3))
    assert len(dashboards(caplog)) == 1 + len(warnings)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost", "::1"])
def test_a_dashboard_on_the_loopback_is_said_to_be_seen_by_users_of_the_machine(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    line = dask_dashboard_warning(host)
    assert "no password" in line
    assert "every user of this machine" in line
    assert "dashboard_host" not in line
    assert ray_dashboard_warning(host) is None, "its token keeps others out"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.3", "node7", ""])
def test_a_dashboard_that_other_machines_reach_is_warned_of_more(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for line in (dask_dashboard_warning(host), ray_dashboard_warning(host)):
        assert line is not None
        assert f"`cluster.dashboard_host` {host}" in line
        assert "outside this machine" in line
        assert "set `cluster.dashboard_host` to 127.0.0.1" in line
        assert "\n" not in line
        assert "docs/clusters.md" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_rays_dashboard_without_its_token_is_warned_of(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    line = ray_dashboard_warning(host)
    assert line is not None
    assert "RAY_AUTH_MODE=disabled" in line
    assert "run code" in line
