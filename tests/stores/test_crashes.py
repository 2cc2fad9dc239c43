"""A crash at every write boundary of a small study, each followed by the same run again: the same bytes, nothing lost.

The study holds what can happen to a store: one made from something else (removed, made again), one whose coordinates
are damaged (mended when it is taken up), one with a damaged chunk (its partition is forgotten and computed again), one
that is new, in a folder that is new. Each run declares, fills, marks, seals, keeps its journal, consolidates. After a
crash either everything is dead and the run begins again, or only a worker is, and the driver goes on.

Each safeguard of the contract is then taken out, and some crash must be found that it was there for.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr.storage._local

from bdflow.stores import ArraySpec, Provenance, Store, StoreSpec, Study, checks, metadata
from bdflow.stores import store as store_module
from bdflow.stores import study as study_module
from bdflow.stores.journal import ROOT, Journal, entries
from bdflow.stores.paths import RemotePath
from bdflow.stores.provenance import differences
from bdflow.stores.store import digest
from tests.support.crashes import (
    Crash,
    Files,
    Recorder,
    read_bucket,
    read_folder,
    recorded_bucket,
    recorded_folder,
    write_bucket,
    write_folder,
)

SPEC = StoreSpec(
    "A store",
    (
        ArraySpec("latent", ("stimulus", "feature"), "f4", "latent", chunks={"stimulus": 2, "feature": 2}),
        ArraySpec("stimulus_id", ("stimulus",), "i4", "id", role="coordinate"),
    ),
    {"stimulus": 2},
)
SIZES = {"stimulus": 4, "feature": 3}
GIVEN = {"stimulus_id": np.arange(4)}
OLD, NOW = Provenance("features", {"alpha": 1}), Provenance("features", {"alpha": 2})
REMADE, MENDED, REPAIRED, NEW = "targets/remade", "targets/mended", "targets/repaired", "guesses/new"
DAMAGED = (REPAIRED, 1)


def values(path: str, partition: int) -> dict[str, np.ndarray]:
    first = len(path) * 100 + partition * 10
    return {"latent": np.arange(first, first + 6, dtype="f4").reshape(2, 3)}


@dataclass
class Run:
    """What `bdflow run` does with the stores of a study; what it computes is written down."""

    place: str
    enter: Callable[[str], None] = lambda phase: None
    computed: list[tuple[str, int]] = field(default_factory=list)

    def all(self) -> None:
        """From the beginning, as the command does."""
        study = Study(self.place)
        self.enter("restore")
        lost = checks.restore(study, checks.damage_before_run(study))
        assert set(lost) <= {REMADE}, "only what is being removed has neither metadata nor a copy"
        for path in (REMADE, MENDED, REPAIRED, NEW):
            if study.state(path, NOW).kind == "stale":
                self.enter(f"remove {path}")
                study.remove(path)
        self.enter("create")
        study.create("a study", {"configuration": {"seed": 0}})
        self.stores((REMADE, MENDED, REPAIRED, NEW))

    def rest(self, path: str) -> None:
        """From the filling of one store, by a driver that lives and has declared it."""
        self.fill(Store(Study(self.place).path, path))
        paths = (REMADE, MENDED, REPAIRED, NEW)
        self.stores(paths[paths.index(path) + 1 :])

    def stores(self, paths: Sequence[str]) -> None:
        study = Study(self.place)
        for path in paths:
            self.enter(f"declare {path}")
            store = study.declare(path, SPEC, SIZES, GIVEN, NOW)
            if path == REPAIRED:
                for damage in store.damage():
                    assert damage.partition is not None, damage
                    store.forget(damage.partition)
            self.fill(store)
        self.enter("consolidate")
        study.consolidate()
        self.enter("")

    def fill(self, store: Store) -> None:
        missing = store.missing()
        self.enter(f"fill {store.path}")
        for partition in missing:
            self.computed.append((store.path, partition))
            store.write(partition, values(store.path, partition))
        self.enter(f"seal {store.path}")
        if missing and store.path == REPAIRED:
            costs = [1.0] * len(missing), [1] * len(missing), ["here:1"] * len(missing)
            Journal(store.study, "bdflow run").record(f"work on {store.path[-3:]}", {"stage": "features"}, *costs)
        if not store.sealed:
            store.seal()


def begin(place: str, flip: Callable[[str], None]) -> None:
    """The study as an earlier run with another setting left it, and a disk that flips bytes."""
    study = Study(place)
    study.create("a study", {"configuration": {"seed": 1}})
    for path, made in ((REMADE, OLD), (MENDED, NOW), (REPAIRED, NOW)):
        store = study.declare(path, SPEC, SIZES, GIVEN, made)
        for partition in store.missing():
            store.write(partition, values(path, partition))
        store.seal()
    study.consolidate()
    flip(f"{MENDED}/stimulus_id/c/0")
    flip(f"{REPAIRED}/latent/c/1/0")


def flipped(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def finished(files: Files) -> dict[str, Any]:
    """What must be the same in the end: all but the journal, which lists times; also of the metadata at the root."""
    found: dict[str, Any] = {
        name: content for name, content in files.items() if content is not None and name.split("/")[0] != ROOT
    }
    root = json.loads(found["zarr.json"])
    metadata = root["consolidated_metadata"]["metadata"]
    root["consolidated_metadata"]["metadata"] = {k: v for k, v in metadata.items() if k.split("/")[0] != ROOT}
    found["zarr.json"] = root
    return found


@dataclass
class Bench:
    """Where the study lies: how it is looked at, set back, and recorded."""

    place: str
    read: Callable[[], Files]
    write: Callable[[Files], None]
    recorded: Callable[[], AbstractContextManager[Recorder]]

    def __post_init__(self) -> None:
        def flip(name: str) -> None:
            files = self.read()
            content = files[name]
            assert content is not None
            self.write(files | {name: flipped(content)})

        begin(self.place, flip)
        self.start = self.read()
        Run(self.place).all()
        self.expected = finished(self.read())

    def crashes(self, crash: Crash | None = None) -> list[Crash]:
        """Every state in which a run can die: from the start, or one that goes on after a crash."""
        self.write(self.start if crash is None else crash.files)
        with self.recorded() as recorder:
            run = Run(self.place, lambda phase: setattr(recorder, "phase", phase))
            run.all()
        return recorder.crashes

    def undisturbed(self) -> bool:
        """Whether what is there now is what a run that nothing disturbs ends in."""
        return finished(self.read()) == self.expected

    def marked(self) -> set[tuple[str, int]]:
        """Partitions that count as written, in stores that will not be replaced."""
        study = Study(self.place)
        opened = [study.store(path) for path in study.paths() if not study.metadata_damage(path)]
        valid = [store for store in opened if not differences(store.provenance, NOW)]
        return {(store.path, int(n)) for store in valid for n in np.flatnonzero(store.markers())} - {DAMAGED}

    def wrong(self, crash: Crash, worker: bool = False) -> str | None:
        """What is not as it should be after a crash and the same run again; or, of a dead worker, after the rest."""
        self.write(crash.files)
        run = Run(self.place)
        try:
            marked = self.marked()
            if worker:
                run.rest(crash.phase.removeprefix("fill "))
            else:
                run.all()
            entries(self.place)
        except Exception as error:
            return f"{crash}: {type(error).__name__}: {str(error).splitlines()[0]}"
        files = self.read()
        lost = marked & set(run.computed)
        left = [name for name in files if name.endswith(".partial")]
        found = finished(files)
        differ = [name for name in found.keys() | self.expected.keys() if found.get(name) != self.expected.get(name)]
        if lost or left or differ:
            return f"{crash}: computed again {sorted(lost)}, left {left}, other bytes in {sorted(differ)}"
        return None

    def all_wrong(self, crashes: list[Crash]) -> Iterator[str]:
        for crash in crashes:
            for worker in (False, True) if crash.phase.startswith("fill ") else (False,):
                why = self.wrong(crash, worker)
                if why is not None:
                    yield ("worker, " if worker else "") + why


buckets = (f"memory://crashes-{number}/lab/study.zarr" for number in itertools.count())


def directory(root: Path) -> Bench:
    return Bench(
        str(root), lambda: read_folder(root), lambda files: write_folder(root, files), lambda: recorded_folder(root)
    )


def bucket(_: Path) -> Bench:
    place = next(buckets)
    store = RemotePath(place).bucket.store
    under = "lab/study.zarr/"

    def read() -> Files:
        return {name.removeprefix(under): content for name, content in read_bucket(store).items()}

    def write(files: Files) -> None:
        write_bucket(store, {under + name: content for name, content in files.items()})

    @contextlib.contextmanager
    def recorded() -> Iterator[Recorder]:
        with recorded_bucket(store) as recorder:
            recorder.look = read
            yield recorder

    return Bench(place, read, write, recorded)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A place for a study: in memory if the system has a file system there, since hundreds of studies are written."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder) / "study.zarr"


@pytest.fixture(params=[directory, bucket], ids=["directory", "bucket"])
def bench(request: pytest.FixtureRequest, root: Path) -> Bench:
    return request.param(root)


@pytest.mark.slow(kind="a crash at every boundary")
def test_a_crash_at_every_boundary_and_the_same_run_again(bench):
    crashes = bench.crashes()
    assert bench.undisturbed()
    phases = {crash.phase.split()[0] for crash in crashes}
    assert phases == {"remove", "create", "declare", "fill", "seal", "consolidate"}
    print(f"{len(crashes)} crashes")
    assert len(crashes) > 50
    assert list(itertools.islice(bench.all_wrong(crashes), 9)) == []


@pytest.mark.slow(kind="two crashes in a row")
def test_two_crashes_in_a_row(bench):
    chance = random.Random(0)
    crashes = bench.crashes()
    for first in chance.sample(crashes, 8):
        seconds = bench.crashes(first)
        assert bench.undisturbed()
        assert list(bench.all_wrong(chance.sample(seconds, min(len(seconds), 6)))) == []


def test_every_kind_of_step_is_a_boundary(root):
    """Of a directory: also half of a write, the moment before a rename, each file of a store that is removed."""
    crashes = directory(root).crashes()
    steps = {crash.step.rpartition(" ")[0] for crash in crashes}
    assert {"mkdir", "open", "write", "second half of write", "replace", "unlink", "rmdir"} <= steps
    halves = [crash for crash in crashes if crash.step.startswith("second half")]
    for crash in halves:
        name = str(Path(crash.step.split()[-1]).relative_to(root))
        assert name.endswith(".partial"), "nothing is written under its own name"
        assert crash.files[name]


# --- without a safeguard --------------------------------------------------------------------------------------


def no_sweep_at_seal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(store_module, "remove_leftovers", lambda *arguments, **options: None)


def _sweep_unless(patch: pytest.MonkeyPatch, left_out: Callable[[Path, bool], bool]) -> None:
    real = study_module.remove_leftovers

    def sweep(where: Path, *, below: bool = True) -> None:
        if not left_out(where, below):
            real(where, below=below)

    patch.setattr(study_module, "remove_leftovers", sweep)


def no_sweep_when_taken_up(patch: pytest.MonkeyPatch) -> None:
    _sweep_unless(patch, lambda where, below: below and where.name != ROOT)


def no_sweep_of_folders_at_declare(patch: pytest.MonkeyPatch) -> None:
    _sweep_unless(patch, lambda where, below: not below and where.suffix != ".zarr")


def no_sweep_at_the_root(patch: pytest.MonkeyPatch) -> None:
    _sweep_unless(patch, lambda where, below: not below and where.suffix == ".zarr")


def mark_before_data(patch: pytest.MonkeyPatch) -> None:
    real = Store.write

    def write(self: Store, partition: int, data: dict[str, np.ndarray]) -> None:
        if self.marker(partition):
            return
        with pytest.MonkeyPatch.context() as unmarked:
            progress = self.arrays["written"]
            progress[partition] = digest([data[name] for name in self.attrs["data"]])
            unmarked.setattr(Store, "marker", lambda self, partition: 0)
            real(self, partition, data)

    patch.setattr(Store, "write", write)


def write_in_place(patch: pytest.MonkeyPatch) -> None:
    def put(path: Path, value: Any, exclusive: bool = False) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            return file.write(value.as_buffer_like())

    patch.setattr(zarr.storage._local, "_put", put)


def attributes_first(patch: pytest.MonkeyPatch) -> None:
    """The group of a store gets its attributes when it is made, before its arrays."""
    real = metadata.groups_down_to
    given = {name: digest([value.astype("i4")]) for name, value in GIVEN.items()}
    record = {
        "title": SPEC.title,
        "coordinates": "stimulus_id",
        "partition": dict(SPEC.partition),
        "data": [array.name for array in SPEC.data],
        "given": given,
        "provenance": NOW.attrs(),
        "sealed": False,
    }

    def groups(backend: Any, study: Any, path: str) -> list[str]:
        made = real(backend, study, path)
        if not path.startswith("runs"):
            metadata.write_file(backend, f"{path}/{metadata.FILE}", metadata.group_text(record))
        return made

    patch.setattr(metadata, "groups_down_to", groups)


def metadata_last_when_removed(patch: pytest.MonkeyPatch) -> None:
    def remove(self: Study, path: str) -> None:
        where = self.path / path
        if isinstance(where, RemotePath):
            names = sorted(where.bucket.sizes(), key=lambda name: (name == "zarr.json", name))
            for name in names:
                where.bucket.delete(name)
        elif where.exists():
            for child in sorted(where.iterdir(), key=lambda child: child.name == "zarr.json"):
                shutil.rmtree(child) if child.is_dir() else child.unlink()
            where.rmdir()

    patch.setattr(Study, "remove", remove)


EVERYWHERE = {mark_before_data: "fill", attributes_first: "declare", metadata_last_when_removed: "remove"}
ON_DISK = {
    no_sweep_at_seal: "fill",
    no_sweep_when_taken_up: "declare",
    no_sweep_of_folders_at_declare: "declare guesses",
    no_sweep_at_the_root: "create",
    write_in_place: "seal targets/repaired",
}
"""The safeguards of both kinds of places, and those of a directory alone; and in which phase a crash needs them."""
TAKEN_OUT = pytest.mark.slow(kind="a safeguard is taken out")
WITHOUT = [
    pytest.param(directory, one, phase, id=f"directory-{one.__name__}", marks=TAKEN_OUT)
    for one, phase in (EVERYWHERE | ON_DISK).items()
]
WITHOUT += [pytest.param(bucket, one, phase, id=f"bucket-{one.__name__}") for one, phase in EVERYWHERE.items()]


@pytest.mark.parametrize(("where", "without", "phase"), WITHOUT)
def test_without_a_safeguard_some_crash_does_harm(where, without, phase, root, monkeypatch):
    bench = where(root)
    without(monkeypatch)
    crashes = [crash for crash in bench.crashes() if crash.phase.startswith(phase)]
    harm = next(bench.all_wrong(crashes), None)
    print(harm)
    assert harm is not None, "no crash was found that this safeguard is there for"
