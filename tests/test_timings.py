"""What partitions took, as the journal has it and as `bdflow status --timings` shows it."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from bdflow.cluster import ClusterError
from bdflow.config import parse
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline
from bdflow.runner import executor_options
from bdflow.stores import Study
from bdflow.stores.journal import entries
from bdflow.timings import timings


def entry(work, seconds, **more):
    columns = {"seconds": seconds, "attempts": [1] * len(seconds), "worker": ["a:1"] * len(seconds)} | more
    return {"stage": "s", "work": work, **{name: np.array(value) for name, value in columns.items()}}


def test_runs_are_summed_and_old_journals_have_no_bytes():
    old = entry("x", [1.0, 5.0])
    new = entry("x", [3.0], attempts=[3], worker=["b:2"], read=[10], written=[20], peak=[30])
    both, alone = timings([old, new, entry("y", [2.0])])
    assert (both.partitions, both.total, both.median, both.longest) == (3, 9.0, 3.0, 5.0)
    assert (both.read, both.written, both.peak, both.retries, both.workers) == (10, 20, 30, 2, 2)
    assert (alone.work, alone.read, alone.peak) == ("y", None, None)


def test_every_partition_is_in_the_journal_and_shown(settings, tmp_path):
    content = settings(tmp_path)
    Pipeline(parse(content)).run(["ingest"])
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    journal = {found["work"]: found for found in entries(tmp_path / "study.zarr")}
    assert [len(journal[work]["seconds"]) for work in ("betas", "stimuli", "responses")] == [6, 5, 6]
    assert all((found["peak"] > 2**20).all() and (found["written"] > 100).all() for found in journal.values())
    assert len(set(journal["betas"]["what"].tolist())) == 6
    command = [Path(sys.executable).with_name("bdflow"), "status", tmp_path / "c.yaml", "--timings"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for word in ("betas", "responses", "median", "peak memory", "retries", "iB"):
        assert word in shown


def test_finished_partitions_of_stopped_work_are_kept(settings, tmp_path, monkeypatch):
    from bdflow.stages import ingest

    calls = []
    original = ingest.SessionReader.__call__

    def stop(self, task):
        calls.append(task)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, task)

    monkeypatch.setattr(ingest.SessionReader, "__call__", stop)
    pipeline = Pipeline(parse(settings(tmp_path)))
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(["ingest"])
    assert [len(found["seconds"]) for found in entries(tmp_path / "study.zarr")] == [3]


def test_what_a_later_stage_cannot_get_is_refused_before_the_first_starts(settings, tmp_path):
    for asked, words in (({"gpus": 99}, "99 GPUs"), ({"memory": "900 TiB"}, "GiB of memory")):
        where = {"reconstruct": {"executor": "dask", **asked}}
        pipeline = Pipeline(parse(settings(tmp_path, execution=where)))
        with pytest.raises(ClusterError, match=words) as error:
            pipeline.run(["ingest", "reconstruct"])
        assert "execution.reconstruct (dask), resources: found" in str(error.value)
        assert Study(tmp_path / "study.zarr").paths() == []
        pipeline.run(["ingest"])
        shutil.rmtree(tmp_path / "study.zarr")


def test_where_workers_live(settings, tmp_path):
    def chosen(executor, **cluster):
        return executor_options(parse(settings(tmp_path, cluster=cluster)).cluster, executor)

    assert chosen("dask") == {"dashboard": None, "start_timeout": 60.0}
    assert chosen("ray", dashboard=True)["dashboard"] == "127.0.0.1"
    assert chosen("ray", kind="slurm")["start_timeout"] == 86_400.0
    assert chosen("dask", kind="slurm", slurm={"partition": "gpu"})["slurm"].partition == "gpu"
    assert chosen("dask", kind="cuda")["cuda"] is True
    assert "cuda" not in chosen("ray", kind="cuda")
    assert chosen("ray", kind="address", address={"ray": "auto"})["address"] == "auto"
    assert chosen("serial", kind="slurm") == {}
    with pytest.raises(InputError, match=r"cluster\.address\.dask"):
        chosen("dask", kind="address", address={"ray": "auto"})
    with pytest.raises(InputError, match=r"cluster\.slurm\.partition"):
        parse(settings(tmp_path, cluster={"kind": "slurm", "slurm": {"partitoin": "gpu"}}))
