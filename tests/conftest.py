"""Small simulated datasets and configurations, made once a session."""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml

from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.stores.remote import Bucket
from tests.support.s3 import KEYS, Proxy, Server

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background job; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("no clock", deadline=None)
hypothesis.settings.load_profile("no clock")
pytest_plugins = ("tests.support.rotation",)

SUBJECTS = ("subj01", "subj02")
SMALL = SimulateOptions(
    subjects=SUBJECTS, n_shared=6, n_own=20, volume_shape=(14, 16, 12), stimulus_size=64, trials_per_session=26
)


@pytest.fixture(scope="session")
def nsd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects, 6 shared and 20 own stimuli, 3 repeats, small photos: for tests of plumbing."""
    root = tmp_path_factory.mktemp("data") / "nsd"
    simulate(root, SMALL)
    return root


@pytest.fixture(scope="session")
def settings(nsd: Path) -> Callable[..., dict[str, Any]]:
    """A configuration as a dictionary, small and quick; keyword arguments replace top-level sections."""

    return partial(small_settings, nsd)


SPACES = ("vdvae", "clip_vision", "clip_text")


def spaces(alpha: float = 300, **ridge: dict[str, Any]) -> dict[str, Any]:
    """The three spaces of Brain-Diffuser with one penalty; by space, what else of `ridge` differs."""
    return {space: {"encoder": space, "ridge": {"alpha": alpha, **ridge.get(space, {})}} for space in SPACES}


def painter(**options: Any) -> dict[str, Any]:
    """Its painter, with few steps."""
    return {"brain_diffuser": {"steps": 4, "batch_size": 4, **options}}


def small_settings(nsd: Path, root: Path, /, **sections: Any) -> dict[str, Any]:
    """A study below `root` of the data at `nsd`."""
    return {
        "study": str(root / "study.zarr"),
        "subjects": list(SUBJECTS),
        "dataset": {"root": str(nsd), "sessions": 3},
        "networks": {"bundle": "tiny"},
        "spaces": spaces(),
        "painters": painter(),
        "report": {"path": str(root / "report"), "thumbnail": 32},
        "chunks": {"stimuli": 16, "voxels": 64, "columns": 512, "images": 4},
    } | sections


def execution(executor: str, workers: int = 1) -> dict[str, Any]:
    """Every stage on one executor."""
    stages = ("ingest", "features", "regress", "reconstruct", "evaluate")
    return {stage: {"executor": executor, "workers": workers, "threads": 1} for stage in stages}


@pytest.fixture(scope="session")
def undisturbed(settings: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study as one process computes it that nothing disturbs, up to `evaluate`; computed once for all workers
    of pytest, of which each has a copy."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed-once"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "made").exists():
            content = settings(root, execution=execution("serial"))
            (root / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
            command = [Path(sys.executable).with_name("bdflow"), "run", root / "config.yaml", "--until", "evaluate"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
            assert done.returncode == 0, done.stderr
            (root / "made").touch()
    return shutil.copytree(root / "study.zarr", tmp_path_factory.mktemp("undisturbed") / "study.zarr")


def snapshot(study: Path) -> dict[str, bytes]:
    """Every file of a study but the journal and the consolidated metadata, which list times."""
    return {
        str(file.relative_to(study)): file.read_bytes()
        for file in sorted(study.rglob("*"))
        if file.is_file() and file.relative_to(study).parts[0] not in ("runs", "zarr.json")
    }


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Snapshots that differ: the names of the files, not megabytes of what is in them."""
    if op != "==" or not (isinstance(left, dict) and isinstance(right, dict)):
        return None
    if not all(isinstance(value, bytes) for value in (*left.values(), *right.values())):
        return None
    lines = [f"only on the left: {name} ({len(left[name])} bytes)" for name in sorted(left.keys() - right.keys())]
    lines += [f"only on the right: {name} ({len(right[name])} bytes)" for name in sorted(right.keys() - left.keys())]
    for name in sorted(left.keys() & right.keys()):
        a, b = left[name], right[name]
        if a != b:
            places = [at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
            lines.append(f"{name}: {len(a)} and {len(b)} bytes, {len(places)} differ, the first at {places[:1]}")
    return [f"{len(left)} files == {len(right)} files", *lines[:40]]


def remote_snapshot(study: str) -> dict[str, bytes]:
    """As `snapshot`, of a study in an object store."""
    bucket = Bucket(study)
    names = [name for name in sorted(bucket.sizes()) if name.split("/")[0] not in ("runs", "zarr.json")]
    return {name: bucket.read(name) or b"" for name in names}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """An S3 server on loopback."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_server: Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The server behind a proxy that can fail, as the environment's object store; `bucket` is this test's own."""
    proxy = Proxy(s3_server.url)
    proxy.bucket = s3_server.bucket("test-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16])
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": proxy.url}.items():
        monkeypatch.setenv(name, value)
    yield proxy
    proxy.shutdown()
    proxy.server_close()
