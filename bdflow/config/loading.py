"""Reading a configuration: strict YAML, overrides from the command line, every wrong key named at once."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bdflow.config import yaml_text
from bdflow.config.execution import StageExecution
from bdflow.config.painting import ROLES
from bdflow.config.sections import Config
from bdflow.errors import InputError, listed
from bdflow.user_paths import local_path


def recipes() -> dict[str, Path]:
    """The configurations that ship with bdflow, by name."""
    folder = Path(__file__).parents[1] / "configs"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load(
    path: str | Path, overrides: Sequence[str] = (), absent: Mapping[str, object] = MappingProxyType({})
) -> Config:
    """Read a configuration file (or a shipped recipe by its name) and apply `key.subkey=value` overrides.

    `absent` : top-level settings that the file need not have.

    Raises
    ------
    InputError : no such file, not YAML, a key twice in one mapping, an unknown key (the nearest valid one is named) or
        a value out of range.
    """
    file = local_path("CONFIG", path)
    if not file.is_file():
        shipped = recipes()
        if str(path) not in shipped:
            raise InputError(
                path,
                found="a directory" if file.is_dir() else "no such file",
                expected="a configuration, or the name of a shipped one: " + ", ".join(sorted(shipped)),
                action="correct the path, or start from a copy of a shipped configuration",
            )
        file = shipped[str(path)]
    try:
        content = yaml_text.read(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as err:
        raise InputError(
            file, found=f"text that is not UTF-8 ({err})", expected="a YAML mapping in UTF-8", action="save it as UTF-8"
        ) from err
    except ValueError as err:
        raise InputError(
            file,
            found=str(err),
            expected="a YAML mapping, each key once",
            action="correct the file there; the shipped configurations show the form",
        ) from err
    if not isinstance(content, dict):
        raise InputError(
            file,
            found=_kind(content),
            expected="a mapping of settings (`key: value`, one a line)",
            action="start from a copy of a shipped configuration",
        )
    content = {**absent, **content}
    _refuse_repeated(overrides)
    for override in overrides:
        _override(content, override)
    return parse(content, file)


def parse(content: Mapping[str, object], where: object = "configuration") -> Config:
    """Check a configuration given as a dictionary. Raises InputError naming every wrong key at once."""
    try:
        config = Config.model_validate(content)
    except ValidationError as err:
        wrong = [_explain(error) for error in err.errors()]
        raise InputError(
            where,
            found=listed((line for line, _ in wrong), joint="; "),
            expected="settings as the shipped configurations have them",
            action=listed(dict.fromkeys(hint for _, hint in wrong), joint="; "),
        ) from None
    _check_spaces(config, where)
    _check_sessions(config, where)
    for key, given in (
        *((f"painters.{name}.variants", painter.variants) for name, painter in config.painters.items()),
        *((f"painters.{name}.controls", painter.controls) for name, painter in config.painters.items()),
        ("evaluate.metrics", config.evaluate.metrics),
    ):
        if len(set(given)) < len(given):
            raise InputError(
                where,
                found=f"`{key}` that lists {_repeated(given)} more than once",
                expected="each once",
                action=f"list it once in `{key}`",
            )
    if {"mean", "true"} & set(config.subjects):
        raise InputError(
            where,
            found=f"`subjects` that list {' and '.join(sorted({'mean', 'true'} & set(config.subjects)))}",
            expected="names other than `mean` and `true`",
            meaning="These are the average of all subjects and the upper bound.",
            action="rename the subject",
        )
    stages = [name for name, value in config.execution if isinstance(value, StageExecution)]
    elsewhere = [name for name in stages if getattr(config.execution, name).executor != "serial"]
    in_memory = [key for key, at in (("study", config.study), ("dataset.root", config.dataset.root)) if _in_memory(at)]
    if elsewhere and in_memory:
        raise InputError(
            where,
            found=f"`{in_memory[0]}` in memory://, and stages on other executors than serial: {', '.join(elsewhere)}",
            expected="serial for every stage",
            meaning="Other processes do not see this one's memory.",
            action="set execution.STAGE.executor to serial, or choose another place",
        )
    if len(set(config.subjects)) < len(config.subjects):
        raise InputError(
            where,
            found=f"`subjects` that list {_repeated(config.subjects)} more than once",
            expected="each subject once",
            action="list it once in `subjects`",
        )
    return config


def _in_memory(location: Path | str) -> bool:
    return isinstance(location, str) and location.startswith("memory://")


def _refuse_repeated(overrides: Sequence[str]) -> None:
    """Raise InputError for an override that would take back another one: of the same key, or of a section above it."""
    given: list[str] = []
    for override in overrides:
        key = override.partition("=")[0].strip()
        lost = [earlier for earlier in given if earlier == key or earlier.startswith(f"{key}.")]
        if lost:
            raise InputError(
                f"override {override}",
                found=f"`{lost[0]}` set by an override before, which this one would take back",
                expected="each key once, and a section before what lies in it",
                action=f"leave out one of the two, or give `{key}` first",
            )
        given.append(key)


def _override(content: dict[str, object], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise InputError(
            f"override {override}",
            found="no `=`",
            expected="KEY=VALUE, such as ridge.alpha=1000",
            action="give the key, an equals sign and the value",
        )
    *parents, last = key.strip().split(".")
    place = content
    for name in parents:
        child = place.setdefault(name, {})
        if not isinstance(child, dict):
            raise InputError(
                f"override {override}",
                found=f"`{name}`, which is a single value",
                expected="a section, with settings in it",
                action=f"set `{name}` itself, or correct the key",
            )
        place = child
    place[last] = _value(key.strip(), text, override)


def _value(key: str, text: str, override: str) -> object:
    """What an override says: where the configuration holds text or a path, the text as it stands, else YAML."""
    kind = _annotation(Config, key.split("."))
    if kind is None or not _is_text(kind):
        try:
            return yaml_text.read(text)
        except ValueError as error:
            if kind is None:  # an unknown key, which is said with all others
                return text
            raise InputError(
                f"override {override}",
                found=str(error),
                expected=f"a value of `{key}` in YAML",
                action="correct the value after the equals sign",
            ) from error
    if text == "null" and type(None) in get_args(kind):
        return None
    if len(text) > 1 and text[0] in "\"'" and text.find(text[0], 1) == len(text) - 1:
        raise InputError(
            f"override {override}",
            found=f"quotes around the value of `{key}`",
            expected="text, which is taken as it stands",
            meaning="The quotes would be part of it.",
            action=f"leave them out: {key}={text[1:-1]}",
        )
    return text


def _annotation(kind: object, names: Sequence[str]) -> object:
    """The annotation of the setting of these names below `kind`; None if there is none."""
    if not names:
        return kind
    if get_origin(kind) is dict:
        return _annotation(get_args(kind)[1], names[1:])
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(names[0])
        return None if field is None else _annotation(field.annotation, names[1:])
    found = (_annotation(part, names) for part in get_args(kind))
    return next((annotation for annotation in found if annotation is not None), None)


def _is_text(kind: object) -> bool:
    """Whether the values of an annotation are text alone, or paths."""
    origin, parts = get_origin(kind), [part for part in get_args(kind) if part is not type(None)]
    if origin is Annotated:
        return _is_text(parts[0])
    if origin in (Union, UnionType):
        return all(_is_text(part) for part in parts)
    if origin is Literal:
        return all(isinstance(value, str) for value in parts)
    return kind is str or kind is Path


def _explain(error: ErrorDetails) -> tuple[str, str]:
    """One validation error as (what was found, what to do)."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        near = _nearest(location)
        return f"unknown key `{key}`", f"did you mean `{near}`?" if near else "remove it"
    if error["type"] == "missing":
        return f"no `{key}`", f"add `{key}`"
    said = error["msg"].removeprefix("Value error, ")
    return f"`{key}` = {_shown(error['input'])} ({said[:1].lower()}{said[1:]})", f"correct `{key}`"


