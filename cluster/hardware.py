"""Which GPU and which version of torch a process computes with: two of them may round differently."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class MadeOn:
    """What a process computed a task with.

    Attributes
    ----------
    gpu : models of the GPUs that it uses, as their driver names them; "" for none.
    torch : version of torch, if it has loaded it; else "".
    """

    gpu: str = ""
    torch: str = ""

    def __str__(self) -> str:
        return (self.gpu or "the CPU") + (f" with torch {self.torch}" if self.torch else "")


UNKNOWN = MadeOn()


def made_on() -> MadeOn:
    """What this process computes with now. Nothing is loaded for it: what is not loaded is not used."""
    torch = sys.modules.get("torch")
    names = sorted(_of_torch() | _of_cupy())
    return MadeOn(" and ".join(names), str(torch.__version__) if torch is not None else "")


def _of_torch() -> set[str]:
    """Models of the GPUs on which torch holds memory."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return set()
    cuda = torch.cuda
    return {str(cuda.get_device_name(i)) for i in range(cuda.device_count()) if cuda.memory_reserved(i)}


def _of_cupy() -> set[str]:
    """The model of the GPU that CuPy uses, which is loaded only where one is."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return set()
    runtime = cupy.cuda.runtime
    return {runtime.getDeviceProperties(runtime.getDevice())["name"].decode()}
