"""Which chunks of targets the stage `regress` reads: each once a block of columns, however many subjects want it."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bdflow.benchmarks import ridge_stores
from bdflow.benchmarks.ridge import run_stage
from bdflow.benchmarks.ridge_stores import SCALES, Scale
from bdflow.regression.streaming import Scratch
from bdflow.stores import ArraySpec, Provenance, StoreSpec, Study
from bdflow.stores.every_chunk import EveryChunk
from bdflow.study.parts import Joined
from bdflow.study.target_reader import SharedBlocks

VOXELS = {"subj01": 30, "subj02": 28, "subj05": 26, "subj07": 24}
SCALE = Scale(21, 10, VOXELS, {"vdvae": (40,), "clip_text": (3, 8)}, 8, 16)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each chunk of latents of targets was read, by its key."""
    found: Counter[str] = Counter()
    get = EveryChunk.get

    async def counted(self: EveryChunk, key: str, *more: object, **named: object) -> object:
        if re.search(r"targets/.*/latent/c/", key):
            found[key.rpartition("targets/")[2]] += 1
        return await get(self, key, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(EveryChunk, "get", counted)
    return found


def places(space: str, columns: Iterator[str] | list[str]) -> set[str]:
    """Keys of all chunks of a space: 10 shared test stimuli are 2 chunks, 21 training stimuli of each subject 3."""
    parts = {"shared": 2, **dict.fromkeys(VOXELS, 3)}
    return {
        f"{space}/{part}/latent/c/{row}/{column}" for part, n in parts.items() for row in range(n) for column in columns
    }


def test_every_chunk_is_read_once_for_all_subjects(
    tmp_path: Path, read: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 subjects: 2 + 4 x 3 = 14 chunks a block of columns. Read for one subject after the other it were 4 x 5 = 20."""
    monkeypatch.setattr(ridge_stores, "POOL", 2**12)
    run_stage(tmp_path, SCALE, "serial", 1, 1)
    expected = places("vdvae", list("012")) | places("clip_text", ["0/0", "1/0"])
    assert set(read) == expected
    assert set(read.values()) == {1}
    assert len(expected) == 14 * (3 + 2)


def test_at_the_papers_numbers_of_stimuli_a_block_is_74_chunks(tmp_path: Path, read: Counter[str]) -> None:
    """982 shared test stimuli and 8,859 training stimuli of each of four subjects, 512 a chunk: 2 + 4 x 18."""
    paper = SCALES["full"]
    study = Study(tmp_path / "study.zarr")
    study.create("test", {})
    chunks = {"stimulus_id": paper.stimuli, "feature": 1}
    latent = ArraySpec("latent", ("stimulus_id", "feature"), "f2", "latent", chunks=chunks)
    ids = ArraySpec("stimulus_id", ("stimulus_id",), "i4", "id", role="coordinate")
    spec = StoreSpec("targets", (latent, ids), {"stimulus_id": paper.stimuli})
    rng, parts = np.random.default_rng(0), {"shared": paper.test, **dict.fromkeys(paper.voxels, paper.train)}
    stores, values = [], []
    for part, n in parts.items():
        sizes = {"stimulus_id": n, "feature": 1}
        given = {"stimulus_id": np.arange(n)}
        stores.append(study.declare(f"targets/vdvae/{part}", spec, sizes, given, Provenance("test")))
        values.append(rng.standard_normal((n, 1)).astype("f2"))
        for partition in stores[-1].missing():
            rows = spec.region(sizes, partition)["stimulus_id"]
            stores[-1].write(partition, {"latent": values[-1][rows]})
    ends = np.cumsum([len(rows) for rows in values])
    test = np.arange(paper.test)
    wanted = {f"test {subject}": test for subject in paper.voxels}
    wanted |= {f"train {s}": np.arange(a, b) for s, a, b in zip(paper.voxels, ends, ends[1:], strict=False)}
    read.clear()
    block = SharedBlocks(Joined(stores), wanted, 2048).read({"feature": slice(0, 1)}, Scratch(), "block")
    np.testing.assert_array_equal(block, np.concatenate(values))
    assert (len(read), sum(read.values())) == (74, 74)
