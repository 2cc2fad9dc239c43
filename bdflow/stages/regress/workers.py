"""What the works of the stage `regress` do in a worker process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from bdflow import random
from bdflow.config import Config
from bdflow.errors import InputError
from bdflow.regression import cross_validation, ridge, streaming
from bdflow.regression.copies import copies_of
from bdflow.regression.device import device_budget, to_device, to_host
from bdflow.regression.device_walks import Choice, Walk, piece_rows_on_device
from bdflow.stores import Store
from bdflow.study.designs import Design
from bdflow.study.parts import Joined
from bdflow.study.system import Solver, z_scored_blocks
from bdflow.study.target_reader import Columns, ahead, as_slice

Pair = tuple[str, str]  # (subject, design) or (subject, space)
RowsOf = Callable[[slice], np.ndarray]


class SystemMaker:
    """Computes rows of one system a task: all of them at once if the system is held whole."""

    def __init__(
        self, responses: dict[Pair, Store], systems: dict[Pair, Store], whole: bool, device: str = "cpu"
    ) -> None:
        self.responses, self.systems, self.whole, self.device = responses, systems, whole, device

    def __call__(self, task: tuple[str, str, list[int]]) -> None:
        subject, design, partitions = task
        responses, system = self.responses[subject, design], self.systems[subject, design]
        train, used = responses.read("split") != "test", system.read("used") == 1
        regions = [next(iter(system.spec.region(system.sizes, i).values())) for i in partitions]
        if "other_voxel" in system.sizes:
            rows_of = self._covariance(responses, train, used, regions)
        elif self.whole:
            rows_of = self._kernel(responses, train, used)
        else:
            rows_of = self._kernel_part(responses, train, used, slice(regions[0].start, regions[-1].stop))
        for partition, rows in zip(partitions, regions, strict=True):
            system.write(partition, {"gram": rows_of(rows)})

    def _kernel(self, responses: Store, train: np.ndarray, used: np.ndarray) -> RowsOf:
        n = int(train.sum())
        rows, others = as_slice(np.flatnonzero(train)), as_slice(np.flatnonzero(~train))
        blocks = (
            (to_device(values[rows], self.device), to_device(values[others], self.device))
            for _, values in z_scored_blocks(responses, used)
        )
        kernel, cross = (to_host(found) for found in ridge.kernel_matrix(blocks, n, len(train) - n))
        position = np.where(train, np.cumsum(train), np.cumsum(~train)) - 1

        def rows_of(rows: slice) -> np.ndarray:
            found = np.empty((rows.stop - rows.start, n), dtype=np.float32)
            found[train[rows]] = kernel[position[rows][train[rows]]]
            found[~train[rows]] = cross[position[rows][~train[rows]]]
            return found

        return rows_of

    def _kernel_part(self, responses: Store, train: np.ndarray, used: np.ndarray, part: slice) -> RowsOf:
        product: Any = to_device(np.zeros((part.stop - part.start, int(train.sum())), np.float32), self.device)
        rows = as_slice(np.flatnonzero(train))
        for _, values in z_scored_blocks(responses, used):
            product += to_device(values[part], self.device) @ to_device(values[rows], self.device).T
        found = to_host(product)
        return lambda rows: found[rows.start - part.start : rows.stop - part.start]

    def _covariance(self, responses: Store, train: np.ndarray, used: np.ndarray, regions: list[slice]) -> RowsOf:
        rows = as_slice(np.flatnonzero(train))

        def blocks() -> Iterator[np.ndarray]:
            return (values[rows][:, used[voxels]] for voxels, values in z_scored_blocks(responses, used))

        if self.whole:
            all_rows = to_device(np.concatenate([block.copy() for block in blocks()], axis=1), self.device)
            gram = to_host(ridge.Primal(all_rows).gram)
            return lambda rows: gram[rows]
        part = slice(regions[0].start, regions[-1].stop)
        own, at = [], 0
        for block in blocks():
            first, last = max(part.start - at, 0), min(part.stop - at, block.shape[1])
            if first < last:
                own.append(block[:, first:last].copy())
            at += block.shape[1]
        mine = to_device(np.concatenate(own, axis=1), self.device)
        product = np.concatenate([to_host(mine.T @ to_device(block, self.device)) for block in blocks()], axis=1)
        return lambda rows: product[rows.start - part.start : rows.stop - part.start]


class Validator:
    """Computes the matrices of cross-validation of one subject and design a task."""

    def __init__(
        self, solvers: dict[Pair, Solver], stores: dict[Pair, Store], config: Config, designs: dict[str, Design]
    ) -> None:
        self.solvers, self.stores, self.config, self.designs = solvers, stores, config, designs

    def __call__(self, pair: Pair) -> None:
        solver, store = self.solvers[pair], self.stores[pair]
        missing, settings = store.missing(), self.config.ridge.validation
        alphas = store.read("alpha")[missing].tolist()
        intercept, grouping = self.designs[pair[1]].intercept, solver.grouping
        if settings.method == "k_fold_rows":
            fold = contiguous_folds(solver.trial_order(), settings.folds)
            left_out, stimuli_count = solver.n // settings.folds + 1, len(grouping.counts)
            kept = 0 if solver.dual else settings.folds  # covariances
            squares = 20 * stimuli_count**2 + 16 * left_out * stimuli_count  # of errors in float64, their factor
            fitted = solver.fitted(left_out, folds=True, kept=kept, beside=squares)
            whole: Any = fitted.ridge_system(intercept=intercept)
            errors = cross_validation.k_fold_errors(whole, alphas, fold, grouping, intercept)
            for partition in missing:  # nothing holds a matrix while the next is made
                store.write(partition, {"error": to_host(next(errors))[None].astype(np.float32, copy=False)})
            return
        stimuli = held_out_rows(store)
        groups = list(grouping.groups(stimuli))
        held_out = sum(map(len, groups))
        by_folds = settings.method == "k_fold"
        matrices_of_all = 4 * held_out * solver.n * (len(alphas) + 2) if by_folds else 0
        system: Any = solver.fitted(held_out, folds=by_folds, beside=matrices_of_all).ridge_system()
        matrices: Iterator[Any]
        if settings.method == "leave_one_out":
            if grouping.trivial:
                matrices = cross_validation.leave_one_out(system, stimuli, alphas, intercept)
            else:
                matrices = cross_validation.leave_group_out(system, groups, alphas, intercept)
        else:
            rng, count = random.generator(self.config.seed, "folds", pair[0]), len(grouping.counts)
            fold = np.repeat(rng.permutation(count) % min(settings.folds, count), grouping.counts)
            rows = np.concatenate(groups)
            matrices = cross_validation.k_fold(system, rows, alphas, fold, intercept)
            if not grouping.trivial:
                matrices = (_means(matrix, [len(group) for group in groups]) for matrix in matrices)
        for partition in missing:
            host = to_host(grouping.sum_columns(next(matrices)))
            store.write(partition, {"matrix": host[None].astype(np.float32, copy=False)})


def contiguous_folds(order: np.ndarray, folds: int) -> np.ndarray:
    """(n,) fold of each row: runs of rows in the order given, the first ones longer by one where they do not divide."""
    found = np.zeros(len(order), dtype=int)
    for number, rows in enumerate(np.array_split(order, min(folds, len(order)))):
        found[rows] = number
    return found


def _means(matrix: Any, lengths: list[int]) -> object:
    """Means of runs of rows."""
    xp, ends = array_namespace(matrix), np.cumsum([0, *lengths])
    return xp.stack([xp.mean(matrix[start:stop, :], axis=0) for start, stop in pairwise(ends.tolist())])


def held_out_rows(validation: Store) -> np.ndarray:
    """Positions of the stimuli that cross-validation predicts among the training stimuli, ascending."""
    return np.sort(validation.rows("train_stimulus_id", validation.read("held_out_stimulus_id")))


class Factoriser:
    """Computes the hat matrices of one subject and design a task."""

    def __init__(self, solvers: dict[Pair, Solver], decoders: dict[Pair, Store]) -> None:
        self.solvers, self.decoders = solvers, decoders

    def __call__(self, pair: Pair) -> None:
        solver, decoder = self.solvers[pair], self.decoders[pair]
        missing, grouping = decoder.missing(), solver.grouping
        solver = solver.fitted(int((~solver.train).sum()))
        hats = solver.ridge_system().hat_matrices(solver.of_test(), decoder.read("alpha")[missing].tolist())
        for partition, hat in zip(missing, hats, strict=True):
            host = to_host(grouping.sum_columns(hat))
            decoder.write(partition, {"hat_matrix": host[None].astype(np.float32)})


@dataclass(frozen=True)
class Reading:
    """The target stores, how many rows of them are worked on at a time, and whether predictions read blocks of columns
    whole.
    """

    targets: dict[str, Joined]
    piece_rows: int
    whole_blocks: bool = True

    def columns(self, space: str, ids: np.ndarray) -> Columns:
        """The latents of these stimuli."""
        targets = self.targets[space]
        return Columns(targets, targets.rows("stimulus_id", ids), self.piece_rows)


class Selector:
    """Scores every penalty on one block of latents of one subject a task: all in one walk through the targets, or, on a
    GPU where its `share` of the memory does not hold them, as many at a time as fit. Raises InputError if not even one
    does.
    """

    def __init__(
        self,
        validation: dict[Pair, Store],
        stores: dict[Pair, Store],
        reading: Reading,
        drawn: dict[str, np.ndarray | None],
        intercepts: dict[str, bool],
        device: str,
        share: float = 1.0,
    ) -> None:
        self.share = share
        self.validation, self.stores, self.reading, self.drawn = validation, stores, reading, drawn
        self.intercepts, self.device, self.scratch = intercepts, device, streaming.Scratch()
        self.copies = copies_of(device)
        self.read_into = self.copies.scratch()
        self.loaded: tuple[str, tuple[float, ...]] | None = None

    def _load(self, pair: Pair) -> None:
        """Hold the matrices of a space's penalties; spaces of one design often share them."""
        store, wanted = self.validation[pair], self.stores[pair].read("alpha")
        if self.loaded == (store.path, tuple(wanted)):
            return
        self.loaded = (store.path, tuple(wanted))
        self.train, self.alphas, self.by_rows = store.read("train_stimulus_id"), wanted, "error" in store.arrays
        self.rows = np.zeros(0, int) if self.by_rows else held_out_rows(store)
        at, name = np.searchsorted(store.read("alpha"), wanted), "error" if self.by_rows else "matrix"
        self.matrices: list[Any] = []
        self.matrices = [store.read(name, {"alpha": slice(i, i + 1)})[0] for i in at]
        self.at_once, self.walked = self._fitted(pair)
        if self.at_once == len(wanted):
            self.matrices = [to_device(matrix, self.device) for matrix in self.matrices]

    def _fitted(self, pair: Pair) -> tuple[int, Reading]:
        """How many penalties are compared at a time, and how long pieces are."""
        count, reading = len(self.alphas), self.reading
        if self.device == "cpu":
            return count, reading
        store, rows = self.stores[pair], len(self.matrices[0])
        region = store.spec.region(store.sizes, 0)
        first, last = flat_range(store, region)
        itemsize = reading.targets[pair[1]].first.arrays["latent"].dtype.itemsize
        of, free = Choice(rows, len(self.train), last - first, itemsize, self.by_rows), device_budget(self.share)
        for at_once in (count, *(n for n in range(count - 1, 0, -1) if not self.by_rows)):
            try:
                piece_rows = piece_rows_on_device(
                    lambda k, n=at_once: of.nbytes(k, n),  # type: ignore[misc]
                    reading.piece_rows,
                    free,
                    "one penalty's matrix and a block of latents",
                )
            except InputError:
                if at_once == 1 or self.by_rows:
                    raise
                continue
            return (1 if self.by_rows else at_once), replace(reading, piece_rows=piece_rows)
        raise AssertionError

    def __call__(self, task: tuple[str, str, int]) -> None:
        subject, space, partition = task
        self._load((subject, space))
        store = self.stores[subject, space]
        region = store.spec.region(store.sizes, partition)
        shape = tuple(
            region[d].stop - region[d].start if d in region else store.sizes[d] for d in store.dims("best_alpha")
        )
        columns = self._columns(store, region, space)
        scores = np.full((len(self.alphas), int(np.prod(shape))), np.nan, dtype=np.float32)
        if columns.size:
            of, whole = self.walked.columns(space, self.train), columns.size == scores.shape[1]

            def drawn() -> Iterator[object]:
                pieces = ahead(of.requests(region, self.read_into), self.copies)
                return pieces if whole else (ridge.take(piece, columns, 1) for piece in pieces)

            if self.by_rows:
                scores[:, columns] = -to_host(streaming.error_block(self._on_device(self.matrices), drawn()))
            else:
                for at in range(0, len(self.matrices), self.at_once):
                    some = list(self._on_device(self.matrices[at : at + self.at_once]))
                    found = streaming.validate_block(some, self.rows, drawn(), self.scratch, self.intercepts[space])
                    del some
                    scores[at : at + self.at_once, columns] = to_host(found)
        best = np.full(scores.shape[1], np.nan, dtype=np.float32)
        known = np.isfinite(scores).all(axis=0)
        best[known] = self.alphas[len(scores) - 1 - scores[::-1, known].argmax(axis=0)]  # of equals the largest
        store.write(partition, {"score": scores.reshape(-1, *shape), "best_alpha": best.reshape(shape)})

    def _on_device(self, matrices: Sequence[object]) -> Iterator[object]:
        """Each where arithmetic runs, made as it is asked for."""
        return (to_device(m, self.device) if isinstance(m, np.ndarray) else m for m in matrices)

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


