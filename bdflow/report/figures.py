"""Figures for papers, as PNG and SVG, from a finished study: scores, distributions, pictures, decoding."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bdflow.errors import InputError
from bdflow.metrics import published
from bdflow.report import decoding, palette
from bdflow.report.scores import AVERAGE, Scores
from bdflow.report.tables import label
from bdflow.report.writer import photos, read_stores
from bdflow.stores import Store
from bdflow.study import keys
from bdflow.study.keys import SHARED
from bdflow.study.painting import picture_label, pictures_of, spaces_of
from bdflow.study.parts import Joined
from bdflow.study.selection import Selected, selected
from bdflow.study.stage import Context
from bdflow.study.target_reader import layers_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = "os^Dv*"
"""Shapes of points, in the order of those of the report's plots."""
STYLE: Any = {
    "font.size": 8, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none",
    "svg.hashsalt": "bdflow", "axes.grid": False, "legend.frameon": False, "savefig.dpi": 200,
}  # fmt: skip
SHOWN = 5
TITLE = 15  # letters on a line
Stores = Mapping[str, Store]


def write(context: Context, folder: Path) -> list[Path]:
    """Draw every figure into `folder`, each as `.png` and `.svg`; return the files.

    Raises
    ------
    InputError : matplotlib is not installed.
    NotReady : a store it reads is not sealed, or was made from something else.
    """
    stores = read_stores(context)
    return save(_figures(context, stores, Scores.read(stores, context.config, context.painted)), folder)


def save(drawn: Iterable[tuple[str, Figure]], folder: Path) -> list[Path]:
    """Write figures into `folder` by name, each as `.png` and `.svg`. Raises InputError without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InputError(
            "figures",
            found="no matplotlib on this machine",
            expected="that it is installed: it draws the figures",
            action="install the extra: pip install 'bdflow[figures]'",
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with mpl.rc_context(STYLE):
        for name, figure in drawn:
            for suffix in ("png", "svg"):
                file = folder / f"{name}.{suffix}"
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(file, bbox_inches="tight", metadata=metadata)  # type: ignore[arg-type]
                files.append(file)
    return files


def _figures(context: Context, stores: Stores, scores: Scores) -> Iterator[tuple[str, Figure]]:
    comparable = context.config.networks.bundle != "tiny"
    yield "scores", score_figure(scores, comparable=comparable)
    yield "distributions", distribution_figure(scores)
    ranked = _ranked(scores)
    middle = max(0, len(ranked) // 2 - SHOWN // 2)
    for name, chosen in (
        ("best", ranked[:SHOWN]),
        ("median", ranked[middle : middle + SHOWN]),
        ("worst", ranked[-SHOWN:][::-1]),
    ):
        yield f"reconstructions_{name}", subject_figure(context, stores, scores, chosen)
    if len(scores.variants) > 1:
        yield "variants", variant_figure(context, stores, scores, ranked[:SHOWN])
    yield "decoding", decoding_figure(context, stores)


def _new(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _point(look: palette.Look) -> str:
    return POINTS[look.shape % len(POINTS)]


def _dashes(look: palette.Look) -> object:
    """As matplotlib has them: an offset, and lengths in line widths."""
    return (0, tuple(float(length) for length in look.dash.split())) if look.dash else "-"


def _available(scores: Scores) -> list[int]:
    return [m for m, why in enumerate(scores.missing) if not why]


def _ranked(scores: Scores) -> list[str]:
    """Ids of stimuli, best first by the first metric there is, averaged over subjects."""
    m = _available(scores)[0]
    mean = scores.average[0, m]
    sign = 1 if scores.lower_is_better(scores.metrics[m]) else -1
    order = np.argsort(np.where(np.isfinite(mean), sign * mean, np.inf), kind="stable")
    return [str(scores.stimulus_id[i]) for i in order if np.isfinite(mean[i])]


def score_figure(scores: Scores, *, comparable: bool) -> Figure:
    """Mean and interval of every variant by subject, a panel a metric; published Table 2 as crosses."""
    kept = _available(scores)
    figure = _new(1.2 + 1.6 * len(kept), 0.9 + 0.35 * len(scores.variants))
    axes = figure.subplots(1, len(kept), sharey=True, squeeze=False)[0]
    rows = [row for row in scores.rows if row != AVERAGE]
    for axis, m in zip(axes, kept, strict=True):
        metric = scores.metrics[m]
        for r, row in enumerate(rows):
            shift = (r - (len(rows) - 1) / 2) * 0.7 / len(rows)
            for v, variant in enumerate(scores.variants):
                found = scores.estimates[row, variant, metric]
                y, look = v + shift, palette.subject(row, scores.people)
                axis.plot([found.low, found.high], [y, y], color=look.on_white, lw=1)
                axis.plot(found.mean, y, _point(look), ms=3, color=look.on_white, label=label(row) if not v else None)
        for v, variant in enumerate(scores.variants):
            in_table = published.TABLE_2.get(variant) if comparable else None
            known = None if in_table is None else published.score(in_table, metric)
            if known is not None:
                axis.plot(known, v, "x", color="black", ms=5, label=None if v else "published, subj01")
        axis.set_title(f"{metric} {'↓' if scores.lower_is_better(metric) else '↑'}")
        axis.grid(axis="x", color="#dddddd", lw=0.6)
    axes[0].set_yticks(range(len(scores.variants)), scores.variants)
    axes[0].invert_yaxis()
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(7, len(names)))
    return figure


def distribution_figure(scores: Scores) -> Figure:
    """Distributions of single images in the first variant, by subject, a panel a metric."""
    kept = _available(scores)
    figure = _new(1.2 + 1.8 * len(kept), 0.8 + 0.35 * len(scores.rows))
    axes = figure.subplots(1, len(kept), sharey=True, squeeze=False)[0]
    for axis, m in zip(axes, kept, strict=True):
        values = [scores.of(row)[0, m] for row in scores.rows]
        values = [v[np.isfinite(v)] for v in values]
        places = [i for i, v in enumerate(values) if v.size]
        boxes = axis.boxplot(
            [values[i] for i in places], positions=places, orientation="horizontal", widths=0.6, patch_artist=True,
            medianprops={"color": "black"}, flierprops={"marker": ".", "ms": 2, "mec": "#999999"},
        )  # fmt: skip
        for place, box in zip(places, boxes["boxes"], strict=True):
            box.set(facecolor=palette.subject(scores.rows[place], scores.people).on_white, alpha=0.55)
        axis.set_title(scores.metrics[m])
        axis.grid(axis="x", color="#dddddd", lw=0.6)
    axes[0].set_yticks(range(len(scores.rows)), [label(row) for row in scores.rows])
    axes[0].invert_yaxis()
    return figure


def _image(made: Store | Joined | Selected, stimulus_id: str) -> np.ndarray | None:
    store = made.images if isinstance(made, Selected) else made
    at = np.flatnonzero(store.read("stimulus_id") == stimulus_id)
    if not at.size:
        return None
    rows = slice(int(at[0]), int(at[0]) + 1)
    return made.shown(rows)[0] if isinstance(made, Selected) else made.read("image", {"stimulus_id": rows})[0]


def sheet(rows: Sequence[tuple[str, Sequence[np.ndarray | None]]], titles: Sequence[str] = ()) -> Figure:
    """Pictures in a grid; each row has its name, and each column its title if there are any."""
    columns = max(len(images) for _, images in rows)
    figure = _new(1.1 * columns + 0.9, 1.1 * len(rows))
    grid: Any = figure.subplots(len(rows), columns, squeeze=False)
    for axes, (name, images) in zip(grid, rows, strict=True):
        for axis, image in zip(axes, images, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if image is not None:
                axis.imshow(image, interpolation="bicubic")
        axes[0].set_ylabel(name.replace(" of ", "\nof "), rotation=0, ha="right", va="center")
    for axis, title in zip(grid[0], titles, strict=False):
        axis.set_title(textwrap.fill(title, TITLE))
    return figure


def subject_figure(context: Context, stores: Stores, scores: Scores, chosen: Sequence[str]) -> Figure:
    """Photo, guess of the first subject, and everyone's reconstructions in the first variant."""
    config, first = context.config, scores.subjects[0]
    painter, variant = pictures_of(config)[0]
    rows: list[tuple[str, Store | Joined | Selected]] = [("shown", photos(context, stores))]
    if "guess" in spaces_of(config, painter):
        rows.append((f"{first}, guess", stores[keys.guesses(painter, first)]))
    for subject in scores.subjects:
        rows.append((label(subject), selected(config, stores.__getitem__, painter, subject, variant)))
    return sheet([(name, [_image(store, i) for i in chosen]) for name, store in rows])


