"""The ridge system of a subject as its stores hold it, solved whole or, where memory does not allow that, in panels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from bdflow import ridge, ridge_tiles
from bdflow.device import to_device
from bdflow.ridge_blocks import Scratch
from bdflow.ridge_plan import Plan
from stores import Provenance, Store, Study, catalog
from stores.place import AnyPath, remove_tree


@dataclass(frozen=True)
class Solver:
    """Hat matrices from `systems/<subject>` and `responses/<subject>`; works in the memory that `plan` allows.

    Parameters
    ----------
    responses, system : sealed stores of the subject.
    plan : whole or in panels.
    scratch : where panels are kept, below the study's own scratch directory.
    device : where arrays are: "cpu", or "cuda" (CuPy).
    """

    responses: Store
    system: Store
    plan: Plan
    scratch: AnyPath
    device: str = "cpu"
    _held: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def dual(self) -> bool:
        return "train_stimulus" in self.system.dims("gram")

    @property
    def n(self) -> int:
        """Number of training stimuli."""
        return int((self.responses.read("split") != "test").sum())

    def ridge_system(self, keep: bool = False) -> ridge.System | Panels:
        """The system of the training stimuli; with `keep` it holds its factors, unless they are in panels on disk."""
        if not self.dual:
            gram = to_device(self.system.read("gram"), self.device)
            return ridge.Primal(to_device(self._voxels()[self._train], self.device), gram, keep)
        if not self.plan.whole:
            return Panels(self)
        return ridge.Dual(to_device(self._kernel_rows(np.flatnonzero(self._train)), self.device), keep)

    def of_test(self) -> Any:
        """What the system's `hat_matrices` takes for the test stimuli."""
        if self.dual:
            return to_device(self._kernel_rows(np.flatnonzero(~self._train)), self.device)
        return to_device(self._voxels()[~self._train], self.device)

    def of_patterns(self, patterns: np.ndarray) -> Any:
        """What the system's `hat_matrices` takes for z-scored patterns (k, voxels)."""
        if not self.dual:
            return to_device(patterns[:, self._valid].astype(np.float32), self.device)
        cross = np.zeros((len(patterns), self.n), dtype=np.float32)
        for voxels, values in z_scored_blocks(self.responses):
            cross += patterns[:, voxels].astype(np.float32) @ values[self._train].T
        return to_device(cross, self.device)

    def of_voxels(self, voxels: slice) -> Any:
        """What the system's `hat_matrices` takes for unit patterns of these voxels: the rows are their weights."""
        at = np.arange(voxels.start, voxels.stop)
        if not self.dual:
            position = np.cumsum(self._valid) - 1
            unit = np.zeros((len(at), int(self._valid.sum())), dtype=np.float32)
            known = self._valid[at]
            unit[np.flatnonzero(known), position[at[known]]] = 1
            return to_device(unit, self.device)
        values = z_scored(self.responses, {"voxel": voxels})[self._train]
        return to_device(np.ascontiguousarray(values.T), self.device)

    @property
    def _train(self) -> np.ndarray:
        return self.responses.read("split") != "test"

    @property
    def _valid(self) -> np.ndarray:
        return self.responses.read("valid") == 1

    def _voxels(self) -> np.ndarray:
        """All responses, z-scored, valid voxels only: (stimuli, p)."""
        if "voxels" not in self._held:
            blocks = [values.copy() for _, values in z_scored_blocks(self.responses)]
            self._held["voxels"] = np.concatenate(blocks, axis=1)[:, self._valid]
        return self._held["voxels"]

    def _kernel_rows(self, rows: np.ndarray) -> np.ndarray:
        return self.system.read("gram", {"stimulus": as_slice(rows)})


class Panels:
    """A `ridge.Dual` whose kernel and factor stay on disk. A factorisation that was cut short goes on at its panel."""

    def __init__(self, solver: Solver) -> None:
        self.solver, self.n = solver, solver.n
        self._train = np.flatnonzero(solver._train)

    def of_training(self, rows: np.ndarray) -> np.ndarray:
        """What `hat_matrices` takes for training stimuli: their rows of the kernel."""
        order = np.argsort(rows)
        return self.solver._kernel_rows(self._train[rows[order]])[np.argsort(order)]

    def hat_matrices(self, cross: np.ndarray, alphas: Sequence[float]) -> Iterator[np.ndarray]:
        """As `ridge.Dual.hat_matrices`, with two panels in memory at a time."""
        for alpha in alphas:
            factor = self._factor(float(alpha))
            right = np.array(cross.T, order="C")
            ridge_tiles.solve(partial(_panels, factor), partial(_panels, factor, -1), right)
            yield ridge.centred_rows(right.T)

    def without(self, kept: np.ndarray, left_out: np.ndarray) -> tuple[ridge.System, np.ndarray]:
        """Folds need the kernel whole; a plan with panels and folds is refused before this."""
        raise ValueError("k-fold validation needs the whole system in memory")

    def _factor(self, alpha: float) -> Store:
        solver, width = self.solver, self.solver.plan.width
        study = Study(solver.scratch)
        study.create("bdflow scratch: factors larger than memory", {})
        provenance = Provenance(
            "regress", {"alpha": alpha, "width": width}, upstream={"gram": solver.system.provenance["fingerprint"]}
        )
        path = f"factors/{solver.responses.path.split('/')[-1]}/{alpha:g}"
        if study.state(path, provenance).kind == "stale":
            study.remove(path)
        store = study.declare(path, catalog.panels(width), {"column": self.n, "row": self.n}, {}, provenance)
        for partition in store.missing():
            start = partition * width
            columns = self.of_training(np.arange(start, min(start + width, self.n)))
            earlier = (_panel(store, i) for i in range(partition))
            store.write(partition, {"factor": ridge_tiles.factor_panel(start, columns, alpha, earlier)})
        if not store.sealed:
            store.seal()
        return store


def _panels(store: Store, step: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    return (_panel(store, i) for i in range(store.n_partitions)[::step])


def _panel(store: Store, partition: int) -> tuple[int, np.ndarray]:
    region = store.spec.region(store.sizes, partition)
    return region["column"].start, store.read("factor", region)


def z_scored(responses: Store, region: dict[str, slice], scratch: Scratch | None = None) -> np.ndarray:
    """Responses of a run of voxels, (stimuli, voxels), by the mean and SD of the training stimuli; 0 if not valid."""
    mean, scale, valid = (responses.read(name, region) for name in ("voxel_mean", "voxel_scale", "valid"))
    shape = (responses.sizes["stimulus"], len(mean))
    values = responses.read_into((scratch or Scratch()).array("responses", shape, "f4"), "response", region)
    if (valid != 1).any():
        values[:, valid != 1] = 0
    usable = (valid == 1) & (scale > 0)
    values -= np.where(usable, mean, 0)
    values *= np.where(usable, 1 / np.where(usable, scale, 1), 0)
    return values


def z_scored_blocks(responses: Store) -> Iterator[tuple[slice, np.ndarray]]:
    """`z_scored` for each partition of the responses; valid until the next is taken."""
    scratch = Scratch()
    for partition in range(responses.n_partitions):
        region = responses.spec.region(responses.sizes, partition)
        yield region["voxel"], z_scored(responses, region, scratch)


def as_slice(rows: np.ndarray) -> slice | np.ndarray:
    """The same rows as a slice where they are one run: no copy is made of what a slice takes."""
    run = len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
    return slice(int(rows[0]), int(rows[0]) + len(rows)) if run else rows


def clear(scratch: AnyPath) -> None:
    """Remove the panels of a study."""
    remove_tree(scratch)
