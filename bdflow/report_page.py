"""The report as HTML: plain text and numbers in, one page out. Every text is escaped here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bdflow.report_plots import Plot, legend

Cell = str | tuple[str, str]
GALLERY = "gallery.js"


@dataclass(frozen=True)
class Row:
    """A line of a table; `kind` is what it shows: `run`, `average`, `published` or `total`. A cell may have a second,
    smaller line."""

    cells: Sequence[Cell]
    kind: str = "run"


@dataclass(frozen=True)
class Table:
    """A table in groups of rows; the first `texts` columns hold words, the others numbers."""

    caption: str
    columns: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Row]]]
    note: str = ""
    texts: int = 1


@dataclass(frozen=True)
class Sheet:
    """Pictures in a table: a title for each column; rows of a name and the pictures' files, beside the page."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    note: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Page:
    """All that the page says. `gallery` is data for its script; `files` lie beside the page, in `tables`."""

    title: str
    summary: str
    notice: str
    facts: Sequence[tuple[str, str]]
    scores: Sequence[Table]
    comparisons: Sequence[Table]
    distributions: Sequence[Plot]
    series: Sequence[str]
    decoding: Sequence[Table]
    decoding_plots: Sequence[Plot]
    decoding_series: Sequence[str]
    regions: Sequence[Sheet]
    gallery: Mapping[str, Any]
    weight: str
    making: Sequence[Table]
    configuration: str
    versions: Sequence[tuple[str, str]]
    fingerprints: Table
    files: Sequence[str] = ()
    footer: str = ""
    sections: Sequence[tuple[str, str]] = field(
        default=(
            ("scores", "Scores"),
            ("distributions", "Distributions"),
            ("decoding", "Decoding"),
            ("regions", "Regions"),
            ("making", "How it was made"),
            ("gallery", "Gallery"),
        )
    )


def number(value: float, digits: int = 3) -> str:
    """A score as it is printed; what is not defined is a dash."""
    return f"{value:.{digits}f}".replace("-", "\u2212") if math.isfinite(value) else "\u2013"


def gallery_script(page: Page) -> str:
    """The gallery's data as a script, which a page opened from a file may load (JSON it may not).

    No text in it can end the script or be taken for markup.
    """
    data = json.dumps(page.gallery, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    return f"const GALLERY = {data};\n"


def html(page: Page) -> Iterator[str]:
    """The page in pieces, to be written one after another."""
    body = list(_body(page))
    yield from body
    script = Path(__file__).with_name("report.js").read_text()
    size = (sum(len(piece.encode()) for piece in body) + len(script.encode())) / 2**10
    data = len(gallery_script(page)) / 2**10
    weight = f"This page weighs {size:.0f} KiB, the gallery's data {data:.0f} KiB more."
    yield f"""<footer>{escape(page.footer)} {weight}</footer>
<script src="{GALLERY}"></script>
<script>
{script}</script>
</body>
</html>
"""


def _body(page: Page) -> Iterator[str]:
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in page.sections)
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in page.facts)
    notice = f'<p class="notice" role="note">{escape(page.notice)}</p>' if page.notice else ""
    yield f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="bdflow report">
<title>{escape(page.title)}</title>
<style>
{Path(__file__).with_name("report.css").read_text()}</style>
</head>
<body>
<header class="top">
<h1>{escape(page.title)}</h1>
<p class="summary">{escape(page.summary)}</p>
{notice}
<dl class="facts">{facts}</dl>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
"""
    titles = dict(page.sections)
    first, *others = page.scores
    files = ", ".join(f'<a href="tables/{quote(name)}" download>{escape(name)}</a>' for name in page.files)
    yield f"""<section id="scores">
<h2>{escape(titles["scores"])}</h2>
<div class="wide">{_table(first)}{"".join(_table(table) for table in others)}</div>
<div class="wide">{"".join(_folded(table) for table in page.comparisons)}</div>
<p>As files: {files}.</p>
</section>
"""
    yield f"""<section id="distributions">
<h2>{escape(titles["distributions"])}</h2>
<p>Scores of single images: the median is a stroke, the quartiles the thick line below it. First every subject in the
first variant, then the other variants of the average subject.</p>
{_plots(page.distributions)}
</section>
"""
    yield f"""<section id="decoding">
<h2>{escape(titles["decoding"])}</h2>
<div class="tables">{"".join(_table(table) for table in page.decoding)}</div>
{legend(page.decoding_series)}
{_plots(page.decoding_plots)}
</section>
"""
    yield f"""<section id="regions">
<h2>{escape(titles["regions"])}</h2>
{"".join(_sheet(sheet) for sheet in page.regions)}
</section>
"""
    versions = ", ".join(f"{name} {version}" for name, version in page.versions)
    yield f"""<section id="making">
