"""CuPy played on NumPy, for proofs without a device: it refuses what CuPy refuses, and finds races between streams.

`installed(monkeypatch)` puts it in CuPy's place; array_api_compat's own wrapper of CuPy then works on top of it.

- NumPy arrays are refused in operations, as indices and by every function but `asarray`; a device array becomes NumPy's
  by `get` alone. What CuPy lacks is not there; what it has and this module does not play raises.
- Linear algebra that fails returns numbers, unless `cupyx.errstate(linalg="raise")` is on.
- Who uses memory has to have waited for who used it before: `tests.support.gpu_streams`.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import scipy.linalg

from tests.support.gpu_streams import Copy, Device, Event, Machine, Memory, Stream, begun, current, lock, machine


class ndarray:
    """`cupy.ndarray`."""

    __array_ufunc__ = None
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: np.ndarray, memory: Memory | None = None) -> None:
        self._a = values
        self._memory = memory or Memory(current(), values.nbytes)

    shape = property(lambda self: self._a.shape)
    ndim = property(lambda self: self._a.ndim)
    dtype = property(lambda self: self._a.dtype)
    size = property(lambda self: self._a.size)
    nbytes = property(lambda self: self._a.nbytes)
    flags = property(lambda self: self._a.flags)
    T = property(lambda self: ndarray(self._a.T, self._memory))

    def __array__(self, *args: object, **options: object) -> None:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __iter__(self) -> None:
        raise TypeError("one kernel an item: not meant")

    def __len__(self) -> int:
        return len(self._a)

    def __bool__(self) -> bool:
        return bool(self._value())

    def __int__(self) -> int:
        return int(self._value())

    def __float__(self) -> float:
        return float(self._value())

    def _value(self) -> np.ndarray:
        with lock:
            machine().reads_of_host += 1
        return self.get()

    def get(self, stream: Stream | None = None, order: str = "C", out: np.ndarray | None = None) -> np.ndarray:
        with lock:
            on = stream or current()
            on.step()
            self._memory.used(on, False)
            into = np.empty(self.shape, self.dtype) if out is None else out
            assert (into.shape, into.dtype) == (self.shape, self.dtype)
            assert into.flags.c_contiguous
            if into.dtype.kind == "f":
                into.fill(np.nan)
            machine().copies.append(Copy(on, into, self._a.copy()))
            if stream is None:
                on.synchronize()
        return into

    def set(self, values: np.ndarray, stream: Stream | None = None) -> None:
        assert type(values) is np.ndarray, "Only numpy.ndarray can be set to cupy.ndarray"
        assert (values.shape, values.dtype) == (self.shape, self.dtype)
        assert self._a.flags.c_contiguous
        with lock:
            on = stream or current()
            on.step()
            self._memory.used(on, True)
            self._a[...] = values
            machine().copies.append(Copy(on, values))
            if stream is None:
                on.synchronize()

    def view(self, dtype: Any) -> ndarray:
        return ndarray(self._a.view(dtype), self._memory)

    def reshape(self, *shape: Any) -> ndarray:
        found = self._a.reshape(*shape)
        shared = not found.size or np.shares_memory(found, self._a)
        return ndarray(found, self._memory) if shared else _new(found, self)

    def astype(self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True) -> Any:
        return self if not copy and self.dtype == dtype else _new(self._a.astype(dtype), self)

    def copy(self) -> ndarray:
        return _new(self._a.copy(), self)

    def sum(self, **options: Any) -> ndarray:
        return _new(np.asarray(self._a.sum(**options)), self)

    def __getitem__(self, index: Any) -> ndarray:
        found, own = self._a[_index(index)], _arrays_of(index)
        return _new(np.asarray(found), self, *own) if own else ndarray(np.asarray(found), self._memory)

    def __setitem__(self, index: Any, value: Any) -> None:
        with lock:
            _reads(value, *_arrays_of(index))
            self._memory.used(current(), True)
            self._a[_index(index)] = _plain(value)

    def __neg__(self) -> ndarray:
        return _new(-self._a, self)

    def __invert__(self) -> ndarray:
        return _new(~self._a, self)


def _operator(name: str) -> Callable[[ndarray, Any], ndarray]:
    def operate(self: ndarray, other: Any) -> ndarray:
        plain = _plain(other)
        if not name.startswith("__i"):
            return _new(np.asarray(getattr(self._a, name)(plain)), self, other)
        with lock:
            _reads(other, self)
            self._memory.used(current(), True)
            done = getattr(self._a, name)(plain)
        assert done is self._a or self.ndim == 0
        self._a = done
        return self

    return operate


for _name in ["add", "sub", "mul", "truediv", "floordiv", "matmul", "pow", "and", "or", "xor"]:
    for _kind in ("", "r", "i"):
        setattr(ndarray, f"__{_kind}{_name}__", _operator(f"__{_kind}{_name}__"))
for _name in ["eq", "ne", "gt", "ge", "lt", "le"]:
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


def _plain(value: Any) -> Any:
    """What NumPy takes for a device array, a scalar, or a list of device arrays. Raises TypeError as CuPy does."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple) and any(isinstance(one, ndarray | np.ndarray) for one in value):
        return [_plain(one) for one in value]
    return value


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _arrays_of(index: Any) -> list[ndarray]:
    return [part for part in _parts(index) if isinstance(part, ndarray)]


def _index(index: Any) -> tuple[Any, ...]:
    assert not any(isinstance(part, list) for part in _parts(index))
    return tuple(_plain(part) for part in _parts(index))


def _reads(*values: Any) -> None:
    """An operation of the current stream that reads these."""
    stream = current()
    stream.step()
    for value in values:
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, ndarray):
                one._memory.used(stream, False)


