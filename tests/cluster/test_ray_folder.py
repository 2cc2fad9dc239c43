"""Ray's sockets lie below the directory for temporary files, and the system bounds the length of their paths."""

import logging
import os
from pathlib import Path

import pytest

from bdflow.cluster import Resources, open_executor, ray_session
from bdflow.cluster.errors import ClusterError
from bdflow.cluster.scratch import Scratch
from tests.support import logs


@pytest.fixture
def long_folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / ("x" * 60)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    return folder


def make_worker():
    return os.path.basename


@pytest.mark.slow(kind="folders of Ray")
@pytest.mark.usefixtures("no_ray")
def test_work_is_done_though_the_folder_for_temporary_files_is_too_long(long_folder, caplog):
    done = []
    with caplog.at_level(logging.WARNING, "bdflow"), open_executor("ray") as opened:
        opened.run(make_worker, ["a/b", "c/d"], resources=Resources(1), on_done=done.append)
    assert sorted(completed.result for completed in done) == ["b", "d"]
    assert str(long_folder) in logs.text(caplog)


def test_the_folder_is_named_where_no_shorter_one_may_be_written(long_folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ClusterError, match=f"(?s){long_folder}.*RAY_TMPDIR"):
        ray_session.sessions()


@pytest.mark.parametrize("length", [3, *range(1, 60, 6)])
def test_paths_are_short_enough(length, tmp_path, monkeypatch):
    """`made` lies where the folder that is chosen says, without making any folder there."""
    monkeypatch.setenv("RAY_TMPDIR", "/" + "é" * (length // 2) + "x" * (length % 2))
    monkeypatch.setattr(ray_session, "private_folder", lambda where, owner: where / f"{owner.name}-01234567")
    session = ray_session.RaySession(Scratch.of("a study"))
    path = f"{session.options['_temp_dir']}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
    assert len(os.fsencode(path)) <= 107
    assert str(session.logs) == f"{session.options['_temp_dir']}/session_latest/logs"


@pytest.mark.slow(kind="folders of Ray")
@pytest.mark.usefixtures("no_ray")
def test_logs_stay_where_a_run_failed_until_the_next(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    owner = Scratch.of(str(tmp_path))

    def sessions() -> list[Path]:
        return list(Path("/tmp").glob(f"{owner.name}-*"))

    with pytest.raises(TypeError), open_executor("ray", scratch=owner) as opened:
        opened.run(make_worker, [None], resources=Resources(1))
    assert len(sessions()) == 1
    assert list(sessions()[0].rglob("raylet.out"))
    with open_executor("ray", scratch=owner) as opened:
        opened.run(make_worker, ["a/b"], resources=Resources(1))
    assert sessions() == []