<h2>{escape(titles["making"])}</h2>
{"".join(_table(table) for table in page.making)}
<h3>Versions</h3>
<p>{escape(versions)}</p>
<details>
<summary>Configuration</summary>
<pre>{escape(page.configuration)}</pre>
</details>
<details>
<summary>Fingerprints of the stores</summary>
{_table(page.fingerprints)}
</details>
</section>
"""
    yield _gallery(page, titles["gallery"])
    yield "</main>\n"


def _plots(plots: Sequence[Plot]) -> str:
    figures = "".join(
        f"<figure><figcaption>{escape(plot.title)}</figcaption>{plot.svg}"
        + (f'<p class="note">{escape(plot.note)}</p>' if plot.note else "")
        + "</figure>\n"
        for plot in plots
    )
    return f'<div class="plots">{figures}</div>'


def _folded(table: Table) -> str:
    return f"<details>\n<summary>{escape(table.caption)}</summary>\n{_table(table)}</details>\n"


def _table(table: Table) -> str:
    def cell(tag: str, at: int, content: Cell, scope: str = "") -> str:
        kind = "" if at < table.texts else ' class="number"'
        text, small = (content, "") if isinstance(content, str) else content
        more = f"<small>{escape(small)}</small>" if small else ""
        return f"<{tag}{kind}{scope}>{escape(text)}{more}</{tag}>"

    head = "".join(cell("th", at, name, ' scope="col"') for at, name in enumerate(table.columns))
    bodies = []
    for label, rows in table.groups:
        lines = [
            f'<tr class="{row.kind}">'
            + cell("th", 0, row.cells[0], ' scope="row"')
            + "".join(cell("td", at, text) for at, text in enumerate(row.cells[1:], 1))
            + "</tr>\n"
            for row in rows
        ]
        span = f'<th colspan="{len(table.columns)}" scope="rowgroup">{escape(label)}</th>'
        bodies.append("<tbody>\n" + (f'<tr class="group">{span}</tr>\n' if label else "") + "".join(lines) + "</tbody>")
    note = f'<p class="note">{escape(table.note)}</p>\n' if table.note else ""
    return (
        f'<div>\n<div class="table" tabindex="0" role="group" aria-label="{escape(table.caption)}"><table>\n'
        f"<caption>{escape(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        + "\n".join(bodies)
        + f"\n</table></div>\n{note}</div>\n"
    )


def _sheet(sheet: Sheet) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("", *sheet.columns))
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(
            f'<td><img src="{quote(file)}" alt="{escape(f"{name}, {column}")}" loading="lazy"></td>'
            for file, column in zip(files, sheet.columns, strict=True)
        )
        + "</tr>\n"
        for name, files in sheet.rows
    )
    kind = "sheet wide-sheet" if sheet.wide else "sheet"
    return (
        f'<div class="table {kind}" tabindex="0" role="group" aria-label="{escape(sheet.title)}"><table>\n'
        f"<caption>{escape(sheet.title)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n"
        f'</table></div>\n<p class="note">{escape(sheet.note)}</p>\n'
    )


def _gallery(page: Page, title: str) -> str:
    """Its controls and an empty list, which the script fills as the reader scrolls."""

    def select(name: str, label: str) -> str:
        return f'<label>{escape(label)} <select id="{name}"></select></label>'

    orders = (("best", "best first"), ("median", "median first"), ("worst", "worst first"), ("nsd", "by nsd_id"))
    buttons = "".join(f'<button type="button" data-order="{key}">{text}</button>' for key, text in orders)
    return f"""<section id="gallery">
<h2>{escape(title)}</h2>
<p>Every test stimulus: the photo that was shown, the guess, and what was painted from the brain of each subject.
Choose a picture for all its scores. {escape(page.weight)}</p>
<noscript><p class="notice">The gallery needs JavaScript; its pictures lie in <code>images</code>.</p></noscript>
<form class="controls" id="controls">
<fieldset><legend>Order</legend><div class="segments" id="order">{buttons}</div>
{select("metric", "by")} {select("by-subject", "of")} {select("by-variant", "in")}</fieldset>
<fieldset><legend>Find</legend>
<label class="search">caption or nsd_id
<input type="search" id="find" placeholder="a red ball" autocomplete="off"></label>
</fieldset>
<fieldset><legend>Subjects</legend><div class="chips" id="subjects"></div></fieldset>
<fieldset><legend>Pictures</legend><div class="chips" id="variants"></div></fieldset>
<output id="count"></output>
</form>
<div class="gallery" id="grid">
<div class="heads" id="heads"></div>
<div id="rows"></div>
<div id="more"></div>
</div>
<dialog id="details"></dialog>
</section>
"""
