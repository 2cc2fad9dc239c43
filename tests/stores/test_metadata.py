"""Damaged metadata is named and written again; what is no part of a study is named. Every byte is tried."""

import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bdflow.stores import (
    ArraySpec,
    CorruptMetadata,
    Provenance,
    Store,
    StoreError,
    StoreSpec,
    Study,
    Unexpected,
    checks,
)
from bdflow.stores.journal import Journal, entries, groups
from bdflow.stores.metadata import (
    COPY,
    COPY_CHUNK,
    FILE,
    canonical,
    damage_of_bare,
    damage_of_group,
    damage_of_root,
    read_string,
)

SPEC = StoreSpec(
    "A store",
    (
        ArraySpec("latent", ("stimulus",), "f4", "latent", chunks={"stimulus": 2}, codec="zstd"),
        ArraySpec("stimulus_id", ("stimulus",), "i4", "id", role="coordinate"),
    ),
    {"stimulus": 2},
)
MADE = Provenance("features", {"alpha": 60000, "regions": None}, {"betas": "4:abc"}, {"stimuli": "12"})
PATH = "targets/vdvae"
WORST = (0x00, 0x20, 0x22, 0x2D, 0x30, 0x31, 0x5D, 0x61, 0x7B, 0xFF)
"""Bytes that are put in place of others: none that JSON or UTF-8 takes, and those that may leave it JSON."""


def made(where: Path) -> Study:
    study = Study(where)
    study.create("a study", {"configuration": {"seed": 0, "alpha": 60000.0}})
    store = study.declare(PATH, SPEC, {"stimulus": 4}, {"stimulus_id": np.arange(4)}, MADE)
    for partition in store.missing():
        store.write(partition, {"latent": np.arange(2, dtype="f4")})
    store.seal()
    Journal(where, "bdflow run x").record("work", {"stage": "features"}, [1.0], [1], ["here:1"])
    study.consolidate()
    return study


def files_of(where: Path) -> dict[str, bytes]:
    return {str(file.relative_to(where)): file.read_bytes() for file in sorted(where.rglob("*")) if file.is_file()}


def metadata_of(where: Path) -> list[str]:
    names = [name for name in files_of(where) if name.endswith(FILE)]
    assert {"zarr.json", "targets/zarr.json", f"{PATH}/zarr.json", f"{PATH}/latent/zarr.json", "runs/zarr.json"} < {
        *names
    }
    return [*names, f"{PATH}/{COPY_CHUNK}"]


def mend(study: Study, found: list[CorruptMetadata]) -> None:
    assert checks.restore(study, found) == []
    if any(not damage.store for damage in found):
        study.create("a study", {"configuration": {"seed": 0, "alpha": 60000.0}})
    study.consolidate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("whole") / "study.zarr").path


