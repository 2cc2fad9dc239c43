"""Random datasets, written by xarray and read back, against volumes that are put together in the plainest way."""

import tempfile
from pathlib import Path

import numpy as np
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from bdflow.datasets.arrays import betas as betas_module
from bdflow.datasets.arrays.betas import _blocks
from bdflow.datasets.arrays.hierarchy import Variable
from tests.datasets.arrays.made import opened, stimuli, text, tree, write

NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=6).filter(str.strip)


@st.composite
def subjects(draw, ids):
    """A subject, and what it should give: shape, voxels, dense volumes (trial, x, y, z) and what is valid there."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = tuple(draw(st.tuples(*[st.integers(1, 4)] * 3)))
    cells = int(np.prod(shape))
    order = rng.permutation(cells)[: draw(st.integers(1, cells))]
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    names = draw(st.lists(NAMES, min_size=len(lengths), max_size=len(lengths), unique=True))
    session = np.repeat(names, lengths)
    shown = rng.choice([*ids, ""], len(session))
    whole = draw(st.booleans())
    if whole:
        beta = rng.integers(-3, 3, (len(session), len(order))).astype("i2")
    else:
        beta = rng.integers(-2, 3, (len(session), len(order))).astype("f4")
        beta[rng.random(beta.shape) < 0.2] = np.nan
    part = xr.Dataset(
        {
            "beta": (("trial", "voxel"), beta, {"units": "arbitrary"}),
            "stimulus_id": ("trial", text(shown)),
            "session": ("trial", text(session)),
        }
    )
    placed = draw(st.booleans())
    if not placed:
        shape, order = (len(order), 1, 1), np.arange(len(order))
    else:
        ijk = np.unravel_index(order, shape)
        part = part.assign({name: ("voxel", at.astype("i4")) for name, at in zip("ijk", ijk, strict=True)})
        part = part.assign_attrs(shape=list(shape))
    said = None
    if draw(st.booleans()):
        said = rng.random((len(names), len(order))) < 0.7
        shuffled = rng.permutation(len(names))
        part = part.assign(valid=(("session_name", "voxel"), said[shuffled]))
        part = part.assign_coords(session_name=text(np.array(names)[shuffled]))
    chunks = (draw(st.integers(1, len(session))), draw(st.integers(1, len(order))))
    encoding = {"chunks": chunks}
    if draw(st.booleans()):
        encoding["shards"] = (chunks[0] * draw(st.integers(1, 3)), chunks[1] * draw(st.integers(1, 3)))
    return part, encoding, shape, order, lengths, names, said, draw(st.integers(1, 400))


def expected(part, shape, order, rows, said) -> tuple[np.ndarray, np.ndarray]:
    """Dense (trial, x, y, z) betas of a session, and which are valid."""
    values = np.zeros((rows.stop - rows.start, int(np.prod(shape))))
    valid = np.zeros(values.shape, bool)
    beta = part.beta.values[rows]
    for column, cell in enumerate(order):
        some = beta[:, column]
        numbers = some[~np.isnan(some)]
        measured = said[column] if said is not None else len(some) == 1 or len(set(numbers.tolist())) > 1
        for trial, value in enumerate(some):
            if measured and not np.isnan(value):
                values[trial, cell], valid[trial, cell] = value, True
    return values.reshape(-1, *shape), valid.reshape(-1, *shape)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_datasets_come_back(data):
    ids = data.draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    part, encoding, shape, order, lengths, names, said, block = data.draw(subjects(ids))
    before, betas_module.BLOCK = betas_module.BLOCK, block
    try:
        with tempfile.TemporaryDirectory() as folder:
            groups = tree(stimuli=stimuli(ids), anna=part)
            found = opened(write(Path(folder) / "x.zarr", groups, encoding={"/subjects/anna": {"beta": encoding}}))
            assert list(found.stimuli()) == ids
            assert [int(picture[0, 0, 0]) - 1 for picture in found.pictures(ids[::-1])] == [*range(len(ids))][::-1]
            assert found.sessions("anna") == tuple(names)
            trials = found.trials("anna")
            assert trials.stimulus.tolist() == part.stimulus_id.values.tolist()
            assert trials.index.tolist() == [at for length in lengths for at in range(length)]
            known = np.zeros(int(np.prod(shape)), bool)
            known[order] = True
            assert np.array_equal(found.mask("anna", None), known.reshape(shape))
            mask = np.array(data.draw(st.lists(st.booleans(), min_size=known.size, max_size=known.size)))
            mask = mask.reshape(shape)
            start = 0
            for number, (name, length) in enumerate(zip(names, lengths, strict=True)):
                rows = slice(start, start + length)
                values, valid = expected(part, shape, order, rows, None if said is None else said[number])
                read = found.betas("anna", name, mask)
                assert read.values.dtype == part.beta.dtype
                assert np.array_equal(read.values, values[:, mask])
                assert np.array_equal(read.valid, valid[:, mask])
                start += length
    finally:
        betas_module.BLOCK = before


class Sized:
    """What `_blocks` asks of an array."""

    def __init__(self, shape: tuple[int, int], chunks: tuple[int, int]) -> None:
        self.shape, self.chunks, self.dtype = shape, chunks, np.dtype("f4")


@settings(max_examples=200)
@given(st.data())
def test_blocks_hold_everything_once_and_whole_chunks(data):
    trials, voxels = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    tall, wide = data.draw(st.integers(1, 45)), data.draw(st.integers(1, 45))
    start = data.draw(st.integers(0, trials - 1))
    stop = data.draw(st.integers(start + 1, trials))
    columns = np.array(sorted(data.draw(st.sets(st.integers(0, voxels - 1)))), int)
    before, betas_module.BLOCK = betas_module.BLOCK, data.draw(st.integers(1, 4 * 45 * 45 * 9))
    try:
        beta: Variable = Sized((trials, voxels), (tall, wide))  # type: ignore[assignment]
        read = np.zeros((trials, len(columns)), int)
        chunks: list[tuple[int, int]] = []
        for rows, part in _blocks(beta, slice(start, stop), columns):
            read[rows, part] += 1
            touched = {
                (row // tall, column // wide)
                for row in range(rows.start, rows.stop)
                for column in columns[part].tolist()
            }
            assert len(touched) == 1 or len(touched) * tall * wide * 4 <= betas_module.BLOCK
            chunks += touched
    finally:
        betas_module.BLOCK = before
    assert (read[start:stop] == 1).all()
    assert read.sum() == (stop - start) * len(columns)
    assert len(set(chunks)) == len(chunks), "a chunk is decoded twice"
