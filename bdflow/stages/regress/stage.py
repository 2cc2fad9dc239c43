"""Ridge from responses to latents, all subjects in one pass over each target space.

First each subject's systems (one a design: which rows, which voxels), and from them the hat matrix of each penalty;
penalties are those of the configuration, or chosen by cross-validation. Then blocks of columns: each task reads one
block of a target space once, and predicts it for every subject. On request the weights themselves, and how much each
voxel counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from bdflow import random
from bdflow.config import Config, content
from bdflow.regression.device import refuse_without_cupy
from bdflow.regression.grouping import Grouping
from bdflow.regression.memory_budget import Plan
from bdflow.stages.regress import layouts
from bdflow.stages.regress.predictor import Decoders, Predictor
from bdflow.stages.regress.workers import (
    Factoriser,
    Reading,
    Selector,
    Summariser,
    SystemMaker,
    Validator,
    Weigher,
)
from bdflow.stores import Store, text
from bdflow.study import catalog, keys, parts, region_patterns
from bdflow.study.designs import (
    Design,
    by_rows,
    candidates,
    chosen_spaces,
    design_of,
    designs,
    held_out_spaces,
    validates,
)
from bdflow.study.graph import Inputs, StoreDecl, no_inputs
from bdflow.study.keys import SHARED
from bdflow.study.parts import Joined
from bdflow.study.penalties import decoder_penalties
from bdflow.study.stage import Context, Stage, Step, Work, missing_in_any, pairs
from bdflow.study.system import Solver, clear, extent_of, plan_of, scratch_of

Pair = tuple[str, str]  # (subject, design) or (subject, space)


class Regress(Stage):
    """Systems, penalties, hat matrices, predictions."""

    name = "regress"
    method = 2

    def check(self, context: Context) -> None:
        if _device(context.config) != "cpu":
            refuse_without_cupy(self.name)
        for subject in context.subjects:
            for design in designs(context.config):
                if design.regions is not None and region_patterns.can_be_told(context, subject, design.responses):
                    region_patterns.used_voxels(context, subject, design)

    def stores(self, config: Config) -> Iterator[StoreDecl]:
        for subject in config.subjects:
            for design, spaces in designs(config).items():
                yield from self._of_design(config, subject, design, spaces)
            for space in config.decoded_spaces:
                yield from self._of_space(config, subject, space)

    def _of_design(self, config: Config, subject: str, design: Design, spaces: tuple[str, ...]) -> Iterator[StoreDecl]:
        system, validation = keys.system(subject, design.name), keys.validation(subject, design.name)
        upstream: tuple[str, ...] = (keys.responses(subject, design.responses),)
        inputs: Inputs = no_inputs
        if design.regions is not None:
            upstream = (*upstream, keys.betas(subject))
            inputs = partial(region_patterns.mask_inputs, config, [design.regions], subject)
        about: dict[str, Any] = {"regions": design.regions}
        yield StoreDecl(system, partial(layouts.system, subject, design), about, inputs, upstream)
        if validates(config, spaces):
            how = {**_validation_settings(config), "alphas": candidates(config, spaces), "intercept": design.intercept}
            layout = partial(layouts.validation, config, subject, spaces)
            yield StoreDecl(validation, layout, how, upstream=(system,), arithmetic=_arithmetic(config))
        chosen = chosen_spaces(config, spaces)
        for space in chosen:
            about = {
                "grid": candidates(config, (space,)),
                "columns": config.ridge.validation.columns if config.ridge_of(space).choose == "per_space" else None,
                "seed": config.seed,
                "validation": {**_validation_settings(config), "intercept": design.intercept},
            }
            upstream = (system, *_targets(config, subject, space))
            layout, chunks = partial(layouts.selection, config, space), content(config.chunks, "selection")
            key, rounding = keys.selection(subject, space), _arithmetic(config)
            yield StoreDecl(key, layout, about, upstream=upstream, chunks=chunks, arithmetic=rounding)
        penalties = {space: config.ridge_of(space) for space in spaces}
        about = {
            "alpha": {space: of.alpha for space, of in penalties.items() if of.choose == "fixed"},
            "choose": {space: of.choose for space, of in penalties.items() if of.choose != "fixed"},
        }
        upstream = (system, *(keys.selection(subject, space) for space in chosen))
        layout = partial(layouts.decoder, subject, design, spaces)
        key, rounding = keys.decoder(subject, design.name), _arithmetic(config)
        yield StoreDecl(key, layout, about, upstream=upstream, arithmetic=rounding)

    def _of_space(self, config: Config, subject: str, space: str) -> Iterator[StoreDecl]:
        ridge_settings, design = config.ridge_of(space), design_of(config, space)
        held_out, predictions = ridge_settings.standardise == "held_out", keys.predictions(subject, space)
        # Decoder and validation hold matrices of every penalty of a design's spaces. A space reads those of its own,
        # and these follow from the system: it does not depend on the penalties of other spaces.
        upstream: tuple[str, ...] = (keys.system(subject, design.name), *_targets(config, subject, space))
        about: dict[str, Any] = {"intercept": design.intercept, "choose": ridge_settings.choose}
        if ridge_settings.choose == "fixed":
            about["alpha"] = ridge_settings.alpha
        else:
            upstream = (*upstream, keys.selection(subject, space))
        if held_out:
            about["held_out"] = _validation_settings(config)
        layout, chunks = (
            partial(layouts.predictions, config, subject, space, held_out),
            content(config.chunks, "predictions"),
        )
        rounding = _arithmetic(config)
        yield StoreDecl(predictions, layout, about, upstream=upstream, chunks=chunks, arithmetic=rounding)
        if ridge_settings.weights:
            weights, responses = keys.weights(subject, space), keys.responses(subject, design.responses)
            layout, chunks = partial(layouts.weights, config, subject, space), content(config.chunks, "weights")
            upstream = (predictions, responses)
            yield StoreDecl(weights, layout, upstream=upstream, chunks=chunks, arithmetic=rounding)
            layout, chunks = partial(layouts.importance, config, subject), content(config.chunks, "importance")
            yield StoreDecl(keys.importance(subject, space), layout, upstream=(weights,), chunks=chunks)

    def steps(self, context: Context) -> Iterable[Step]:
        config, subjects = context.config, context.subjects
        all_designs = {design.name: design for design in designs(config)}
        kinds = dict.fromkeys(design.responses for design in all_designs.values())
        responses = tuple(keys.responses(s, kind) for s in subjects for kind in kinds)
        systems = tuple(keys.system(s, name) for s in subjects for name in all_designs)
        labels = tuple(keys.betas(s) for s in subjects) if any(d.regions for d in all_designs.values()) else ()
        targets = tuple(
            dict.fromkeys(k for s in subjects for space in config.decoded_spaces for k in _targets(config, s, space))
        )
        validated = {d.name: d for d, spaces in designs(config).items() if validates(config, spaces)}
        validation = tuple(keys.validation(s, name) for s in subjects for name in validated)
        chosen = [space for space in config.decoded_spaces if config.ridge_of(space).choose != "fixed"]
        selection = tuple(keys.selection(s, space) for s in subjects for space in chosen)
        decoders = tuple(keys.decoder(s, name) for s in subjects for name in all_designs)
        predictions = tuple(keys.predictions(s, space) for s in subjects for space in config.decoded_spaces)
        yield Step("systems", "parts", (*responses, *labels, *targets), systems, partial(_start_systems, context))
        if validation:
            needs = (*responses, *systems)
            yield Step(
                "cross-validation", "subjects", needs, validation, partial(_start_validation, context, validated)
            )
        if selection:
            needs = (*systems, *validation, *targets)
            yield Step("penalties", "blocks of latents", needs, selection, partial(_start_selection, context, chosen))
        needs = (*responses, *systems, *selection)
        yield Step("hat matrices", "subjects", needs, decoders, partial(_start_decoders, context))
        needs = (*systems, *decoders, *validation, *selection, *targets)
        yield Step("predictions", "blocks of latents", needs, predictions, partial(_start_predictions, context))
        kept = [space for space in config.decoded_spaces if config.ridge_of(space).weights]
        if kept:
            weights = tuple(keys.weights(s, space) for s in subjects for space in kept)
            importance = tuple(keys.importance(s, space) for s in subjects for space in kept)
            needs = (*responses, *systems, *decoders, *predictions, *targets)
            yield Step("weights", "blocks of voxels", needs, weights, partial(_start_weights, context, kept))
            needs = (*weights, *predictions)
            yield Step("importance", "blocks of voxels", needs, importance, partial(_start_importance, context, kept))
        yield Step("factors", "studies", predictions, (), partial(_clear, config))


def _targets(config: Config, subject: str, space: str) -> tuple[str, ...]:
    return parts.targets(space, parts.of_pictures(config, subject))


def _validation_settings(config: Config) -> dict[str, object]:
    found = {**content(config.ridge.validation), "seed": config.seed}
    del found["columns"]
    if config.ridge.validation.method == "leave_one_out":
        del found["folds"]
    if by_rows(config):
        del found["stimuli"], found["seed"]
    return found


# --- steps ------------------------------------------------------------------------------------------------------------


def _responses(context: Context, subject: str, design: Design) -> Store:
    return context.ready(keys.responses(subject, design.responses))


def _plan(context: Context) -> Plan:
    """How all systems of this run, and predictions, fit into a worker's memory. Raises InputError if they cannot."""
    config, extents = context.config, {}
    assert context.counts is not None
    for subject in context.subjects:
        for design, spaces in designs(config).items():
            voxels = context.counts.design_voxels(subject, design)
            responses = _responses(context, subject, design)
            extents[subject, design.name] = extent_of(config, spaces, responses, voxels)
    of = parts.targets(next(iter(config.decoded_spaces)), (SHARED, *context.subjects))
    latents = [context.ready(key) for key in of]
    column_bytes = sum(store.sizes["stimulus_id"] * store.arrays["latent"].dtype.itemsize for store in latents)
    return plan_of(config, extents, [context.counts.shape(space) for space in config.decoded_spaces], column_bytes)


