"""torchvision beside any build of torch: the judges need its architectures, not its compiled operators."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch

UNPACKED = Path(sys.prefix) / "torchvision"  # `make install` puts it there, out of the sight of transformers
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def import_torchvision() -> ModuleType:
    """The package, importable from then on in this process; workers in other processes do not see it.

    Its compiled part fits one build of torch only. Where it does not load, torchvision imports once the operators it
    registers are declared; the judges call none of them.
    """
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    sys.path.append(str(UNPACKED))
    try:
        try:
            module = importlib.import_module("torchvision")
        except RuntimeError:
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]
            library = torch.library.Library("torchvision", "DEF")
            for schema in SCHEMAS:
                library.define(schema)
            module = importlib.import_module("torchvision")
            module.bdflow_library = library  # operators live as long as this does
        importlib.import_module("torchvision.models")
        return module
    finally:
        sys.path.remove(str(UNPACKED))
