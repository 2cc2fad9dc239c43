"""Brain-Diffuser as a distributed, array-backed pipeline."""

__version__ = "0.1.0"
