"""Splits by cluster: test stimuli that are unlike all training stimuli, in the latents of a target space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

import numpy as np
from threadpoolctl import threadpool_limits

from bdflow import random
from bdflow.errors import InputError, counted
from bdflow.study import catalog, parts
from bdflow.study.keys import SHARED
from bdflow.study.parts import Joined
from bdflow.study.stage import Context

DIMENSIONS = 256
_BLOCK = 1024  # stimuli read at once


def clusters(context: Context, space: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of all stimuli of a study by k-means on the latents of a space, z-scored over stimuli.

    Latents of more than `DIMENSIONS` values are first projected at random to so many, which keeps distances nearly as
    they are (Johnson & Lindenstrauss 1984). Draws are keyed by the study's seed.

    Returns
    -------
    ids (stimulus,) str, and the cluster (stimulus,) of each, from 0, the largest first.

    Raises
    ------
    InputError : a space that there is not, or fewer stimuli than clusters. NotReady : latents that are not made yet.
    """
    from sklearn.cluster import KMeans

    config = context.config
    if space not in config.spaces:
        raise InputError(
            f"space {space!r}",
            found="no such space",
            expected="one of " + ", ".join(config.spaces),
            action="name a space of the configuration",
        )
    latents = parts.joined(context, parts.targets(space, (SHARED, *config.subjects)))
    ids = latents.read("stimulus_id")
    if not 2 <= number <= len(ids):
        raise InputError(
            "clusters",
            found=f"{number} clusters of {counted(len(ids), 'stimulus', 'stimuli')}",
            expected=f"2 to {len(ids)}",
            action="choose another number of clusters",
        )
    seed = int(random.generator(config.seed, "clusters", space, number).integers(2**31))
    with threadpool_limits(1):  # so that sums, and with them ties, do not depend on the number of cores
        found = KMeans(number, n_init=10, random_state=seed).fit_predict(_projected(latents, config.seed, space))
    order = np.argsort(-np.bincount(found, minlength=number), kind="stable")
    rank = np.argsort(order)
    return ids, rank[found]


def _projected(latents: Joined, seed: int, space: str) -> np.ndarray:
    """(stimulus, at most DIMENSIONS) float64: z-scored latents, projected block by block of their columns."""
    n, dims = latents.sizes["stimulus_id"], latents.first.dims("latent")[1:]
    length = int(np.prod([latents.sizes[dim] for dim in dims]))
    ((dim, step),) = catalog.column_blocks([latents.sizes[name] for name in dims], 4096).items()
    total = np.zeros((n, min(length, DIMENSIONS)))
    for start in range(0, latents.sizes[dim], step):
        region = {dim: slice(start, min(start + step, latents.sizes[dim]))}
        rows = [slice(at, min(at + _BLOCK, n)) for at in range(0, n, _BLOCK)]
        block = np.concatenate(
            [latents.read("latent", {"stimulus_id": of, **region}).reshape(of.stop - of.start, -1) for of in rows]
        ).astype(np.float64)
        scale = block.std(axis=0)
        block = (block - block.mean(axis=0)) / np.where(scale > 0, scale, np.inf)
        if length <= DIMENSIONS:
            flat = start * (length // latents.sizes[dim])
            total[:, flat : flat + block.shape[1]] = block
        else:
            total += block @ random.normal((block.shape[1], DIMENSIONS), seed, "projection", space, start)
    return total


class AboutSplit(TypedDict):
    """How a split by cluster was made; `sizes` of the clusters, the largest first."""

    space: str
    clusters: int
    test_cluster: int
    sizes: list[int]
    seed: int


class ClusterSplit(TypedDict):
    """A split by cluster, as its file has it: ids of stimuli for testing and training."""

    about: AboutSplit
    test: list[str]
    train: list[str]


def split_by_cluster(context: Context, space: str, number: int, test: int) -> ClusterSplit:
    """A split whose test stimuli are one cluster, as the JSON that `dataset.split` reads: `test`, `train`, `about`.

    Raises
    ------
    InputError : as `clusters`; a cluster that there is not.
    """
    if not 0 <= test < number:
        raise InputError(
            "test cluster",
            found=str(test),
            expected=f"0 to {number - 1}",
            action="choose one of the clusters, counted from 0, the largest first",
        )
    ids, found = clusters(context, space, number)
    sizes = np.bincount(found, minlength=number).tolist()
    seed = context.config.seed
    about: AboutSplit = {"space": space, "clusters": number, "test_cluster": test, "sizes": sizes, "seed": seed}
    return {"about": about, "test": ids[found == test].tolist(), "train": ids[found != test].tolist()}


def write_split(context: Context, path: Path, space: str, number: int, test: int) -> ClusterSplit:
    """Write a split by cluster to a new file; return it. Raises InputError, also where there is a file already."""
    if path.exists():
        raise InputError(
            path, found="a file", expected="nothing there", action="choose another name, or move the file away"
        )
    split = split_by_cluster(context, space, number, test)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(split, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
    return split
