"""What the works of the stage `regress` do in a worker process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from bdflow import noise, ridge, ridge_blocks
from bdflow.columns import Columns, ahead
from bdflow.config import Config
from bdflow.device import to_device, to_host
from bdflow.solver import Solver, as_slice, z_scored_blocks
from stores import Store


class SystemMaker:
    """Computes rows of one subject's system a task: all of them at once if the system is held whole."""

    def __init__(self, responses: dict[str, Store], systems: dict[str, Store], whole: bool) -> None:
        self.responses, self.systems, self.whole = responses, systems, whole

    def __call__(self, task: tuple[str, list[int]]) -> None:
        subject, partitions = task
        responses, system = self.responses[subject], self.systems[subject]
        train = responses.read("split") != "test"
        if "other_voxel" in system.sizes:
            valid = responses.read("valid") == 1
            values = np.concatenate([block[train] for _, block in z_scored_blocks(responses)], axis=1)[:, valid]
            gram = ridge.Primal(values).gram
            self._write(system, partitions, lambda rows: gram[rows])
        elif self.whole:
            n = int(train.sum())
            rows, others = as_slice(np.flatnonzero(train)), as_slice(np.flatnonzero(~train))
            blocks = ((values[rows], values[others]) for _, values in z_scored_blocks(responses))
            kernel, cross = ridge.kernel_matrix(blocks, n, len(train) - n)
            position = np.where(train, np.cumsum(train), np.cumsum(~train)) - 1

            def rows_of(rows: slice) -> np.ndarray:
                found = np.empty((rows.stop - rows.start, n), dtype=np.float32)
                found[train[rows]] = kernel[position[rows][train[rows]]]
                found[~train[rows]] = cross[position[rows][~train[rows]]]
                return found

            self._write(system, partitions, rows_of)
        else:
            first, last = (system.spec.region(system.sizes, i)["stimulus"] for i in (partitions[0], partitions[-1]))
            product = np.zeros((last.stop - first.start, int(train.sum())), dtype=np.float32)
            rows = as_slice(np.flatnonzero(train))
            for _, values in z_scored_blocks(responses):
                product += values[first.start : last.stop] @ values[rows].T
            self._write(system, partitions, lambda rows: product[rows.start - first.start : rows.stop - first.start])

    def _write(self, system: Store, partitions: list[int], rows_of: Any) -> None:
        for partition in partitions:
            (rows,) = system.spec.region(system.sizes, partition).values()
            system.write(partition, {"gram": rows_of(rows)})


class Validator:
    """Computes one subject's matrices of cross-validation a task."""

    def __init__(self, solvers: dict[str, Solver], stores: dict[str, Store], config: Config) -> None:
        self.solvers, self.stores, self.config = solvers, stores, config

    def __call__(self, subject: str) -> None:
        solver, store = self.solvers[subject], self.stores[subject]
        missing, settings = store.missing(), self.config.regress.validation
        alphas = store.read("alpha")[missing].tolist()
        rows = held_out_rows(store)
        system: Any = solver.ridge_system()
        if settings.method == "leave_one_out":
            matrices = ridge.leave_one_out(system, rows, alphas)
        else:
            rng = noise.generator(self.config.seed, "folds", subject)
            fold = rng.permutation(system.n) % min(settings.folds, system.n)
            matrices = ridge.k_fold(system, rows, alphas, fold)
        for partition, matrix in zip(missing, matrices, strict=True):
            store.write(partition, {"matrix": to_host(matrix)[None].astype(np.float32)})


def held_out_rows(validation: Store) -> np.ndarray:
    """Positions of the stimuli that cross-validation predicts among the training stimuli, ascending."""
    return np.sort(validation.rows("train_nsd_id", validation.read("held_out_nsd_id")))


class Factoriser:
    """Computes the hat matrices of one subject a task."""

    def __init__(self, solvers: dict[str, Solver], decoders: dict[str, Store]) -> None:
        self.solvers, self.decoders = solvers, decoders

    def __call__(self, subject: str) -> None:
        solver, decoder = self.solvers[subject], self.decoders[subject]
        missing = decoder.missing()
        hats = solver.ridge_system().hat_matrices(solver.of_test(), decoder.read("alpha")[missing].tolist())
        for partition, hat in zip(missing, hats, strict=True):
            decoder.write(partition, {"hat_matrix": to_host(hat)[None].astype(np.float32)})


@dataclass(frozen=True)
class Reading:
    """The target stores, and how many rows of them are read at a time."""

    targets: dict[str, Store]
    piece_rows: int

    def columns(self, space: str, ids: np.ndarray) -> Columns:
        """The latents of these stimuli."""
        targets = self.targets[space]
        return Columns(targets, targets.rows("nsd_id", ids), self.piece_rows)


