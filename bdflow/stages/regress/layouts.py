"""What the stores of ridge look like, and how long their dimensions are."""

from __future__ import annotations

from bdflow.config import Config
from bdflow.regression import ridge
from bdflow.study import catalog
from bdflow.study.coordinates import of_space
from bdflow.study.designs import Design, by_rows, candidates
from bdflow.study.graph import Counts


def system(subject: str, design: Design, counts: Counts) -> catalog.Laid:
    train, test = counts.train_rows(subject, design.rows), counts.test_stimuli(subject)
    voxels, dim = counts.design_voxels(subject, design), catalog.row_dim(design.rows)
    dual = ridge.dual_is_cheaper(train, voxels, test)
    sizes = {dim: train + test, f"train_{dim}": train} if dual else {"voxel": voxels, "other_voxel": voxels}
    return catalog.systems(dual, design.rows), {**sizes, "any_voxel": counts.voxels(subject)}


def validation(config: Config, subject: str, spaces: tuple[str, ...], counts: Counts) -> catalog.Laid:
    train = counts.train_stimuli(subject)
    alphas = len(candidates(config, spaces))
    if by_rows(config):
        rows = min(train, counts.train_rows(subject, config.ridge_of(spaces[0]).rows))
        return catalog.validation_by_rows(), {"alpha": alphas, "error_row": rows, "train_stimulus_id": train}
    held_out = min(config.ridge.validation.stimuli, train)
    sizes = {"alpha": alphas, "held_out_stimulus_id": held_out, "train_stimulus_id": train}
    return catalog.validation(), sizes


def selection(config: Config, space: str, counts: Counts) -> catalog.Laid:
    shape = counts.shape(space)
    sizes = {"alpha": len(candidates(config, (space,))), **catalog.space_sizes(shape)}
    places = of_space(counts, space)
    return catalog.selection(shape, config.chunks.columns, places, by_rows=by_rows(config)), sizes


def decoder(subject: str, design: Design, spaces: tuple[str, ...], counts: Counts) -> catalog.Laid:
    return catalog.decoders(), {
        "space": len(spaces),
        "alpha": counts.decoder_alphas(subject, design),
        "stimulus_id": counts.test_stimuli(subject),
        "train_stimulus_id": counts.train_stimuli(subject),
    }


def predictions(config: Config, subject: str, space: str, held_out: bool, counts: Counts) -> catalog.Laid:
    shape = counts.shape(space)
    places = of_space(counts, space)
    spec = catalog.predictions(shape, config.chunks.columns, places, held_out=held_out)
    return spec, {"stimulus_id": counts.test_stimuli(subject), **catalog.space_sizes(shape)}


def weights(config: Config, subject: str, space: str, counts: Counts) -> catalog.Laid:
    shape, chunks = counts.shape(space), config.chunks
    places = of_space(counts, space)
    spec = catalog.weights(shape, chunks.columns, chunks.voxels, places)
    return spec, {"voxel": counts.voxels(subject), **catalog.space_sizes(shape)}


def importance(config: Config, subject: str, counts: Counts) -> catalog.Laid:
    return catalog.importance(config.chunks.voxels), {"voxel": counts.voxels(subject)}
