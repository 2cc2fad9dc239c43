"""Decode any pattern of responses from a sealed decoder: new responses, averages, regions of interest.

Nothing is fitted again: the stored system gives the pattern's row of the hat matrix, and one walk through the targets
its latents.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bdflow import npy
from bdflow.datasets.contract import Units
from bdflow.errors import InputError, counted, listed
from bdflow.regression import ridge, streaming
from bdflow.regression.device import to_host
from bdflow.regression.memory_budget import PIECE
from bdflow.stores import Store
from bdflow.study import catalog, keys, labelled, parts
from bdflow.study.coordinates import of_store
from bdflow.study.designs import Design, design_of, designs
from bdflow.study.keys import SHARED
from bdflow.study.stage import Context
from bdflow.study.system import Solver, extent_of, plan_of, scratch_of
from bdflow.study.target_reader import Columns, ahead

if TYPE_CHECKING:
    import xarray


log = getLogger(__name__)

FAR = 20.0
"""SDs from the training mean: patterns of which half the values lie further away are most likely in another unit."""
NEAR = 0.03
"""SDs over several patterns: below that, half of the voxels hardly change, as betas that were divided by 100 or 300."""


def read_array(path: Path, expected: str) -> np.ndarray:
    """The array of a .npy file. Raises InputError for what is not one, is not whole, or holds Python objects."""
    try:
        return npy.load(path)
    except (OSError, ValueError) as error:
        raise InputError(
            path,
            found=f"a file that cannot be read ({error})",
            expected=f"{expected}, written by numpy.save",
            action="correct the path, or write the file with numpy.save",
        ) from error


def solver_of(context: Context, subject: str, design: Design) -> Solver:
    """The subject's system of a design, ready to be solved. Raises NotReady if `regress` has not been run."""
    config, spaces = context.config, designs(context.config)[design]
    responses = context.ready(keys.responses(subject, design.responses))
    system = context.ready(keys.system(subject, design.name))
    extent = extent_of(config, spaces, responses, int((system.read("used") == 1).sum()))
    shapes = [context.ready(keys.targets(space, SHARED)).arrays["latent"].shape[1:] for space in spaces]
    how = plan_of(config, {(subject, design.name): extent}, shapes)
    return Solver(responses, system, how, scratch_of(config.study))


def responses_of(context: Context, subject: str, space: str) -> Store:
    """The rows that a space is decoded from: patterns have their voxels and units."""
    return context.ready(keys.responses(subject, design_of(context.config, space).responses))


def units_of(responses: Store) -> Units:
    """The unit of rows, and of patterns for them: that of the betas, or z where they are z-scored within sessions."""
    stated = str(responses.arrays["voxel_mean"].attrs.get("units", ""))
    return {of: name for name, of in catalog.UNITS.items()}[stated]


def spaces_in(context: Context, subject: str, units: str | None) -> tuple[str, ...]:
    """The spaces that patterns in a unit are decoded in: those whose rows are in it; others are named in the log.

    Parameters
    ----------
    units : of `bdflow.datasets.contract.Units`; None: that of all rows.

    Raises
    ------
    InputError : no rows in this unit; None, where spaces are decoded from rows in different units.
    """
    by_units: dict[str, list[str]] = {}
    for space in context.config.decoded_spaces:
        by_units.setdefault(units_of(responses_of(context, subject, space)), []).append(space)
    said = listed((f"{name} for {listed(spaces)}" for name, spaces in by_units.items()), joint="; ")
    if units is None and len(by_units) > 1:
        raise InputError(
            "patterns",
            found="no unit of theirs",
            expected=said,
            meaning="Spaces are decoded from rows in different units, and a pattern is in one.",
            action="say the unit (`units`; `--units` on the command line), and decode in the spaces of each on its own",
        )
    if units is not None and units not in by_units:
        raise InputError(
            "units",
            found=repr(units),
            expected=f"the unit of the rows that are decoded from: {said}",
            meaning="The decoder would take the patterns for responses of another size.",
            action="bring the patterns into this unit",
        )
    chosen = next(iter(by_units)) if units is None else units
    others = [space for name, spaces in by_units.items() if name != chosen for space in spaces]
    if others:
        log.info("not decoded, since their rows are in other units than %s: %s.", chosen, listed(others))
    return tuple(by_units[chosen])


