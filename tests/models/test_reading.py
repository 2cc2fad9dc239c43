"""Tensors come out of files by several threads as they lie there, in any dtype."""

import os
import threading
from pathlib import Path

import pytest
import torch

from bdflow.models.weights import reading
from bdflow.models.weights.reading import FileEnds, filling, pieces_of, room


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_BYTES", 4096)
    monkeypatch.setattr(reading, "SHARE_BYTES", 8192)
    monkeypatch.setattr(reading, "cores", lambda: 4)


def written(path: Path, tensors: list[torch.Tensor]) -> list[int]:
    """Places of the tensors in a file that has a few bytes between them."""
    places = []
    with path.open("wb") as file:
        for tensor in tensors:
            file.write(b"gap!")
            places.append(file.tell())
            file.write(tensor.view(torch.uint8).numpy().tobytes())
    return places


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16])
def test_all_pieces_arrive(tmp_path: Path, small_pieces: None, stored: torch.dtype, wanted: torch.dtype) -> None:
    tensors = [torch.randn(size, dtype=torch.float32).to(stored) for size in (1, 0, 5000, 4096, 3, 30_001)]
    places = written(tmp_path / "a", tensors)
    flat = room([tuple(tensor.shape) for tensor in tensors], wanted, "cpu")
    pieces = [p for place, into in zip(places, flat, strict=True) for p in pieces_of(place, stored, into)]
    with filling([(tmp_path / "a", pieces)]):
        pass
    assert all(torch.equal(into, tensor.to(wanted)) for into, tensor in zip(flat, tensors, strict=True))
    assert all(into.data_ptr() % reading.ALIGNMENT == 0 for into in flat)


def test_a_file_that_ends_too_early_is_an_error(tmp_path: Path, small_pieces: None) -> None:
    (place,) = written(tmp_path / "a", [torch.zeros(10_000)])
    (flat,) = room([(10_001,)], torch.float32, "cpu")
    with (
        pytest.raises(FileEnds) as caught,
        filling([(tmp_path / "none", []), (tmp_path / "a", pieces_of(place, torch.float32, flat))]),
    ):
        pass
    assert caught.value.path == tmp_path / "a"


def test_room_outlives_its_neighbours() -> None:
    flat = room([(1000,), (2**20,), (10,)], torch.float32, "cpu")
    last = flat.pop()
    last.fill_(3)
    del flat
    assert last.sum() == 30


@pytest.mark.parametrize("cores", [1, 4])
def test_small_neighbours_come_in_one_call_and_in_pieces_of_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    tensors = [torch.randn(n) for n in (7, 1, 300, 2000, 5) * 500]
    places = written(tmp_path / "a", tensors)
    flat = room([tuple(tensor.shape) for tensor in tensors], torch.float32, "cpu")
    pieces = [p for place, into in zip(places, flat, strict=True) for p in pieces_of(place, torch.float32, into)]
    calls, really = [], os.preadv

    def short(file: int, views: list[memoryview], place: int) -> int:
        calls.append(place)
        left, some = 400_001, []
        for view in views:
            some.append(view[:left])
            left -= len(some[-1])
        return really(file, [view for view in some if len(view)], place)

    monkeypatch.setattr(reading, "cores", lambda: cores)
    monkeypatch.setattr(reading.os, "preadv", short)
    with filling([(tmp_path / "a", pieces)]):
        assert cores > 1 or not calls
    assert all(torch.equal(into, tensor) for into, tensor in zip(flat, tensors, strict=True))
    assert len(calls) < 30


def test_reading_stops_with_an_exception_in_the_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SHARE_BYTES", 4096)
    monkeypatch.setattr(reading, "cores", lambda: 2)
    places = written(tmp_path / "a", [torch.zeros(10_000)] * 20)
    flat = room([(10_000,)] * 20, torch.float32, "cpu")
    pieces = [p for place, into in zip(places, flat, strict=True) for p in pieces_of(place, torch.float32, into)]
    begun, go, really = threading.Event(), threading.Event(), os.preadv
    calls = []

    def slow(file: int, views: list[memoryview], place: int) -> int:
        calls.append(place)
        begun.set()
        go.wait(10)
        return really(file, views, place)

    monkeypatch.setattr(reading.os, "preadv", slow)
    with pytest.raises(KeyError):
        _fail_once(begun, go, tmp_path / "a", pieces)
    assert len(calls) <= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bdflow-read")]


def _fail_once(begun: threading.Event, go: threading.Event, path: Path, pieces: list[reading.Piece]) -> None:
    with filling([(path, pieces)]):
        begun.wait(10)
        threading.Timer(0.2, go.set).start()
        raise KeyError
