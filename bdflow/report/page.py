"""What the report says, as typed data, and the page made of it. All HTML is in templates/, which escape every text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from bdflow.report import palette
from bdflow.report.plots import Plot

Cell = str | tuple[str, str]
GALLERY = "gallery.js"
FOLDER = Path(__file__).parent


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


@dataclass(frozen=True)
class VoxelMap:
    """Slices of one map: (subject, file) each, with a bar of colours, or the colour (#rrggbb) of each region."""

    title: str
    pictures: Sequence[tuple[str, str]]
    bar: str = ""
    regions: Sequence[tuple[str, str]] = ()
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """A picture below the title: what it is, its file, lines of scores, and how the gallery calls it."""

    label: str
    file: str
    scores: Sequence[str]
    subject: str
    kind: str


@dataclass(frozen=True)
class Example:
    """A test stimulus below the title: its photo first, then what was painted of it."""

    title: str
    stimulus: str
    caption: str
    number: int
    pictures: Sequence[Shown]


@dataclass(frozen=True)
class Page:
    """All that the page says. `gallery` is data for its script; `files` lie beside the page, in `tables`; `missing` are
    metrics without scores, and why; series are the names in a legend and their samples.
    """

    title: str
    summary: str
    notice: str
    facts: Sequence[tuple[str, str]]
    scores: Sequence[Table]
    comparisons: Sequence[Table]
    distributions: Sequence[Plot]
    decoding: Sequence[Table]
    decoding_plots: Sequence[Plot]
    decoding_series: Sequence[tuple[str, Markup]]
    regions: Sequence[Sheet]
    gallery: Mapping[str, Any]
    weight: str
    making: Sequence[Table]
    configuration: str
    versions: Sequence[tuple[str, str]]
    fingerprints: Table
    encoding: Sequence[Table] = ()
    similarities: Sequence[Plot] = ()
    similarity_series: Sequence[tuple[str, Markup]] = ()
    examples: Sequence[Example] = ()
    ranked_by: str = ""
    missing: Sequence[tuple[str, str]] = ()
    verdict: str = ""
    maps: Sequence[VoxelMap] = ()
    maps_note: str = ""
    files: Sequence[str] = ()
    footer: str = ""
    sections: Sequence[tuple[str, str]] = field(
        default=(
            ("gallery", "Gallery"),
            ("scores", "Scores"),
            ("distributions", "Distributions"),
            ("decoding", "Decoding"),
            ("regions", "Regions"),
            ("making", "How it was made"),
        )
    )


def number(value: float, digits: int = 3) -> str:
    """A score as it is printed; what is not defined is a dash."""
    return f"{value:.{digits}f}".replace("-", "\u2212") if math.isfinite(value) else "\u2013"


def gallery_script(page: Page) -> str:
    """The gallery's data as a script, which a page opened from a file may load (JSON it may not).

    No text in it can end the script or be taken for markup.
    """
    return f"const GALLERY = {htmlsafe_json_dumps(page.gallery, separators=(',', ':'), allow_nan=False)};\n"


def html(page: Page, gallery_bytes: int) -> Iterator[str]:
    """The page in pieces, to be written one after another; `gallery_bytes` is the size of the gallery's data.

    Raises jinja2.UndefinedError if a template uses what `page` does not have.
    """
    found = templates()
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    size = len(script.encode())
    for piece in found.get_template("page.html.j2").generate(page=page, css=style()):
        size += len(piece.encode())
        yield piece
    yield found.get_template("end.html.j2").render(
        footer=page.footer,
        page_kib=size / 2**10,
        data_kib=gallery_bytes / 2**10,
        gallery=GALLERY,
        script=Markup(script),
    )


def style() -> Markup:
    """The style sheet, with the colours of `palette`."""
    return Markup(palette.css() + (FOLDER / "report.css").read_text(encoding="utf-8"))


def templates() -> Environment:
    """The templates of pages; every text that is put in is escaped."""
    return Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
