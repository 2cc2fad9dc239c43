"""What scoring found: every score, means with intervals, tables for the screen and for files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO

import numpy as np

from bdflow.errors import InputError, listed
from bdflow.metrics import published
from bdflow.metrics.statistics import Estimate


@dataclass(frozen=True)
class SetScores:
    """Scores of one set of pictures: one subject, variant or method.

    Attributes
    ----------
    stimuli : their ids, or positions, in the order of the values.
    pictures : how many of each stimulus were scored.
    values : metric, with its protocol in the name -> (n,) float64, not a number where a stimulus has no score.
    estimates : metric -> mean over stimuli, with its 95% bootstrap interval.
    """

    stimuli: tuple[str, ...]
    pictures: int
    values: Mapping[str, np.ndarray]
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True)
class Scores:
    """What `bdflow.score` found.

    Attributes
    ----------
    sets : by name; "" is the name of the only one.
    missing : metric -> why it could not be computed.
    notices : what a reader of the scores should know.
    protocol : what was done, as names and values.
    """

    sets: Mapping[str, SetScores]
    missing: Mapping[str, str]
    notices: tuple[str, ...] = ()
    protocol: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def only(self) -> SetScores:
        """The scores of the only set. Raises InputError where there are several."""
        if len(self.sets) == 1:
            return next(iter(self.sets.values()))
        raise InputError(
            "scores",
            found=f"{len(self.sets)} sets of pictures: {listed(self.sets)}",
            expected="one",
            action="choose one: scores.sets[NAME]",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Stimuli of the only set."""
        return self.only.stimuli

    @property
    def values(self) -> Mapping[str, np.ndarray]:
        """Scores of the only set, by metric."""
        return self.only.values

    @property
    def estimates(self) -> Mapping[str, Estimate]:
        """Means and intervals of the only set, by metric."""
        return self.only.estimates

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that have scores."""
        return tuple(next(iter(self.sets.values())).values)

    def to_dict(self) -> dict[str, dict[str, float | int | str]]:
        """Of the only set, for each metric `mean`, `low`, `high` and `n`; or `missing`, why there is none."""
        found: dict[str, dict[str, float | int | str]] = {}
        for metric, interval in self.estimates.items():
            found[metric] = {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}
        return found | {metric: {"missing": why} for metric, why in self.missing.items()}

    def table(self) -> str:
        """For the screen: of one set a line for each metric, of several a line for each set; then what is missing."""
        rows = self._metric_rows() if len(self.sets) == 1 else self._set_rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for row in rows:
            cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
        return "\n".join([*lines, *self.remarks()])

    def remarks(self) -> list[str]:
        """Lines below the table: metrics that are missing, in one line, and notices."""
        found = []
        if self.missing:
            short = "the weights of their judges are not here"
            why = dict.fromkeys(
                short if reason.startswith("no weights") else reason for reason in self.missing.values()
            )
            found.append(f"missing: {', '.join(self.missing)}: {'; '.join(why)} (docs/score.md says which files)")
        return [*found, *(f"note: {notice}" for notice in self.notices)]

    def _metric_rows(self) -> list[list[str]]:
        rows = [["metric", "mean", "95% interval", "n"]]
        for metric, e in self.estimates.items():
            rows.append([arrowed(metric), f"{e.mean:.3f}", f"[{e.low:.3f}, {e.high:.3f}]", f"{e.n}"])
        return rows

    def _set_rows(self) -> list[list[str]]:
        rows = [["pictures", *(arrowed(metric) for metric in self.metrics), "n"]]
        for name, one in self.sets.items():
            means = [f"{one.estimates[metric].mean:.3f}" for metric in self.metrics]
            rows.append([name, *means, str(len(one.stimuli))])
        return rows

    # --- files ------------------------------------------------------------------------------------------------

    def files(self) -> dict[str, str]:
        """`scores.csv`, a row a stimulus, and `table.csv`, a row a set and metric; all numbers with nine digits."""
        every = ([name, stimulus, *(one.values[metric][i] for metric in self.metrics)]
                 for name, one in self.sets.items() for i, stimulus in enumerate(one.stimuli))  # fmt: skip
        table: list[Sequence[object]] = []
        for name, one in self.sets.items():
            for metric in self.metrics:
                table.append([name, metric, *one.estimates[metric], one.pictures, ""])
            table += [[name, metric, "", "", "", 0, one.pictures, why] for metric, why in self.missing.items()]
        columns = ["set", "metric", "mean", "low", "high", "n", "pictures", "missing"]
        return {
            "scores.csv": as_csv(["set", "stimulus_id", *self.metrics], every),
            "table.csv": as_csv(columns, table),
        }


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a distance."""
    return published.base(metric) in published.LOWER_IS_BETTER


def arrowed(metric: str) -> str:
    """A metric with the direction in which it is better."""
    return f"{metric} {'↓' if lower_is_better(metric) else '↑'}"


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[object]], digits: int = 9) -> str:
    """CSV text; floats with so many digits, what is not a number empty."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(item, digits) for item in row])
    return out.getvalue()


def _cell(item: object, digits: int) -> object:
    if isinstance(item, float | np.floating):
        return f"{item:.{digits}g}" if np.isfinite(item) else ""
    return item
