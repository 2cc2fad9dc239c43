"""A store that was begun on one GPU or with one torch and goes on with another: noted and said, in one line.

The machines are stand-ins: what a worker says that it computes with is put into its mouth.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from pathlib import Path

import pytest

from bdflow.cluster.executors import serial
from bdflow.cluster.hardware import MadeOn
from bdflow.cluster.progress import Progress
from bdflow.config import NetworkSettings, parse
from bdflow.pipeline import Pipeline
from bdflow.runner import Runner
from bdflow.stores import Store, Study
from bdflow.stores.journal import Journal, entries, groups, makers

OLD, NEW = MadeOn("NVIDIA A100", "2.5.1"), MadeOn("NVIDIA H100", "2.6.0")
BEGUN = 2  # tasks after which one part is half filled in every space


class Stopped(BaseException):
    """The driver is stopped."""


@pytest.fixture(scope="module")
def ingested(settings, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ingested")
    Pipeline(parse(settings(root))).run(["ingest"])
    return root / "study.zarr"


@pytest.fixture
def run(settings, ingested, tmp_path, monkeypatch, caplog):
    """Make latents on machines, one a task and the last for all others; stop when so many tasks are done. Returns the
    warnings about machines.
    """
    shutil.copytree(ingested, tmp_path / "study.zarr")
    caplog.set_level(logging.WARNING, "bdflow")

    def act(*machines: MadeOn, tasks: int = 0, killed: bool = False, device: str = "cuda") -> list[str]:
        said, done = iter(machines[:-1]), []

        def advance(progress, completed):
            done.append(completed)
            if len(done) == tasks:
                raise Stopped

        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(NetworkSettings, "device_kind", property(lambda self: device))
            patch.setattr(serial, "made_on", lambda: next(said, machines[-1]))
            patch.setattr(Progress, "advance", advance)
            if killed:
                patch.setattr(Runner, "_write_down", lambda *_: None)
            stopped = pytest.raises(Stopped) if tasks else contextlib.nullcontext()
            with stopped:
                Pipeline(parse(settings(tmp_path))).run(["features"])
        return [line for line in caplog.messages if "round otherwise" in line]

    return act


def state(study: Path) -> dict[str, tuple[int, int]]:
    """Partitions that each store of latents has, and all of them."""
    stores = [Store(study, path) for path in Study(study).paths() if path.startswith("targets/")]
    return {store.path: (store.n_partitions - len(store.missing()), store.n_partitions) for store in stores}


@pytest.mark.slow(kind="made on another machine")
@pytest.mark.parametrize("killed", [False, True])
def test_a_store_that_goes_on_elsewhere_is_named_with_both_in_one_line(run, tmp_path, killed):
    assert run(OLD, tasks=BEGUN, killed=killed) == []
    begun = [path for path, (done, total) in state(tmp_path / "study.zarr").items() if 0 < done < total]
    assert len(begun) == 3, "the test needs stores that are half filled"
    (line,) = run(NEW)
    found, _, rest = line.partition("; the rest is now made on ")
    stores, _, made_on = found.partition(": ")
    assert sorted(stores.split(", ")) == begun
    assert made_on == "found a part of the values made on NVIDIA A100 with torch 2.5.1"
    assert rest.startswith("NVIDIA H100 with torch 2.6.0. ")
    assert "\n" not in line
    assert "What to do: " in line
    assert all(done == total for done, total in state(tmp_path / "study.zarr").values())
    assert run(OLD) == [], "what is finished is not gone on with"


@pytest.mark.slow(kind="made on another machine")
@pytest.mark.parametrize("now", [dataclasses.replace(OLD, torch="2.6.0"), dataclasses.replace(OLD, gpu="NVIDIA H100")])
def test_each_of_the_two_counts(run, now):
    run(OLD, tasks=BEGUN)
    (line,) = run(now)
    assert str(OLD) in line
    assert str(now) in line


def test_the_same_machine_gives_no_line_and_one_note(run, tmp_path):
    assert run(OLD, tasks=BEGUN) == run(OLD) == []
    kept = makers(tmp_path / "study.zarr")
    assert set(kept) == set(state(tmp_path / "study.zarr"))
    assert all({MadeOn(**one) for one in made} == {OLD} for made in kept.values())


@pytest.mark.slow(kind="made on another machine")
def test_a_third_run_names_all_that_were_before(run, tmp_path):
    run(OLD, tasks=BEGUN)
    journal, begun = Journal(tmp_path / "study.zarr", "between"), list(makers(tmp_path / "study.zarr"))
    journal.note("features", {"made_on": dataclasses.asdict(NEW), "fills": begun, "empty": []})
    third = MadeOn("NVIDIA L40", "2.6.0")
    (line,) = run(third)
    assert f"made on {OLD} or {NEW}; the rest is now made on {third}. " in line


def test_two_models_in_one_run_are_named_once(run):
    (line,) = run(OLD, NEW, OLD, NEW)
    assert line.startswith(f"features: found workers of this run on {OLD}, and now on {NEW}. ")


@pytest.mark.slow(kind="made on another machine")
def test_a_store_that_was_begun_anew_is_not_judged_by_what_it_held_before(run, tmp_path):
    run(OLD, tasks=BEGUN)
    for path in state(tmp_path / "study.zarr"):
        Study(tmp_path / "study.zarr").remove(path)
    assert run(NEW, tasks=BEGUN) == run(NEW) == []


def test_on_the_cpu_only_torch_counts(run):
    run(OLD, tasks=BEGUN, device="cpu")
    (line,) = run(NEW, device="cpu")
    assert "made on the CPU with torch 2.5.1; the rest is now made on the CPU with torch 2.6.0." in line


def test_notes_are_no_pieces_of_work_and_are_verified_like_all_else(run, settings, tmp_path):
    run(OLD)
    study = tmp_path / "study.zarr"
    notes = [path for path in groups(study) if path.endswith("features-note")]
    assert len(notes) == 1
    assert [entry["work"] for entry in entries(study)].count("features") == 1
    assert Pipeline(parse(settings(tmp_path))).verify() == []
