"""The contract: declare, fill, seal; resume; refuse to mix; find, name and repair damage."""

import errno
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from bdflow.stores import (
    ArraySpec,
    CorruptChunk,
    CorruptMetadata,
    NotReady,
    Provenance,
    Store,
    StoreError,
    StoreSpec,
    Study,
    text,
)
from bdflow.stores.journal import Journal, entries
from bdflow.stores.provenance import differences
from bdflow.stores.store import digest

SPEC = StoreSpec(
    "A store",
    (
        ArraySpec("latent", ("stimulus", "feature"), "f4", "latent", "1", {"stimulus": 4, "feature": 5}),
        ArraySpec("caption", ("stimulus", "caption_number"), "str", "captions", chunks={"stimulus": 8}),
        ArraySpec("stimulus_id", ("stimulus",), "i4", "id", role="coordinate"),
        ArraySpec("label", ("feature",), "i2", "label", role="given"),
    ),
    {"stimulus": 8},
)
SIZES = {"stimulus": 20, "feature": 11, "caption_number": 2}
GIVEN = {"stimulus_id": np.arange(100, 120)[::-1], "label": np.arange(11)}
MADE = Provenance("features", {"alpha": {"vdvae": 50000}}, {"betas.nii.gz": "abc"}, {"stimuli": "123"})


def data(partition: int) -> dict[str, np.ndarray]:
    rows = np.arange(20)[partition * 8 : (partition + 1) * 8]
    return {
        "latent": (rows[:, None] * 100 + np.arange(11)).astype("f4") * (partition > 0),
        "caption": text([f"scène {row}" for row in rows] * 2).reshape(2, -1).T,
    }


@pytest.fixture
def study(tmp_path) -> Study:
    study = Study(tmp_path / "study.zarr")
    study.create("a study", {"configuration": {"seed": 0}})
    return study


def declare(study: Study, made: Provenance = MADE, path: str = "targets/vdvae") -> Store:
    return study.declare(path, SPEC, SIZES, GIVEN, made)


def fill(store: Store) -> Store:
    for partition in store.missing():
        store.write(partition, data(partition))
    store.seal()
    return store


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def flip(file: Path, at: int = 3) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(bytes(content))


def test_declare_fill_seal(study):
    assert study.state("targets/vdvae", MADE).kind == "absent"
    store = declare(study)
    assert store.missing() == [0, 1, 2]
    assert study.state("targets/vdvae", MADE).kind == "partial"
    with pytest.raises(StoreError, match="3 partitions of 3 not written yet"):
        store.seal()
    fill(store)
    state = study.state("targets/vdvae", MADE)
    assert (state.kind, state.done, state.total) == ("sealed", 3, 3)
    assert list(store.damage()) == []
    np.testing.assert_array_equal(store.read("latent", {"stimulus": slice(8, 16)}), data(1)["latent"])
    assert study.paths() == ["targets/vdvae"]


def test_a_written_partition_is_left_as_it_is(study):
    store = declare(study)
    store.write(1, data(1))
    store.write(
        1,
        {name: np.zeros_like(value) for name, value in data(1).items() if name == "latent"}
        | {"caption": data(1)["caption"]},
    )
    np.testing.assert_array_equal(store.read("latent", {"stimulus": slice(8, 16)}), data(1)["latent"])


def test_wrong_arrays_are_refused_before_anything_is_written(study):
    store = declare(study)
    before = snapshot(study.path)
    wrong = {"latent": data(2)["latent"].astype("f8"), "extra": np.zeros(2)}
    with pytest.raises(StoreError) as error:
        store.write(1, wrong)
    for word in ("shape (4, 11), expected (8, 11)", "dtype float64", "caption: not given", "extra: not an array"):
        assert word in str(error.value)
    assert snapshot(study.path) == before


def test_resuming_gives_the_same_bytes_as_never_stopping(study, tmp_path):
    fill(declare(study))
    study.consolidate()
    other = Study(tmp_path / "other.zarr")
    other.create("a study", {"configuration": {"seed": 0}})
    store = declare(other)
    store.write(2, data(2))
    (other.path / "targets/vdvae/latent/c/0").mkdir(parents=True, exist_ok=True)
    (other.path / "targets/vdvae/latent/c/0/0.1234.partial").write_bytes(b"half")
    (other.path / "targets/vdvae/latent/c/0/0").write_bytes(b"a chunk of a partition that was never marked")
    fill(declare(other))
    other.consolidate()
    assert snapshot(other.path) == snapshot(study.path)


