"""The stages `regress` and `encode` on a GPU that is played: the stores that the CPU makes, to their rounding."""

import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdflow.config import Config, parse
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline, stages_until
from bdflow.stages.regress import stage as regress_stage
from bdflow.stages.regress.predictor import BLOCKS
from bdflow.stores import Study
from bdflow.study import decoder, system
from bdflow.study.target_reader import SharedBlocks
from tests.conftest import SUBJECTS
from tests.support import cupy_on_numpy
from tests.support.gpu_streams import Machine

Run = Callable[..., tuple[Config, dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory, settings) -> Path:
    """A study with responses and targets, to be copied."""
    root = tmp_path_factory.mktemp("upstream")
    Pipeline(parse(settings(root))).run(tuple(stages_until("features")))
    return root


@pytest.fixture
def machine(monkeypatch) -> Machine:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    return cupy_on_numpy.installed(monkeypatch)


@pytest.fixture
def run(tmp_path, upstream, settings, machine) -> Run:
    """Run stages on the CPU or on a GPU, on a copy of that study; the values of all stores that they fill."""

    def run(gpus: float, stages: tuple[str, ...] = ("regress",), memory=None, spaces=None, **sections):
        root = tmp_path / f"{gpus} GPUs"
        shutil.copytree(upstream / "study.zarr", root / "study.zarr")
        content = settings(root, **sections)
        for space, of in (spaces or {}).items():
            content["spaces"][space]["ridge"] = content["spaces"][space]["ridge"] | of
        where: dict[str, Any] = {"executor": "serial", "gpus": gpus, "memory": memory}
        content["execution"] = {"regress": where, "encode": {**where, "memory": None}}
        config = parse(content)
        Pipeline(config).run(stages)
        machine.end()
        study, found = Study(config.study), {}
        for path in study.paths():
            store = study.store(path)
            if store.provenance["stage"] in ("regress", "encode"):
                found |= {f"{path}/{spec.name}": store.read(spec.name) for spec in store.spec.data}
        return config, found

    return run


def compare(cpu: dict[str, np.ndarray], gpu: dict[str, np.ndarray], tolerance: float = 2e-3) -> None:
    assert cpu.keys() == gpu.keys()
    for name, expected in cpu.items():
        found = gpu[name]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=name)
        scale = np.nanmax(np.abs(expected), initial=0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale, err_msg=name)


HELD_OUT = {"standardise": "held_out", "validation": {"stimuli": 5}}
CHOSEN = {"choose": "per_target", "grid": [1.0, 100.0, 3000.0]}
CASES = {
    "plain": {},
    "held out, weights": {"ridge": HELD_OUT, "spaces": {"clip_text": {"weights": True}}},
    "per target, folds": {"ridge": {**CHOSEN, "validation": {"method": "k_fold", "folds": 4}}},
    "trials": {"ridge": {**HELD_OUT, "rows": "trials"}, "spaces": {"clip_text": {"weights": True}}},
    "trials, folds of rows": {
        "ridge": {**CHOSEN, "rows": "trials", "validation": {"method": "k_fold_rows", "folds": 4}, "intercept": False}
    },
}


PLAYED = pytest.mark.slow(kind="a GPU that is played")
INGEST = ("ingest", "regress")  # single trials have rows of their own


@PLAYED
@pytest.mark.parametrize("case", CASES)
def test_the_gpus_stores_are_those_of_the_cpu(run, case):
    (_, cpu), (config, gpu) = (run(gpus, INGEST, **CASES[case]) for gpus in (0, 1))
    compare(cpu, gpu)
    study = Study(config.study)
    assert study.store(f"predictions/{SUBJECTS[0]}/vdvae").provenance["arithmetic"] == {"device": "cuda"}


@PLAYED
@pytest.mark.parametrize("rows", ["averaged", "trials"])
def test_in_less_memory(run, monkeypatch, rows):
    """Panels on disk, or rows read block by block of voxels; parts of the system; pieces, for one subject after the
    other."""
    monkeypatch.setattr("bdflow.regression.memory_budget._whole", lambda extent, voxels: 2**60)
    monkeypatch.setattr("bdflow.regression.memory_budget.WIDTHS", (6,))
    reading = regress_stage._reading
    monkeypatch.setattr(
        regress_stage, "_reading", lambda *args: replace(reading(*args), piece_rows=5, whole_blocks=False)
    )
    limits = {"memory": "2 GiB", "ridge": {**HELD_OUT, "rows": rows}, "spaces": {"clip_text": {"weights": True}}}
    (_, cpu), (_, gpu) = (run(gpus, INGEST, **limits) for gpus in (0, 0.5))
    compare(cpu, gpu)


