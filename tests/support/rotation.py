"""`--rotate SEED`: of slow tests of one kind only one runs, drawn by the seed; what ran is printed.

A kind is said by the mark: `@pytest.mark.slow(kind="kill while it writes")`, likewise `integration`. Tests without a
kind always run. Tests of a kind that share something dear say the same `case` and run together or not at all. What is
drawn depends on the seed (of CI: the commit) and on the names of the tests of this kind alone, so that another seed
draws another one, and a test that is added or renamed changes nothing of other kinds. What is drawn runs in the order
of `DEAR`, so that no process of pytest still has a long file to do when the others are through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import pytest

MARKS = ("slow", "integration")
DEAR = (
    "tests/serve",
    "tests/cluster/test_slurm.py",
    "tests/stores/test_studies_in_object_stores.py",
    "tests/science",
    "tests/faults/test_lost_processes.py",
    "tests/faults/test_lost_nodes.py",
    "tests/models/test_train_tiny.py",
    "tests/faults/test_kills.py",
    "tests/faults/test_places.py",
    "tests/cluster/test_phases.py",
    "tests/cluster",
    "tests/stores",
    "tests/test_lowest.py",
)
"""Files and folders whose tests begin first, the dearest before the others; those that start Ray in 30 s, which is all
the time that it gives itself, not beside the 64 actors of `test_phases`."""
CHOSEN = pytest.StashKey[list[str]]()


def draw(seed: str, cases: Iterable[tuple[str, str]]) -> dict[str, str]:
    """One case of each kind, of (kind, case) pairs: the one whose digest with the seed is least."""

    def order(kind: str, case: str) -> str:
        return hashlib.sha256(f"{seed}\n{kind}\n{case}".encode()).hexdigest()

    chosen: dict[str, str] = {}
    for kind, case in cases:
        if kind not in chosen or order(kind, case) < order(kind, chosen[kind]):
            chosen[kind] = case
    return chosen


def rank(nodeid: str) -> int:
    """The place in `DEAR` of what names a test's file, or its folder; behind all of them, if nothing does."""
    file = nodeid.partition("::")[0]
    return next((at for at, name in enumerate(DEAR) if file == name or file.startswith(name + "/")), len(DEAR))


def kind_of(item: pytest.Item) -> tuple[str, str] | None:
    """The kind that a test's nearest mark of these gives it, and its case: its own name, if the mark says none."""
    for mark in item.iter_markers():
        if mark.name in MARKS and "kind" in mark.kwargs:
            return str(mark.kwargs["kind"]), str(mark.kwargs.get("case", item.nodeid))
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "of slow and integration tests of one kind run one, drawn by SEED (of CI: the commit)"
    parser.addoption("--rotate", metavar="SEED", help=words)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one of each kind, the dearest first; last, so that it is one of those that `-m` and `-k` leave."""
    seed = config.getoption("--rotate")
    if not seed:
        return
    kinds = {item.nodeid: kind for item in items if (kind := kind_of(item)) is not None}
    chosen = draw(seed, kinds.values())
    out = {name for name, (kind, case) in kinds.items() if chosen[kind] != case}
    if out:
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in out])
        items[:] = [item for item in items if item.nodeid not in out]
    items.sort(key=lambda item: rank(item.nodeid))
    sizes = {kind: len({case for of, case in kinds.values() if of == kind}) for kind in chosen}
    config.stash[CHOSEN] = [
        f"rotated by {seed[:12]}: {len(kinds) - len(out)} of {len(kinds)} tests of a kind, one case of each:",
        *(f"  {kind} (1 of {sizes[kind]}): {chosen[kind].rpartition('/')[2]}" for kind in sorted(chosen)),
    ]


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    return config.stash.get(CHOSEN, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist has no screen: it hands its lines on."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["chosen"] = session.config.stash.get(CHOSEN, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker drew; all draw the same."""
    node.config.stash[CHOSEN] = getattr(node, "workeroutput", {}).get("chosen", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        for line in config.stash.get(CHOSEN, []):
            terminalreporter.write_line(line)
