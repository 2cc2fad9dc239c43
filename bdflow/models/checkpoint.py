"""Checkpoint files: what is in them, checked before use, and their tensors straight into the wanted dtype
and device.

Two kinds are read: safetensors, and PyTorch's zip archives (`.th`, `.pth`, `.bin`) through the restricted
unpickler (`weights_only=True`, memory-mapped), which runs no code. Either way the names, shapes and places of
the tensors are known first; then each wanted tensor is read from its place in the file, in file order, and
brought to its dtype and device piece by piece. Memory holds the weights kept and a few megabytes.
"""

import io
import json
import math
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bdflow.errors import InputError

CHUNK_BYTES = 4 * 2**20
FLOATS = {"float64", "float32", "float16", "bfloat16"}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of one tensor: shape, dtype, and where its bytes are."""

    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int


class Checkpoint:
    """The tensors of one file: `tensors` lists them, `read` yields them. No weight is read before `read`.

    `held` are those that do not lie in the file as contiguous bytes (the format before torch 1.6, views).
    """

    def __init__(self, path: Path, tensors: dict[str, TensorInfo], held: Mapping[str, Tensor]) -> None:
        self.path, self.tensors, self.held = path, tensors, held

    def read(self, names: Iterable[str], device: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) in file order, each in `dtype` on `device` and owning its memory.

        Raises InputError when the file ends too early.
        """
        scratch = bytearray(CHUNK_BYTES)
        with self.path.open("rb", buffering=0) as file:
            for name in sorted(names, key=lambda name: self.tensors[name].offset):
                if name in self.held:
                    yield name, self.held[name].to(device, dtype, copy=True)
                    continue
                info = self.tensors[name]
                stored: torch.dtype = getattr(torch, info.dtype)
                out = torch.empty(math.prod(info.shape), dtype=dtype, device=device)
                file.seek(info.offset)
                if stored == dtype and out.device.type == "cpu":
                    self._fill(file, memoryview(out.view(torch.uint8).numpy()))  # type: ignore[arg-type]
                else:
                    step = CHUNK_BYTES // stored.itemsize
                    for piece in out.split(step):
                        view = memoryview(scratch)[: len(piece) * stored.itemsize]
                        self._fill(file, view)
                        piece.copy_(_widened(torch.frombuffer(view, dtype=stored), dtype))
                yield name, out.reshape(info.shape)

    def _fill(self, file: io.RawIOBase, view: memoryview) -> None:
        while view:
            count = file.readinto(view)
            if not count:
                raise _truncated(self.path, ValueError("it ends within a tensor"))
            view = view[count:]


def _widened(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Through float32 from one 16-bit type to the other: exact, and several times faster on a CPU."""
    return values.float() if values.dtype != dtype and values.element_size() == dtype.itemsize == 2 else values


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a `.safetensors`, `.th`, `.pth`, `.pt`, `.ckpt` or `.bin` file. A pickled file may hold its
    tensors at the top or below `state_dict`; a `module.` before every name is dropped.

    Raises InputError when the file is missing, truncated, not what its name says, or a pickle that asks for
    more than tensors.
    """
    if not path.is_file():
        raise InputError(path, found="no such file", expected="a checkpoint", action="put the file there.")
    kind = _kind(path)
    if (path.suffix == ".safetensors") != (kind == "safetensors"):
        raise InputError(
            path,
            found=f"{kind} content under the name {path.name}",
            expected="safetensors content in .safetensors files and nowhere else",
            meaning="The file is mislabelled or the download went wrong.",
            action="download it again, or give it the suffix of its content.",
        )
    return _open_safetensors(path) if kind == "safetensors" else _open_torch(path, kind)


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"PK\x03\x04"):
        return "torch zip"
    if head.startswith(b"version https://git-lfs"):
        raise InputError(
            path,
            found="a Git LFS pointer",
            expected="the weights themselves",
            action="fetch the file with `git lfs pull`.",
        )
    if len(head) > 9 and head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"\x80"):
        return "pickle"
    raise InputError(
        path,
        found=f"a file that begins with {head[:8]!r}",
        expected="safetensors or a PyTorch checkpoint",
        meaning="It is empty, truncated, or something else (a web page, say).",
        action="download it again.",
    )


