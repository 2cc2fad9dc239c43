"""Regions of a store of betas, read without the language of regions."""

import numpy as np

from bdflow.stores import Store


def voxels_in(betas: Store, collection: str, *names: str) -> np.ndarray:
    """(voxels,) bool: in any of these regions of a collection, or in any of it."""
    wanted = [f"{collection}/{name}" for name in names]
    found = np.zeros(betas.sizes["voxel"], bool)
    for region, inside in zip(betas.read("region").tolist(), betas.read("roi"), strict=True):
        if region in wanted or (not names and region.partition("/")[0] == collection):
            found |= inside == 1
    return found
