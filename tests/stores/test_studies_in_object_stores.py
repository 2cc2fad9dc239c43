"""A study in an object store: the same bytes as on disk, whatever the store and the run go through."""

import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from bdflow.stores import Store, Study
from bdflow.stores.remote import Bucket, Unreachable
from tests.conftest import execution, remote_snapshot, snapshot
from tests.support.s3 import others

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]
BDFLOW = Path(sys.executable).with_name("bdflow")
MIXED = {**execution("dask", 2), "features": {"executor": "ray", "workers": 2}}


def configuration(settings, folder: Path, study: str, where: dict | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    content = settings(folder, study=study, execution=where or execution("serial"))
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "config.yaml"


def start(config: Path, until: str = "evaluate", command: str = "run") -> psutil.Popen:
    words = [str(BDFLOW), command, str(config), *(["--until", until] if until else [])]
    return psutil.Popen(words, stdout=subprocess.DEVNULL, stderr=(config.parent / "stderr.txt").open("w"))


def ended(process: psutil.Popen, config: Path, seconds: float) -> tuple[int, str]:
    """Its exit code, and what it said. Fails with that if it is not through in time; its processes are then killed."""
    try:
        code = process.wait(seconds)
    except psutil.TimeoutExpired:
        for child in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        pytest.fail(f"not through after {seconds:g} s; it said:\n{(config.parent / 'stderr.txt').read_text()[-3000:]}")
    return code, (config.parent / "stderr.txt").read_text()


def finish(config: Path, until: str = "evaluate", expected: int = 0) -> str:
    code, said = ended(start(config, until), config, 900)
    assert code == expected, said[-3000:]
    return said


def verify(config: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([BDFLOW, "verify", config, *options], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("fault", ["500", "503", "slow", "reset before", "reset after", "truncate"])
def test_every_fault_is_asked_again_as_often_as_is_allowed_and_no_more(s3, monkeypatch, fault):
    monkeypatch.setenv("BDFLOW_STORE_ATTEMPTS", "3")
    monkeypatch.setenv("BDFLOW_STORE_TIMEOUT", "1")
    bucket = Bucket(s3.bucket + "/lab")
    bucket.write("key", b"0123456789")
    s3.rate, s3.faults, s3.slowness = 1.0, (fault,), 2
    with pytest.raises(Unreachable, match="3 attempts"):
        bucket.read("key")
    with pytest.raises(Unreachable, match="3 attempts"):
        bucket.write("other", b"0123456789")
    with pytest.raises(Unreachable, match="3 attempts"):
        bucket.head("key")
    path = "/" + s3.bucket.removeprefix("s3://") + "/lab/"
    asked = {method: s3.asked[method, path + name] for method, name in (("GET", "key"), ("HEAD", "key"))}
    assert asked == {"GET": 3, "HEAD": 3}
    assert s3.asked["PUT", path + "other"] == 3
    s3.rate = 0.0
    assert bucket.read("absent") is None
    assert s3.asked["GET", path + "absent"] == 1, "what is not there is asked for once"


@pytest.fixture
def local(undisturbed) -> Path:
    return undisturbed


@pytest.mark.integration(kind="object store: a whole run goes through faults")
def test_a_study_in_s3_is_the_local_one(settings, local, s3, tmp_path):
    """By Dask and Ray workers; seen by plain xarray; a damaged and a lost object are found and mended; reported.

    What comes after the first run is done by one process: which executor computes a chunk again is no matter of S3.
    """
    url = s3.bucket + "/lab/study.zarr"
    finish(configuration(settings, tmp_path / "mixed", url, MIXED))
    config = configuration(settings, tmp_path, url)
    reference = snapshot(local)
    assert remote_snapshot(url) == reference
    root = json.loads(Study(url).path.bucket.read("zarr.json"))
    assert root["attributes"] == json.loads((local / "zarr.json").read_text())["attributes"]
    assert not (Study(url).path.with_name("study.zarr.lock")).is_file(), "the lock is given back"

    script = (
        "import sys, xarray\n"
        "options = {'key': 'loopback', 'secret': 'loopback', 'client_kwargs': {'endpoint_url': sys.argv[2]}}\n"
        "tree = xarray.open_datatree(sys.argv[1], engine='zarr', chunks={}, storage_options=options)\n"
        "print(tree['betas/subj01'].beta.dims, type(tree['betas/subj01'].beta.data).__module__)\n"
        "print(int(tree['guesses/brain_diffuser/subj01'].image.sum()))\n"
    )
    done = subprocess.run([others("python"), "-c", script, url, s3.url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    total = int(Store(local, "guesses/brain_diffuser/subj01").read("image").sum(dtype="i8"))
    assert done.stdout.split("\n")[:2] == ["('trial', 'voxel') dask.array.core", str(total)]

    bucket = Study(url).path.bucket
    content = bytearray(bucket.read("targets/vdvae/subj01/latent/c/1/0"))
    content[7] ^= 1
    bucket.write("targets/vdvae/subj01/latent/c/1/0", bytes(content))
    bucket.delete("responses/subj02/averaged/response/c/0/0")
    mended = verify(config, "--repair")
    assert mended.returncode == 0, mended.stderr[-3000:]
    assert "targets/vdvae/subj01/latent, chunk c/1/0" in mended.stderr
    assert "responses/subj02/averaged/response, chunk c/0/0" in mended.stderr
    assert "2 damaged files written or computed again" in mended.stdout
    assert remote_snapshot(url) == reference
    finish(config, until="report")
    assert (tmp_path / "report/index.html").is_file()


@pytest.mark.integration(kind="object store: a whole run goes through faults")
def test_killed_and_begun_again_in_s3(settings, local, s3, tmp_path):
    url = s3.bucket + "/study.zarr"
    config = configuration(settings, tmp_path, url)
    chance, study, kills, progress = random.Random(3), Study(url), 0, [0]
    for stores in (2, 12):
        process = start(config)
        while process.poll() is None and len(study.paths()) < stores:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 1.0))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait(30)
        opened = [study.store(path) for path in study.paths()]
        assert [list(store.damage()) for store in opened] == [[]] * len(opened)
        progress.append(sum(int((store.markers() > 0).sum()) for store in opened))
    assert kills == 2
    assert progress == sorted(progress), "nothing that was marked is lost"
    finish(config)
    assert remote_snapshot(url) == snapshot(local)


@pytest.mark.integration(kind="object store: a whole run goes through faults")
def test_through_errors_resets_delays_and_cut_answers(settings, local, s3, tmp_path, monkeypatch):
    """Every thirtieth request fails, in six ways: the run ends in the same bytes, and asks as often as it may."""
    monkeypatch.setenv("BDFLOW_STORE_TIMEOUT", "3")
    url = s3.bucket + "/study.zarr"
    s3.rate, s3.slowness = 0.03, 5
    s3.faults = ("500", "503", "reset before", "reset after", "truncate") * 3 + ("slow",)
    finish(configuration(settings, tmp_path, url))
    s3.rate = 0
    print(dict(s3.failed), s3.asked.total())
    assert all(s3.failed[fault] for fault in ("500", "503", "reset before", "reset after", "truncate", "slow"))
    assert remote_snapshot(url) == snapshot(local)


@pytest.mark.integration(kind="object store: a whole run goes through faults")
def test_a_store_that_stays_away_ends_the_run_clearly_and_nothing_is_lost(settings, local, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("BDFLOW_STORE_ATTEMPTS", "4")
    url = s3.bucket + "/study.zarr"
    config = configuration(settings, tmp_path, url)
    process = start(config)
    study = Study(url)
    while process.poll() is None and not study.declared("targets/vdvae/subj01"):
        time.sleep(0.05)
    before = {path: int((study.store(path).markers() > 0).sum()) for path in study.paths()}
    s3.away = True
    code, said = ended(process, config, 120)
    assert code == 1, said[-3000:]
    assert 4 <= s3.turned_away <= 80, "ten requests at a time, four attempts each, and the lock's"
    for words in (
        "found no proper answer in 4 attempts",
        "Nothing that is marked as written is lost",
        "What to do: run",
    ):
        assert words in said, said
    assert "Traceback" not in said
    s3.away = False
    for path, marked in before.items():
        assert (study.store(path).markers() > 0).sum() >= marked
    finish(config)
    assert remote_snapshot(url) == snapshot(local)


@pytest.mark.integration(kind="object store: a whole run goes through faults")
def test_a_minute_without_the_store_costs_a_minute(settings, local, s3, tmp_path):
    url = s3.bucket + "/study.zarr"
    config = configuration(settings, tmp_path, url)
    process = start(config, "ingest")
    while process.poll() is None and not Study(url).declared("betas/subj01"):
        time.sleep(0.05)
    s3.away = True
    time.sleep(60)
    assert process.poll() is None
    s3.away = False
    code, said = ended(process, config, 300)
    assert code == 0, said[-3000:]
    assert s3.turned_away
    reference = snapshot(local)
    ingested = remote_snapshot(url)
    assert {name.split("/")[0] for name in ingested} == {"stimuli", "betas", "responses"}
    assert ingested.items() <= reference.items()


@pytest.mark.integration(kind="two runs on one study")
def test_the_second_of_two_runs_is_refused(settings, s3, tmp_path):
    url = s3.bucket + "/study.zarr"
    first = configuration(settings, tmp_path / "first", url)
    second = configuration(settings, tmp_path / "second", url)
    process = start(first, "ingest")
    lock = Study(url).path.with_name("study.zarr.lock")
    while process.poll() is None and not lock.is_file():
        time.sleep(0.05)
    said = finish(second, "ingest", expected=1)
    assert process.poll() is None, "the first was still at it"
    assert f"in use by process {process.pid}" in said
    code, said = ended(process, first, 300)
    assert code == 0, said[-3000:]
    finish(second, "ingest")
