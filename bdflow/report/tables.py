"""The tables and plots of the report, from the stores and the journal into text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from bdflow.config import Config
from bdflow.errors import counted
from bdflow.metrics import published
from bdflow.metrics.statistics import INTERVAL, PAIRED, TEST, Difference, Estimate
from bdflow.report import decoding, encoding, making, palette, ranking, similarity
from bdflow.report.page import Cell, Example, Page, Row, Sheet, Table, VoxelMap, number
from bdflow.report.plots import Plot, histograms, sample
from bdflow.report.regions import MAPS_NOTE
from bdflow.report.scores import AVERAGE, Scores, Tested, full_of
from bdflow.stores import Store
from bdflow.study.painting import picture_label, pictures_of
from bdflow.study.region_patterns import vocabulary
from bdflow.study.stage import MEAN, TRUE, Context

TITLE = "Seen images, reconstructed from fMRI"
RIDGE = "the responses of visual cortex: ridge regression predicts latents of frozen networks, "
SUMMARIES = {
    "versatile_diffusion": f"Photos as Brain-Diffuser decodes them from {RIDGE}the VDVAE turns them into a guess, and "
    "Versatile Diffusion paints the reconstruction from it.",
    "stable_diffusion": f"Photos as Takagi & Nishimoto decode them from {RIDGE}and Stable Diffusion paints the "
    "reconstruction from a decoded picture, under a decoded text.",
}
SUMMARY = f"Photos decoded from {RIDGE}and a generator paints the reconstruction from them."
DEMO = (
    "This run used the tiny networks that ship with bdflow; the demo's brains and photos are simulated too. It shows "
    "that every step works. Its pictures are crude, and its scores cannot be compared with the published ones."
)
VARIANTS = {
    "versatile_diffusion": {
        "full": "guess, CLIP vision and CLIP text",
        "only_vdvae": "the guess alone, enlarged",
        "no_vdvae": "painted from noise, without the guess",
        "no_clip_text": "guess and CLIP vision",
        "no_clip_vision": "guess and CLIP text",
    },
    "stable_diffusion": {"full": "z and c", "only_z": "z, under the empty text", "only_c": "c, painted from noise"},
}
"""By kind of painter, what a variant is painted from."""
CONTROLS = {
    "prior": "pictures of other stimuli",
    "retrieval": "the training photo nearest to the prediction",
    "mean_image": "the mean of the training photos",
}
GUESSES = {"versatile_diffusion": "the VDVAE's picture", "stable_diffusion": "the picture of z"}
Stores = Mapping[str, Store]


def ours(config: Config) -> dict[str, str]:
    """The kinds of pictures that are Brain-Diffuser's variants: those that Table 2 has scores of."""
    made = [(p, v) for p, v in pictures_of(config) if config.painters[p].kind == "versatile_diffusion"]
    return {picture_label(config, painter, variant): variant for painter, variant in made}


def described(config: Config) -> dict[str, str]:
    """What every kind of picture is painted from, by its label; of painters of one's own, the variant's name."""
    return {
        picture_label(config, painter, variant): (CONTROLS | VARIANTS.get(config.painters[painter].kind, {})).get(
            variant, variant.replace("_", " ")
        )
        for painter, variant in pictures_of(config)
    }