def warn_of_units(subject: str, z_scored: np.ndarray, units: str) -> None:
    """Say where patterns are so far from the training responses that they are most likely in another unit."""
    middle = float(np.median(np.abs(z_scored))) if z_scored.size else 0.0
    if middle > FAR:
        log.warning(
            "%s: half of the values of the patterns are more than %.0f SDs from the mean of the training responses, "
            "where about 1 is usual. Are they in the unit of the rows (%s)?",
            subject,
            middle,
            units,
        )
    varied = z_scored[:, (z_scored != 0).any(axis=0)]
    if len(varied) > 1 and varied.size and float(np.median(varied.std(axis=0))) < NEAR:
        log.warning(
            "%s: over the patterns, half of the voxels change by less than %.2f of the SD of the training responses, "
            "where about 1 is usual: all are decoded as nearly the same. Are they in the unit of the rows (%s)?",
            subject,
            NEAR,
            units,
        )


def z_scored_patterns(responses: Store, patterns: np.ndarray) -> np.ndarray:
    """Patterns (k, voxels of the subject's mask) in the unit of the rows, by the training mean and SD of each voxel.

    Raises
    ------
    InputError : another number of voxels, no real numbers, or a value that is not finite in float32 at a voxel that is
        decoded from.
    """
    voxels = responses.sizes["voxel"]
    npy.real("patterns", patterns, f"real numbers, in the unit of the rows ({units_of(responses)})")
    if patterns.ndim != 2 or patterns.shape[1] != voxels:
        raise InputError(
            "patterns",
            found=f"an array of shape {patterns.shape}",
            expected=f"(patterns, {voxels}): the voxels of {responses.path}, in its order",
            action="take the patterns from the same mask as the responses",
        )
    mean, scale, valid = (responses.read(name) for name in ("voxel_mean", "voxel_scale", "valid"))
    used = valid == 1
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.where(used, patterns, 0).astype(np.float32)
        z_scored = ridge.standardise(values, np.where(used, mean, 0), np.where(used, scale, 0))
    bad = np.argwhere(~np.isfinite(z_scored))
    if len(bad):
        raise InputError(
            "patterns",
            found=f"{counted(len(bad), 'value')} not finite in float32 (first: pattern {bad[0][0]})",
            expected="a number at every voxel that is decoded from",
            action="mend or leave out these patterns; voxels with `valid` 0 may hold anything",
        )
    return z_scored


