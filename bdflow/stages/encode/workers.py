"""What the workers of `encode` do: fit and score all voxels of one subject by one model."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from bdflow import random
from bdflow.config import Config
from bdflow.errors import InputError, counted
from bdflow.metrics.statistics import correlation_p
from bdflow.regression import banded, principal, ridge, streaming
from bdflow.regression.device import device_budget, to_device
from bdflow.regression.device_walks import Encoding, piece_rows_on_device
from bdflow.stores import Store, StoreError
from bdflow.study import catalog
from bdflow.study.encoding_models import models
from bdflow.study.parts import Joined
from bdflow.study.target_reader import Columns

log = logging.getLogger(__name__)
Key = tuple[str, str]


def device_of(config: Config) -> str:
    """Where the stage computes."""
    return "cuda" if config.execution.encode.gpus else "cpu"


class Encoder:
    """Fits and scores every voxel of a subject by one model, (subject, model), a task.

    Candidates come one after the other, and each goes through all voxels: the kernels of a set's spaces and the
    matrices of one candidate are in memory, never those of all. A block of voxels is written by the last candidate.

    Parameters
    ----------
    responses : by subject.
    targets : by subject and space.
    stores : by subject and model.
    """

    def __init__(
        self, config: Config, responses: dict[str, Store], targets: dict[Key, Joined], stores: dict[Key, Store]
    ) -> None:
        self.config, self.responses, self.targets, self.stores = config, responses, targets, stores
        self.device = device_of(config)
        self.scratch = streaming.Scratch()

    def __call__(self, key: Key) -> None:
        subject, model = key
        responses, store, bands = self.responses[subject], self.stores[key], models(self.config)[model]
        train, ids = responses.read("split") != "test", responses.read("stimulus_id")
        n, grid = int(train.sum()), np.array(sorted(self.config.encode.grid))
        draw = random.generator(self.config.seed, "encoding held out", subject)
        rows = np.sort(draw.choice(n, min(self.config.encode.stimuli, n), replace=False))
        width = min(self.config.chunks.voxels, store.sizes["voxel"])
        reduced = any(space in self.config.encode.components for space in bands)
        shares = banded.simplex(len(bands), self.config.encode.share_steps)
        if len(bands) == 1:
            shares = np.ones((1, 1))
        most = self._latents(Encoding(n, int((~train).sum()), len(bands), len(rows), len(grid), width, reduced))
        kernels, crosses = zip(*(self._kernel((subject, space), ids, train, most) for space in bands), strict=True)
        valid, partitions = responses.read("valid") == 1, store.missing()
        found: dict[int, banded.Banded] = {}
        for candidate in banded.candidates(kernels, crosses, shares, grid.tolist(), rows):
            for partition in partitions:
                voxels = store.spec.region(store.sizes, partition)["voxel"]
                block = found.setdefault(partition, banded.Banded(voxels.stop - voxels.start, len(bands)))
                response = responses.read("response", {"voxel": voxels})
                shown, tested = to_device(response[train], self.device), to_device(response[~train], self.device)
                block.consider(candidate, rows, shown, tested, valid[voxels], self.scratch)
                if candidate.number == len(shares) - 1:
                    store.write(partition, _values(found.pop(partition), int((~train).sum()), grid, shares))

    def _latents(self, of: Encoding) -> int | None:
        """How many latents are multiplied at a time, on a GPU as many as fit; None: all that are read. Raises
        InputError where the models do not fit into its memory.
        """
        if self.device == "cpu":
            return None
        share = min(1.0, self.config.execution.encode.gpus)
        what = "the kernels, hat matrices and a block of voxels of an encoding model"
        return piece_rows_on_device(of.nbytes, self.config.chunks.columns, device_budget(share), what, "encode")

    def _kernel(
        self, key: Key, ids: np.ndarray, train: np.ndarray, most: int | None
    ) -> tuple[ridge.Array, ridge.Array]:
        """Mean products of z-scored latents, or of their principal components: of training stimuli (n, n), of test with
        training stimuli (m, n). `most` : latents multiplied at a time.
        """
        targets, columns = self.targets[key], self.config.chunks.columns
        dims = targets.first.dims("latent")[1:]
        ((dim, step),) = catalog.column_blocks([targets.sizes[dim] for dim in dims], columns).items()
        readers = [Columns(targets, targets.rows("stimulus_id", ids[part]), len(ids)) for part in (train, ~train)]
        latents = 0

        def blocks() -> Iterator[tuple[ridge.Array, ridge.Array]]:
            nonlocal latents
            for start in range(0, targets.sizes[dim], step):
                region = {dim: slice(start, min(start + step, targets.sizes[dim]))}
                read = [self._read(reader, region) for reader in readers]
                length = most or read[0].shape[1]
                for at in range(0, read[0].shape[1], length):
                    shown, tested = (to_device(values[:, at : at + length], self.device) for values in read)
                    shown, tested, _, scale = ridge.z_score(shown.astype(np.float64), tested.astype(np.float64))
                    latents += int((scale > 0).sum())
                    yield shown.astype(np.float32), tested.astype(np.float32)

        kernel, cross = ridge.kernel_matrix(blocks(), int(train.sum()), int((~train).sum()))
        if not latents:
            raise StoreError(
                targets.path,
                found="no latent that differs between training stimuli",
                expected="some that differ",
                action="look at `latent` of this store, and at the photos that it was made from",
            )
        kernel /= latents
        cross /= latents
        k = self.config.encode.components.get(key[1])
        if k is None:
            return kernel, cross
        try:
            reduced = principal.components(kernel, cross, k)
        except InputError as error:
            error.inside(f"encode.components.{key[1]}, {key[0]}")
            raise
        log.info(
            "%s, %s: %s keep %.1f%% of the variance of the training stimuli's z-scored latents",
            *key,
            counted(k, "principal component"),
            100 * reduced.kept,
        )
        return reduced.kernel, reduced.cross

    def _read(self, columns: Columns, region: dict[str, slice]) -> np.ndarray:
        scratch = streaming.Scratch()
        pieces = [read(f"piece {number}") for number, read in enumerate(columns.requests(region, scratch))]
        found: np.ndarray = streaming.as_float32(np.concatenate(pieces))
        return found


def _values(block: banded.Banded, test: int, grid: np.ndarray, shares: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of a store, of a block of voxels; `test` stimuli were predicted."""
    joint, nothing = block.joint, np.float32(np.nan)
    chosen = joint.penalty >= 0
    found = {
        "r2": joint.r2,
        "pearson_r": joint.pearson_r,
        "p": correlation_p(joint.pearson_r, test).astype(np.float32),
        "held_out_r2": joint.held_out_r2,
        "alpha": np.where(chosen, grid[joint.penalty].astype(np.float32), nothing),
    }
    if len(block.without) > 1:
        found["share"] = np.where(chosen, shares[joint.combination].T.astype(np.float32), nothing)
        found["unique_r2"] = block.unique_r2()
    return found
