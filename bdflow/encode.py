"""Encoding models: how well the latents of a photo predict each voxel's response, on demand; R^2 by voxel.

The regression of `regress` turned round (Naselaris et al. 2011, "Encoding and decoding in fMRI"): z-scored latents of a
target space are the features, responses the targets. The hat matrices come from the kernel of the latents, which is
taken in blocks of columns; the penalty of each voxel is chosen among `encode.grid` by leave-one-out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from bdflow import noise, ridge, ridge_blocks
from bdflow.columns import Columns
from bdflow.config import Config
from bdflow.device import to_device, to_host
from bdflow.stage import Context, Expected, Work
from stores import Provenance, Store, StoreError, catalog

NAME = "encode"
Key = tuple[str, str]


def place(subject: str, space: str) -> str:
    """The store of one subject's encoding models from one space."""
    return f"encoding/{subject}/{space}"


def provenances(config: Config, known: Expected) -> dict[str, Provenance]:
    settings = {
        "grid": list(config.encode.grid),
        "stimuli": config.encode.stimuli,
        "seed": config.seed,
        "voxels": config.chunks.voxels,
    }
    found = {}
    for subject in config.subjects:
        for space in config.encode.spaces:
            upstream = {path: known[path].fingerprint for path in (f"responses/{subject}", f"targets/{space}")}
            found[place(subject, space)] = Provenance(NAME, settings, upstream=upstream)
    return found


def works(context: Context) -> Iterator[Work]:
    config = context.config
    responses = {subject: context.ready(f"responses/{subject}") for subject in context.subjects}
    targets: dict[str, Store] = {space: context.ready(f"targets/{space}") for space in config.encode.spaces}
    stores = {
        (subject, space): context.declare(
            place(subject, space), catalog.encoding(config.chunks.voxels), {"voxel": of.sizes["voxel"]}, {}
        )
        for subject, of in responses.items()
        for space in targets
    }
    yield Work(
        "encoding models",
        "models",
        list(stores.values()),
        [key for key, store in stores.items() if store.missing()],
        partial(Encoder, config, responses, targets, stores),
    )


class Encoder:
    """Fits and scores every voxel of one subject from one space a task."""

    def __init__(
        self, config: Config, responses: dict[str, Store], targets: dict[str, Store], stores: dict[Key, Store]
    ) -> None:
        self.config, self.responses, self.targets, self.stores = config, responses, targets, stores
        self.device = "cuda" if config.execution.encode.gpus else "cpu"
        self.scratch = ridge_blocks.Scratch()

    def __call__(self, key: Key) -> None:
        subject, space = key
        responses, store = self.responses[subject], self.stores[key]
        train = responses.read("split") != "test"
        kernel, cross = self._kernel(space, responses.read("nsd_id"), train)
        system, grid = ridge.Dual(kernel), np.array(sorted(self.config.encode.grid))
        n = system.n
        draw = noise.generator(self.config.seed, "encoding held out", subject)
        rows = np.sort(draw.choice(n, min(self.config.encode.stimuli, n), replace=False))
        left_out = list(ridge.leave_one_out(system, rows, grid.tolist()))
        hats = list(system.hat_matrices(cross, grid.tolist()))
        valid = responses.read("valid") == 1
        for partition in store.missing():
            voxels = store.spec.region(store.sizes, partition)["voxel"]
            response = responses.read("response", {"voxel": voxels})
            shown, tested = to_device(response[train], self.device), to_device(response[~train], self.device)
            scores = to_host(ridge_blocks.validate_block(left_out, rows, [shown], self.scratch))
            known = valid[voxels] & np.isfinite(scores).all(axis=0)
            best = np.where(known, np.nan_to_num(scores, nan=-np.inf).argmax(axis=0), 0)
            block = ridge_blocks.predict_block(hats, [shown], [tested], which=best, scratch=self.scratch)
            found = {
                "r2": to_host(block.r2),
                "pearson_r": to_host(block.pearson_r),
                "held_out_r2": np.take_along_axis(scores, best[None], axis=0)[0],
                "alpha": grid[best].astype(np.float32),
            }
            store.write(partition, {name: np.where(known, v, np.float32(np.nan)) for name, v in found.items()})

    def _kernel(self, space: str, ids: np.ndarray, train: np.ndarray) -> tuple[ridge.Array, ridge.Array]:
        """Mean products of z-scored latents: of training stimuli (n, n), of test with training stimuli (m, n)."""
        targets, columns = self.targets[space], self.config.chunks.columns
        dims = targets.dims("latent")[1:]
        ((dim, step),) = catalog.column_blocks([targets.sizes[dim] for dim in dims], columns).items()
        readers = [Columns(targets, targets.rows("nsd_id", ids[part]), len(ids)) for part in (train, ~train)]
        latents = 0

        def blocks() -> Iterator[tuple[ridge.Array, ridge.Array]]:
            nonlocal latents
            for start in range(0, targets.sizes[dim], step):
                region = {dim: slice(start, min(start + step, targets.sizes[dim]))}
                shown, tested = (self._read(reader, region) for reader in readers)
                shown, tested, _, scale = ridge.z_score(shown.astype(np.float64), tested.astype(np.float64))
                latents += int((scale > 0).sum())
                yield shown.astype(np.float32), tested.astype(np.float32)

        kernel, cross = ridge.kernel_matrix(blocks(), int(train.sum()), int((~train).sum()))
        if not latents:
            raise StoreError(
                f"targets/{space}: found no latent that differs between training stimuli; expected some.\n"
                "What to do: look at `latent` of this store, and at the photos it was made from."
            )
        kernel /= latents
        cross /= latents
        return kernel, cross

    def _read(self, columns: Columns, region: dict[str, slice]) -> ridge.Array:
        scratch = ridge_blocks.Scratch()
        pieces = [read(f"piece {number}") for number, read in enumerate(columns.requests(region, scratch))]
        return to_device(ridge_blocks.as_float32(np.concatenate(pieces)), self.device)
