"""The painters of a configuration, and how blocks of pictures are packed into tasks that fill whole batches."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from bdflow.config import ROLES, Config
from bdflow.models.diffusion.kernels import PARTS, TORCH, chosen
from bdflow.models.painters import Painting, painter_kind
from bdflow.study import keys
from bdflow.study.stage import TRUE, Context

log = logging.getLogger(__name__)
LONGEST = 4  # batches a task, at most, where blocks do not fill batches evenly

Kernels = Mapping[str, str] | None
Block = TypeVar("Block", bound=Hashable)


def roles_of(config: Config, painter: str, variant: str) -> dict[str, str]:
    """The space of each role that a variant uses, in the order guess, vision, text."""
    used = painter_kind(config, painter).variants[variant]
    return {role: getattr(config.painters[painter], role) for role in ROLES if role in used}


def spaces_of(config: Config, painter: str) -> dict[str, str]:
    """The space of each role that any variant of a painter uses."""
    found: dict[str, str] = {}
    for variant in config.painters[painter].variants:
        found |= roles_of(config, painter, variant)
    return {role: found[role] for role in ROLES if role in found}


def pictures_of(config: Config) -> list[tuple[str, str]]:
    """(painter, variant) of every kind of picture, those that are painted and controls."""
    return [
        (painter, variant)
        for painter, settings in config.painters.items()
        for variant in (*settings.variants, *settings.controls)
    ]


def shown_of(config: Config, painter: str, subject: str) -> tuple[str, ...]:
    """The kinds of pictures of a subject: variants and, where its latents are predicted, controls."""
    settings = config.painters[painter]
    return settings.variants if subject == TRUE else (*settings.variants, *settings.controls)


def picture_label(config: Config, painter: str, variant: str) -> str:
    """Name of a kind of picture: its variant and, where there are several painters, the painter."""
    return variant if len(config.painters) == 1 else f"{painter}/{variant}"


def painting(config: Config, painter: str, kernels: Kernels = None) -> Painting:
    """A painter; what is handed in goes through its networks at once. `kernels` : see `recorded_kernels`."""
    kind = painter_kind(config, painter)
    kind.kernels = kernels
    return kind.load(batched=False)


def batch_painting(config: Config, painter: str, kernels: Kernels = None) -> Painting:
    """A painter in batches of the configuration's sizes, filled up, so that a picture does not depend on what is
    painted beside it. `kernels` : see `kernels_of`.
    """
    kind = painter_kind(config, painter)
    kind.kernels = kernels
    return kind.load()


def attention_keys(config: Config, painter: str) -> tuple[str, ...]:
    """The store that says which kernels a painter computes attention with, if they are chosen by measuring them."""
    return (keys.attention(painter),) if painter_kind(config, painter).measures else ()


def kernels_of(context: Context, painter: str) -> Kernels:
    """The kernels of attention that were measured to be fastest, by part; None where none are measured."""
    for key in attention_keys(context.config, painter):
        store = context.ready(key)
        times = store.read("milliseconds")
        names, parts = store.read("kernel"), store.read("part")
        return chosen(
            {str(part): dict(zip(map(str, names), row, strict=True)) for part, row in zip(parts, times, strict=True)}
        )
    return None


def recorded_kernels(context: Context, painter: str) -> Kernels:
    """As `kernels_of` for pictures outside the study, such as those of a service. Where the study has not measured yet,
    torch chooses, which is said: kernels that each process measured for itself might differ.
    """
    if all(context.is_sealed(key) for key in attention_keys(context.config, painter)):
        return kernels_of(context, painter)
    log.warning(
        "%s: `networks.speed.attention` is `measured`, and this study has not measured it for these settings; torch "
        "chooses the kernels. A run of `reconstruct` measures.",
        painter,
    )
    return dict.fromkeys(PARTS, TORCH)


def guess_settings(config: Config, painter: str) -> dict[str, object]:
    """The settings that shape a painter's guesses."""
    settings, kind = config.painters[painter], painter_kind(config, painter)
    return {"kind": settings.kind, "version": kind.version, "options": dict(settings.options), "seed": config.seed}


def guess_inputs(config: Config, painter: str) -> Mapping[str, str]:
    """Digests of the weights that a painter's guesses are decoded with."""
    return painter_kind(config, painter).guess_inputs()


def variant_inputs(config: Config, painter: str, variant: str) -> Mapping[str, str]:
    """Digests of the weights that pictures of a variant are painted with."""
    return painter_kind(config, painter).variant_inputs(variant)


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
