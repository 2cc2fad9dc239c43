"""One Dask worker a CUDA device of this machine, each beside its device's cores and network (dask-cuda)."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from bdflow.cluster.access import dask_security
from bdflow.cluster.clusters.local import LOOPBACK, Spawning
from bdflow.cluster.errors import ClusterError
from bdflow.cluster.limits import devices_here
from bdflow.cluster.phases import DEPTH
from bdflow.cluster.scratch import Scratch
from bdflow.cluster.types import Resources
from bdflow.errors import counted


class DaskOnCuda:
    """A local cluster of dask-cuda. The same shape as `LocalCluster`."""

    def __init__(self, resources: Resources, dashboard: str | None, scratch: Scratch) -> None:
        if resources.gpus != 1:
            raise ClusterError(
                "cluster `cuda`",
                found=f"{counted(resources.gpus, 'GPU')} a worker asked for",
                expected="1, since dask-cuda starts one worker for each device",
                action="ask for 1, or choose the cluster `local`, where workers share devices or take several",
            )
        try:
            from dask_cuda import LocalCUDACluster
        except ImportError as error:
            raise ClusterError(
                "cluster `cuda`",
                found="no package dask-cuda",
                expected="it installed: it starts the workers of this kind of cluster",
                action="install it (pip install 'bdflow[gpu]'), or choose the cluster `local`",
            ) from error
        from distributed import Client

        self.resources = resources
        self._owner, self._scratch = scratch, scratch.make()
        self._names = contextlib.ExitStack()
        self._names.enter_context(scratch.named_semaphores())
        self._spawning = Spawning(resources.threads)
        try:
            # dask-cuda sets each worker's `env` itself; what all have in common goes by Dask's configuration
            with self._spawning.starting(dashboard):
                self.cluster: Any = LocalCUDACluster(
                    CUDA_VISIBLE_DEVICES=devices_here()[: resources.workers],
                    n_workers=resources.workers,
                    threads_per_worker=DEPTH,
                    memory_limit=resources.memory or 0,
                    local_directory=str(self._scratch),
                    protocol="tls",
                    security=dask_security(),
                    host="127.0.0.1",
                    dashboard_address=LOOPBACK if dashboard is None else f"{dashboard}:0",
                    silence_logs=logging.CRITICAL,
                )
        except BaseException:
            self._undo()
            raise
        self.client = Client(self.cluster, set_as_default=False, direct_to_workers=True)

    def ready(self) -> set[str]:
        """Addresses of the workers that are up; a nanny starts one that died again."""
        return set(self.cluster.scheduler.workers)

    def kill(self) -> None:
        """Stop at once, whatever the workers are busy with."""
        self.stop()

    def stop(self) -> None:
        """Stop scheduler and workers; what starting them changed in this process is undone."""
        with contextlib.suppress(OSError, TimeoutError):
            self.client.close()
            self.cluster.close(timeout=5)
        self._undo()

    def _undo(self) -> None:
        self._owner.remove(self._scratch)
        self._names.close()
        self._spawning.undo()