class Decoder:
    """A subject's stored decoder. With `keep` it holds the kernel and the factor of each alpha, so that patterns that
    come later cost a solve and the walk through the targets: 4 n^2 (1 + alphas) bytes of n training rows, for each
    design.

    Raises
    ------
    NotReady : the stage `regress` is not done.
    """

    def __init__(self, context: Context, subject: str, *, keep: bool = False) -> None:
        self.context, self.subject, self.keep = context, subject, keep
        self._solvers: dict[Design, Solver] = {}
        self._systems: dict[Design, Any] = {}

    def _solver(self, design: Design) -> Solver:
        if design not in self._solvers:
            self._solvers[design] = solver_of(self.context, self.subject, design)
        return self._solvers[design]

    def _system(self, design: Design) -> Any:
        if not self.keep:
            return self._solver(design).ridge_system()
        if design not in self._systems:
            self._systems[design] = self._solver(design).ridge_system(True)
        return self._systems[design]

    def latents(self, z_scored: np.ndarray | Mapping[str, np.ndarray], spaces: Sequence[str]) -> dict[str, np.ndarray]:
        """Raw latents (k, ...) float32 of z-scored patterns (k, voxels), in each of these target spaces. Patterns may
        be given by space, where spaces are decoded from rows of different kinds.
        """
        shapes = {space: self._predictions(space).arrays["alpha"].shape for space in spaces}
        found: dict[str, np.ndarray] = {}
        for space, block, values in self.blocks(z_scored, spaces):
            if space not in found:
                found[space] = np.empty((len(values), *shapes[space]), np.float32)
            found[space][:, block] = values
        return {space: found[space] for space in spaces}

    def blocks(
        self, z_scored: np.ndarray | Mapping[str, np.ndarray], spaces: Sequence[str]
    ) -> Iterator[tuple[str, slice, np.ndarray]]:
        """What `latents` gives, by blocks of columns: a space, where the block lies along the first dimension of its
        latents, and the raw latents (k, ...) float32 of all patterns there. One block is in memory at a time.
        """
        config = self.context.config
        for design, members in designs(config).items():
            wanted = [space for space in spaces if space in members]
            if not wanted:
                continue
            patterns = z_scored if isinstance(z_scored, np.ndarray) else z_scored[wanted[0]]
            alphas = {space: self._predictions(space).read("alpha") for space in wanted}
            used = np.unique(np.concatenate([alpha.ravel() for alpha in alphas.values()])).astype(float).tolist()
            solver = self._solver(design)
            hats = self._system(design).hat_matrices(solver.of_patterns(patterns), used)
            matrices = {
                alpha: np.asarray(to_host(solver.grouping.sum_columns(hat)), dtype=np.float32)
                for alpha, hat in zip(used, hats, strict=True)
            }
            for space, alpha in alphas.items():
                for block, values in self._walk(design, matrices, space, alpha):
                    yield space, block, values

    def _predictions(self, space: str) -> Store:
        """The store that says the penalty of each latent of a space, `alpha`."""
        return self.context.ready(keys.predictions(self.subject, space))

    def _walk(
        self, design: Design, matrices: dict[float, np.ndarray], space: str, alpha: np.ndarray
    ) -> Iterator[tuple[slice, np.ndarray]]:
        context = self.context
        decoder = context.ready(keys.decoder(self.subject, design.name))
        shown = parts.of_pictures(context.config, self.subject)
        targets = parts.joined(context, parts.targets(space, shown))
        weights = self._solver(design).grouping.weights
        used = np.unique(alpha).astype(float).tolist()
        chosen = [matrices[value] for value in used]
        ((dim, length),) = catalog.column_blocks(alpha.shape, context.config.chunks.columns).items()
        width = min(length, alpha.shape[0])
        per_piece = max(512, PIECE // (4 * width * int(np.prod(alpha.shape[1:]))))
        columns = Columns(targets, targets.rows("stimulus_id", decoder.read("train_stimulus_id")), per_piece)
        scratch = streaming.Scratch()
        for start in range(0, alpha.shape[0], width):
            block = slice(start, min(start + width, alpha.shape[0]))
            which = np.searchsorted(used, alpha[block].ravel()) if len(used) > 1 else None
            pieces = ahead(columns.requests({dim: block}, scratch))
            walked = streaming.walk(chosen, pieces, which, scratch, weights)
            values = walked.product
            if design.intercept:
                values = values + (walked.first + walked.mean).astype(np.float32)
            yield block, np.asarray(values, np.float32).reshape(len(values), *alpha[block].shape)


def check_rule(rule: str) -> None:
    """Raise InputError for a rule of re-standardisation that there is not."""
    if rule not in ridge.RULES:
        raise InputError(
            "standardise", found=repr(rule), expected="one of " + ", ".join(ridge.RULES), action="choose one of these"
        )


def statistics_of(predictions: Store, rule: str) -> dict[str, np.ndarray]:
    """What a rule re-standardises by, as stored with predictions. Raises InputError if it is not stored there."""
    absent = [name for name in ridge.RULES[rule] if name not in predictions.arrays]
    if absent:
        raise InputError(
            f"rule {rule!r}",
            found=f"no {', '.join(absent)} in {predictions.path}",
            expected="the statistics of that rule",
            action="set ridge.standardise=held_out and run `regress`, or choose another rule",
        )
    return {name: predictions.read(name) for name in ridge.RULES[rule]}


def decode(context: Context, subject: str, z_scored: np.ndarray, space: str, rule: str = "none") -> np.ndarray:
    """Latents that the subject's stored decoder predicts for z-scored patterns.

    Parameters
    ----------
    z_scored : (k, voxels), see `z_scored_patterns`; a region of interest is a pattern of 1 and 0.
    space : a target space of the configuration.
    rule : re-standardisation by the statistics stored with the predictions, see `ridge.restandardise`.

    Returns
    -------
    (k, ...) float32 latents.

    Raises
    ------
    NotReady : the stage `regress` is not done. InputError : statistics of another rule are stored; values so large that
        their latents are not finite.
    """
    statistics = statistics_of(context.ready(keys.predictions(subject, space)), rule)
    with np.errstate(over="ignore", invalid="ignore"):
        raw = Decoder(context, subject).latents(z_scored, (space,))[space]
    return restandardised(raw, space, rule, statistics)


def restandardised(raw: np.ndarray, space: str, rule: str, statistics: Mapping[str, np.ndarray]) -> np.ndarray:
    """Latents (k, ...) by the statistics of a rule, see `statistics_of`. Raises InputError if they are not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        found: np.ndarray = ridge.restandardise(raw, rule, statistics)
    if not np.isfinite(found).all():
        raise InputError(
            "patterns",
            found=f"values so large that their latents in {space} are not finite in float32",
            expected="responses in the unit of the rows that are decoded from",
            action="check the units of the patterns",
        )
    return found


def decoded_tree(
    context: Context, subject: str, patterns: np.ndarray | xarray.DataArray, rule: str, units: str | None = None
) -> xarray.DataTree:
    """Latents of patterns, a node for each target space with `latent` (pattern, ...). Rows of a DataArray keep the
    name of their dimension and their coordinates. `units` : see `spaces_in`.

    Raises
    ------
    InputError : the patterns do not fit, or their unit. NotReady : the stage `regress` is not done.
    """
    import xarray

    trees: dict[str, xarray.Dataset] = {}
    given = labelled.taken(context, subject, patterns)
    for space in spaces_in(context, subject, units):
        responses = responses_of(context, subject, space)
        z_scored = z_scored_patterns(responses, given.values)
        if not trees:
            warn_of_units(subject, z_scored, units_of(responses))
        values = decode(context, subject, z_scored, space, rule)
        dims = (given.dim, *catalog.space_dims(values.shape[1:]))
        attrs = {"long_name": "decoded latent"}
        made = {
            "subject": subject,
            "standardise": rule,
            "pattern_units": units_of(responses),
            "decoder": context.expected[keys.predictions(subject, space)].fingerprint,
        }
        places = of_store(context.ready(keys.predictions(subject, space)))
        trees[f"/{space}"] = given.named(xarray.Dataset({"latent": (dims, values, attrs)}, places, made))
    return xarray.DataTree.from_dict(trees)


def write(context: Context, subject: str, patterns: np.ndarray, out: Path, rule: str, units: str | None = None) -> None:
    """Decode patterns and write a Zarr group for each target space, for xarray. `units` : see `spaces_in`.

    Raises
    ------
    InputError : `out` exists; the patterns do not fit. NotReady : the stage `regress` is not done.
    """
    with written_whole(out) as partial:
        tree = decoded_tree(context, subject, patterns, rule, units)
        tree.to_zarr(partial, mode="w", zarr_format=3, consolidated=False)


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A path beside `out` to write a group to: it is `out` when all is written, and removed when writing fails.

    Raises
    ------
    InputError : `out` exists.
    """
    if out.exists():
        raise InputError(
            out,
            found="something there already",
            expected="a new path: nothing is written over",
            action="choose another path, or move away what is there",
        )
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
