"""No value is stored as another one: casts to a smaller dtype are checked, and there is no other way in."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bdflow
from bdflow.stores import ArraySpec, Provenance, Store, StoreError, StoreSpec, Study
from bdflow.stores.casts import narrowed

INTEGERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
FLOATS = ["f2", "f4", "f8"]
POWERS = (7, 8, 11, 15, 16, 24, 31, 32, 53, 62, 63)
EDGES = [0, 1, -1] + [sign * 2**n + d for n in POWERS for sign in (1, -1) for d in (-1, 0, 1)]


@given(st.lists(st.sampled_from(EDGES), min_size=1, max_size=4), st.sampled_from(INTEGERS), st.sampled_from(INTEGERS))
def test_whole_numbers_stay_or_are_refused_by_name(values, source, target):
    info = np.iinfo(source)
    values = [value for value in values if info.min <= value <= info.max] or [0]
    low, high = np.iinfo(target).min, np.iinfo(target).max
    array = np.array(values, source)
    outside = [value for value in values if not low <= value <= high]
    if outside:
        with pytest.raises(
            StoreError, match=re.escape(f"{outside[0]} at position {values.index(outside[0])}")
        ) as error:
            narrowed(array, target, "betas/subj01/roi_label")
        assert "betas/subj01/roi_label" in str(error.value)
        assert f"whole numbers from {low} to {high}" in str(error.value)
    else:
        found = narrowed(array, target, "x")
        assert found.dtype == np.dtype(target)
        assert found.tolist() == values


@given(st.lists(st.floats(width=64), min_size=1, max_size=4), st.sampled_from(INTEGERS))
def test_floats_become_integers_only_if_they_are(values, target):
    low, high = int(np.iinfo(target).min), int(np.iinfo(target).max)
    fits = [np.isfinite(value) and value == int(value) and low <= int(value) <= high for value in values]
    if all(fits):
        assert narrowed(np.array(values), target, "x").tolist() == [int(value) for value in values]
    else:
        with pytest.raises(StoreError, match=re.escape(f"at position {fits.index(False)}")):
            narrowed(np.array(values), target, "x")


@given(st.lists(st.floats(width=64), min_size=1, max_size=4), st.sampled_from(FLOATS))
def test_floats_are_rounded_and_never_become_infinite(values, target):
    array = np.array(values)
    with np.errstate(over="ignore"):
        cast = array.astype(target)
    if (np.isfinite(array) & np.isinf(cast)).any():
        with pytest.raises(StoreError, match="numbers up to"):
            narrowed(array, target, "x")
    else:
        np.testing.assert_array_equal(narrowed(array, target, "x"), cast)


@given(st.sampled_from(EDGES), st.sampled_from(FLOATS))
def test_whole_numbers_are_not_rounded_to_floats(value, target):
    if not -(2**63) <= value < 2**63:
        return
    array = np.array([value], "i8")
    if abs(value) <= 2 ** (np.finfo(target).nmant + 1):
        assert int(narrowed(array, target, "x")[0]) == value
    else:
        with pytest.raises(StoreError, match=re.escape(str(value))):
            narrowed(array, target, "x")


def test_text_bools_and_complex_numbers():
    assert narrowed(np.array([True, False]), "u1", "x").tolist() == [1, 0]
    assert narrowed(np.array([1, 0]), "?", "x").tolist() == [True, False]
    with pytest.raises(StoreError, match="2 at"):
        narrowed(np.array([1, 2]), "?", "x")
    with pytest.raises(StoreError):
        narrowed(np.array([1j]), "f4", "x")
    words = np.array(["a", "b"], np.dtypes.StringDType())
    assert narrowed(words, np.dtypes.StringDType(), "x").tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("dtype", "value"), [("i2", 40_000), ("i2", np.nan), ("i4", 2**31), ("f4", 1e39), ("u1", -1), ("i2", 0.5)]
)
def test_a_given_value_that_does_not_fit_leaves_no_store(tmp_path, dtype, value):
    spec = StoreSpec(
        "A store",
        (
            ArraySpec("data", ("x",), "f4", "data"),
            ArraySpec("label", ("x",), dtype, "label", role="given"),
        ),
    )
    study = Study(tmp_path / "study.zarr")
    study.create("a study", {})
    given = {"label": np.array([1, value, 2])}
    with pytest.raises(StoreError, match=re.escape("some/store/label")) as error:
        study.declare("some/store", spec, {"x": 3}, given, Provenance("test", {}, {}, {}))
    assert "at position 1" in str(error.value)
    assert not (tmp_path / "study.zarr/some").exists()
    good = {"label": np.array([1, 0, 2])}
    store = study.declare("some/store", spec, {"x": 3}, good, Provenance("test", {}, {}, {}))
    assert isinstance(store, Store)
    assert store.read("label").tolist() == [1, 0, 2]


NARROW = {"int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "i1", "i2", "i4", "u1", "u2", "u4", "f2"}
BOUNDED = {
    "bdflow/datasets/arrays/subject.py": ["trials.run"],  # others than int32 holds are refused when it is read
    "bdflow/datasets/formats/pictures.py": ["(np.asarray(image).astype(np.int64) >> 8).clip(0, 255)"],
    "bdflow/datasets/nsd/color_tables.py": ["volume.data"],  # of `labelled`, which refuses what int16 does not hold
    "bdflow/datasets/nsd/dataset.py": ["np.tile(index, len(numbers))"],  # trials of a session
    "bdflow/datasets/nsd/imagery_trials.py": ["np.repeat([run.number for run in runs], sizes)", "index"],  # of twelve
    "bdflow/datasets/nsd/synthetic.py": ["np.repeat(np.arange(1, runs.size + 1), runs.astype(np.int64))"],  # of eight
    "bdflow/datasets/nsd/values.py": ["np.where(beyond, np.where(scaled > 0, HIGHEST, LOWEST), scaled)"],
    "bdflow/stages/ingest.py": [
        "betas.valid",  # bool
        "data.regions(subject)",  # bool
        "np.count_nonzero(valid, axis=1)",  # at most the voxels of a mask, which i, j, k (i4) count too
        "~bad",  # bool
        "missing",  # at most the trials
        "cut_off",
        "usable[order[first]]",  # positions of trials
    ],
    "bdflow/stages/reconstruct/controls.py": [
        "np.rint(total / n)",  # mean of uint8
    ],
    "bdflow/stages/reconstruct/selection.py": [  # which of the pictures of a stimulus
        "np.nan_to_num(found, nan=-2.0).argmax(axis=1)"
    ],
    "bdflow/scoring/pixels.py": [
        "values",  # whole numbers of 0 to 255: others are refused before
        "np.rint((wide - self.low) * (255 / (self.high - self.low))).clip(0, 255)",
    ],
    "bdflow/study/encoding_models.py": ["q < FALSE_DISCOVERIES"],  # bool
    "bdflow/study/region_patterns.py": ["np.count_nonzero(patterns, axis=1)"],  # at most the voxels
    "bdflow/study/voxel_maps.py": ["regions.pattern(name)"],  # 1 and 0
    "bdflow/regions/rescale.py": ["np.clip((image - low) * (255 / (high - low)), 0, 255).round()"],
    "bdflow/report/regions.py": ["np.concatenate(parts, axis=1).round()"],  # colours
}


def _narrowing(path: Path) -> list[str]:
    """What is cast to a small dtype by `astype` in a file, as source."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "astype":
            names = {getattr(arg, "attr", getattr(arg, "value", None)) for arg in node.args[:1]}
            if names & NARROW:
                found.append(ast.unparse(node.func.value))
    return found


def test_every_cast_to_a_small_dtype_is_bounded_by_what_is_cast():
    """A new one needs `narrowed`, or a line in BOUNDED that says why it cannot overflow."""
    root = Path(bdflow.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = f"bdflow/{path.relative_to(root).as_posix()}"
        if name.split("/")[1] in ("simulation", "training", "stores", "cluster"):
            continue
        if casts := _narrowing(path):
            found[name] = casts
    found = {name: sorted(casts) for name, casts in found.items()}
    expected = {name: sorted(casts) for name, casts in BOUNDED.items()}
    assert found == expected
    stores = [(path.name, cast) for path in (root / "stores").glob("*.py") for cast in _narrowing(path)]
    assert stores == []