@PLAYED
def test_encoding_models_of_bands_and_components(run):
    encode = {"sets": {"both": ["clip_vision", "clip_text"]}, "components": {"vdvae": 5}, "stimuli": 8}
    (_, cpu), (_, gpu) = (run(gpus, ("encode",), encode=encode) for gpus in (0, 1))
    assert any("both" in name for name in cpu)
    chosen = ("/alpha", "/share", "/unique_r2", "/p")  # two that are as good as each other may change places
    compare(*({n: v for n, v in found.items() if not n.endswith(chosen)} for found in (cpu, gpu)), 5e-3)


@PLAYED
def test_patterns_are_decoded_from_what_a_gpu_made(run):
    (_, cpu), (config, _) = run(0), run(1)
    rng, context = np.random.default_rng(0), Pipeline(config).context()
    responses = context.ready(f"responses/{SUBJECTS[0]}/averaged")
    test = responses.read("split") == "test"
    patterns = decoder.z_scored_patterns(responses, responses.read("response")[test])
    order = rng.permutation(int(test.sum()))
    found = decoder.decode(context, SUBJECTS[0], patterns[order], "vdvae")
    expected = cpu[f"predictions/{SUBJECTS[0]}/vdvae/latent"][order]
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


@PLAYED
@pytest.mark.parametrize("gpus", [0, 1])
def test_two_blocks_are_in_memory_and_the_third_waits(run, machine, monkeypatch, gpus):
    config, expected = run(gpus)
    shutil.rmtree(config.study / "predictions")
    pipeline = Pipeline(config)
    work = regress_stage._start_predictions(pipeline.context())
    worker, tasks = work.make_worker(), list(work.tasks)
    with monkeypatch.context() as broken:
        broken.setattr(SharedBlocks, "read", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            worker.prepare(tasks[0])
    assert worker._free.qsize() == BLOCKS, "what could not be read is free again"
    ready = [worker.prepare(task) for task in tasks[:BLOCKS]]
    assert not np.shares_memory(ready[0].block, ready[1].block)
    assert worker._free.empty()
    made = {}
    with ThreadPoolExecutor(1) as reader:
        for number, task in enumerate(tasks):
            if number + BLOCKS < len(tasks):
                ready.append(reader.submit(worker.prepare, tasks[number + BLOCKS]))
            prepared = ready[number] if number < BLOCKS else ready[number].result()
            made[task] = worker.work(prepared)
            if number:  # results stay on the device until they are written, while the next are computed
                worker.finish(tasks[number - 1], made.pop(tasks[number - 1]))
    worker.finish(tasks[-1], made.pop(tasks[-1]))
    machine.end()
    for subject in SUBJECTS:
        found = Study(config.study).store(f"predictions/{subject}/vdvae").read("latent")
        np.testing.assert_array_equal(found, expected[f"predictions/{subject}/vdvae/latent"])


def test_without_cupy_nothing_is_begun(tmp_path, settings, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setitem(sys.modules, "cupy", None)
    for stage in ("regress", "encode"):
        content = settings(tmp_path, execution={stage: {"executor": "serial", "gpus": 1}})
        with pytest.raises(InputError, match=rf"execution\.{stage}\.gpus: found no package CuPy") as refused:
            Pipeline(parse(content)).run(("ingest", "features", stage))
        assert "bdflow[gpu]" in str(refused.value)
        assert not (tmp_path / "study.zarr" / "betas").exists()


@PLAYED
@pytest.mark.parametrize("rows", ["averaged", "trials"])
def test_a_gpu_with_little_memory_solves_in_parts_and_one_with_less_is_refused(run, machine, monkeypatch, rows):
    """Decided by the worker that meets the GPU: to the driver, memory is not scarce."""
    monkeypatch.setattr("bdflow.regression.memory_budget.WORKSPACE", 0)
    parts: list[str] = []
    for kind in (system.Panels, system.Streamed):
        make = kind.__init__
        monkeypatch.setattr(
            kind,
            "__init__",
            lambda self, *args, make=make, kind=kind: (parts.append(kind.__name__), make(self, *args))[1],
        )
    limits = {"ridge": {**HELD_OUT, "rows": rows}}
    (_, cpu) = run(0, INGEST, **limits)
    assert parts == []
    monkeypatch.setattr("bdflow.regression.memory_budget.whole_on_device", lambda of: 2**60)
    (config, gpu) = run(1, INGEST, **limits)
    compare(cpu, gpu)
    (path,) = (path for path in Study(config.study).paths() if path.startswith(f"systems/{SUBJECTS[0]}/"))
    dual = "other_voxel" not in Study(config.study).store(path).sizes
    assert set(parts) == {"Panels" if dual else "Streamed"}
    machine.total = 1024
    with pytest.raises(InputError, match="memory of the GPU, regress"):
        run(0.5, INGEST, **limits)
