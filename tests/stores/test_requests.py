"""How often an object store is asked: by one reading of each file, and a declaration asks for nothing that it wrote."""

import pickle
from collections import Counter

import numpy as np
import pytest

from bdflow.stores import ArraySpec, CorruptChunk, Provenance, StoreSpec, Study, checks
from bdflow.stores.metadata import COPY_CHUNK, FILE
from bdflow.stores.remote import Bucket, RemoteStore
from bdflow.stores.spec import PROGRESS
from bdflow.study.stage import Context

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
    assert [asked["read", file] for file in files] == [0] * 14, "the copy is made from what was written"
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


def test_a_chunk_is_read_and_verified_by_one_request(study, asked):
    """That it is there is seen from the answer. Only the chunks of a damaged partition are read one by one, too."""
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
    assert chunks == {("read", f"{name}/c/0"): 1 for name in NAMES}
    where = study.path / PATH / "array05/c/0"
    content = where.read_bytes()
    for broken, why in ((b"\1" + content[1:], "checksum"), (None, "no file")):
        where.write_bytes(broken) if broken else study.path.bucket.delete(f"{PATH}/array05/c/0")
        assert [(one.array, one.chunk, one.partition) for one in store.damage()] == [("array05", (0,), 0)]
        assert why in next(store.damage()).why


def test_metadata_that_was_found_whole_is_not_read_again_by_who_holds_the_lock(study, asked):
    store = declare(study)
    store.write(0, {name: np.ones(3, "f4") for name in NAMES})
    store.seal()
    of_arrays = [f"{name}/{FILE}" for name in [*NAMES, PROGRESS, "metadata"]]
    with study.remembering():
        assert study.state(PATH, MADE).kind == "sealed"
        asked.clear()
        assert study.state(PATH, MADE).kind == "sealed"
        assert study.store(PATH).spec.arrays[0].dims == ("row",)
        assert asked == {("read", FILE): 2, ("read", f"{PROGRESS}/c/0"): 1}
        store.forget(0)
        assert study.state(PATH, MADE).kind == "partial", "what fills and seals a store is seen"
        assert study.metadata_damage(PATH) == []
        assert declare(study).missing() == [0]
        attributes = (study.path / PATH / FILE).read_bytes()
        (study.path / PATH / FILE).write_bytes(attributes.replace(b"A store", b"A st0re"))
        assert [damage.file for damage in study.metadata_damage(PATH)] == [FILE]
        (study.path / PATH / FILE).write_bytes(attributes)
        other = Provenance("features", {"other": 1})
        study.remove(PATH)
        study.declare(PATH, StoreSpec("Another", SPEC.arrays[:2]), {"row": 5}, {}, other)
        assert study.store(PATH).sizes == {"row": 5, "partition": 1}
        assert set(study.whole_metadata(PATH)) == {FILE, *(f"{n}/{FILE}" for n in (*NAMES[:2], PROGRESS, "metadata"))}
    (study.path / PATH / of_arrays[1]).write_bytes(b"{}")
    assert [damage.file for damage in study.metadata_damage(PATH)] == [of_arrays[1]], "the next run reads all"
    assert study._whole is None
    assert pickle.loads(pickle.dumps(study))._whole is None


def test_verify_reads_each_file_once(study, asked):
    """Beside the files of groups, which are asked whether they are still the same."""
    store = declare(study)
    store.write(0, {name: np.ones(3, "f4") for name in NAMES})
    store.seal()
    study.consolidate()
    asked.clear()
    with study.remembering():
        nodes = dict(study.nodes())
        assert checks.metadata_damage(study, nodes) == []
        assert checks.unexpected(study, nodes) == []
        assert list(study.store(PATH).damage()) == []
    again = {name: count for (kind, name), count in asked.items() if kind == "read" and count > 1}
    assert {name for name in again if "array" in name or PROGRESS in name} == set()
    assert asked.total() < 14 + 14 + 40, "files of metadata, chunks, and some for the groups and the journal"


def test_a_step_looks_at_a_store_once(study, asked):
    store = declare(study)
    store.write(0, {name: np.ones(3, "f4") for name in NAMES})
    context = Context(None, study, {PATH: MADE}, ())
    assert not context.is_sealed(PATH)
    store.seal()
    assert context.is_sealed(PATH), "that it is not is asked again"
    asked.clear()
    assert context.is_sealed(PATH)
    assert context.ready(PATH).sealed
    assert context.ready(PATH).path == PATH
    assert asked == {("read", FILE): 1}
    study.path.bucket.delete(f"{PATH}/array05/c/0")
    context.look_again()
    assert context.is_sealed(PATH)
    for _ in range(2):
        with pytest.raises(CorruptChunk, match="array05"):
            context.ready(PATH)
