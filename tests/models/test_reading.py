"""Tensors come out of files by several threads as they lie there, in any dtype."""

from pathlib import Path

import pytest
import torch

from bdflow.models import reading
from bdflow.models.reading import ReadAhead, pieces_of, read_pieces, room


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
    read_pieces(
        tmp_path / "a",
        [p for place, into in zip(places, flat, strict=True) for p in pieces_of(place, stored, into)],
    )
    assert all(torch.equal(into, tensor.to(wanted)) for into, tensor in zip(flat, tensors, strict=True))
    assert all(into.data_ptr() % reading.ALIGNMENT == 0 for into in flat)


def test_a_file_that_ends_too_early_is_an_error(tmp_path: Path, small_pieces: None) -> None:
    (place,) = written(tmp_path / "a", [torch.zeros(10_000)])
    (flat,) = room([(10_001,)], torch.float32, "cpu")
    with pytest.raises(EOFError):
        read_pieces(tmp_path / "a", pieces_of(place, torch.float32, flat))


def test_room_outlives_its_neighbours() -> None:
    flat = room([(1000,), (2**20,), (10,)], torch.float32, "cpu")
    last = flat.pop()
    last.fill_(3)
    del flat
    assert last.sum() == 30


def test_reading_ahead_ends_with_its_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "cores", lambda: 2)
    path = tmp_path / "a"
    path.write_bytes(bytes(2**20))
    with ReadAhead([(path, 10, 2**20 - 10), (path, 0, 2**30), (tmp_path / "none", 0, 5)]) as ahead:
        assert ahead.thread.ident is not None
    assert not ahead.thread.is_alive()
