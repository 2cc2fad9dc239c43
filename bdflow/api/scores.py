"""What bdflow does with pictures of any origin: score them. Heavy imports happen inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bdflow.errors import os_errors_named
from bdflow.user_paths import check_new, local_path

if TYPE_CHECKING:
    from bdflow.scoring.result import Scores

__all__ = ["score"]

Scale = Literal["0..1", "-1..1", "0..255"]


@os_errors_named()
def score(
    photos: object,
    pictures: object = None,
    metrics: str | Sequence[str] = "published",
    *,
    ssim: Literal["paper", "2d"] = "paper",
    distractors: Literal["photos", "reconstructions"] = "photos",
    select: Literal["all", "first"] = "all",
    subset: bool = False,
    duplicates: bool = False,
    photos_range: Scale | None = None,
    pictures_range: Scale | None = None,
    size: int | None = None,
    weights: str | Path | None = None,
    bundle: str | Path | None = None,
    device: str = "cpu",
    batch_size: int = 16,
    threads: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> Scores:
    """Score pictures against the photos that were shown, by published metrics (docs/score.md). No study is needed.

    Parameters
    ----------
    photos, pictures : each the path of a folder of PNG or JPEG files named by stimulus, of `.npy`, `.npz`, `.pt`,
        `.safetensors`, or of a Zarr array or store; or an array of numpy, torch or xarray, (n, y, x, 3) or
        (n, 3, y, x), uint8 or floats of 0 to 1. Folders and arrays with ids are matched by id, others by order.
        Pictures may have another size than photos, and several may be of one stimulus. A folder that `bdflow export`
        wrote, or one with folders of pictures, holds several sets, each of which is scored. Without `pictures`,
        `photos` is an export with photos.
    metrics : `published`, the eight of Ozcelik & VanRullen; `takagi`, the seven of Takagi & Nishimoto; or names of
        metrics and of these sets, as a list or with commas between.
    ssim : protocol, `paper` or `2d`. distractors : of two-way identification, `photos` or `reconstructions`.
    select : of several pictures, score `all` or the `first`.
    subset : score the stimuli that have both, instead of refusing photos without a picture.
    duplicates : score photos that are the same, instead of refusing them.
    photos_range, pictures_range : scale of floats, where it is not 0 to 1.
    size : pixels of a side at which PixCorr and SSIM compare; None for the photo's own.
    weights : folder of the judging networks' published weights; besides it, the caches of torch and Hugging Face are
        looked through. Nothing is downloaded: a metric without weights is in `missing`.
    bundle : of weights, such as `tiny`, whose CLIP judges too, as the metric `CLIP (bundle)`.
    device : where the networks run. batch_size : stimuli at a time. threads : at most. seed : of the bootstrap.
    out : a new folder for `scores.csv`, `table.csv` and a report, `index.html`; it appears when all is written.

    Raises
    ------
    InputError : unknown options; what cannot be read; pictures that cannot be put together with photos; values or
        shapes that are none of pictures; fewer than two stimuli for two-way identification; something at `out`.

    Source: Ozcelik & VanRullen 2023, doi:10.1038/s41598-023-42891-8, Methods; Takagi & Nishimoto 2023, CVPR.
    """
    from bdflow.scoring.engine import Options, chosen_metrics
    from bdflow.scoring.engine import score as score_all
    from bdflow.scoring.opening import open_all

    folder = None if out is None else local_path("out", out)
    if folder is not None:
        check_new(folder)
    options = Options(
        chosen_metrics(metrics, bundle is not None),
        ssim,
        distractors,
        select,
        duplicates,
        size,
        None if weights is None else local_path("weights", weights),
        bundle if bundle is None or bundle == "tiny" else local_path("bundle", bundle),
        device,
        batch_size,
        threads,
        seed,
    )
    matched = open_all(photos, pictures, subset=subset, photos_range=photos_range, pictures_range=pictures_range)
    found = score_all(matched, options)
    if folder is not None:
        from bdflow.report.score_page import write

        write(found, matched, folder)
    return found
