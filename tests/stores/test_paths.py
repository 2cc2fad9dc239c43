"""Places: object stores answer to the words of paths, keep the contract, and never take silence for absence."""

import asyncio
import io
import itertools
import json
import pickle
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore import exceptions

from bdflow.stores import CorruptChunk, StoreError, Study, locks
from bdflow.stores.journal import Journal, entries
from bdflow.stores.paths import KEPT, RemoteFile, RemotePath, place, zarr_store
from bdflow.stores.remote import Bucket, Patience, Unreachable, credentials
from tests.stores.test_study import MADE, data, declare, fill, snapshot

names = (f"memory://place-{number}" for number in itertools.count())


@pytest.fixture
def study() -> Study:
    study = Study(next(names) + "/lab/study.zarr")
    study.create("a study", {"configuration": {"seed": 0}})
    return study


def content(study: Study) -> dict[str, bytes]:
    bucket = study.path.bucket
    return {name: bucket.read(name) for name in sorted(bucket.sizes())}


def test_the_contract_holds_and_the_bytes_are_those_of_a_directory(study, tmp_path):
    local = Study(tmp_path / "study.zarr")
    local.create("a study", {"configuration": {"seed": 0}})
    for each in (study, local):
        fill(declare(each))
        each.consolidate()
    assert content(study) == snapshot(local.path)
    store = pickle.loads(pickle.dumps(study.store("targets/vdvae")))
    assert store.nbytes_stored == local.store("targets/vdvae").nbytes_stored
    assert study.paths() == ["targets/vdvae"]
    np.testing.assert_array_equal(store.read("latent", {"stimulus": slice(8, 16)}), data(1)["latent"])
    tree = xarray.open_datatree(pickle.loads(pickle.dumps(zarr_store(study.path))), engine="zarr", chunks={})
    assert tree["targets/vdvae"].latent.shape == (20, 11)
    assert store.dataset().latent.shape == (20, 11)
    journal = Journal(study.path, "bdflow run x")
    journal.record("hat matrices", {"stage": "regress"}, [1.0], [1], ["here:1"])
    assert [entry["work"] for entry in entries(study.path)] == ["hat matrices"]
    assert study.paths() == ["targets/vdvae"]


def test_resuming_finding_damage_and_removing(study):
    store = declare(study)
    store.write(1, data(1))
    assert declare(study).missing() == [0, 2]
    whole = fill(declare(study))
    before = content(study)
    bucket = study.path.bucket
    bucket.write("targets/vdvae/latent/c/3/1", before["targets/vdvae/latent/c/3/1"][:-1] + b"?")
    bucket.delete("targets/vdvae/latent/c/0/0")
    assert [d.chunk for d in whole.missing_chunks()] == [(0, 0)]
    assert {(d.chunk, d.partition) for d in whole.damage()} == {((0, 0), 0), ((3, 1), 1)}
    with pytest.raises(CorruptChunk):
        whole.read("latent", {"stimulus": slice(12, 16)})
    for partition in (0, 1):
        whole.forget(partition)
    fill(declare(study))
    assert content(study) == before
    study.remove("targets/vdvae")
    assert study.paths() == []
    assert not (study.path / "targets/vdvae").exists()
    with pytest.raises(StoreError, match="other files"):
        Study(study.path.parent).create("another", {})


# --- silence is not absence ------------------------------------------------------------------------------------

QUICK = Patience(attempts=4, first=0.001, longest=0.002)


def failing(error: Exception, times: int, answer: object = b"there"):
    calls = []

    def ask(*args, **kwargs):
        calls.append(time.monotonic())
        if len(calls) <= times:
            raise error
        return answer

    return ask, calls


def bucket(patience: Patience = QUICK) -> Bucket:
    made = Bucket(next(names))
    made.patience = patience
    return made


@pytest.mark.parametrize("text", ["status code: 500 Internal", "status code: 503", "error sending request", "429"])
def test_what_may_pass_is_asked_again_and_not_for_ever(text):
    ask, calls = failing(exceptions.GenericError(text), 3)
    assert bucket().again("key", ask) == b"there"
    ask, calls = failing(exceptions.GenericError(text), 99)
    with pytest.raises(Unreachable, match="4 attempts") as error:
        bucket().again("key", ask)
    assert len(calls) == 4
    for words in ("found", "expected", "Nothing that is marked as written is lost", "What to do"):
        assert words in str(error.value)


def test_what_will_not_pass_is_said_at_once():
    for error, said, times in (
        (exceptions.PermissionDeniedError("status code: 403"), "a refusal", 1),
        (exceptions.GenericError("status code: 400 Bad Request"), "a refusal", 1),
        (exceptions.GenericError("status code: 501 Not Implemented"), "a refusal", 1),
        (exceptions.GenericError("... 404 ... <Code>NoSuchBucket</Code>"), "no such bucket", 1),
        (exceptions.GenericError("Error performing PUT http://169.254.169.254/latest/api/token"), "no credentials", 3),
    ):
        ask, calls = failing(error, 99)
        with pytest.raises(StoreError, match=said):
            bucket().again("key", ask)
        assert len(calls) == times


