"""How well latents are decoded: by space, VDVAE layer, CLIP token and penalty; and how good the brain data are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np
from scipy import stats

from bdflow.config import SPACES
from bdflow.models.bundle import open_bundle
from bdflow.report_page import Row, Table, number
from bdflow.report_plots import Line, Plot, heat_maps, histograms, lines
from bdflow.stage import MEAN, Context
from stores import Store

Stores = Mapping[str, Store]


def chance_r(n: int) -> float:
    """The correlation over `n` samples that unrelated ones exceed in 5% of cases (one-sided t test)."""
    if n < 3:
        return float("nan")
    t = stats.t.ppf(0.95, n - 2)
    return float(t / np.sqrt(n - 2 + t * t))


def mean(values: np.ndarray) -> float:
    """Mean over those that are defined."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def median(values: np.ndarray) -> float:
    """Median over those that are defined."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def paths(context: Context) -> list[str]:
    """The stores that this module reads."""
    found = [f"predictions/{subject}/{space}" for subject in context.decoded for space in SPACES]
    for subject in context.subjects:
        found += [f"betas/{subject}", f"responses/{subject}"]
        curves = [f"selection/{subject}/{space}" for space in SPACES]
        curves = [path for path in curves if path in context.expected]
        found += [*curves, *([f"decoders/{subject}"] if curves else [])]
    return found


def name(subject: str) -> str:
    return "mean of predictions" if subject == MEAN else subject


def ridge_table(context: Context, stores: Stores) -> Table:
    averaged = " The mean is that of predictions re-standardised for painting, whose R² is lower than that of raw ones."
    averaged = averaged if context.config.reconstruct.standardise != "none" else ""
    groups = []
    for subject in context.decoded:
        rows = []
        for space in SPACES:
            store = stores[f"predictions/{subject}/{space}"]
            r2, r = (store.read(score).ravel() for score in ("r2", "pearson_r"))
            n = store.sizes["stimulus"]
            above = f"{np.mean(r > chance_r(n)):.0%}" if n >= 3 else "\u2013"
            shape = " × ".join(str(size) for size in store.arrays["latent"].shape[1:])
            rows.append(Row([space, shape, *(number(median(values)) for values in (r, r2)), above, str(n)]))
        groups.append((name(subject), rows))
    return Table(
        "Ridge: predicted against true latents of the test stimuli",
        ["target space", "latents", "median r", "median R²", "r above chance", "n"],
        groups,
        "r: Pearson correlation of a latent over the test stimuli; R² is negative where the prediction is worse than "
        "the test mean. Above chance: share of latents whose r unrelated predictions would exceed in 5% of cases, so "
        "5% is what chance gives." + averaged * (MEAN in context.decoded),
    )


def layer_plots(context: Context, stores: Stores) -> list[Plot]:
    """Mean r and R^2 of each VDVAE layer."""
    layers = open_bundle(context.config.networks.bundle).layers
    bounds = list(pairwise(accumulate((c * h * w for c, h, w in layers), initial=0)))
    sizes = [h for _, h, _ in layers]
    ticks = [(i + 1, f"{size} px") for i, size in enumerate(sizes) if not i or size != sizes[i - 1]]
    plots = []
    for score, label in (("pearson_r", "mean r"), ("r2", "mean R²")):
        series = []
        for colour, subject in enumerate(context.decoded):
            values = stores[f"predictions/{subject}/vdvae"].read(score)
            y = [mean(values[start:stop]) for start, stop in bounds]
            series.append(Line(name(subject), range(1, len(y) + 1), y, colour))
        title = f"VDVAE: {label} by layer"
        plots.append(lines(title, series, "layer, coarse to fine, at its resolution", label, ticks=ticks))
    return plots


def token_plots(context: Context, stores: Stores) -> list[Plot]:
    """Mean r of CLIP-vision's patches, where they lie in the picture, and of CLIP-text's tokens."""
    patches, first = [], []
    for subject in context.decoded:
        r = stores[f"predictions/{subject}/clip_vision"].read("pearson_r")
        by_token = np.array([mean(token) for token in r])
        side = round((len(by_token) - 1) ** 0.5)
        patches.append((name(subject), by_token[1 : 1 + side * side].reshape(side, side)))
        first.append(f"{name(subject)} {number(by_token[0], 2)}")
    series = []
    for colour, subject in enumerate(context.decoded):
        r = stores[f"predictions/{subject}/clip_text"].read("pearson_r")
        series.append(Line(name(subject), range(len(r)), [mean(token) for token in r], colour))
    note = f"Patches where they lie in the photo. The class token, which stands for the whole: {', '.join(first)}."
    return [
        heat_maps("CLIP vision: mean r by token", patches, "r", note),
        lines("CLIP text: mean r by token", series, "token of the caption", "mean r", points=False),
    ]


def alpha_plots(context: Context, stores: Stores) -> list[Plot]:
    """Cross-validated scores over the penalties tried, where regress chose among several."""
    plots = []
    for space in SPACES:
        series = []
        for colour, subject in enumerate(context.subjects):
            path = f"selection/{subject}/{space}"
            if path not in stores:
                continue
            alpha, score = stores[path].read("alpha"), stores[path].read("score")
            decoder = stores[f"decoders/{subject}"]
            chosen = float(decoder.read("space_alpha")[decoder.read("space").tolist().index(space)])
            order = np.argsort(alpha)
            y = [mean(score[i]) for i in order]
            series.append(Line(subject, alpha[order].tolist(), y, colour, chosen if np.isfinite(chosen) else None))
        if series:
            plots.append(
                lines(
                    f"{space}: cross-validated R² by penalty",
                    series,
                    "alpha",
                    "mean R²",
                    logarithmic=True,
                    note="Over the latents that were drawn. The stroke marks the penalty chosen for the whole space.",
                )
            )
    return plots


def voxel_table(context: Context, stores: Stores) -> Table:
    rows = []
    for subject in context.subjects:
        betas, responses = stores[f"betas/{subject}"], stores[f"responses/{subject}"]
        test = responses.read("split") == "test"
        repeats = responses.read("repeats").astype(float)
        ceiling = _ceiling(stores, subject)
        middle = number(float(np.median(ceiling)), 1) + " %" if ceiling.size else "\u2013"
        valid = responses.read("valid").astype(bool)
        counts = [valid.sum(), (~valid).sum(), betas.sizes["trial"], (~test).sum(), test.sum()]
        rows.append(Row([subject, *(str(int(n)) for n in counts), number(float(repeats[test].mean()), 2), middle]))
    return Table(
        "Brain data",
        ["subject", "voxels used", "dropped", "trials", "train stimuli", "test stimuli", "test repeats", "ceiling"],
        [("", rows)],
        "Test repeats: mean number of trials averaged. Ceiling: median over voxels of the noise ceiling of these "
        "averages, the share of their variance that the stimulus explains, 100 ncsnr² / (ncsnr² + mean(1 / repeats)).",
    )


def ceiling_plot(context: Context, stores: Stores) -> Plot:
    rows = [(subject, _ceiling(stores, subject), colour) for colour, subject in enumerate(context.subjects)]
    return histograms("Noise ceiling of the voxels, in percent of variance", rows)


def _ceiling(stores: Stores, subject: str) -> np.ndarray:
    """Noise ceilings of the voxels decoded from, for averages over the test repeats, in percent."""
    betas, responses = stores[f"betas/{subject}"], stores[f"responses/{subject}"]
    valid, test = responses.read("valid").astype(bool), responses.read("split") == "test"
    ceiling = noise_ceiling(betas.read("ncsnr")[valid], responses.read("repeats").astype(float)[test])
    return ceiling[np.isfinite(ceiling)]


def noise_ceiling(ncsnr: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Explainable variance in percent, by voxel, of responses averaged over `repeats` trials (NSD's formula)."""
    square = ncsnr.astype(np.float64) ** 2
    return 100 * square / (square + np.mean(1 / repeats))


def tables(context: Context, stores: Stores) -> Sequence[Table]:
    return [ridge_table(context, stores), voxel_table(context, stores)]


def plots(context: Context, stores: Stores) -> Sequence[Plot]:
    return [
        *layer_plots(context, stores),
        *token_plots(context, stores),
        *alpha_plots(context, stores),
        ceiling_plot(context, stores),
    ]