def _new(result: np.ndarray, *read: Any) -> ndarray:
    """A result in memory of its own, made by an operation of the current stream that reads arrays."""
    with lock:
        _reads(*read)
        return ndarray(result)


def _function(function: Callable[..., Any]) -> Callable[..., ndarray]:
    def called(*args: Any, **options: Any) -> ndarray:
        plain = {name: _plain(value) for name, value in options.items()}
        found = np.asarray(function(*map(_plain, args), **plain))
        return _new(found, *args, *options.values())

    return called


def asarray(values: Any, dtype: Any = None, **options: Any) -> ndarray:
    if isinstance(values, ndarray):
        return values if dtype is None else values.astype(dtype, copy=False)
    return _new(np.array(values, dtype))


def array(values: Any, dtype: Any = None, copy: bool = True, **options: Any) -> ndarray:
    return asarray(values, dtype).copy() if copy else asarray(values, dtype)


def _checked(works: Callable[[], np.ndarray], *read: ndarray) -> ndarray:
    """A routine of cuSOLVER: a failure is a number that only `errstate` looks at."""
    try:
        found = works()
    except np.linalg.LinAlgError as error:
        if machine().linalg == "raise":
            raise np.linalg.LinAlgError("Error reported by potrf in cuSOLVER.") from error
        found = np.full(read[-1].shape, 1.0, read[-1].dtype)
    return _new(found, *read)


def _eigh(a: ndarray, UPLO: str = "L") -> tuple[ndarray, ndarray]:
    values, vectors = np.linalg.eigh(_plain(a), UPLO)
    return _new(values, a), _new(vectors, a)


def solve_triangular(
    a: ndarray,
    b: ndarray,
    trans: int | str = 0,
    lower: bool = False,
    unit_diagonal: bool = False,
    overwrite_b: bool = False,
    check_finite: bool = False,
) -> ndarray:
    return _new(scipy.linalg.solve_triangular(_plain(a), _plain(b), trans=trans, lower=lower), a, b)


@contextmanager
def errstate(*, divide: Any = None, linalg: str | None = None, **options: Any) -> Any:
    before, machine().linalg = machine().linalg, linalg or machine().linalg
    try:
        yield
    finally:
        machine().linalg = before


PLAYED = [
    *("mean", "sum", "sqrt", "where", "zeros", "zeros_like", "ones", "ones_like", "empty", "empty_like", "all", "any"),
    *("isfinite", "isnan", "maximum", "minimum", "eye", "full", "full_like", "std", "var", "stack", "take"),
    *("concatenate", "arange", "diagonal", "matmul", "reshape", "max", "min", "argmax"),
]
TYPES = ["bool_", "uint8", "int32", "int64", "float16", "float32", "float64", "inf", "nan", "pi", "newaxis"]
ABSENT = {"float128", "longdouble", "complex256", "ma", "rec", "char", "strings", "memmap", "linalg", "vecdot"}


class _Module(types.ModuleType):
    """CuPy has much that is not played here: it can be named, but not called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ABSENT or not hasattr(np, name):
            raise AttributeError(name)

        def refused(*args: object, **options: object) -> None:
            raise NotImplementedError(f"cupy.{name} is not played by tests/support/cupy_on_numpy.py")

        return refused


def _modules() -> dict[str, types.ModuleType]:
    names = (
        "cupy",
        "cupy.cuda",
        "cupy.cuda.device",
        "cupy.linalg",
        "cupy.fft",
        "cupyx",
        "cupyx.scipy",
        "cupyx.scipy.linalg",
    )
    found = {name: (_Module if name == "cupy" else types.ModuleType)(name) for name in names}
    cupy, cuda, device, linalg, fft, cupyx, scipy_of, linalg_of = found.values()
    device.Device = Device  # type: ignore[attr-defined]
    cuda.__dict__.update(Stream=Stream, Event=Event, Device=Device, get_current_stream=current)
    cuda.runtime = types.SimpleNamespace(getDevice=lambda: 0, getDeviceProperties=lambda _: {"name": b"no device"})
    linalg.__dict__.update(
        cholesky=lambda a: _checked(lambda: np.linalg.cholesky(_plain(a)), a),
        solve=lambda a, b: _checked(lambda: np.linalg.solve(_plain(a), _plain(b)), a, b),
        eigh=_eigh,
        lstsq=None,
        **dict.fromkeys(("inv", "qr", "svd", "det", "slogdet", "matrix_rank", "pinv", "norm", "matrix_power")),
    )
    fft.__dict__.update(dict.fromkeys(n for n in dir(np.fft) if not n.startswith("_")))
    played = {name: _function(getattr(np, name)) for name in PLAYED}
    types_of = {name: getattr(np, name) for name in TYPES}
    cupy.__dict__.update(played, **types_of, ndarray=ndarray, asarray=asarray, array=array, finfo=np.finfo)
    cupy.__dict__.update(
        cuda=cuda, linalg=linalg, fft=fft, __version__="13.0 (played)", __spec__=ModuleSpec("cupy", None)
    )
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(
        free_all_blocks=lambda: None, free_bytes=lambda: 0, used_bytes=lambda: machine().held
    )
    cupyx.__dict__.update(errstate=errstate, empty_pinned=np.empty, scipy=scipy_of)
    scipy_of.linalg, linalg_of.solve_triangular = linalg_of, solve_triangular
    return found


_MODULES = _modules()


def installed(monkeypatch: Any) -> Machine:
    """Put it in CuPy's place while a test runs; call the machine's `end` at the end."""
    fresh = begun()
    for name, module in _MODULES.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in [name for name in sys.modules if name.startswith("array_api_compat.cupy")]:
        monkeypatch.delitem(sys.modules, name)
    return fresh
