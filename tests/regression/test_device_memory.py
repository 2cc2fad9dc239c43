"""What is solved on a GPU stays within the memory that was reckoned; the GPU is played, and counts its bytes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from bdflow.errors import InputError
from bdflow.regression import memory_budget, out_of_core, ridge
from bdflow.regression.device import device_budget, to_device, to_host
from bdflow.regression.memory_budget import MIB, Plan, Solving, on_device, parts_on_device, whole_on_device
from tests.support import cupy_on_numpy

N, P, ROWS, WIDTH, ALPHA = 300, 120, 20, 64, 50.0
PLAN = Plan(True, 4096, 1024, 8192, True, {})


@pytest.fixture
def machine(monkeypatch):
    return cupy_on_numpy.installed(monkeypatch)


def responses(n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, p)).astype(np.float32), rng.standard_normal((ROWS, p)).astype(np.float32)


def peak(machine, work) -> int:
    """Most bytes of the device that were in use while something was done, beside what was before."""
    before = machine.held
    machine.peak = before
    work()
    return machine.peak - before


@pytest.mark.parametrize("dual", [True, False])
def test_a_system_that_is_solved_whole(machine, dual):
    n, p = (N, P) if dual else (P, N)
    train, test = responses(n, p)
    kernel = train @ train.T + ALPHA * np.eye(n, dtype=np.float32) if dual else train.T @ train
    of = Solving(n, p, p, ROWS, dual)

    def solve():
        if dual:
            system, other = ridge.Dual(to_device(kernel, "cuda")), to_device(test @ train.T, "cuda")
        else:
            system, other = ridge.Primal(to_device(train, "cuda"), to_device(kernel, "cuda")), to_device(test, "cuda")
        for hat in system.hat_matrices(other, [ALPHA, 2 * ALPHA]):
            to_host(hat)

    used = peak(machine, solve)
    assert 0.7 * whole_on_device(of) < used <= whole_on_device(of)
    assert machine.held == 0


def test_folds_of_a_system(machine):
    train, _ = responses(N, P)
    kernel, fold = train @ train.T, np.arange(N) % 4
    of = Solving(N, P, P, N // 4 + 1, True, folds=True)

    def solve():
        system = ridge.Dual(to_device(kernel, "cuda"))
        for number in range(4):
            inner, cross = system.without(np.flatnonzero(fold != number), np.flatnonzero(fold == number))
            for hat in inner.hat_matrices(cross, [ALPHA]):
                to_host(hat)

    used = peak(machine, solve)
    assert 0.5 * whole_on_device(of) < used <= whole_on_device(of)


def test_a_system_in_panels(machine):
    train, test = responses(N, P)
    kernel, cross = train @ train.T, test @ train.T
    panels: list[tuple[int, np.ndarray]] = []

    def held(step: int = 1):
        return ((start, to_device(panel, "cuda")) for start, panel in panels[::step])

    def solve():
        for start in out_of_core.starts(N, WIDTH):
            columns = to_device(kernel[start : start + WIDTH].copy(), "cuda")
            panels.append((start, to_host(out_of_core.factor_panel(start, columns, ALPHA, held()))))
        right = to_device(np.ascontiguousarray(cross.T), "cuda")
        out_of_core.solve(held, partial(held, -1), right)
        to_host(ridge.centred_rows(right.T))

    used = peak(machine, solve)
    need = parts_on_device(Solving(N, P, P, ROWS, True), WIDTH)
    assert 0.5 * need < used <= need
    assert used < whole_on_device(Solving(N, P, P, ROWS, True))


def test_what_does_not_fit_whole_is_solved_in_parts_or_refused(monkeypatch):
    monkeypatch.setattr(memory_budget, "WORKSPACE", 0)
    of = Solving(27_750, 15_724, 1024, 982, True)
    whole, parts = whole_on_device(of), parts_on_device(of, 512)
    found = {free: on_device(PLAN, of, free) for free in np.linspace(parts, 1.1 * whole, 30).astype(int).tolist()}
    for free, plan in found.items():
        assert plan.whole == (whole <= free)
        assert (whole if plan.whole else parts_on_device(of, plan.width)) <= free
    assert [plan.width for plan in found.values()] == sorted(plan.width for plan in found.values())
    with pytest.raises(InputError, match=r"memory of the GPU, regress: found .* MiB free for this worker"):
        on_device(PLAN, of, parts - 1)
    with pytest.raises(InputError, match="by folds, which need the system whole"):
        on_device(PLAN, Solving(27_750, 15_724, 1024, 982, True, folds=True), whole)


def test_the_budget_is_what_is_free_and_of_several_workers_their_share(machine):
    machine.total = 100 * MIB
    assert device_budget() == 100 * MIB
    held = to_device(np.zeros(10 * MIB, np.uint8), "cuda")
    assert device_budget() == 90 * MIB
    assert device_budget(0.25) == 15 * MIB
    del held
    assert device_budget(0.25) == 25 * MIB
