"""Opens an executor of one of the three kinds: serial, Dask, Ray."""

from __future__ import annotations

from typing import Any

from bdflow.cluster.scratch import Scratch
from bdflow.cluster.types import Executor, Kind, Resources, SlurmSettings


def open_executor(
    kind: Kind,
    *,
    address: str | None = None,
    slurm: SlurmSettings | None = None,
    cuda: bool = False,
    total: Resources | None = None,
    attempts: int = 3,
    start_timeout: float = 60.0,
    dashboard: str | None = None,
    scratch: Scratch | None = None,
) -> Executor:
    """An executor of a kind. Nothing is started before its first `run`.

    Parameters
    ----------
    kind : "serial" (in this process), "dask" or "ray".
    address : of a running Dask scheduler ("tcp://host:8786") or Ray head ("host:6379", "auto"); None starts
        an own cluster. At an address, Dask uses every worker that is there (one task at a time in
        each; phases overlap where a worker has three threads), Ray starts `resources.workers` actors.
    slurm : have SLURM start the own cluster's workers, as it says; None starts them on this machine.
    cuda : start Dask's workers that take a GPU with dask-cuda.
    total : the most a run may ask for: `workers`, `threads` in each of them, and `gpus` and `memory` in all.
        None: what this machine has (any number of workers and threads). Only for workers on this machine.
    attempts : workers that may be lost over one task before `WorkerLost`.
    start_timeout : seconds to wait for a first worker to turn up.
    dashboard : the address of this machine on which an own cluster shows its dashboard, on a free port
        ("127.0.0.1": to this machine alone), which is logged. None: no dashboard.
    scratch : where workers on this machine keep what they need (Ray's session, whose path must be short, lies in the
        folder for temporary files), and whose it is. None: nobody's, in that folder.

    Raises
    ------
    ValueError : an unknown kind, or arguments that contradict each other.
    """
    if attempts < 1:
        raise ValueError(f"attempts={attempts}: expected at least 1.")
    if address is not None and total is not None:
        raise ValueError(f"address={address!r} and total={total}: what is at an address it says itself.")
    if slurm is not None and (address is not None or total is not None):
        raise ValueError("slurm with an address or a total: expected one of them; SLURM says what it has.")
    if kind == "serial":
        if address is not None:
            raise ValueError(f"address={address!r}: the serial executor works in this process, it has none.")
        from bdflow.cluster.executors.serial import SerialExecutor

        return SerialExecutor(total=total)
    common: dict[str, Any] = {"address": address, "total": total, "attempts": attempts, "start_timeout": start_timeout}
    common |= {"slurm": slurm, "dashboard": dashboard}
    if kind == "dask":
        from bdflow.cluster.executors.dask import DaskExecutor

        return DaskExecutor(**common, cuda=cuda, scratch=scratch)
    if kind == "ray":
        from bdflow.cluster.executors.ray import RayExecutor

        return RayExecutor(**common, scratch=scratch)
    raise ValueError(f"kind={kind!r}: expected 'serial', 'dask' or 'ray'.")
