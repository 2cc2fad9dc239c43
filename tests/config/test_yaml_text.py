"""YAML is read one way: keys once, and nothing that looks like a number by accident becomes one."""

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bdflow.config import load
from bdflow.config.yaml_text import Guess, read, write
from bdflow.errors import InputError

KEYS = st.text("abc", min_size=1, max_size=2)
WORDS = st.text(st.characters(exclude_characters="\x85", exclude_categories=["Cs"]), max_size=8)
"""PyYAML writes a next-line character (U+0085) so that it reads it as a space itself."""
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), WORDS)
TREES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@settings(deadline=None)
@given(TREES, st.booleans())
@example("0E0", False)
@example(["1e5", "010", "yes", "~"], True)
def test_what_yaml_writes_is_read_again(tree, flow):
    text = write(tree, flow=flow)
    assert read(text) == tree
    assert yaml.safe_load(text) == tree


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("seed: 0\nridge: {}\nseed: 1", "seed", (1, 3)),
        ("ridge:\n  alpha: 1\n\n  'alpha': 2", "alpha", (2, 4)),
        ("a: {x: 1, y: {z: 1,\n  z: 2}}", "z", (1, 2)),
        ("a: [{b: 1, b: 1}]", "b", (1, 1)),
        ("a: &a {b: 1}\nc: {<<: *a,\n  <<: *a}", "<<", (2, 3)),
        ("unused: &a {b: 1, b: 2}\n", "b", (1, 1)),
    ],
)
def test_a_key_given_twice_is_refused_with_both_lines(text, key, lines):
    with pytest.raises(ValueError, match=rf"the key `{key}` twice in one mapping, in lines {lines[0]} and {lines[1]}$"):
        read(text)


@settings(deadline=None)
@given(st.dictionaries(KEYS, TREES, min_size=1, max_size=4), st.data())
def test_any_key_of_any_mapping_given_twice_is_refused(tree, data):
    key = data.draw(st.sampled_from(sorted(tree)))
    nested = {"outer": [tree]}
    for flow in (False, True):
        text = yaml.safe_dump(nested, default_flow_style=flow, sort_keys=False)
        again = yaml.safe_dump({key: 1}, default_flow_style=True).strip().strip("{}")
        twice = (
            text.replace("[{", "[{" + again + ", ", 1) if flow else text.replace("- ", f"- {again}\n  ", 1)
        )  # the first `- ` is that of the mapping
        with pytest.raises(ValueError, match="twice in one mapping"):
            read(twice)


def test_anchors_and_merged_mappings_work_and_an_explicit_key_wins():
    text = "a: &a {p: 1, q: 2}\nb: &b {p: 5, r: 6}\nc: {<<: [*a, *b], q: 3}\nd: *a\ne: {q: 4, <<: *a}"
    found = read(text)
    assert found["c"] == {"p": 1, "q": 3, "r": 6}
    assert found["d"] == {"p": 1, "q": 2}
    assert found["e"] == {"p": 1, "q": 4}


@pytest.mark.parametrize(
    ("overrides", "lost"),
    [
        (["seed=1", "seed=2"], "seed"),
        (["seed=1", " seed =1"], "seed"),
        (["ridge.alpha=5", "seed=1", "ridge={choose: fixed}"], "ridge.alpha"),
    ],
)
def test_an_override_that_takes_another_back_is_refused(overrides, lost):
    with pytest.raises(InputError, match=f"found `{lost}` set by an override before, which this one would take back"):
        load("demo", overrides)


def test_a_section_may_be_set_before_what_lies_in_it():
    config = load("demo", ["ridge={choose: fixed, alpha: 3}", "ridge.alpha=5", "ridge.weights=true"])
    assert (config.ridge.choose, config.ridge.alpha, config.ridge.weights) == ("fixed", 5, True)


def test_a_section_given_twice_in_a_configuration_is_refused(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("study: s.zarr\nridge: {alpha: 10}\nseed: 3\nridge: {rows: trials}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"c\.yaml: found the key `ridge` twice in one mapping, in lines 2 and 4"):
        load(file)
    with pytest.raises(InputError, match="the key `alpha` twice"):
        load("demo", ["ridge={alpha: 1, alpha: 2}"])


GUESSES = [
    "010",
    "yes",
    "No",
    "on",
    "off",
    "1:30",
    "04:00:00",
    ".inf",
    "-.inf",
    ".nan",
    "0x1F",
    "0b1",
    "1_000",
    "0o7",
    "08",
]
GUESSES += ["2020-01-01", "+010", "1.5:30"]


@pytest.mark.parametrize("text", GUESSES)
def test_what_yaml_1_1_guesses_stays_text(text):
    assert read(f"a: {text}") == {"a": text}
    assert read(f"[{text}]") == [text]
    assert isinstance(read(text), Guess) == (text not in ("04:00:00", "1.5:30"))  # text for every YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e3", 1000.0), ("-2.5", -2.5), (".5", 0.5), ("7", 7), ("-0", 0), ("true", True), ("~", None), ("", None)],
)
def test_numbers_truths_and_null(text, value):
    found = read(f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: 1e999", "too large"),
        ("a: " + "1" * 5000, "not YAML"),
        ("a: &a [*a]", "holds itself"),
        ("? [1]\n: 2", "as a key"),
        ("[" * 3000, "too deeply"),
        ("!!int 010", "tag !!int"),
        ("!!float .nan", "tag !!float"),
        ("!!python/object:x y", "tag"),
        ("a: !!binary aGk=", "tag !!binary"),
        ("@x", "not YAML"),
        ("--- a\n--- b", "single document"),
        ("a: \udce9", "not YAML"),
        ("\n".join([f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 10)}]" for i in range(6)]), "100,000"),
    ],
)
def test_what_is_no_plain_document_is_refused(text, word):
    with pytest.raises(ValueError, match=word):
        read(text)
