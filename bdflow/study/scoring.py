"""The metrics on any pictures: arrays, or folders of one's own files. Nothing of a study is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from bdflow.config import PUBLISHED_METRICS
from bdflow.errors import InputError, counted, listed, os_errors_named
from bdflow.metrics import image_metrics
from bdflow.metrics.statistics import Estimate, estimate
from bdflow.models.judges.weights import (
    AMONG_RECONSTRUCTIONS,
    DISTANCES,
    JUDGE_OF,
    JUDGES,
    distractors_of,
    find_weights,
)
from bdflow.user_paths import local_path

SUFFIXES = (".png", ".jpg", ".jpeg")
BATCH = 16
PIXELS = ("PixCorr", "SSIM")
Ssim = Literal["paper", "2d"]
Distractors = Literal["photos", "reconstructions"]
Pictures = np.ndarray | str | Path


def full_name(metric: str, ssim: str, distractors: str) -> str:
    """A metric with its protocol where that is not the paper's, or where there are several to keep apart."""
    if metric == "SSIM":
        return f"SSIM ({ssim})"
    if metric in PIXELS or metric in DISTANCES or metric in AMONG_RECONSTRUCTIONS or distractors == "photos":
        return metric
    return f"{metric} (among reconstructions)"


@dataclass(frozen=True)
class Scores:
    """What `score` found.

    Attributes
    ----------
    names : of the pictures, in the order of the values: stems of files, or positions.
    values : metric, with its protocol in the name -> (n,) float64, not a number where a picture has no score.
    estimates : metric -> mean over pictures, with its 95% bootstrap interval.
    missing : metric -> why it could not be computed.
    """

    names: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    estimates: Mapping[str, Estimate]
    missing: Mapping[str, str]

    def to_dict(self) -> dict[str, dict[str, float | int | str]]:
        """For each metric `mean`, `low`, `high` and `n`; or `missing`, why there is none."""
        found: dict[str, dict[str, float | int | str]] = {}
        for metric, interval in self.estimates.items():
            found[metric] = {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}
        return found | {metric: {"missing": why} for metric, why in self.missing.items()}

    def table(self) -> str:
        """A line for each metric."""
        width = max(map(len, [*self.estimates, *self.missing]), default=0)
        lines = [
            f"{metric:{width}}  {e.mean:.3f}  [{e.low:.3f}, {e.high:.3f}]  n = {e.n}"
            for metric, e in self.estimates.items()
        ]
        return "\n".join([*lines, *(f"{metric:{width}}  missing: {why}" for metric, why in self.missing.items())])


