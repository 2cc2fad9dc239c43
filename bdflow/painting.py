"""How stages get at the networks that paint, one way for predictions of photos and for patterns of regions; and how
blocks of pictures are packed into tasks that fill whole batches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from bdflow.config import Config

if TYPE_CHECKING:
    from bdflow.models.latents import Painter

NOT_PAINTING = {
    "variants", "standardise", "batch_size", "encode_batch_size", "decode_batch_size", "upper_bound", "subject_mean",
}  # fmt: skip
LONGEST = 4  # batches a task, at most, where blocks do not fill batches evenly

Block = TypeVar("Block", bound=Hashable)


def painting_settings(config: Config) -> dict[str, Any]:
    """The settings of `reconstruct` that shape how a picture is painted from latents."""
    return config.reconstruct.model_dump(exclude=NOT_PAINTING)


def painter(config: Config) -> Painter:
    """The networks of the bundle, loaded when they are first needed; what is handed in goes through them at once."""
    from bdflow.models.latents import Painter

    return Painter(**_given(config))


def batch_painter(config: Config, tell: Callable[[str], None]) -> Painter:
    """The same in batches of the configuration's sizes, filled up, so that a picture does not depend on what is painted
    beside it. `tell` is called with what the user should know.
    """
    from bdflow.models.config import BatchSizes
    from bdflow.models.latents import Painter

    wanted = config.reconstruct
    sizes = BatchSizes(
        guess=wanted.batch_size,
        encode=wanted.encode_batch_size or wanted.batch_size,
        denoise=wanted.batch_size,
        decode=wanted.decode_batch_size or wanted.batch_size,
        fixed=True,
    )
    return Painter(**_given(config), sizes=sizes, tell=tell)


def _given(config: Config) -> dict[str, Any]:
    from bdflow.models.config import PaintOptions, Speed

    return {
        "bundle": config.networks.bundle,
        "device": config.networks.device,
        "dtype": config.networks.dtype,
        "seed": config.seed,
        "options": PaintOptions(**painting_settings(config)),
        "speed": Speed(**config.networks.speed.model_dump()),
    }


def packs(blocks: Iterable[tuple[Block, int]], batch: int) -> list[tuple[Block, ...]]:
    """Blocks, each given with its number of pictures, packed into tasks whose pictures fill whole batches.

    Blocks that fill a batch alone stay alone; others are joined until a batch is full, the small ones last, so that
    remainders end up together.
    """
    ordered = sorted(blocks, key=lambda item: -item[1])
    found: list[tuple[Block, ...]] = []
    open_: list[Block] = []
    count = 0
    for block, size in ordered:
        open_.append(block)
        count += size
        if count % batch == 0 or count + size > LONGEST * batch:
            found.append(tuple(open_))
            open_, count = [], 0
    if open_:
        found.append(tuple(open_))
    return found


class Remarks:
    """Collects lines for the user where there is no user: in a worker, until a task's result takes them along."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def taken(self) -> list[str]:
        """The lines since last time."""
        taken, self.lines = self.lines, []
        return taken
