"""Checkpoint files: what is in them, checked before use, and their tensors straight into the wanted dtype
and device.

Two kinds are read: safetensors, and PyTorch's zip archives (`.th`, `.pth`, `.bin`) through a restricted
unpickler, which runs no code. Either way the names, shapes and places of the tensors are known first; then each
wanted tensor is read from its place in the file, in file order, and brought to its dtype and device piece by
piece. Memory holds the weights kept and a few megabytes.
"""

import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bdflow.errors import InputError, counted, listed
from bdflow.models.weights.pickled import ITEM_BYTES, UnusualPickle, ZippedTensor, read_archive
from bdflow.models.weights.precision import settle
from bdflow.models.weights.reading import FileEnds, Piece, filling, pieces_of, room

FLOATS = {"float64", "float32", "float16", "bfloat16"}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
REPLACE = "check the bundle and replace the file."
AT_ONCE = 8  # headers of records that are read side by side
RECORD_HEADER = struct.Struct("<4s22xHH")
_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file says of one tensor: shape, dtype, and where its bytes are: from the file's start, or, in a zip
    archive, from the content of the record whose header stands at `record`.
    """

    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int
    record: int | None = None


class Checkpoint:
    """The tensors of one file: `tensors` lists them, `read` gives them. No weight is read before `read`.

    `held` are those that do not lie in the file as contiguous bytes (the format before torch 1.6, views).
    """

    def __init__(self, path: Path, tensors: dict[str, TensorInfo], held: Mapping[str, Tensor]) -> None:
        self.path, self.tensors, self.held = path, tensors, held

    def places(self, names: Iterable[str]) -> dict[str, int]:
        """Name -> offset of the tensor's first byte in the file, for those not held.

        Raises InputError when a zip archive has no record where its directory says.
        """
        names = [name for name in names if name not in self.held]
        records = sorted({record for name in names if (record := self.tensors[name].record) is not None})
        begins: dict[int | None, int] = {None: 0}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for some in pool.map(self._begins, [records[start::AT_ONCE] for start in range(AT_ONCE)]):
                begins.update(some)
        return {name: begins[self.tensors[name].record] + self.tensors[name].offset for name in names}

    def _begins(self, records: Sequence[int]) -> dict[int | None, int]:
        """Where a zip archive's records begin, behind their headers."""
        begins: dict[int | None, int] = {}
        with self.path.open("rb", buffering=0) as file:
            for record in records:
                head = os.pread(file.fileno(), RECORD_HEADER.size, record)
                if len(head) < RECORD_HEADER.size or not head.startswith(b"PK\x03\x04"):
                    raise _truncated(self.path, ValueError(f"no record at byte {record}"))
                _, name_length, extra_length = RECORD_HEADER.unpack(head)
                begins[record] = record + RECORD_HEADER.size + name_length + extra_length
        return begins

    def wanted(self, ignored: Callable[[str], bool]) -> list[str]:
        """Names of the tensors not ignored."""
        return [name for name in self.tensors if not ignored(name)]

    def plan(self, names: Iterable[str], device: str, dtype: torch.dtype) -> "Reading":
        """Room for these tensors, in `dtype` on `device`, and where in the file to find them: `filled` reads them."""
        names = list(names)
        places = self.places(names)
        tensors = {name: self.held[name].to(device, dtype, copy=True) for name in names if name in self.held}
        ordered = sorted(places, key=places.__getitem__)
        infos = [self.tensors[name] for name in ordered]
        pieces: list[Piece] = []
        for name, info, flat in zip(ordered, infos, room([info.shape for info in infos], dtype, device), strict=True):
            pieces += pieces_of(places[name], getattr(torch, info.dtype), flat)
            tensors[name] = flat.view(info.shape)
        return Reading(self.path, tensors, pieces)

    def read(self, names: Iterable[str], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors by name, in file order, each in `dtype` on `device`, in memory that no file backs.

        Raises InputError when the file ends too early.
        """
        reading = self.plan(names, device, dtype)
        with filled([reading]):
            return reading.tensors


@dataclass(frozen=True)
class Reading:
    """Tensors of one file whose memory is there and, until they are `filled`, holds nothing in particular."""

    path: Path
    tensors: dict[str, Tensor]
    pieces: list[Piece]


@contextmanager
def filled(readings: Sequence[Reading]) -> Iterator[None]:
    """Read the tensors while the body runs; when it is left, they are there. Raises InputError when a file ends too
    early.
    """
    try:
        with filling([(reading.path, reading.pieces) for reading in readings]):
            yield
    except FileEnds as error:
        raise _truncated(error.path, error) from error


def open_checkpoint(path: Path, *, lone: str = "") -> Checkpoint:
    """Open a `.safetensors`, `.th`, `.pth`, `.pt`, `.ckpt` or `.bin` file. A pickled file may hold its
    tensors at the top or below `state_dict`; a `module.` before every name is dropped. With `lone`, it may also be
    one tensor without a name, which gets this one.

    Raises InputError when the file is missing, truncated, not what its name says, or a pickle that asks for
    more than tensors.
    """
    if not path.is_file():
        raise InputError(
            path,
            found="no such file",
            expected="a checkpoint: a file of weights",
            action="put the file there, or correct the path",
        )
    kind = _kind(path)
    if (path.suffix == ".safetensors") != (kind == "safetensors"):
        raise InputError(
            path,
            found=f"{kind} content under the name {path.name}",
            expected="safetensors content in .safetensors files and nowhere else",
            meaning="The file is mislabelled or the download went wrong.",
            action="download it again, or give it the suffix of its content.",
        )
    return _open_safetensors(path) if kind == "safetensors" else _open_torch(path, kind, lone)


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
        found=f"a file that begins with {_said(head[:8])}",
        expected="safetensors or a PyTorch checkpoint",
        meaning="It is empty, truncated, or something else (a web page, say).",
        action="download it again",
    )


def _truncated(path: Path, error: Exception) -> InputError:
    return InputError(
        path,
        found=f"{path.stat().st_size:,} bytes that do not make a whole checkpoint ({_first_line(error)})",
        expected="a complete file",
        meaning="The file is truncated or damaged.",
        action="download it again and compare its size and checksum with the source.",
    )


def _said(head: bytes) -> str:
    """The first bytes of a file in words: as text where they are text."""
    if not head:
        return "nothing"
    text = head.decode("ascii", "replace")
    return f"`{text}`" if text.isprintable() and "\ufffd" not in text else f"the bytes {head.hex(' ')}"


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


def _open_torch(path: Path, kind: str, lone: str) -> Checkpoint:
    mapped = kind == "torch zip"
    if mapped and not zipfile.is_zipfile(path):
        raise _truncated(path, ValueError("no central directory at its end"))
    try:
        content = read_archive(path) if mapped else _load_torch(path, mapped)
    except UnusualPickle:
        content = _load_torch(path, mapped)
    state = _state_dict(path, content, lone)
    if any(isinstance(tensor, ZippedTensor) and not tensor.whole for tensor in state.values()):
        held = {n: t for n, t in _state_dict(path, _load_torch(path, mapped), lone).items() if not t.is_contiguous()}
    else:
        held = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    return Checkpoint(path, {name: _info(tensor) for name, tensor in state.items()}, held)


def _info(tensor: Tensor | ZippedTensor) -> TensorInfo:
    if isinstance(tensor, Tensor):
        return TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), 0, tensor.nbytes)
    nbytes = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
    return TensorInfo(tensor.shape, tensor.dtype, tensor.offset, nbytes, tensor.record)


def _load_torch(path: Path, mapped: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise InputError(
            path,
            found=f"a pickle that holds more than tensors ({_first_line(error)})",
            expected="a state dict: names and tensors only",
            meaning="Loading it would run code from the file; nothing was run.",
            action="use a file from the official source, or convert it to safetensors on a machine without data of "
            "value",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, struct.error) as error:
        raise _truncated(path, error) from error


def _state_dict(path: Path, content: object, lone: str = "") -> dict[str, Any]:
    """Name -> tensor (or ZippedTensor) of what was pickled; InputError if it is something else."""
    if lone and isinstance(content, Tensor | ZippedTensor):
        return {lone: content}
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            path,
            found=f"a pickled {type(content).__name__}",
            expected="a state dict: names and tensors only",
            action="use the official checkpoint.",
        )
    strangers = [str(name) for name, value in content.items() if not isinstance(value, Tensor | ZippedTensor)]
    if strangers:
        raise InputError(
            path,
            found=f"{'an entry' if len(strangers) == 1 else f'{len(strangers):,} entries'} other than tensors "
            f"({listed(strangers, 3)})",
            expected="a state dict: names and tensors only",
            action="use the official checkpoint",
        )
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


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
    action: str = REPLACE,
) -> None:
    """Give a module built on the meta device its weights, in `dtype` on `device`: `fit_into`, and read them."""
    with filled(fit_into(module, parts, device=device, dtype=dtype, action=action)):
        pass


def fit_into(
    module: nn.Module,
    parts: Sequence[tuple[Checkpoint, Mapping[str, str], Callable[[str], bool]]],
    *,
    device: str,
    dtype: str,
    action: str = REPLACE,
    begun: Sequence[Reading] = (),
) -> list[Reading]:
    """Give a module built on the meta device memory for its weights, in `dtype` on `device`. The readings that are
    returned, to be `filled`, give it its content.

    `parts`: (checkpoint, our name -> its name, its names to ignore) for each file; `begun`: readings of these files
    that hold all that is wanted and are being filled already. Raises InputError that lists every difference between
    files and module, and what to do (`action`).
    """
    settle()
    counters = "num_batches_tracked"  # of training steps; batch norms that are loaded without them start at 0
    state = module.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(counters)}
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
            found=f"{counted(len(report), 'difference')}:\n  {shown}\n",
            expected=f"the tensors of a {type(module).__name__} of the size that the manifest gives",
            meaning="The file holds another network, another size of it, or a damaged copy.",
            action=action,
        )
    owners = dict(module.named_modules())
    readings = []
    for number, (checkpoint, sources, _) in enumerate(parts):
        reading = begun[number] if begun else checkpoint.plan(set(sources.values()), device, DTYPES[dtype])
        for ours, theirs in sources.items():
            owner, _, leaf = ours.rpartition(".")
            weight = reading.tensors[theirs].view(expected[ours])
            is_parameter = leaf in owners[owner]._parameters
            setattr(owners[owner], leaf, nn.Parameter(weight, requires_grad=False) if is_parameter else weight)
        if not begun:
            readings.append(reading)
    for name in state.keys() - expected.keys():
        owner, _, leaf = name.rpartition(".")
        setattr(owners[owner], leaf, torch.zeros((), dtype=torch.int64, device=device))
    module.eval()
    return readings
