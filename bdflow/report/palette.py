"""Colours of plots, checked for colour-blind readers, and what each of them means all over a report.

A colour says whose scores are drawn; dashes and shapes of points say of which pictures, and tell subjects apart without
colour. What is drawn over all subjects has the colour of text; what is no subject (`mean`, `true`) is grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bdflow.study.stage import MEAN, TRUE

LIGHT = ("#002db4", "#a54b00", "#0fa578", "#3c0069", "#a58700", "#2d96d2", "#692d4b", "#4b5ae1")
DARK = ("#4b78a5", "#f06900", "#00e187", "#964be1", "#fff02d", "#00d2ff", "#d21e69", "#6996ff")
"""Of subjects in their order, on light and on dark paper: as far apart as a search found for full, deuteranopic and
protanopic sight (tests/report/test_palette.py).
"""
PAPER = ("#fcfcfa", "#15171a")
INK = ("#1d1f23", "#e7e7e3")
QUIET = ("#62666d", "#9b9fa6")
REGIONS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Of regions in voxel maps: Okabe & Ito 2008, without black."""
SEQUENTIAL = np.array(
    [(68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140), (40, 174, 128), (94, 201, 98),
     (173, 220, 48), (253, 231, 37)], float,
)  # fmt: skip
"""Viridis at nine places from low to high, RGB."""
DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 4")


@dataclass(frozen=True)
class Look:
    """How a line or a distribution is drawn.

    Attributes
    ----------
    colour : class of the style sheet: `c0` to `c7`, `ink` or `quiet`.
    shape : number of its dash and of the shape of its points.
    """

    colour: str
    shape: int = 0

    @property
    def dash(self) -> str:
        """As `stroke-dasharray` has it; empty for an unbroken line."""
        return DASHES[self.shape % len(DASHES)]

    @property
    def on_white(self) -> str:
        """The colour for figures on white paper."""
        named = {"ink": INK[0], "quiet": QUIET[0]}
        return named[self.colour] if self.colour in named else LIGHT[int(self.colour[1:])]


def number(k: int) -> Look:
    """Of the k-th of several: colours repeat after eight, then with another shape."""
    return Look(f"c{k % len(LIGHT)}", k + k // len(LIGHT))


def subject(row: str, people: Sequence[str]) -> Look:
    """Of a subject, of `mean` or `true`, or of the average over all `people`."""
    if row in people:
        return number(list(people).index(row))
    return {MEAN: Look("quiet", 1), TRUE: Look("quiet", 2)}.get(row, Look("ink"))


def pictures(kind: int) -> Look:
    """Of the kind-th kind of pictures, over all subjects."""
    return Look("ink", kind)


def ramp(share: np.ndarray) -> np.ndarray:
    """(n,) shares of the way from low to high, cut to 0 and 1, as colours (n, 3) from 0 to 255."""
    place = np.clip(share, 0, 1) * (len(SEQUENTIAL) - 1)
    return np.stack([np.interp(place, range(len(SEQUENTIAL)), channel) for channel in SEQUENTIAL.T], axis=1)


def css() -> str:
    """The colours as a style sheet has them, in light and dark."""

    def properties(which: int, colours: Sequence[str]) -> str:
        found = {"paper": PAPER[which], "ink": INK[which], "quiet": QUIET[which]}
        found |= {f"c{k}": colour for k, colour in enumerate(colours)}
        return " ".join(f"--{name}: {colour};" for name, colour in found.items())

    names = ["ink", "quiet", *(f"c{k}" for k in range(len(LIGHT)))]
    rules = "\n".join(f".{name} {{ color: var(--{name}); }}" for name in names)
    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {properties(1, DARK)} }} }}"
    return f":root {{ {properties(0, LIGHT)} }}\n{dark}\n{rules}\n"
