"""The array door: a dataset that its user has prepared as one Zarr hierarchy."""

from bdflow.datasets.arrays.dataset import KIND, Arrays, ArraysOptions

__all__ = ["KIND", "Arrays", "ArraysOptions"]
