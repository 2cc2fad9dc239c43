"""The ridge system of a subject as its stores hold it, solved whole or, where memory does not allow that, in parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from bdflow.config import Config
from bdflow.errors import InputError
from bdflow.regression import out_of_core, ridge
from bdflow.regression.device import device_budget, to_device, to_host
from bdflow.regression.grouping import Grouping
from bdflow.regression.memory_budget import Extent, Plan, Solving, on_device, plan
from bdflow.regression.streaming import Scratch
from bdflow.stores import Provenance, Store, Study
from bdflow.stores.paths import AnyPath, remove_tree, scratch_folder
from bdflow.study import catalog, keys
from bdflow.study.designs import Design, by_rows, candidates, designs, held_out_spaces, validates
from bdflow.study.target_reader import as_slice

Pair = tuple[str, Design]  # of a subject


@dataclass(frozen=True)
class Solver:
    """Hat matrices from a subject's system and the rows it was made from; works in the memory that `plan` allows.

    Parameters
    ----------
    responses, system : sealed stores of the subject.
    plan : whole or in parts.
    scratch : where panels are kept, below the study's own scratch directory.
    device : where arrays are: "cpu", or "cuda" (CuPy).
    share : of a GPU's memory that is this worker's.
    """

    responses: Store
    system: Store
    plan: Plan
    scratch: AnyPath
    device: str = "cpu"
    share: float = 1.0

    @property
    def dual(self) -> bool:
        """Whether the kernel of rows is solved, not the covariance of voxels."""
        return "other_voxel" not in self.system.sizes

    @property
    def n(self) -> int:
        """Number of training rows."""
        return int(self.train.sum())

    @property
    def grouping(self) -> Grouping:
        """Which training rows are of which stimulus."""
        return Grouping(self.responses.read("stimulus_id")[self.train])

    def fitted(self, rows: int, *, folds: bool = False, kept: int = 0, beside: int = 0) -> Solver:
        """The same as it fits into the memory of its GPU, if it has one, with so many patterns at once: in parts, if
        the system does not fit whole. `beside`: bytes of results that are held meanwhile. Raises InputError if it
        cannot.
        """
        if self.device == "cpu":
            return self
        block = self.responses.spec.partition["voxel"]
        of = Solving(self.n, int(self.used.sum()), block, rows, self.dual, folds, kept)
        return replace(self, plan=on_device(self.plan, of, device_budget(self.share) - beside))

    def ridge_system(self, keep: bool = False, *, intercept: bool = True) -> ridge.System | Panels | Streamed:
        """The system of the training rows; with `keep` it holds its factors, unless it is solved in parts. Without
        `intercept`, folds of it are not centred anew.
        """
        if not self.dual:
            gram = to_device(self.system.read("gram"), self.device)
            if not self.plan.whole:
                return Streamed(self, gram)
            return ridge.Primal(to_device(self.rows_of(np.flatnonzero(self.train)), self.device), gram, keep, intercept)
        if not self.plan.whole:
            return Panels(self)
        return ridge.Dual(to_device(self.kernel_rows(np.flatnonzero(self.train)), self.device), keep, intercept)

    def trial_order(self) -> np.ndarray:
        """Positions of the training rows in the order of presentation, of averages by the first."""
        return np.argsort(self.responses.read("trial")[self.train], kind="stable")

    def of_test(self) -> object:
        """What the system's `hat_matrices` takes for the test stimuli."""
        if self.dual:
            return to_device(self.kernel_rows(np.flatnonzero(~self.train)), self.device)
        return to_device(self.rows_of(np.flatnonzero(~self.train)), self.device)

    def of_patterns(self, patterns: np.ndarray) -> Any:
        """What the system's `hat_matrices` takes for z-scored patterns (k, voxels)."""
        if not self.dual:
            return to_device(patterns[:, self.used].astype(np.float32), self.device)
        cross = np.zeros((len(patterns), self.n), dtype=np.float32)
        for voxels, values in z_scored_blocks(self.responses, self.used):
            cross += patterns[:, voxels].astype(np.float32) @ values[self.train].T
        return to_device(cross, self.device)

    def of_voxels(self, voxels: slice) -> object:
        """What the system's `hat_matrices` takes for unit patterns of these voxels: the rows are their weights."""
        at = np.arange(voxels.start, voxels.stop)
        if not self.dual:
            position = np.cumsum(self.used) - 1
            unit = np.zeros((len(at), int(self.used.sum())), dtype=np.float32)
            known = self.used[at]
            unit[np.flatnonzero(known), position[at[known]]] = 1
            return to_device(unit, self.device)
        values = z_scored(self.responses, {"voxel": voxels}, self.used[voxels])[self.train]
        return to_device(np.ascontiguousarray(values.T), self.device)

    @property
    def train(self) -> np.ndarray:
        """Which rows are for training."""
        found: np.ndarray = self.responses.read("split") != "test"
        return found

    @property
    def used(self) -> np.ndarray:
        """Which voxels of the responses are decoded from."""
        found: np.ndarray = self.system.read("used") == 1
        return found

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Used voxels block by block: their positions among the used ones, and all rows, z-scored, of them."""
        used, at = self.used, 0
        for voxels, values in z_scored_blocks(self.responses, used):
            kept = values[:, used[voxels]]
            yield slice(at, at + kept.shape[1]), kept
            at += kept.shape[1]

    def rows_of(self, rows: np.ndarray) -> np.ndarray:
        """Some rows, z-scored, of the used voxels: (k, p)."""
        found = np.empty((len(rows), int(self.used.sum())), dtype=np.float32)
        for voxels, values in self.blocks():
            found[:, voxels] = values[rows]
        return found

    def kernel_rows(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the kernel."""
        return self.system.read("gram", {self.system.dims("gram")[0]: as_slice(rows)})


