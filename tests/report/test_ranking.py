"""The best, the median and the worst stimulus below the title: who ranks them, and what stands below a picture."""

import numpy as np

from bdflow.report import ranking
from bdflow.report.scores import Scores


def made(value: np.ndarray, metrics: tuple[str, ...], missing: tuple[str, ...], variants: tuple[str, ...]) -> Scores:
    subjects = tuple(f"subj{s:02d}" for s in range(1, len(value) + 1))
    return Scores(subjects, variants, metrics, missing, np.array([f"{i:05d}" for i in range(value.shape[-1])]), value)


def address(subject: str, number: int, kind: str) -> str:
    return f"{subject}/{number}/{kind}"


def test_stimuli_are_ranked_over_systems_metrics_and_subjects() -> None:
    rng = np.random.default_rng(0)
    value = rng.normal(size=(2, 3, 3, 9))
    value[:, :, 2] = np.nan
    value[0, :, :, 4] = np.nan  # one subject did not see it
    value[1, :, 0, 4], value[1, :, 1, 4] = 99, -99  # the other has the best picture of all; less is better in SwAV
    scores = made(value, ("PixCorr", "SwAV", "CLIP"), ("", "", "no weights"), ("a/full", "a/prior", "b/full"))
    order = ranking.ordered(scores)
    signed = np.stack([value[:, [0, 2], 0], -value[:, [0, 2], 1]])
    rank = [
        [1 + (row > row[i]).sum() for row in signed.reshape(-1, 9) if np.isfinite(row[i])] for i in range(9)
    ]  # of each stimulus, in all that score it
    assert order[0] == 4
    assert order == sorted(range(9), key=lambda i: (np.mean(rank[i]), i))
    found = ranking.examples(scores, [["a cat", "cats"]] * 8 + [[]], "a/guess", address)
    assert [(one.title, one.number) for one in found] == [("Best", 4), ("Median", order[4]), ("Worst", order[-1])]
    assert [picture.kind for picture in found[0].pictures] == ["", "a/full", "b/full"], "two systems, no guess"
    assert found[0].pictures[1].file == "subj02/4/a/full", "of the first subject that saw it"
    assert found[0].pictures[1].scores == ["PixCorr 99.000", "SwAV \u221299.000"]
    assert found[1].pictures[0].file == f"/{order[4]}/"
    assert ranking.words(scores) == "mean of their ranks in PixCorr and SwAV, of a/full and b/full of 2 subjects"


def test_one_painter_shows_its_guess_beside_its_picture() -> None:
    scores = made(np.arange(2.0).reshape(1, 1, 1, 2), ("PixCorr",), ("",), ("full",))
    found = ranking.examples(scores, [[], []], "guess", address)
    assert [(one.title, one.stimulus, one.caption) for one in found] == [
        ("Best", "00001", "no caption"), ("Worst", "00000", "no caption")
    ]  # fmt: skip
    assert [picture.label for picture in found[0].pictures] == ["shown", "guess", "full"]


def test_without_any_score_the_first_are_shown_and_nothing_is_called_best() -> None:
    scores = made(np.full((1, 1, 1, 5), np.nan), ("CLIP",), ("no weights",), ("full",))
    found = ranking.examples(scores, [["a"]] * 5, "", address)
    assert [(one.title, one.number) for one in found] == [("Not scored", 0), ("Not scored", 1), ("Not scored", 2)]
    assert ranking.words(scores) == ""
