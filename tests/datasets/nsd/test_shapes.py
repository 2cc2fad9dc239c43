"""Arrays and lists that users hand in are of one shape: nothing is flattened, nothing is cast that is no number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdflow import npy
from bdflow.datasets.formats.volumes import read_volume
from bdflow.datasets.nsd import NSD, Captions
from bdflow.errors import InputError


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
        read_volume(tmp_path / "a.nii.gz")
