"""The report of `bdflow score`: one page that holds all it shows, and its numbers as CSV."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bdflow.errors import counted
from bdflow.metrics.statistics import INTERVAL
from bdflow.report import palette
from bdflow.report.page import Cell, Row, Table, number, style, templates
from bdflow.report.plots import Plot, histograms
from bdflow.report.scores import ranks
from bdflow.report.writer import thumbnail
from bdflow.scoring.opening import Matched, Set
from bdflow.scoring.result import Scores, SetScores, arrowed, lower_is_better
from bdflow.user_paths import new_folder
from bdflow.version import __version__

SHOWN = 3
PIXELS = 192
CAPTIONED = 3  # metrics below a picture
ONLY = "all pictures"  # what the only set is called


@dataclass(frozen=True)
class Pair:
    """A photo and its picture, as `data:` addresses, with what stands below them."""

    stimulus: str
    photo: str
    picture: str
    scores: Sequence[str]


@dataclass(frozen=True)
class ScorePage:
    """All that the page says."""

    title: str
    summary: str
    notices: Sequence[str]
    ranked_by: str
    first_of_several: str
    sets: Sequence[tuple[str, Sequence[tuple[str, Sequence[Pair]]]]]
    table: Table
    plots: Sequence[Plot]
    files: Sequence[str]
    facts: Sequence[tuple[str, str]]
    footer: str


def write(scores: Scores, matched: Matched, folder: Path) -> Path:
    """Write `index.html`, `scores.csv` and `table.csv` into a new folder, which appears when all is written.

    Raises InputError for something at `folder`, or pictures that cannot be read any more.
    """
    files = scores.files()
    with new_folder(folder) as partial:
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
        (partial / "index.html").write_text(html(_page(scores, matched, list(files))), encoding="utf-8")
    return folder / "index.html"


def html(page: ScorePage) -> str:
    """The page in the style of a study's report."""
    return templates().get_template("score.html.j2").render(page=page, css=style())


def _page(scores: Scores, matched: Matched, files: Sequence[str]) -> ScorePage:
    stimuli = {stimulus for one in scores.sets.values() for stimulus in one.stimuli}
    sets = f", in {counted(len(scores.sets), 'set')}" if len(scores.sets) > 1 else ""
    several = max(one.pictures for one in scores.sets.values()) > 1
    shown = [(one.name or ONLY, _strips(one, scores.sets[one.name], matched)) for one in matched.sets if scores.metrics]
    metrics = [arrowed(metric) for metric in scores.metrics]
    return ScorePage(
        title=f"Scores of {Path(matched.places[1]).name or matched.places[1]}",
        summary=f"{counted(len(stimuli), 'stimulus', 'stimuli')}{sets}, scored by {_words(metrics)}.",
        notices=scores.remarks(),
        ranked_by=_words(metrics),
        first_of_several=" Of several pictures the first is shown." if several else "",
        sets=shown,
        table=_table(scores),
        plots=[_histogram(metric, scores.sets) for metric in scores.metrics],
        files=files,
        facts=list(scores.protocol.items()),
        footer=f"Made by bdflow {__version__}. Intervals: {INTERVAL}.",
    )


def _words(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _table(scores: Scores) -> Table:
    rows = []
    for name, one in scores.sets.items():
        cells: list[Cell] = [name or ONLY]
        for metric in scores.metrics:
            mean, low, high, n = one.estimates[metric]
            fewer = f", n = {n}" if n < len(one.stimuli) else ""
            cells.append((number(mean), f"{number(low)} to {number(high)}{fewer}"))
        rows.append(Row([*cells, str(len(one.stimuli)), str(one.pictures)]))
    columns = ["pictures", *map(arrowed, scores.metrics), "stimuli", "pictures of each"]
    note = (
        "Means over stimuli, with 95% intervals below. ↑: more is better, ↓: less is better; chance in two-way "
        "identification is 0.5."
    )
    return Table("Means", columns, [("", rows)], note)


def _histogram(metric: str, sets: Mapping[str, SetScores]) -> Plot:
    apart = len(sets) <= len(palette.LIGHT)  # more sets than colours: one colour for all
    rows = [(name or ONLY, one.values[metric], palette.number(i * apart)) for i, (name, one) in enumerate(sets.items())]
    return histograms(arrowed(metric), rows)


def _strips(one: Set, scores: SetScores, matched: Matched) -> list[tuple[str, list[Pair]]]:
    """The best, the median and the worst of a set; every stimulus once."""
    order = ordered(scores)
    n = len(order)
    k = min(SHOWN, max(1, n // 3))
    middle = (n - k) // 2
    found = [("Best", order[:k])]
    if n >= 3:
        found.append(("Median", order[middle : middle + k]))
    if n >= 2:
        found.append(("Worst", order[-k:][::-1]))
    return [(title, [_pair(row, one, scores, matched) for row in rows]) for title, rows in found]


def ordered(scores: SetScores) -> list[int]:
    """Stimuli by the mean of their ranks over the metrics that they have, best first."""
    signed = np.array([values * (-1 if lower_is_better(m) else 1) for m, values in scores.values.items()])
    rank = ranks(signed)
    known = np.isfinite(rank)
    mean = np.where(known, rank, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return [int(row) for row in np.argsort(np.where(known.any(axis=0), mean, np.inf), kind="stable")]


def _pair(row: int, one: Set, scores: SetScores, matched: Matched) -> Pair:
    ((photo,),) = matched.photos.read([one.photos[row]])
    (pictures,) = one.images.read([one.rows[row]])
    below = [f"{metric} {number(values[row])}" for metric, values in list(scores.values.items())[:CAPTIONED]]
    return Pair(scores.stimuli[row], _address(photo), _address(pictures[0]), below)


def _address(image: np.ndarray) -> str:
    return "data:image/webp;base64," + base64.b64encode(thumbnail(image, PIXELS)).decode("ascii")
