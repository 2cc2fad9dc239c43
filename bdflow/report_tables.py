"""The numbers of the report, from the stores and the journal into tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from bdflow import published
from bdflow.report_page import Page, Row, Stimulus, Table, number
from bdflow.stage import TRUE, Context
from stores import Store

TITLE = "Seen images, reconstructed from fMRI"
SUMMARY = (
    "Photos as Brain-Diffuser decodes them from the responses of visual cortex: ridge regression predicts latents of "
    "frozen networks, the VDVAE turns them into a guess, and Versatile Diffusion paints the reconstruction from it."
)
DEMO = (
    "This run used the tiny networks that ship with bdflow; the demo's brains and photos are simulated too. It shows "
    "that every step works. Its pictures are crude, and its scores cannot be compared with the published ones."
)
VARIANTS = {
    "full": "full: guess, CLIP vision and CLIP text",
    "only_vdvae": "only_vdvae: the guess alone, enlarged",
    "no_vdvae": "no_vdvae: painted from noise, without the guess",
    "no_clip_text": "no_clip_text: guess and CLIP vision",
    "no_clip_vision": "no_clip_vision: guess and CLIP text",
}
Stores = Mapping[str, Store]


def page(
    context: Context,
    stores: Stores,
    stimuli: Sequence[Stimulus],
    weight: str,
    journal: Sequence[Mapping[str, Any]],
    configuration: str,
) -> Page:
    config = context.config
    versions = _versions(stores)
    bundle = config.networks.bundle
    return Page(
        title=TITLE,
        summary=SUMMARY,
        notice=DEMO if bundle == "tiny" else "",
        facts=(
            ("subjects", ", ".join(context.subjects)),
            ("test stimuli", str(len(stimuli))),
            ("variants", ", ".join(config.reconstruct.variants)),
            ("networks", f"{bundle}, {config.networks.dtype}"),
            ("mask", config.nsd.mask),
            ("seed", str(config.seed)),
        ),
        scores=[score_table(context, stores, comparable=bundle != "tiny")],
        decoding=[ridge_table(context, stores), voxel_table(context, stores)],
        subjects=[source(subject) for subject in context.painted],
        stimuli=stimuli,
        ranked_by="PixCorr",
        thumbnail=config.report.thumbnail,
        weight=weight,
        making=[time_table(journal)] if journal else [],
        configuration=configuration,
        versions=versions,
        fingerprints=_fingerprints(context),
        footer=f"bdflow {dict(versions).get('bdflow', '')}. Method and published scores: {published.SOURCE}.",
    )


# --- scores ---------------------------------------------------------------------------------------------------


def scores(store: Store) -> dict[str, dict[str, dict[int, float]]]:
    """A metrics store as variant -> metric -> nsd_id -> score."""
    ids, value = store.read("nsd_id").tolist(), store.read("value")
    variants, metrics = (store.read(name).tolist() for name in ("variant", "metric"))
    return {
        str(variant): {
            str(metric): dict(zip(ids, value[v, m].tolist(), strict=True)) for m, metric in enumerate(metrics)
        }
        for v, variant in enumerate(variants)
    }


def source(subject: str) -> str:
    """What a subject's pictures are made from, as the page says it."""
    return "true latents" if subject == TRUE else subject


def short_names(metrics: Iterable[str]) -> list[str]:
    """Metric names without their protocol, where that leaves them distinct."""
    names = list(metrics)
    bases = [published.base(name) for name in names]
    return [base if bases.count(base) == 1 else name for name, base in zip(names, bases, strict=True)]


