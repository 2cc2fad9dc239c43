"""Every setting takes values of its own type alone: each leaf is tried with every kind of guess."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from bdflow.config import Config, load, parse
from bdflow.errors import InputError

SPACE = {"encoder": "vdvae", "options": {}, "ridge": {}}
BASE: dict[str, Any] = {
    "study": "s.zarr",
    "dataset": {"root": "nsd"},
    "spaces": dict.fromkeys(("vdvae", "clip_vision", "clip_text"), SPACE),
    "painters": {"brain_diffuser": {}},
    "report": {"path": "r"},
}


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its annotation; sections by name as `NAME`."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not sections:
            yield prefix + name, field.annotation
        else:
            named = {"spaces": ".vdvae", "painters": ".brain_diffuser"}.get(name, "")
            yield from leaves(sections[0], f"{prefix}{name}{named}.")


LEAVES = dict(leaves(Config))


def types(annotation: Any) -> set[Any]:
    found = {get_origin(annotation) or annotation}
    for inner in get_args(annotation):
        found |= types(inner) if isinstance(inner, type) or get_args(inner) else set()
    return found


NUMBERS = sorted(key for key, of in LEAVES.items() if {int, float} & types(of) and tuple not in types(of))
LISTS = sorted(key for key, of in LEAVES.items() if tuple in types(of) and {int, float} & types(of))
SWITCHES = sorted(key for key, of in LEAVES.items() if bool in types(of))
TEXTS = sorted(key for key, of in LEAVES.items() if {str, Path} & types(of) and not {dict, tuple} & types(of))


def with_value(key: str, value: object) -> dict[str, Any]:
    def put(content: dict[str, Any], names: list[str]) -> dict[str, Any]:
        first, *rest = names
        return content | {first: put(content.get(first) or {}, rest) if rest else value}

    return put(BASE, key.split("."))


def refused(key: str, value: object) -> None:
    with pytest.raises(InputError) as error:
        parse(with_value(key, value))
    assert f"`{key}" in str(error.value)


def test_every_setting_is_of_a_kind_that_is_tried():
    assert len(NUMBERS) >= 40
    assert len(SWITCHES) >= 9
    assert len(TEXTS) >= 15
    assert {"ridge.alpha", "seed", "chunks.images"} <= set(NUMBERS)
    assert {"dataset.sessions", "ridge.grid"} <= set(LISTS)
    assert {"study", "dataset.root", "networks.bundle", "cluster.slurm.logs", "report.path"} <= set(TEXTS)


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers(key):
    for value in (True, False, "010", "yes", "7", ".inf", float("inf"), float("nan"), "1:30", [1]):
        refused(key, value)


@pytest.mark.parametrize(
    "value", [True, False, "010", "yes", "7", 1.5, float("inf"), 0, -1, {}, {"subj01": "010"}, [0]]
)
def test_sessions(value):
    refused("dataset.sessions", value)


@pytest.mark.parametrize("key", LISTS)
def test_lists_of_numbers(key):
    for value in (
        [True],
        [float("inf")],
        [1, float("nan")],
        "5",
        [1, "010"],
        *(() if "sessions" in key else (["010"],)),
    ):
        refused(key, value)


@pytest.mark.parametrize("key", SWITCHES)
def test_switches(key):
    for value in (1, 0, "yes", "true", 1.0):
        refused(key, value)


@pytest.mark.parametrize("key", TEXTS)
def test_text_and_paths(key):
    for value in (123, 1.5, True, ["a"], {"a": 1}):
        refused(key, value)


@pytest.mark.parametrize("value", [0, 1.5, True, "a b", "a/b", "..", ""])
def test_names_of_subjects(value):
    refused("subjects", [value])
    assert parse(with_value("subjects", ["010"])).subjects == ("010",)


@pytest.mark.parametrize("key", ["dataset.preparation", "dataset.space", "dataset.mask"])
def test_names_of_folders_lead_nowhere_else(key):
    for value in ("../x", "/abs", "..", "a/..", "a/b/c", "a\\b", "", *(() if key == "dataset.mask" else ("a/b",))):
        refused(key, value)


def test_options_of_ones_own_classes_hold_no_guess():
    for text in ("{a: yes}", "{a: [010]}", "{a: {b: .inf}}", "{a: 1:30}"):
        with pytest.raises(InputError, match="two ways"):
            load("demo", [f"spaces.vdvae.options={text}"])
    refused("dataset.options", {"a": float("nan")})
    options = load("demo", ["dataset.options={a: 'yes', b: true, c: 10}"]).dataset.options
    assert options == {"a": "yes", "b": True, "c": 10}


@pytest.mark.parametrize(
    "override", ["dataset.sessions=010", "dataset.sessions=yes", "ridge.alpha=.inf", "ridge.alpha=1e999", "seed=1:30"]
)
def test_overrides_are_not_guessed_either(override):
    with pytest.raises(InputError, match=override.partition("=")[0]):
        load("demo", [override])


def test_memory_is_a_size():
    assert load("demo", ["execution.ingest.memory=4 GiB"]).execution.ingest.memory == 4 * 2**30
    for value in (True, -1, 1.5, float("inf"), "much"):
        refused("execution.ingest.memory", value)
