"""What ridge needs in memory, decided before it starts: the system whole or in panels, long or short pieces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bdflow.errors import InputError

MIB = 2**20
BASE = 544 * MIB  # a worker with NumPy, SciPy, zarr, torch and dask loaded, and memory freed but not given back
MARGIN = 1.25
WORKSPACE = 256 * MIB  # what a GPU's libraries take for themselves
PIECE = 160 * MIB  # float32 bytes of one piece of targets where memory is not scarce
LEAST_ROWS = 512
WIDTHS = (4096, 2048, 1024, 512)


@dataclass(frozen=True)
class Extent:
    """One subject's problem: training rows and test stimuli, voxels, rows and penalties of cross-validation, whether
    the kernel of rows is solved (`dual`) or the covariance of voxels; training stimuli, where rows are single trials;
    whether cross-validation multiplies errors, one penalty after the other (`one_by_one`), or all predictions at once;
    whether each block of predictions has the rows of cross-validation below it (`below`); the number of `folds`, or 0
    where one by one is left out.
    """

    train: int
    test: int
    voxels: int
    held_out: int
    alphas: int
    dual: bool
    stimuli: int | None = None
    one_by_one: bool = False
    below: bool = False
    folds: int = 0

    @property
    def targets(self) -> int:
        """Training stimuli."""
        return self.train if self.stimuli is None else self.stimuli

    @property
    def predicted(self) -> int:
        """Rows of a hat matrix, with those of cross-validation below it."""
        return self.test + (self.held_out if self.below else 0)

    @property
    def hat_bytes(self) -> int:
        """Of the hat matrices of all penalties."""
        return 4 * self.predicted * self.targets * self.alphas


@dataclass(frozen=True)
class Plan:
    """How the stage goes about it.

    Attributes
    ----------
    whole : the system is held at once; else its factor is kept on disk, in panels of `width` columns.
    kernel_rows : rows of the kernel a task computes where the system is not held at once.
    piece_rows : rows of targets worked on at a time.
    whole_blocks : predictions read a block of columns once for all subjects, while the block before it is worked on;
        else pieces of it, for one subject after the other.
    needs : bytes a worker needs, by what it does.
    """

    whole: bool
    width: int
    kernel_rows: int
    piece_rows: int
    whole_blocks: bool
    needs: dict[str, int]


def plan(
    extents: Mapping[tuple[str, str], Extent],
    columns: int,
    voxels: int,
    kernel_rows: int,
    budget: int | None,
    folds: bool,
    column_bytes: int = 0,
) -> Plan:
    """Decide; with no budget, everything is held at once.

    Parameters
    ----------
    extents : of every subject and design. Predictions hold the hat matrices of all subjects, of one design at a time;
        the choice of penalties holds the matrices of one subject and design.
    columns, voxels : latents in a block of targets, voxels in a block of responses.
    kernel_rows : rows in a partition of the kernel.
    budget : bytes a worker may use, or None.
    folds : k-fold validation is asked for; it needs the system whole.
    column_bytes : of one latent of all stimuli that predictions are made from; 0 if there are none to make.

    Raises
    ------
    InputError : no way fits into the budget; both numbers are in it.
    """
    whole = {"system": max(_whole(extent, voxels) for extent in extents.values())}
    by_subject: dict[str, list[Extent]] = {}
    for (subject, _), extent in extents.items():
        by_subject.setdefault(subject, []).append(extent)
    hats = sum(max(e.hat_bytes for e in of) for of in by_subject.values())
    rows = max(e.predicted for e in extents.values())
    # results of every subject: made, waiting, written
    finished = 3 * 4 * sum(max(e.test for e in of) for of in by_subject.values())

    def penalties(piece_rows: int) -> int:
        return max(_penalties(extent, columns, piece_rows) for extent in extents.values())

    def predictions(piece_rows: int, whole: bool = False) -> int:
        # a piece in float32, beside two blocks (one worked on, one read) or three pieces as they are stored
        held = 2 * column_bytes + 4 * piece_rows + finished if whole else 10 * piece_rows
        return _with_base(hats + columns * (held + 12 * rows))

    most = max(LEAST_ROWS, PIECE // (4 * columns) // LEAST_ROWS * LEAST_ROWS)
    if budget is None:
        needs = {**whole, "penalties": penalties(most), "predictions": predictions(most, True)}
        return Plan(True, WIDTHS[0], kernel_rows, most, True, needs)
    blocks = predictions(most, True) <= budget
    pieces = [k for k in range(most, 0, -LEAST_ROWS) if max(penalties(k), predictions(k, blocks)) <= budget]
    widths = [w for w in WIDTHS if _tiled(extents, voxels, kernel_rows, w) <= budget]
    least = {"penalties": penalties(LEAST_ROWS), "predictions": predictions(LEAST_ROWS)}
    fits = whole["system"] <= budget
    if fits or folds:
        least |= whole
    else:
        least |= {"system in parts": _tiled(extents, voxels, kernel_rows, WIDTHS[-1])}
    excess = {what: need for what, need in least.items() if need > budget}
    if excess:
        listed = ", ".join(f"{what} {need / MIB:,.0f} MiB" for what, need in excess.items())
        raise InputError(
            "execution.regress.memory",
            found=f"{budget / MIB:,.0f} MiB a worker",
            expected=f"at least what ridge needs of these sizes: {listed}",
            action="allow more memory (and fewer workers), lower chunks.columns or chunks.voxels"
            + (", or validate by leave_one_out, which needs no whole system" if folds else ""),
        )
    largest = max(e.train if e.dual else e.train + e.test + e.voxels for e in extents.values())
    spare = (budget - BASE) / MARGIN - _block(voxels, max(e.train + e.test for e in extents.values()))
    many = max(1, spare // (8 * largest * kernel_rows))
    return Plan(fits, (widths or WIDTHS[-1:])[0], int(many) * kernel_rows, pieces[0], blocks, least)


@dataclass(frozen=True)
class Solving:
    """What is solved on a GPU: `n` training rows, `p` voxels of them, `block` voxels read at a time, `rows` patterns at
    once; `dual` as in `Extent`; `folds` of a system, each of which is one of its own; `kept` factors, or covariances
    of folds.
    """

    n: int
    p: int
    block: int
    rows: int
    dual: bool
    folds: bool = False
    kept: int = 0


def on_device(plan: Plan, of: Solving, free: int) -> Plan:
    """The plan as it fits into so many free bytes of a GPU: where the system does not fit whole it is solved in parts,
    in panels as wide as fit.

    Raises
    ------
    InputError : no way fits; both numbers are in it.
    """
    room = free - WORKSPACE
    if plan.whole and whole_on_device(of) <= room:
        return plan
    widths = [w for w in (plan.width, *WIDTHS) if w <= plan.width and parts_on_device(of, w) <= room]
    if widths and not of.folds:
        return replace(plan, whole=False, width=widths[0])
    need = whole_on_device(of) if of.folds else parts_on_device(of, min(plan.width, WIDTHS[-1]))
    raise InputError(
        "memory of the GPU, regress",
        found=f"{free / MIB:,.0f} MiB free for this worker",
        expected=f"at least {(need + WORKSPACE) / MIB:,.0f} MiB for ridge of {of.n:,} training rows and {of.p:,} "
        + ("voxels by folds, which need the system whole" if of.folds else "voxels in parts"),
        action="use a GPU with more memory or fewer workers on it (`execution.regress.gpus`), or `gpus: 0`"
        + (", or validate by leave_one_out, which needs no whole system" if of.folds else ""),
    )


def whole_on_device(of: Solving) -> int:
    """Bytes of a GPU to solve a system at once: the kernel or covariance, it with the penalty, and its factor; by
    folds, those of one beside the kernel or covariance of all.
    """
    side = of.n if of.dual else of.p
    matrices = 3 + of.kept + of.folds
    rows = 20 * of.rows * max(side, of.n)
    return 4 * matrices * side**2 + rows + (0 if of.dual else 4 * of.n * of.p * (2 if of.folds else 1))


def parts_on_device(of: Solving, width: int) -> int:
    """Bytes of a GPU to solve a system in parts: two panels and what is between them; or the covariance of voxels, with
    rows read a block of voxels at a time.
    """
    if of.dual:
        panel = min(width, of.n)
        return max(16 * panel, 8 * panel + 20 * of.rows) * of.n
    return 12 * of.p**2 + 20 * of.rows * max(of.n, of.p) + 8 * of.n * min(of.block, of.p)


def _penalties(e: Extent, columns: int, piece_rows: int) -> int:
    """Bytes to compare the penalties on one block of columns: their matrices, the targets, and what is predicted."""
    if not e.held_out:
        return 0
    matrices = 4 * e.held_out * e.targets * e.alphas
    if e.one_by_one:
        return _with_base(matrices + columns * (4 * e.targets + 6 * piece_rows + 12 * e.held_out))
    return _with_base(2 * matrices + columns * (10 * piece_rows + e.held_out * (32 + 8 * e.alphas)))


def _with_base(arrays: float) -> int:
    return BASE + int(MARGIN * arrays)


def _block(voxels: int, stimuli: int) -> int:
    """Bytes while one block of responses is read and z-scored."""
    return 20 * stimuli * voxels


def _whole(e: Extent, voxels: int) -> int:
    """Bytes to compute the system, and to solve it, at once."""
    rows = max(e.test, e.held_out)
    if not e.dual:
        held = 4 * (e.train + e.test) * e.voxels
        return _with_base(max(2 * held + 8 * e.voxels**2 + 16 * rows * e.train, _by_folds(e)))
    computed = 4 * e.train * (e.train + e.test) + _block(voxels, e.train + e.test)
    return _with_base(max(computed, 8 * e.train**2 + 16 * rows * e.train, _by_folds(e)))


def _by_folds(e: Extent) -> int:
    """Bytes of cross-validation by folds, of which one is held at a time."""
    if not e.folds or not e.held_out:
        return 0
    n, p, s, kept = e.train, e.voxels, e.targets, (e.folds - 1) / e.folds
    out = -(-n // e.folds)  # rows of a fold
    side = n if e.dual else p
    predicted = out if e.one_by_one else -(-e.held_out // e.folds)
    if e.dual:  # the kernel; of its rows those kept, and of these the columns kept
        held = 4 * n**2 * (1 + kept + kept**2)
    else:  # all rows, those kept and those left out; the covariances of all rows and of a fold, and its factor
        held = 8 * n * p + 4 * 3 * p**2
    held += 4 * predicted * (2 * side + n)  # what is solved for, the solution, and hat matrices
    if not e.one_by_one:
        return int(held + 4 * e.held_out * n * (e.alphas + 2))
    if not e.dual:  # rows of a stimulus added up; the covariances of all folds are kept for the next penalty
        held += 4 * s * p + 4 * (e.folds - 1) * p**2
    held += 16 * out * s
    return int(held + (12 * s**2 if n > s else 8 * n * s))  # errors, or their squares in float64 and a factor


def _tiled(extents: Mapping[tuple[str, str], Extent], voxels: int, kernel_rows: int, width: int) -> int:
    """Bytes to compute the least rows of the kernel, and to factorise it in panels of this width."""
    needs = []
    for e in extents.values():
        if not e.dual:
            solving = 8 * e.voxels**2 + 12 * max(e.test, e.held_out) * (e.train + e.voxels)
            computing = 8 * kernel_rows * (e.train + e.test + e.voxels)
            needs.append(max(solving, computing) + 2 * _block(voxels, e.train + e.test))
            continue
        needs.append(8 * kernel_rows * e.train + _block(voxels, e.train + e.test))
        needs.append((24 * width + 16 * max(e.test, e.held_out)) * e.train)
    return _with_base(max(needs))
