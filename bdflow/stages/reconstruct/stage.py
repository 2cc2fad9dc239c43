"""Predicted latents into pictures. The VDVAE's guess, then the reconstruction painted from it.

First the predictions of all subjects are averaged, if the configuration asks for the subject `mean`. One pass decodes
the guesses of every subject; a second paints every variant from the same guesses and predictions. Blocks of several
subjects go through the networks together, so that what is left over of each fills batches too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain

from bdflow.config import Config, content
from bdflow.errors import InputError
from bdflow.models.diffusion.kernels import BACKENDS, PARTS
from bdflow.models.encoders import encoder_class, encoder_of, encoder_settings
from bdflow.models.painters import painter_kind
from bdflow.stages.reconstruct.controls import control_step, control_stores, neighbour_step, neighbour_stores
from bdflow.stages.reconstruct.layouts import (
    attention_layout,
    guesses_layout,
    images_layout,
    mean_layout,
    selected_layout,
)
from bdflow.stages.reconstruct.selection import Selector
from bdflow.stages.reconstruct.workers import (
    Averager,
    Guesser,
    Latents,
    Measurer,
    Reconstructor,
    Task,
    ids_of,
    shared_ids,
)
from bdflow.stores import Store, StoreError, text
from bdflow.study import keys, parts
from bdflow.study.graph import StoreDecl
from bdflow.study.painting import (
    attention_keys,
    guess_inputs,
    guess_settings,
    kernels_of,
    packs,
    roles_of,
    shown_of,
    spaces_of,
    variant_inputs,
)
from bdflow.study.parts import Joined
from bdflow.study.stage import MEAN, TRUE, Context, Stage, Step, Work, decoded, missing_in_any, painted, pairs


class Reconstruct(Stage):
    """Mean predictions, guesses, reconstructions."""

    name = "reconstruct"
    uses_torch = True

    def stores(self, config: Config) -> Iterator[StoreDecl]:
        if MEAN in decoded(config, config.subjects):
            for space in config.decoded_spaces:
                settings = {"standardise": config.ridge_of(space).standardise}
                upstream = tuple(keys.predictions(subject, space) for subject in config.subjects)
                upstream = (*parts.targets(space, parts.of_pictures(config, MEAN)), *upstream)
                layout, chunks = partial(mean_layout, config, space), content(config.chunks, "predictions")
                yield StoreDecl(keys.predictions(MEAN, space), layout, settings, upstream=upstream, chunks=chunks)
        yield from neighbour_stores(config)
        for painter in config.painters:
            for key in attention_keys(config, painter):
                kind = painter_kind(config, painter)
                measured = {**guess_settings(config, painter), **kind.measuring_settings()}
                yield StoreDecl(key, attention_layout, measured, kind.inputs, arithmetic=config.networks.arithmetic())
            for subject in painted(config, config.subjects):
                yield from self._pictures(config, painter, subject)

    def _pictures(self, config: Config, painter: str, subject: str) -> Iterator[StoreDecl]:
        roles, kind = spaces_of(config, painter), painter_kind(config, painter)
        common = {"networks": content(config.networks), **guess_settings(config, painter)}
        by_guess = {**content(config.networks), "dtype": kind.guess_dtype}
        guesses = keys.guesses(painter, subject)

        def made_from(spaces: Iterable[str]) -> dict[str, object]:
            return {} if subject == TRUE else {s: config.ridge_of(s).standardise for s in spaces}

        if "guess" in roles:
            settings = {**common, "networks": by_guess, "standardise": made_from([roles["guess"]])}
            layout, chunks = partial(guesses_layout, config, painter, subject), content(config.chunks, "guesses")
            upstream = latent_keys(config, subject, roles["guess"])
            inputs = partial(guess_inputs, config, painter)
            yield StoreDecl(guesses, layout, settings, inputs, upstream, chunks, kind.guess_arithmetic())
        for variant in config.painters[painter].variants:
            used = roles_of(config, painter, variant)
            settings = {
                **common,
                "standardise": made_from(used.values()),
                "variant": variant,
                "painting": kind.variant_settings(variant),
                "pictures": config.painters[painter].pictures,
            }
            made = (latent_keys(config, subject, of) if role != "guess" else (guesses,) for role, of in used.items())
            upstream = tuple(chain.from_iterable(made))
            key, layout = (
                keys.reconstructions(painter, subject, variant),
                partial(images_layout, config, painter, subject),
            )
            chunks, inputs = (
                content(config.chunks, "reconstructions"),
                partial(variant_inputs, config, painter, variant),
            )
            yield StoreDecl(key, layout, settings, inputs, upstream, chunks, kind.arithmetic(variant))
        if subject != TRUE:
            yield from control_stores(config, painter, subject)
        space = config.painters[painter].select_by
        if space is not None and config.painters[painter].select == "best":
            _refuse_blind(config, painter, space)
            settings = {
                "variants": list(shown_of(config, painter, subject)),
                "standardise": made_from([space]),
                "encoder": encoder_settings(config, space),
            }
            variants = (keys.reconstructions(painter, subject, v) for v in shown_of(config, painter, subject))
            upstream = (*variants, *latent_keys(config, subject, space))
            layout, chunks = partial(selected_layout, config, painter, subject), content(config.chunks, "selected")
            rounding = encoder_class(config, space)[0].arithmetic(config.networks, config.features.batch_size)
            read = partial(_encoder_inputs, config, space)
            yield StoreDecl(keys.selected(painter, subject), layout, settings, read, upstream, chunks, rounding)

    def steps(self, context: Context) -> Iterable[Step]:
        config = context.config
        predictions = tuple(keys.predictions(s, space) for s in context.subjects for space in config.decoded_spaces)
        if MEAN in context.decoded:
            means = tuple(keys.predictions(MEAN, space) for space in config.decoded_spaces)
            shown = parts.of_pictures(config, MEAN)
            needs: tuple[str, ...] = (
                *predictions,
                *(key for s in config.decoded_spaces for key in parts.targets(s, shown)),
            )
            yield Step("mean predictions", "blocks of latents", needs, means, partial(_start_means, context))
        yield from neighbour_step(context)
        for painter, settings in config.painters.items():
            named = f" ({painter})" if len(config.painters) > 1 else ""
            roles, attention = spaces_of(config, painter), attention_keys(config, painter)
            if attention:
                begin = partial(_start_measuring, context, painter)
                yield Step(f"attention{named}", "painters", (), attention, begin)
            latents = [k for s in context.painted for space in roles.values() for k in latent_keys(config, s, space)]
            guesses: tuple[str, ...] = ()
            if "guess" in roles:
                guesses = tuple(keys.guesses(painter, s) for s in context.painted)
                needs = tuple(key for s in context.painted for key in latent_keys(config, s, roles["guess"]))
                needs = (*needs, *attention)
                yield Step(f"guesses{named}", "tasks", needs, guesses, partial(_start_guesses, context, painter))
            images = tuple(keys.reconstructions(painter, s, v) for s in context.painted for v in settings.variants)
            needs = tuple(dict.fromkeys([*latents, *guesses, *attention]))
            yield Step(f"reconstructions{named}", "tasks", needs, images, partial(_start_images, context, painter))
            yield from control_step(context, painter, named)
            if settings.select == "best" and settings.select_by is not None:
                images = tuple(
                    keys.reconstructions(painter, s, v) for s in context.painted for v in shown_of(config, painter, s)
                )
                latents = [key for s in context.painted for key in latent_keys(config, s, settings.select_by)]
                best = tuple(keys.selected(painter, s) for s in context.painted)
                begin = partial(_start_selection, context, painter, settings.select_by)
                yield Step(f"best pictures{named}", "blocks of pictures", (*images, *latents), best, begin)


def latent_keys(config: Config, subject: str, space: str) -> tuple[str, ...]:
    """The stores that hold the latents of a subject's pictures."""
    if subject == TRUE:
        return parts.targets(space, parts.of_pictures(config, TRUE))
    return (keys.predictions(subject, space),)