@pytest.fixture
def study(whole, tmp_path) -> Iterator[Study]:
    """A copy that a test may harm: in memory if the system has a file system there, since files are written often."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        shutil.copytree(whole, Path(folder) / "study.zarr")
        yield Study(Path(folder) / "study.zarr")


def looked_at(study: Study) -> None:
    """What looking commands ask; nothing but an error of a study may come of it."""
    for ask in (lambda: study.state(PATH, MADE), lambda: study.sealed(PATH, MADE), lambda: study.root()):
        with contextlib.suppress(StoreError):
            ask()
    entries(study.path)


def test_a_whole_study_has_no_damage(study):
    assert checks.metadata_damage(study) == []
    assert checks.unexpected(study) == []


def names_of(found: list[CorruptMetadata]) -> set[str]:
    return {f"{damage.store}/{damage.file}".lstrip("/") for damage in found}


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow(kind="bytes of metadata"))])
def test_every_changed_byte_of_metadata_is_named(study, every):
    """Every position of every file (quicker: every seventh). The byte that is put there takes turns, so that each file
    meets each byte. What is asked is what `verify` asks of that file, and of every 100th change all that it asks.
    """
    tried = 0
    for name in metadata_of(study.path):
        file = study.path / name
        owner = next((path for path in (PATH, *groups(study.path)) if name.startswith(f"{path}/")), None)
        good = file.read_bytes()
        for at, start in itertools.product(range(0, len(good), every), (0, 3, 6) if owner == PATH else (0,)):
            byte = WORST[(at + start) % len(WORST)]
            if good[at] == byte:
                continue
            tried += 1
            file.write_bytes(good[:at] + bytes([byte]) + good[at + 1 :])
            if tried % 100 == 0:
                found = checks.metadata_damage(study)
            elif owner is not None:
                found = list(damage_of_group(study.path, owner, required=True))
            elif name == FILE:
                found = list(damage_of_root(study.path)) or list(checks.damage_of_consolidated(study, set()))
            else:
                found = list(damage_of_bare(study.path, name.removesuffix(f"/{FILE}")))
            if found:
                assert names_of(found) == {name}, (name, at, byte)
            else:
                assert canonical(json.loads(file.read_bytes())) == canonical(json.loads(good)), (name, at, byte)
                assert (byte, good[at]) == (0x20, 0x0A), "white space alone is harmless"
        file.write_bytes(good)
    assert tried > 15_000 // every


@pytest.mark.slow(kind="bytes of metadata")
def test_what_a_changed_byte_leaves_is_mended_to_the_same_bytes_and_never_a_traceback(study):
    good = files_of(study.path)
    for number, name in enumerate(metadata_of(study.path)):
        for at in range(number % 7, len(good[name]), 211):
            for byte in (0xFF, good[name][at] ^ 1):
                (study.path / name).write_bytes(good[name][:at] + bytes([byte]) + good[name][at + 1 :])
                found = checks.metadata_damage(study)
                assert found
                looked_at(study)
                mend(study, found)
                assert files_of(study.path) == good, (name, at)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"{", b"\xff", None])
def test_an_emptied_cut_or_missing_file_is_named_and_mended(study, content):
    good = files_of(study.path)
    for name in metadata_of(study.path):
        if content is None:
            (study.path / name).unlink()
        else:
            (study.path / name).write_bytes(content)
        found = checks.metadata_damage(study)
        assert names_of(found) == {name}
        looked_at(study)
        mend(study, found)
        assert files_of(study.path) == good, name


def test_all_metadata_of_a_store_at_once(study):
    good = files_of(study.path)
    for name in metadata_of(study.path):
        if name.startswith(PATH) and name.endswith(FILE):
            (study.path / name).unlink()
    mend(study, checks.metadata_damage(study))
    assert files_of(study.path) == good


def test_a_partial_store_is_mended_too(study):
    Store(study.path, PATH).forget(1)
    study.consolidate()
    good = files_of(study.path)
    (study.path / PATH / FILE).write_bytes(b"")
    mend(study, checks.metadata_damage(study))
    assert files_of(study.path) == good
    assert study.state(PATH, MADE).kind == "partial"


def test_a_store_without_metadata_and_copy_is_lost_and_said_so(study):
    (study.path / PATH / FILE).write_bytes(b"{}")
    (study.path / PATH / COPY_CHUNK).write_bytes(b"nothing")
    found = checks.metadata_damage(study)
    assert {damage.store for damage in found} == {PATH}
    assert checks.restore(study, found) == [PATH]
    assert study.state(PATH, MADE).kind == "absent"


def test_the_copy_is_read_as_zarr_reads_it(study):
    import zarr

    array = zarr.open_array(str(study.path), path=f"{PATH}/{COPY}", mode="r")
    assert str(array[0]) == read_string(study.path / PATH / COPY)


def test_a_study_of_before_there_were_copies_is_not_called_damaged(study):
    import bdflow.stores.provenance as provenance

    shutil.rmtree(study.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "FORMAT", 2)
        made(study.path)
    shutil.rmtree(study.path / PATH / COPY)
    study.consolidate()
    assert checks.metadata_damage(study) == []
    assert study.state(PATH, MADE).kind == "stale"


def test_a_damaged_mark_of_a_sealed_store_is_damage(study):
    mark = study.path / PATH / "written/c/1"
    mark.write_bytes(b"\0" + mark.read_bytes()[1:])
    (damage,) = Store(study.path, PATH).damage()
    assert (damage.array, damage.partition) == ("written", 1)
    assert study.state(PATH, MADE).kind == "partial"


# --- what is no part of a study -----------------------------------------------------------------------------------


def folder_for_chunk(root: Path) -> str:
    chunk = root / PATH / "latent/c/1"
    chunk.unlink()
    chunk.mkdir()
    return f"{PATH}/latent/c/1"


def folder_for_mark(root: Path) -> str:
    chunk = root / PATH / "written/c/1"
    chunk.unlink()
    chunk.mkdir()
    return f"{PATH}/written/c/1"


def file_for_folder(root: Path) -> str:
    shutil.rmtree(root / PATH / "latent/c")
    (root / PATH / "latent/c").write_bytes(b"x")
    return f"{PATH}/latent/c"


def folder_for_metadata(root: Path) -> str:
    (root / PATH / "latent" / FILE).unlink()
    (root / PATH / "latent" / FILE).mkdir()
    return f"{PATH}/latent/{FILE}"


def folder_for_a_copy(root: Path) -> str:
    (root / PATH / COPY_CHUNK).unlink()
    (root / PATH / COPY_CHUNK).mkdir()
    return f"{PATH}/{COPY_CHUNK}"


def folder_for_the_root(root: Path) -> str:
    (root / FILE).unlink()
    (root / FILE).mkdir()
    return FILE


def link_to_nowhere(root: Path) -> str:
    chunk = root / PATH / "latent/c/1"
    chunk.unlink()
    chunk.symlink_to("nowhere")
    return f"{PATH}/latent/c/1"


def link_to_itself(root: Path) -> str:
    (root / PATH / "loop").symlink_to(root / PATH, target_is_directory=True)
    return f"{PATH}/loop"


def folder_named_partial(root: Path) -> str:
    (root / PATH / "x.partial").mkdir()
    return f"{PATH}/x.partial"


def unknown_file(root: Path) -> str:
    (root / PATH / "latent/c/notes.txt").write_text("mine")
    return f"{PATH}/latent/c/notes.txt"


def chunk_beyond_the_grid(root: Path) -> str:
    shutil.copy(root / PATH / "latent/c/1", root / PATH / "latent/c/2")
    return f"{PATH}/latent/c/2"


def file_beside_the_stores(root: Path) -> str:
    (root / "targets/notes.txt").write_text("mine")
    return "targets/notes.txt"


def folder_in_the_study(root: Path) -> str:
    (root / "mine/deep").mkdir(parents=True)
    return "mine"


def entry_of_the_journal(root: Path) -> str:
    (name,) = groups(root)
    return name


def folder_in_the_journal(root: Path) -> str:
    (root / "runs/z.partial").mkdir()
    return "runs/z.partial"


def file_in_the_journal(root: Path) -> str:
    (root / "runs/notes.txt").write_text("mine", encoding="utf-8")
    return "runs/notes.txt"


def folder_in_a_run(root: Path) -> str:
    name = entry_of_the_journal(root).rpartition("/")[0] + "/mine"
    (root / name).mkdir()
    return name


def file_in_an_entry(root: Path) -> str:
    name = entry_of_the_journal(root) + "/seconds/c/notes.txt"
    (root / name).write_text("mine", encoding="utf-8")
    return name


def folder_for_a_chunk_of_the_journal(root: Path) -> str:
    name = entry_of_the_journal(root) + "/seconds/c/0"
    (root / name).unlink()
    (root / name).mkdir()
    return name


STRANGE = [
    folder_for_chunk, folder_for_mark, file_for_folder, folder_for_metadata, folder_for_a_copy, folder_for_the_root,
    link_to_nowhere, link_to_itself, folder_named_partial, unknown_file, chunk_beyond_the_grid, file_beside_the_stores,
    folder_in_the_study, folder_in_the_journal, file_in_the_journal, folder_in_a_run, file_in_an_entry,
    folder_for_a_chunk_of_the_journal,
]  # fmt: skip


@pytest.mark.parametrize("strange", STRANGE)
def test_what_does_not_belong_is_named_and_stays(study, strange):
    name = strange(study.path)
    found = [*checks.metadata_damage(study), *checks.unexpected(study)]
    assert name in names_of(found)
    looked_at(study)
    study.create("a study", {"configuration": {}}) if strange is not folder_for_the_root else None
    if not checks.metadata_damage(study):
        study.declare(PATH, SPEC, {"stimulus": 4}, {"stimulus_id": np.arange(4)}, MADE)
    assert (study.path / name).is_symlink() or (study.path / name).exists()


def test_writing_where_a_folder_stands_says_so(study):
    folder_for_chunk(study.path)
    store = Store(study.path, PATH)
    store.forget(1)
    with pytest.raises(StoreError, match="a folder where a file belongs"):
        store.write(1, {"latent": np.arange(2, dtype="f4")})
    assert store.missing() == [1]


def test_an_object_store_too():
    study = made("memory://metadata/lab/study.zarr")
    assert checks.metadata_damage(study) == []
    assert checks.unexpected(study) == []
    bucket = study.path.bucket
    good = {name: bucket.read(name) for name in bucket.sizes()}
    for name in (FILE, f"{PATH}/{FILE}", f"{PATH}/latent/{FILE}", f"{PATH}/{COPY_CHUNK}", "targets/zarr.json"):
        bucket.write(name, good[name].replace(b"e", b"f", 1))
        found = checks.metadata_damage(study)
        assert names_of(found) == {name}
        mend(study, found)
        assert {name: bucket.read(name) for name in bucket.sizes()} == good
    bucket.write(f"{PATH}/notes.txt", b"mine")
    assert [type(one) for one in checks.unexpected(study)] == [Unexpected]
