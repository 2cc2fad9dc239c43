"""Zip archives of torch are read without torch; what a state dict does not need is left to torch's own reader."""

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from bdflow.errors import InputError
from bdflow.models.weights import pickled
from bdflow.models.weights.checkpoint import open_checkpoint
from bdflow.models.weights.pickled import UnusualPickle, ZippedTensor, read_archive

ALL_DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_descriptions_are_those_of_torch(tmp_path: Path, dtype: str) -> None:
    whole = torch.arange(24).reshape(4, 6).to(getattr(torch, dtype))
    state = OrderedDict(
        a=whole, b=whole[1:], c=whole.T, d=whole[:, :1], e=whole[:0], f=torch.nn.Parameter(whole, False)
    )
    torch.save(state, tmp_path / "a.pth")
    content = read_archive(tmp_path / "a.pth")
    for name, value in state.items():
        found = content[name]
        assert (found.shape, found.dtype, found.whole) == (tuple(value.shape), dtype, value.is_contiguous())
        assert found.offset == value.storage_offset() * value.element_size()


def test_what_a_state_dict_does_not_need_is_left_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {"weight": torch.ones(2, 3)}, "shape": torch.Size([2, 3])}, path)
    with pytest.raises(UnusualPickle, match=r"torch\.Size"):
        read_archive(path)
    opened = open_checkpoint(path)
    assert torch.equal(opened.read(["weight"], "cpu", torch.float32)["weight"], torch.ones(2, 3))


def rewritten(path: Path, change: Any) -> Path:
    """The archive at `path` with `change(its pickle)` in its pickle's place."""
    out = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for record in old.infolist():
            content = old.read(record)
            new.writestr(record.filename, change(content) if record.filename.endswith("data.pkl") else content)
    return out


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(100)}, tmp_path / "a.pth")
    path = rewritten(tmp_path / "a.pth", lambda content: content.replace(b"Kd\x85", b"K\xfa\x85"))
    with pytest.raises(UnusualPickle, match="beyond its storage"):
        read_archive(path)
    with pytest.raises(InputError, match=r"changed\.pth"):
        open_checkpoint(path)


def test_archives_written_by_others_give_the_same_weights(tmp_path: Path) -> None:
    state = {"weight": torch.randn(7, 5), "bias": torch.randn(7)}
    torch.save(state, tmp_path / "a.pth")
    opened = open_checkpoint(rewritten(tmp_path / "a.pth", bytes))
    assert not opened.held
    read = opened.read(state, "cpu", torch.float32)
    assert all(torch.equal(read[name], value) for name, value in state.items())


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "made_from", [(os.getenv, ("HOME",)), (eval, ("1",)), (getattr, ("text", "upper")), (pickled.StateDict, ())]
)
def test_no_other_function_can_be_named(tmp_path: Path, protocol: int, made_from: tuple[Any, Any]) -> None:
    class Asks:
        def __reduce__(self) -> Any:
            return made_from

    torch.save({"weight": torch.zeros(2)}, tmp_path / "a.pth")
    path = rewritten(tmp_path / "a.pth", lambda content: pickle.dumps({"weight": Asks()}, protocol))
    with pytest.raises(UnusualPickle, match="asks for"):
        read_archive(path)


@pytest.mark.parametrize(
    "attack",
    [
        b"}X\x05\x00\x00\x00shapeK\x01sb",  # BUILD: a new shape for a tensor already checked
        b"N}X\x05\x00\x00\x00shapeK\x01s\x86b",  # BUILD with slots
    ],
)
def test_a_description_cannot_be_changed_after_its_checks(tmp_path: Path, attack: bytes) -> None:
    torch.save(torch.zeros(2), tmp_path / "a.pth")
    assert isinstance(read_archive(tmp_path / "a.pth"), ZippedTensor)
    path = rewritten(tmp_path / "a.pth", lambda content: content[:-1] + attack + b".")
    with pytest.raises(UnusualPickle, match=r"attribute|set"):
        read_archive(path)
