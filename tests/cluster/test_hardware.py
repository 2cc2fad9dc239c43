"""What a process says that it computes with: GPUs by stand-ins for torch and CuPy, since this machine may have none."""

import sys
import types

import pytest

from bdflow.cluster import Completed, open_executor
from bdflow.cluster.hardware import MadeOn, made_on


def torch_with(names: dict[str, int], *, initialized: bool = True, version: str = "9.1.0") -> types.ModuleType:
    """A torch whose process holds so many bytes on each of these GPUs."""
    module = types.ModuleType("torch")
    held = list(names.items())
    module.__version__ = version  # type: ignore[attr-defined]
    module.get_num_threads, module.set_num_threads = lambda: 1, lambda n: None  # type: ignore[attr-defined]
    module.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        is_initialized=lambda: initialized,
        device_count=lambda: len(held),
        get_device_name=lambda i: held[i][0],
        memory_reserved=lambda i: held[i][1],
    )
    return module


def cupy_on(name: str) -> types.ModuleType:
    module = types.ModuleType("cupy")
    runtime = types.SimpleNamespace(getDevice=lambda: 0, getDeviceProperties=lambda i: {"name": name.encode()})
    module.cuda = types.SimpleNamespace(runtime=runtime)  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("torch", "cupy", "expected", "words"),
    [
        (None, None, MadeOn(), "the CPU"),
        (torch_with({"A": 8}, initialized=False), None, MadeOn("", "9.1.0"), "the CPU with torch 9.1.0"),
        (torch_with({"A": 0, "B": 8}), None, MadeOn("B", "9.1.0"), "B with torch 9.1.0"),
        (torch_with({"B": 8, "A": 1}), None, MadeOn("A and B", "9.1.0"), "A and B with torch 9.1.0"),
        (None, cupy_on("C"), MadeOn("C"), "C"),
        (torch_with({"C": 1}), cupy_on("C"), MadeOn("C", "9.1.0"), "C with torch 9.1.0"),
    ],
)
def test_it_names_what_is_loaded_and_used(monkeypatch, torch, cupy, expected, words) -> None:
    for name, module in (("torch", torch), ("cupy", cupy)):
        monkeypatch.delitem(sys.modules, name, raising=False)
        if module is not None:
            monkeypatch.setitem(sys.modules, name, module)
    assert made_on() == expected
    assert str(made_on()) == words


class Loads:
    """A worker that loads a stand-in for torch when its first task comes."""

    def __call__(self, task: int) -> int:
        sys.modules["torch"] = torch_with({"A": 1}, version="9.2.0")
        return task


class LoadsInPhases:
    def prepare(self, task: int) -> int:
        return task

    def work(self, task: int) -> int:
        return Loads()(task)

    def finish(self, task: int, result: int) -> int:
        return result


@pytest.mark.parametrize("worker", [Loads, LoadsInPhases])
def test_every_task_says_what_its_process_computed_with(monkeypatch, worker) -> None:
    from bdflow.cluster.worker import WorkerProcess

    monkeypatch.setitem(sys.modules, "torch", torch_with({}, version="9.1.0"))
    done: list[Completed] = []
    with open_executor("serial") as executor:
        executor.run(worker, [1, 2], on_done=done.append)
    assert [one.made_on for one in done] == [MadeOn("A", "9.2.0")] * 2

    import cloudpickle

    process = WorkerProcess()
    process.load(cloudpickle.dumps(worker), 1)
    answer = cloudpickle.loads(process.call(cloudpickle.dumps(3)))
    process.free()
    assert (answer.result, answer.error, answer.made_on) == (3, None, MadeOn("A", "9.2.0"))


@pytest.mark.slow(kind="executors")
@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_what_workers_say_arrives(kind) -> None:
    done: list[Completed] = []
    with open_executor(kind) as executor:
        executor.run(Loads, [1], on_done=done.append)
    assert [one.made_on for one in done] == [MadeOn("A", "9.2.0")]
