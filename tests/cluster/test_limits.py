"""What cannot be given is refused with both numbers, before anything starts."""

import os
import sys
from pathlib import Path

import cloudpickle
import psutil
import pytest

from bdflow.cluster import ClusterError, Completed, Executor, Resources, SlurmSettings, open_executor
from bdflow.cluster.clusters.slurm import Node, _allocated, _gpus
from bdflow.cluster.limits import devices_here, devices_of, gpu_capacity

cloudpickle.register_pickle_by_value(sys.modules[__name__])
KINDS = ("serial", "dask", "ray")
HAVE = Resources(workers=4, threads=2, gpus=2, memory=8 * 2**30)


class Devices:
    def __call__(self, task: int) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (Resources(workers=5), "found 4 workers at most; expected what is asked for: 5 workers"),
        (Resources(threads=3), "found 2 at most; expected what is asked for: 3 threads a worker"),
        (
            Resources(workers=3, gpus=1),
            "found 2 GPUs (enough for 2 such workers); expected what is asked for: 3 workers x 1 GPU = 3 GPUs",
        ),
        (
            Resources(workers=3, gpus=0.6),
            "found 2 GPUs (enough for 2 such workers); expected what is asked for: 3 workers x 0.6 GPUs = 1.8 GPUs",
        ),
        (
            Resources(workers=3, memory=3 * 2**30),
            "found 8.00 GiB of memory; expected what is asked for: 3 workers x 3.00 GiB",
        ),
        (Resources(gpus=1.5), "GPUs of a worker: found 1.5; expected a whole number"),
    ],
    ids=["workers", "threads", "gpus", "fractions", "memory", "odd"],
)
def test_more_than_there_is(kind: str, ask: Resources, words: str) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with open_executor(kind, total=HAVE) as executor, pytest.raises(ClusterError) as caught:  # type: ignore[arg-type]
        executor.run(Devices, range(9), resources=ask)
    assert words in str(caught.value)
    assert "What to do: " in str(caught.value)
    assert {process.pid for process in psutil.Process().children(recursive=True)} == before


def test_this_machine_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for kind in KINDS:
        executor = open_executor(kind)  # type: ignore[arg-type]
        with pytest.raises(ClusterError, match=r"found 0 GPUs .* asked for: 1 worker x 1 GPU = 1 GPU"):
            executor.run(Devices, [1], resources=Resources(gpus=1))
        with pytest.raises(ClusterError, match=r"found .* GiB of memory; expected what is asked for: .* GiB"):
            executor.run(Devices, [1], resources=Resources(memory=2**50))


@pytest.mark.slow(kind="devices of workers")
def test_each_worker_sees_its_own_devices(remote: Executor) -> None:
    for gpus, workers, expected in ((1.0, 2, {"0", "1"}), (0.0, 1, {""})):
        seen: dict[str, str] = {}
        ask = Resources(workers=workers, gpus=gpus)

        def look(done: Completed, seen: dict[str, str] = seen) -> None:
            seen[done.worker] = done.result

        remote.run(Devices, range(400 if workers > 1 else 4), resources=ask, on_done=look)
        assert set(seen.values()) <= expected
        assert len(seen) == len(set(seen.values()))


def test_places_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [gpu_capacity(g, 3) for g in (0.1, 0.25, 0.4, 0.5, 1, 2, 3, 4)] == [30, 12, 6, 6, 3, 1, 1, 0]
    assert [devices_of(n, 0.5, ["a", "b"]) for n in range(4)] == [["a"], ["a"], ["b"], ["b"]]
    assert [devices_of(n, 2, list("abcd")) for n in range(2)] == [["a", "b"], ["c", "d"]]
    assert devices_of(3, 0, ["a"]) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-77")
    assert devices_here() == ["2", "GPU-77"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "")
    assert devices_here() == []


def test_nvidia_smi_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: X (UUID: a)'\necho 'GPU 1: X (UUID: b)'\n")
    smi.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices_here() == ["0", "1"]


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"threads": 0}, {"gpus": -1}, {"memory": 0}])
def test_resources_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Resources(**wrong)  # type: ignore[arg-type]


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="expected 'serial', 'dask' or 'ray'"):
        open_executor("spark")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="it has none"):
        open_executor("serial", address="tcp://127.0.0.1:1")
    with pytest.raises(ValueError, match="total"):
        open_executor("dask", address="tcp://127.0.0.1:1", total=HAVE)
    with pytest.raises(ValueError, match="attempts=0"):
        open_executor("dask", attempts=0)
    with pytest.raises(ValueError, match="slurm"):
        open_executor("ray", address="auto", slurm=SlurmSettings())


def test_ray_of_somebody_else_is_left_alone(opened: dict[str, Executor]) -> None:
    opened["ray"].run(Devices, [1])
    with open_executor("ray") as second, pytest.raises(ClusterError, match="already started in this process"):
        second.run(Devices, [1])
    opened["ray"].run(Devices, [1])


def test_what_slurm_says_of_its_nodes() -> None:
    assert [_gpus(text) for text in ("(null)", "gpu:2", "gpu:a100:4(S:0-1),nvme:1", "nvme:3,gpu:h100:8")] == [
        0,
        2,
        4,
        8,
    ]
    variables = {"SLURM_JOB_CPUS_PER_NODE": "8(x2),4", "SLURM_MEM_PER_NODE": "1000", "SLURM_GPUS_ON_NODE": "2"}
    assert [(node.cpus, node.memory, node.gpus) for node in _allocated(variables)] == [
        (8, 1000 * 2**20, 2), (8, 1000 * 2**20, 2), (4, 1000 * 2**20, 2),
    ]  # fmt: skip
    by_cpu = _allocated({"SLURM_JOB_CPUS_PER_NODE": "4", "SLURM_MEM_PER_CPU": "500"})
    assert (by_cpu[0].memory, by_cpu[0].gpus) == (2000 * 2**20, 0)
    node = Node("a", cpus=8, memory=16 * 2**30, gpus=2)
    assert node.capacity(Resources(threads=3)) == 2
    assert node.capacity(Resources(gpus=1)) == 2
    assert node.capacity(Resources(memory=5 * 2**30)) == 3
    assert node.capacity(Resources(gpus=4)) == 0


@pytest.mark.parametrize("kind", ["serial", "dask", "ray"])
def test_a_check_refuses_with_both_numbers_and_starts_nothing(kind: str) -> None:
    with open_executor(kind, total=HAVE) as executor:  # type: ignore[arg-type]
        executor.check(Resources())
        with pytest.raises(ClusterError, match="found"):
            executor.check(Resources(workers=2, memory=2**50))
        with pytest.raises(ClusterError, match="GPUs"):
            executor.check(Resources(workers=1, gpus=64))
        assert getattr(executor, "_own", None) is None
        assert getattr(executor, "_started", False) is False or kind == "dask"


def test_no_slurm_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ClusterError, match="no command `sinfo`"):
        open_executor("dask", slurm=SlurmSettings()).check(Resources())


@pytest.mark.parametrize("wrong", [{"time": "an hour"}, {"partitions": "gpu"}, {"options": 3}])
def test_settings_of_slurm_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SlurmSettings.model_validate(wrong)
    assert SlurmSettings(partition="gpu", options=("-x",)).job_options() == ["--partition=gpu", "--time=01:00:00", "-x"]
