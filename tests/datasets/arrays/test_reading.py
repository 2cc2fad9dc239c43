"""What is read of a dataset in arrays, and from where; which files identify it; how it comes to workers."""

import itertools
import logging
import pickle
import re

import numpy as np
import pytest
from zarr.storage import LocalStore

from bdflow.datasets.arrays import Arrays
from bdflow.datasets.arrays import betas as betas_module
from bdflow.datasets.formats.identity import identity
from bdflow.errors import InputError, NotAtHand
from bdflow.stores.paths import RemotePath, place, remove_tree
from tests.datasets.arrays.made import IDS, in_files, made, opened, png, stimuli, subject, text, tree, write

ONES = np.ones((3, 1, 1), bool)


# --- what is read ---------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Keys of chunks that Zarr asked for."""
    keys: list[str] = []
    get = LocalStore.get

    async def counted(self, key, prototype=None, byte_range=None):
        if not key.endswith("zarr.json"):
            keys.append(key)
        return await get(self, key, prototype, byte_range)

    monkeypatch.setattr(LocalStore, "get", counted)
    return keys


def large(shards: tuple[int, int] | None = None):
    beta = np.random.default_rng(0).normal(size=(20, 40)).astype("f4")
    part = subject(beta, ["é"] * 20, ["s1"] * 7 + ["s2"] * 9 + ["s3"] * 4)
    stored = {"chunks": (4, 8), **({"shards": shards} if shards else {})}
    return beta, part, {"/subjects/anna": {"beta": stored}, "/stimuli": {"image": {"chunks": (1, 4, 5, 3)}}}


@pytest.mark.parametrize("block", [1, 4 * 8 * 4 * 3, 10**9])
def test_betas_are_read_by_the_chunks_of_the_session_and_the_mask(tmp_path, asked, monkeypatch, block):
    """None twice, whatever may be held at once."""
    monkeypatch.setattr(betas_module, "BLOCK", block)
    beta, part, encoding = large()
    data = made(tmp_path, encoding, anna=part)
    mask = np.zeros((40, 1, 1), bool)
    mask[[1, 6, 9, 33]] = True
    data.trials("anna")
    asked.clear()
    found = data.betas("anna", "s2", mask)
    assert np.array_equal(found.values, beta[7:16, [1, 6, 9, 33]])
    assert sorted(asked) == sorted(f"subjects/anna/beta/c/{t}/{v}" for t in (1, 2, 3) for v in (0, 1, 4))


def test_opening_reads_no_betas_and_no_pictures(tmp_path, asked):
    _, part, encoding = large()
    data = made(tmp_path, encoding, anna=part)
    asked.clear()
    data.encoding(), data.stimuli(), data.trials("anna"), data.mask("anna", None), data.picture_shape()
    assert not [key for key in asked if "beta" in key or "image" in key]
    data.pictures(["é", "a 1.png"])
    assert sorted(key for key in asked if "image" in key) == ["stimuli/image/c/0/0/0/0", "stimuli/image/c/3/0/0/0"]


def test_shards_are_read_in_part(tmp_path):
    beta, part, encoding = large(shards=(12, 24))
    data = made(tmp_path, encoding, anna=part)
    mask = np.zeros((40, 1, 1), bool)
    mask[5:30:3] = True
    for session, rows in (("s1", slice(0, 7)), ("s2", slice(7, 16)), ("s3", slice(16, 20))):
        assert np.array_equal(data.betas("anna", session, mask).values, beta[rows][:, 5:30:3])
    files = data.beta_files("anna", ["s3"])
    assert sorted(name for name in files if "/beta/c" in name) == [
        "subjects/anna/beta/c/1/0",
        "subjects/anna/beta/c/1/1",
    ]


@pytest.mark.parametrize(
    ("chunks", "trials", "said"),
    [((1, 1), 400, "chunks, of 1 voxels each"), ((400, 3), 400, "decoded anew for each of the 40 sessions")],
)
def test_chunks_that_are_slow_are_said_once(tmp_path, caplog, monkeypatch, chunks, trials, said):
    monkeypatch.setattr(betas_module, "_MOST_CHUNKS", 500)
    beta = np.arange(3 * trials, dtype="f4").reshape(trials, 3)
    part = subject(beta, ["é"] * trials, [f"s{n // 10}" for n in range(trials)])
    data = made(tmp_path, {"/subjects/anna": {"beta": {"chunks": chunks}}}, anna=part)
    with caplog.at_level(logging.WARNING):
        data.betas("anna", "s3", ONES)
        data.betas("anna", "s5", ONES)
    (line,) = [record.getMessage() for record in caplog.records]
    assert said in line
    assert "docs/arrays.md" in line


def test_large_chunks_are_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(betas_module, "_LARGE_CHUNK", 50)
    with caplog.at_level(logging.WARNING):
        made(tmp_path).betas("anna", "s1", ONES)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "a chunk holds 0.0 GiB, and is decoded as a whole" in line


# --- where it lies --------------------------------------------------------------------------------------------

numbers = itertools.count()


@pytest.fixture
def remote():
    """A folder in an object store that is in memory."""
    folder = place(f"memory://arrays-{next(numbers)}/folder")
    yield folder
    remove_tree(folder)


