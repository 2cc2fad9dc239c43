"""Plots of the report as inline SVG: numbers in, text out. Colours come from the page's style and follow its theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

SERIES = 7  # colours of the style sheet


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
    colour: int
    mark: float | None = None


def histograms(
    title: str, rows: Sequence[tuple[str, np.ndarray, int]], known: Sequence[tuple[str, float]] = (), note: str = ""
) -> Plot:
    """Distributions one below the other on one axis: (label, scores, colour); bars of each add up to one.

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
    for i, ((label, _, colour), values, count) in enumerate(zip(rows, finite, counts, strict=True)):
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
            f'<g class="c{colour % SERIES}"><title>{escape(words)}</title>'
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
            f'<circle cx="{across(a):.1f}" cy="{up(b):.1f}" r="2.2"><title>'
            f"{escape(f'{line.label}, {_number(a)}: {b:.3f}')}</title></circle>"
            for a, b in here
        )
        parts.append(
            f'<g class="c{line.colour % SERIES}"><title>{escape(line.label)}</title><path class="line" d="{drawn}"/>'
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


def heat_maps(title: str, maps: Sequence[tuple[str, np.ndarray]], unit: str, note: str = "") -> Plot:
    """Square maps (side, side) side by side in one scale, rows from above; darker is more."""
    finite = np.concatenate([values[np.isfinite(values)].ravel() for _, values in maps])
    if not finite.size:
        return Plot(title, Markup(), "no scores")
    low, high = float(finite.min()), float(finite.max())
    side, gap = 112, 14
    parts = []
    for i, (label, values) in enumerate(maps):
        left, cell = i * (side + gap), side / len(values)
        parts.append(f'<text class="label" x="{left}" y="12">{escape(label)}</text>')
        for row, column in np.ndindex(values.shape):
            value = float(values[row, column])
            share = (value - low) / (high - low) if high > low else 1.0
            opacity = f"{0.06 + 0.94 * share:.2f}" if math.isfinite(value) else "0"
            parts.append(
                f'<rect x="{left + column * cell:.1f}" y="{18 + row * cell:.1f}" width="{cell:.2f}" '
                f'height="{cell:.2f}" fill-opacity="{opacity}"><title>{value:.3f}</title></rect>'
            )
    words = f"{title}: {unit} from {low:.3f} (light) to {high:.3f} (dark) for {', '.join(label for label, _ in maps)}"
    legend_text = f"{unit}: {low:.2f} light, {high:.2f} dark"
    svg = _svg(len(maps) * (side + gap), side + 22, words, f'<g class="heat">{"".join(parts)}</g>')
    return Plot(title, svg, f"{legend_text}. {note}".strip())


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
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(words)}">{body}</svg>'
    )