def _encoder_inputs(config: Config, space: str) -> dict[str, str]:
    return dict(encoder_of(config, space).inputs())


def _refuse_blind(config: Config, painter: str, space: str) -> None:
    """InputError unless the space can be had of a picture alone."""
    key = f"painters.{painter}.select_by"
    takes = encoder_class(config, space)[0].takes
    if tuple(takes) != ("image",):
        raise InputError(
            key,
            found=f"{space!r}, whose encoder takes {' and '.join(takes) or 'nothing'}",
            expected="a space whose encoder takes pictures alone",
            meaning="The best picture is the one whose own latent is closest to the predicted one; a picture that was "
            "painted has no captions.",
            action="name another space",
        )


# --- steps ------------------------------------------------------------------------------------------------------------


def _latents(context: Context, painter: str) -> dict[str, Latents]:
    """The latents of every subject's pictures."""
    config = context.config
    spaces = dict.fromkeys(spaces_of(config, painter).values())
    return {
        subject: Latents(
            {space: parts.joined(context, latent_keys(config, subject, space)) for space in spaces},
            {space: _rule(config, subject, space) for space in spaces},
        )
        for subject in context.painted
    }


def _start_measuring(context: Context, painter: str) -> Work:
    store = context.declare(keys.attention(painter), {"part": text(PARTS), "kernel": text(BACKENDS)})
    return Work(store.missing(), partial(Measurer, context.config, painter, store))


