"""Decode any pattern of responses from a sealed decoder: new responses, averages, regions of interest.

Nothing is fitted again: the stored system gives the pattern's row of the hat matrix, and one walk through the targets
its latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bdflow import ridge, ridge_blocks
from bdflow.columns import Columns, ahead
from bdflow.config import SPACES
from bdflow.device import to_host
from bdflow.errors import InputError
from bdflow.ridge_plan import PIECE
from bdflow.solver import Solver
from bdflow.stage import Context
from stores import Store, catalog


def read_array(path: Path, expected: str) -> np.ndarray:
    """The array of a .npy file. Raises InputError for what is not one, or holds Python objects."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(
            path,
            found=f"a file that cannot be read ({error})",
            expected=f"{expected}, written by numpy.save",
            action="correct the path, or write the file with numpy.save",
        ) from error
    if not isinstance(values, np.ndarray):
        raise InputError(path, found="several arrays", expected=f"{expected}, written by numpy.save", action="save one")
    return values


def solver_of(context: Context, subject: str) -> Solver:
    """The subject's ridge system, ready to be solved. Raises NotReady if `regress` has not been run."""
    from bdflow.regress import plan_of, scratch_of

    responses = {subject: context.ready(f"responses/{subject}")}
    how = plan_of(context.config, responses, {space: context.ready(f"targets/{space}") for space in SPACES})
    return Solver(responses[subject], context.ready(f"systems/{subject}"), how, scratch_of(context.config.study))


def z_scored_patterns(responses: Store, patterns: np.ndarray) -> np.ndarray:
    """Patterns in percent signal change, (k, voxels) of the subject's mask, by the training mean and SD of each voxel.

    Raises
    ------
    InputError : another number of voxels, or a value that is not finite at a voxel that is decoded from.
    """
    voxels = responses.sizes["voxel"]
    if patterns.ndim != 2 or patterns.shape[1] != voxels:
        raise InputError(
            "patterns",
            found=f"an array of shape {patterns.shape}",
            expected=f"(patterns, {voxels}): the voxels of {responses.path}, in its order",
            action="take the patterns from the same mask as the responses",
        )
    mean, scale, valid = (responses.read(name) for name in ("voxel_mean", "voxel_scale", "valid"))
    used = valid == 1
    bad = np.argwhere(~np.isfinite(patterns[:, used]))
    if len(bad):
        raise InputError(
            "patterns",
            found=f"{len(bad)} values that are not finite (first: pattern {bad[0][0]})",
            expected="a number at every voxel that is decoded from",
            action="mend or leave out these patterns; voxels with `valid` 0 may hold anything",
        )
    values = np.where(used, patterns, 0).astype(np.float32)
    return ridge.standardise(values, np.where(used, mean, 0), np.where(used, scale, 0))