class Panels:
    """A `ridge.Dual` whose kernel and factor stay on disk. A factorisation that was cut short goes on at its panel."""

    intercept = True

    def __init__(self, solver: Solver) -> None:
        self.solver, self.n = solver, solver.n
        self._train = np.flatnonzero(solver.train)

    def of_training(self, rows: np.ndarray) -> ridge.Array:
        """What `hat_matrices` takes for training rows: their rows of the kernel."""
        order = np.argsort(rows)
        found = self.solver.kernel_rows(self._train[rows[order]])[np.argsort(order)]
        return to_device(found, self.solver.device)

    def hat_matrices(self, cross: ridge.Array, alphas: Sequence[float]) -> Iterator[ridge.Array]:
        """As `ridge.Dual.hat_matrices`, with two panels in memory at a time."""
        xp = array_namespace(cross)
        for alpha in alphas:
            factor = self._factor(float(alpha))
            right = xp.empty((self.n, cross.shape[0]), dtype=cross.dtype)
            right[:, :] = cross.T
            out_of_core.solve(partial(self._panels, factor), partial(self._panels, factor, -1), right)
            yield ridge.centred_rows(right.T)

    def _panels(self, store: Store, step: int = 1) -> Iterator[out_of_core.Panel]:
        return (self._panel(store, i) for i in range(store.n_partitions)[::step])

    def _panel(self, store: Store, partition: int) -> out_of_core.Panel:
        region = store.spec.region(store.sizes, partition)
        return region["column"].start, to_device(store.read("factor", region), self.solver.device)

    def without(self, kept: np.ndarray, left_out: np.ndarray) -> tuple[ridge.System, ridge.Array]:
        """Folds need the kernel whole; a plan with parts and folds is refused before this."""
        raise ValueError("k-fold validation needs the whole system in memory")

    def _factor(self, alpha: float) -> Store:
        solver, width = self.solver, self.solver.plan.width
        study = Study(solver.scratch)
        study.create("bdflow scratch: factors larger than memory", {})
        provenance = Provenance(
            "regress", {"alpha": alpha, "width": width}, upstream={"gram": solver.system.provenance["fingerprint"]}
        )
        key = keys.factor(solver.system.path.replace("/", "_"), alpha)
        if study.state(key, provenance).kind == "stale":
            study.remove(key)
        store = study.declare(key, catalog.panels(width), {"column": self.n, "row": self.n}, {}, provenance)
        for partition in store.missing():
            start = partition * width
            columns = self.of_training(np.arange(start, min(start + width, self.n)))
            earlier = (self._panel(store, i) for i in range(partition))
            store.write(partition, {"factor": to_host(out_of_core.factor_panel(start, columns, alpha, earlier))})
        if not store.sealed:
            store.seal()
        return store


class Streamed:
    """A `ridge.Primal` that holds the covariance of voxels alone; rows are read block by block of voxels."""

    intercept = True

    def __init__(self, solver: Solver, gram: object) -> None:
        self.solver, self.n = solver, solver.n
        self._solve = ridge.solver(gram)

    def of_training(self, rows: np.ndarray) -> ridge.Array:
        """What `hat_matrices` takes for training rows: their responses."""
        return to_device(self.solver.rows_of(np.flatnonzero(self.solver.train)[rows]), self.solver.device)

    def hat_matrices(self, other: ridge.Array, alphas: Sequence[float]) -> Iterator[ridge.Array]:
        """As `ridge.Primal.hat_matrices`, in a walk through the rows for each alpha."""
        train, xp = as_slice(np.flatnonzero(self.solver.train)), array_namespace(other)
        for alpha in alphas:
            solved = self._solve(float(alpha), other.T)
            hat = xp.zeros((other.shape[0], self.n), dtype=other.dtype)
            for voxels, values in self.solver.blocks():
                hat += (to_device(values[train], self.solver.device) @ solved[voxels, :]).T
            yield ridge.centred_rows(hat)

    def without(self, kept: np.ndarray, left_out: np.ndarray) -> tuple[ridge.System, ridge.Array]:
        """Folds need the rows whole; a plan with parts and folds is refused before this."""
        raise ValueError("k-fold validation needs the whole system in memory")