def page(
    context: Context,
    stores: Stores,
    scores: Scores,
    gallery: Mapping[str, object],
    examples: Sequence[Example],
    regions: Sequence[Sheet],
    maps: Sequence[VoxelMap],
    weight: str,
    journal: Sequence[Mapping[str, object]],
    configuration: str,
) -> Page:
    config = context.config
    versions, bundle = making.versions(stores), config.networks.bundle
    kinds = sorted({painter.kind for painter in config.painters.values()})
    comparable = bundle != "tiny" and "versatile_diffusion" in kinds
    controls = list(dict.fromkeys(control for painter in config.painters.values() for control in painter.controls))
    return Page(
        title=TITLE,
        summary=SUMMARIES.get(kinds[0], SUMMARY) if len(kinds) == 1 else SUMMARY,
        notice=DEMO if bundle == "tiny" else "",
        facts=(
            ("subjects", ", ".join(context.subjects)),
            ("test stimuli", str(len(scores.stimulus_id))),
            ("variants", ", ".join(variant for variant in scores.variants if variant.split("/")[-1] not in CONTROLS)),
            *((("controls", ", ".join(controls)),) if controls else ()),
            ("networks", f"{bundle}, {config.networks.dtype}"),
            ("mask", vocabulary(config).mask or "all voxels"),
            ("seed", str(config.seed)),
        ),
        scores=[
            table_1(scores, comparable=comparable),
            table_2(scores, ours(config), described(config), comparable=comparable),
        ],
        comparisons=[
            table
            for table in (
                beyond_prior(scores),
                other_subjects(scores, described(config)),
                systems(scores),
                ablations(scores),
                contrasts(scores),
            )
            if table.groups
        ],
        distributions=distributions(scores, comparable=comparable),
        similarity_series=[(name, sample(similarity.look(config, name))) for name in similarity.names(config)],
        similarities=tuple(similarity.plots(context, stores, scores)),
        decoding=decoding.tables(context, stores),
        decoding_plots=decoding.plots(context, stores),
        decoding_series=[(decoding.name(one), sample(decoding.look(context, one))) for one in context.decoded],
        examples=examples,
        ranked_by=ranking.words(scores),
        missing=[(metric, why) for metric, why in zip(scores.metrics, scores.missing, strict=True) if why],
        verdict=verdict(scores),
        regions=regions,
        maps=maps,
        maps_note=MAPS_NOTE if maps else "",
        gallery=gallery,
        weight=weight,
        making=[making.time_table(journal)] if journal else [],
        configuration=configuration,
        versions=versions,
        fingerprints=making.fingerprints(context),
        encoding=encoding.tables(context),
        files=tuple(scores.files()),
        footer=f"bdflow {dict(versions).get('bdflow', '')}. Method and published scores: {published.SOURCE}.",
    )


def label(subject: str) -> str:
    """What a row's pictures are made from, as the page says it."""
    return {TRUE: "true latents", MEAN: "mean of predictions", AVERAGE: "average of subjects"}.get(subject, subject)


# --- scores ---------------------------------------------------------------------------------------------------


def _columns(scores: Scores) -> list[str]:
    return [f"{metric} {'↓' if scores.lower_is_better(metric) else '↑'}" for metric in scores.known]


def _estimate(found: Estimate) -> Cell:
    interval = f"{number(found.low)} to {number(found.high)}" if np.isfinite(found.low) else ""
    return (number(found.mean), interval)


def _row(scores: Scores, row: str, variant: str, text: Cell, kind: str = "run") -> Row:
    found = [scores.estimates[row, variant, metric] for metric in scores.known]
    n = max((estimate.n for estimate in found), default=0)
    return Row([text, *map(_estimate, found), str(n)], kind)


def _published(scores: Scores, text: str, known: published.Scores) -> Row | None:
    beside = [published.score(known, metric) for metric in scores.known]
    if all(score is None for score in beside):
        return None
    cells = [number(float("nan") if score is None else score) for score in beside]
    return Row([text, *cells, str(published.TEST_STIMULI)], "published")


def table_1(scores: Scores, *, comparable: bool) -> Table:
    """All subjects in the first variant, or in that of each painter, beside Table 1."""
    kinds, shown = {AVERAGE: "average"}, scores.systems or scores.variants[:1]
    groups = []
    for variant in shown:
        rows = [_row(scores, row, variant, label(row), kinds.get(row, "run")) for row in scores.rows]
        groups.append((variant if scores.systems else "", rows))
    if any(variant == full_of(variant) for variant in shown):
        found = [_published(scores, name, known) for name, known in published.TABLE_1.items()]
        beside = [row for row in found if row is not None]
        if scores.systems and beside:
            groups.append(("published", beside))
        else:
            groups[0][1].extend(beside)
    return Table(
        "Table 1. Agreement of the reconstructions with the photos"
        + ("" if scores.systems else f", {scores.variants[0]}"),
        ["", *_columns(scores), "n"],
        groups,
        " ".join([f"Mean over the test stimuli; below it its {INTERVAL}.", *_notes(scores, comparable)]),
    )


