"""Who may give work to a cluster that bdflow starts: who holds its secret, which only its own processes get.

Whoever reaches a port of Dask or Ray without one can have it run code, as the user whose run it is; on a machine with
several users the loopback is no border. Dask's connections go over TLS with a certificate made for this one cluster,
which both sides must show. Ray's calls carry a random token. Neither is on a command line, where others would see it.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bdflow.cluster.scratch import Scratch, nobody

if TYPE_CHECKING:
    from distributed import Security

RAY_MODE, RAY_TOKEN, RAY_TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
NO_PAGES: dict[str, object] = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
"""Dask's schedulers and workers always have an HTTP server; with these it answers nothing."""


def dask_security() -> Security:
    """A key and a certificate for one cluster, in memory."""
    from distributed import Security

    made: Security = Security.temporary()
    return made


def private_folder(where: Path, owner: Scratch) -> Path:
    """Make a folder that this user alone may enter; those that killed runs of the owner left there are removed."""
    where.mkdir(parents=True, exist_ok=True)
    if owner != nobody():
        for left in where.glob(f"{owner.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{owner.name}-", dir=where))


def key_options(security: Security, folder: Path) -> list[str]:
    """Write a worker's certificates into a private folder; what `dask worker` is told of them."""
    words = []
    for name in ("ca_file", "cert", "key"):
        file = folder / f"{name}.pem"
        file.write_text(security.get_tls_config_for_role("worker")[name], encoding="ascii")
        words += [f"--tls-{name.replace('_', '-')}", str(file.resolve())]
    return words


def ray_variables() -> dict[str, str]:
    """What the environment of an own instance of Ray needs besides. What the user set of these stays."""
    if os.environ.get(RAY_MODE, "token").lower() != "token":
        return {}
    own = not any(name in os.environ for name in (RAY_TOKEN, RAY_TOKEN_FILE))
    return {RAY_MODE: "token", **({RAY_TOKEN: secrets.token_hex(32)} if own else {})}


TUNNEL = "docs/clusters.md says how to look at it from elsewhere through ssh"


def dask_dashboard_warning(host: str) -> str:
    """What a user is to know of Dask's dashboard at this address. Dask has no password for it: `tls` encrypts alone."""
    shown = "what runs, the names of files and functions, and the workers' logs"
    if is_loopback(host):
        return (
            "Dask's dashboard asks for no password: every user of this machine who finds its port sees "
            f"{shown}. What to do: leave `cluster.dashboard` off where others work on this machine; {TUNNEL}."
        )
    return (
        f"Dask's dashboard asks for no password, and `cluster.dashboard_host` {host} shows it outside this machine: "
        f"everybody whose computer reaches this one sees {shown}. "
        f"What to do: set `cluster.dashboard_host` to 127.0.0.1, or leave `cluster.dashboard` off; {TUNNEL}."
    )


def ray_dashboard_warning(host: str) -> str | None:
    """What a user is to know of Ray's dashboard at this address; None where its token keeps others out."""
    if not ray_variables():
        return (
            f"{RAY_MODE}={os.environ[RAY_MODE]} has Ray ask for no token, its dashboard too: whoever reaches it, every "
            "user of this machine at least, can run code as the user of this run. "
            f"What to do: unset {RAY_MODE}, or set it to token."
        )
    if is_loopback(host):
        return None
    return (
        f"`cluster.dashboard_host` {host} shows Ray's dashboard outside this machine. It asks for a token, but is not "
        "encrypted: whoever reads the network's traffic gets the token, and can then run code as the user of this run. "
        f"What to do: set `cluster.dashboard_host` to 127.0.0.1; {TUNNEL}."
    )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone; a name that is not known to be is taken for not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def ray_forgets() -> None:
    """Have Ray, which reads these variables once in a process, read them again when it is started the next time."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")
