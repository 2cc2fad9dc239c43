"""Zarr where a chunk without a file is an error. Zarr itself takes the array's fill value for it, which is 0."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.array import AsyncArray
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import StorePath, WrapperStore

from bdflow.stores.errors import CorruptChunk, NotReady, StoreError
from bdflow.stores.metadata import FILE

if TYPE_CHECKING:
    from bdflow.stores.spec import ZarrArray

METADATA = (FILE, ".zarray", ".zgroup", ".zattrs", ".zmetadata")
"""Names of the files of metadata, of Zarr 3 and Zarr 2; every other one is a chunk."""


class NotStored(Exception):
    """A chunk that a Zarr store does not have."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} is not stored")
        self.key = key


class EveryChunk(WrapperStore[ZarrStore]):
    """A store that raises NotStored for a chunk that is not there. No chunk is asked for more than once."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None and _is_chunk(key):
            raise await self._lost(key)
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        asked = list(key_ranges)
        found = await super().get_partial_values(prototype, asked)
        for buffer, (key, _) in zip(found, asked, strict=True):
            if buffer is None and _is_chunk(key):
                raise await self._lost(key)
        return found

    async def _lost(self, key: str) -> Exception:
        return NotStored(key)


class EveryChunkOfStudy(EveryChunk):
    """A study that raises bdflow's errors: CorruptChunk for a chunk that a sealed store lost, NotReady for one that is
    not there in a store that is not finished. For xarray, which reads later than a study is opened.
    """

    async def _lost(self, key: str) -> Exception:
        array, chunk = divided(key)
        store, _, name = array.rpartition("/")
        metadata = await super().get(f"{store}/{FILE}", default_buffer_prototype())
        attributes = {} if metadata is None else json.loads(metadata.to_bytes()).get("attributes", {})
        if attributes.get("sealed"):
            return CorruptChunk(store, name, chunk, None, "no file", owner="")
        return unwritten(store, name, chunk, "of a store that is not finished")


def every_chunk(array: ZarrArray) -> ZarrArray:
    """An opened Zarr array, that raises NotStored for a chunk that is not there. Nothing is read for it."""
    where = StorePath(EveryChunk(array.store_path.store), array.store_path.path)
    return type(array)(AsyncArray(array.metadata, where))


def divided(key: str) -> tuple[str, tuple[int, ...]]:
    """A chunk's key as Zarr 3 writes it by default, as the path of its array and its place in the grid of chunks."""
    array, _, place = f"{key}/".rpartition("/c/")
    return array, tuple(int(part) for part in place.split("/") if part)


def unwritten(store: str, array: str, chunk: tuple[int, ...], what: str) -> StoreError:
    """That a chunk was read before it was written."""
    return NotReady(
        f"{store}/{array}, chunk {'/'.join(('c', *map(str, chunk)))}",
        found=f"no file, {what}",
        expected="a chunk that was written",
        meaning="There are no values yet; Zarr would give zeros, or empty texts.",
        action="run the pipeline, which fills what is missing",
        remedy="run",
    )


def _is_chunk(key: str) -> bool:
    return key.rpartition("/")[2] not in METADATA
