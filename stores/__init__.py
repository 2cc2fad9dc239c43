"""The array-store layer: what every store looks like, how it is declared, filled, sealed and checked."""

from bdflow.stores.errors import CorruptChunk, CorruptMetadata, Damage, NotReady, StoreError, Unexpected
from bdflow.stores.provenance import Provenance
from bdflow.stores.spec import ArraySpec, StoreSpec
from bdflow.stores.store import Store, text
from bdflow.stores.study import State, Study

__all__ = [
    "ArraySpec",
    "CorruptChunk",
    "CorruptMetadata",
    "Damage",
    "NotReady",
    "Provenance",
    "State",
    "Store",
    "StoreError",
    "StoreSpec",
    "Study",
    "Unexpected",
    "text",
]
