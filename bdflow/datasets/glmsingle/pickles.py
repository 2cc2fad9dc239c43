"""The `.npy` files of GLMsingle, dictionaries that were pickled, read as a description: nothing is unpickled.

A pickle is a program for a small machine that can call any function. Here its steps are followed one by one by a
machine that knows containers, numbers, texts and four names of numpy (`ndarray`, `dtype`, `_reconstruct` and `scalar`),
each standing for a description; it has no step that calls anything. Large blocks of bytes are not read, only their
places in the file are noted, so that betas can be streamed from there.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from bdflow import npy
from bdflow.errors import InputError
from bdflow.stores.paths import AnyPath

_NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "_reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "_reconstruct",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
}
_SMALL = 64 * 1024  # bytes; larger blocks stay in the file
_CONVERT = (
    "write the file again with GLMsingle; or load it where you trust it, and save the betas as NIfTI, or with "
    "GLMsingle's setting `wanthdf5`"
)


class UnusualPickle(ValueError):
    """The file asks for more than containers, numbers, texts and arrays, or is damaged."""


@dataclass(frozen=True)
class Place:
    """Bytes of the file: `size` of them from `start`."""

    start: int
    size: int


@dataclass(frozen=True)
class _Name:
    word: str


@dataclass(eq=False)
class _Dtype:
    dtype: np.dtype


@dataclass(eq=False)
class Array:
    """An array of the file.

    Attributes
    ----------
    path : the file.
    shape, dtype : of the array.
    fortran : whether its elements lie in Fortran's order.
    content : where they lie, the bytes themselves where they are few, or a list of objects.
    """

    path: AnyPath
    shape: tuple[int, ...] = (0,)
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.uint8))
    fortran: bool = False
    content: Place | bytes | list[Any] = b""

    def read(self) -> np.ndarray:
        """All of it, numbers or text. Raises InputError for objects."""
        if isinstance(self.content, list):
            raise InputError(
                self.path, found="an array of Python objects", expected="an array of numbers", action=_CONVERT
            )
        content = self.content
        if isinstance(content, Place):
            with self.path.open("rb") as stream:
                stream.seek(content.start)
                content = stream.read(content.size)
        return np.frombuffer(content, self.dtype).reshape(self.shape, order="F" if self.fortran else "C")


def read_dictionary(path: AnyPath, what: str) -> dict[str, object]:
    """The dictionary in a file of `numpy.save`: numbers, texts, lists, and an `Array` for each array.

    Raises
    ------
    InputError : no such file, another content, a pickle that asks for more than numpy's four names.
    """
    try:
        with path.open("rb") as stream:
            shape, _, dtype = npy.header(stream)
            if shape or dtype.kind != "O":
                raise UnusualPickle(f"{dtype} of shape {shape}, no dictionary")
            found = _Machine(path, stream, path.stat().st_size).run()
    except (UnusualPickle, ValueError, OSError) as error:
        raise InputError(
            path,
            found=f"a file that cannot be used ({error})",
            expected=f"{what}: a dictionary as `numpy.save` writes it, of numbers, texts, lists and arrays",
            meaning="Pickled objects are not loaded: they can run code.",
            action=_CONVERT,
        ) from error
    inside = found.content if isinstance(found, Array) and found.shape == () else None
    if not (isinstance(inside, list) and len(inside) == 1 and isinstance(inside[0], dict)):
        raise InputError(path, found="no dictionary", expected=what, action=_CONVERT)
    found_keys: dict[str, Any] = {key: value for key, value in inside[0].items() if isinstance(key, str)}
    return found_keys


class _Machine:
    """Follows the steps of a pickle. The stack holds containers, numbers, texts and descriptions."""

    def __init__(self, path: AnyPath, stream: IO[bytes], size: int) -> None:
        self.path, self.stream, self.size = path, stream, size
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while (code := self.take(1)) != b".":
            step = _STEPS.get(code)
            if step is None:
                raise UnusualPickle(f"a pickle with a step {code.hex()} that numpy's do not have")
            try:
                step(self)
            except (IndexError, KeyError, TypeError, struct.error, UnicodeDecodeError) as error:
                raise UnusualPickle(
                    f"a damaged pickle, at byte {self.stream.tell():,}: {type(error).__name__}"
                ) from error
        if len(self.stack) != 1 or self.marks:
            raise UnusualPickle("a damaged pickle, which ends too early")
        return self.stack[0]

    # --- bytes --------------------------------------------------------------------------------------------------

    def take(self, size: int) -> bytes:
        if size > self.size - self.stream.tell():
            raise UnusualPickle(f"the file ends at byte {self.size:,}, within the pickle")
        found = self.stream.read(size)
        if len(found) < size:
            raise UnusualPickle(f"the file ends at byte {self.stream.tell():,}, within the pickle")
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def line(self) -> str:
        content = self.stream.readline(_SMALL)
        if not content.endswith(b"\n"):
            raise UnusualPickle("a damaged pickle: a name without an end")
        return content[:-1].decode("ascii")

    def block(self, form: str) -> None:
        size = self.number(form)
        if size <= _SMALL:
            self.stack.append(self.take(size))
            return
        start = self.stream.tell()
        if size > self.size - start:
            raise UnusualPickle(f"the file ends at byte {self.size:,}, within {size:,} bytes of an array")
        self.stream.seek(start + size)
        self.stack.append(Place(start, size))

    def text(self, form: str) -> None:
        self.stack.append(self.take(self.number(form)).decode("utf-8"))

    # --- containers ---------------------------------------------------------------------------------------------

    def push(self, value: object) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[object]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def last(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return items

    def extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(items)

    def update(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError
        if any(not isinstance(key, (str, int)) for key in items[::2]):
            raise UnusualPickle("a dictionary whose keys are neither texts nor numbers")
        target.update(zip(items[::2], items[1::2], strict=True))

    # --- numpy's names ------------------------------------------------------------------------------------------

    def named(self, module: object, name: object) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise UnusualPickle("a damaged pickle: a name that is no text")
        word = _NAMES.get((module, name))
        if word is None:
            raise UnusualPickle(f"a pickle that asks for {module[:80]}.{name[:80]}")
        self.stack.append(_Name(word))

    def reduce(self) -> None:
        name, arguments = self.last(2)
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise UnusualPickle("a pickle that calls something other than numpy's functions")
        if name.word == "dtype":
            self.stack.append(_Dtype(_plain(arguments[0])))
        elif name.word == "_reconstruct" and arguments[0] == _Name("ndarray"):
            self.stack.append(Array(self.path))
        elif name.word == "scalar" and isinstance(arguments[0], _Dtype) and isinstance(arguments[1], bytes):
            dtype = arguments[0].dtype
            if dtype.hasobject or len(arguments[1]) != dtype.itemsize or not dtype.itemsize:
                raise UnusualPickle(f"a number of {dtype} in {len(arguments[1])} bytes")
            self.stack.append(np.frombuffer(arguments[1], dtype)[0].item())
        else:
            raise UnusualPickle(f"a pickle that uses numpy's {name.word} as numpy does not")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dtype) and isinstance(state, tuple):
            if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
                raise UnusualPickle("an array of records")
            target.dtype = target.dtype.newbyteorder(state[1])
        elif isinstance(target, Array) and isinstance(state, tuple) and isinstance(state[2], _Dtype):
            _, shape, described, fortran, content = state
            self.fill(target, shape, described.dtype, bool(fortran), content)
        else:
            raise UnusualPickle("a pickle that changes something other than an array")

    def fill(self, target: Array, shape: object, dtype: np.dtype, fortran: bool, content: object) -> None:
        if not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape) or len(shape) > 32:
            raise UnusualPickle("an array of an impossible shape")
        if dtype.hasobject != isinstance(content, list) or not isinstance(content, (Place, bytes, list)):
            raise UnusualPickle(f"an array of {dtype} whose content is of another kind")
        size = content.size if isinstance(content, Place) else len(content)
        expected = math.prod(shape) * (1 if dtype.hasobject else dtype.itemsize)
        if size != expected:
            raise UnusualPickle(f"{size:,} bytes for an array of {dtype} and shape {shape}, which takes {expected:,}")
        target.shape, target.dtype, target.fortran, target.content = shape, dtype, fortran, content


def _plain(word: object) -> np.dtype:
    """A dtype of plain values from numpy's short word for it, such as `f4`."""
    if not isinstance(word, str) or not re.fullmatch(r"[biufcSUO][1-9][0-9]{0,5}", word):
        raise UnusualPickle(f"values of the type {word[:80] if isinstance(word, str) else 'that is no text'}")
    if word[0] == "O":
        return np.dtype(object)
    return np.dtype(word)