def _truncated(path: Path, error: Exception) -> InputError:
    return InputError(
        path,
        found=f"{path.stat().st_size:,} bytes that do not make a whole checkpoint ({_first_line(error)})",
        expected="a complete file",
        meaning="The file is truncated or damaged.",
        action="download it again and compare its size and checksum with the source.",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _open_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise _truncated(path, error) from error
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            dtype = _SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"])
            tensors[name] = TensorInfo(tuple(entry["shape"]), dtype, 8 + length + start, end - start)
    return Checkpoint(path, tensors, {})


def _open_torch(path: Path, kind: str) -> Checkpoint:
    mapped = kind == "torch zip"
    if mapped and not zipfile.is_zipfile(path):
        raise _truncated(path, ValueError("no central directory at its end"))
    state, prefix = _load_torch(path, mapped)
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    held = {name: tensor for name, tensor in state.items() if not mapped or not tensor.is_contiguous()}
    shift = _mapping_shift(path, state) if mapped else 0
    tensors = {
        name: TensorInfo(
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            tensor.data_ptr() - shift if tensor.numel() else 0,
            tensor.nbytes,
        )
        for name, tensor in state.items()
    }
    return Checkpoint(path, tensors, held)


def _mapping_shift(path: Path, state: Mapping[str, Tensor]) -> int:
    """Address of a mapped tensor minus its place in the file: the one number that puts every storage at the start
    of one of the archive's records, and its first bytes equal to the file's."""
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in state.values() if tensor.numel()}
    if not storages:
        return 0
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        starts = set()
        for record in archive.infolist():
            file.seek(record.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            if record.compress_type == zipfile.ZIP_STORED:
                starts.add(record.header_offset + 30 + name_length + extra_length)
        first = min(storages)
        begin = bytes(storages[first].untyped_storage()[:64])
        for start in sorted(starts):
            shift = first - start
            if shift % mmap.PAGESIZE == 0 and all(address - shift in starts for address in storages):
                file.seek(start)
                if file.read(len(begin)) == begin:
                    return shift
    raise _truncated(path, ValueError("its tensors are not among its records"))


def _load_torch(path: Path, mapped: bool) -> tuple[dict[str, Tensor], str]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise InputError(
            path,
            found=f"a pickle that holds more than tensors ({_first_line(error)})",
            expected="a state dict: names and tensors only",
            meaning="Loading it would run code from the file; nothing was run.",
            action="use a file from the official source, or convert it to safetensors on a machine you can lose.",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, struct.error) as error:
        raise _truncated(path, error) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            path,
            found=f"a pickled {type(content).__name__}",
            expected="a state dict: names and tensors only",
            action="use the official checkpoint.",
        )
    strangers = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise InputError(
            path,
            found=f"{len(strangers)} entries that are not tensors ({', '.join(strangers[:3])})",
            expected="a state dict: names and tensors only",
            action="use the official checkpoint.",
        )
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return dict(content), prefix


def differences(
    where: Path,
    sources: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, TensorInfo],
    ignored: Callable[[str], bool] = lambda name: False,
) -> list[str]:
    """Every missing, misshapen, non-float and extra tensor, one line each.

    `sources` maps our names to the file's, `expected` our names to shapes; `ignored` tells the file's names
    that are known and not needed.
    """
    report = []
    for ours, theirs in sources.items():
        info = found.get(theirs)
        if info is None:
            report.append(f"{where}: missing tensor {theirs} {list(expected[ours])}")
        elif not _fits(info.shape, expected[ours]):
            report.append(
                f"{where}: misshapen tensor {theirs}: found {list(info.shape)}, expected {list(expected[ours])}"
            )
        elif info.dtype not in FLOATS:
            report.append(f"{where}: tensor {theirs} holds {info.dtype}, expected a floating-point type")
    needed = set(sources.values())
    extra = [name for name in found if name not in needed and not ignored(name)]
    return report + [f"{where}: extra tensor {name} {list(found[name].shape)}" for name in extra]


def _fits(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Equal, or a 1x1 convolution's weights where a linear layer's are expected."""
    return found == expected or (len(expected) == 2 and found == (*expected, 1, 1))


def load_into(
    module: nn.Module,
    parts: Sequence[tuple[Checkpoint, Mapping[str, str], Callable[[str], bool]]],
    *,
    device: str,
    dtype: str,
    action: str = "run `bdflow bundle check` on the bundle and replace the file.",
) -> None:
    """Give a module built on the meta device its weights, in `dtype` on `device`.

    `parts`: (checkpoint, our name -> its name, its names to ignore) for each file. Raises InputError that
    lists every difference between files and module before any weight is read, and what to do (`action`).
    """
    counters = "num_batches_tracked"  # of training steps; batch norms that are loaded without them start at 0
    expected = {name: tuple(t.shape) for name, t in module.state_dict().items() if not name.endswith(counters)}
    report = [
        line
        for checkpoint, sources, ignored in parts
        for line in differences(checkpoint.path, sources, expected, checkpoint.tensors, ignored)
    ]
    unclaimed = set(expected).difference(*(sources for _, sources, _ in parts))
    report += [f"no file is named for {name}" for name in sorted(unclaimed)]
    if report:
        shown = "\n  ".join(report[:20]) + (f"\n  ... and {len(report) - 20} more" if len(report) > 20 else "")
        raise InputError(
            ", ".join(str(checkpoint.path) for checkpoint, _, _ in parts),
            found=f"{len(report)} differences:\n  {shown}\n",
            expected=f"the tensors of a {type(module).__name__} of the size that the manifest gives",
            meaning="The file holds another network, another size of it, or a damaged copy.",
            action=action,
        )
    weights = {}
    for checkpoint, sources, _ in parts:
        names: dict[str, list[str]] = {}
        for ours, theirs in sources.items():
            names.setdefault(theirs, []).append(ours)
        for theirs, tensor in checkpoint.read(names, device, DTYPES[dtype]):
            for ours in names[theirs]:
                weights[ours] = tensor.reshape(expected[ours])
    module.load_state_dict(weights, assign=True)
    module.requires_grad_(False).eval()
