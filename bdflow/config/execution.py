"""Where work runs: each stage's executor and workers, and on what these live. Nothing here changes a result."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bdflow.cluster.types import SlurmSettings
from bdflow.config.base import Section
from bdflow.config.values import Count, Memory, Positive, Real, Switch


class StageExecution(Section):
    """Where one stage runs: which executor, how many workers, threads, GPUs and memory ("4 GiB") each.

    executor : `serial` (in this process), `dask`, or `ray`.
    workers : processes, of `dask` and `ray`; of `reconstruct` also the painters of `bdflow serve`.
    threads : of each worker.
    gpus : of each worker; with Ray a fraction shares a GPU.
    memory : of each worker; null: no limit, on SLURM the site's default.
    """

    executor: Literal["serial", "dask", "ray"] = "serial"
    workers: Count = 1
    threads: Count = 1
    gpus: Annotated[Real, Field(ge=0)] = 0.0
    memory: Memory | None = None


class ExecutionSettings(Section):
    """Where work runs. Nothing here changes a result.

    ingest, features, regress, reconstruct, evaluate, roi, encoding_features, encode : the stage of that name.
    """

    ingest: StageExecution = StageExecution()
    features: StageExecution = StageExecution()
    regress: StageExecution = StageExecution()
    reconstruct: StageExecution = StageExecution()
    evaluate: StageExecution = StageExecution()
    roi: StageExecution = StageExecution()
    encoding_features: StageExecution = StageExecution()
    encode: StageExecution = StageExecution()

    @model_validator(mode="after")
    def _one_process(self) -> Self:
        for name, stage in self:
            if name != "reconstruct" and stage.executor == "serial" and stage.workers > 1:
                raise ValueError(
                    f"{name}.workers: found {stage.workers}, and executor: serial, which works in this process alone; "
                    "expected dask or ray, or no `workers`"
                )
        return self


class AddressSettings(Section):
    """Clusters that run already: a Dask scheduler ("tcp://host:8786"), a Ray head ("host:6379", or "auto").

    dask : address of the scheduler; null: there is none.
    ray : address of the head; null: there is none.
    """

    dask: str | None = None
    ray: str | None = None


class ClusterSettings(Section):
    """On what the workers of Dask and Ray live; only the section of the chosen kind counts. `start_timeout` are the
    seconds a first worker may take; by default a minute, and on SLURM, where jobs queue, a day.

    kind : `local` (this machine), `slurm`, `address` (clusters that run), or `cuda` (this machine's GPUs).
    start_timeout : seconds; null: by kind.
    dashboard : start the dashboards of Dask and Ray.
    dashboard_host : the address on which they listen.
    address : of clusters that run.
    slurm : how SLURM is asked for workers.
    """

    kind: Literal["local", "slurm", "address", "cuda"] = "local"
    start_timeout: Positive | None = None
    dashboard: Switch = False
    dashboard_host: str = "127.0.0.1"
    address: AddressSettings = AddressSettings()
    slurm: SlurmSettings = SlurmSettings()
