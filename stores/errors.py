"""What can be wrong with a store, in words a user can act on."""


class StoreError(RuntimeError):
    """A store cannot be declared, filled, sealed or read."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotReady(StoreError):
    """A store that is needed is absent, incomplete or stale."""


class CorruptChunk(StoreError):
    """A chunk that does not decode, fails its checksum, or is gone though its partition was written."""

    def __init__(self, store: str, array: str, chunk: tuple[int, ...], partition: int | None, why: str) -> None:
        self.store, self.array, self.chunk, self.partition, self.why = store, array, chunk, partition, why
        key = "/".join(str(i) for i in chunk)
        owner = "declared with the store" if partition is None else f"partition {partition}"
        super().__init__(
            f"{store}/{array}, chunk c/{key} ({owner}): found {why}; expected the bytes that were written.\n"
            f"The file was damaged after it was written; everything computed from it is suspect until it is redone.\n"
            f"What to do: `bdflow verify CONFIG --repair` finds every damaged chunk and computes it again."
        )

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return type(self), (self.store, self.array, self.chunk, self.partition, self.why)
