"""An input is what it holds: any changed byte is another, a copy anywhere is the same, nothing is read twice."""

import gzip
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest

from bdflow.datasets.formats.identity import identity as identity_of_data
from bdflow.errors import NotAtHand
from bdflow.models.weights.bundle import TINY, open_bundle
from bdflow.stores import Study, inputs
from bdflow.stores.paths import place


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """A study; files count as settled at once, so that they are remembered."""
    monkeypatch.setattr(inputs, "SETTLED", -1)
    study = Study(tmp_path / "study.zarr")
    study.create("a study", {})
    return study


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """What was read whole, in order."""
    found: list[str] = []
    real = inputs._digest

    def digest(path, size):
        found.append(path.name)
        return real(path, size)

    monkeypatch.setattr(inputs, "_digest", digest)
    return found


@contextmanager
def process(study: Path) -> Iterator[None]:
    """A process that only knows what is remembered in the study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "_process", inputs._Memory())
        with inputs.remembered(study):
            yield


def large(path, size=300_000) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(size))


@pytest.mark.parametrize("size", [0, 1, 128 * 1024, 128 * 1024 + 1, 300_000])
def test_any_changed_byte_is_another_input(tmp_path, size):
    file = tmp_path / "captions.npy"
    large(file, size)
    before, content = inputs.identity(file), file.read_bytes()
    assert before.startswith(f"{size}:")
    for at in {0, size // 3, size // 2, 70_000, 200_000, size - 1} & set(range(size)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert inputs.identity(file) != before
    file.write_bytes(content)
    assert inputs.identity(file) == before


def test_files_of_several_pieces_and_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "PIECE", 100_000)
    monkeypatch.setattr(inputs, "STEP", 30_000)
    file = tmp_path / "a.hdf5"
    large(file, 450_001)
    before, content, found = inputs.identity(file), file.read_bytes(), set()
    for at in (0, 99_999, 100_000, 250_000, 450_000):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        found.add(inputs.identity(file))
    swapped = content[100_000:200_000] + content[:100_000] + content[200_000:]
    file.write_bytes(swapped)
    found.add(inputs.identity(file))
    assert len(found) == 6
    assert before not in found


def test_a_copy_elsewhere_is_the_same_input(tmp_path):
    file = tmp_path / "a.hdf5"
    large(file)
    shutil.copy(file, tmp_path / "other name.bin")
    (tmp_path / "link").symlink_to(file)
    remote = place("memory://inputs/data/a.hdf5")
    remote.write_bytes(file.read_bytes())
    assert {inputs.identity(where) for where in (file, tmp_path / "other name.bin", tmp_path / "link", remote)} == {
        inputs.identity(file)
    }


def test_a_process_reads_a_file_once(tmp_path, read, monkeypatch):
    monkeypatch.setattr(inputs, "SETTLED", -1)
    file = tmp_path / "a.hdf5"
    large(file)
    with process(tmp_path / "no study yet.zarr"):
        assert inputs.identity(file) == inputs.identity(file)
    assert read == ["a.hdf5"]


def test_a_file_is_read_once_for_all_processes_until_it_changes(study, tmp_path, read):
    file = tmp_path / "a.hdf5"
    large(file)
    for _ in range(3):
        with process(study.path):
            before = inputs.identity(file)
    assert read == ["a.hdf5"]
    content = bytearray(file.read_bytes())
    content[150_000] ^= 1
    status = file.stat()
    file.write_bytes(bytes(content))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with process(study.path):
        assert inputs.identity(file) != before, "the same size, inode and time of change: ctime differs"
    assert len(read) == 2


def test_a_file_that_was_just_written_is_not_remembered(study, tmp_path, read, monkeypatch):
    monkeypatch.setattr(inputs, "SETTLED", 2e9)
    file = tmp_path / "a.hdf5"
    large(file)
    for _ in range(2):
        with process(study.path):
            inputs.identity(file)
    assert len(read) == 2


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_memory_that_is_damaged_or_cannot_be_written_is_no_error(study, tmp_path, read, content):
    chunk = study.path / inputs.DIGESTS / "c/0"
    chunk.unlink()
    if content is None:
        chunk.mkdir()
    else:
        chunk.write_bytes(content)
    file = tmp_path / "a.hdf5"
    large(file)
    with process(study.path):
        inputs.identity(file)
    with process(tmp_path / "no study.zarr"):
        inputs.identity(file)
    assert not (tmp_path / "no study.zarr").exists()
    assert len(read) == 2


# --- compressed volumes -------------------------------------------------------------------------------------------


def volume(path, seed=0) -> None:
    data = np.random.default_rng(seed).integers(-3000, 3000, (20, 21, 22, 40)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), path)


def test_a_compressed_volume_is_known_by_its_ends(tmp_path, read):
    volume(tmp_path / "betas.nii.gz")
    before = identity_of_data(tmp_path / "betas.nii.gz")
    shutil.copy(tmp_path / "betas.nii.gz", tmp_path / "copy.nii.gz")
    assert identity_of_data(tmp_path / "copy.nii.gz") == before
    assert read == []
    content = bytearray(gzip.decompress((tmp_path / "betas.nii.gz").read_bytes()))
    content[len(content) // 2] ^= 1
    (tmp_path / "copy.nii.gz").write_bytes(gzip.compress(bytes(content)))
    assert identity_of_data(tmp_path / "copy.nii.gz") != before


def two_members(content: bytes) -> bytes:
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:])


def wrong_length(content: bytes) -> bytes:
    return gzip.compress(content)[:-4] + struct.pack("<I", 7)


def no_volume(content: bytes) -> bytes:
    return gzip.compress(content[400:])


@pytest.mark.parametrize("write", [two_members, wrong_length, no_volume, bytes])
def test_what_the_end_does_not_cover_is_read_whole(tmp_path, read, write):
    volume(tmp_path / "betas.nii.gz")
    content = gzip.decompress((tmp_path / "betas.nii.gz").read_bytes())
    file = tmp_path / "other.nii.gz"
    file.write_bytes(write(content))
    before = identity_of_data(file)
    assert read == ["other.nii.gz"]
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    file.write_bytes(bytes(damaged))
    assert identity_of_data(file) != before


def test_a_file_that_is_not_there_is_said_not_to_be_at_hand(tmp_path):
    for name in ("none.hdf5", "none.nii.gz"):
        with pytest.raises(NotAtHand, match="nothing there"):
            identity_of_data(tmp_path / name)


def test_the_middle_of_every_file_of_a_bundle_counts(tmp_path):
    shutil.copytree(TINY, tmp_path / "bundle")
    before = open_bundle(tmp_path / "bundle").fingerprint
    assert open_bundle("tiny").fingerprint == before
    for file in sorted((tmp_path / "bundle").rglob("*.safetensors")):
        content = file.read_bytes()
        at = len(content) // 2
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert open_bundle(tmp_path / "bundle").fingerprint != before, file
        file.write_bytes(content)
