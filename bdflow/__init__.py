"""Reconstruct seen images from fMRI, as a distributed, array-backed pipeline. Names are imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bdflow.version import __version__

if TYPE_CHECKING:
    from bdflow.api import decode, decode_dataset, load_config, plan, run, score, simulate, status
    from bdflow.cluster.errors import ClusterError, WorkerLost
    from bdflow.config import Config
    from bdflow.errors import BdflowError, InputError
    from bdflow.models.versatile.painter import Painter
    from bdflow.regression.decoder import RidgeDecoder
    from bdflow.stores.errors import CorruptChunk, NotReady, StoreError
    from bdflow.study.opening import open_study

__all__ = [
    "BdflowError",
    "ClusterError",
    "Config",
    "CorruptChunk",
    "InputError",
    "NotReady",
    "Painter",
    "RidgeDecoder",
    "StoreError",
    "WorkerLost",
    "__version__",
    "decode",
    "decode_dataset",
    "load_config",
    "open_study",
    "plan",
    "run",
    "score",
    "simulate",
    "status",
]

_HOMES = {
    "bdflow.api": ("decode", "decode_dataset", "load_config", "plan", "run", "score", "simulate", "status"),
    "bdflow.cluster.errors": ("ClusterError", "WorkerLost"),
    "bdflow.config": ("Config",),
    "bdflow.errors": ("BdflowError", "InputError"),
    "bdflow.models.versatile.painter": ("Painter",),
    "bdflow.regression.decoder": ("RidgeDecoder",),
    "bdflow.stores.errors": ("CorruptChunk", "NotReady", "StoreError"),
    "bdflow.study.opening": ("open_study",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'bdflow' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
