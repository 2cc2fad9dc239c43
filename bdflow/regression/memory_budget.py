"""What ridge needs in memory, decided before it starts: the system whole or in panels, long or short pieces."""

from __future__ import annotations

from dataclasses import dataclass

from bdflow.errors import InputError

MIB = 2**20
BASE = 480 * MIB  # a worker with NumPy, SciPy, zarr, torch and dask loaded, and memory freed but not given back
MARGIN = 1.25
PIECE = 160 * MIB  # float32 bytes of one piece of targets where memory is not scarce
LEAST_ROWS = 512
WIDTHS = (4096, 2048, 1024, 512)


@dataclass(frozen=True)
class Extent:
    """One subject's problem: training rows and test stimuli, voxels, rows and penalties of cross-validation, whether
    the kernel of rows is solved (`dual`) or the covariance of voxels; training stimuli, where rows are single trials;
    whether cross-validation multiplies errors, one penalty after the other (`one_by_one`), or all predictions at once.
    """

    train: int
    test: int
    voxels: int
    held_out: int
    alphas: int
    dual: bool
    stimuli: int | None = None
    one_by_one: bool = False

    @property
    def targets(self) -> int:
        """Training stimuli."""
        return self.train if self.stimuli is None else self.stimuli


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
    extents: dict[str, Extent],
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
    extents : of every subject.
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
    hats = sum(4 * (e.test + e.held_out) * e.targets * e.alphas for e in extents.values())
    rows = max(e.test + e.held_out * (1 if e.one_by_one else 1 + e.alphas) for e in extents.values())

    finished = 3 * 4 * sum(e.test for e in extents.values())  # results of every subject: made, waiting, written

    def predictions(piece_rows: int, whole: bool = False) -> int:
        # a piece in float32, beside two blocks (one worked on, one read) or three pieces as they are stored
        held = 2 * column_bytes + 4 * piece_rows + finished if whole else 10 * piece_rows
        return _with_base(hats + columns * (held + 12 * rows))

    most = max(LEAST_ROWS, PIECE // (4 * columns) // LEAST_ROWS * LEAST_ROWS)
    if budget is None:
        return Plan(True, WIDTHS[0], kernel_rows, most, True, {**whole, "predictions": predictions(most, True)})
    blocks = predictions(most, True) <= budget
    pieces = [k for k in range(most, 0, -LEAST_ROWS) if predictions(k, blocks) <= budget]
    widths = [w for w in WIDTHS if _tiled(extents, voxels, kernel_rows, w) <= budget]
    least = {"predictions": predictions(LEAST_ROWS)}
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
        return _with_base(2 * held + 8 * e.voxels**2 + 16 * rows * e.train)
    computed = 4 * e.train * (e.train + e.test) + _block(voxels, e.train + e.test)
    return _with_base(max(computed, 8 * e.train**2 + 16 * rows * e.train))


def _tiled(extents: dict[str, Extent], voxels: int, kernel_rows: int, width: int) -> int:
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