@os_errors_named()
def score(
    photos: Pictures,
    pictures: Pictures,
    metrics: Sequence[str] = PUBLISHED_METRICS,
    *,
    ssim: Ssim = "paper",
    distractors: Distractors = "photos",
    weights: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Scores:
    """Score pictures against the photos that were shown, by the paper's metrics (docs/evaluation.md).

    Parameters
    ----------
    photos, pictures : uint8 arrays (n, y, x, 3), matched by position; or folders of PNG or JPEG files, matched by the
        name of the file without its suffix. Pictures may have another size than photos.
    metrics : some of PixCorr, SSIM, AlexNet(2), AlexNet(5), Inception, CLIP, EffNet-B, SwAV, and of Takagi &
        Nishimoto's (`bdflow.config.TAKAGI_METRICS`), whose distractors are reconstructions.
    ssim : protocol, `paper` or `2d`. distractors : of two-way identification, `photos` or `reconstructions`.
    weights : folder of the judging networks' published weights; None for the caches of torch and Hugging Face. Nothing
        is downloaded: a metric without weights is in `missing`.
    device : where the networks run. seed : of the bootstrap.

    Raises
    ------
    InputError : unknown metrics or protocols, arrays or files that are no pictures, pictures without a photo.

    Source: Ozcelik & VanRullen 2023, doi:10.1038/s41598-023-42891-8, Methods.
    """
    known = (*PIXELS, *JUDGE_OF)
    for option, given, allowed in (
        *(("metrics", metric, known) for metric in metrics),
        ("ssim", ssim, ("paper", "2d")),
        ("distractors", distractors, ("photos", "reconstructions")),
    ):
        if given not in allowed:
            raise InputError(option, found=repr(given), expected=", ".join(allowed), action="choose among these")
    names, true, made = _matched(photos, pictures)
    found: dict[str, np.ndarray] = {}
    scorers: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "PixCorr": image_metrics.pixcorr,
        "SSIM": partial(image_metrics.ssim, protocol=ssim),
    }
    for metric in [metric for metric in PIXELS if metric in metrics]:
        pairs = zip(true, made, strict=True)
        found[metric] = np.array([scorers[metric](a, image_metrics.at_size(b, *a.shape[:2])) for a, b in pairs])
    needed = {JUDGE_OF[metric] for metric in metrics if metric in JUDGE_OF}
    folder = None if weights is None else local_path("weights", weights)
    files = {judge: find_weights(judge, folder) for judge in JUDGES if judge in needed}
    missing = {metric: files[JUDGE_OF[metric]].missing for metric in metrics if metric in JUDGE_OF}
    if len(names) < 2:
        lonely = "two-way identification needs at least two photos"
        missing |= {metric: lonely for metric in missing if metric not in DISTANCES}
    missing = {metric: why for metric, why in missing.items() if why}
    seen = [metric for metric in metrics if metric in JUDGE_OF and metric not in missing]
    if seen:
        from bdflow.models.judges.networks import load_panel

        panel = load_panel({JUDGE_OF[metric]: files[JUDGE_OF[metric]] for metric in seen}, None, device)

        def unit_features(images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
            parts: dict[str, list[np.ndarray]] = {metric: [] for metric in seen}
            for run in _runs(images):
                features = panel(np.stack(run))
                for metric in seen:
                    parts[metric].append(image_metrics.unit(features[metric]).cpu().numpy())
            return {metric: np.concatenate(rows) for metric, rows in parts.items()}

        of_photos, of_made = unit_features(true), unit_features(made)
        for metric in seen:
            if metric in DISTANCES:
                found[metric] = 1 - (of_made[metric] * of_photos[metric]).sum(axis=1, dtype=np.float64)
            else:
                correlation = of_made[metric] @ of_photos[metric].T
                found[metric] = image_metrics.identification(correlation, distractors_of(metric, distractors))
    named = {metric: full_name(metric, ssim, distractors) for metric in metrics}
    values = {named[metric]: found[metric] for metric in metrics if metric in found}
    return Scores(
        names,
        values,
        {metric: estimate(scores, seed) for metric, scores in values.items()},
        {named[metric]: why for metric, why in missing.items()},
    )


def _runs(images: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Runs of at most BATCH neighbouring images of one size."""
    runs: list[list[np.ndarray]] = []
    for image in images:
        if runs and len(runs[-1]) < BATCH and runs[-1][0].shape == image.shape:
            runs[-1].append(image)
        else:
            runs.append([image])
    return runs


def _matched(photos: Pictures, pictures: Pictures) -> tuple[tuple[str, ...], list[np.ndarray], list[np.ndarray]]:
    if isinstance(photos, np.ndarray) != isinstance(pictures, np.ndarray):
        raise InputError(
            "photos, pictures",
            found="an array and a folder",
            expected="two arrays, or two folders",
            action="hand in both in one form",
        )
    if isinstance(photos, np.ndarray):
        made = cast(np.ndarray, pictures)
        for name, values in (("photos", photos), ("pictures", made)):
            if values.ndim != 4 or values.shape[3] != 3 or values.dtype != np.uint8 or not len(values):
                raise InputError(
                    name,
                    found=f"{values.dtype} of shape {values.shape}",
                    expected="uint8 (n, y, x, 3), n at least 1",
                    action="convert it",
                )
        if len(photos) != len(made):
            raise InputError(
                "pictures",
                found=f"{counted(len(made), 'picture')}",
                expected=f"{len(photos)}, one for each photo",
                action="hand in the pictures in the order of the photos, one for each",
            )
        return tuple(map(str, range(len(photos)))), list(photos), list(made)
    true = _files(local_path("photos", photos))
    own = _files(local_path("pictures", cast("str | Path", pictures)))
    problems = []
    for folder, other in ((photos, own.keys() - true.keys()), (pictures, true.keys() - own.keys())):
        if other:
            problems.append(f"nothing in {folder} named {listed(sorted(other))}")
    if problems:
        raise InputError(
            "photos, pictures",
            found=listed(problems, joint="; "),
            expected="a photo and a picture of every name (without .png, .jpg, .jpeg)",
            action="add or remove these files",
        )
    names = sorted(true)
    return tuple(names), [_read(true[name]) for name in names], [_read(own[name]) for name in names]


def _files(folder: Path) -> dict[str, Path]:
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [file for file in there if file.suffix.lower() in SUFFIXES]
    if not files:
        raise InputError(
            folder,
            found="no pictures",
            expected="a folder of PNG or JPEG files",
            action="correct the path, or put the pictures there",
        )
    found = {file.stem: file for file in files}
    if len(found) < len(files):
        twice = sorted({file.stem for file in files if found[file.stem] != file})
        raise InputError(
            folder,
            found=f"several files named {listed(twice)}",
            expected="one file of each name (without its ending)",
            action="keep one of each",
        )
    return found


def _read(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(
            file,
            found=f"a file that cannot be read ({error})",
            expected="a PNG or JPEG picture",
            action="replace it, or take it out of the folder",
        ) from error