def _ablated(scores: Scores) -> list[str]:
    """Whose variants are shown first: the average, and the subject of Table 2."""
    found = [row for row in (AVERAGE, published.TABLE_2_SUBJECT) if row in scores.rows]
    return found or list(scores.rows[:1])


def table_2(scores: Scores, ours: Mapping[str, str], words: Mapping[str, str], *, comparable: bool) -> Table:
    """Every variant of the average and of the subject of Table 2, beside Table 2. `ours` : which of the pictures are
    Brain-Diffuser's variants; `words` : what each is painted from.
    """
    note = "" if comparable else "Published scores are of the real networks on NSD: not comparable with this run."
    groups = _variants(scores, _ablated(scores), ours, words)
    return Table("Table 2. What each part of the method adds", ["", *_columns(scores), "n"], groups, note)


def other_subjects(scores: Scores, words: Mapping[str, str]) -> Table:
    """Every variant of every other subject."""
    groups = _variants(scores, [row for row in scores.rows if row not in _ablated(scores)], {}, words)
    return Table("Table 2 of the other subjects", ["", *_columns(scores), "n"], groups)


def _variants(
    scores: Scores, order: Sequence[str], ours: Mapping[str, str], words: Mapping[str, str]
) -> list[tuple[str, list[Row]]]:
    groups = []
    for row in order:
        rows = []
        for variant in scores.variants:
            if np.isnan(scores.of(row)[scores.variants.index(variant)]).all() and row == TRUE:
                continue  # true latents have no controls
            rows.append(_row(scores, row, variant, (variant, words[variant])))
            known = published.TABLE_2.get(ours.get(variant, "")) if row == published.TABLE_2_SUBJECT else None
            beside = _published(scores, "published (Table 2)", known) if known else None
            rows += [beside] if beside else []
        groups.append((label(row), rows))
    return groups


def _notes(scores: Scores, comparable: bool) -> list[str]:
    notes = [f"Published rows: {published.SOURCE}. A dash: no published score."]
    if not comparable:
        notes.append("They are of the real networks on NSD: not comparable with this run.")
    if MEAN in scores.subjects:
        notes.append("Mean of predictions: painted from the latents averaged over subjects.")
    if TRUE in scores.subjects:
        notes.append("True latents: painted from the latents of the photo itself, the best that decoding could give.")
    if "CLIP (bundle)" in scores.known:
        notes.append("CLIP (bundle): two-way identification by the CLIP of the bundle, which is not the paper's judge.")
    known = np.array([not why for why in scores.missing])
    undefined = 0
    for subject in scores.subjects:
        value = scores.of(subject)[:, known]
        there = np.isfinite(value).any(axis=(1, 2))  # true latents have no controls
        undefined += int(np.isnan(value[there]).sum())
    if undefined:
        notes.append(f"{undefined} scores are undefined (a flat picture) and left out of the means.")
    return notes


def _difference(found: Difference | Tested | None) -> Cell:
    if found is None:
        return "missing"
    if not found.n:
        return "\u2013"
    sign = "+" if found.mean > 0 else ""
    return (sign + number(found.mean), f"p {'< 0.001' if found.p < 0.001 else f'= {found.p:.3f}'}")


def ablations(scores: Scores) -> Table:
    """Variants against full."""
    others = [variant for variant in scores.variants if variant != full_of(variant)]
    groups = [
        (
            label(row),
            [
                Row([variant, *(_difference(scores.ablations.get((row, variant, m))) for m in scores.known)])
                for variant in others
                if row != TRUE or np.isfinite(scores.of(row)[scores.variants.index(variant)]).any()
            ],
        )
        for row in scores.rows
    ]
    return Table(
        "Variants against full",
        ["variant minus full", *_columns(scores)],
        groups if scores.ablations else [],
        f"Mean difference, and p of a {TEST}.",
    )


