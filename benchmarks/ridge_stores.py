"""Synthetic responses and targets in real stores, of any size, for the benchmarks of ridge."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from bdflow.regression import streaming
from bdflow.stores import Provenance, Store, Study, text
from bdflow.study import catalog, keys
from bdflow.study.keys import SHARED
from bdflow.study.parts import Joined
from bdflow.study.target_reader import Columns, ahead


@dataclass(frozen=True)
class Scale:
    """Sizes of one benchmark: training stimuli and voxels of each subject, test stimuli, target spaces."""

    train: int
    test: int
    voxels: dict[str, int]
    spaces: dict[str, tuple[int, ...]]
    stimuli: int
    columns: int

    @property
    def latents(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.spaces.values())


PAPER_VOXELS = {"subj01": 15724, "subj02": 14278, "subj05": 13039, "subj07": 12682}
SCALES = {
    "tiny": Scale(
        300, 60, {"subj01": 700, "subj02": 600},
        {"vdvae": (2048,), "clip_vision": (9, 128), "clip_text": (5, 128)}, 64, 512,
    ),
    "small": Scale(
        2500, 300, {"subj01": 4000, "subj02": 3500},
        {"vdvae": (24576,), "clip_vision": (32, 768), "clip_text": (16, 768)}, 512, 4096,
    ),
    "full": Scale(
        8859, 982, PAPER_VOXELS, {"vdvae": (91168,), "clip_vision": (257, 768), "clip_text": (77, 768)}, 512, 4096
    ),
}  # fmt: skip


POOL = 2**24


@cache
def pool_of(dtype: np.dtype, size: int) -> np.ndarray:
    """So many Gaussian numbers."""
    return np.random.default_rng(0).standard_normal(size, dtype=np.float32).astype(dtype)


class Writer:
    """Fills one partition of a synthetic store a task, from a pool of Gaussian numbers."""

    def __init__(self, stores: dict[str, Store]) -> None:
        self.stores = stores

    def __call__(self, task: tuple[str, int]) -> None:
        path, partition = task
        store = self.stores[path]
        rng = np.random.default_rng([partition, *path.encode()])
        region = store.spec.region(store.sizes, partition)
        data = {}
        for spec in store.spec.data:
            shape = [
                (region[d].stop - region[d].start) if d in region else store.sizes[d] for d in store.dims(spec.name)
            ]
            dtype = store.arrays[spec.name].dtype
            if spec.name in ("voxel_mean", "voxel_scale", "valid"):
                data[spec.name] = np.full(shape, spec.name != "voxel_mean", dtype)
                continue
            pool = pool_of(dtype, POOL)
            values = np.empty(shape, dtype)
            for row in values.reshape(shape[0], -1):
                at = int(rng.integers(0, pool.size - min(row.size, pool.size - 1)))
                row[:] = np.resize(pool[at : at + row.size], row.size)
            data[spec.name] = values
        if "response" in data:
            test = store.read("split") == "test"
            data["voxel_mean"][:] = data["response"][~test].mean(axis=0)
            data["voxel_scale"][:] = data["response"][~test].std(axis=0, ddof=1)
        store.write(partition, data)


def build(study: Study, scale: Scale, known: dict[str, Provenance]) -> dict[str, Store]:
    """Declare responses of every subject and targets of every space."""
    subjects, test = list(scale.voxels), np.arange(scale.test)
    own = {s: scale.test + i * scale.train + np.arange(scale.train) for i, s in enumerate(subjects)}
    cut = {SHARED: (test, text(["test"] * scale.test))}
    cut |= {subject: (ids, text(["train"] * scale.train)) for subject, ids in own.items()}
    split = text(["test"] * scale.test + ["train"] * scale.train)
    stores = {}
    for subject, voxels in scale.voxels.items():
        path = f"responses/{subject}/averaged"
        sizes = {"stimulus_id": scale.test + scale.train, "voxel": voxels}
        given = {
            "repeats": np.full(sizes["stimulus_id"], 3),
            "trial": np.arange(sizes["stimulus_id"]),
            "stimulus_id": np.concatenate([test, own[subject]]),
            "split": split,
        }
        stores[path] = study.declare(path, catalog.responses(1024, "percent signal change"), sizes, given, known[path])
    for space, shape in scale.spaces.items():
        spec = catalog.targets(shape, "f2", scale.stimuli, scale.columns)
        for part, (ids, of) in cut.items():
            path, sizes = keys.targets(space, part), {"stimulus_id": len(ids), **catalog.space_sizes(shape)}
            stores[path] = study.declare(path, spec, sizes, {"stimulus_id": ids, "split": of}, known[path])
    return stores


class Reader:
    """Reads one block of columns of a space's targets a task, as the stage does, and does nothing with it."""

    def __init__(self, targets: dict[str, Joined], columns: int) -> None:
        self.targets, self.columns, self.scratch = targets, columns, streaming.Scratch()

    def __call__(self, task: tuple[str, int]) -> int:
        space, partition = task
        store = self.targets[space]
        cut = catalog.column_blocks(store.first.arrays["latent"].shape[1:], self.columns)
        ((dim, length),) = cut.items()
        region = {dim: slice(partition * length, min((partition + 1) * length, store.sizes[dim]))}
        rows = Columns(store, np.arange(store.sizes["stimulus_id"]), 2048)
        return sum(piece.nbytes for piece in ahead(rows.requests(region, self.scratch)))
