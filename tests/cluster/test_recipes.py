"""Every shipped recipe under every kind of cluster it names: what is asked for can be placed. Nothing is started."""

import os
import stat
from pathlib import Path

import pytest

from bdflow.cluster import ClusterError, Resources, open_executor
from bdflow.cluster.clusters.slurm import Node, Steps, ray_node
from bdflow.cluster.limits import idle_gpus
from bdflow.config import ClusterSettings, StageExecution, load, recipes
from bdflow.runner import executor_options, gpus_given, resources_of

STAGES = ("ingest", "features", "regress", "reconstruct", "evaluate", "roi", "encoding_features", "encode")
NODE = "node1|64|512000|gpu:a100:4|idle|gpu*"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Commands of SLURM that note how they are called: two nodes of four GPUs; steps end at once."""
    log = tmp_path / "asked"
    for name, does in {
        "sinfo": f'echo "{NODE}"; echo "{NODE.replace("1|64", "2|64")}"',
        "sbatch": "",
        "srun": "",
    }.items():
        file = tmp_path / name
        file.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n{does}\n', encoding="utf-8")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    return log


@pytest.fixture
def machine(monkeypatch):
    """This machine, with four GPUs and much memory."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr("bdflow.cluster.limits.memory_here", lambda: 2**40)


@pytest.mark.parametrize("recipe", sorted(recipes()))
@pytest.mark.parametrize("kind", ["local", "cuda", "slurm", "address"])
@pytest.mark.usefixtures("machine")
def test_every_stage_of_every_recipe_can_be_placed(recipe, kind, slurm):
    address = ["cluster.address.dask=tcp://127.0.0.1:8786", "cluster.address.ray=auto"]
    config = load(recipe, [f"cluster.kind={kind}", *(address if kind == "address" else [])])
    for stage in STAGES:
        settings = getattr(config.execution, stage)
        options = executor_options(config.cluster, settings.executor)
        resources = resources_of(settings, config.cluster)
        with open_executor(settings.executor, **options) as executor:
            if kind != "address":  # there a cluster would have to run
                executor.check(resources)
        if kind == "slurm" and settings.executor != "serial":
            assert resources.gpus == int(resources.gpus)
            asked = slurm.read_text(encoding="utf-8").splitlines()[-1].split()
            assert asked[:2] == ["sbatch", "--test-only"]
            assert f"--cpus-per-task={resources.threads}" in asked
            assert ("--gpus-per-node=1" in asked) == bool(settings.gpus)


def test_workers_that_would_share_a_gpu_are_one_worker_under_slurm():
    shared = StageExecution(executor="ray", workers=4, threads=4, gpus=0.5)
    assert resources_of(shared, ClusterSettings(kind="slurm")) == Resources(2, 4, 1.0)
    assert resources_of(shared, ClusterSettings()) == Resources(4, 4, 0.5)
    three = StageExecution(executor="dask", workers=4, gpus=0.3)
    assert resources_of(three, ClusterSettings(kind="slurm")) == Resources(2, 1, 1.0)
    assert resources_of(StageExecution(workers=3, gpus=0.5), ClusterSettings(kind="slurm")).gpus == 0.5


def test_the_request_of_a_judges_node_is_valid(slurm, tmp_path):
    """What `srun` is asked for when Ray's node for the recipe's judging starts."""
    config = load("brain_diffuser", ["cluster.kind=slurm", "cluster.slurm.partition=gpu"])
    need = resources_of(config.execution.evaluate, config.cluster)
    command = ray_node("10.0.0.1:6379", need)
    steps = Steps(config.cluster.slurm, command, need)
    for process, _ in steps.running:
        assert process.wait(60) == 0
    asked = [line.split() for line in slurm.read_text(encoding="utf-8").splitlines() if line.startswith("srun")]
    assert len(asked) == 2
    for words in asked:
        assert {"--gpus-per-node=1", "--cpus-per-task=4", "--partition=gpu", "--time=04:00:00"} <= set(words)
        assert "--num-gpus=1" in words
        assert not [word for word in words if "0.5" in word]


def test_idle_gpus_are_named_with_the_numbers_that_use_them():
    asked = {"features": Resources(2, 4, 1), "evaluate": Resources(4, 4, 0.5), "reconstruct": Resources(8, 4, 1)}
    said = idle_gpus(asked, 8)
    assert said.startswith("8 GPUs given, and no more than 2 used by features, evaluate: the others stay idle.")
    assert said.endswith("execution.features.workers=8, execution.evaluate.workers=16")
    assert idle_gpus({"reconstruct": Resources(8, 4, 1)}, 8) == ""
    assert idle_gpus(asked, 0) == "", "nothing is known of what was given"


def test_gpus_that_were_given(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    given = {kind: gpus_given(ClusterSettings(kind=kind)) for kind in ("local", "cuda", "slurm", "address")}
    assert given == {"local": 3, "cuda": 3, "slurm": 0, "address": 0}
    for name, value in {"JOB_ID": "1", "JOB_CPUS_PER_NODE": "8(x2)", "GPUS_ON_NODE": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert gpus_given(ClusterSettings(kind="slurm")) == 8
    assert Node("a", 8, 2**40, 4).capacity(Resources(2, 4, 1)) == 2


def test_a_run_warns_of_idle_gpus_before_it_starts(settings, tmp_path, monkeypatch, caplog):
    from bdflow.config import parse
    from bdflow.pipeline import Pipeline

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    execution = {"features": {"executor": "dask", "gpus": 1}, "regress": {"executor": "dask", "workers": 9, "gpus": 1}}
    monkeypatch.setattr("bdflow.stages.regress.stage.Regress.check", lambda self, config: None)
    with pytest.raises(ClusterError, match="9 GPUs"):
        Pipeline(parse(settings(tmp_path, execution=execution))).run(("ingest", "features", "regress"))
    assert not caplog.messages, "what is refused comes first"
    execution["regress"] = {"executor": "serial"}
    monkeypatch.setattr("bdflow.runner.Runner.fill", lambda self, stage: None)
    Pipeline(parse(settings(tmp_path, execution=execution))).run(("ingest", "features", "regress"))
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [
        "2 GPUs given, and no more than 1 used by features: the others stay idle. To use all of them: "
        "execution.features.workers=2"
    ]
