"""What PyTorch's zip archives hold (`.th`, `.pth`, `.bin` since torch 1.6): names, shapes and places of tensors.

Such an archive is a pickle (`data.pkl`) that names storages, and one uncompressed record a storage (`data/0`,
`data/1`, ...). The pickle is read here with nothing but the few names that a state dict needs, each standing
for a description: no function of the file's choice runs, and no weight is touched.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

STORAGE_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint8": 1, "bool": 1,
}  # fmt: skip


class UnusualPickle(ValueError):
    """The archive asks for more than a state dict needs, or is damaged: torch's own reader has to judge it."""


class ZippedTensor(NamedTuple):
    """One tensor of an archive: `record` is the place of its record's header in the file, `offset` that of its
    first element in the record's content, both in bytes; `whole` tells whether its elements lie there one after
    the other.
    """

    shape: tuple[int, ...]
    dtype: str
    record: int
    offset: int
    whole: bool


class _Storage(NamedTuple):
    dtype: str
    key: str


class StateDict(dict[Any, Any]):
    """What stands for an OrderedDict; the attributes that torch hangs on one (`_metadata`) are left out."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


def read_archive(path: Path) -> Any:
    """The archive's content with a ZippedTensor for each tensor.

    Raises UnusualPickle when the pickle holds anything but containers, numbers, texts and tensors, when a
    tensor lies outside its record, or when the archive cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = {record.filename: record for record in archive.infolist()}
            (main,) = [name for name in records if name.endswith("/data.pkl")]
            folder = main.removesuffix("data.pkl")
            if f"{folder}byteorder" in records and archive.read(f"{folder}byteorder") != b"little":
                raise UnusualPickle("its bytes are not little-endian")
            with archive.open(main) as stream:
                return _Reader(stream, {n.removeprefix(f"{folder}data/"): r for n, r in records.items()}).load()
    except (pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, MemoryError, RecursionError) as error:
        raise UnusualPickle(str(error)) from error
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        raise UnusualPickle(str(error)) from error


class _Reader(pickle.Unpickler):
    """An unpickler that knows three callables, its own methods: a file can neither call nor change anything else."""

    def __init__(self, stream: IO[bytes], records: dict[str, zipfile.ZipInfo]) -> None:
        super().__init__(stream, encoding="utf-8")
        self.records = records
        self.known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): self.mapping,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch._utils", "_rebuild_parameter"): self.parameter,
        }
        self.known |= {("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()}

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        try:
            return self.known[module, name]  # type: ignore[no-any-return]
        except KeyError:
            raise UnusualPickle(f"it asks for {module}.{name}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or dtype not in ITEM_BYTES:
            raise UnusualPickle("it names something other than a storage")
        return _Storage(dtype, key)

    def mapping(self, items: Iterable[tuple[object, object]] = ()) -> StateDict:
        return StateDict(items)

    def tensor(
        self, storage: _Storage, start: int, shape: tuple[int, ...], stride: tuple[int, ...], *rest: object
    ) -> ZippedTensor:
        record, size = self.records[storage.key], ITEM_BYTES[storage.dtype]
        numbers = (start, *shape, *stride)
        if any(type(number) is not int or number < 0 for number in numbers):
            raise UnusualPickle(f"a tensor of its storage {storage.key} has no proper shape")
        if record.compress_type != zipfile.ZIP_STORED:
            raise UnusualPickle(f"its storage {storage.key} is compressed")
        last = start + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if 0 not in shape and (last + 1) * size > record.file_size:
            raise UnusualPickle(f"a tensor reaches beyond its storage {storage.key}")
        return ZippedTensor(shape, storage.dtype, record.header_offset, start * size, _is_whole(shape, stride))

    def parameter(self, data: ZippedTensor, *rest: object) -> ZippedTensor:
        return data


def _is_whole(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    step = 1
    for n, found in zip(reversed(shape), reversed(stride), strict=True):
        if n != 1 and found != step:
            return 0 in shape
        step *= n
    return True
