"""How well latents are decoded: by space, VDVAE layer, CLIP token and penalty; and how good the brain data are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from bdflow.config import Config
from bdflow.datasets.ceilings import noise_ceiling
from bdflow.report import palette
from bdflow.report.page import Row, Table, number
from bdflow.report.plots import Line, Plot, heat_maps, histograms, lines
from bdflow.stores import Store
from bdflow.study import keys, parts
from bdflow.study.designs import averaged_design, by_rows, chosen_spaces, design_of
from bdflow.study.keys import SHARED
from bdflow.study.noise_ceilings import ceiling_of
from bdflow.study.stage import MEAN, Context
from bdflow.study.target_reader import layers_of
from bdflow.study.trials import Account

Stores = Mapping[str, Store]


def chance_r(n: int) -> float:
    """The correlation over `n` samples that unrelated ones exceed in 5% of cases (one-sided t test)."""
    if n < 3:
        return float("nan")
    from scipy import stats  # takes a second to load

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
    config = context.config
    found = [keys.predictions(subject, space) for subject in context.decoded for space in config.decoded_spaces]
    found += [keys.targets(space, SHARED) for space in _encoded_by(config, "vdvae")]
    for subject in context.subjects:
        found += [keys.betas(subject), _responses(config, subject)]
        for space in chosen_spaces(config, tuple(config.decoded_spaces)):
            found += [keys.selection(subject, space), keys.decoder(subject, design_of(config, space).name)]
    return list(dict.fromkeys(found))


def _responses(config: Config, subject: str) -> str:
    return keys.responses(subject, averaged_design(config).responses)


def _encoded_by(config: Config, encoder: str) -> list[str]:
    """The spaces of an encoder."""
    return [space for space, of in config.decoded_spaces.items() if of.encoder == encoder]


def name(subject: str) -> str:
    return "mean of predictions" if subject == MEAN else subject


def look(context: Context, subject: str) -> palette.Look:
    """How a subject is drawn."""
    return palette.subject(subject, context.subjects)


def ridge_table(context: Context, stores: Stores) -> Table:
    averaged = " The mean is that of predictions re-standardised for painting, whose R² is lower than that of raw ones."
    rules = {context.config.ridge_of(space).standardise for space in context.config.decoded_spaces}
    averaged = averaged if rules != {"none"} else ""
    groups = []
    for subject in context.decoded:
        rows = []
        for space in context.config.decoded_spaces:
            store = stores[keys.predictions(subject, space)]
            r2, r = (store.read(score).ravel() for score in ("r2", "pearson_r"))
            n = store.sizes["stimulus_id"]
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
    """Mean r and R^2 of each layer of VDVAE spaces."""
    return [plot for space in _encoded_by(context.config, "vdvae") for plot in _layers(context, stores, space)]


def titled(context: Context, space: str, encoder: str, title: str) -> str:
    """A title that names the space where its encoder has several."""
    return title if len(_encoded_by(context.config, encoder)) == 1 else f"{title} ({space})"


def _layers(context: Context, stores: Stores, space: str) -> list[Plot]:
    layers = layers_of(stores[keys.targets(space, SHARED)])
    bounds = list(pairwise(accumulate((c * h * w for c, h, w in layers), initial=0)))
    sizes = [h for _, h, _ in layers]
    ticks = [(i + 1, f"{size} px") for i, size in enumerate(sizes) if not i or size != sizes[i - 1]]
    plots = []
    for score, label in (("pearson_r", "mean r"), ("r2", "mean R²")):
        series = []
        for subject in context.decoded:
            values = stores[keys.predictions(subject, space)].read(score)
            y = [mean(values[start:stop]) for start, stop in bounds]
            series.append(Line(name(subject), range(1, len(y) + 1), y, look(context, subject)))
        title = titled(context, space, "vdvae", f"VDVAE: {label} by layer")
        plots.append(lines(title, series, "layer, coarse to fine, at its resolution", label, ticks=ticks))
    return plots


def token_plots(context: Context, stores: Stores) -> list[Plot]:
    """Mean r by token: of CLIP vision's patches where they lie in the picture, of others in their order."""
    config, plots = context.config, []
    for space, settings in config.decoded_spaces.items():
        by_token = {
            subject: np.array([mean(token) for token in stores[keys.predictions(subject, space)].read("pearson_r")])
            for subject in context.decoded
            if stores[keys.predictions(subject, space)].arrays["pearson_r"].ndim == 2
        }
        if not by_token:
            continue
        if settings.encoder == "clip_vision":
            plots.append(_patch_plot(titled(context, space, "clip_vision", "CLIP vision: mean r by token"), by_token))
            continue
        text = settings.encoder == "clip_text"
        title = (
            titled(context, space, "clip_text", "CLIP text: mean r by token") if text else f"{space}: mean r by token"
        )
        series = [
            Line(name(subject), range(len(values)), values.tolist(), look(context, subject))
            for subject, values in by_token.items()
        ]
        plots.append(lines(title, series, "token of the caption" if text else "token", "mean r", points=False))
    return plots