def verdict(scores: Scores) -> str:
    """In words: in which scores, of how many subjects, pictures are better than the prior; empty without a prior."""
    lines = []
    for variant, _ in scores.tested:
        name = variant if scores.systems else "The reconstructions"
        better = {
            metric: sum(scores.beyond_prior[subject, variant, metric].better for subject in scores.people)
            for metric in scores.known
        }
        found = [f"{metric} ({n} of {counted(len(scores.people), 'subject')})" for metric, n in better.items() if n]
        if found:
            lines.append(f"{name}: better than the prior in {', '.join(found)}.")
        else:
            lines.append(
                f"{name}: nothing beat the prior. No score is better than that of the same pictures put to other "
                "stimuli: they show what the painter draws anyway, and not what was seen."
            )
    return " ".join(lines)


def beyond_prior(scores: Scores) -> Table:
    """The first variant of each painter against the control `prior`."""
    groups = []
    for variant, prior in scores.tested:
        rows = []
        for row in dict.fromkeys(row for row, of, _ in scores.beyond_prior if of == variant):
            found = [scores.beyond_prior.get((row, variant, metric)) for metric in scores.known]
            n = max((test.n for test in found if test), default=0)
            name = "over subjects" if row == AVERAGE else label(row)
            rows.append(
                Row([name, *(_difference(test) for test in found), str(n)], "average" if row == AVERAGE else "run")
            )
        groups.append((f"{variant} minus {prior}", rows))
    return Table(
        "Beyond the prior",
        ["", *_columns(scores), "n"],
        groups,
        f"{verdict(scores)} Mean difference, and p of a {PAIRED}, corrected over the metrics of a row (Holm). "
        "Over subjects: the same test on the subjects' means, so with few subjects p cannot be small.",
    )


def systems(scores: Scores) -> Table:
    """The painters against each other."""
    groups = []
    for row in scores.rows if scores.systems else ():
        rows = [_row(scores, row, of, of) for of in scores.systems]
        for a, b in combinations(scores.systems, 2):
            found = (scores.between_systems.get((row, a, b, metric)) for metric in scores.known)
            both = np.isfinite(scores.of(row)[[scores.variants.index(a), scores.variants.index(b)]]).all(axis=0)
            rows.append(Row([f"{a} minus {b}", *map(_difference, found), str(int(both.any(axis=0).sum()))]))
        groups.append((label(row), rows))
    return Table(
        "Systems on the same stimuli",
        ["", *_columns(scores), "n"],
        groups,
        f"Means with their {INTERVAL}; mean difference over the stimuli both painted, and p of a {TEST}.",
    )


def contrasts(scores: Scores) -> Table:
    """Subjects against each other."""
    pairs = dict.fromkeys((a, b) for a, b, _ in scores.contrasts)
    rows = [
        Row([f"{label(a)} minus {label(b)}", *(_difference(scores.contrasts.get((a, b, m))) for m in scores.known)])
        for a, b in pairs
    ]
    return Table(
        f"Subjects against each other, {scores.variants[0]}",
        ["", *_columns(scores)],
        [("", rows)] if rows else [],
        f"Mean difference over the stimuli both have, and p of a {TEST}.",
    )


def distributions(scores: Scores, *, comparable: bool) -> list[Plot]:
    """Every metric's scores by subject (first variant), then by variant (average of subjects)."""
    plots = []
    reference = AVERAGE if AVERAGE in scores.rows else scores.rows[0]
    for m, metric in enumerate(scores.metrics):
        if scores.missing[m]:
            continue
        rows = [(label(row), scores.of(row)[0, m], palette.subject(row, scores.people)) for row in scores.rows]
        look = palette.subject(reference, scores.people)
        rows += [(name, scores.of(reference)[v, m], look) for v, name in enumerate(scores.variants) if v]
        known = published.score(published.TABLE_1["Brain-Diffuser"], metric) if comparable else None
        plots.append(histograms(metric, rows, [("published", known)] if known is not None else []))
    return plots
