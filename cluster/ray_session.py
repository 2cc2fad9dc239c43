"""An own instance of Ray: the folder of its session, and what its environment says."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from bdflow.cluster.access import private_folder, ray_forgets, ray_variables
from bdflow.cluster.errors import ClusterError
from bdflow.cluster.scratch import Scratch
from bdflow.cluster.threads import TRIM, untrimmed

log = logging.getLogger(__name__)
LONGEST = 107  # bytes that the path of a socket may have
SESSION = len("/bdflow-0123456789ab-01234567/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
SHORT = "/tmp"
NO_PORT = "70000"  # above the highest there is: Ray notes that it could not listen, and goes on
NO_METRICS = {
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": NO_PORT,
    "DASHBOARD_METRIC_PORT": NO_PORT,
}
"""Against servers of metrics, which ask for no token."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
NICENESS = "RAY_worker_niceness"
PRIORITY = "0"
"""Workers as important to the kernel as any other process, as Dask's are. At Ray's own niceness of 15 Linux gives them
36 parts of a core's time where another process gets 1,024."""


def sessions() -> Path:
    """Where sessions lie: RAY_TMPDIR, TMPDIR, or, where the paths of sockets would become too long, a shorter folder,
    which is said.

    Raises
    ------
    ClusterError : there is no shorter folder that may be written.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SHORT
    if len(os.fsencode(folder)) + SESSION <= LONGEST:
        return Path(folder)
    if not os.access(SHORT, os.W_OK | os.X_OK):
        raise ClusterError(
            folder,
            found=f"a directory for temporary files of {len(os.fsencode(folder))} bytes",
            expected=f"{LONGEST - SESSION} bytes at most, since Ray's sockets lie in it and {SHORT} may not be written",
            action="set the environment variable RAY_TMPDIR to a shorter directory",
        )
    log.warning("%s is too long for the paths of Ray's sockets: its session lies in %s", folder, SHORT)
    return Path(SHORT)


class RaySession:
    """A folder that this user alone may enter, with Ray's sockets, logs and objects that do not fit into memory.

    Attributes
    ----------
    folder : the folder.
    logs : where Ray's logs will lie.
    options : what `ray.init` is told of it.
    """

    def __init__(self, owner: Scratch) -> None:
        self.folder = private_folder(sessions(), owner)
        inside = self.folder / "r"  # which Ray opens to everybody; nobody gets there
        self.logs = inside / "session_latest/logs"
        self.options = {"_temp_dir": str(inside)}

    def close(self, *, keep: bool = False) -> None:
        """Remove it; or `keep` it, where its logs say why something failed, until the next run of its owner."""
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def environment_of_ray(*, own: bool, more: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """The environment in which Ray is started or looked for; it is as before afterwards. What the user set stays.

    Yields the variables that nodes which are started elsewhere need: the token's and the priority of workers.
    """
    nodes = {NICENESS: os.environ.get(NICENESS, PRIORITY), **ray_variables()} if own else {}
    values = {**QUIET, **(more or {}), **nodes}
    before = {name: os.environ.get(name) for name in (*values, TRIM)}
    os.environ.update({name: value for name, value in values.items() if before[name] is None})
    untrimmed()
    ray_forgets()
    try:
        yield nodes
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