def test_what_a_killed_worker_left_is_gone_when_the_store_is_sealed(study):
    store = declare(study)
    left = store.study / store.path / "latent/c/0/0.1234.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    for partition in range(store.n_partitions):
        store.write(partition, data(partition))
    assert left.exists()
    store.seal()
    assert not left.exists()


def test_what_was_left_beside_the_stores_is_gone_when_one_is_declared(study):
    left = [study.path / "zarr.12.partial", study.path / "targets/zarr.34.partial"]
    left[1].parent.mkdir()
    for file in left:
        file.write_bytes(b"half")
    study.create("a study", {"configuration": {"seed": 0}})
    declare(study)
    assert [file for file in left if file.exists()] == []


def test_what_was_left_in_a_sealed_store_is_gone_when_it_is_taken_up(study):
    fill(declare(study))
    left = study.path / "targets/vdvae/zarr.12.partial"
    left.write_bytes(b"half")
    declare(study)
    assert not left.exists()


def test_a_half_declared_store_is_declared_anew(study):
    declare(study)
    whole = snapshot(study.path)
    for name in list(whole):
        for victim in [name]:
            if victim == "zarr.json" or not victim.startswith("targets/vdvae/"):
                continue
            group = study.path / "targets/vdvae/zarr.json"
            group.unlink(missing_ok=True)
            (study.path / victim).unlink(missing_ok=True)
            assert not study.declared("targets/vdvae")
            declare(study)
            assert snapshot(study.path) == whole


def test_other_settings_are_refused_with_the_difference(study):
    fill(declare(study))
    changed = Provenance("features", {"alpha": {"vdvae": 60000}}, {"betas.nii.gz": "abd"}, {"stimuli": "124"})
    with pytest.raises(StoreError) as error:
        declare(study, changed)
    for word in ("alpha.vdvae: made with 50000, now 60000", "betas.nii.gz is another file", "stimuli was made diff"):
        assert word in str(error.value)
    assert study.state("targets/vdvae", changed).kind == "stale"
    with pytest.raises(NotReady, match="60000"):
        study.sealed("targets/vdvae", changed)
    with pytest.raises(NotReady, match="run the stage `features`"):
        study.sealed("targets/clip_text", MADE)
    study.remove("targets/vdvae")
    assert study.state("targets/vdvae", changed).kind == "absent"
    fill(declare(study, changed))


SLOW = replace(MADE, arithmetic={"device": "cpu", "batches": {"denoise": 8}})
QUICK = replace(MADE, arithmetic={"device": "cuda", "batches": {"denoise": 4}})
OTHERWISE = [
    "batches.denoise: begun with 8, now 4; one store does not hold both",
    'device: begun with "cpu", now "cuda"; one store does not hold both',
]


def test_a_store_that_is_half_filled_is_not_gone_on_with_in_another_arithmetic(study):
    store = declare(study, SLOW)
    assert store.provenance["arithmetic"] == SLOW.arithmetic
    assert SLOW.fingerprint == QUICK.fingerprint == MADE.fingerprint
    store.write(1, data(1))
    before = snapshot(study.path)
    state = study.state("targets/vdvae", QUICK)
    assert (state.kind, state.done, state.why) == ("stale", 1, OTHERWISE)
    with pytest.raises(StoreError, match=r"begun with 8, now 4(.|\n)*never holds both") as error:
        declare(study, QUICK)
    assert error.value.remedy == "remake"
    assert snapshot(study.path) == before
    assert study.state("targets/vdvae", SLOW).kind == "partial"
    fill(declare(study, SLOW))
    assert study.state("targets/vdvae", QUICK).kind == "sealed", "a finished store stays as it is"
    declare(study, QUICK)
    assert study.store("targets/vdvae").provenance["arithmetic"] == SLOW.arithmetic


def test_a_store_that_lacks_only_its_seal_is_sealed_in_any_arithmetic(study):
    store = declare(study, SLOW)
    for partition in store.missing():
        store.write(partition, data(partition))
    assert study.state("targets/vdvae", QUICK).kind == "partial"
    declare(study, QUICK).seal()
    assert study.state("targets/vdvae", QUICK).kind == "sealed"


