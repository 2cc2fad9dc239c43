"""bdflow fetch nsd: exactly the files that are needed, resumed, verified; and NSD read where it lies."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from bdflow.cli.main import app
from bdflow.config import parse
from bdflow.datasets.formats.betas import open_session
from bdflow.datasets.formats.identity import identity
from bdflow.datasets.formats.volumes import voxel_mask
from bdflow.datasets.nsd import NSD, download
from bdflow.datasets.reader import Reader
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline
from bdflow.stages.ingest import Ingest
from bdflow.stores import Study
from bdflow.stores.paths import RemotePath, place
from bdflow.stores.remote import Unreachable
from bdflow.study.graph import Graph
from tests.conftest import SUBJECTS, snapshot
from tests.support import logs


def upload(folder: Path, where: RemotePath) -> dict[str, int]:
    """Every file below `folder` into an object store; their sizes by name."""
    sizes = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            name = str(file.relative_to(folder))
            (where / name).write_bytes(file.read_bytes())
            sizes[name] = file.stat().st_size
    return sizes


@pytest.fixture(scope="module")
def mirror(nsd) -> RemotePath:
    where = place("memory://fetch-mirror/nsd")
    upload(nsd, where)
    return where


@pytest.fixture
def config(settings, tmp_path):
    return parse(settings(tmp_path))


def expected_names(root: Path, config) -> set[str]:
    """What the readers of the pipeline ask for, file by file."""
    data = Reader(config)
    files = [*data.dataset.stimulus_files().values()]
    for subject in config.subjects:
        files += data.dataset.beta_files(subject, data.sessions(subject)).values()
    return {str(file.relative_to(root)) for file in files}


# --- reading where it lies -------------------------------------------------------------------------------------


def test_nsd_in_an_object_store_reads_as_on_disk(nsd, mirror, settings, tmp_path):
    here, there = NSD(nsd), NSD(str(mirror))
    assert there.subjects() == here.subjects()
    subject = SUBJECTS[0]
    assert there.check_sessions(subject, 3) == [1, 2, 3]
    assert there.trials_per_session(subject, 3) == here.trials_per_session(subject, 3)
    assert there.roi_names(subject) == here.roi_names(subject)
    roi = there.roi(subject, "nsdgeneral")
    np.testing.assert_array_equal(roi.data, here.roi(subject, "nsdgeneral").data)
    np.testing.assert_array_equal(roi.affine, here.roi(subject, "nsdgeneral").affine)
    np.testing.assert_array_equal(there.ncsnr(subject), here.ncsnr(subject))
    mask = voxel_mask(roi)
    betas = [data.open_session(subject, 2).read_masked(mask) for data in (there, here)]
    np.testing.assert_array_equal(*betas)
    ids = here.design().nsd_ids(subject, 20)
    with there.stimuli() as a, here.stimuli() as b:
        np.testing.assert_array_equal(a.read(ids), b.read(ids))
    assert there.captions().read(ids) == here.captions().read(ids)
    apart = NSD(nsd, captions=str(mirror / "COCO_73k_annots_curated.npy"))
    assert apart.captions().read(ids) == here.captions().read(ids)
    with pytest.raises(InputError, match="nsddata_betas"):
        there.session_path(subject, 9)
    local, remote = (parse(settings(tmp_path, dataset={"root": str(root), "sessions": 3})) for root in (nsd, mirror))
    graphs = [Graph(config, [Ingest()]).provenances() for config in (local, remote)]
    assert graphs[0] == graphs[1], "a study does not grow stale when NSD moves"


def test_a_session_is_streamed_and_damage_is_told_from_silence(nsd, mirror, monkeypatch):
    path = next(nsd.glob("nsddata_betas/**/betas_session01.nii.gz"))
    remote = place(str(mirror)) / str(path.relative_to(nsd))
    mask = voxel_mask(NSD(nsd).roi(path.parents[2].name, "nsdgeneral"))
    cut = remote.with_name("betas_session08.nii.gz")
    cut.write_bytes(path.read_bytes()[:-100])
    data = NSD(str(mirror))
    with pytest.raises(InputError, match="fetch the file again"):
        data.open_session(path.parents[2].name, 8).read_masked(mask)
    cut._siblings.delete(cut.name)

    def silent(self, name, start, stop):
        raise Unreachable("s3://x", found="no answer", expected="one", action="run the same again")

    monkeypatch.setattr("bdflow.stores.remote.Bucket.read_range", silent)
    for read in (lambda: data.open_session(path.parents[2].name, 1), data.design, data.stimuli):
        with pytest.raises(Unreachable):
            read()
    assert identity(path) != ""


@pytest.mark.parametrize("chunks", [(40, 1, 1, 1), None])
def test_hdf5_sessions_are_read_by_ranges(tmp_path, monkeypatch, chunks):
    betas = np.random.default_rng(0).integers(-999, 999, (40, 5, 6, 7)).astype("i2")
    with h5py.File(tmp_path / "s.hdf5", "w") as file:
        file.create_dataset("betas", data=betas, chunks=chunks)
    remote = place(f"memory://fetch-hdf5-{chunks is None}/betas_session01.hdf5")
    remote.write_bytes((tmp_path / "s.hdf5").read_bytes())
    mask = np.random.default_rng(1).random((7, 6, 5)) < 0.3
    found, expected = (open_session(path).read_masked(mask) for path in (remote, tmp_path / "s.hdf5"))
    np.testing.assert_array_equal(found, expected)
    session = open_session(remote)
    with session._open() as dataset:
        source = session._file.source

        def silent(self, name, start, stop):
            raise Unreachable("s3://x", found="no answer", expected="one", action="run the same again")

        monkeypatch.setattr("bdflow.stores.remote.Bucket.read_range", silent)
        source.raw._pieces.clear()
        source.seek(0, 2)
        with pytest.raises(Unreachable):
            session._read(dataset, np.s_[:])


LEFT = """
import builtins, io, sys
import h5py
import numpy as np
from bdflow.datasets.nsd.stimuli import Stimuli
from bdflow.stores.paths import place
from bdflow.stores.remote import Bucket, Unreachable

