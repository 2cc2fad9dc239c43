"""The best, the median and the worst test stimulus, with each system's picture, to stand below the title."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bdflow.errors import counted
from bdflow.report.page import Example, Shown, number
from bdflow.report.scores import Scores, ranks

CAPTIONED = 3  # metrics below a picture


def ranked_kinds(scores: Scores) -> tuple[str, ...]:
    """The kinds of pictures that rank the stimuli: the one that stands for each painter."""
    return scores.systems or scores.variants[:1]


def words(scores: Scores) -> str:
    """By what the stimuli are ranked; empty where no metric has scores."""
    if not scores.known:
        return ""
    known, kinds = scores.known, ranked_kinds(scores)
    metrics = f"{', '.join(known[:-1])} and {known[-1]}" if len(known) > 1 else known[0]
    over = f"their ranks in {metrics}" if len(known) > 1 else f"their rank in {metrics}"
    of = " and ".join(kinds) if len(kinds) < 3 else f"{len(kinds)} systems"
    return f"mean of {over}, of {of} of {counted(len(scores.people), 'subject')}"


def ordered(scores: Scores) -> list[int]:
    """Positions of the stimuli, best first: by the mean of their ranks over systems, metrics and subjects; those
    without any score are left out.
    """
    signs = np.array([-1.0 if scores.lower_is_better(metric) else 1.0 for metric in scores.metrics])
    kept = np.array([metric in scores.known for metric in scores.metrics])
    found = [
        ranks((scores.of(subject)[scores.variants.index(kind)] * signs[:, None])[kept])
        for subject in scores.people
        for kind in ranked_kinds(scores)
    ]
    rank = np.concatenate(found)
    known = np.isfinite(rank)
    count = known.sum(axis=0)
    mean = np.where(known, rank, 0).sum(axis=0) / np.maximum(count, 1)
    order = np.argsort(np.where(count > 0, mean, np.inf), kind="stable")
    return [int(i) for i in order if count[i]]


def examples(
    scores: Scores,
    captions: Sequence[Sequence[str]],
    guess: str,
    file: Callable[[str, int, str], str],
) -> list[Example]:
    """Best, median and worst, as many as there are; the first ones where nothing is scored.

    Parameters
    ----------
    captions : of each stimulus.
    guess : kind of picture that stands beside that of a painter alone, or empty.
    file : address of a picture by subject, position of the stimulus and kind; both empty for the photo.
    """
    order = ordered(scores)
    if not order:
        chosen = [("Not scored", i) for i in range(min(3, len(scores.stimulus_id)))]
    else:
        places = {"Best": 0, "Median": (len(order) - 1) // 2, "Worst": len(order) - 1}
        wanted = ["Best", "Median", "Worst"] if len(order) > 2 else ["Best", "Worst"][: len(order)]
        chosen = [(title, order[places[title]]) for title in wanted]
    kinds = list(ranked_kinds(scores))
    kinds = [*([guess] if guess and len(kinds) == 1 else []), *kinds]
    found = []
    for title, i in chosen:
        subject = _first_with(scores, i)
        pictures = [Shown("shown", file("", i, ""), (), subject, "")]
        pictures += [
            Shown(kind, file(subject, i, kind), _scores(scores, subject, kind, i), subject, kind) for kind in kinds
        ]
        caption = captions[i][0] if captions[i] else "no caption"
        found.append(Example(title, str(scores.stimulus_id[i]), caption, i, pictures))
    return found


def _first_with(scores: Scores, i: int) -> str:
    """The first subject with a score of this stimulus, or the first of all."""
    there = (s for s in scores.people if np.isfinite(scores.of(s)[..., i]).any())
    return next(there, scores.people[0])


def _scores(scores: Scores, subject: str, kind: str, i: int) -> list[str]:
    if kind not in scores.variants:
        return []
    value = scores.of(subject)[scores.variants.index(kind), :, i]
    return [f"{metric} {number(value[scores.metrics.index(metric)])}" for metric in scores.known[:CAPTIONED]]