def test_a_store_without_a_partition_is_declared_anew_and_says_what_is_true(study):
    declare(study, SLOW)
    assert study.state("targets/vdvae", QUICK).kind == "partial"
    assert fill(declare(study, QUICK)).provenance["arithmetic"] == QUICK.arithmetic
    assert not study.metadata_damage("targets/vdvae")


def test_a_damaged_partition_is_not_forgotten_where_it_would_be_filled_otherwise(study):
    fill(declare(study, SLOW))
    with pytest.raises(StoreError, match="would be computed in another way"):
        study.refuse_to_mix("targets/vdvae", QUICK)
    study.refuse_to_mix("targets/vdvae", SLOW)


def test_package_versions_are_recorded_but_make_nothing_stale():
    record = MADE.attrs()
    assert record["versions"]["zarr"]
    assert differences({**record, "versions": {}}, MADE) == []


@given(st.dictionaries(st.text("ab"), st.integers(0, 2), max_size=3), st.dictionaries(st.text("ab"), st.integers(0, 2)))
@settings(max_examples=100, deadline=None)
def test_fingerprints_differ_exactly_when_something_did(a, b):
    made, expected = Provenance("s", {"x": a}), Provenance("s", {"x": b})
    assert (made.fingerprint == expected.fingerprint) == (a == b)
    assert bool(differences(made.attrs(), expected)) == (a != b)


@pytest.mark.parametrize("victim", ["latent/c/3/1", "caption/c/1/0", "latent/c/4/2"])
def test_a_flipped_byte_is_found_named_and_repaired(study, victim):
    store = fill(declare(study))
    whole = snapshot(study.path)
    flip(study.path / "targets/vdvae" / victim)
    name, *chunk = victim.replace("/c/", "/").split("/")
    (damage,) = Store(study.path, "targets/vdvae").damage()
    assert (damage.array, damage.chunk) == (name, tuple(int(i) for i in chunk))
    with pytest.raises(CorruptChunk, match=victim.replace("/", "/").split("/c/")[0]) as error:
        store.read(name)
    assert error.value.partition == damage.partition
    assert pickle.loads(pickle.dumps(error.value)).chunk == damage.chunk
    store.forget(damage.partition)
    assert store.missing() == [damage.partition]
    assert not store.sealed
    fill(store)
    assert snapshot(study.path) == whole


def test_a_chunk_that_is_gone_is_damage_even_if_it_held_only_zeros(study):
    store = fill(declare(study))
    (study.path / "targets/vdvae/latent/c/0/0").unlink()
    (lost,) = store.missing_chunks()
    assert (lost.chunk, lost.partition, lost.why) == ((0, 0), 0, "no file")
    assert [d.chunk for d in store.damage()] == [(0, 0)]


def test_a_valid_chunk_in_the_wrong_place_is_damage(study):
    store = fill(declare(study))
    chunks = study.path / "targets/vdvae/latent/c"
    (chunks / "2/0").write_bytes((chunks / "3/0").read_bytes())
    (damage,) = store.damage()
    assert damage.partition == 1
    assert "other values" in damage.why


def test_damage_to_what_was_declared_is_found_and_mended(study):
    fill(declare(study))
    whole = snapshot(study.path)
    flip(study.path / "targets/vdvae/stimulus_id/c/0")
    (damage,) = Store(study.path, "targets/vdvae").damage()
    assert damage.partition is None
    declare(study)
    assert snapshot(study.path) == whole


def test_a_damaged_marker_means_the_partition_is_redone(study):
    store = fill(declare(study))
    flip(study.path / "targets/vdvae/written/c/1")
    assert store.missing() == [1]


def test_damaged_metadata_is_named(study):
    fill(declare(study))
    (study.path / "targets/vdvae/zarr.json").write_text('{"zarr_format": 3, "attr')
    assert study.state("targets/vdvae", MADE).why == ["zarr.json: metadata that is not JSON"]
    with pytest.raises(CorruptMetadata, match="not JSON"):
        study.sealed("targets/vdvae", MADE)