def made(where, name, shape):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file[name] = np.zeros(shape, np.uint8)
    place(where).write_bytes(content.getvalue())
    return where

def silent(self, name, start, stop):
    raise Unreachable("s3://x", found="no answer", expected="one", action="run the same again")

stimuli = made("memory://left/stimuli.hdf5", "imgBrick", (3, 8, 8, 3))
Bucket.read_range = silent
try:
    Stimuli(stimuli)
except Unreachable as error:
    builtins.left = error
assert builtins.left
"""


def test_a_file_that_could_not_be_opened_does_not_crash_the_end_of_the_process():
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_is_left_open_is_closed_with_its_reader(nsd):
    stimuli = NSD(nsd).stimuli()
    file = stimuli._file.file
    assert file
    del stimuli
    assert not file


# --- what is fetched -------------------------------------------------------------------------------------------


def test_the_listing_is_what_the_readers_read(nsd, mirror, config):
    items = download.listing(config, mirror)
    assert {item.name for item in items} == expected_names(nsd, config)
    assert {item.name: item.size for item in items} == {item.name: (nsd / item.name).stat().st_size for item in items}
    fewer = config.model_copy(
        update={"dataset": config.dataset.model_copy(update={"sessions": 1}), "subjects": SUBJECTS[1:]}
    )
    assert {item.name for item in download.listing(fewer, mirror)} < {item.name for item in items}
    more = config.model_copy(update={"dataset": config.dataset.model_copy(update={"sessions": 5})})
    with pytest.raises(InputError, match=r"betas_session04.nii.gz"):
        download.listing(more, mirror)


def test_fetched_once_and_only_what_changed_again(nsd, mirror, config, tmp_path):
    items = download.listing(config, mirror)
    job = download.Fetch(mirror, tmp_path / "nsd")
    assert len(job.run(items)) == len(items)
    assert snapshot_of(tmp_path / "nsd") == {item.name: (nsd / item.name).read_bytes() for item in items}
    again = download.Fetch(mirror, tmp_path / "nsd")
    assert again.run(items) == []
    (tmp_path / "nsd" / items[0].name).unlink()
    assert again.run(items) == items[:1]
    assert not list((tmp_path / "nsd").rglob("*.partial"))


def test_a_file_cut_off_goes_on_and_one_of_another_version_begins_anew(mirror, config, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "bdflow")
    monkeypatch.setattr(download, "PIECE", 1000)
    item = max(download.listing(config, mirror), key=lambda item: item.size)
    job = download.Fetch(mirror, tmp_path)
    whole = (mirror / item.name).read_bytes()
    partial = job._partial(item)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(whole[:5555])
    job.run([item])
    assert (tmp_path / item.name).read_bytes() == whole
    assert "from 5,555 on" in logs.lines(caplog)[0]
    other = download.Item(item.name, item.size, "another")
    assert job._partial(other) != partial


def test_no_room_is_said_before_anything_comes(mirror, config, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match="space for"):
        download.Fetch(mirror, tmp_path / "nsd").run(download.listing(config, mirror))
    assert snapshot_of(tmp_path / "nsd") == {}


def snapshot_of(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != download.RECORD]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_etags_that_are_digests_are_checked(tmp_path):
    content = np.random.default_rng(0).bytes(21 * download.MIB + 5)
    (tmp_path / "file").write_bytes(content)
    eight = [content[at : at + 8 * download.MIB] for at in range(0, len(content), 8 * download.MIB)]
    parts = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in eight)).hexdigest()
    whole = hashlib.md5(content).hexdigest()
    for e_tag, expected in (
        (f'"{whole}"', True),
        (f'"{whole[::-1]}"', False),
        (f'"{parts}-3"', True),
        (f'"{parts}-7"', None),
        ("5", None),
    ):
        assert download.verified(tmp_path / "file", download.Item("file", len(content), e_tag)) is expected
    assert download.verified(tmp_path / "file", download.Item("file", len(content) - 1, f'"{whole}"')) is False
    (tmp_path / "empty").touch()
    assert download.verified(tmp_path / "empty", download.Item("empty", 0, hashlib.md5().hexdigest())) is True


def test_terms_are_shown_and_nothing_comes_before_they_are_accepted(mirror, settings, tmp_path):
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(settings(tmp_path, dataset={"root": "x", "sessions": 3}), sort_keys=False)
    )
    command = ["fetch", "nsd", str(tmp_path / "config.yaml"), "--from", str(mirror), "--to", str(tmp_path / "nsd")]
    listed = CliRunner().invoke(app, [*command, "--list"])
    assert listed.exit_code == 0
    assert "nsd_stimuli.hdf5" in listed.output
    assert not (tmp_path / "nsd").exists()
    for answer in ("", "n\n"):
        refused = CliRunner().invoke(app, command, input=answer)
        assert isinstance(refused.exception, InputError)
        assert "terms of use that were not accepted" in str(refused.exception)
        assert "naturalscenesdataset.org" in refused.output
        assert not (tmp_path / "nsd").exists()
    done = CliRunner().invoke(app, command, input="y\n")
    assert done.exit_code == 0, done.output
    assert "with the content that memory://fetch-mirror/nsd has" in done.output
    nothing = CliRunner().invoke(app, command)
    assert nothing.exit_code == 0, "what is there needs no terms"
    shutil.rmtree(tmp_path / "nsd")
    assert CliRunner().invoke(app, [*command, "--accept-terms"]).exit_code == 0


# --- against a server ------------------------------------------------------------------------------------------

PIECES = "import bdflow.datasets.nsd.download as f, bdflow.cli.main as c; f.PIECE = 50_000; f.AT_ONCE = 1; c.main()"


def start(config: Path, source: str, to: Path) -> subprocess.Popen:
    words = ["fetch", "nsd", str(config), "--from", source, "--to", str(to), "--accept-terms"]
    command = [sys.executable, "-c", PIECES, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def arrived(folder: Path) -> int:
    """Bytes of what has come so far; a file may get its name while this looks."""
    count = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            count += file.stat().st_size if file.is_file() and file.name != download.RECORD else 0
    return count


@pytest.mark.integration(kind="object store: fetch through faults")
def test_killed_resumed_and_damaged_files(nsd, settings, s3, tmp_path):
    source = s3.bucket + "/nsd"
    upload(nsd, place(source))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(tmp_path), sort_keys=False))
    items = download.listing(parse(settings(tmp_path)), place(source))
    total = sum(item.size for item in items)
    to, kills, came = tmp_path / "fetched", 0, 0
    s3.rate, s3.faults, s3.slowness = 1.0, ("slow",), 0.15
    for share in (0.2, 0.5, 0.8):
        process = start(config, source, to)
        while process.poll() is None and came < share * total:
            time.sleep(0.02)
            came = arrived(to)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait(30)
    assert kills == 3
    s3.rate, s3.sent = 0.0, 0
    files = [file for file in to.rglob("*") if file.is_file() and file.name != download.RECORD]
    before = {str(file.relative_to(to)) for file in files if file.suffix != ".partial"}
    process = start(config, source, to)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0
    assert snapshot_of(to) == {item.name: (nsd / item.name).read_bytes() for item in items}
    assert before
    assert f"1 of {len(items) - len(before)}: " in said
    assert not [name for name in before if f": {name} (" in said], "what is there is not fetched again"
    assert s3.sent < 0.45 * total + 200_000, "what had come is not fetched again"

    s3.sent = 0
    process = start(config, source, to)
    assert "not yet in" in process.communicate(timeout=200)[0]
    assert s3.sent < 200_000, "only listings"

    victim = to / items[1].name
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    said = start(config, source, to).communicate(timeout=200)[0]
    assert f"{victim}: its content is not what" in said
    assert victim.read_bytes() == (nsd / items[1].name).read_bytes()

    job = download.Fetch(place(source), tmp_path / "other")
    small = min(items, key=lambda item: item.size)
    wrong = download.Item(small.name, small.size, '"' + "0" * 32 + '"')
    with pytest.raises(InputError, match="does not match the checksum of its source"):
        job.run([wrong])
    assert snapshot_of(tmp_path / "other") == {}


@pytest.mark.integration(kind="object store: fetch through faults")
def test_fetched_and_ingested_through_a_failing_network(nsd, settings, s3, tmp_path, monkeypatch):
    """Fetch, and ingest from the object store itself, while every tenth request fails: as from the disk."""
    monkeypatch.setenv("BDFLOW_STORE_TIMEOUT", "5")
    source = s3.bucket + "/nsd"
    upload(nsd, place(source))
    s3.rate, s3.faults = 0.1, ("500", "503", "reset before", "reset after", "truncate")
    config = parse(settings(tmp_path / "remote", dataset={"root": source, "sessions": 3}))
    items = download.listing(config, place(source))
    download.Fetch(place(source), tmp_path / "fetched").run(items)
    assert snapshot_of(tmp_path / "fetched") == {item.name: (nsd / item.name).read_bytes() for item in items}
    for name, root in (("remote", source), ("local", str(tmp_path / "fetched"))):
        (tmp_path / name).mkdir()
        config = parse(settings(tmp_path / name, dataset={"root": root, "sessions": 3}))
        Pipeline(config).run(("ingest",))
    assert snapshot(tmp_path / "remote/study.zarr") == snapshot(tmp_path / "local/study.zarr")
    assert s3.failed.total() > 5
    assert Study(tmp_path / "remote/study.zarr").store("stimuli/shared").sealed
    assert os.environ["AWS_ENDPOINT_URL"] == s3.url


def test_names_of_regions_and_atlases_are_fetched_too(tmp_path):
    """All that is read but COCO's own captions, which are elsewhere; without `sessions`, all that the source has."""
    quirks, source = Path(__file__).parents[2] / "samples/nsd_quirks", place("memory://fetch-quirks/nsd")
    upload(quirks, source)
    config = parse(
        {
            "study": str(tmp_path / "study.zarr"),
            "subjects": ["subj01", "subj04"],
            "dataset": {"root": str(quirks), "options": {"atlases": ["HCP_MMP1"]}},
            "spaces": {"text": {"encoder": "clip_text"}},
            "report": {"path": str(tmp_path / "report")},
        }
    )
    read = expected_names(quirks, config)
    assert any(name.endswith("HCP_MMP1.mgz.ctab") for name in read)
    elsewhere = {name for name in read if "captions_" in name}
    assert len(elsewhere) == 2
    assert {item.name for item in download.listing(config, source)} == read - elsewhere