def variant_figure(context: Context, stores: Stores, scores: Scores, chosen: Sequence[str]) -> Figure:
    """Photo and every variant of the first subject."""
    first = scores.subjects[0]
    rows: list[tuple[str, Store | Joined | Selected]] = [("shown", photos(context, stores))]
    for painter, variant in pictures_of(context.config):
        named = picture_label(context.config, painter, variant)
        made = selected(context.config, stores.__getitem__, painter, first, variant)
        rows.append((f"{first}, {named}", made))
    return sheet([(name, [_image(store, i) for i in chosen]) for name, store in rows])


def decoding_figure(context: Context, stores: Stores) -> Figure:
    """Mean r of each layer of VDVAE spaces, of each token of spaces with tokens, of other spaces' latents, sorted."""
    config = context.config
    figure = _new(2.5 * len(config.decoded_spaces), 2.4)
    axes: Any = figure.subplots(1, len(config.decoded_spaces), squeeze=False)[0]
    for axis, (space, settings) in zip(axes, config.decoded_spaces.items(), strict=True):
        titles = {"vdvae": "VDVAE", "clip_vision": "CLIP vision", "clip_text": "CLIP text"}
        axis.set(title=titles.get(space, space), ylabel="mean r" if axis is axes[0] else "")
        for subject in context.decoded:
            look = decoding.look(context, subject)
            drawn: Any = {"lw": 1, "color": look.on_white, "ls": _dashes(look), "label": label(subject)}
            r = stores[keys.predictions(subject, space)].read("pearson_r")
            if settings.encoder == "vdvae":
                layers = layers_of(stores[keys.targets(space, SHARED)])
                bounds = pairwise(accumulate((c * h * w for c, h, w in layers), initial=0))
                by_layer = [decoding.mean(r[start:stop]) for start, stop in bounds]
                axis.plot(range(1, len(by_layer) + 1), by_layer, marker=_point(look), ms=2, **drawn)
                axis.set(xlabel="layer, coarse to fine")
            elif r.ndim == 2:
                axis.plot([decoding.mean(token) for token in r], **drawn)
                axis.set(xlabel="token")
            else:
                axis.plot(np.sort(r)[::-1], **drawn)
                axis.set(xlabel="latent, best first")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure
