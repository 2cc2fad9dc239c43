"""The report as HTML: plain text and numbers in, one page out. Every text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote

ACROSS = 10  # pictures of all subjects that fit side by side


@dataclass(frozen=True)
class Row:
    """A line of a table; `kind` is what it shows: `run`, `average`, `published` or `total`."""

    cells: Sequence[str]
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
class Picture:
    """A picture file beside the page, as shown."""

    file: str
    width: int
    height: int
    alt: str
    label: str
    scores: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Stimulus:
    """One row of the gallery: `subjects` holds the pictures of each subject, none if it did not see it."""

    nsd_id: int
    caption: str
    score: float
    truth: Picture
    subjects: Sequence[Sequence[Picture]]


@dataclass(frozen=True)
class Page:
    title: str
    summary: str
    notice: str
    facts: Sequence[tuple[str, str]]
    scores: Sequence[Table]
    decoding: Sequence[Table]
    subjects: Sequence[str]
    stimuli: Sequence[Stimulus]
    ranked_by: str
    thumbnail: int
    weight: str
    making: Sequence[Table]
    configuration: str
    versions: Sequence[tuple[str, str]]
    fingerprints: Table
    footer: str = ""
    sections: Sequence[tuple[str, str]] = field(
        default=(("scores", "Scores"), ("decoding", "Decoding"), ("gallery", "Gallery"), ("making", "How it was made"))
    )


def number(value: float, digits: int = 3) -> str:
    """A score as it is printed; what is not defined is a dash."""
    return f"{value:.{digits}f}".replace("-", "\u2212") if math.isfinite(value) else "\u2013"


def html(page: Page) -> Iterator[str]:
    """The page in pieces, to be written one after another."""
    body = list(_body(page))
    yield from body
    script = Path(__file__).with_name("report.js").read_text()
    size = (sum(len(piece.encode()) for piece in body) + len(script)) / 2**10
    yield f"""<footer>{escape(page.footer)} This page weighs {size:.0f} KiB without its pictures.</footer>
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
    yield _section("scores", titles, page.scores)
    yield _section("decoding", titles, page.decoding)
    yield from _gallery(page, titles["gallery"])
    versions = ", ".join(f"{name} {version}" for name, version in page.versions)
    yield f"""<section id="making">
<h2>{escape(titles["making"])}</h2>
{"".join(_table(table) for table in page.making)}
<h3>Versions</h3>
<p>{escape(versions)}</p>
<details open>
<summary>Configuration</summary>
<pre>{escape(page.configuration)}</pre>
</details>
<details>
<summary>Fingerprints of the stores</summary>
{_table(page.fingerprints)}
</details>
</section>
</main>
"""


def _section(name: str, titles: dict[str, str], tables: Sequence[Table]) -> str:
    body = "".join(_table(table) for table in tables)
    return f'<section id="{name}">\n<h2>{escape(titles[name])}</h2>\n<div class="tables">{body}</div>\n</section>\n'


def _table(table: Table) -> str:
    def cell(tag: str, at: int, text: str, scope: str = "") -> str:
        kind = "" if at < table.texts else ' class="number"'
        return f"<{tag}{kind}{scope}>{escape(text)}</{tag}>"

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


def _gallery(page: Page, title: str) -> Iterator[str]:
    across = max((len(pictures) for row in page.stimuli for pictures in row.subjects), default=1)
    across = max(1, min(across, ACROSS // max(1, len(page.subjects))))
    style = f"--subjects:{len(page.subjects)};--across:{across};--span:{across}fr;--thumbnail:{page.thumbnail}px"
    heads = "".join(f"<div>{escape(subject)}</div>" for subject in page.subjects)
    yield f"""<section id="gallery">
<h2>{escape(title)}</h2>
<p>Every test stimulus: the photo that was shown and, from the brain of each subject, the guess and what was painted,
with its scores. {escape(page.weight)}</p>
<div class="sort" role="group" aria-label="Order of the gallery">
<button type="button" data-order="best" aria-pressed="true">Best mean {escape(page.ranked_by)} first</button>
<button type="button" data-order="worst" aria-pressed="false">Worst first</button>
<button type="button" data-order="nsd" aria-pressed="false">By nsd_id</button>
</div>
<div class="gallery" style="{style}">
<div class="heads"><div>shown</div>{heads}</div>
<div id="rows">
"""
    for row in page.stimuli:
        yield _stimulus(row, page)
    yield "</div>\n</div>\n</section>\n"


def _stimulus(row: Stimulus, page: Page) -> str:
    score = f"{row.score:.9g}" if math.isfinite(row.score) else ""
    cells = "".join(
        f'<div class="cell" data-subject="{escape(name)}">'
        + ("".join(_figure(picture) for picture in pictures) or '<p class="absent">not shown</p>')
        + "</div>\n"
        for name, pictures in zip(page.subjects, row.subjects, strict=True)
    )
    return f"""<article id="nsd{row.nsd_id:05d}" data-nsd="{row.nsd_id}" data-score="{score}">
<h3><a href="#nsd{row.nsd_id:05d}">nsd {row.nsd_id:05d}</a> <span>{escape(row.caption)}</span>
<small>mean {escape(page.ranked_by)} {number(row.score, 2)}</small></h3>
<div class="truth">{_figure(row.truth)}</div>
{cells}</article>
"""


def _figure(picture: Picture) -> str:
    label = f"<b>{escape(picture.label)}</b>" if picture.label else ""
    scores = "".join(f"<span>{escape(name)} {number(value, 2)}</span>" for name, value in picture.scores)
    return (
        f'<figure><img src="{escape(quote(picture.file))}" width="{picture.width}" height="{picture.height}" '
        f'loading="lazy" decoding="async" alt="{escape(picture.alt)}">'
        f"<figcaption>{label}{scores}</figcaption></figure>\n"
    )
