"""`bdflow score`: the metrics of any pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from bdflow import api
from bdflow.user_paths import local_path


def score(
    photos: Annotated[
        str,
        typer.Argument(
            metavar="PHOTOS", help="What was shown: a folder of PNG or JPEG, .npy, .npz, .pt, .safetensors or Zarr."
        ),
    ],
    pictures: Annotated[
        str | None,
        typer.Argument(
            metavar="PICTURES", help="What was reconstructed, likewise; not needed if PHOTOS is an export with photos."
        ),
    ] = None,
    metrics: Annotated[
        str, typer.Option(metavar="M,M", help="Names, or `published` (eight), `takagi` (seven).")
    ] = "published",
    ssim: Annotated[str, typer.Option(metavar="PROTOCOL", help="`paper` or `2d`.")] = "paper",
    distractors: Annotated[
        str, typer.Option(metavar="RULE", help="Of two-way identification: `photos` or `reconstructions`.")
    ] = "photos",
    select: Annotated[
        str, typer.Option(metavar="WHICH", help="Of several pictures of a stimulus: `all` or `first`.")
    ] = "all",
    subset: Annotated[bool, typer.Option("--subset", help="Leave out photos without a picture.")] = False,
    duplicates: Annotated[bool, typer.Option("--duplicates", help="Score photos that are the same, too.")] = False,
    photos_range: Annotated[
        str | None, typer.Option(metavar="SCALE", help="Of floats: 0..1 (usual), -1..1 or 0..255.")
    ] = None,
    pictures_range: Annotated[str | None, typer.Option(metavar="SCALE", help="Likewise, of the pictures.")] = None,
    size: Annotated[
        int | None, typer.Option(metavar="PX", help="Side at which PixCorr and SSIM compare; usually the photo's.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="DIR", help="The judging networks' published weights (docs/score.md).")
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(metavar="BUNDLE", help="Its CLIP judges too, as `CLIP (bundle)`; such as `tiny`.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the judges run: cpu, cuda, cuda:1, ...")] = "cpu",
    batch_size: Annotated[int, typer.Option(metavar="N", help="Stimuli at a time.")] = 16,
    threads: Annotated[int | None, typer.Option(metavar="N", help="At most so many threads.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the bootstrap.")] = 0,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="A new folder: scores.csv, table.csv and a report, index.html.")
    ] = None,
) -> None:
    """The published metrics of any pictures, with confidence intervals. No study is needed."""
    found = api.score(
        photos,
        pictures,
        metrics,
        ssim=ssim,  # type: ignore[arg-type]
        distractors=distractors,  # type: ignore[arg-type]
        select=select,  # type: ignore[arg-type]
        subset=subset,
        duplicates=duplicates,
        photos_range=photos_range,  # type: ignore[arg-type]
        pictures_range=pictures_range,  # type: ignore[arg-type]
        size=size,
        weights=weights,
        bundle=bundle,
        device=device,
        batch_size=batch_size,
        threads=threads,
        seed=seed,
        out=out,
    )
    typer.echo(found.table())
    if out is not None:
        typer.echo(f"\nreport  {local_path('out', out) / 'index.html'}   (open it in a browser)")
