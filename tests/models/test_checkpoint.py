"""Checkpoints that cannot be trusted are refused with the reason; those that can arrive in the wanted dtype."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bdflow.errors import InputError
from bdflow.models.weights import checkpoint
from bdflow.models.weights.checkpoint import differences, load_into, open_checkpoint


class Payload:
    """A pickle that would create a file if it were allowed to run."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return Path.touch, (self.flag,)


@pytest.fixture
def state() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {"weight": torch.randn(3, 4, generator=rng), "bias": torch.randn(3, generator=rng)}


def linear(path: Path, dtype: str = "float32", **sizes: int) -> nn.Module:
    with torch.device("meta"):
        module = nn.Linear(sizes.get("n_in", 4), sizes.get("n_out", 3))
    names = {name: name for name in module.state_dict()}
    load_into(module, [(open_checkpoint(path), names, lambda name: False)], device="cpu", dtype=dtype)
    return module


def save(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["a.safetensors", "a.th", "a.pth", "a.bin"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_arrive_in_the_wanted_dtype(tmp_path: Path, state: dict[str, Tensor], name: str, dtype: str) -> None:
    module = linear(save(state, tmp_path / name), dtype)
    for key, value in module.state_dict().items():
        assert value.dtype == checkpoint.DTYPES[dtype]
        assert torch.equal(value, state[key].to(value.dtype))
        assert not value.requires_grad


def test_weights_own_their_memory(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = save(state, tmp_path / "a.safetensors")
    module = linear(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(module.state_dict()["weight"], state["weight"])


def test_prefix_wrapper_and_the_old_format(tmp_path: Path, state: dict[str, Tensor]) -> None:
    prefixed = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": prefixed, "epoch": 3}, tmp_path / "a.ckpt")
    torch.save(prefixed, tmp_path / "old.th", _use_new_zipfile_serialization=False)
    for name in ("a.ckpt", "old.th"):
        assert torch.equal(linear(tmp_path / name).state_dict()["weight"], state["weight"])


def test_tensors_are_read_in_file_order_from_their_place(tmp_path: Path) -> None:
    state = {f"t{index}": torch.full((index, 3), float(index)) for index in range(7)}
    state["view"] = torch.arange(12.0).reshape(3, 4)[1:]
    state["turned"] = torch.arange(12.0).reshape(3, 4).T
    for name in ("a.safetensors", "a.pth"):
        kept = {key: value.contiguous() for key, value in state.items()} if name == "a.safetensors" else state
        opened = open_checkpoint(save(kept, tmp_path / name))
        read = list(opened.read([*reversed(state)], "cpu", torch.float32).items())
        offsets = [opened.tensors[key].offset for key, _ in read]
        assert offsets == sorted(offsets)
        assert {key for key, _ in read} == set(state)
        assert all(torch.equal(value, state[key]) for key, value in read)


def test_optimizer_states_beside_the_weights_change_nothing(tmp_path: Path, state: dict[str, Tensor]) -> None:
    moments = {"m": torch.randn(50), "v": torch.randn(7)}
    torch.save({"before": moments, "state_dict": state, "after": torch.randn(9)}, tmp_path / "a.pth")
    assert torch.equal(linear(tmp_path / "a.pth").state_dict()["weight"], state["weight"])


def test_a_file_cut_after_opening_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = save(state, tmp_path / "a.safetensors")
    opened = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="ends within a tensor"):
        list(opened.read(["weight", "bias"], "cpu", torch.float32))


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickles_are_refused_and_not_run(tmp_path: Path, state: dict[str, Tensor], zipped: bool) -> None:
    flag, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({**state, "extra": Payload(flag)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="holds more than tensors"):
        open_checkpoint(path)
    path.write_bytes(pickle.dumps(Payload(flag), protocol=2))
    with pytest.raises(InputError, match=r"evil.pth"):
        open_checkpoint(path)
    assert not flag.exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, name: str, kept: float) -> None:
    path = save({"weight": torch.zeros(64, 64)}, tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match=r"truncated|mislabelled") as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)


def test_a_truncated_old_format_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "old.th"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="truncated"):
        open_checkpoint(path)


def test_mislabelled_files_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save(state, tmp_path / "a.pth").rename(tmp_path / "b.safetensors")
    save(state, tmp_path / "c.safetensors").rename(tmp_path / "d.pth")
    for name, found in (("b.safetensors", "torch zip"), ("d.pth", "safetensors")):
        with pytest.raises(InputError, match=f"found {found} content"):
            open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "begins with nothing"),
        (b"<!DOCTYPE html><html>", "<!DOCTYP"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    ],
)
def test_things_that_are_no_checkpoint_are_refused(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=found):
        open_checkpoint(path)
    with pytest.raises(InputError, match="no such file"):
        open_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"weight": "text"}, {}])
def test_pickles_of_other_things_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match="names and tensors only"):
        open_checkpoint(tmp_path / "a.pth")


def test_another_architecture_is_refused_with_every_difference(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = save({"weight": state["weight"].long(), "bias": torch.zeros(4), "gamma": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(InputError) as error:
        linear(path)
    text = str(error.value)
    assert "3 differences" in text
    assert "tensor weight holds int64" in text
    assert "misshapen tensor bias: found [4], expected [3]" in text
    assert "extra tensor gamma [2]" in text


def test_missing_tensors_are_listed() -> None:
    assert differences(Path("f"), {"a": "x"}, {"a": (2,)}, {}) == ["f: missing tensor x [2]"]
