"""A program that tries, as another user, what may be had at ports of this machine; it prints what answered, as JSON.

    python intruder.py '{"ports": [38115], "token": null, "keys": null}'

With the cluster's own secrets (a token of Ray, a folder of Dask's certificates) the same attempts succeed.
"""

import asyncio
import json
import os
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import grpc
from distributed.core import rpc
from distributed.security import Security

NOBODY = 65534
PAGES = ("/", "/healthz", "/metrics", "/status", "/info/main/workers.html", "/json/identity.json", "/api/jobs/")
CALLS = (
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "ray.rpc.InternalKVGcsService/InternalKVKeys",
    "ray.rpc.NodeManagerService/GetNodeStats",
    "ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "ray.rpc.ReporterService/GetTraceback",
)
HOST = "127.0.0.1"


def pages(port: int, token: str | None) -> list[str]:
    """Paths that an HTTP server gives content for."""
    found, headers = [], {"Authorization": f"Bearer {token}"} if token else {}
    for path in PAGES:
        asked = urllib.request.Request(f"http://{HOST}:{port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(asked, timeout=3) as answer:
                found.append(f"http {path}: {answer.status}")
        except (OSError, urllib.error.HTTPError, ValueError, HTTPException):
            continue
    return found


async def dask(port: int, security: Security | None) -> list[str]:
    """Whether something of Dask says who it is, plainly or with a certificate of one's own."""
    found = []
    for scheme, keys in (("tcp", None), ("tls", security or Security.temporary())):
        address = f"{scheme}://{HOST}:{port}"
        arguments = keys.get_connection_args("client") if keys else None
        try:
            async with rpc(address, connection_args=arguments, timeout=3) as remote:
                answer = await asyncio.wait_for(remote.identity(), 3)
                found.append(f"dask {scheme}: {answer['type']}")
        except (TimeoutError, OSError, ValueError, TypeError, MemoryError):  # an answer in HTTP is read as a length
            continue
    return found


def ray(port: int, token: str | None) -> list[str]:
    """Calls that something of Ray does: everything but `not allowed` and `no such call`."""
    found = []
    metadata = [("authorization", f"Bearer {token or 'x' * 64}")]
    refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)
    silent = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL)
    for name in CALLS:
        for given in ([], metadata):
            with grpc.insecure_channel(f"{HOST}:{port}") as channel:
                try:
                    channel.unary_unary(f"/{name}")(b"", timeout=3, metadata=given)
                    found.append(f"ray {name}: done")
                except grpc.RpcError as error:
                    code: Any = error.code()  # type: ignore[attr-defined]
                    if code not in (*refused, *silent):
                        found.append(f"ray {name}: {code.name}")
    return found


def main() -> None:
    """Try everything, without root's rights."""
    asked = json.loads(sys.argv[1])
    security = None
    if asked["keys"]:
        files = {name: Path(asked["keys"], f"{name}.pem").read_text() for name in ("ca_file", "cert", "key")}
        security = Security(
            require_encryption=True,
            tls_ca_file=files["ca_file"],
            tls_client_cert=files["cert"],
            tls_client_key=files["key"],
        )
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)

    def attempts(port: int) -> list[str]:
        return [*pages(port, asked["token"]), *asyncio.run(dask(port, security)), *ray(port, asked["token"])]

    with ThreadPoolExecutor(16) as threads:  # most attempts wait for an answer that does not come
        found = dict(zip(asked["ports"], threads.map(attempts, asked["ports"]), strict=True))
    print(json.dumps({"uid": os.getuid(), "found": {port: what for port, what in found.items() if what}}))


if __name__ == "__main__":
    main()