def test_a_full_disk_leaves_no_mark_and_says_so(study, monkeypatch):
    store = declare(study)
    store.write(0, data(0))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("zarr.storage._local._put", full)
        with pytest.raises(StoreError, match="no space left"):
            store.write(1, data(1))
    assert store.missing() == [1, 2]
    assert not list(study.path.rglob("*.partial"))
    fill(store)
    assert list(store.damage()) == []


def test_joins_are_by_coordinate(study):
    store = declare(study)
    np.testing.assert_array_equal(store.rows("stimulus_id", np.array([119, 100, 101, 100])), [0, 19, 18, 19])
    with pytest.raises(StoreError, match="no stimulus_id 99"):
        store.rows("stimulus_id", np.array([100, 99]))


@given(st.lists(st.integers(0, 19), min_size=1, max_size=6, unique=True).map(sorted), st.integers(0, 10))
@settings(max_examples=30, deadline=None)
def test_reading_any_rows_equals_indexing(tmp_path_factory, rows, column):
    root = tmp_path_factory.getbasetemp() / "shared.zarr"
    study = Study(root)
    if not study.exists:
        study.create("a study", {})
        fill(declare(study))
    store = study.store("targets/vdvae")
    whole = np.concatenate([data(i)["latent"] for i in range(3)])
    found = store.read("latent", {"stimulus": np.array(rows), "feature": slice(column, column + 1)})
    np.testing.assert_array_equal(found, whole[rows, column : column + 1])


def test_foreign_directories_and_unknown_urls_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match="other files"):
        Study(tmp_path).create("a study", {})
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    with pytest.raises(StoreError, match="URL of an unknown kind"):
        Study("ftp://bucket/study.zarr")
    with pytest.raises(StoreError, match="a whole bucket"):
        Study("s3://bucket/")
    with pytest.raises(NotReady, match="no study there"):
        Study(tmp_path / "none.zarr").root()


def test_the_digest_sees_order_and_content():
    a, b = np.arange(6, dtype="f4"), text(["x", "yz"])
    assert digest([a, b]) != digest([a, text(["xy", "z"])])
    assert digest([a]) != digest([a[::-1]])
    assert digest([a.reshape(2, 3).T.copy().T]) == digest([a.reshape(2, 3)])


def test_plain_xarray_sees_names_units_and_coordinates(study):
    fill(declare(study))
    study.consolidate()
    tree = xarray.open_datatree(study.path, engine="zarr", chunks={})
    dataset = tree["targets/vdvae"].to_dataset()
    assert dataset.latent.dims == ("stimulus", "feature")
    assert dataset.latent.attrs["long_name"] == "latent"
    assert "stimulus_id" in dataset.coords
    assert dataset.attrs["sealed"] == 1
    assert dataset.swap_dims(stimulus="stimulus_id").latent.sel(stimulus_id=111).values[0] == 800


def test_journal_keeps_every_work_of_every_run(study):
    fill(declare(study))
    for seconds in ([1.0, 2.0], [3.0]):
        journal = Journal(study.path, "bdflow run x")
        journal.name += f"-{len(seconds)}"
        journal.record("hat matrices", {"stage": "regress"}, seconds, [1] * len(seconds), ["here:1"] * len(seconds))
    found = entries(study.path)
    assert sorted(len(entry["seconds"]) for entry in found) == [1, 2]
    assert found[0]["work"] == "hat matrices"
    assert study.paths() == ["targets/vdvae"]


def test_a_process_killed_while_writing_leaves_a_store_that_resumes(study, tmp_path):
    """kill -9 in the middle of writes, again and again: what is marked is whole, the end is the same bytes."""
    store = declare(study)
    script = (
        "import sys, os, threading, time\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "from tests.stores.test_study import *\n"
        "store = Store(sys.argv[1], 'targets/vdvae')\n"
        "threading.Timer(float(sys.argv[2]), lambda: os.kill(os.getpid(), 9)).start()\n"
        "for i in store.missing(): store.write(i, data(i))\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    for delay in (0.0, 0.002, 0.005, 0.01):
        subprocess.run([sys.executable, "-c", script, study.path, str(delay), root], check=False, timeout=120)
        assert list(Store(study.path, "targets/vdvae").damage()) == []
    fill(declare(study))
    other = Study(tmp_path / "other.zarr")
    other.create("a study", {"configuration": {"seed": 0}})
    fill(declare(other))
    assert snapshot(other.path) == snapshot(study.path)
    assert store.sealed
