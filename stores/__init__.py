"""The array-store layer: what every store looks like, how it is declared, filled, sealed and checked."""

from stores.errors import CorruptChunk, NotReady, StoreError
from stores.provenance import Provenance
from stores.spec import ArraySpec, StoreSpec
from stores.store import Store, text
from stores.study import State, Study

__all__ = [
    "ArraySpec",
    "CorruptChunk",
    "NotReady",
    "Provenance",
    "State",
    "Store",
    "StoreError",
    "StoreSpec",
    "Study",
    "text",
]
