"""As `test_rights`, for real: a child of this process becomes another user and meets files it may not touch."""

import os
import sys
from pathlib import Path

import pytest
import yaml

from bdflow.cli import main
from tests.conftest import SMALL
from tests.support.children import as_other_user, let_in

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
FILES = [
    f"{BETAS}/betas_session02.nii.gz",
    f"{BETAS}/ncsnr.nii.gz",
    BETAS,
    "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5",
    "nsddata/experiments/nsd/nsd_expdesign.mat",
    "COCO_73k_annots_curated.npy",
    "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz",
    "nsddata",
]


@pytest.fixture(scope="module")
def ground(tmp_path_factory, settings) -> Path:
    """A place of the other user's, with data of root's that all may read, and a study made there once by root, so that
    every module is imported before rights are given up."""
    from bdflow.simulation.dataset import simulate

    root = tmp_path_factory.mktemp("second")
    let_in(root)
    simulate(root / "nsd", SMALL)
    for path in (root / "nsd").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (root / "nsd").chmod(0o755)
    for name in ("own", "first"):
        (root / name).mkdir()
        (root / name).chmod(0o777)
    write(root, settings, "first.yaml", root / "first")
    write(root, settings, "own.yaml", root / "own")
    command("run", root / "first.yaml", "--only", "ingest")
    command("status", root / "first.yaml")
    (root / "first/study.zarr").chmod(0o700)
    return root


def write(root: Path, settings, name: str, below: Path) -> None:
    content = settings(below, dataset={"root": str(root / "nsd"), "sessions": 3}, execution={})
    (root / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    (root / name).chmod(0o644)


def command(*words: object) -> int:
    sys.argv = ["bdflow", *map(str, words)]
    try:
        main.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(autouse=True)
def arguments(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.mark.parametrize("file", FILES)
def test_data_that_may_not_be_read(file, ground):
    path = ground / "nsd" / file
    mode = path.stat().st_mode & 0o777
    path.chmod(0)
    try:
        code, said = as_other_user(lambda: command("run", ground / "own.yaml", "--only", "ingest"))
    finally:
        path.chmod(mode)
    assert (code, "Traceback" in said) == (1, False), said
    assert path.name in said
    assert "hat to do: " in said


@pytest.mark.parametrize("words", [["run", "--only", "ingest"], ["status"], ["verify"]])
def test_a_study_of_anothers(words, ground):
    code, said = as_other_user(lambda: command(words[0], ground / "first.yaml", *words[1:]))
    assert (code, "Traceback" in said) == (1, False), said
    assert str(ground / "first/study.zarr") in said
    assert "Permission denied" in said


def test_a_configuration_that_may_not_be_read(ground):
    (ground / "own.yaml").chmod(0o600)
    try:
        code, said = as_other_user(lambda: command("status", ground / "own.yaml"))
    finally:
        (ground / "own.yaml").chmod(0o644)
    assert (code, "Traceback" in said, "own.yaml" in said) == (1, False, True), said


def test_the_other_user_can_do_what_it_may(ground):
    code, said = as_other_user(lambda: command("run", ground / "own.yaml", "--only", "ingest"))
    assert code == 0, said