def _constant(value: object) -> Callable[[_Machine], object]:
    return lambda machine: machine.push(value)


def _number(form: str) -> Callable[[_Machine], object]:
    return lambda machine: machine.push(machine.number(form))


def _remember(number: Callable[[_Machine], int]) -> Callable[[_Machine], object]:
    return lambda machine: machine.memo.__setitem__(number(machine), machine.stack[-1])


_STEPS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda machine: machine.take(1),  # PROTO
    b"\x95": lambda machine: machine.take(8),  # FRAME
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"K": _number("B"),
    b"M": _number("H"),
    b"J": _number("i"),
    b"G": lambda machine: machine.push(struct.unpack(">d", machine.take(8))[0]),
    b"\x8a": lambda machine: machine.push(int.from_bytes(machine.take(machine.number("B")), "little", signed=True)),
    b"C": lambda machine: machine.block("B"),
    b"B": lambda machine: machine.block("I"),
    b"\x8e": lambda machine: machine.block("Q"),
    b"\x8c": lambda machine: machine.text("B"),
    b"X": lambda machine: machine.text("I"),
    b"\x8d": lambda machine: machine.text("Q"),
    b"(": lambda machine: machine.marks.append(len(machine.stack)),
    b")": lambda machine: machine.push(()),
    b"\x85": lambda machine: machine.push(machine.last(1)),
    b"\x86": lambda machine: machine.push(machine.last(2)),
    b"\x87": lambda machine: machine.push(machine.last(3)),
    b"t": lambda machine: machine.push(tuple(machine.since_mark())),
    b"]": lambda machine: machine.push([]),
    b"}": lambda machine: machine.push({}),
    b"a": lambda machine: machine.extend(list(machine.last(1))),
    b"e": lambda machine: machine.extend(machine.since_mark()),
    b"s": lambda machine: machine.update(list(machine.last(2))),
    b"u": lambda machine: machine.update(machine.since_mark()),
    b"\x94": lambda machine: machine.memo.__setitem__(len(machine.memo), machine.stack[-1]),  # MEMOIZE
    b"q": _remember(lambda machine: int(machine.number("B"))),
    b"r": _remember(lambda machine: int(machine.number("I"))),
    b"h": lambda machine: machine.push(machine.memo[machine.number("B")]),
    b"j": lambda machine: machine.push(machine.memo[machine.number("I")]),
    b"c": lambda machine: machine.named(machine.line(), machine.line()),
    b"\x93": lambda machine: machine.named(*machine.last(2)),
    b"R": lambda machine: machine.reduce(),
    b"b": lambda machine: machine.build(),
}
"""What each step of a pickle does, by its byte."""