def test_an_object_store(tmp_path, remote):
    beta, part, encoding = large()
    part = part.assign(roi=(("region", "voxel"), np.arange(40)[None] % 3 == 0)).assign_coords(region=text(["a/b"]))
    here = write(tmp_path / "own.zarr", tree(anna=part), encoding=encoding)
    for file in here.rglob("*"):
        if file.is_file():
            (remote / "own.zarr" / file.relative_to(here)).write_bytes(file.read_bytes())
    data, local = opened(str(remote / "own.zarr")), opened(here)
    assert data.subjects() == ("anna",)
    assert data.pictures(["é"])[0, 0, 0, 0] == 4
    mask = data.mask("anna", "a/b")
    assert np.array_equal(data.betas("anna", "s2", mask).values, beta[7:16, ::3])
    for mine, theirs in (
        (data.stimulus_files(), local.stimulus_files()),
        (data.beta_files("anna", ["s2"]), local.beta_files("anna", ["s2"])),
    ):
        assert {name: identity(file) for name, file in mine.items()} == {
            name: identity(file) for name, file in theirs.items()
        }
    (remote / "own.zarr/subjects/anna/beta/c/2/0").write_bytes(b"?")
    with pytest.raises(InputError, match=r"subjects/anna/beta: found data that cannot be read"):
        data.betas("anna", "s2", mask)


def test_pictures_in_files_of_an_object_store(tmp_path, remote):
    here = write(
        tmp_path / "own.zarr", tree(stimuli=in_files(["in.png", "../beside/b.png", "", str(remote / "c.png")]))
    )
    for file in here.rglob("*"):
        if file.is_file():
            (remote / "own.zarr" / file.relative_to(here)).write_bytes(file.read_bytes())
    for number, name in enumerate(("own.zarr/in.png", "beside/b.png", "c.png")):
        (remote / name).write_bytes(png("L", (2, 2), number))
    data = opened(str(remote / "own.zarr"))
    assert [picture[0, 0, 0] for picture in data.pictures(["a 1.png", "b+c", "é"])] == [0, 1, 2]
    assert data.stimulus_files()["picture of b+c"] == RemotePath(f"{remote}/beside/b.png")


def test_nothing_there(tmp_path, remote):
    for root in (tmp_path / "gone.zarr", str(remote / "gone.zarr")):
        with pytest.raises(NotAtHand, match=r"gone\.zarr: found nothing there"):
            opened(root).stimuli()


# --- identity -------------------------------------------------------------------------------------------------


def digests(files) -> dict[str, str]:
    return {name: identity(file) for name, file in files.items()}


def test_files_that_identify_stimuli_and_betas(tmp_path):
    _, part, encoding = large()
    data = made(tmp_path, encoding, anna=part)
    files = data.stimulus_files()
    assert list(files) == sorted(files)
    assert all(re.match(r"stimuli/", name) for name in files)
    assert {"stimuli/zarr.json", "stimuli/image/c/3/0/0/0", "stimuli/stimulus/c/0"} <= set(files)
    some, every = data.beta_files("anna", ["s3"]), data.beta_files("anna", ["s1", "s2", "s3"])
    inside = tmp_path / "own.zarr"
    assert set(every) == {
        str(file.relative_to(inside)) for file in (inside / "subjects/anna").rglob("*") if file.is_file()
    }
    assert set(every) - set(some) == {f"subjects/anna/beta/c/{t}/{v}" for t in range(4) for v in range(5)}
    with pytest.raises(InputError, match="session 's9'"):
        data.beta_files("anna", ["s9"])


def test_another_subject_moves_no_identity_and_another_value_does(tmp_path):
    one, two = made(tmp_path / "1"), made(tmp_path / "2", ben=subject())
    beta = subject().beta.values
    beta[5, 0] += 1
    three = made(tmp_path / "3", stimuli=stimuli([*IDS[:3], "f"]), anna=subject(beta, ["f"] * 6))
    assert digests(one.stimulus_files()) == digests(two.stimulus_files())
    assert digests(one.beta_files("anna", ["s1"])) == digests(two.beta_files("anna", ["s1"]))
    assert digests(one.stimulus_files()) != digests(three.stimulus_files())
    first, third = (digests(data.beta_files("anna", ["s1"])) for data in (one, three))
    assert first["subjects/anna/beta/c/0/0"] != third["subjects/anna/beta/c/0/0"]


# --- workers --------------------------------------------------------------------------------------------------


def test_it_travels_to_workers_before_and_after_it_was_used(tmp_path):
    data = made(tmp_path)
    for _ in range(2):
        other = pickle.loads(pickle.dumps(data))
        assert isinstance(other, Arrays)
        assert np.array_equal(other.betas("anna", "s2", ONES).values, subject().beta.values[4:])
        data.betas("anna", "s1", ONES)


def test_making_one_reads_nothing(tmp_path):
    assert opened(tmp_path / "gone.zarr").settings.kind == "arrays"


def test_unknown_options_are_refused(tmp_path):
    write(tmp_path / "own.zarr", tree())
    with pytest.raises(InputError, match=r"unknown key `dataset.options.backgroud`(.|\n)*`dataset.options.background`"):
        opened(tmp_path / "own.zarr", backgroud=3).stimuli()


def test_a_subject_that_is_added_later_is_seen(tmp_path):
    """Also where xarray has written a copy of all metadata into the root, which then lacks it."""
    root = write(tmp_path / "own.zarr", tree(), consolidated=True)
    assert opened(root).subjects() == ("anna",)
    subject().to_zarr(root, group="subjects/ben", zarr_format=3, consolidated=False, write_empty_chunks=True)
    assert opened(root).subjects() == ("anna", "ben")
    assert opened(root).trials("ben").session.tolist() == ["s1"] * 4 + ["s2"] * 2
