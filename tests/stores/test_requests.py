"""How often an object store is asked: by one reading of each file, and a declaration asks for nothing that it wrote."""

import pickle
from collections import Counter

import numpy as np
import pytest

from bdflow.stores import ArraySpec, Provenance, StoreSpec, Study
from bdflow.stores.metadata import COPY_CHUNK, FILE
from bdflow.stores.remote import Bucket, RemoteStore
from bdflow.stores.store import PROGRESS

NAMES = [f"array{number:02d}" for number in range(12)]
SPEC = StoreSpec("A store", tuple(ArraySpec(name, ("row",), "f4", name) for name in NAMES))
MADE = Provenance("features", {}, {}, {})
PATH = "targets/a/shared"


@pytest.fixture
def asked(monkeypatch) -> Counter[tuple[str, str]]:
    """Requests by what they do and the object's name in the store, from now on."""
    found: Counter[tuple[str, str]] = Counter()

    def count(kind: str, bucket: Bucket, name: str) -> None:
        found[kind, bucket.key(name).split("study.zarr/")[-1].removeprefix(f"{PATH}/")] += 1

    def direct(kind: str):
        ask = getattr(Bucket, kind)
        monkeypatch.setattr(Bucket, kind, lambda self, name, *more: count(kind, self, name) or ask(self, name, *more))

    def through_zarr(kind: str):
        ask = getattr(RemoteStore, kind)

        async def counted(self, key, *more, **named):
            count({"get": "read", "set": "write", "exists": "head"}[kind], self.bucket, key)
            return await ask(self, key, *more, **named)

        monkeypatch.setattr(RemoteStore, kind, counted)

    for kind in ("read", "head", "write"):
        direct(kind)
    for kind in ("get", "set", "exists"):
        through_zarr(kind)
    return found


@pytest.fixture
def study(request) -> Study:
    study = Study(f"memory://requests-{request.node.name.replace('_', '-')}/study.zarr")
    study.create("a study", {})
    return study


def declare(study: Study):
    return study.declare(PATH, SPEC, {"row": 3}, {}, MADE)


def test_a_declaration_writes_each_file_once_and_asks_zarr_for_none(study, asked):
    declare(study)
    files = [f"{name}/{FILE}" for name in [*NAMES, PROGRESS, "metadata"]]
    assert [asked["write", file] for file in files] == [1] * 14
    assert asked["write", FILE] == 2, "a bare group, and in the end its attributes"
    assert [asked["read", file] for file in files] == [1] * 14, "the text of each, for the copy"
    assert sum(count for (kind, name), count in asked.items() if kind == "head" and name in files) == 0


@pytest.mark.parametrize("of", ["state", "sealed"])
def test_the_state_of_a_store_is_one_reading_of_its_metadata(study, asked, of):
    store = declare(study)
    store.write(0, {name: np.ones(3, "f4") for name in NAMES})
    store.seal()
    asked.clear()
    found = getattr(study, of)(PATH, MADE)
    if of == "sealed":
        assert found.attrs["title"] == "A store"
        assert found.missing_chunks() == []
        assert found.spec.arrays[0].dims == ("row",)
    files = [f"{name}/{FILE}" for name in [*NAMES, PROGRESS, "metadata"]]
    assert [asked["read", file] for file in [*files, COPY_CHUNK]] == [1] * 15
    assert asked["read", FILE] == 2, "once to see how old it is, once to compare it"


def test_what_was_read_is_not_kept_where_the_store_goes_to_another_process(study, asked):
    store = declare(study)
    store.write(0, {name: np.ones(3, "f4") for name in NAMES})
    store.seal()
    found = pickle.loads(pickle.dumps(study.sealed(PATH, MADE)))
    asked.clear()
    assert found.sealed
    np.testing.assert_array_equal(found.read("array03"), np.ones(3))
    assert asked["read", f"array03/{FILE}"] == 1


def test_a_chunk_is_read_by_one_request_and_verified_by_two(study, asked):
    """Once by itself, and once with its partition: that it is there is seen from the answer."""
    store = declare(study)
    store.write(0, {name: np.ones(3, "f4") for name in NAMES})
    store.seal()
    store = study.sealed(PATH, MADE)
    asked.clear()
    store.read("array03")
    store.read_into(np.empty(3, "f4"), "array04")
    assert asked == {("read", "array03/c/0"): 1, ("read", "array04/c/0"): 1}
    asked.clear()
    assert list(store.damage()) == []
    chunks = {what: times for what, times in asked.items() if what[1].startswith("array") and "/c/" in what[1]}
    assert chunks == {("read", f"{name}/c/0"): 2 for name in NAMES}
