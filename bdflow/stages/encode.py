"""Encoding models: how well the latents of a photo predict each voxel's response, on demand; R^2 by voxel.

The regression of `regress` turned round (Naselaris et al. 2011, "Encoding and decoding in fMRI"): z-scored latents of a
target space are the features, responses the targets. The hat matrices come from the kernel of the latents, which is
taken in blocks of columns; the penalty of each voxel is chosen among `encode.grid` by leave-one-out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np

from bdflow import random
from bdflow.config import Config, content
from bdflow.regression import cross_validation, ridge, streaming
from bdflow.regression.device import to_device, to_host
from bdflow.stores import Store, StoreError
from bdflow.study import catalog, keys, parts
from bdflow.study.designs import averaged_design
from bdflow.study.graph import Counts, StoreDecl
from bdflow.study.parts import Joined
from bdflow.study.stage import Context, Stage, Step, Work
from bdflow.study.target_reader import Columns

Key = tuple[str, str]


class Encode(Stage):
    """Encoding models of every voxel, from each space."""

    name = "encode"
    on_demand = True

    def stores(self, config: Config) -> Iterator[StoreDecl]:
        for subject in config.subjects:
            for space in config.encoded_spaces:
                settings = {
                    "encode": content(config.encode, "encoding"),
                    "seed": config.seed,
                }
                layout, chunks = partial(_encoding, config, subject), content(config.chunks, "encoding")
                upstream = (_responses(config, subject), *_targets(config, subject, space))
                key, rounding = keys.encoding(subject, space), {"device": _device(config)}
                yield StoreDecl(key, layout, settings, upstream=upstream, chunks=chunks, arithmetic=rounding)

    def steps(self, context: Context) -> Iterable[Step]:
        config, subjects, spaces = context.config, context.subjects, context.config.encoded_spaces
        targets = dict.fromkeys(key for s in subjects for space in spaces for key in _targets(config, s, space))
        needs = (*(_responses(config, s) for s in subjects), *targets)
        fills = tuple(keys.encoding(s, space) for s in subjects for space in spaces)
        yield Step("encoding models", "models", needs, fills, partial(_start, context))


def _responses(config: Config, subject: str) -> str:
    """The averaged responses, z-scored within sessions if those of `ridge` are."""
    return keys.responses(subject, averaged_design(config).responses)


def _device(config: Config) -> str:
    return "cuda" if config.execution.encode.gpus else "cpu"


def _targets(config: Config, subject: str, space: str) -> tuple[str, ...]:
    return parts.targets(space, parts.of_pictures(config, subject))


def _encoding(config: Config, subject: str, counts: Counts) -> catalog.Laid:
    return catalog.encoding(config.chunks.voxels), {"voxel": counts.voxels(subject)}


def _start(context: Context) -> Work:
    config = context.config
    responses = {subject: context.ready(_responses(config, subject)) for subject in context.subjects}
    targets = {
        (subject, space): parts.joined(context, _targets(config, subject, space))
        for subject in responses
        for space in config.encoded_spaces
    }
    stores = {pair: context.declare(keys.encoding(*pair), {}) for pair in targets}
    tasks = [key for key, store in stores.items() if store.missing()]
    return Work(tasks, partial(Encoder, config, responses, targets, stores))


class Encoder:
    """Fits and scores every voxel of one subject from one space a task."""

    def __init__(
        self, config: Config, responses: dict[str, Store], targets: dict[Key, Joined], stores: dict[Key, Store]
    ) -> None:
        self.config, self.responses, self.targets, self.stores = config, responses, targets, stores
        self.device = _device(config)
        self.scratch = streaming.Scratch()

    def __call__(self, key: Key) -> None:
        subject, _space = key
        responses, store = self.responses[subject], self.stores[key]
        train = responses.read("split") != "test"
        kernel, cross = self._kernel(key, responses.read("nsd_id"), train)
        system, grid = ridge.Dual(kernel), np.array(sorted(self.config.encode.grid))
        n = system.n
        draw = random.generator(self.config.seed, "encoding held out", subject)
        rows = np.sort(draw.choice(n, min(self.config.encode.stimuli, n), replace=False))
        left_out = list(cross_validation.leave_one_out(system, rows, grid.tolist()))
        hats = list(system.hat_matrices(cross, grid.tolist()))
        valid = responses.read("valid") == 1
        for partition in store.missing():
            voxels = store.spec.region(store.sizes, partition)["voxel"]
            response = responses.read("response", {"voxel": voxels})
            shown, tested = to_device(response[train], self.device), to_device(response[~train], self.device)
            scores = to_host(streaming.validate_block(left_out, rows, [shown], self.scratch))
            known = valid[voxels] & np.isfinite(scores).all(axis=0)
            best = np.where(known, np.nan_to_num(scores, nan=-np.inf).argmax(axis=0), 0)
            block = streaming.predict_block(hats, [shown], [tested], which=best, scratch=self.scratch)
            found = {
                "r2": to_host(block.r2),
                "pearson_r": to_host(block.pearson_r),
                "held_out_r2": np.take_along_axis(scores, best[None], axis=0)[0],
                "alpha": grid[best].astype(np.float32),
            }
            store.write(partition, {name: np.where(known, v, np.float32(np.nan)) for name, v in found.items()})

    def _kernel(self, key: Key, ids: np.ndarray, train: np.ndarray) -> tuple[ridge.Array, ridge.Array]:
        """Mean products of z-scored latents: of training stimuli (n, n), of test with training stimuli (m, n)."""
        targets, columns = self.targets[key], self.config.chunks.columns
        dims = targets.first.dims("latent")[1:]
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
                targets.path,
                found="no latent that differs between training stimuli",
                expected="some that differ",
                action="look at `latent` of this store, and at the photos that it was made from",
            )
        kernel /= latents
        cross /= latents
        return kernel, cross

    def _read(self, columns: Columns, region: dict[str, slice]) -> ridge.Array:
        scratch = streaming.Scratch()
        pieces = [read(f"piece {number}") for number, read in enumerate(columns.requests(region, scratch))]
        return to_device(streaming.as_float32(np.concatenate(pieces)), self.device)