class Weigher:
    """Computes the weights of one block of voxels of one subject and space a task, block of latents after block."""

    def __init__(
        self,
        solvers: dict[Pair, Solver],
        decoders: dict[Pair, Store],
        reading: Reading,
        stores: dict[Pair, Store],
        predictions: dict[Pair, Store],
    ) -> None:
        self.solvers, self.decoders, self.reading = solvers, decoders, reading
        self.stores, self.predictions, self.scratch = stores, predictions, streaming.Scratch()
        self.copies = copies_of(next(iter(solvers.values())).device)
        self.read_into = self.copies.scratch()

    def __call__(self, task: tuple[str, str, int]) -> None:
        subject, space, group = task
        solver, store = self.solvers[subject, space], self.stores[subject, space]
        _, across = store.spec.grid(store.sizes)
        missing = [group * across + i for i in range(across) if not store.marker(group * across + i)]
        voxels = store.spec.region(store.sizes, missing[0])["voxel"]
        decoder, grouping = self.decoders[subject, space], solver.grouping
        alphas, own = decoder.read("alpha"), decoder.read("space_alpha")
        own = own[decoder.read("space").tolist().index(space)]
        used: Sequence[float] = alphas.tolist() if np.isnan(own) else [float(own)]
        reading, rows = self.reading, voxels.stop - voxels.start
        if solver.device != "cpu":
            kept, region = 4 * len(used) * rows * len(grouping.counts), store.spec.region(store.sizes, missing[0])
            columns = int(np.prod([part.stop - part.start for dim, part in region.items() if dim != "voxel"]))
            columns *= int(np.prod([store.sizes[dim] for dim in store.dims("weight") if dim not in region]))
            itemsize = reading.targets[space].first.arrays["latent"].dtype.itemsize
            walk = Walk(kept, rows, columns, itemsize, several=len(used) > 1)
            free = device_budget(solver.share)
            what = "the weights of a block of voxels"
            reading = replace(reading, piece_rows=piece_rows_on_device(walk.nbytes, reading.piece_rows, free, what))
            solver = solver.fitted(rows, beside=kept)
        hats = solver.ridge_system().hat_matrices(solver.of_voxels(voxels), used)
        matrices = [grouping.sum_columns(hat) for hat in hats]
        targets = reading.columns(space, decoder.read("train_stimulus_id"))
        for partition in missing:
            region = store.spec.region(store.sizes, partition)
            block = {dim: part for dim, part in region.items() if dim != "voxel"}
            alpha = self.predictions[subject, space].read("alpha", block)
            which = np.abs(np.asarray(used)[None] - alpha.reshape(-1, 1)).argmin(axis=1) if len(used) > 1 else None
            pieces = ahead(targets.requests(block, self.read_into), self.copies)
            product = to_host(streaming.walk(matrices, pieces, which, self.scratch).product)
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
