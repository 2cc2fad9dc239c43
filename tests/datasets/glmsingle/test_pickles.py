"""GLMsingle's pickled files are read as descriptions: the same numbers, nothing runs, anything unusual is refused."""

import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from bdflow.datasets.glmsingle.pickles import Array, Place, read_dictionary

RNG = np.random.default_rng(0)
CONTENT = {
    "betasmd": RNG.standard_normal((9, 8, 7, 40), np.float32),
    "fortran": np.asfortranarray(RNG.standard_normal((3, 4, 5)).astype(np.float32)),
    "strided": RNG.standard_normal((6, 6))[::2, ::3],
    "big_endian": np.arange(5, dtype=">i4"),
    "truths": np.array([[True, False, True]]),
    "none_at_all": np.zeros((0, 3)),
    "words": np.array(["a", "longer"]),
    "numbers": [1, -3, 70_000, 2**40, 1.5, None, True, False],
    "scalars": [np.int64(-4), np.float32(0.5), np.bool_(True)],
    "inside": {"lambda": 0, "text": "ä" * 300, "tuple": (1, 2, 3, 4), "empty": [{}, (), []]},
    "runs": [np.arange(3), np.arange(4)],
}


def saved(path: Path, content: object, protocol: int = 4) -> Path:
    """As `numpy.save` writes it: the header, then the pickle of an array with one object."""
    array = np.empty((), object)
    array[()] = content
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(array, file, protocol)
    return path


def plain(value: object) -> object:
    """With arrays in place of their descriptions."""
    if isinstance(value, Array):
        return value.read()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return type(value)(plain(item) for item in value) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
def test_reads_what_was_saved(tmp_path, protocol, core):
    """Pickles of numpy 2 and of numpy 1, which differ in the name of a module, in both protocols of `numpy.save`."""
    path = saved(tmp_path / "a.npy", CONTENT, protocol)
    if core == "numpy.core":
        content = path.read_bytes()
        for size in (b"\x16", b""):  # in protocol 4 the length of the name stands before it
            shorter = bytes([size[0] - 1]) if size else b""
            content = content.replace(size + b"numpy._core.multiarray", shorter + b"numpy.core.multiarray")
        assert b"_core" not in content
        path.write_bytes(content)
    found = plain(read_dictionary(path, "a test"))
    assert list(found) == list(CONTENT)
    for name, value in CONTENT.items():
        np.testing.assert_equal(found[name], value)
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype
    assert [type(n) for n in found["numbers"]] == [type(n) for n in CONTENT["numbers"]]


def test_reads_what_numpy_itself_saves(tmp_path):
    np.save(tmp_path / "a.npy", CONTENT, allow_pickle=True)
    np.testing.assert_equal(plain(read_dictionary(tmp_path / "a.npy", "a test")), CONTENT)


def test_large_arrays_stay_in_the_file(tmp_path):
    """Their place is known; their bytes are not read."""
    path = saved(tmp_path / "a.npy", CONTENT)
    found = read_dictionary(path, "a test")["betasmd"]
    assert isinstance(found.content, Place)
    start = found.content.start
    assert path.read_bytes()[start : start + found.content.size] == CONTENT["betasmd"].tobytes()
    assert isinstance(read_dictionary(path, "a test")["truths"].content, bytes)


class Runs:
    """Pickles to a call of `os.system`."""

    def __init__(self, call, arguments):
        self.parts = call, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize(
    ("call", "arguments", "said"),
    [
        (os.system, ("touch {marker}",), "system"),
        (eval, ("open('{marker}', 'w')",), "eval"),
        (os.mkdir, ("{marker}",), "mkdir"),
        (np.load, ("{marker}",), "numpy"),
        (np.memmap, ("{marker}", "u1", "w+", 0, 8), "memmap"),
        (getattr, ("{marker}", "upper"), "getattr"),
        (bytearray, (10,), "bytearray"),
    ],
)
@pytest.mark.parametrize("protocol", [3, 4])
def test_nothing_that_a_file_asks_for_is_called(tmp_path, refused, call, arguments, said, protocol):
    marker = tmp_path / "marker"
    arguments = tuple(part.format(marker=marker) if isinstance(part, str) else part for part in arguments)
    path = saved(tmp_path / "a.npy", {"betasmd": Runs(call, arguments)}, protocol)
    refused(lambda: read_dictionary(path, "a test"), path, "asks for", said, "can run code")
    assert not marker.exists()