def _device(config: Config) -> str:
    return "cuda" if config.execution.regress.gpus else "cpu"


def _share(config: Config) -> float:
    """The share of a GPU's memory that is a worker's."""
    return min(1.0, config.execution.regress.gpus or 1.0)


def _arithmetic(config: Config) -> dict[str, str]:
    return {"device": _device(config)}


def _solvers(context: Context, plan: Plan) -> dict[Pair, Solver]:
    config = context.config
    scratch, device = scratch_of(config.study), _device(config)
    return {
        (subject, design.name): Solver(
            _responses(context, subject, design),
            context.ready(keys.system(subject, design.name)),
            plan,
            scratch,
            device,
            _share(config),
        )
        for subject in context.subjects
        for design in designs(config)
    }


def _reading(context: Context, plan: Plan) -> Reading:
    of = (SHARED, *context.subjects)
    targets = {space: parts.joined(context, parts.targets(space, of)) for space in context.config.decoded_spaces}
    return Reading(targets, plan.piece_rows, plan.whole_blocks)


def _start_systems(context: Context) -> Work:
    plan = _plan(context)
    responses: dict[Pair, Store] = {}
    systems: dict[Pair, Store] = {}
    tasks: list[Any] = []
    for subject in context.subjects:
        for design in designs(context.config):
            pair = (subject, design.name)
            responses[pair] = _responses(context, subject, design)
            systems[pair] = system = _declare_system(context, subject, design, responses[pair])
            missing = system.missing()
            group = len(missing) if plan.whole else max(1, plan.kernel_rows // catalog.KERNEL_ROWS)
            tasks += [(*pair, missing[i : i + group]) for i in range(0, len(missing), max(group, 1))]
    return Work(tasks, partial(SystemMaker, responses, systems, plan.whole, _device(context.config)))


def _declare_system(context: Context, subject: str, design: Design, responses: Store) -> Store:
    key = keys.system(subject, design.name)
    used = region_patterns.used_voxels(context, subject, design)
    given: dict[str, np.ndarray] = {"used": used, "voxel": np.flatnonzero(used)}
    ids, split = responses.read("stimulus_id"), responses.read("split")
    given |= {"stimulus_id": ids, "split": split, "train_stimulus_id": ids[split != "test"]}
    return context.declare(key, given)


def _train_stimuli(responses: Store) -> np.ndarray:
    """stimulus_id of each training stimulus, once."""
    return Grouping(responses.read("stimulus_id")[responses.read("split") != "test"]).ids


def _start_validation(context: Context, validated: dict[str, Design]) -> Work:
    config, solvers = context.config, _solvers(context, _plan(context))
    spaces = {design.name: of for design, of in designs(config).items()}
    stores = {}
    for subject in context.subjects:
        for name, design in validated.items():
            train = _train_stimuli(_responses(context, subject, design))
            rng = random.generator(config.seed, "validation", subject)
            wanted = min(config.ridge.validation.stimuli, len(train))
            held_out = np.sort(rng.choice(len(train), wanted, replace=False))
            alphas = np.array(candidates(config, spaces[name]))
            given = {"alpha": alphas, "train_stimulus_id": train}
            if not by_rows(config):
                given["held_out_stimulus_id"] = train[held_out]
            stores[subject, name] = context.declare(keys.validation(subject, name), given)
    tasks = [pair for pair, store in stores.items() if store.missing()]
    return Work(tasks, partial(Validator, solvers, stores, config, validated))


def _start_selection(context: Context, chosen: list[str]) -> Work:
    config, reading = context.config, _reading(context, _plan(context))
    intercepts = {space: design_of(config, space).intercept for space in chosen}
    stores, validation = {}, {}
    for subject in context.subjects:
        for space in chosen:
            key = keys.validation(subject, design_of(config, space).name)
            validation[subject, space] = context.ready(key)
            given = {"alpha": np.array(candidates(config, (space,)))}
            stores[subject, space] = context.declare(keys.selection(subject, space), given)
    drawn = {space: _drawn(config, space, reading.targets[space]) for space in chosen}
    worker = partial(Selector, validation, stores, reading, drawn, intercepts, _device(config), _share(config))
    return Work(pairs(stores), worker)


def _drawn(config: Config, space: str, targets: Joined) -> np.ndarray | None:
    """Flat positions of the latents by which a penalty is chosen, ascending; None for all."""
    if config.ridge_of(space).choose == "per_target":
        return None
    size = int(np.prod(targets.first.arrays["latent"].shape[1:]))
    rng = random.generator(config.seed, "validation columns", space)
    return np.sort(rng.choice(size, min(config.ridge.validation.columns, size), replace=False))


def _start_decoders(context: Context) -> Work:
    config, solvers = context.config, _solvers(context, _plan(context))
    stores = {}
    for subject in context.subjects:
        for design, spaces in designs(config).items():
            selection = {s: context.ready(keys.selection(subject, s)) for s in chosen_spaces(config, spaces)}
            by_space, alphas = decoder_penalties(config, spaces, selection)
            responses = _responses(context, subject, design)
            given = {
                "alpha": np.array(alphas),
                "space_alpha": np.array(by_space),
                "space": text(spaces),
                "stimulus_id": responses.read("stimulus_id")[responses.read("split") == "test"],
                "train_stimulus_id": _train_stimuli(responses),
            }
            stores[subject, design.name] = context.declare(keys.decoder(subject, design.name), given)
    return Work([pair for pair, store in stores.items() if store.missing()], partial(Factoriser, solvers, stores))


def _start_predictions(context: Context) -> Work:
    config, reading = context.config, _reading(context, _plan(context))
    decoders: dict[Pair, Store] = {}
    validation: dict[Pair, Store] = {}
    selection: dict[Pair, Store] = {}
    stores: dict[str, dict[str, Store]] = {space: {} for space in config.decoded_spaces}
    for subject in context.subjects:
        for space in config.decoded_spaces:
            of, design = config.ridge_of(space), design_of(config, space)
            decoder = context.ready(keys.decoder(subject, design.name))
            decoders[subject, space] = decoder
            if held_out_spaces(config, (space,)):
                validation[subject, space] = context.ready(keys.validation(subject, design.name))
            if of.choose == "per_target":
                selection[subject, space] = context.ready(keys.selection(subject, space))
            given = {"stimulus_id": decoder.read("stimulus_id")}
            stores[space][subject] = context.declare(keys.predictions(subject, space), given)
    responses = {
        (subject, space): _responses(context, subject, design_of(config, space))
        for subject in context.subjects
        for space in config.decoded_spaces
    }
    weights = {
        pair: Grouping(store.read("stimulus_id")[store.read("split") != "test"]).weights
        for pair, store in responses.items()
    }
    intercepts = {space: design_of(config, space).intercept for space in config.decoded_spaces}
    tasks = [(space, p) for space, by_subject in stores.items() for p in missing_in_any(by_subject.values())]
    held = Decoders(decoders, validation, selection, _device(config))
    return Work(tasks, partial(Predictor, held, reading, stores, weights, intercepts, _share(config)))


def _start_weights(context: Context, kept: list[str]) -> Work:
    plan = _plan(context)
    by_design, reading = _solvers(context, plan), _reading(context, plan)
    solvers: dict[Pair, Solver] = {}
    decoders: dict[Pair, Store] = {}
    predictions: dict[Pair, Store] = {}
    weights: dict[Pair, Store] = {}
    tasks = []
    for subject in context.subjects:
        for space in kept:
            pair, design = (subject, space), design_of(context.config, space)
            solvers[pair] = by_design[subject, design.name]
            decoders[pair] = context.ready(keys.decoder(subject, design.name))
            predictions[pair] = context.ready(keys.predictions(subject, space))
            weights[pair] = store = context.declare(keys.weights(subject, space), {})
            across = len(store.missing()) and store.spec.grid(store.sizes)[1]
            tasks += [(*pair, group) for group in sorted({i // across for i in store.missing()})]
    return Work(tasks, partial(Weigher, solvers, decoders, reading, weights, predictions))


def _start_importance(context: Context, kept: list[str]) -> Work:
    all_pairs = [(subject, space) for subject in context.subjects for space in kept]
    weights = {pair: context.ready(keys.weights(*pair)) for pair in all_pairs}
    predictions = {pair: context.ready(keys.predictions(*pair)) for pair in all_pairs}
    importance = {pair: context.declare(keys.importance(*pair), {}) for pair in all_pairs}
    return Work(pairs(importance), partial(Summariser, weights, predictions, importance))


def _clear(config: Config) -> Work:
    clear(scratch_of(config.study))
    return Work()