def z_scored(
    responses: Store, region: dict[str, slice], used: np.ndarray | None = None, scratch: Scratch | None = None
) -> np.ndarray:
    """Responses of a run of voxels, (rows, voxels), by the mean and SD of the training rows; 0 if not used.

    `used` (voxels of the region,) bool; None: those that are valid.
    """
    mean, scale, valid = (responses.read(name, region) for name in ("voxel_mean", "voxel_scale", "valid"))
    left = valid != 1 if used is None else (valid != 1) | ~used
    shape = (responses.sizes[responses.dims("response")[0]], len(mean))
    values = responses.read_into((scratch or Scratch()).array("responses", shape, "f4"), "response", region)
    if left.any():
        values[:, left] = 0
    usable = ~left & (scale > 0)
    values -= np.where(usable, mean, 0)
    values *= np.where(usable, 1 / np.where(usable, scale, 1), 0)
    return values


def z_scored_blocks(responses: Store, used: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """`z_scored` for each partition of the responses; valid until the next is taken."""
    scratch = Scratch()
    for partition in range(responses.n_partitions):
        region = responses.spec.region(responses.sizes, partition)
        voxels = region["voxel"]
        yield voxels, z_scored(responses, region, None if used is None else used[voxels], scratch)


def clear(scratch: AnyPath) -> None:
    """Remove the panels of a study, and the scratch folder if nothing else is in it."""
    remove_tree(scratch)
    if isinstance(scratch, Path):
        with contextlib.suppress(OSError):
            scratch.parent.rmdir()


def scratch_of(study: Path | str) -> AnyPath:
    """Where factors larger than memory are kept while they are needed."""
    return scratch_folder(study) / "factors.zarr"


# --- how much memory it takes -----------------------------------------------------------------------------------------


def extent_of(config: Config, spaces: tuple[str, ...], responses: Store, voxels: int) -> Extent:
    """One subject's problem with these rows, from `voxels` of their voxels. Raises ValueError if there are none."""
    if not voxels:
        raise InputError(
            responses.path,
            found="no voxel to decode from",
            expected="voxels that vary over the training stimuli",
            action="choose another mask or other regions",
        )
    test = responses.read("split") == "test"
    grouping = Grouping(responses.read("stimulus_id")[~test])
    rows, tests, stimuli = int((~test).sum()), int(test.sum()), len(grouping.counts)
    held_out = min(config.ridge.validation.stimuli, stimuli) * int(grouping.counts.max())
    if by_rows(config):
        held_out = min(rows, stimuli)
    return Extent(
        rows,
        tests,
        voxels,
        held_out if validates(config, spaces) else 0,
        len(candidates(config, spaces)),
        ridge.dual_is_cheaper(rows, voxels, tests),
        stimuli,
        by_rows(config),
        bool(held_out_spaces(config, spaces)),
        fold_count(config),
    )


def plan_of(
    config: Config, extents: Mapping[tuple[str, str], Extent], shapes: Sequence[tuple[int, ...]], column_bytes: int = 0
) -> Plan:
    """How systems of these extents and predictions of these shapes fit into the memory of a worker; `column_bytes`:
    of one latent of all stimuli that predictions are made from.

    Raises InputError if they cannot.
    """
    columns = 0
    for shape in shapes:
        cut = catalog.column_blocks(shape, config.chunks.columns)
        columns = max(columns, int(np.prod(shape)) * next(iter(cut.values())) // shape[0])
    budget = config.execution.regress.memory
    kernel_rows, limit = catalog.KERNEL_ROWS, budget and int(budget)
    return plan(extents, columns, config.chunks.voxels, kernel_rows, limit, folds(config), column_bytes)


def fold_count(config: Config) -> int:
    """Folds of cross-validation; 0 where it leaves out one by one."""
    return 0 if config.ridge.validation.method == "leave_one_out" else config.ridge.validation.folds


def folds(config: Config) -> bool:
    """Whether there is cross-validation by folds, which needs systems whole."""
    validated = any(validates(config, spaces) for spaces in designs(config).values())
    return validated and config.ridge.validation.method != "leave_one_out"