def test_the_protocol_of_python_2_is_refused(tmp_path, refused):
    """It needs a function more, to turn texts into bytes."""
    path = saved(tmp_path / "a.npy", CONTENT, 2)
    refused(lambda: read_dictionary(path, "a test"), path, "asks for _codecs.encode", "save the betas as NIfTI")


def test_numpys_own_names_are_no_way_in(tmp_path, refused):
    """The four names stand for descriptions: used in another way than numpy uses them, they are refused."""
    for what in (
        Runs(np.ndarray, ((3,),)),
        Runs(np.dtype, ({"names": ["a"], "formats": ["i4"]},)),
        np.zeros(3, [("a", "i4")]),
        np.datetime64("2020-01-01"),
        pickle.PickleBuffer,
    ):
        refused(lambda what=what: read_dictionary(saved(tmp_path / "a.npy", {"x": what}), "a test"), "a.npy")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_ends_too_early_is_refused(tmp_path, refused, share):
    path = saved(tmp_path / "a.npy", CONTENT)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(lambda: read_dictionary(path, "a test"), path, "a file that cannot be used")


def test_no_damaged_byte_is_more_than_an_error(tmp_path):
    """Whatever a byte of the pickle is changed to: content, or an InputError; no other error, and nothing runs."""
    path = saved(tmp_path / "a.npy", {"a": np.arange(4.0), "b": [np.int64(1), "text", 2.5, (1, 2)]})
    good = path.read_bytes()
    start = good.index(b"\n") + 1
    outcomes = set()
    for at in range(start, len(good)):
        for value in (good[at] ^ 1, ord("R"), 0xFF):
            path.write_bytes(good[:at] + bytes([value]) + good[at + 1 :])
            try:
                found = read_dictionary(path, "a test")
            except ValueError as error:
                outcomes.add(type(error).__name__)
            else:
                outcomes.add(type(found).__name__)
    assert outcomes == {"InputError", "dict"}


@pytest.mark.parametrize("length", [3, 5, 255])
def test_a_shape_that_the_bytes_do_not_fill_is_refused(tmp_path, refused, length):
    path = saved(tmp_path / "a.npy", {"betasmd": np.arange(4.0)})
    content = path.read_bytes()
    assert content.count(b"K\x04\x85") == 1
    path.write_bytes(content.replace(b"K\x04\x85", bytes([75, length, 0x85])))
    refused(lambda: read_dictionary(path, "a test"), "32 bytes", f"({length},)", f"takes {8 * length:,}")


def pickled(path: Path, steps: bytes) -> Path:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(b"\x80\x04" + steps)
    return path


@pytest.mark.parametrize(
    "steps",
    [
        b"\x8e" + struct.pack("<Q", 2**62) + b"x.",  # more bytes than there are
        b"X" + struct.pack("<I", 2**32 - 1) + b"x.",
        b")" + b"\x94h\x00\x86" * 1 + b"2" * 3 + b".",  # a step that numpy's pickles do not have
        b"}" + b")" + b"\x85" * 5000 + b"Ns.",  # a deep key
        b"(" * 1000 + b".",
        b"t.",
        b".",
        b"\x93.",
        b"h\x07.",
        b"N)R.",
        b"N}b.",
        b"cnumpy\nndarray",
    ],
)
def test_hostile_pickles_are_refused(tmp_path, refused, steps):
    refused(lambda: read_dictionary(pickled(tmp_path / "a.npy", steps), "a test"), "a.npy")


@pytest.mark.parametrize(
    "content", [b"", b"not an array", b"\x93NUMPY\x01\x00", bytes(200)], ids=["empty", "text", "cut", "zeros"]
)
def test_files_that_are_none_of_numpys(tmp_path, refused, content):
    (tmp_path / "a.npy").write_bytes(content)
    refused(lambda: read_dictionary(tmp_path / "a.npy", "a test"), tmp_path / "a.npy", "no header")


def test_other_arrays_are_no_dictionary(tmp_path, refused):
    np.save(tmp_path / "plain.npy", np.arange(4.0))
    refused(lambda: read_dictionary(tmp_path / "plain.npy", "a test"), "float64", "no dictionary")
    np.save(tmp_path / "list.npy", np.array([{}, {}]), allow_pickle=True)
    refused(lambda: read_dictionary(tmp_path / "list.npy", "a test"), "no dictionary")
    refused(lambda: read_dictionary(saved(tmp_path / "text.npy", "a text"), "a test"), "no dictionary")
    content = io.BytesIO()
    np.savez(content, a=np.arange(3))
    (tmp_path / "zip.npy").write_bytes(content.getvalue())
    refused(lambda: read_dictionary(tmp_path / "zip.npy", "a test"), "zip.npy")
