"""The figures of regions (paper, Figures 5 and 7): regions in columns, subjects and their mean in rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bdflow.regions.rescale import stretched
from bdflow.report import figures
from bdflow.report.tables import label
from bdflow.stores import Store
from bdflow.study import keys, region_patterns
from bdflow.study.painting import spaces_of
from bdflow.study.stage import Context

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(context: Context, folder: Path) -> list[Path]:
    """Draw every set of regions into `folder`, each figure as `.png` and `.svg`; return the files.

    `roi_<set>` shows the pictures, `roi_<set>_guesses` the VDVAE's guesses they were painted from and, where there are
    several seeds or strengths, `roi_<set>_draws` all of them for the mean (or the last subject).

    Raises NotReady if the stage `roi` is not done.
    """
    return figures.save(_figures(context), folder)


def _figures(context: Context) -> Iterator[tuple[str, Figure]]:
    settings = context.config.roi
    for chosen, regions in settings.sets.items():
        for kind, suffix in (("guesses", "_guesses"), ("images", "")):
            stores = pictures(context, chosen, kind)
            if not stores:
                continue
            rows = [(label(subject), [shown(store, r) for r in range(len(regions))]) for subject, store in stores]
            yield f"roi_{chosen}{suffix}", figures.sheet(rows, regions)
        subject, store = stores[-1]
        draws = [(s, n) for s in range(len(settings.strengths)) for n in range(settings.seeds)]
        if len(draws) > 1:
            rows = [
                (
                    f"strength {settings.strengths[s]:g}\nseed {n}",
                    [shown(store, region, s, n) for region in range(len(regions))],
                )
                for s, n in draws
            ]
            figure = figures.sheet(rows, regions)
            figure.suptitle(label(subject))
            yield f"roi_{chosen}_draws", figure


def pictures(context: Context, chosen: str, kind: str) -> list[tuple[str, Store]]:
    """The `guesses` or `images` of a set, of each subject it was made for and of their mean."""
    painter = next(iter(context.config.painters))
    if kind == "guesses" and "guess" not in spaces_of(context.config, painter):
        return []
    key_of = keys.region_guesses if kind == "guesses" else keys.region_images
    subjects = [subject for name, subject in region_patterns.keys_of(context) if name == chosen]
    return [(subject, context.ready(key_of(chosen, painter, subject))) for subject in subjects]


def shown(store: Store, region: int, strength: int = 0, noise: int = 0) -> np.ndarray:
    """One picture as it is shown: its histogram stretched. The store keeps it as it was painted."""
    at = {"region": region, "strength": strength, "noise": noise}
    image = store.read("image", {dim: slice(i, i + 1) for dim, i in at.items()})
    return stretched(image[0, 0, 0])
