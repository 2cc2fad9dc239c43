"""Plots of the report as inline SVG: numbers in, text out. Colours come from the page's style and follow its theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

from bdflow.report import palette
from bdflow.report.palette import Look

WIDE = 480  # units of an SVG
POINTS = (
    "M{0:.1f} {1:.1f}m-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0Z",
    "M{0:.1f} {1:.1f}m-2.7 -2.7h5.4v5.4h-5.4Z",
    "M{0:.1f} {1:.1f}m0 -3.8l3.6 6.2h-7.2Z",
    "M{0:.1f} {1:.1f}m0 -4l3.4 4l-3.4 4l-3.4 -4Z",
    "M{0:.1f} {1:.1f}m0 3.8l3.6 -6.2h-7.2Z",
    "M{0:.1f} {1:.1f}m-1.2 -3.6h2.4v2.4h2.4v2.4h-2.4v2.4h-2.4v-2.4h-2.4v-2.4h2.4Z",
)
"""Outlines of points at (x, y): circle, square, triangle, diamond, triangle on its tip, cross."""


@dataclass(frozen=True)
class Plot:
    """A drawing with its caption, and what it shows in words. `svg` is markup whose texts are escaped."""

    title: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One line of a plot: points, not a number where there is none; `mark` is the x of a point to point out."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look
    mark: float | None = None


def histograms(
    title: str, rows: Sequence[tuple[str, np.ndarray, Look]], known: Sequence[tuple[str, float]] = (), note: str = ""
) -> Plot:
    """Distributions one below the other on one axis: (label, scores, look); bars of each add up to one.

    The median is a stroke, the quartiles a thick line; `known` are published means, drawn across.
    """
    left = max(132, 7 * max((len(label) for label, _, _ in rows), default=0) + 12)  # pixels of a letter
    width, height, gap = 300, 30, 6
    finite = [values[np.isfinite(values)] for _, values, _ in rows]
    everything = np.concatenate([*finite, np.array([value for _, value in known])])
    if not everything.size:
        return Plot(title, Markup(), "no scores")
    low, high, ticks = axis(float(everything.min()), float(everything.max()))
    edges = np.linspace(low, high, 41)
    counts = [np.histogram(values, edges)[0] / max(1, len(values)) for values in finite]
    top = max((count.max() for count in counts), default=1) or 1

    def at(value: float) -> float:
        return left + width * (value - low) / (high - low)

    bottom = len(rows) * (height + gap)
    parts = [_grid(ticks, at, bottom)]
    for i, ((label, _, look), values, count) in enumerate(zip(rows, finite, counts, strict=True)):
        base = (i + 1) * (height + gap) - gap
        parts.append(f'<text class="label" x="{left - 8}" y="{base - 8}" text-anchor="end">{escape(label)}</text>')
        if not values.size:
            continue
        steps = [f"M{at(low):.1f} {base}"]
        for edge, following, share in zip(edges, edges[1:], count, strict=False):
            y = base - (height - 8) * share / top
            steps.append(f"L{at(edge):.1f} {y:.1f}L{at(following):.1f} {y:.1f}")
        lower, middle, upper = np.percentile(values, [25, 50, 75])
        words = f"{label}: median {middle:.3f}, quartiles {lower:.3f} and {upper:.3f}, {len(values)} images"
        parts.append(
            f'<g class="{look.colour}"><title>{escape(words)}</title>'
            f'<path class="area" d="{"".join(steps)}L{at(high):.1f} {base}Z"/>'
            f'<path class="box" d="M{at(lower):.1f} {base + 2}H{at(upper):.1f}"/>'
            f'<path class="median" d="M{at(middle):.1f} {base - height + 8}V{base + 4}"/></g>'
        )
    for label, value in known:
        parts.append(
            f"<g><title>{escape(f'{label}: {value:.3f}')}</title>"
            f'<path class="known" d="M{at(value):.1f} 0V{bottom}"/></g>'
        )
    words = f"{title}: distributions of {', '.join(label for label, _, _ in rows)}"
    return Plot(title, _svg(left + width + 16, bottom + 22, words, "".join(parts)), note)


def lines(
    title: str,
    series: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    ticks: Sequence[tuple[float, str]] = (),
    logarithmic: bool = False,
    points: bool = True,
    note: str = "",
    size: tuple[int, int] = (430, 200),
) -> Plot:
    """Lines over a common axis; `ticks` name places on x, otherwise they are numbers."""
    left, right, above, below = 46, 20, 8, 40
    width, height = size[0] - left - right, size[1] - above - below
    x = np.concatenate([np.asarray(line.x, float) for line in series])
    y = np.concatenate([np.asarray(line.y, float) for line in series])
    known = np.isfinite(y) & np.isfinite(x)
    if not known.any():
        return Plot(title, Markup(), "no scores")
    scale = np.log10 if logarithmic else np.asarray
    first, last = float(scale(x[known].min())), float(scale(x[known].max()))
    last = last if last > first else first + 1
    low, high, y_ticks = axis(float(y[known].min()), float(y[known].max()))

    def across(value: float) -> float:
        return left + width * (float(scale(value)) - first) / (last - first)

    def up(value: float) -> float:
        return above + height * (1 - (value - low) / (high - low))

    parts = []
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{left} {up(tick):.1f}H{left + width}"/>')
        parts.append(f'<text x="{left - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    if not ticks:
        if logarithmic:
            places = [10.0**power for power in range(math.floor(first), math.ceil(last) + 1)]
        else:
            places = axis(first, last)[2]
        ticks = [(place, _number(place)) for place in places if first <= float(scale(place)) <= last]
    for place, name in ticks:
        parts.append(f'<path class="grid" d="M{across(place):.1f} {above}v{height + 4}"/>')
        parts.append(
            f'<text x="{across(place):.1f}" y="{above + height + 16}" text-anchor="middle">{escape(name)}</text>'
        )
    for line in series:
        here = [(a, b) for a, b in zip(line.x, line.y, strict=True) if math.isfinite(b)]
        if not here:
            continue
        drawn = "".join(f"{'L' if i else 'M'}{across(a):.1f} {up(b):.1f}" for i, (a, b) in enumerate(here))
        dots = "".join(
            f'<path class="point" d="{_point(line.look, across(a), up(b))}"><title>'
            f"{escape(f'{line.label}, {_number(a)}: {b:.3f}')}</title></path>"
            for a, b in here
        )
        parts.append(
            f'<g class="{line.look.colour}"><title>{escape(line.label)}</title>{_stroke(line.look, drawn)}'
            f"{dots if points else ''}"
        )
        if line.mark is not None and first <= float(scale(line.mark)) <= last:
            parts.append(f'<path class="mark" d="M{across(line.mark):.1f} {above}v{height}"/>')
        parts.append("</g>")
    middle = 'text-anchor="middle"'
    parts.append(f'<text x="{left + width / 2}" y="{size[1] - 6}" {middle}>{escape(x_label)}</text>')
    parts.append(f'<text x="{-(above + height / 2)}" y="11" {middle} transform="rotate(-90)">{escape(y_label)}</text>')
    words = f"{title}: {y_label} over {x_label} of {', '.join(line.label for line in series)}"
    return Plot(title, _svg(*size, words, "".join(parts)), note)


def sample(look: Look) -> Markup:
    """A line with a point, for a legend."""
    body = f'<g class="{look.colour}">{_stroke(look, "M1 7H33")}<path class="point" d="{_point(look, 17, 7)}"/></g>'
    return Markup(f'<svg class="sample" viewBox="0 0 34 14" width="34" height="14" aria-hidden="true">{body}</svg>')


def _stroke(look: Look, drawn: str) -> str:
    dash = f' stroke-dasharray="{look.dash}"' if look.dash else ""
    return f'<path class="line"{dash} d="{drawn}"/>'


def _point(look: Look, x: float, y: float) -> str:
    return POINTS[look.shape % len(POINTS)].format(x, y)


ABREAST = 5  # maps


def heat_maps(title: str, maps: Sequence[tuple[str, np.ndarray]], unit: str, note: str = "") -> Plot:
    """Square maps (side, side) side by side in one scale, rows from above, with a bar of colours."""
    finite = np.concatenate([values[np.isfinite(values)].ravel() for _, values in maps])
    if not finite.size:
        return Plot(title, Markup(), "no scores")
    low, high, ticks = axis(float(finite.min()), float(finite.max()))
    side, gap, above = 104, 14, 18
    parts = []
    for i, (label, values) in enumerate(maps):
        left, top = (i % ABREAST) * (side + gap), (i // ABREAST) * (side + above + gap)
        cell = side / len(values)
        parts.append(f'<text class="label" x="{left}" y="{top + 12}">{escape(label)}</text>')
        for row, column in np.ndindex(values.shape):
            value = float(values[row, column])
            if math.isfinite(value):
                place = f'x="{left + column * cell:.1f}" y="{top + above + row * cell:.1f}"'
                parts.append(
                    f'<rect {place} width="{cell + 0.1:.2f}" height="{cell + 0.1:.2f}" '
                    f'fill="{_colour((value - low) / (high - low))}"><title>{value:.3f}</title></rect>'
                )
    lines_of_maps = -(-len(maps) // ABREAST)
    left = min(len(maps), ABREAST) * (side + gap)
    height = lines_of_maps * (side + above + gap) - gap - above
    parts.append(_upright_bar(left, above, min(height, 2 * side), ticks))
    words = f"{title}: {unit} from {finite.min():.3f} to {finite.max():.3f} for {', '.join(label for label, _ in maps)}"
    svg = _svg(left + 60, height + above + 6, words, "".join(parts))
    return Plot(title, svg, f"{unit}: {finite.min():.2f} to {finite.max():.2f}. {note}".strip())


STEPS = 32  # colours in a bar


def _colour(share: float) -> str:
    red, green, blue = palette.ramp(np.array([share]))[0].round().astype(int).tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def _upright_bar(left: float, top: float, height: float, ticks: Sequence[float]) -> str:
    step = height / STEPS
    parts = [
        f'<rect x="{left}" y="{top + height - (i + 1) * step:.2f}" width="12" height="{step + 0.2:.2f}" '
        f'fill="{_colour((i + 0.5) / STEPS)}"/>'
        for i in range(STEPS)
    ]
    for tick in ticks:
        y = top + height * (1 - (tick - ticks[0]) / (ticks[-1] - ticks[0]))
        parts.append(f'<path class="tick" d="M{left + 12} {y:.1f}h4"/>')
        parts.append(f'<text class="label" x="{left + 19}" y="{y + 4:.1f}">{_number(tick)}</text>')
    return "".join(parts)


def colour_bar(high: float, words: str) -> Markup:
    """A bar of colours from 0 to `high` with its numbers, to lie below a map; `words` say what it measures."""
    width, left = 240, 10
    ticks = [tick for tick in axis(0.0, high or 1.0)[2] if tick <= (high or 1.0) * 1.0001]
    parts = [
        f'<rect x="{left + i * width / STEPS:.2f}" y="0" width="{width / STEPS + 0.2:.2f}" height="12" '
        f'fill="{_colour((i + 0.5) / STEPS)}"/>'
        for i in range(STEPS)
    ]
    for tick in ticks:
        x = left + width * tick / (high or 1.0)
        parts.append(f'<path class="tick" d="M{x:.1f} 12v4"/>')
        parts.append(f'<text class="label" x="{x:.1f}" y="28" text-anchor="middle">{_number(tick)}</text>')
    return _svg(width + 2 * left + 20, 32, f"{words}: colours from 0 to {high:.3g}", "".join(parts))


def axis(low: float, high: float, n: int = 5) -> tuple[float, float, list[float]]:
    """Round limits around [low, high] and about `n` round ticks between them."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return start * step, stop * step, [i * step for i in range(start, stop + 1)]


def _grid(ticks: Sequence[float], place: Callable[[float], float], bottom: float) -> str:
    return "".join(
        f'<path class="grid" d="M{place(tick):.1f} 0V{bottom + 4}"/>'
        f'<text x="{place(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{_number(tick)}</text>'
        for tick in ticks
    )


def _number(value: float) -> str:
    if abs(value) >= 10_000 and float(f"{value:.3g}") == value:
        return f"{value / 1000:g}k"
    return f"{value:.4g}".replace("-", "\u2212")


def _svg(width: float, height: float, words: str, body: str) -> Markup:
    """`wide` plots are scrolled on a phone, where their labels would be too small."""
    of_its_own = ' class="wide"' if width > WIDE else ""
    return Markup(
        f'<svg{of_its_own} viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(words)}">{body}</svg>'
    )
