"""Where work runs: one small `Executor`, serial, on Dask or on Ray; progress; one process at a time."""

from bdflow.cluster.create import open_executor
from bdflow.cluster.errors import ClusterError, WorkerLost
from bdflow.cluster.phases import Phased
from bdflow.cluster.progress import Progress
from bdflow.cluster.types import Completed, Executor, Resources, SlurmSettings

__all__ = [
    "ClusterError",
    "Completed",
    "Executor",
    "Phased",
    "Progress",
    "Resources",
    "SlurmSettings",
    "WorkerLost",
    "open_executor",
]
