"""Small simulated datasets and configurations, made once a session."""

import fcntl
import functools
import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import typer.main
import typer.testing

from bdflow.config import parse
from bdflow.pipeline import Pipeline, stages_until
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
OF_350 = SimulateOptions(subjects=SUBJECTS[:1], n_shared=50, n_own=300, stimulus_size=64, trials_per_session=350)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(name, make)`: a folder that `make` fills, once for all workers of pytest; nobody may change it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        root = base / f"{name}-once"
        root.mkdir(exist_ok=True)
        with (root / "lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / "made").exists():
                shutil.rmtree(root / "content", ignore_errors=True)
                (root / "content").mkdir()
                make(root / "content")
                (root / "made").touch()
        return root / "content"

    return made


@pytest.fixture(scope="session")
def nsd(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Two subjects, 6 shared and 20 own stimuli, 3 repeats, small photos: for tests of plumbing."""
    return once("small", lambda root: simulate(root / "nsd", SMALL)) / "nsd"


@pytest.fixture(scope="session")
def nsd_of_350(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """subj01, 50 shared and 300 own stimuli, 3 repeats, small photos: for tests of what can be learnt."""
    return once("of-350", lambda root: simulate(root / "nsd", OF_350)) / "nsd"


@pytest.fixture(scope="session")
def settings(nsd: Path) -> Callable[..., dict[str, Any]]:
    """A configuration as a dictionary, small and quick; keyword arguments replace top-level sections."""

    return functools.partial(small_settings, nsd)


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
def undisturbed(
    once: Callable[[str, Callable[[Path], object]], Path],
    settings: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The small study as one process computes it that nothing disturbs, up to `evaluate`; computed once for all workers
    of pytest, of which each has a copy."""

    def make(root: Path) -> None:
        config = parse(settings(root, execution=execution("serial")))
        Pipeline(config).run(tuple(stages_until("evaluate")))

    made = once("undisturbed", make)
    return shutil.copytree(made / "study.zarr", tmp_path_factory.mktemp("undisturbed") / "study.zarr")


@pytest.fixture(scope="session", autouse=True)
def commands_built_once() -> Iterator[None]:
    """typer builds all commands anew for each call, which takes longer than most commands that end with a message."""
    with pytest.MonkeyPatch.context() as patch:
        built = functools.cache(typer.main.get_command)
        patch.setattr(typer.main, "get_command", built)
        patch.setattr(typer.testing, "_get_command", built)
        yield


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
