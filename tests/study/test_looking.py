"""Looking at a study needs the study alone: not the data, not the networks, no right to write."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from bdflow import api
from bdflow.config import parse
from bdflow.errors import InputError
from bdflow.pipeline import NAMES, Pipeline
from bdflow.simulation.dataset import simulate
from bdflow.stores import Study
from tests.conftest import SMALL, painter, snapshot, spaces
from tests.support import logs
from tests.support.children import as_other_user, let_in

SUBJECT = "subj01"
TINY = Path(__file__).parents[2] / "bdflow/models/tiny"


@pytest.fixture(scope="module")
def away(settings, tmp_path_factory):
    """A finished study, and settings of the same whose data, split and networks have gone."""
    root = tmp_path_factory.mktemp("away")
    simulate(root / "nsd", SMALL)
    shutil.copytree(TINY, root / "bundle")
    ids = np.load(root / "nsd/COCO_73k_annots_curated.npy", mmap_mode="r").shape[0]
    (root / "split.txt").write_text("\n".join(map(str, np.arange(0, ids, 3))))
    made = settings(
        root,
        dataset={"root": str(root / "nsd"), "sessions": 3, "split": str(root / "split.txt")},
        networks={"bundle": str(root / "bundle")},
        spaces=spaces(vdvae={"weights": True}),
        painters=painter(variants=["full", "only_vdvae"]),
        evaluate={"metrics": ["PixCorr", "CLIP (bundle)"]},
    )
    Pipeline(parse(made)).run(NAMES)
    for name in ("nsd", "bundle"):
        shutil.rmtree(root / name)
    (root / "split.txt").unlink()
    return parse(made)


def files_of(study: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file): (b"" if file.is_dir() else file.read_bytes(), file.stat().st_mtime_ns)
        for file in [study, *sorted(study.rglob("*"))]
    }


def status(config, out):
    assert {row.state.kind for row in api.status(config)} == {"sealed"}


def verify(config, out):
    assert api.verify(config) == []


def report(config, out):
    config = config.model_copy(update={"report": config.report.model_copy(update={"path": out / "page"})})
    api.run(config, only="report")
    assert (out / "page/index.html").stat().st_size > 1000


def figures(config, out):
    assert len(api.draw_figures(config, out)) > 3


def maps(config, out):
    assert len(api.write_maps(config, out)) > 4


def decode(config, out):
    voxels = Study(config.study).store(f"betas/{SUBJECT}").sizes["voxel"]
    tree = api.decode(config, np.zeros((2, voxels), "f4"), SUBJECT)
    assert set(tree.children) == set(config.spaces)


def timings(config, out):
    assert len(api.timings(config)) > 5


LOOKING = [status, verify, report, figures, maps, decode, timings]


@pytest.mark.parametrize("look", LOOKING)
def test_looking_needs_the_study_alone_and_leaves_it_as_it_is(away, tmp_path, caplog, look):
    before = files_of(away.study)
    with caplog.at_level(logging.WARNING, "bdflow"):
        look(away, tmp_path)
    assert files_of(away.study) == before
    if look is not timings:
        assert "were not compared, since they are not at hand" in logs.text(caplog)


@pytest.mark.slow(kind="looking without rights")
@pytest.mark.parametrize("look", LOOKING)
def test_looking_needs_no_right_to_write(away, tmp_path, monkeypatch, look):
    """As a colleague who may only read: what would write the study, or lock it, fails."""
    study = str(away.study)
    real_open, real_access = os.open, os.access

    def access(path, mode, **options):
        denied = str(path).startswith(study) and mode & os.W_OK
        return False if denied else real_access(path, mode, **options)

    def opened(path, flags, *arguments, **options):
        if str(path).startswith(study) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_DIRECTORY):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, flags, *arguments, **options)

    def put(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr("zarr.storage._local._put", put) if look is not decode else None
    before = files_of(away.study)
    look(away, tmp_path)
    assert files_of(away.study) == before


@pytest.mark.slow(kind="looking without rights")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("look", LOOKING)
def test_another_user_looks_at_a_study_that_is_not_theirs(away, tmp_path, look):
    """For real: a child of this process without the right to write the study."""
    look(away, tmp_path / "mine")  # so that all is imported
    for folder in (away.study.parent, tmp_path):
        let_in(folder)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs").chmod(0o777)
    before = files_of(away.study)
    code, said = as_other_user(lambda: look(away, tmp_path / "theirs") or 0)
    assert code == 0, said
    assert files_of(away.study) == before


def test_what_the_study_does_not_record_has_to_be_there_to_run(away, tmp_path):
    elsewhere = away.model_copy(update={"study": tmp_path / "new.zarr"})
    assert {row.state.kind for row in api.status(elsewhere)} == {"absent"}
    with pytest.raises(InputError, match="nothing there"):
        api.run(elsewhere, until="ingest")
    assert not (tmp_path / "new.zarr").exists()


def test_a_run_of_what_is_done_needs_no_inputs_either(away, caplog):
    before = snapshot(away.study)
    with caplog.at_level(logging.WARNING, "bdflow"):
        api.run(away, until="evaluate")
    assert snapshot(away.study) == before
    assert "were not compared" in logs.text(caplog)


def test_other_settings_are_still_seen(away):
    other = away.model_copy(update={"seed": 3})
    stale = {row.path.split("/")[0] for row in api.status(other) if row.state.kind == "stale"}
    assert "targets" in stale
    assert not {"betas", "stimuli"} & stale


def test_a_changed_middle_of_the_captions_is_another_input(settings, tmp_path):
    simulate(tmp_path / "nsd", SMALL)
    config = parse(settings(tmp_path, dataset={"root": str(tmp_path / "nsd"), "sessions": 3}, painters={}))
    Pipeline(config).run(("ingest",))
    file = tmp_path / "nsd/COCO_73k_annots_curated.npy"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    why = {row.path: row.state.why for row in api.status(config) if row.state.kind == "stale"}
    assert why["stimuli/shared"] == why["stimuli/subj01"] == ["input captions is another file now"]
    assert not [path for path in why if path.startswith("betas")]