class Decoder:
    """A subject's stored decoder. With `keep` it holds the kernel and the factor of each alpha, so that patterns that
    come later cost a solve and the walk through the targets: 4 n^2 (1 + alphas) bytes of n training stimuli.

    Raises
    ------
    NotReady : the stage `regress` is not done.
    """

    def __init__(self, context: Context, subject: str, *, keep: bool = False) -> None:
        self.context, self.subject, self.keep = context, subject, keep
        self.solver = solver_of(context, subject)
        self.system = self.solver.ridge_system(keep) if keep else None

    def latents(self, z_scored: np.ndarray, spaces: Sequence[str]) -> dict[str, np.ndarray]:
        """Raw latents (k, ...) float32 of z-scored patterns (k, voxels), in each of these target spaces."""
        stores = {space: self.context.ready(f"predictions/{self.subject}/{space}") for space in spaces}
        alphas = {space: store.read("alpha") for space, store in stores.items()}
        used = np.unique(np.concatenate([alpha.ravel() for alpha in alphas.values()])).astype(float).tolist()
        system = self.system or self.solver.ridge_system()
        hats = system.hat_matrices(self.solver.of_patterns(z_scored), used)
        matrices = {alpha: np.asarray(to_host(hat), dtype=np.float32) for alpha, hat in zip(used, hats, strict=True)}
        return {space: self._walk(matrices, space, alpha) for space, alpha in alphas.items()}

    def _walk(self, matrices: dict[float, np.ndarray], space: str, alpha: np.ndarray) -> np.ndarray:
        context = self.context
        decoder, targets = context.ready(f"decoders/{self.subject}"), context.ready(f"targets/{space}")
        used = np.unique(alpha).astype(float).tolist()
        chosen = [matrices[value] for value in used]
        ((dim, length),) = catalog.column_blocks(alpha.shape, context.config.chunks.columns).items()
        width = min(length, alpha.shape[0])
        per_piece = max(512, PIECE // (4 * width * int(np.prod(alpha.shape[1:]))))
        columns = Columns(targets, targets.rows("nsd_id", decoder.read("train_nsd_id")), per_piece)
        found = np.empty((len(chosen[0]), *alpha.shape), dtype=np.float32)
        scratch = ridge_blocks.Scratch()
        for start in range(0, alpha.shape[0], width):
            block = slice(start, min(start + width, alpha.shape[0]))
            which = np.searchsorted(used, alpha[block].ravel()) if len(used) > 1 else None
            walked = ridge_blocks.walk(chosen, ahead(columns.requests({dim: block}, scratch)), which, scratch)
            values = walked.product + (walked.first + walked.mean).astype(np.float32)
            found[:, block] = values.reshape(len(values), *alpha[block].shape)
        return found


def statistics_of(predictions: Store, rule: str) -> dict[str, np.ndarray]:
    """What a rule re-standardises by, as stored with predictions. Raises InputError if it is not stored there."""
    absent = [name for name in ridge.RULES[rule] if name not in predictions.arrays]
    if absent:
        raise InputError(
            f"rule {rule!r}",
            found=f"no {', '.join(absent)} in {predictions.path}",
            expected="the statistics of that rule",
            action="set reconstruct.standardise=held_out and run `regress`, or choose another rule",
        )
    return {name: predictions.read(name) for name in ridge.RULES[rule]}


def decode(context: Context, subject: str, z_scored: np.ndarray, space: str, rule: str = "none") -> np.ndarray:
    """Latents that the subject's stored decoder predicts for z-scored patterns.

    Parameters
    ----------
    z_scored : (k, voxels), see `z_scored_patterns`; a region of interest is a pattern of 1 and 0.
    space : `vdvae`, `clip_vision` or `clip_text`.
    rule : re-standardisation by the statistics stored with the predictions, see `ridge.restandardise`.

    Returns
    -------
    (k, ...) float32 latents.

    Raises
    ------
    NotReady : the stage `regress` is not done. InputError : statistics of another rule are stored.
    """
    statistics = statistics_of(context.ready(f"predictions/{subject}/{space}"), rule)
    return ridge.restandardise(Decoder(context, subject).latents(z_scored, (space,))[space], rule, statistics)


def write(context: Context, subject: str, patterns: np.ndarray, out: Path, rule: str) -> None:
    """Decode patterns in percent signal change and write a Zarr group for each target space, for xarray.

    Raises
    ------
    InputError : `out` exists; the patterns do not fit. NotReady : the stage `regress` is not done.
    """
    import xarray

    if out.exists():
        raise InputError(out, found="something there already", expected="a new path", action="choose another --out")
    z_scored = z_scored_patterns(context.ready(f"responses/{subject}"), patterns)
    trees = {}
    for space in SPACES:
        values = decode(context, subject, z_scored, space, rule)
        dims = ("pattern", *catalog.space_dims(values.shape[1:]))
        attrs = {"long_name": "decoded latent", "units": "1"}
        made = {
            "subject": subject,
            "standardise": rule,
            "decoder": context.expected[f"predictions/{subject}/{space}"].fingerprint,
        }
        trees[f"/{space}"] = xarray.Dataset({"latent": (dims, values, attrs)}, attrs=made)
    partial = out.with_name(out.name + ".partial")
    xarray.DataTree.from_dict(trees).to_zarr(str(partial), mode="w", zarr_format=3, consolidated=False)
    partial.rename(out)