class Selector:
    """Scores every penalty on one block of latents of one subject a task."""

    def __init__(
        self,
        validation: dict[str, Store],
        stores: dict[tuple[str, str], Store],
        reading: Reading,
        drawn: dict[str, np.ndarray | None],
        device: str,
    ) -> None:
        self.validation, self.stores, self.reading, self.drawn = validation, stores, reading, drawn
        self.device, self.scratch = device, ridge_blocks.Scratch()
        self.subject = ""

    def _load(self, subject: str) -> None:
        self.subject, store = subject, self.validation[subject]
        self.train = store.read("train_nsd_id")
        self.rows = held_out_rows(store)
        self.alphas = store.read("alpha")
        self.matrices = [to_device(matrix, self.device) for matrix in store.read("matrix")]

    def __call__(self, task: tuple[str, str, int]) -> None:
        subject, space, partition = task
        if subject != self.subject:
            self._load(subject)
        store = self.stores[subject, space]
        region = store.spec.region(store.sizes, partition)
        shape = tuple(
            region[d].stop - region[d].start if d in region else store.sizes[d] for d in store.dims("best_alpha")
        )
        columns = self._columns(store, region, space)
        scores = np.full((len(self.alphas), int(np.prod(shape))), np.nan, dtype=np.float32)
        if columns.size:
            pieces = ahead(self.reading.columns(space, self.train).requests(region, self.scratch), self.device)
            whole = columns.size == scores.shape[1]
            drawn = pieces if whole else (piece[:, columns] for piece in pieces)
            scores[:, columns] = to_host(ridge_blocks.validate_block(self.matrices, self.rows, drawn, self.scratch))
        best = np.full(scores.shape[1], np.nan, dtype=np.float32)
        known = np.isfinite(scores).all(axis=0)
        best[known] = self.alphas[scores[:, known].argmax(axis=0)]
        store.write(partition, {"score": scores.reshape(-1, *shape), "best_alpha": best.reshape(shape)})

    def _columns(self, store: Store, region: dict[str, slice], space: str) -> np.ndarray:
        """Which columns of the block are scored."""
        first, last = flat_range(store, region)
        drawn = self.drawn[space]
        return np.arange(last - first) if drawn is None else drawn[(drawn >= first) & (drawn < last)] - first


def flat_range(store: Store, region: dict[str, slice]) -> tuple[int, int]:
    """First and last (exclusive) latent of a block in the flattened space."""
    dims = [dim for dim in ("token", "feature") if dim in store.sizes]
    width = store.sizes["feature"] if "token" in dims else 1
    block = region[dims[0]]
    return block.start * width, block.stop * width


@dataclass
class Decoders:
    """The hat matrices of every subject, those of one space held at a time, with what goes with them."""

    stores: dict[str, Store]
    validation: dict[str, Store]
    selection: dict[tuple[str, str], Store]
    device: str
    space: str = ""

    def __post_init__(self) -> None:
        self.hats: dict[str, list[Any]] = {}
        self.alphas: dict[str, np.ndarray] = {}

    def load(self, space: str) -> None:
        """Hold the matrices of a space: hat matrices, and below them the rows of cross-validation."""
        if space == self.space:
            return
        self.space = space
        for subject, decoder in self.stores.items():
            alphas = decoder.read("alpha")
            own = decoder.read("space_alpha")[decoder.read("space").tolist().index(space)]
            at = range(len(alphas)) if np.isnan(own) else [int(np.searchsorted(alphas, own))]
            if subject in self.alphas and np.array_equal(self.alphas[subject], alphas[list(at)]):
                continue
            self.alphas[subject], self.hats[subject] = alphas[list(at)], []
            for i in at:
                parts = [decoder.read("hat_matrix", {"alpha": slice(i, i + 1)})[0]]
                if subject in self.validation:
                    store = self.validation[subject]
                    j = int(np.searchsorted(store.read("alpha"), alphas[i]))
                    parts.append(store.read("matrix", {"alpha": slice(j, j + 1)})[0])
                self.hats[subject].append(to_device(np.concatenate(parts) if parts[1:] else parts[0], self.device))

    def held_out(self, subject: str) -> int:
        """Rows of cross-validation below the hat matrix."""
        return self.validation[subject].sizes["held_out_stimulus"] if subject in self.validation else 0

    def which(self, subject: str, region: dict[str, slice], t: int) -> tuple[np.ndarray | None, np.ndarray]:
        """The matrix of each column of a block (None: there is one), and its penalty. A latent without a score takes
        the penalty that most others of its block have.
        """
        if (subject, self.space) not in self.selection:
            return None, np.full(t, self.alphas[subject][0], dtype=np.float32)
        best = self.selection[subject, self.space].read("best_alpha", region).ravel()
        known = best[np.isfinite(best)]
        number = np.abs(self.alphas[subject] - np.nan_to_num(best)[:, None]).argmin(axis=1)
        common = np.bincount(number[np.isfinite(best)]).argmax() if known.size else len(self.alphas[subject]) - 1
        number[~np.isfinite(best)] = common
        return number, self.alphas[subject][number].astype(np.float32)


