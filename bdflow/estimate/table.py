"""A plan as a table and lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bdflow.estimate.plan import GIB, Plan, StagePlan

if TYPE_CHECKING:
    from rich.table import Table


def duration(hours: float) -> str:
    """Hours, minutes or seconds, two digits."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"


def span(least: float, most: float) -> str:
    """A range of hours: `5 - 20 min`."""
    low, high = duration(least), duration(most)
    if low == high:
        return low
    return f"{low.split()[0]} - {high}" if low.split()[1] == high.split()[1] else f"{low} - {high}"


def _gpu_hours(stages: Sequence[StagePlan]) -> str:
    """From best to worst: a stage has the same GPUs for as long as it runs."""
    if not any(stage.gpu_hours for stage in stages):
        return ""
    gpus = [stage.gpu_hours / stage.hours if stage.hours else 0.0 for stage in stages]
    least = sum(n * stage.least_hours for n, stage in zip(gpus, stages, strict=True))
    most = sum(n * stage.most_hours for n, stage in zip(gpus, stages, strict=True))
    return f"{least:.2f} - {most:.2f}"


def table(plan: Plan) -> Table:
    """For rich: a row a stage, and the sum."""
    from rich.table import Table

    found = Table(box=None, pad_edge=False)
    right = ("time", "GPU-hours", "disk, GB", "memory, GiB", "of a GPU, GiB")
    for name in ("stage", "work", "at", "where", *right):
        found.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for stage in plan.stages:
        found.add_row(
            stage.stage,
            stage.work,
            stage.rate,
            stage.where,
            span(stage.least_hours, stage.most_hours),
            _gpu_hours([stage]),
            f"{stage.disk / 1e9:,.2f}",
            f"{stage.memory / GIB:.1f}",
            f"{stage.gpu_memory / GIB:.1f}" if stage.gpu_memory else "",
        )
    found.add_row("all", "", "", "", span(*plan.range), _gpu_hours(plan.stages), f"{plan.disk / 1e9:,.2f}", "", "")
    return found


def lines(plan: Plan) -> Iterator[str]:
    """What the table was reckoned with, and what is short."""
    sizes = plan.sizes
    yield ""
    yield f"sizes     {sizes.source}: {sizes.stimuli:,} photos, " + ", ".join(
        f"{name} {of.train:,} + {of.test:,} stimuli and {of.voxels:,} voxels" for name, of in sizes.subjects.items()
    )
    yield f"networks  {plan.networks.source}"
    if any(stage.gpu_hours for stage in plan.stages):
        yield f"GPU       {plan.figures.gpu} ({plan.figures.why_gpu})"
    yield "Times are from best to worst: every rate as high, or as low, as its factor allows."
    yield "Memory is that of one worker; disk is before compression, and without the report and regions."
    found = list(plan.figures.rates.values())
    if plan.figures.image is not None:
        found.insert(0, plan.figures.image)
    for kind, chosen in (("measured", True), ("assumed", False)):
        rates = [rate for rate in found if rate.measured is chosen]
        if rates:
            yield f"{kind}:"
        for rate in rates:
            yield f"  {rate.value:9.3g} {rate.unit}, within a factor of {rate.within:g} ({rate.source})"
    for note in plan.figures.notes:
        yield f"note: {note}"
    for warning in plan.warnings:
        yield f"short: {warning}"