def _shown(value: object) -> str:
    """A value as a configuration would hold it, at most 200 characters."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text[:200] + ("..." if len(text) > 200 else "")


def _kind(content: object) -> str:
    """What a file of settings holds that is no mapping."""
    kinds = {list: "a list", str: "text alone", type(None): "nothing", bool: "true or false alone"}
    return kinds.get(type(content), "a single value")


def _repeated(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names) if names.count(name) > 1)


def _check_sessions(config: Config, where: object) -> None:
    """Sessions that are given by subject are given for each. Raises InputError."""
    given = config.dataset.sessions
    if not isinstance(given, dict):
        return
    lacking = [subject for subject in config.subjects if subject not in given]
    if lacking:
        raise InputError(
            where,
            found=f"`dataset.sessions` of {', '.join(given)} alone",
            expected="those of every subject",
            action=f"add {', '.join(lacking)} to `dataset.sessions`",
        )


def _check_spaces(config: Config, where: object) -> None:
    """Every space that is named elsewhere is one of `spaces`. Raises InputError."""
    named = [("encode.spaces", space) for space in config.encode.spaces or ()]
    named += [(f"encode.sets.{name}", space) for name, spaces in config.encode.sets.items() for space in spaces]
    named += [("encode.components", space) for space in config.encode.components]
    painted = []
    for name, painter in config.painters.items():
        roles = (*ROLES, "select_by", "retrieve_by")
        painted += [(f"painters.{name}.{role}", of) for role in roles if (of := getattr(painter, role)) is not None]
    named += painted
    for key, space in named:
        if space not in config.spaces:
            near = difflib.get_close_matches(space, config.spaces, 1)
            raise InputError(
                where,
                found=f"`{key}` {space!r}, which is no space of this configuration",
                expected="one of `spaces`: " + ", ".join(config.spaces),
                action=f"did you mean `{near[0]}`?" if near else f"add `spaces.{space}`, or name another space",
            )
    for key, space in painted:
        if space not in config.decoded_spaces:
            raise InputError(
                where,
                found=f"`{key}` {space!r}, and `spaces.{space}.decode: false`",
                expected="a space that ridge predicts: " + ", ".join(config.decoded_spaces),
                action=f"leave `decode` out of `spaces.{space}`, or name another space",
            )
    unused = set(config.spaces).difference(config.decoded_spaces, config.encoded_spaces, *config.encode.sets.values())
    if unused:
        space = min(unused)
        raise InputError(
            where,
            found=f"`spaces.{space}.decode: false`, and no encoding model made from {space}",
            expected="a space that is decoded, or that `encode.spaces` or one of `encode.sets` names",
            action=f"remove `spaces.{space}`, or name it in `encode`",
        )


def _nearest(location: Sequence[str]) -> str | None:
    """The valid key most like a misspelt one, wherever it belongs; its own section first among equals."""
    section = ".".join(location[:-1])

    def likeness(key: str) -> tuple[float, bool]:
        parent, _, name = key.rpartition(".")
        return difflib.SequenceMatcher(None, name, location[-1]).ratio(), parent == section

    best = max(_all_keys(Config, location), key=likeness)
    return best if likeness(best)[0] >= 0.6 else None


def _all_keys(model: type[BaseModel], location: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Every key that a configuration may have. Sections by a name of the user's (`spaces.NAME`) are those of the
    `location` that is looked at, where it is in one.
    """
    for name, field in model.model_fields.items():
        key = prefix + name
        yield key
        kinds = [field.annotation, *get_args(field.annotation)]
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not sections:
            continue
        if sections[0] is not field.annotation:
            depth = key.count(".") + 1
            within = len(location) > depth + 1 and ".".join(location[:depth]) == key
            key += f".{location[depth] if within else 'NAME'}"
        yield from _all_keys(sections[0], location, f"{key}.")
