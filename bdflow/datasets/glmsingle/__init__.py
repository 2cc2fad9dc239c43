"""A lab's own data: GLMsingle's output in a BIDS tree (Prince et al. 2022)."""

from bdflow.datasets.glmsingle.options import KIND, GLMsingleSettings
from bdflow.datasets.glmsingle.reader import GLMsingle

__all__ = ["KIND", "GLMsingle", "GLMsingleSettings"]
