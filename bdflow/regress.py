"""Stage 3: ridge from responses to latents, all subjects in one pass over each target space.

First the hat matrices of each subject (one Gram matrix, a Cholesky factor for each space's alpha). Then blocks of
columns: each task reads one block of a target space once, and predicts it for every subject.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from bdflow import ridge
from bdflow.config import SPACES, Config
from bdflow.stage import Context, Expected, Work, missing_in_any
from stores import Provenance, Store, catalog, text

NAME = "regress"
Rows = slice | np.ndarray


def provenances(config: Config, known: Expected) -> dict[str, Provenance]:
    found = {}
    for subject in config.subjects:
        decoder = f"decoders/{subject}"
        responses = f"responses/{subject}"
        found[decoder] = Provenance(
            NAME,
            {"alpha": config.regress.alpha.model_dump()},
            upstream={responses: known[responses].fingerprint},
        )
        for space in SPACES:
            upstream = {
                decoder: found[decoder].fingerprint,
                f"targets/{space}": known[f"targets/{space}"].fingerprint,
            }
            found[f"predictions/{subject}/{space}"] = Provenance(
                NAME, {"chunk": config.chunks.columns}, upstream=upstream
            )
    return found


def works(context: Context) -> Iterator[Work]:
    alphas = context.config.regress.alpha.model_dump()
    pairs = {}
    for subject in context.subjects:
        responses = context.ready(f"responses/{subject}")
        pairs[subject] = (responses, _declare_decoder(context, subject, responses, alphas))
    yield Work(
        "hat matrices",
        "subjects",
        [decoder for _, decoder in pairs.values()],
        [subject for subject, (_, decoder) in pairs.items() if decoder.missing()],
        partial(Factoriser, pairs, alphas),
    )

    decoders = {subject: context.ready(f"decoders/{subject}") for subject in context.subjects}
    stores: dict[str, dict[str, Store]] = {space: {} for space in SPACES}
    targets, tasks = {}, []
    for space in SPACES:
        targets[space] = context.ready(f"targets/{space}")
        for subject in context.subjects:
            stores[space][subject] = _declare_predictions(context, subject, space, decoders[subject], targets[space])
        tasks += [(space, partition) for partition in missing_in_any(list(stores[space].values()))]
    yield Work(
        "predictions",
        "blocks of latents",
        [store for by_subject in stores.values() for store in by_subject.values()],
        tasks,
        partial(Predictor, decoders, targets, stores),
    )


def _declare_decoder(context: Context, subject: str, responses: Store, alphas: dict[str, float]) -> Store:
    ids, test = responses.read("nsd_id"), responses.read("split") == "test"
    return context.declare(
        f"decoders/{subject}",
        catalog.decoders(),
        {"space": len(SPACES), "stimulus": int(test.sum()), "train_stimulus": int((~test).sum())},
        {
            "alpha": np.array([alphas[space] for space in SPACES]),
            "space": text(SPACES),
            "nsd_id": ids[test],
            "train_nsd_id": ids[~test],
        },
    )


def _declare_predictions(context: Context, subject: str, space: str, decoder: Store, targets: Store) -> Store:
    shape = targets.arrays["latent"].shape[1:]
    sizes = {
        "stimulus": decoder.sizes["stimulus"],
        **dict(zip(catalog.space_dims(shape), shape, strict=True)),
    }
    return context.declare(
        f"predictions/{subject}/{space}",
        catalog.predictions(shape, context.config.chunks.columns),
        sizes,
        {"nsd_id": decoder.read("nsd_id")},
    )


def as_slice(rows: np.ndarray) -> Rows:
    """The same rows as a slice where they are one run: no copy is made of what a slice takes."""
    run = np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
    return slice(int(rows[0]), int(rows[0]) + len(rows)) if run else rows


class Factoriser:
    """Computes the hat matrices of one subject a task."""

    def __init__(self, pairs: dict[str, tuple[Store, Store]], alphas: dict[str, float]) -> None:
        self.pairs, self.alphas = pairs, alphas

    def __call__(self, subject: str) -> None:
        responses, decoder = self.pairs[subject]
        missing = decoder.missing()
        alphas = [self.alphas[SPACES[partition]] for partition in missing]
        n, m = decoder.sizes["train_stimulus"], decoder.sizes["stimulus"]
        p = int(responses.read("valid").sum())
        blocks = self._blocks(responses)
        if ridge.dual_is_cheaper(n, p, m):
            hat_matrices = ridge.dual_hat_matrices(blocks, n, m, alphas)
        else:
            train, other = (np.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True))
            hat_matrices = ridge.hat_matrices(train, other, alphas)
        for partition, hat_matrix in zip(missing, hat_matrices, strict=True):
            decoder.write(partition, {"hat_matrix": hat_matrix[None].astype(np.float32)})

    def _blocks(self, responses: Store) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """z-scored responses of training and test stimuli, block of voxels after block."""
        test = responses.read("split") == "test"
        for partition in range(responses.n_partitions):
            region = responses.spec.region(responses.sizes, partition)
            valid = responses.read("valid", region) == 1
            mean, scale = (responses.read(name, region)[valid] for name in ("voxel_mean", "voxel_scale"))
            values = ridge.standardise(responses.read("response", region)[:, valid], mean, scale)
            if valid.any():
                yield values[~test], values[test]


class Predictor:
    """Predicts one block of latents for every subject a task; holds the hat matrices of one space at a time."""

    def __init__(
        self, decoders: dict[str, Store], targets: dict[str, Store], stores: dict[str, dict[str, Store]]
    ) -> None:
        self.decoders, self.targets, self.stores = decoders, targets, stores
        self.space = ""
        self.hat_matrix: dict[str, np.ndarray] = {}
        self.rows: dict[str, tuple[Rows, Rows]] = {}

    def _load(self, space: str) -> None:
        self.space, self.hat_matrix, self.rows = space, {}, {}
        for subject, decoder in self.decoders.items():
            names = decoder.read("space").tolist()
            at = names.index(space)
            self.hat_matrix[subject] = decoder.read("hat_matrix", {"space": slice(at, at + 1)})[0]
            train, test = (
                self.targets[space].rows("nsd_id", decoder.read(name)) for name in ("train_nsd_id", "nsd_id")
            )
            self.rows[subject] = (as_slice(train), as_slice(test))

    def __call__(self, task: tuple[str, int]) -> None:
        space, partition = task
        if space != self.space:
            self._load(space)
        stores = self.stores[space]
        first = next(iter(stores.values()))
        region = first.spec.region(first.sizes, partition)
        latents = self.targets[space].read("latent", region)
        shape = latents.shape[1:]
        latents = latents.reshape(len(latents), -1)
        for subject, store in stores.items():
            block = ridge.predict_block(self.hat_matrix[subject], latents, *self.rows[subject])
            values = {name: value.reshape(-1, *shape) for name, value in block._asdict().items()}
            store.write(partition, {n: value if n == "latent" else value[0] for n, value in values.items()})