def test_a_mark_that_cannot_be_read_is_not_a_mark_that_is_absent(study, monkeypatch):
    """A server that answers 500 makes every look at the progress an error, never 'nothing written yet'."""
    store = fill(declare(study))

    async def broken(*args, **kwargs):
        raise exceptions.GenericError("status code: 500")

    def broken_too(*args, **kwargs):
        raise exceptions.GenericError("status code: 500")

    fresh = Study(study.path).store("targets/vdvae")
    assert fresh.arrays
    for remote in (store, fresh):
        for array in remote.arrays.values():
            array.store_path.store.bucket.patience = QUICK
    study.path.bucket.patience = QUICK
    monkeypatch.setattr(Patience, "usual", classmethod(lambda cls: QUICK))
    for name in ("get_async", "head_async", "list_with_delimiter_async"):
        monkeypatch.setattr(f"obstore.{name}", broken)
    for name in ("get", "head", "list", "list_with_delimiter"):
        monkeypatch.setattr(f"obstore.{name}", broken_too)
    for look in (
        fresh.markers,
        fresh.missing,
        fresh.missing_chunks,
        lambda: fresh.write(0, data(0)),
        lambda: list(fresh.damage()),
        lambda: fresh.read("latent"),
        lambda: study.declared("targets/vdvae"),
        lambda: study.state("targets/vdvae", MADE),
        lambda: study.exists,
        lambda: declare(study),
    ):
        with pytest.raises(Unreachable):
            look()


def test_pauses_double_up_to_a_bound_and_differ_between_workers(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    ask, _ = failing(exceptions.GenericError("status code: 503"), 10**9)
    for _ in range(50):
        with pytest.raises(Unreachable, match="10 attempts"):
            bucket(Patience()).again("key", ask)
    pauses = np.array(waited).reshape(50, 9)
    assert (pauses.max(axis=0) <= [0.3, 0.6, 1.2, 2.4, 4.8, 9.6, 19.2, 36, 36]).all()
    assert 60 < pauses.sum(axis=1).min() < pauses.sum(axis=1).max() < 120
    assert len(set(pauses[:, 0])) == 50


def test_zarrs_requests_wait_and_end_as_all_others(monkeypatch):
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    ask, calls = failing(exceptions.GenericError("status code: 503"), 10**9)

    async def asked() -> object:
        return ask()

    made = bucket(Patience(attempts=5))
    with pytest.raises(Unreachable, match="5 attempts"):
        asyncio.run(made.again_async("key", asked))
    assert len(calls) == 5
    assert (np.abs(np.array(waited) / [0.25, 0.5, 1, 2] - 1) <= 0.2).all()
    ask, calls = failing(exceptions.PermissionDeniedError("status code: 403"), 99)
    with pytest.raises(StoreError, match="a refusal"):
        asyncio.run(made.again_async("key", asked))
    assert len(calls) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), ValueError("a defect")])
def test_who_stops_a_run_does_not_wait_for_the_store(error):
    for again in (bucket().again, lambda name, ask: asyncio.run(bucket().again_async(name, ask))):
        ask, calls = failing(error, 99)
        with pytest.raises(type(error)):
            again("key", ask)
        assert len(calls) == 1


def test_an_answer_cut_short_is_asked_again(monkeypatch):
    made = bucket()
    made.write("key", b"0123456789")
    monkeypatch.setattr(
        "bdflow.stores.remote._complete", lambda content, size: (_ for _ in ()).throw(ConnectionError("cut"))
    )
    with pytest.raises(Unreachable, match="cut"):
        made.read("key")


# --- words of paths --------------------------------------------------------------------------------------------


def test_urls_answer_like_paths():
    path = place("s3://bucket/lab//study.zarr/")
    assert isinstance(path, RemotePath)
    assert str(path) == "s3://bucket/lab/study.zarr"
    assert (path.name, path.suffix, str(path.parent)) == ("study.zarr", ".zarr", "s3://bucket/lab")
    assert [str(p) for p in path.parents] == ["s3://bucket/lab", "s3://bucket"]
    assert str(path.with_name("other")) == "s3://bucket/lab/other"
    assert path / "a/b" == RemotePath("s3://bucket/lab/study.zarr/a/b")
    assert pickle.loads(pickle.dumps(path)) == path
    for wrong in ("ftp://host/file", "s3://", "https://host/x"):
        with pytest.raises(StoreError, match="unknown kind"):
            place(wrong)


def test_globs_and_looks():
    root = place(next(names))
    for name in ("a/x1/deep/f.nii.gz", "a/x2/deep/f.nii.gz", "a/x2/deep/g.txt", "a/y/deep/f.nii.gz", "top"):
        (root / name).write_bytes(name.encode())
    assert [str(p).removeprefix(str(root)) for p in root.glob("a/x*/deep")] == ["/a/x1/deep", "/a/x2/deep"]
    assert [p.name for p in (root / "a/x2/deep").glob("*.nii.gz")] == ["f.nii.gz"]
    assert [p.parents[1].name for p in root.glob("a/*/deep/f*")] == ["x1", "x2", "y"]
    assert (root / "top").is_file()
    assert not (root / "top").is_dir()
    assert (root / "a").is_dir()
    assert not (root / "a").is_file()
    assert not (root / "to").exists()
    assert (root / "top").stat().st_size == 3
    with pytest.raises(FileNotFoundError):
        (root / "none").read_bytes()


