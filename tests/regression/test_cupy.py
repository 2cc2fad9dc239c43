"""Every CuPy path of ridge against NumPy, by a CuPy that is played on NumPy and refuses what CuPy refuses."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bdflow.errors import InputError
from bdflow.regression import banded, cross_validation, out_of_core, principal, ridge, streaming
from bdflow.regression.decoder import RidgeDecoder
from bdflow.regression.device import refuse_without_cupy, to_device, to_host
from bdflow.regression.grouping import Grouping
from tests.support import cupy_on_numpy
from tests.support.gpu_streams import Machine

ALPHAS = (5.0, 50.0)
T = 24


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    played = cupy_on_numpy.installed(monkeypatch)
    yield played
    played.end()


def on_gpu(values):
    if isinstance(values, list | tuple):
        return [on_gpu(one) for one in values]
    return to_device(np.ascontiguousarray(values), "cuda")


def same(found, expected, tolerance: float = 1e-3) -> None:
    assert isinstance(found, cupy_on_numpy.ndarray)
    found = to_host(found)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    scale = np.nanmax(np.abs(expected)) if expected.size else 1
    np.testing.assert_allclose(found, expected, atol=tolerance * scale, rtol=0)


def problem(n: int, p: int, m: int = 13) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(n)
    x, other = rng.normal(size=(n, p)).astype("f4"), rng.normal(size=(m, p)).astype("f4")
    x[:, 3] = other[:, 3] = 2
    y, true = rng.normal(3, 1, (n, T)).astype("f2"), rng.normal(3, 1, (m, T)).astype("f2")
    true[:, 5] = 2
    return x, other, y, true


@pytest.mark.parametrize(("n", "p"), [(60, 90), (90, 40)])
def test_systems_and_hat_matrices(n, p):
    x, other, _, _ = problem(n, p)
    cpu, gpu = ridge.z_score(x, other), ridge.z_score(on_gpu(x), on_gpu(other))
    for a, b in zip(cpu, gpu, strict=True):
        same(b, a, 1e-5)
    for a, b in zip(ridge.hat_matrices(*cpu[:2], ALPHAS), ridge.hat_matrices(*gpu[:2], ALPHAS), strict=True):
        same(b, a)
    for keep in (False, True):
        systems = [(ridge.Dual(z @ z.T, keep), ridge.Primal(z, keep=keep)) for z in (cpu[0], gpu[0])]
        for a, b in zip(*systems, strict=True):
            rows = np.array([1, 4, 17])
            pairs = zip(*(list(s.hat_matrices(s.of_training(rows), ALPHAS)) for s in (a, b)), strict=True)
            for one, two in pairs:
                same(two, one)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("form", ["dual", "primal"])
def test_cross_validation(form, intercept):
    x, other, _, _ = problem(60, 90 if form == "dual" else 40)
    z = ridge.z_score(x, other)[0]
    made = (
        (lambda v: ridge.Dual(v @ v.T, intercept=intercept))
        if form == "dual"
        else (lambda v: ridge.Primal(v, intercept=intercept))
    )
    grouping = Grouping(np.repeat(np.arange(25), [3] * 10 + [2] * 15))
    rows, groups, fold = np.array([1, 4, 17, 30]), list(grouping.groups(np.arange(5))), np.arange(60) % 4
    for function in (
        lambda s: cross_validation.leave_one_out(s, rows, ALPHAS, intercept),
        lambda s: cross_validation.leave_group_out(s, groups, ALPHAS, intercept),
        lambda s: cross_validation.k_fold(s, rows, ALPHAS, fold, intercept),
        lambda s: cross_validation.k_fold_errors(s, ALPHAS, fold, Grouping(np.arange(60)), intercept),
    ):
        for a, b in zip(function(made(z)), function(made(on_gpu(z))), strict=True):
            same(b, a)
            same(grouping.sum_columns(b), grouping.sum_columns(a))
    y = np.random.default_rng(0).normal(size=(25, T)).astype("f4")
    of_trials = [
        cross_validation.k_fold_errors(made(v), ALPHAS, fold, grouping, intercept) for v in (z, on_gpu(z))
    ]  # triangular factors: their rows may change sign, their products do not
    for a, b in zip(*of_trials, strict=True):
        same(streaming.error_block([b], on_gpu([y[:9], y[9:]])), streaming.error_block([a], [y[:9], y[9:]]))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alphas", [1, 2])
def test_blocks_are_predicted_scored_and_validated(alphas, intercept, weighted):
    x, other, y, true = problem(60, 90)
    z, z_other, _, _ = ridge.z_score(x, other)
    hats = list(ridge.hat_matrices(z, z_other, ALPHAS))[:alphas]
    rows = np.array([1, 4, 17, 30])
    left_out = list(cross_validation.leave_one_out(ridge.Dual(z @ z.T), rows, ALPHAS))
    which = np.random.default_rng(0).integers(0, 2, T) if alphas > 1 else None
    weights = np.random.default_rng(1).integers(1, 4, 60).astype("f4") if weighted else None
    for held_out in (0, 4):
        matrices = [np.concatenate([h, v]) if held_out else h for h, v in zip(hats, left_out, strict=False)]
        options = {"which": which, "held_out": held_out, "weights": weights, "intercept": intercept}
        expected = streaming.predict_block(matrices, [y[:20], y[20:]], [true[:8], true[8:]], **options)
        gpu = (on_gpu(matrices), on_gpu([y[:20], y[20:]]), on_gpu([true[:8], true[8:]]))
        for a, b in zip(expected, streaming.predict_block(*gpu, **options), strict=True):
            if a is not None:
                same(b, a, 2e-3)
    scores = [
        streaming.validate_block(v, rows, pieces, intercept=intercept)
        for v, pieces in ((left_out, [y[:20], y[20:]]), (on_gpu(left_out), on_gpu([y[:20], y[20:]])))
    ]
    same(scores[1], scores[0])


def test_nothing_is_waited_for_while_a_block_is_predicted(machine):
    x, other, y, true = problem(60, 90)
    (hat,) = ridge.hat_matrices(*ridge.z_score(x, other)[:2], ALPHAS[:1])
    gpu = (on_gpu([hat]), on_gpu([y]), on_gpu([true]))
    machine.reads_of_host = 0
    streaming.predict_block(*gpu)
    assert machine.reads_of_host == 0


def test_panels():
    rng = np.random.default_rng(0)
    a, right = rng.normal(size=(50, 55)).astype("f4"), rng.normal(size=(50, 4)).astype("f4")
    kernel, found = a @ a.T, {}
    for name, put in (("cpu", np.array), ("gpu", on_gpu)):
        panels: list = []
        for start in out_of_core.starts(50, 16):
            columns = put(kernel[start : start + 16])
            panels.append((start, out_of_core.factor_panel(start, columns, 3.0, panels)))
        solved = put(right)
        out_of_core.solve(lambda panels=panels: panels, lambda panels=panels: reversed(panels), solved)
        found[name] = solved
    same(found["gpu"], found["cpu"])


def test_bands_and_components():
    x, other, y, true = problem(60, 90)
    z, z_other, _, _ = ridge.z_score(x, other)
    halves = [slice(0, 45), slice(45, 90)]
    kernels, crosses = [z[:, h] @ z[:, h].T for h in halves], [z_other[:, h] @ z[:, h].T for h in halves]
    rows, valid = np.array([1, 4, 17, 30]), np.arange(T) != 7
    found = []
    for put in (lambda v: v, on_gpu):
        block = banded.Banded(T, 2)
        shares = banded.simplex(2, 2)
        for candidate in banded.candidates(put(kernels), put(crosses), shares, ALPHAS, rows):
            block.consider(candidate, rows, put(y.astype("f4")), put(true.astype("f4")), valid)
        found.append((block.joint, *block.without))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a.combination, b.combination)
        np.testing.assert_allclose(a.r2, b.r2, atol=1e-3)
    cpu, gpu = (principal.components(put(kernels[0]), put(crosses[0]), 5) for put in (lambda v: v, on_gpu))
    same(gpu.kernel, cpu.kernel)
    same(gpu.cross, cpu.cross)
    assert gpu.kept == pytest.approx(cpu.kept)


@pytest.mark.parametrize("z_score", [True, False])
@pytest.mark.parametrize("choose", ["fixed", "per_target"])
def test_the_decoder_of_scikit_learns_conventions(choose, z_score):
    x, other, y, _ = problem(60, 90)
    y = y.astype("f4")
    cpu, gpu = (RidgeDecoder(choose=choose, alphas=ALPHAS, cv=5, z_score=z_score) for _ in range(2))
    cpu.fit(x, y)
    gpu.fit(on_gpu(x), on_gpu(y))
    same(gpu.predict(on_gpu(other)), cpu.predict(other))
    same(gpu.coef_, cpu.coef_)
    same(gpu.intercept_, cpu.intercept_)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_system_that_is_not_positive_definite_is_refused():
    """cuSOLVER's own answer to it is a number that nobody looks at."""
    kernel = on_gpu(-np.eye(20, dtype="f4"))
    with pytest.raises(InputError, match="raise alpha"):
        next(ridge.Dual(kernel).hat_matrices(kernel[:3, :], [0.5]))
    with pytest.raises(InputError, match="raise alpha"):
        next(ridge.Primal(on_gpu(np.ones((3, 20), "f4")), kernel).hat_matrices(kernel[:3, :], [0.5]))
    with pytest.raises(InputError, match="raise alpha"):
        out_of_core.factor_panel(0, on_gpu(-np.eye(4, dtype="f4")), 0.5, [])
    singular = cross_validation._SquaredErrors(3)
    singular.dtype, singular.gram = np.float32, on_gpu(-np.eye(3))
    with pytest.raises(np.linalg.LinAlgError):
        singular.factor()