class Predictor:
    """Predicts one block of latents for every subject a task."""

    def __init__(self, decoders: Decoders, reading: Reading, stores: dict[str, dict[str, Store]]) -> None:
        self.decoders, self.reading, self.stores = decoders, reading, stores
        self.scratch = ridge_blocks.Scratch()
        self.space = ""

    def _load(self, space: str) -> None:
        self.decoders.load(space)
        self.space = space
        stores = self.decoders.stores
        self.train = {s: self.reading.columns(space, store.read("train_nsd_id")) for s, store in stores.items()}
        self.test = {s: self.reading.columns(space, store.read("nsd_id")) for s, store in stores.items()}

    def __call__(self, task: tuple[str, int]) -> None:
        space, partition = task
        if space != self.space:
            self._load(space)
        subjects = {s: store for s, store in self.stores[space].items() if not store.markers()[partition]}
        first = next(iter(self.stores[space].values()))
        region = first.spec.region(first.sizes, partition)
        asked = [
            (self.test[s].requests(region, Read()), self.train[s].requests(region, self.scratch, None if i else LEAD))
            for i, s in enumerate(subjects)
        ]
        answers = ahead(list(chain.from_iterable(test + train for test, train in asked)), self.decoders.device)
        for (subject, store), (test, train) in zip(subjects.items(), asked, strict=True):
            true = list(islice(answers, len(test)))
            t = true[0].shape[1]
            which, alphas = self.decoders.which(subject, region, t)
            block = ridge_blocks.predict_block(
                self.decoders.hats[subject],
                islice(answers, len(train)),
                true,
                which=which,
                held_out=self.decoders.held_out(subject),
                scratch=self.scratch,
            )
            shape = tuple(
                region[d].stop - region[d].start if d in region else store.sizes[d] for d in store.dims("alpha")
            )
            values = {name: to_host(value) for name, value in block._asdict().items() if value is not None}
            values["alpha"] = alphas
            store.write(
                partition,
                {n: v.reshape(-1, *shape) if n == "latent" else v.reshape(shape) for n, v in values.items()},
            )


LEAD = 1024  # rows


class Read(ridge_blocks.Scratch):
    """Fresh memory each time: for what is kept."""

    def array(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.empty(shape, dtype)


class Weigher:
    """Computes the weights of one block of voxels of one subject and space a task, block of latents after block."""

    def __init__(
        self,
        solvers: dict[str, Solver],
        decoders: dict[str, Store],
        reading: Reading,
        stores: dict[tuple[str, str], Store],
        predictions: dict[tuple[str, str], Store],
    ) -> None:
        self.solvers, self.decoders, self.reading = solvers, decoders, reading
        self.stores, self.predictions, self.scratch = stores, predictions, ridge_blocks.Scratch()

    def __call__(self, task: tuple[str, str, int]) -> None:
        subject, space, group = task
        solver, store = self.solvers[subject], self.stores[subject, space]
        _, across = store.spec.grid(store.sizes)
        missing = [group * across + i for i in range(across) if not store.markers()[group * across + i]]
        voxels = store.spec.region(store.sizes, missing[0])["voxel"]
        decoder = self.decoders[subject]
        alphas, own = decoder.read("alpha"), decoder.read("space_alpha")
        own = own[decoder.read("space").tolist().index(space)]
        used: Sequence[float] = alphas.tolist() if np.isnan(own) else [float(own)]
        matrices = list(solver.ridge_system().hat_matrices(solver.of_voxels(voxels), used))
        columns = self.reading.columns(space, decoder.read("train_nsd_id"))
        for partition in missing:
            region = store.spec.region(store.sizes, partition)
            block = {dim: part for dim, part in region.items() if dim != "voxel"}
            alpha = self.predictions[subject, space].read("alpha", block)
            which = np.abs(np.asarray(used)[None] - alpha.reshape(-1, 1)).argmin(axis=1) if len(used) > 1 else None
            pieces = ahead(columns.requests(block, self.scratch), solver.device)
            product = to_host(ridge_blocks.walk(matrices, pieces, which, self.scratch).product)
            store.write(partition, {"weight": product.reshape(len(product), *alpha.shape)})


class Summariser:
    """Importance of one block of voxels of one subject and space a task, from its weights."""

    def __init__(
        self,
        weights: dict[tuple[str, str], Store],
        predictions: dict[tuple[str, str], Store],
        stores: dict[tuple[str, str], Store],
    ) -> None:
        self.weights, self.predictions, self.stores = weights, predictions, stores

    def __call__(self, task: tuple[str, str, int]) -> None:
        subject, space, partition = task
        store, weights = self.stores[subject, space], self.weights[subject, space]
        rows = store.spec.region(store.sizes, partition)["voxel"]
        spread = self.predictions[subject, space].read("train_std")
        _, across = weights.spec.grid(weights.sizes)
        total, count = np.zeros(rows.stop - rows.start), int((spread > 0).sum())
        for i in range(across):
            region = weights.spec.region(weights.sizes, partition * across + i)
            block = spread[tuple(region.get(d, slice(None)) for d in weights.dims("weight")[1:])].ravel()
            values = weights.read("weight", region).reshape(len(total), -1)[:, block > 0] / block[block > 0]
            total += np.einsum("ij,ij->i", values, values, dtype=np.float64)
        store.write(partition, {"importance": np.sqrt(total / max(count, 1)).astype(np.float32)})