CONTENT = np.random.default_rng(0).bytes(3_000_000)


@given(st.lists(st.tuples(st.integers(0, len(CONTENT) + 10), st.integers(0, 600_000)), max_size=12), st.booleans())
@settings(max_examples=30, deadline=None)
def test_reading_and_seeking_as_in_a_file(steps, onwards):
    path = place("memory://place-file/file")
    if not path.is_file():
        path.write_bytes(CONTENT)
    with path.open() as found, io.BytesIO(CONTENT) as expected:
        for at, length in steps:
            if not onwards:
                assert found.seek(at) == expected.seek(at)
            assert found.read(length) == expected.read(length)
            assert found.tell() == expected.tell()
        assert len(found.raw._pieces) <= KEPT + 1


def test_reading_on_asks_for_longer_pieces():
    path = place(next(names)) / "file"
    path.write_bytes(bytes(40_000_000))
    raw = RemoteFile(path.parent.bucket, "file")
    asked, reading = [], raw.bucket.read_range
    raw.bucket.read_range = lambda name, start, stop: asked.append(stop - start) or reading(name, start, stop)
    while raw.read(500_000):
        pass
    assert sum(asked) == 40_000_000, "nothing is asked for twice"
    assert len(asked) <= 11


# --- the lock --------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(locks, "RENEW_INTERVAL", 0.1)
    monkeypatch.setattr(locks, "STALE", 0.4)


def abandoned(path: RemotePath, **changes: object) -> dict:
    """A lock as another machine left it."""
    record = {"key": "1", "host": "far", "pid": 4, "process": "9", "machine": "m", "command": "bdflow", "beats": 3}
    path.with_name(path.name + ".lock").write_bytes(json.dumps(record | changes).encode())
    return record


def test_the_lock_is_held_by_one_and_given_back():
    path = place(next(names)) / "study.zarr"
    with locks.lease(path, "bdflow run x"):
        with pytest.raises(StoreError, match=r"in use by process .* on .*bdflow run x"), locks.lease(path):
            pass
        assert path.with_name("study.zarr.lock").is_file()
    assert not path.with_name("study.zarr.lock").is_file()
    with locks.lease(path):
        pass


def test_a_dead_holder_here_is_followed_at_once_and_one_elsewhere_when_it_is_still(quick, monkeypatch):
    path = place(next(names)) / "study.zarr"
    abandoned(path, machine=locks._machine(), host=socket.gethostname(), pid=2**22 + 1)
    waited: list[float] = []
    monkeypatch.setattr(locks, "time", SimpleNamespace(sleep=waited.append))
    with locks.lease(path):
        assert waited == []
    abandoned(path)
    with locks.lease(path):
        assert sum(waited) >= locks.STALE


def test_a_holder_elsewhere_that_renews_its_lock_is_left_alone(quick):
    path = place(next(names)) / "study.zarr"
    beats, stop = itertools.count(), threading.Event()

    def renew() -> None:
        while not stop.wait(0.05):
            abandoned(path, beats=next(beats))

    abandoned(path)
    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(StoreError, match="process 4 on far"), locks.lease(path):
        pass
    stop.set()
    thread.join()


def test_the_lock_is_renewed_and_who_lost_it_stops(quick):
    path = place(next(names)) / "study.zarr"
    lock = path.with_name("study.zarr.lock")

    def held() -> None:
        with locks.lease(path):
            first = lock.read_bytes()
            time.sleep(0.35)
            assert lock.read_bytes() != first
            abandoned(path)
            time.sleep(5)

    with pytest.raises(StoreError, match="taken over by process 4 on far"):
        held()
    assert json.loads(lock.read_bytes())["host"] == "far", "the other's lock is left alone"


def test_a_store_that_cannot_refuse_a_second_object_is_refused(monkeypatch):
    path = place(next(names)) / "study.zarr"
    write = Bucket.write
    monkeypatch.setattr(Bucket, "write", lambda self, name, content, mode="overwrite": write(self, name, content))
    with pytest.raises(StoreError, match="conditional writes"), locks.lease(path):
        pass


# --- credentials -----------------------------------------------------------------------------------------------


def test_credentials_come_from_the_files_unless_the_environment_has_them(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-west-1\nendpoint_url = http://minio:9000\n")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = ID\naws_secret_access_key = a%b\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    assert credentials() == {"region": "us-east-1"}
    monkeypatch.setenv("AWS_PROFILE", "lab")
    found = {"access_key_id": "ID", "secret_access_key": "a%b", "region": "eu-west-1", "endpoint": "http://minio:9000"}
    assert credentials() == found
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    assert credentials() == {"endpoint": "http://localhost:1"}
