"""Predictions of every subject: while a block of columns is worked on, the next is read and the last one written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod
from queue import SimpleQueue
from typing import Any

import numpy as np

from bdflow.errors import InputError
from bdflow.regression import streaming
from bdflow.regression.copies import copies_of
from bdflow.regression.device import device_budget, to_device
from bdflow.regression.device_walks import WAITING, Walk, piece_rows_on_device
from bdflow.stages.regress.workers import Pair, Reading
from bdflow.stores import Store
from bdflow.study.target_reader import Columns, SharedBlocks, ahead

Task = tuple[str, int]  # (space, partition)
Results = Callable[[], dict[str, np.ndarray]]
BLOCKS = 2  # in memory: one is worked on, one is read
LEAD = 1024  # rows


@dataclass
class Decoders:
    """The hat matrices of every subject, those of one space held at a time, with what goes with them."""

    stores: dict[Pair, Store]
    validation: dict[Pair, Store]
    selection: dict[Pair, Store]
    device: str
    space: str = ""

    def __post_init__(self) -> None:
        self.hats: dict[str, list[Any]] = {}
        self.alphas: dict[str, np.ndarray] = {}
        self._held: dict[str, tuple[Any, ...]] = {}

    def load(self, space: str) -> None:
        """Hold the matrices of a space: hat matrices, and below them the rows of cross-validation."""
        if space == self.space:
            return
        self.space = space
        for (subject, of), decoder in self.stores.items():
            if of != space:
                continue
            known = decoder.read("alpha")
            own = decoder.read("space_alpha")[decoder.read("space").tolist().index(space)]
            wanted = self.selection[subject, space].read("alpha") if np.isnan(own) else np.array([own])
            validation = self.validation.get((subject, space))
            held = (decoder.path, validation and validation.path, tuple(wanted))
            if self._held.get(subject) == held:
                continue
            self._held[subject], self.alphas[subject], self.hats[subject] = held, wanted, []
            for alpha in wanted:
                i = int(np.searchsorted(known, alpha))
                parts = [decoder.read("hat_matrix", {"alpha": slice(i, i + 1)})[0]]
                if validation is not None:
                    j = int(np.searchsorted(validation.read("alpha"), alpha))
                    parts.append(validation.read("matrix", {"alpha": slice(j, j + 1)})[0])
                self.hats[subject].append(to_device(np.concatenate(parts) if parts[1:] else parts[0], self.device))

    def rows(self, subject: str, space: str) -> tuple[int, int]:
        """Rows of a hat matrix, and those of cross-validation below it."""
        validation = self.validation.get((subject, space))
        held_out = 0 if validation is None else validation.sizes["held_out_stimulus_id"]
        return self.stores[subject, space].sizes["stimulus_id"], held_out

    def nbytes(self, subject: str, space: str) -> int:
        """Bytes of the matrices of a space, when it is loaded."""
        several = (subject, space) in self.selection
        count = self.selection[subject, space].sizes["alpha"] if several else 1
        return 4 * count * sum(self.rows(subject, space)) * self.stores[subject, space].sizes["train_stimulus_id"]

    def held_out(self, subject: str) -> int:
        """Rows of cross-validation below the hat matrix."""
        store = self.validation.get((subject, self.space))
        return 0 if store is None else store.sizes["held_out_stimulus_id"]

    def of_subject(self, subject: str) -> Store:
        """The decoder of the space that is loaded."""
        return self.stores[subject, self.space]

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


@dataclass
class Targets:
    """The latents of a space that predictions are made from, and those that they are compared with, by subject.

    Attributes
    ----------
    shared : reads blocks once for all subjects, whose rows are called "train SUBJECT" and "test SUBJECT"; None where
        memory does not allow that.
    columns : rows by the same names, read in pieces.
    """

    shared: SharedBlocks | None
    columns: dict[str, Columns]


@dataclass
class Prepared:
    """A block of columns that is to be predicted.

    Attributes
    ----------
    subjects : whose predictions of it are missing.
    block : (k, t) what `Targets.shared` read, in the buffer of the name `buffer`; None where it is read in pieces while
        it is worked on.
    """

    space: str
    partition: int
    region: dict[str, slice]
    subjects: list[str]
    targets: Targets
    block: np.ndarray | None = None
    buffer: str = ""


class Predictor:
    """Predicts one block of latents for every subject a task.

    The latents of all subjects are read once, while the block before is worked on, or, where memory does not allow
    that, in pieces for one subject after the other. On a GPU pieces are as long as fit into the `share` of its memory
    that is this worker's. Raises InputError where none fits.
    """

    def __init__(
        self,
        decoders: Decoders,
        reading: Reading,
        stores: dict[str, dict[str, Store]],
        weights: dict[Pair, np.ndarray | None],
        intercepts: dict[str, bool],
        share: float = 1.0,
    ) -> None:
        self.decoders, self.stores = decoders, stores
        self.reading = reading if decoders.device == "cpu" else self._fitted(reading, device_budget(share))
        self.weights, self.intercepts = weights, intercepts
        self.scratch, self.copies = streaming.Scratch(), copies_of(decoders.device)
        self.read_into = self.copies.scratch()
        self._free: SimpleQueue[tuple[str, Callable[[], None]]] = SimpleQueue()
        for number in range(BLOCKS):
            self._free.put((f"block {number}", _nothing))
        self._targets: dict[str, Targets] = {}

    def _fitted(self, reading: Reading, free: int) -> Reading:
        """As it fits into so many bytes of a GPU: shorter pieces, then one subject's results at a time."""
        held: dict[str, int] = {}
        for space, stores in self.stores.items():
            for subject in stores:
                held[subject] = max(held.get(subject, 0), self.decoders.nbytes(subject, space))
        for whole in (True, False) if reading.whole_blocks else (False,):
            walks = [self._walk(space, sum(held.values()), whole, reading) for space in self.stores]
            try:
                rows = piece_rows_on_device(
                    lambda k, walks=walks: max(walk.nbytes(k) for walk in walks),  # type: ignore[misc]
                    reading.piece_rows,
                    free,
                    "the hat matrices of all subjects and a block of predictions",
                )
            except InputError:
                if whole:
                    continue
                raise
            return replace(reading, piece_rows=rows, whole_blocks=whole)
        raise AssertionError

    def _walk(self, space: str, matrices: int, whole: bool, reading: Reading) -> Walk:
        sizes = [self.decoders.rows(subject, space) for subject in self.stores[space]]
        tests, held_out = [test for test, _ in sizes], max(held for _, held in sizes)
        first = next(iter(self.stores[space].values()))
        region = first.spec.region(first.sizes, 0)
        block = (region[d].stop - region[d].start if d in region else first.sizes[d] for d in first.dims("alpha"))
        return Walk(
            matrices,
            max(tests) + held_out,
            prod(block),
            reading.targets[space].first.arrays["latent"].dtype.itemsize,
            held_out,
            WAITING * sum(tests) if whole else 2 * max(tests),
            sum(tests) if whole else max(tests),
            any((subject, space) in self.decoders.selection for subject in self.stores[space]),
        )

    # --- read ---------------------------------------------------------------------------------------------------------

    def prepare(self, task: Task) -> Prepared:
        """Read the block, if it is read whole."""
        space, partition = task
        subjects = [s for s, store in self.stores[space].items() if not store.marker(partition)]
        first = next(iter(self.stores[space].values()))
        targets = self._targets_of(space)
        prepared = Prepared(space, partition, first.spec.region(first.sizes, partition), subjects, targets)
        if targets.shared is None or not subjects:
            return prepared
        prepared.buffer, left = self._free.get()
        try:
            left()
            prepared.block = targets.shared.read(prepared.region, self.read_into, prepared.buffer)
        except BaseException:
            self._free.put((prepared.buffer, _nothing))
            raise
        return prepared

    def _targets_of(self, space: str) -> Targets:
        if space not in self._targets:
            columns = {}
            for subject in self.stores[space]:
                decoder = self.decoders.stores[subject, space]
                columns[f"train {subject}"] = self.reading.columns(space, decoder.read("train_stimulus_id"))
                columns[f"test {subject}"] = self.reading.columns(space, decoder.read("stimulus_id"))
            shared = None
            if self.reading.whole_blocks:
                rows = {name: of.rows for name, of in columns.items()}
                shared = SharedBlocks(self.reading.targets[space], rows, self.reading.piece_rows)
            self._targets = {space: Targets(shared, columns)}
        return self._targets[space]

    # --- work ---------------------------------------------------------------------------------------------------------

    def work(self, prepared: Prepared) -> dict[str, tuple[Results, np.ndarray]]:
        """Predictions, statistics and scores of each subject, as what gives them, and the penalty of each latent. Where
        memory is scarce those of a subject are written before the next's are computed, and none is left.
        """
        made: dict[str, tuple[Results, np.ndarray]] = {}
        try:
            self.decoders.load(prepared.space)
            seen: dict[bytes, list[Any]] = {}
            for subject in prepared.subjects:
                made[subject] = self._predicted(prepared, subject, seen)
                if prepared.block is None:
                    self.finish((prepared.space, prepared.partition), made)
                    made = {}
            return made
        finally:
            if prepared.buffer:
                self._free.put((prepared.buffer, self.copies.left()))

    def _predicted(
        self, prepared: Prepared, subject: str, seen: dict[bytes, list[object]]
    ) -> tuple[Results, np.ndarray]:
        space, region = prepared.space, prepared.region
        true, train = self._pieces(prepared, subject, seen)
        which, alphas = self.decoders.which(subject, region, true[0].shape[1])
        block = streaming.predict_block(
            self.decoders.hats[subject],
            train,
            true,
            which=which,
            held_out=self.decoders.held_out(subject),
            scratch=self.scratch,
            weights=self.weights[subject, space],
            intercept=self.intercepts[space],
        )
        values = {name: value for name, value in block._asdict().items() if value is not None}
        return self.copies.sent(values), alphas

    def _pieces(
        self, prepared: Prepared, subject: str, seen: dict[bytes, list[object]]
    ) -> tuple[list[Any], Iterable[Any]]:
        """Test targets, and training targets piece by piece, where arithmetic runs. Subjects that saw the same test
        stimuli share these (`seen`).
        """
        device, targets, block = self.decoders.device, prepared.targets, prepared.block
        if targets.shared is not None and block is not None:
            key = targets.shared.key(f"test {subject}")
            if key not in seen:
                seen[key] = [to_device(piece, device) for piece in targets.shared.pieces(block, f"test {subject}")]
            return seen[key], self.copies.pieces(targets.shared.pieces(block, f"train {subject}"))
        test = targets.columns[f"test {subject}"].requests(prepared.region, self.scratch)
        true = [to_device(request(f"test {number}"), device) for number, request in enumerate(test)]
        train = targets.columns[f"train {subject}"].requests(prepared.region, self.read_into, LEAD)
        return true, ahead(train, self.copies)

    # --- write --------------------------------------------------------------------------------------------------------

    def finish(self, task: Task, made: dict[str, tuple[Results, np.ndarray]]) -> None:
        """Write what was predicted."""
        space, partition = task
        for subject, (results, alphas) in made.items():
            store = self.stores[space][subject]
            region = store.spec.region(store.sizes, partition)
            shape = tuple(
                region[d].stop - region[d].start if d in region else store.sizes[d] for d in store.dims("alpha")
            )
            values = {**results(), "alpha": alphas}
            store.write(
                partition,
                {n: v.reshape(-1, *shape) if n == "latent" else v.reshape(shape) for n, v in values.items()},
            )


def _nothing() -> None:
    pass
