"""Space on the disk for what is still to be written, compared before the work begins."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from zarr.codecs import ZstdCodec

from bdflow.errors import listed
from bdflow.stores.errors import StoreError
from bdflow.stores.paths import RemotePath
from bdflow.stores.store import Store


def to_write(store: Store) -> tuple[int, int]:
    """Bytes that a store's missing partitions will take: of arrays kept as they are, and of compressed ones before
    compression. Strings are not counted.
    """
    share = len(store.missing()) / max(1, store.n_partitions)
    kept = packed = 0
    for spec in store.spec.data:
        array = store.arrays[spec.name]
        if spec.dtype == "str":
            continue
        size = math.ceil(math.prod(array.shape) * array.dtype.itemsize * share)
        if any(isinstance(codec, ZstdCodec) for codec in array.compressors):
            packed += size
        else:
            kept += size
    return kept, packed


def space_warning(stores: Sequence[Store], where: Path | RemotePath) -> str | None:
    """Compare what a work will write with what is free where the study is; of object stores nobody knows.

    Returns
    -------
    str or None : a warning with both numbers if it fits only when it compresses well.

    Raises
    ------
    StoreError : what is not compressed takes more than there is; with both numbers.
    """
    if isinstance(where, RemotePath):
        return None
    sizes = [to_write(store) for store in stores if not store.sealed]
    kept, packed = sum(size[0] for size in sizes), sum(size[1] for size in sizes)
    free = shutil.disk_usage(where).free
    names = listed((store.path for store in stores), 3)
    if kept > free:
        raise StoreError(
            where,
            found=f"{_sized(free)} free",
            expected=f"{_sized(kept)} at least, for what is still missing of {names}",
            meaning="The run would stop half-way for lack of space: nothing of it was begun.",
            action="free some space, or choose another place for `study`",
        )
    if kept + packed > free:
        need = _sized(kept + packed)
        return (
            f"{where}: {_sized(free)} free, and {names} take {need} before compression: space may run out. Then the "
            "run stops, and goes on where it stopped once there is more."
        )
    return None


def _sized(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"