def _patch_plot(title: str, by_token: Mapping[str, np.ndarray]) -> Plot:
    patches, first = [], []
    for subject, values in by_token.items():
        side = round((len(values) - 1) ** 0.5)
        patches.append((name(subject), values[1 : 1 + side * side].reshape(side, side)))
        first.append(f"{name(subject)} {number(values[0], 2)}")
    note = f"Patches where they lie in the photo. The class token, which stands for the whole: {', '.join(first)}."
    return heat_maps(title, patches, "r", note)


LEAKS = (
    "Folds are runs of trials, as in RidgeCV: trials of one stimulus lie in several folds, so a penalty is judged by "
    "stimuli that its model has seen, and comes out too small."
)


def alpha_plots(context: Context, stores: Stores) -> list[Plot]:
    """Cross-validated scores over the penalties tried, where regress chose among several."""
    plots = []
    score_name = "error (minus the mean square)" if by_rows(context.config) else "R²"
    for space in context.config.decoded_spaces:
        series = []
        note = "Over the latents that were drawn. The stroke marks the penalty chosen for the whole space. "
        if not by_rows(context.config):
            note += "All rows of a stimulus were left out together."
        elif context.config.ridge_of(space).rows == "trials":
            note += LEAKS
        for subject in context.subjects:
            path = keys.selection(subject, space)
            if path not in stores:
                continue
            alpha, score = stores[path].read("alpha"), stores[path].read("score")
            decoder = stores[keys.decoder(subject, design_of(context.config, space).name)]
            chosen = float(decoder.read("space_alpha")[decoder.read("space").tolist().index(space)])
            order = np.argsort(alpha)
            y = [mean(score[i]) for i in order]
            series.append(
                Line(subject, alpha[order].tolist(), y, look(context, subject), chosen if np.isfinite(chosen) else None)
            )
        if series:
            plots.append(
                lines(
                    f"{space}: cross-validated {score_name} by penalty",
                    series,
                    "alpha",
                    f"mean {score_name}",
                    logarithmic=True,
                    note=note,
                )
            )
    return plots


COLUMNS = [
    "subject",
    "voxels used",
    "dropped",
    "trials",
    "missing betas",
    "clipped betas",
    "train stimuli",
    "test stimuli",
    "test repeats",
    "ceiling",
]


def voxel_table(context: Context, stores: Stores) -> Table:
    rows: list[Row] = []
    shown = parts.stimuli(parts.of_run(context))
    remarks = [f"{line}." for line in parts.left_out(context.ready(key) for key in shown)]
    sources = dict.fromkeys(ceiling_of(context, subject).source for subject in context.subjects)
    for subject in context.subjects:
        betas, responses = stores[keys.betas(subject)], stores[_responses(context.config, subject)]
        test = responses.read("split") == "test"
        repeats = responses.read("repeats").astype(float)
        ceiling = _ceiling(context, stores, subject)
        middle = number(float(np.median(ceiling)), 1) + " %" if ceiling.size else "\u2013"
        valid = responses.read("valid").astype(bool)
        of = Account.read(betas, responses)
        counts = [valid.sum(), (~valid).sum(), betas.sizes["trial"], (~test).sum(), test.sum()]
        counts = [*counts[:3], of.missing_betas, of.clipped_betas, *counts[3:]]
        remarks += [f"{subject}: {line}." for line in (*of.lines(), *(f"not decoded from: {n}" for n in of.dropped()))]
        rows.append(Row([subject, *(str(int(n)) for n in counts), number(float(repeats[test].mean()), 2), middle]))
    return Table(
        "Brain data",
        COLUMNS,
        [("", rows)],
        "Test repeats: mean number of trials averaged. Ceiling: median over voxels of the noise ceiling of these "
        "averages, the share of their variance that the stimulus explains, 100 ncsnr² / (ncsnr² + mean(1 / repeats)). "
        f"ncsnr: {'; '.join(sources)}. "
        "Missing betas: no measurement, in no mean. Clipped: cut off at the ends of int16, used. " + " ".join(remarks),
    )


def ceiling_plot(context: Context, stores: Stores) -> Plot:
    rows = [(one, _ceiling(context, stores, one), look(context, one)) for one in context.subjects]
    return histograms("Noise ceiling of the voxels, in percent of variance", rows)


def _ceiling(context: Context, stores: Stores, subject: str) -> np.ndarray:
    """Noise ceilings of the voxels decoded from, for averages over the test repeats, in percent."""
    responses = stores[_responses(context.config, subject)]
    valid, test = responses.read("valid").astype(bool), responses.read("split") == "test"
    repeats = responses.read("repeats").astype(float)[test]
    ceiling = noise_ceiling(ceiling_of(context, subject).ncsnr[valid], 1 / np.mean(1 / repeats))
    return ceiling[np.isfinite(ceiling)]


def tables(context: Context, stores: Stores) -> Sequence[Table]:
    return [ridge_table(context, stores), voxel_table(context, stores)]


def plots(context: Context, stores: Stores) -> Sequence[Plot]:
    return [
        *layer_plots(context, stores),
        *token_plots(context, stores),
        *alpha_plots(context, stores),
        ceiling_plot(context, stores),
    ]
