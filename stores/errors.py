"""What can be wrong with a store, in words a user can act on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from bdflow.errors import BdflowError


class StoreError(BdflowError, RuntimeError):
    """A store cannot be declared, filled, sealed or read."""


class NotReady(StoreError):
    """A store that is needed is absent, incomplete or stale."""


class Damage(StoreError):
    """Something in a study is not what was written.

    Attributes
    ----------
    store : where, a path below the study ("" is its root).
    file_is_foreign : whether it is something that bdflow did not write, and so neither mends nor deletes.
    """

    store: str
    file_is_foreign = False


class CorruptMetadata(Damage):
    """A file of metadata that is gone, or holds something else than was written."""

    def __init__(self, store: str, file: str, why: str) -> None:
        self.store, self.file, self.why = store, file, why
        super().__init__(
            where=f"{store}/{file}".lstrip("/"),
            found=why,
            expected="the metadata that was written",
            meaning="The file was damaged after it was written; what it says of the arrays cannot be trusted.",
            action="verify the study with repair: it writes damaged metadata again from its copy.",
            remedy="repair",
        )


class Unexpected(Damage):
    """Something in a study that is no part of it, or stands where another kind of thing belongs."""

    file_is_foreign = True

    def __init__(self, store: str, file: str, why: str) -> None:
        self.store, self.file, self.why = store, file, why
        super().__init__(
            where=f"{store}/{file}".lstrip("/"),
            found=why,
            expected="only what bdflow wrote",
            meaning="It is no part of the study, or hides a part of it.",
            action="move it away; bdflow deletes nothing that it did not write. "
            "Then verify the study with repair, if something lacks.",
            remedy="repair",
        )


class CorruptChunk(Damage):
    """A chunk that does not decode, fails its checksum, or is gone though its partition was written.

    Attributes
    ----------
    store, array, chunk : where it is. partition : whose it is; None if it was declared with the store, or if `owner`,
        which says so in words, is empty: then nobody looked.
    """

    def __init__(
        self,
        store: str,
        array: str,
        chunk: tuple[int, ...],
        partition: int | None,
        why: str,
        *,
        owner: str | None = None,
    ) -> None:
        self.store, self.array, self.chunk, self.partition, self.why = store, array, chunk, partition, why
        if owner is None:
            owner = "declared with the store" if partition is None else f"partition {partition}"
        super().__init__(
            where=f"{store}/{array}, chunk {'/'.join(('c', *map(str, chunk)))}" + (f" ({owner})" if owner else ""),
            found=why,
            expected="the bytes that were written",
            meaning="The file was damaged after it was written; "
            "everything computed from it is suspect until it is redone.",
            action="verify the study with repair: it finds every damaged chunk and computes it again.",
            remedy="repair",
        )


@contextmanager
def disk_full_as_error(path: object) -> Iterator[None]:
    """Say it clearly when the disk is full; what was being written has left no trace."""
    try:
        yield
    except (IsADirectoryError, NotADirectoryError) as err:
        raise StoreError(
            err.filename2 or err.filename or path,
            found="a folder where a file belongs" if isinstance(err, IsADirectoryError) else "a file in the way",
            expected="a place that a file can be written to",
            meaning="bdflow deletes nothing that it did not write.",
            action="move it away, then run the same again",
        ) from err
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreError(
            path,
            found="no space left on the device while writing",
            expected="space for the partition",
            meaning="What is written stays valid; the partition that did not fit is not marked.",
            action="free some space (the status of the study shows the size of every store), then run the same again: "
            "it goes on where it stopped",
            remedy="status",
        ) from err