def _start_guesses(context: Context, painter: str) -> Work:
    config, latents = context.config, _latents(context, painter)
    stores = {
        subject: context.declare(keys.guesses(painter, subject), {"stimulus_id": latents[subject].test_ids()})
        for subject in context.painted
    }
    blocks = [((subject, p), n) for subject, store in stores.items() for p, n in _missing(store)]
    worker = partial(Guesser, config, painter, kernels_of(context, painter), latents, stores)
    return Work(packs(blocks, config.painters[painter].batch_size), worker)


def _start_images(context: Context, painter: str) -> Work:
    config, latents, settings = context.config, _latents(context, painter), context.config.painters[painter]
    guesses = {}
    if "guess" in spaces_of(config, painter):
        guesses = {subject: context.ready(keys.guesses(painter, subject)) for subject in context.painted}
    stores = {
        (subject, variant): context.declare(
            keys.reconstructions(painter, subject, variant), {"stimulus_id": latents[subject].test_ids()}
        )
        for subject in context.painted
        for variant in settings.variants
    }
    tasks: list[Task] = []
    for variant in settings.variants:
        blocks = [((s, p), n) for (s, v), store in stores.items() if v == variant for p, n in _missing(store)]
        rows = [(block, n * settings.pictures) for block, n in blocks]
        tasks += [(variant, pack) for pack in packs(rows, settings.batch_size)]
    kernels = kernels_of(context, painter)
    return Work(tasks, partial(Reconstructor, config, painter, kernels, latents, guesses, stores))


def _start_selection(context: Context, painter: str, space: str) -> Work:
    config = context.config
    variants = {subject: shown_of(config, painter, subject) for subject in context.painted}
    latents: dict[str, Latents] = {}
    images: dict[tuple[str, str], Store] = {}
    stores: dict[str, Store] = {}
    for subject in context.painted:
        rule = _rule(config, subject, space)
        latents[subject] = Latents({space: parts.joined(context, latent_keys(config, subject, space))}, {space: rule})
        of = {variant: context.ready(keys.reconstructions(painter, subject, variant)) for variant in variants[subject]}
        images |= {(subject, variant): store for variant, store in of.items()}
        given = {"variant": text(variants[subject]), "stimulus_id": of[variants[subject][0]].read("stimulus_id")}
        stores[subject] = context.declare(keys.selected(painter, subject), given)
    return Work(pairs(stores), partial(Selector, config, space, variants, latents, images, stores))


def _start_means(context: Context) -> Work:
    """Predictions of the subject `mean`, of the stimuli that every subject was tested with."""
    config = context.config
    stores: dict[str, Store] = {}
    sources: dict[str, tuple[list[Store], Joined]] = {}
    rules = {}
    for space in config.decoded_spaces:
        predictions = [context.ready(keys.predictions(subject, space)) for subject in sorted(context.subjects)]
        ids = shared_ids([source.read("stimulus_id") for source in predictions])
        if not len(ids):
            raise StoreError(
                keys.predictions(MEAN, space),
                found=f"no stimulus that all of {', '.join(context.subjects)} were tested with",
                expected="some: the mean is taken over the predictions of one stimulus",
                action="set `reconstruct.subject_mean: false`, or choose another test set (`dataset.split`)",
            )
        stores[space] = context.declare(keys.predictions(MEAN, space), {"stimulus_id": ids})
        targets = parts.targets(space, parts.of_pictures(config, MEAN))
        sources[space] = (predictions, parts.joined(context, targets))
        rules[space] = config.ridge_of(space).standardise
    tasks = [(space, partition) for space, store in stores.items() for partition in missing_in_any([store])]
    return Work(tasks, partial(Averager, rules, sources, stores))


def _missing(store: Store) -> list[tuple[int, int]]:
    """(partition, pictures in it) of every partition that is not written yet."""
    return [(partition, len(ids_of(store, partition))) for partition in store.missing()]


def _rule(config: Config, subject: str, space: str) -> str | None:
    """How a subject's predictions are re-standardised. The mean has no held-out predictions of its own, since each
    subject has its own training stimuli: the average of what its members' rule gives is taken as it is."""
    rule = config.ridge_of(space).standardise
    if subject == TRUE:
        return None
    return "none" if subject == MEAN and rule == "held_out" else rule
