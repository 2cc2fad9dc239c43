"""Stimuli in parts: read as one, empty where nobody saw any, and left alone when a subject is added."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdflow.config import parse
from bdflow.pipeline import Pipeline, stages_until
from bdflow.stores import ArraySpec, Provenance, Store, StoreError, StoreSpec, Study
from bdflow.study import keys
from bdflow.study.parts import Joined
from tests.conftest import SUBJECTS, snapshot

SPEC = StoreSpec(
    "targets",
    (
        ArraySpec("latent", ("stimulus_id", "feature"), "f4", "latent", chunks={"stimulus_id": 2}),
        ArraySpec("stimulus_id", ("stimulus_id",), "i4", "id", role="coordinate"),
    ),
    {"stimulus_id": 4},
    ("stimulus_id",),
)
LENGTHS = (5, 0, 9, 3)


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> tuple[Joined, np.ndarray, np.ndarray]:
    """Four parts, one of them empty; what they hold one after the other."""
    study = Study(tmp_path_factory.mktemp("parts") / "study.zarr")
    study.create("test", {})
    n = sum(LENGTHS)
    values, ids = np.arange(n * 3, dtype="f4").reshape(n, 3), np.random.default_rng(0).permutation(100)[:n]
    stores, at = [], 0
    for number, length in enumerate(LENGTHS):
        sizes, given = {"stimulus_id": length, "feature": 3}, {"stimulus_id": ids[at : at + length]}
        store = study.declare(f"targets/{number}", SPEC, sizes, given, Provenance("test"))
        for partition in store.missing():
            rows = SPEC.region(sizes, partition)["stimulus_id"]
            store.write(partition, {"latent": values[at:][rows]})
        store.seal()
        stores.append(store)
        at += length
    assert study.state("targets/1", Provenance("test")).kind == "sealed"
    assert not list(stores[1].damage())
    return Joined(stores), values, ids


positions = st.lists(st.integers(0, sum(LENGTHS) - 1), unique=True, max_size=sum(LENGTHS)).map(sorted)
slices = st.tuples(st.integers(0, sum(LENGTHS)), st.integers(0, sum(LENGTHS))).map(lambda ends: slice(*sorted(ends)))


@given(st.one_of(slices, positions.map(lambda rows: np.array(rows, dtype=int))), st.integers(0, 2))
def test_reading_parts_equals_reading_one_array(joined, rows, column):
    of, values, ids = joined
    columns = slice(column, 3)
    np.testing.assert_array_equal(
        of.read("latent", {"stimulus_id": rows, "feature": columns}), values[rows][:, columns]
    )
    np.testing.assert_array_equal(of.read("stimulus_id", {"stimulus_id": rows}), ids[rows])


def test_parts_know_their_sizes_and_where_ids_are(joined):
    of, values, ids = joined
    there: Joined = pickle.loads(pickle.dumps(of))
    assert there.sizes == {"stimulus_id": 17, "feature": 3, "partition": 2}
    assert there.path == "targets"
    wanted = ids[[16, 0, 7]]
    assert there.rows("stimulus_id", wanted).tolist() == [16, 0, 7]
    np.testing.assert_array_equal(there.read("latent"), values)
    with pytest.raises(StoreError, match="no stimulus_id 1000 "):
        there.rows("stimulus_id", np.array([ids[0], 1000]))
    store, rows = there.run(slice(3, 9))
    assert (store.path, rows) == ("targets/0", slice(3, 5))
    store, rows = there.run(slice(5, 9))
    assert (store.path, rows) == ("targets/2", slice(0, 4)), "an empty part is passed over"
    with pytest.raises(StoreError, match="no stimulus_id 3 "):
        Joined([Store(of.first.study, "targets/1")]).rows("stimulus_id", np.array([3]))


@pytest.mark.slow(kind="orders of work")
def test_a_subject_added_later_leaves_all_that_was_made_alone(settings, undisturbed, tmp_path):
    until = tuple(stages_until("evaluate"))
    first = Pipeline(parse(settings(tmp_path, subjects=["subj02"])))
    first.run(until)
    before = snapshot(tmp_path / "study.zarr")
    both = Pipeline(parse(settings(tmp_path)))
    states = {row.path: row.state.kind for row in both.status()}
    assert set(states.values()) == {"sealed", "absent"}
    assert {path for path, kind in states.items() if kind == "absent"} == {
        path for path in states if "subj01" in path.split("/")
    }
    both.run(until)
    after = snapshot(tmp_path / "study.zarr")
    assert {name: after[name] for name in before} == before
    assert after == snapshot(undisturbed)
    alone = Pipeline(parse(settings(tmp_path, subjects=["subj02"])))
    states = {row.path: (row.state.kind, row.state.why) for row in alone.status()}
    assert {path for path, (kind, _) in states.items() if kind != "sealed"} == {
        path for path in states if "subj01" in path.split("/")
    }, "and a subject that is left out too"


@pytest.mark.slow(kind="recipes")
def test_a_split_that_names_own_stimuli_has_test_photos_of_every_part(settings, undisturbed, nsd, tmp_path):
    own = {subject: Store(undisturbed, f"stimuli/{subject}").read("stimulus_id")[:3].tolist() for subject in SUBJECTS}
    listed = sorted([*own["subj01"], *own["subj02"]])
    (tmp_path / "test.txt").write_text("\n".join(map(str, listed)))
    split = {"root": str(nsd), "sessions": 3, "split": str(tmp_path / "test.txt")}
    metrics = {"metrics": ["PixCorr", "CLIP (bundle)"]}
    config = parse(settings(tmp_path, dataset=split, reconstruct={"upper_bound": True}, evaluate=metrics))
    Pipeline(config, ["subj01"]).run(tuple(stages_until("evaluate")))
    study = Path(config.study)
    assert Store(study, "metrics/brain_diffuser/subj01").read("stimulus_id").tolist() == own["subj01"]
    assert sorted(Store(study, "metrics/brain_diffuser/true").read("stimulus_id").tolist()) == listed
    assert sorted(Store(study, keys.judge("CLIP (bundle)")).read("stimulus_id").tolist()) == listed
    value = Store(study, "metrics/brain_diffuser/true").read("value")
    assert np.isfinite(value).all()
    shutil.rmtree(study)