def mean(values: Iterable[float]) -> float:
    """Mean over those that are defined."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def score_table(context: Context, stores: Stores, *, comparable: bool) -> Table:
    by_subject = {subject: scores(stores[f"metrics/{subject}"]) for subject in context.painted}
    first = by_subject[context.subjects[0]]
    names = list(next(iter(first.values())))
    groups, undefined = [], 0
    for variant in context.config.reconstruct.variants:
        rows, means, bound = [], [], []
        for subject, found in by_subject.items():
            values = [list(found[variant][name].values()) for name in names]
            undefined += int(sum((~np.isfinite(value)).sum() for value in values))
            here = [mean(value) for value in values]
            row = Row([source(subject), *map(number, here), str(len(values[0]))])
            if subject == TRUE:
                bound = [row]
            else:
                rows.append(row)
                means.append(here)
        if len(rows) > 1:
            average = [mean(column) for column in zip(*means, strict=True)]
            label = f"average of {len(means)} subjects"
            rows.append(Row([label, *map(number, average), ""], "average"))
        rows += bound
        for label, known in published.rows(variant).items():
            beside = [published.score(known, name) for name in names]
            if any(score is not None for score in beside):
                cells = [number(float("nan") if score is None else score) for score in beside]
                rows.append(Row([label, *cells, str(published.TEST_STIMULI)], "published"))
        groups.append((VARIANTS[variant], rows))
    arrows = [f"{name} {'↓' if published.base(name) in published.LOWER_IS_BETTER else '↑'}" for name in names]
    note = "True latents: painted from the latents of the photo itself, the best that decoding could give. "
    note = note if TRUE in by_subject else ""
    note += f"Mean over the test stimuli. Table 1 and 2 are those of {published.SOURCE}. A dash: no published score."
    if not comparable:
        note += " Published scores are of the real networks on NSD: not comparable with this run."
    if undefined:
        note += f" {undefined} scores are undefined (a flat picture) and left out of the means."
    return Table("Agreement of the reconstructions with the photos", ["", *arrows, "n"], groups, note)


# --- decoding -------------------------------------------------------------------------------------------------


def chance_r(n: int) -> float:
    """The correlation over `n` samples that unrelated ones exceed in 5% of cases (one-sided t test)."""
    if n < 3:
        return float("nan")
    t = stats.t.ppf(0.95, n - 2)
    return float(t / np.sqrt(n - 2 + t * t))


def ridge_table(context: Context, stores: Stores) -> Table:
    groups = []
    for subject in context.subjects:
        rows = []
        for path in (path for path in stores if path.startswith(f"predictions/{subject}/")):
            store = stores[path]
            r2, r = (store.read(name).ravel() for name in ("r2", "pearson_r"))
            n = store.sizes["stimulus"]
            above = f"{np.mean(r > chance_r(n)):.0%}" if n >= 3 else "\u2013"
            shape = " × ".join(str(size) for size in store.arrays["latent"].shape[1:])
            medians = [number(float(np.median(v[np.isfinite(v)])) if np.isfinite(v).any() else np.nan) for v in (r, r2)]
            rows.append(Row([path.rpartition("/")[2], shape, *medians, above, str(n)]))
        groups.append((subject, rows))
    return Table(
        "Ridge: predicted against true latents of the test stimuli",
        ["target space", "latents", "median r", "median R²", "r above chance", "n"],
        groups,
        "r: Pearson correlation of a latent over the test stimuli; R² is negative where the prediction is worse than "
        "the test mean. Above chance: share of latents whose r unrelated predictions would exceed in 5% of cases, so "
        "5% is what chance gives.",
    )


def voxel_table(context: Context, stores: Stores) -> Table:
    rows = []
    for subject in context.subjects:
        betas, responses = stores[f"betas/{subject}"], stores[f"responses/{subject}"]
        valid = responses.read("valid").astype(bool)
        test = responses.read("split") == "test"
        repeats = responses.read("repeats").astype(float)
        ceiling = noise_ceiling(betas.read("ncsnr")[valid], repeats[test])
        ceiling = ceiling[np.isfinite(ceiling)]
        median = number(float(np.median(ceiling)), 1) + " %" if ceiling.size else "\u2013"
        counts = [valid.sum(), (~valid).sum(), betas.sizes["trial"], (~test).sum(), test.sum()]
        rows.append(Row([subject, *(str(int(n)) for n in counts), number(float(repeats[test].mean()), 2), median]))
    return Table(
        "Brain data",
        ["subject", "voxels used", "dropped", "trials", "train stimuli", "test stimuli", "test repeats", "ceiling"],
        [("", rows)],
        "Test repeats: mean number of trials averaged. Ceiling: median over voxels of the noise ceiling of these "
        "averages, the share of their variance that the stimulus explains, 100 ncsnr² / (ncsnr² + mean(1 / repeats)).",
    )


def noise_ceiling(ncsnr: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Explainable variance in percent, by voxel, of responses averaged over `repeats` trials (NSD's formula)."""
    square = ncsnr.astype(np.float64) ** 2
    return 100 * square / (square + np.mean(1 / repeats))


# --- how it was made ------------------------------------------------------------------------------------------


def time_table(journal: Sequence[Mapping[str, Any]]) -> Table:
    """Work of all runs, summed by stage and kind, in the order it first happened."""
    works: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in journal:
        works.setdefault((str(entry.get("stage", "")), str(entry["work"])), []).append(entry)
    rows = []
    for (stage, work), parts in works.items():
        tasks = sum(len(part["seconds"]) for part in parts)
        wall = sum(float(part["wall_seconds"]) for part in parts)
        busy = sum(float(part["seconds"].sum()) for part in parts)
        again = sum(int((part["attempts"] - 1).sum()) for part in parts)
        where = sorted({_where(part) for part in parts})
        rate = f"{tasks / wall:.3g} /s" if wall > 0 else "\u2013"
        unit = str(parts[0]["unit"])
        rows.append(
            Row([stage, work, ", ".join(where), f"{tasks} {unit}", duration(wall), duration(busy), rate, str(again)])
        )
    total = [duration(sum(float(e["wall_seconds"]) for e in journal))]
    total.append(duration(sum(float(e["seconds"].sum()) for e in journal)))
    rows.append(Row(["total", "", "", "", *total, "", ""], "total"))
    runs = len({entry["run"] for entry in journal})
    return Table(
        f"Time, over {runs} run{'s' * (runs > 1)}",
        ["stage", "work", "where", "done", "time", "worker time", "throughput", "retried"],
        [("", rows)],
        "Time is that of the clock; worker time sums over workers. What later runs computed again counts again.",
        texts=3,
    )


def _where(entry: Mapping[str, Any]) -> str:
    gpus = float(entry.get("gpus", 0))
    workers, threads = int(entry.get("workers", 1)), int(entry.get("threads", 1))
    parts = [f"{workers} worker{'s' * (workers > 1)}", f"{threads} thread{'s' * (threads > 1)}"]
    parts += [f"{gpus:g} GPU"] if gpus else []
    return f"{entry.get('executor', '')}: " + " × ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in words: 0.8 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _versions(stores: Stores) -> list[tuple[str, str]]:
    """Versions recorded in the stores; several where stores were made with several."""
    found: dict[str, dict[str, None]] = {}
    for store in stores.values():
        for package, version in store.provenance.get("versions", {}).items():
            found.setdefault(package, {})[version] = None
    return [(package, " and ".join(sorted(versions))) for package, versions in found.items()]


def _fingerprints(context: Context) -> Table:
    others = set(context.config.subjects) - set(context.subjects)
    rows = [
        Row([path, provenance.stage, provenance.fingerprint])
        for path, provenance in context.expected.items()
        if not others.intersection(path.split("/"))
    ]
    return Table(
        "What each store was made from",
        ["store", "stage", "fingerprint"],
        [("", rows)],
        "Equal fingerprints: made from the same settings, files and stores.",
        texts=3,
    )