def test_all_linear_algebra_that_may_fail_is_asked_whether_it_did():
    """Each call of it in the package stands inside `failures_raised`."""
    bare = []
    for file in (Path(__file__).parents[2] / "bdflow/regression").glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        inside = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.With) and "failures_raised" in ast.unparse(block.items[0])
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called.endswith(("linalg.cholesky", "linalg.solve", "linalg.eigh", "linalg.inv", "linalg.svd")):
                bare += [f"{file.name}:{node.lineno}"] if id(node) not in inside else []
    # the branch of array modules that are neither NumPy nor CuPy: they raise by themselves
    assert [place.split(":")[0] for place in bare] == ["ridge.py"]


def test_without_cupy_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(InputError, match=r"no package CuPy.*\n.*bdflow\[gpu\]"):
        to_device(np.zeros(3), "cuda")
    with pytest.raises(InputError, match=r"execution\.encode\.gpus: found no package CuPy"):
        refuse_without_cupy("encode")


# --- what is played ---------------------------------------------------------------------------------------------------


def test_what_cupy_refuses_is_refused():
    a, b = on_gpu(np.ones((3, 3), "f4")), np.ones((3, 3), "f4")
    for mixed in (
        lambda: a + b,
        lambda: b + a,
        lambda: b @ a,
        lambda: a @ b,
        lambda: np.asarray(a),
        lambda: a[np.array([0, 1])],
        lambda: a.__setitem__(slice(None), b),
        lambda: ridge.array_namespace(a, b),
    ):
        with pytest.raises(TypeError):
            mixed()
    xp = ridge.array_namespace(a)
    assert xp.__name__ == "array_api_compat.cupy"
    with pytest.raises(AttributeError):
        xp.no_such_function
    with pytest.raises(NotImplementedError):
        sys.modules["cupy"].sin(a)
    assert bool(xp.all(xp.linalg.cholesky(-a) == 1)), "no error by itself"
