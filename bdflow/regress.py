"""Stage 3: ridge from responses to latents, all subjects in one pass over each target space.

First each subject's system (the kernel of its stimuli) and from it the hat matrix of each penalty; penalties are those
of the configuration, or chosen by cross-validation. Then blocks of columns: each task reads one block of a target
space once, and predicts it for every subject. On request the weights themselves, and how much each voxel counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bdflow import noise, ridge
from bdflow.config import SPACES, Config
from bdflow.regress_workers import (
    Decoders,
    Factoriser,
    Predictor,
    Reading,
    Selector,
    Summariser,
    SystemMaker,
    Validator,
    Weigher,
)
from bdflow.ridge_plan import Extent, Plan, plan
from bdflow.solver import Solver, clear
from bdflow.stage import Context, Expected, Work, missing_in_any
from stores import Provenance, Store, catalog, text
from stores.place import AnyPath, place

NAME = "regress"


def validates(config: Config) -> bool:
    """Whether training stimuli are predicted from the others: to choose penalties, or for held-out statistics."""
    return config.regress.choose != "fixed" or config.reconstruct.standardise == "held_out"


def candidates(config: Config) -> list[float]:
    """The penalties that are looked at, ascending."""
    settings = config.regress
    values = settings.alpha.model_dump().values() if settings.choose == "fixed" else settings.grid
    return sorted({float(value) for value in values})


def provenances(config: Config, known: Expected) -> dict[str, Provenance]:
    found: dict[str, Provenance] = {}
    settings, chunk = config.regress, config.chunks.columns

    def made(path: str, settings: dict[str, Any], *upstream: str) -> None:
        everything = {**known, **found}
        found[path] = Provenance(NAME, settings, upstream={name: everything[name].fingerprint for name in upstream})

    for subject in config.subjects:
        system, responses = f"systems/{subject}", f"responses/{subject}"
        chosen: dict[str, str] = {}
        made(system, {}, responses)
        if validates(config):
            how = settings.validation.model_dump(exclude={"columns"} | ({"folds"} if _alone(config) else set()))
            made(f"validation/{subject}", {**how, "alphas": candidates(config), "seed": config.seed}, system)
        if settings.choose != "fixed":
            for space in SPACES:
                chosen[space] = f"selection/{subject}/{space}"
                drawn = settings.validation.columns if settings.choose == "per_space" else None
                about = {"columns": drawn, "seed": config.seed, "chunk": chunk}
                made(chosen[space], about, f"validation/{subject}", f"targets/{space}")
        alphas = {"alpha": settings.alpha.model_dump()} if settings.choose == "fixed" else {"choose": settings.choose}
        made(f"decoders/{subject}", alphas, system, *chosen.values())
        for space in SPACES:
            upstream = [f"decoders/{subject}", f"targets/{space}"]
            if config.reconstruct.standardise == "held_out":
                upstream.append(f"validation/{subject}")
            made(f"predictions/{subject}/{space}", {"chunk": chunk}, *upstream)
        for space in settings.weights:
            cut = {"chunk": chunk, "voxels": config.chunks.voxels}
            made(f"weights/{subject}/{space}", cut, f"predictions/{subject}/{space}", responses)
            made(f"importance/{subject}/{space}", {"voxels": config.chunks.voxels}, f"weights/{subject}/{space}")
    return found


def _alone(config: Config) -> bool:
    return config.regress.validation.method == "leave_one_out"


def works(context: Context) -> Iterator[Work]:
    config = context.config
    responses = {subject: context.ready(f"responses/{subject}") for subject in context.subjects}
    targets = {space: context.ready(f"targets/{space}") for space in SPACES}
    how = plan_of(config, responses, targets)
    device = "cuda" if config.execution.regress.gpus else "cpu"
    scratch = scratch_of(config.study)

    systems = {subject: _declare_system(context, subject, responses[subject]) for subject in context.subjects}
    tasks: list[Any] = []
    for subject, system in systems.items():
        missing = system.missing()
        group = max(1, how.kernel_rows // catalog.KERNEL_ROWS) if not how.whole else len(missing)
        tasks += [(subject, missing[i : i + group]) for i in range(0, len(missing), max(group, 1))]
    yield Work("systems", "parts", list(systems.values()), tasks, partial(SystemMaker, responses, systems, how.whole))

    solvers = {
        subject: Solver(responses[subject], context.ready(f"systems/{subject}"), how, scratch, device)
        for subject in context.subjects
    }
    reading = Reading(targets, how.piece_rows)
    validation: dict[str, Store] = {}
    if validates(config):
        validation = {subject: _declare_validation(context, subject, responses[subject]) for subject in solvers}
        yield Work(
            "cross-validation",
            "subjects",
            list(validation.values()),
            [subject for subject, store in validation.items() if store.missing()],
            partial(Validator, solvers, validation, config),
        )
        validation = {subject: context.ready(f"validation/{subject}") for subject in solvers}

    selection: dict[tuple[str, str], Store] = {}
    if config.regress.choose != "fixed":
        drawn = {space: _drawn(config, space, targets[space]) for space in SPACES}
        for subject in context.subjects:
            for space in SPACES:
                selection[subject, space] = _declare_selection(
                    context, subject, space, validation[subject], targets[space]
                )
        yield Work(
            "penalties",
            "blocks of latents",
            list(selection.values()),
            [(*key, partition) for key, store in selection.items() for partition in store.missing()],
            partial(Selector, validation, selection, reading, drawn, device),
        )
        selection = {key: context.ready(f"selection/{key[0]}/{key[1]}") for key in selection}

    decoders = {
        subject: _declare_decoder(context, subject, responses[subject], selection) for subject in context.subjects
    }
    yield Work(
        "hat matrices",
        "subjects",
        list(decoders.values()),
        [subject for subject, decoder in decoders.items() if decoder.missing()],
        partial(Factoriser, solvers, decoders),
    )

    decoders = {subject: context.ready(f"decoders/{subject}") for subject in context.subjects}
    held_out = validation if config.reconstruct.standardise == "held_out" else {}
    stores: dict[str, dict[str, Store]] = {space: {} for space in SPACES}
    tasks = []
    for space in SPACES:
        for subject in context.subjects:
            stores[space][subject] = _declare_predictions(context, subject, space, decoders[subject], targets[space])
        tasks += [(space, partition) for partition in missing_in_any(list(stores[space].values()))]
    chosen = {key: store for key, store in selection.items() if config.regress.choose == "per_target"}
    yield Work(
        "predictions",
        "blocks of latents",
        [store for by_subject in stores.values() for store in by_subject.values()],
        tasks,
        partial(Predictor, Decoders(decoders, held_out, chosen, device), reading, stores),
    )
    if config.regress.weights:
        yield from _weights(context, solvers, reading, device)
    clear(scratch)


def _weights(context: Context, solvers: dict[str, Solver], reading: Reading, device: str) -> Iterator[Work]:
    config, spaces = context.config, context.config.regress.weights
    voxels = config.chunks.voxels
    keys: list[tuple[str, str]] = [(subject, space) for subject in context.subjects for space in spaces]
    predictions = {key: context.ready(f"predictions/{key[0]}/{key[1]}") for key in keys}
    decoders = {subject: context.ready(f"decoders/{subject}") for subject in context.subjects}
    weights = {key: _declare_weights(context, *key, solvers[key[0]].responses, reading.targets[key[1]]) for key in keys}
    tasks = []
    for key, store in weights.items():
        across = len(store.missing()) and store.spec.grid(store.sizes)[1]
        tasks += [(*key, group) for group in sorted({i // across for i in store.missing()})]
    yield Work(
        "weights",
        "blocks of voxels",
        list(weights.values()),
        tasks,
        partial(Weigher, solvers, decoders, reading, weights, predictions),
    )
    weights = {key: context.ready(f"weights/{key[0]}/{key[1]}") for key in keys}
    importance = {
        (subject, space): context.declare(
            f"importance/{subject}/{space}",
            catalog.importance(voxels),
            {"voxel": weights[subject, space].sizes["voxel"]},
            {},
        )
        for subject, space in keys
    }
    yield Work(
        "importance",
        "blocks of voxels",
        list(importance.values()),
        [(*key, partition) for key, store in importance.items() for partition in store.missing()],
        partial(Summariser, weights, predictions, importance),
    )


# --- declarations ---------------------------------------------------------------------------------------------------


def plan_of(config: Config, responses: dict[str, Store], targets: dict[str, Store]) -> Plan:
    """How the systems and predictions fit into the memory of a worker. Raises InputError if they cannot."""
    extents = {}
    held_out = config.regress.validation.stimuli if validates(config) else 0
    for subject, store in responses.items():
        train, test, valid = _extent(store)
        if not valid:
            raise ValueError(f"{store.path}: no valid voxel to decode from")
        dual = ridge.dual_is_cheaper(train, valid, test)
        extents[subject] = Extent(train, test, valid, min(held_out, train), len(candidates(config)), dual)
    columns = 0
    for store in targets.values():
        shape = store.arrays["latent"].shape[1:]
        cut = catalog.column_blocks(shape, config.chunks.columns)
        columns = max(columns, int(np.prod(shape)) * next(iter(cut.values())) // shape[0])
    folds = validates(config) and not _alone(config)
    budget = config.execution.regress.memory
    return plan(extents, columns, config.chunks.voxels, catalog.KERNEL_ROWS, budget and int(budget), folds)


def _extent(responses: Store) -> tuple[int, int, int]:
    """Training stimuli, test stimuli, valid voxels."""
    test = responses.read("split") == "test"
    return int((~test).sum()), int(test.sum()), int((responses.read("valid") == 1).sum())


def _ids(responses: Store) -> tuple[np.ndarray, np.ndarray]:
    """nsd_id of the training and of the test stimuli."""
    ids, test = responses.read("nsd_id"), responses.read("split") == "test"
    return ids[~test], ids[test]


def _declare_system(context: Context, subject: str, responses: Store) -> Store:
    train, test, valid = _extent(responses)
    given: dict[str, np.ndarray]
    if ridge.dual_is_cheaper(train, valid, test):
        dual, sizes = True, {"stimulus": train + test, "train_stimulus": train}
        ids = responses.read("nsd_id")
        given = {"nsd_id": ids, "split": responses.read("split"), "train_nsd_id": _ids(responses)[0]}
    else:
        dual, sizes = False, {"voxel": valid, "other_voxel": valid}
        given = {"voxel": np.flatnonzero(responses.read("valid") == 1)}
    return context.declare(f"systems/{subject}", catalog.systems(dual), sizes, given)


def _declare_validation(context: Context, subject: str, responses: Store) -> Store:
    train, _ = _ids(responses)
    settings, alphas = context.config.regress.validation, candidates(context.config)
    rng = noise.generator(context.config.seed, "validation", subject)
    held_out = np.sort(rng.choice(len(train), min(settings.stimuli, len(train)), replace=False))
    return context.declare(
        f"validation/{subject}",
        catalog.validation(),
        {"alpha": len(alphas), "held_out_stimulus": len(held_out), "train_stimulus": len(train)},
        {"alpha": np.array(alphas), "held_out_nsd_id": train[held_out], "train_nsd_id": train},
    )


def _drawn(config: Config, space: str, targets: Store) -> np.ndarray | None:
    """Flat positions of the latents by which a penalty is chosen, ascending; None for all."""
    if config.regress.choose == "per_target":
        return None
    size = int(np.prod(targets.arrays["latent"].shape[1:]))
    rng = noise.generator(config.seed, "validation columns", space)
    return np.sort(rng.choice(size, min(config.regress.validation.columns, size), replace=False))


def _declare_selection(context: Context, subject: str, space: str, validation: Store, targets: Store) -> Store:
    shape = targets.arrays["latent"].shape[1:]
    alphas = validation.read("alpha")
    return context.declare(
        f"selection/{subject}/{space}",
        catalog.selection(shape, context.config.chunks.columns),
        {"alpha": len(alphas), **dict(zip(catalog.space_dims(shape), shape, strict=True))},
        {"alpha": alphas},
    )


def _declare_decoder(
    context: Context, subject: str, responses: Store, selection: dict[tuple[str, str], Store]
) -> Store:
    settings = context.config.regress
    if settings.choose == "fixed":
        by_space = [float(getattr(settings.alpha, space)) for space in SPACES]
        alphas = sorted(set(by_space))
    elif settings.choose == "per_space":
        by_space = [best_of_space(selection[subject, space]) for space in SPACES]
        alphas = sorted(set(by_space))
    else:
        by_space, alphas = [float("nan")] * len(SPACES), candidates(context.config)
    train, test = _ids(responses)
    return context.declare(
        f"decoders/{subject}",
        catalog.decoders(),
        {"space": len(SPACES), "alpha": len(alphas), "stimulus": len(test), "train_stimulus": len(train)},
        {
            "alpha": np.array(alphas),
            "space_alpha": np.array(by_space),
            "space": text(SPACES),
            "nsd_id": test,
            "train_nsd_id": train,
        },
    )


def best_of_space(selection: Store) -> float:
    """The penalty with the highest mean score over the latents that were drawn."""
    scores = selection.read("score")
    flat = scores.reshape(len(scores), -1)
    known = flat[:, np.isfinite(flat).all(axis=0)]
    if not known.size:
        raise ValueError(f"{selection.path}: none of the latents drawn varies; draw more (regress.validation.columns)")
    return float(selection.read("alpha")[known.mean(axis=1).argmax()])


def _declare_predictions(context: Context, subject: str, space: str, decoder: Store, targets: Store) -> Store:
    shape = targets.arrays["latent"].shape[1:]
    held_out = context.config.reconstruct.standardise == "held_out"
    return context.declare(
        f"predictions/{subject}/{space}",
        catalog.predictions(shape, context.config.chunks.columns, held_out=held_out),
        {"stimulus": decoder.sizes["stimulus"], **dict(zip(catalog.space_dims(shape), shape, strict=True))},
        {"nsd_id": decoder.read("nsd_id")},
    )


def _declare_weights(context: Context, subject: str, space: str, responses: Store, targets: Store) -> Store:
    shape = targets.arrays["latent"].shape[1:]
    chunks = context.config.chunks
    return context.declare(
        f"weights/{subject}/{space}",
        catalog.weights(shape, chunks.columns, chunks.voxels),
        {"voxel": responses.sizes["voxel"], **dict(zip(catalog.space_dims(shape), shape, strict=True))},
        {},
    )


def scratch_of(study: Path | str) -> AnyPath:
    """Where factors larger than memory are kept while they are needed."""
    path = place(study)
    return path.with_name(path.name + ".scratch")
