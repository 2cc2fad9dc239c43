"""CUDA graphs: the kernels of some work, recorded once for each shape and replayed on other values."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

Work = Callable[..., Any]
"""Tensors in, a tensor or a tuple of tensors out; the same kernels for every input of the same shapes."""


class Graph:
    """A CUDA graph of some work: the same kernels on the same memory, launched at once."""

    def __init__(self, work: Callable[[], object]) -> None:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):  # libraries choose their kernels and make their workspaces
                work()
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.out = work()

    def replay(self) -> object:
        """The result of the work on what its memory holds now; the next replay writes over it."""
        self.graph.replay()
        return self.out


class Recordings:
    """Graphs of one piece of work, one for each key; each holds memory of its own until `forget`."""

    def __init__(self) -> None:
        self._made: dict[Hashable, _Recorded] = {}

    def call(self, key: Hashable, work: Work, inputs: Sequence[Tensor]) -> Any:
        """`work(*inputs)`, float32, in memory of its own: recorded when the key is new, else replayed.

        `key` : what the kernels depend on, the shapes of `inputs` among it. The inputs are copied to where the recorded
        kernels read; what `work` reads beside them has to lie where it lay.
        """
        if key not in self._made:
            self._made[key] = _Recorded(work, inputs)
        return self._made[key].replay(inputs)

    def forget(self) -> None:
        """Let go of all graphs and their memory."""
        self._made.clear()


class _Recorded:
    def __init__(self, work: Work, inputs: Sequence[Tensor]) -> None:
        self.inputs = [value.clone() for value in inputs]
        self.graph = Graph(lambda: work(*self.inputs))

    def replay(self, fresh: Sequence[Tensor]) -> object:
        for held, new in zip(self.inputs, fresh, strict=True):
            held.copy_(new)
        return _own(self.graph.replay())


def _own(values: Any) -> Any:
    return tuple(map(_own, values)) if isinstance(values, tuple) else values.float().clone()
