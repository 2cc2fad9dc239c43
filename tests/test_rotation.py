"""The part of the slow tests that a commit runs: one of each kind, by another seed another one, without one all."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import rotation

TESTS = """
import pytest

@pytest.mark.slow(kind="kill")
@pytest.mark.parametrize("stage", range(20))
def test_kill(stage):
    pass

@pytest.mark.slow(kind="flood")
@pytest.mark.parametrize("stage", range(3))
def test_flood(stage):
    pass

STAGES = [pytest.param(n, marks=pytest.mark.integration(kind=f"disk {n % 2}")) for n in range(4)]

@pytest.mark.parametrize("stage", STAGES)
def test_disk(stage):
    pass

@pytest.mark.slow(kind="science", case="brains")
@pytest.mark.parametrize("stage", range(2))
def test_brains(stage):
    pass

@pytest.mark.slow(kind="science", case="noise")
@pytest.mark.parametrize("stage", range(2))
def test_noise(stage):
    pass

@pytest.mark.slow
@pytest.mark.parametrize("stage", range(2))
def test_always(stage):
    pass
"""
CONFTEST = """
from rotation import *
def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line("markers", mark)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "test_small.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    shutil.copy(rotation.__file__, tmp_path / "rotation.py")
    return tmp_path


def run(folder: Path, *options: str) -> tuple[list[str], str]:
    """Names of the tests that passed, and all that was printed."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split()[0] for line in done.stdout.splitlines() if " PASSED" in line]
    return [line.partition("::")[2] for line in lines], done.stdout


def test_one_of_each_kind_and_every_test_without_one(folder):
    names, printed = run(folder, "--rotate", "0123456789abcdef", "-m", "slow or integration")
    kinds = [name.partition("[")[0] for name in names]
    together = [kind for kind in kinds if kind in ("test_brains", "test_noise")]
    assert len(together) == 2
    assert len(set(together)) == 1
    kinds = [kind for kind in kinds if kind not in together]
    assert sorted(kinds) == ["test_always", "test_always", "test_disk", "test_disk", "test_flood", "test_kill"]
    assert {int(name[-2]) % 2 for name in names if "disk" in name} == {0, 1}
    assert "rotated by 0123456789ab: 6 of 31 tests of a kind" in printed
    drawn = next(name for name in names if "kill" in name)
    assert f"kill (1 of 20): test_small.py::{drawn}" in printed


def test_it_draws_of_what_is_selected(folder):
    names, _ = run(folder, "--rotate", "seed", "-m", "integration", "-k", "test_disk and (0 or 2)")
    assert len(names) == 1
    assert names[0] in ("test_disk[0]", "test_disk[2]")


def test_without_a_seed_all_run(folder):
    names, printed = run(folder)
    assert len(names) == 20 + 3 + 4 + 4 + 2
    assert "rotated" not in printed


def test_the_same_seed_draws_the_same_and_many_seeds_draw_all():
    pairs = [("kill", f"stage{n}") for n in range(5)] + [("flood", "only")]
    assert rotation.draw("a", pairs) == rotation.draw("a", reversed(pairs))
    seen = [rotation.draw(str(seed), pairs) for seed in range(200)]
    assert {one["kill"] for one in seen} == {f"stage{n}" for n in range(5)}
    assert {one["flood"] for one in seen} == {"only"}
    counts = [sum(one["kill"] == f"stage{n}" for one in seen) for n in range(5)]
    assert max(counts) < 3 * min(counts), "every one has its turn"


def test_what_is_added_to_one_kind_changes_no_other():
    pairs = [(f"kind{kind}", f"test{n}") for kind in range(9) for n in range(4)]
    before = rotation.draw("seed", pairs)
    after = rotation.draw("seed", [*pairs, ("kind0", "test4")])
    assert {k: v for k, v in after.items() if k != "kind0"} == {k: v for k, v in before.items() if k != "kind0"}


def test_the_dearest_files_come_first():
    root = Path(__file__).parents[1]
    assert [name for name in rotation.DEAR if not (root / name).exists()] == []
    names = [
        "tests/cli/test_cli.py::a",
        "tests/cluster/test_run.py::a",
        f"{rotation.DEAR[1]}::b",
        f"{rotation.DEAR[0]}::a",
    ]
    assert sorted(names, key=rotation.rank) == [names[3], names[2], names[1], names[0]]
    assert [rotation.rank(name) for name in names] == [len(rotation.DEAR), rotation.DEAR.index("tests/cluster"), 1, 0]
