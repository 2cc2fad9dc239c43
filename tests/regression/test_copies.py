"""Copies to and from a GPU: no piece is read before it is there, none overwritten while it is read."""

from collections.abc import Iterator

import numpy as np
import pytest

from bdflow.regression.copies import PLACES, OnGpu, copies_of
from bdflow.regression.streaming import Scratch
from bdflow.stores import ArraySpec, Provenance, StoreSpec, Study
from bdflow.study.parts import Joined
from bdflow.study.target_reader import Columns, SharedBlocks, ahead
from tests.support import cupy_on_numpy
from tests.support.gpu_streams import Event, Machine, Race, Stream


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    return cupy_on_numpy.installed(monkeypatch)


ROWS = [np.full((k, 6), number, "f2") for number, k in enumerate((3, 5, 2, 9, 4, 9, 1))]  # places grow on the way


def sums(copies: OnGpu) -> list[float]:
    """Pieces that follow each other quickly, each read into host memory that is used again, as `ahead` does."""
    requests = [lambda name, piece=piece: read(copies_scratch, name, piece) for piece in ROWS]
    copies_scratch = copies.scratch()
    found = [piece.sum(dtype=np.float64) for piece in ahead(requests, copies)]
    return [float(one) for one in found]


def sums_to_the_end(machine: Machine) -> None:
    sums(copies_of("cuda"))
    machine.end()


def read(scratch: Scratch, name: str, piece: np.ndarray) -> np.ndarray:
    into = scratch.array(name, piece.shape, "f2")
    into[...] = piece
    return into


EXPECTED = [float(piece.sum(dtype="f8")) for piece in ROWS]


def test_pieces_come_whole_and_in_order(machine):
    copies = copies_of("cuda")
    assert sums(copies) == EXPECTED
    assert sums(copies) == EXPECTED, "the same places once more"
    machine.end()


def test_pieces_of_the_next_call_wait_for_those_of_the_last(machine):
    """The host's buffers are used again by the next block; fewer pieces than buffers do not wait for each other."""
    copies = copies_of("cuda")
    scratch = copies.scratch()
    for number in range(6):
        request = [lambda name, number=number: read(scratch, name, np.full((4, 6), number, "f2"))]
        for piece in ahead(request, copies):
            last = piece.sum()
    assert float(last) == 5 * 24
    machine.end()


def test_results_leave_while_the_next_are_computed(machine):
    copies = copies_of("cuda")
    waiting = []
    for piece in copies.pieces(ROWS):
        waiting.append(copies.sent({"twice": (piece + piece).T, "first": piece[:1, :]}))
        if len(waiting) > 1:
            waiting.pop(0)()
    values = waiting[0]()
    np.testing.assert_array_equal(values["twice"], 2 * ROWS[-1].T)
    np.testing.assert_array_equal(values["first"], ROWS[-1][:1])
    machine.end()


@pytest.mark.parametrize("forgotten", ["wait_event", "record"])
def test_without_its_events_a_race_is_found(machine, monkeypatch, forgotten):
    owner = Stream if forgotten == "wait_event" else Event
    monkeypatch.setattr(owner, forgotten, lambda *_: None)
    with pytest.raises(Race):
        sums_to_the_end(machine)


def test_host_memory_that_is_written_too_early_is_found(machine, monkeypatch):
    monkeypatch.setattr(OnGpu, "left", lambda self: lambda: None)
    monkeypatch.setattr(Event, "synchronize", lambda self: None)
    with pytest.raises(Race, match="host memory"):
        sums_to_the_end(machine)


def test_a_stream_for_each_copy_is_the_race_that_it_was_called(machine):
    """What `to_device` once did: the next piece takes the memory of one that is still read."""
    import cupy

    def copied(values: np.ndarray) -> cupy.ndarray:
        with Stream(non_blocking=True) as stream:
            found = cupy.asarray(values)
            stream.synchronize()
        return found

    total = 0
    for piece in ROWS:
        on_device = copied(piece)
        total = total + on_device.sum()
        del on_device
    with pytest.raises(Race, match="given back"):
        machine.end()


def test_memory_of_the_gpu_is_that_of_two_pieces(machine):
    copies = copies_of("cuda")
    seen = {id(piece._memory) for _ in range(3) for piece in copies.pieces([ROWS[3]] * 8)}
    assert len(seen) == PLACES


def targets(root, rows: dict[str, np.ndarray]) -> Joined:
    study = Study(root / "study.zarr")
    study.create("test", {})
    spec = StoreSpec(
        "targets",
        (
            ArraySpec("latent", ("stimulus_id", "feature"), "f2", "latent", chunks={"stimulus_id": 8, "feature": 4}),
            ArraySpec("stimulus_id", ("stimulus_id",), "i4", "id", role="coordinate"),
        ),
        {"stimulus_id": 8},
    )
    stores = []
    for name, values in rows.items():
        sizes = {"stimulus_id": len(values), "feature": values.shape[1]}
        store = study.declare(f"targets/{name}", spec, sizes, {"stimulus_id": np.arange(len(values))}, Provenance("t"))
        for partition in store.missing():
            store.write(partition, {"latent": values[spec.region(sizes, partition)["stimulus_id"]]})
        stores.append(store)
    return Joined(stores)


def test_a_block_is_read_once_for_all_subjects(tmp_path, monkeypatch):
    """Each chunk once, whatever the subjects share; each gets its rows in its own order."""
    rng = np.random.default_rng(0)
    parts = {name: rng.normal(size=(n, 9)).astype("f2") for name, n in (("shared", 16), ("a", 21), ("b", 17))}
    joined, values = targets(tmp_path, parts), np.concatenate(list(parts.values()))
    wanted = {
        "test a": np.arange(16),
        "test b": np.arange(16),
        "train a": np.arange(16, 37),
        "train b": np.concatenate([[3, 5], np.arange(37, 54)]),
        "odd": np.array([40, 20, 21, 2]),
    }
    reads = []
    read_into = type(joined.first).read_into
    monkeypatch.setattr(
        type(joined.first), "read_into", lambda self, *args: (reads.append(self.path), read_into(self, *args))[1]
    )
    blocks = SharedBlocks(joined, wanted, 8)
    for columns in (slice(0, 4), slice(8, 9)):
        reads.clear()
        block = blocks.read({"feature": columns}, Scratch(), "block")
        assert reads == ["targets/shared", "targets/a", "targets/b"]
        for name, rows in wanted.items():
            pieces = blocks.pieces(block, name)
            assert max(len(piece) for piece in pieces) <= 8
            np.testing.assert_array_equal(np.concatenate(pieces), values[rows, columns])
            assert name in ("train b", "odd") or all(np.shares_memory(piece, block) for piece in pieces)
    assert blocks.key("test a") == blocks.key("test b") != blocks.key("train a")


def test_columns_come_to_the_gpu_as_to_the_host(tmp_path, machine):
    rng = np.random.default_rng(0)
    joined = targets(tmp_path, {"all": rng.normal(size=(45, 9)).astype("f2")})
    copies = copies_of("cuda")
    for rows in (np.arange(3, 44), rng.permutation(45)[:20]):
        columns = Columns(joined, rows, 6)
        request = {"feature": slice(4, 8)}
        host = [piece.copy() for piece in ahead(columns.requests(request, Scratch()))]
        gpu = [(piece + 0).get() for piece in ahead(columns.requests(request, copies.scratch()), copies)]
        for a, b in zip(host, gpu, strict=True):
            np.testing.assert_array_equal(a, b)
    machine.end()
