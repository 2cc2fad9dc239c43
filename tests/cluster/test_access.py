"""Nobody but the processes of a run gets anything from the ports that it opens."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bdflow.cluster import Resources, access, open_executor, ray_session
from bdflow.cluster.access import RAY_TOKEN, key_options, private_folder
from bdflow.cluster.scratch import Scratch, nobody
from tests.support.other_user import intrude, ports

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def make_worker():
    return abs


def during(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Scratch, look_too: Callable[[], None] = int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What another user gets while a run goes on: without its secrets, and with them."""
    keys = private_folder(tmp_path / "keys", nobody())
    tokens: list[str] = []
    real = access.ray_variables
    monkeypatch.setattr(ray_session, "ray_variables", lambda: tokens.append(real()) or tokens[-1])
    found: list[dict[str, Any]] = []
    here = psutil.Process()
    before = ports(here)

    def look(done: object) -> None:
        if not found:
            if kind == "dask":
                key_options(executor._own.cluster.security, keys)
            found.append(intrude(ports(here) - before))
            look_too()
            found.append(
                intrude(
                    ports(here) - before, tokens[0][RAY_TOKEN] if tokens else None, keys if kind == "dask" else None
                )
            )

    with open_executor(kind, scratch=owner) as executor:
        executor.run(make_worker, range(3), resources=Resources(workers=2), on_done=look)
    without, with_secrets = found
    return without, with_secrets


@pytest.mark.slow(kind="another user at the ports of workers")
def test_another_user_gets_nothing_from_dask_while_a_run_goes_on(tmp_path, monkeypatch):
    without, with_secrets = during("dask", tmp_path, monkeypatch, Scratch.of(str(tmp_path), tmp_path))
    assert len(without.pop("asked")) >= 6, "of the scheduler, two nannies and two workers, and for HTTP"
    assert without == {}
    answers = [line for lines in with_secrets.values() for line in lines if isinstance(line, str)]
    assert sorted(set(answers)) == ["dask tls: Nanny", "dask tls: Scheduler", "dask tls: Worker"]


@pytest.mark.slow(kind="another user at the ports of workers")
@pytest.mark.usefixtures("no_ray")
def test_another_user_gets_nothing_from_ray_while_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    owner, seen = Scratch.of(str(tmp_path)), []
    Path(f"/tmp/{owner.name}-of_killed/r").mkdir(parents=True)

    def folder() -> None:
        seen.extend((path.name, stat.S_IMODE(path.stat().st_mode)) for path in Path("/tmp").glob(f"{owner.name}-*"))
        assert list(Path("/tmp", seen[0][0]).rglob("sockets/raylet"))

    without, with_secrets = during("ray", tmp_path, monkeypatch, owner, folder)
    ((name, mode),) = seen
    assert not name.endswith("of_killed"), "what a killed run left is swept"
    assert mode == 0o700
    assert list(Path("/tmp").glob(f"{owner.name}-*")) == []
    assert len(without.pop("asked")) >= 5
    assert without == {}
    answers = {line for lines in with_secrets.values() for line in lines if isinstance(line, str)}
    assert "ray ray.rpc.NodeInfoGcsService/GetAllNodeInfo: done" in answers
    assert len({line.split("/")[0] for line in answers}) >= 3, "servers of several kinds let in who has the token"


def test_the_users_own_choice_of_ray_stays(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert access.ray_variables() == {}
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/me/token")
    assert access.ray_variables() == {"RAY_AUTH_MODE": "token"}
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    assert len(access.ray_variables()["RAY_AUTH_TOKEN"]) == 64


def test_keys_lie_in_a_folder_of_this_user_alone_and_those_of_killed_runs_go(tmp_path):
    owner = Scratch.of("a study")
    killed, other = private_folder(tmp_path, owner), private_folder(tmp_path, nobody())
    folder = private_folder(tmp_path, owner)
    assert not killed.exists()
    assert other.exists()
    words = key_options(access.dask_security(), folder)
    assert words[::2] == ["--tls-ca-file", "--tls-cert", "--tls-key"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(Path(file).read_text().startswith("-----BEGIN") for file in words[1::2])
