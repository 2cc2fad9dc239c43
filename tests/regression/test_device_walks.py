"""Blocks of targets on a GPU stay within the memory that was reckoned; the GPU is played, and counts its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from bdflow.errors import InputError
from bdflow.regression import banded, device_walks, principal, ridge, streaming
from bdflow.regression.copies import copies_of
from bdflow.regression.device import to_device, to_host
from bdflow.regression.device_walks import PLACES, Choice, Encoding, Walk, piece_rows_on_device
from tests.support import cupy_on_numpy
from tests.support.gpu_streams import Machine

N, T = 320, 600


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return cupy_on_numpy.installed(monkeypatch)


def peak(machine: Machine, work: Callable[[], object]) -> int:
    before = machine.peak = machine.held
    work()
    return machine.peak - before


def drawn(rows: int, columns: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(dtype)


def cut(values: np.ndarray, rows: int) -> list[np.ndarray]:
    return [values[start : start + rows] for start in range(0, len(values), rows)]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize(("tests", "held_out", "rows"), [(40, 0, 32), (40, 30, 160), (300, 0, 32), (10, 200, 64)])
def test_predictions(
    machine: Machine, tests: int, held_out: int, rows: int, several: bool, weighted: bool, intercept: bool
) -> None:
    hats = [drawn(tests + held_out, N, "f4") for _ in range(2 if several else 1)]
    targets, true = drawn(N, T, "f2"), drawn(tests, T, "f2")
    which = np.arange(T) % 2 if several else None
    weights = np.ones(N, "f4") if weighted else None
    walk = Walk(sum(h.nbytes for h in hats), tests + held_out, T, 2, held_out, 0, tests, several)

    def work() -> None:
        on_gpu, copies = [to_device(h, "cuda") for h in hats], copies_of("cuda")
        pieces, compared = copies.pieces(cut(targets, rows)), [to_device(p, "cuda") for p in cut(true, 32)]
        options = {"which": which, "held_out": held_out, "weights": weights, "intercept": intercept}
        block = streaming.predict_block(on_gpu, pieces, compared, **options)  # type: ignore[arg-type]
        copies.sent({name: value for name, value in block._asdict().items() if value is not None})()

    used = peak(machine, work)
    assert 0.4 * walk.nbytes(rows) < used <= walk.nbytes(rows)


@pytest.mark.parametrize("some", [True, False])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("penalties", "rows"), [(1, 160), (6, 32), (6, 160)])
def test_penalties(machine: Machine, penalties: int, rows: int, intercept: bool, some: bool) -> None:
    held = 25
    matrices, targets = [drawn(held, N, "f4") for _ in range(penalties)], drawn(N, T, "f2")
    need = Choice(held, N, T, 2).nbytes(rows, penalties)

    def work() -> None:
        on_gpu, copies = [to_device(m, "cuda") for m in matrices], copies_of("cuda")
        pieces: Iterator = copies.pieces(cut(targets, rows))
        if some:
            pieces = (cupy_on_numpy.asarray(to_host(piece)[:, : T - 1]) for piece in pieces)
        to_host(streaming.validate_block(on_gpu, np.arange(held) * 3, pieces, intercept=intercept))

    used = peak(machine, work)
    assert 0.4 * need < used <= need


@pytest.mark.parametrize("rows", [32, 160])
def test_penalties_by_errors_of_rows_are_compared_one_by_one(machine: Machine, rows: int) -> None:
    matrices, targets = [drawn(280, N, "f4") for _ in range(16)], drawn(N, T, "f2")
    expected = streaming.error_block(matrices, cut(targets, rows))
    need = Choice(280, N, T, 2, by_rows=True).nbytes(rows, 1)

    def work() -> None:
        pieces = copies_of("cuda").pieces(cut(targets, rows))
        found = streaming.error_block((to_device(m, "cuda") for m in matrices), pieces)
        np.testing.assert_allclose(to_host(found), expected, rtol=1e-4)

    used = peak(machine, work)
    assert 0.5 * need < used <= need
    assert need < sum(m.nbytes for m in matrices) + 4 * targets.size, "all of them at once would need more"


@pytest.mark.parametrize("components", [True, False])
@pytest.mark.parametrize(("bands", "voxels", "run"), [(1, 800, 100), (3, 100, 100), (2, 40, 900)])
def test_encoding_models(machine: Machine, bands: int, voxels: int, run: int, components: bool) -> None:
    n, m, grid, rows = 260, 30, [1.0, 10.0, 100.0], np.arange(0, 260, 6)
    latents, shown, tested = drawn(n + m, 900, "f4"), drawn(n, voxels, "f4"), drawn(m, voxels, "f4")
    of = Encoding(n, m, bands, len(rows), len(grid), voxels, components)

    def kernel() -> tuple:
        def blocks() -> Iterator:
            for start in range(0, latents.shape[1], run):
                given = (to_device(part[:, start : start + run], "cuda") for part in (latents[:n], latents[n:]))
                train, other, _, _ = ridge.z_score(*(values.astype(np.float64) for values in given))
                yield train.astype(np.float32), other.astype(np.float32)

        found = ridge.kernel_matrix(blocks(), n, m)
        return principal.components(*found, 40)[:2] if components else found

    def work() -> None:
        kernels, crosses = zip(*(kernel() for _ in range(bands)), strict=True)
        shares = banded.simplex(bands, 2)
        block = banded.Banded(voxels, bands)
        for candidate in banded.candidates(kernels, crosses, shares, grid, rows):
            block.consider(candidate, rows, to_device(shown, "cuda"), to_device(tested, "cuda"), np.ones(voxels, bool))

    used = peak(machine, work)
    assert 0.4 * of.nbytes(run) < used <= of.nbytes(run)


def test_pieces_are_as_long_as_fits_or_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the paper's size: four subjects, 4,096 latents a block, three penalties for each latent."""
    monkeypatch.setattr(device_walks, "WORKSPACE", 0)
    hats = 4 * 3 * 4 * 982 * 8859
    walk = Walk(hats, 982, 4096, 2, 0, 3 * 4 * 982, 982, several=True)
    whole, least = walk.nbytes(9728), walk.nbytes(512)
    found = {
        free: piece_rows_on_device(walk.nbytes, 9728, free, "it") for free in np.linspace(least, whole, 9).astype(int)
    }
    assert list(found.values()) == sorted(found.values())
    assert (min(found.values()), max(found.values())) == (512, 9728)
    assert all(walk.nbytes(rows) <= free for free, rows in found.items())
    with pytest.raises(InputError, match=r"memory of the GPU, regress: found .* MiB free .* at least .* MiB for it"):
        piece_rows_on_device(walk.nbytes, 9728, least - 1, "it")
    assert PLACES == 2
