"""Arrays and lists that users hand in are of one shape: nothing is flattened, nothing is cast that is no number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdflow import npy
from bdflow.datasets import nsd
from bdflow.datasets.nsd import NSD, Captions
from bdflow.datasets.nsd.design import _read_ids
from bdflow.errors import InputError

WRONG_TEXTS = {
    "two columns": "1 10\n2 20\n",
    "one line": "1 2 3",
    "commas": "1,2\n3,4",
    "a row number and an id": "row id\n0 5\n1 6",
    "floats": "1.0\n2.0",
    "a float that is whole": "1e1",
    "hexadecimal": "0x1",
    "not finite": "nan",
    "twice": "3\n4\n3",
    "twice in another way": "3\n03",
    "nothing": "# nothing\n\n",
    "a sentence": "the first ten",
    "long": "9" * 5000,
}


@pytest.mark.parametrize("case", WRONG_TEXTS)
def test_split_files_that_are_no_list_of_ids(case, tmp_path):
    path = tmp_path / "test.txt"
    path.write_text(WRONG_TEXTS[case], encoding="utf-8")
    with pytest.raises(InputError) as error:
        _read_ids(path, 86)
    assert str(path) in str(error.value)
    assert "one a line" in str(error.value)


@pytest.mark.parametrize("text", ["\ufeff3\n5\n", "3\r\n5\r\n", "# ids\n 3  # a comment\n\n+5", "03\n05\n"])
def test_split_files_as_editors_write_them(text, tmp_path):
    path = tmp_path / "test.txt"
    path.write_text(text, encoding="utf-8")
    assert _read_ids(path, 86).tolist() == [3, 5]


def test_a_split_file_of_another_encoding_is_named(tmp_path):
    path = tmp_path / "test.txt"
    path.write_bytes("3\n5".encode("utf-16"))
    with pytest.raises(InputError, match="no readable list"):
        _read_ids(path, 86)


WRONG_ARRAYS = {
    "two columns": np.arange(6).reshape(3, 2),
    "one column": np.arange(3).reshape(3, 1),
    "one row": np.arange(3).reshape(1, 3),
    "no axis": np.array(3),
    "truths": np.array([True, False]),
    "text": np.array(["1", "2"]),
    "complex": np.array([1j, 2]),
    "fractions": np.array([1.5]),
    "not finite": np.array([1, np.nan]),
    "twice": np.array([1, 2, 1]),
    "objects": np.array([1, "a"], object),
    "records": np.zeros(3, [("row", int), ("id", int)]),
    "huge": np.array([1e300]),
    "none": np.array([], int),
}


@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_split_arrays_that_are_no_list_of_ids(case, tmp_path):
    path = tmp_path / "test.npy"
    np.save(path, WRONG_ARRAYS[case], allow_pickle=True)
    with pytest.raises(InputError) as error:
        _read_ids(path, 86)
    assert str(path) in str(error.value)


@settings(deadline=None)
@given(st.lists(st.integers(0, 85), min_size=1, unique=True), st.sampled_from(["i2", "u8", "f4"]))
def test_split_arrays_of_ids(tmp_path_factory, ids, dtype):
    path = tmp_path_factory.mktemp("split") / "test.npy"
    np.save(path, np.array(ids, dtype))
    assert _read_ids(path, 86).tolist() == ids


def damaged() -> dict[str, bytes]:
    """Files that numpy's own reader believes, or meets with whatever Python raises."""
    import io

    def saved(values: np.ndarray) -> bytes:
        out = io.BytesIO()
        np.save(out, values)
        return out.getvalue()

    def with_header(text: str, data: bytes = b"") -> bytes:
        filled = text.encode().ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + len(filled).to_bytes(2, "little") + filled + data

    good = saved(np.arange(6, dtype="<f4").reshape(2, 3))
    return {
        "empty": b"",
        "text": b"1 2 3",
        "an archive": b"PK\x03\x04" + bytes(100),
        "short": good[:-1],
        "two arrays": good + good,
        "negative": good.replace(b"(2, 3)", b"(-2,-3)"),
        "one negative": good.replace(b"(2, 3)", b"(-1, 3)"),
        "truths": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2)}", bytes(8)),
        "endless": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10**9"),
        "huge": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,)}"),
        "huge and empty": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999)}"),
        "unhashable": with_header("{{}: 1}"),
        "mixed keys": with_header("{1: 1, 'a': 2, b'c': 3}"),
        "deep": with_header("(" * 100),
        "many axes": with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'1,' * 33})}}", bytes(4)),
        "no such dtype": with_header("{'descr': [], 'fortran_order': False, 'shape': (1,)}"),
        "version": b"\x93NUMPY\x09\x00" + bytes(100),
    }


DAMAGED = damaged()


@pytest.mark.parametrize("case", DAMAGED)
def test_files_whose_header_lies(case, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(DAMAGED[case])
    with pytest.raises(ValueError):
        npy.load(path)
    with pytest.raises(InputError):
        _read_ids(path, 86)
    with pytest.raises(InputError):
        Captions(path)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 127), st.binary(min_size=1, max_size=4))
def test_any_bytes_are_an_array_or_a_value_error(tmp_path_factory, content, at, other):
    import io

    out = io.BytesIO()
    np.save(out, np.arange(4))
    whole = out.getvalue()
    for text in (content, whole[:at] + other + whole[at + len(other) :]):
        try:
            npy.check(io.BytesIO(text), len(text))
        except ValueError:
            continue
        assert np.load(io.BytesIO(text)).size == 4 or text == content


@pytest.mark.parametrize("ids", [[[1, 2]], [1.5], [True], 3, ["1"]])
def test_stimuli_are_asked_for_by_a_list_of_whole_numbers(ids, nsd):
    with NSD(nsd).stimuli() as stimuli, pytest.raises(InputError, match="nsd_ids"):
        stimuli.read(ids)
    with pytest.raises(InputError, match="nsd_ids"):
        NSD(nsd).captions().read(ids)


def test_volumes_that_are_not_real(tmp_path):
    import nibabel

    volume = nibabel.Nifti1Image(np.ones((2, 3, 4), np.complex64), np.eye(4))
    nibabel.save(volume, tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="complex64"):
        nsd.read_volume(tmp_path / "a.nii.gz")
