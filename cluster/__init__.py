"""Where work runs: one small `Executor`, serial, on Dask or on Ray; progress; one process at a time."""

from cluster.errors import ClusterError, WorkerLost
from cluster.executor import Completed, Executor, Resources, open_executor
from cluster.line import Phased
from cluster.lock import exclusive
from cluster.progress import Progress

__all__ = [
    "ClusterError",
    "Completed",
    "Executor",
    "Phased",
    "Progress",
    "Resources",
    "WorkerLost",
    "exclusive",
    "open_executor",
]
