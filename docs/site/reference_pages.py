"""The pages of the reference: every public name; and every setting with its type, default, meaning, and the stores that
another value makes stale. Made from the code, and from the table that its tests keep true, at each build.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

import bdflow
from bdflow.config import Config, StageExecution

STALE: dict[str, list[str]] = yaml.safe_load(
    (Path(__file__).parents[2] / "tests/study/stale.yaml").read_text(encoding="utf-8")
)
NAMED = re.compile(r"^([a-z_]+(?:, [a-z_]+)*) : (.*)$")


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted key, and what the page says of it."""

    key: str
    type: str
    default: str
    meaning: str
    stale: str


def pages() -> dict[str, str]:
    """The generated pages, Markdown by their place in the site."""
    return {"reference/python.md": python_page(), "reference/settings.md": settings_page()}


def python_page() -> str:
    """Every name of `bdflow.__all__`, from its docstring."""
    lines = ["# Python, every name", ""]
    lines += [
        "Names of the package `bdflow`, from their docstrings. [Python by example](../api.md) shows them at work.",
        "",
    ]
    for name in sorted(bdflow.__all__, key=lambda name: (name[0].isupper(), name.lower())):
        if name == "__version__":
            continue
        lines += [f"::: {bdflow._HOME_OF[name]}.{name}", "    options:"]
        lines += [f"      heading: bdflow.{name}", f"      toc_label: {name}"]
        if name == "Config":
            lines += ["      members: [ridge_of, decoded_spaces, encoded_spaces, science]"]
        lines += [""]
    lines += ["## bdflow.\\_\\_version\\_\\_", "", "The version, a text.", ""]
    return "\n".join(lines)


def settings_page() -> str:
    """Every setting of a configuration, by section."""
    lines = ["# Settings", ""]
    lines += ["Every setting of a configuration file, from the code that reads it. `NAME` is a name of your own.", ""]
    lines += [
        "*Stale* lists the kinds of stores (the first part of a store's path) that another value makes stale. "
        "*nothing*: it does not shape content. It says where work runs, where files lie, or what is made beside what "
        "is there. Of files it is what they hold that counts, not their place.",
        "",
    ]
    for key, model in sections():
        lines += [f"## {key or 'Top level'}", "", *introduction(model), ""]
        lines += ["| key | type | default | meaning | stale |", "|---|---|---|---|---|"]
        for one in settings(key, model):
            key_cell = f"<code>{one.key.replace('.', '.<wbr>')}</code>"  # a line breaks behind a dot alone
            cells = (key_cell, one.type, one.default, one.meaning, one.stale)
            lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"]
        lines += [""]
    return "\n".join(lines)


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Key and class of each section; sections that look alike stand once."""
    seen: set[type[BaseModel]] = set()

    def walk(key: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
        yield key, model
        for name, field in model.model_fields.items():
            inner, many = _section_of(field.annotation)
            if inner is None or inner in seen:
                continue
            seen.add(inner)
            below = f"{key}.STAGE" if inner is StageExecution else f"{key}.{name}" if key else name
            yield from walk(f"{below}.NAME" if many else below, inner)

    return walk("", Config)


def settings(key: str, model: type[BaseModel]) -> list[Setting]:
    """The settings of one section."""
    meanings, rows = meanings_of(model), []
    for name, field in model.model_fields.items():
        inner, many = _section_of(field.annotation)
        full = f"{key}.{name}" if key else name
        if inner is None:
            kind = _alternatives(field.annotation) + _limits(field.metadata)
            default, stale = f"`{_yaml(field.get_default(call_default_factory=True))}`", stale_of(full)
        else:
            kind, default, stale = "sections by name" if many else "section", "", ""
        rows.append(Setting(full, kind, "required" if field.is_required() else default, meanings.get(name, ""), stale))
    return rows


def stale_of(key: str) -> str:
    """The kinds of stores that another value of a setting makes stale, from the table that tests hold true."""
    example = key.replace("spaces.NAME", "spaces.vdvae").replace("painters.NAME", "painters.brain_diffuser")
    if key.startswith(("execution.", "cluster.")):
        example = key.partition(".")[0]
    return ", ".join(STALE[example]) or "nothing"


def meanings_of(model: type[BaseModel]) -> dict[str, str]:
    """What docstrings say of each setting: paragraphs `name : meaning`, or `name, name : meaning`, of the class and of
    those it extends.
    """
    found: dict[str, str] = {}
    for of in reversed(model.__mro__):
        if of.__doc__ is None or not issubclass(of, BaseModel) or of is BaseModel:
            continue
        names: list[str] = []
        for line in inspect.cleandoc(of.__doc__).splitlines():
            match = NAMED.match(line)
            if match:
                names = [name for name in match[1].split(", ") if name in model.model_fields]
                found |= dict.fromkeys(names, match[2])
            elif line.startswith("    ") and names:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
            else:
                names = []
    return found


def introduction(model: type[BaseModel]) -> list[str]:
    """The first paragraphs of a section's docstring, up to what it says of single settings."""
    lines: list[str] = []
    for line in inspect.cleandoc(model.__doc__ or "").splitlines():
        if NAMED.match(line) or line in ("Parameters", "Raises"):
            break
        lines.append(line)
    return lines


def _section_of(kind: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section that a setting is, and whether it is one of several by name."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind, False
    if get_origin(kind) is dict:
        value = get_args(kind)[1]
        if isinstance(value, type) and issubclass(value, BaseModel):
            return value, True
    return None, False


def _alternatives(kind: Any) -> str:
    """A type in plain words; of more than two alternatives each in a line of its own."""
    if get_origin(kind) not in (Union, UnionType):
        return _type(kind)
    found = list(dict.fromkeys(_type(each) for each in get_args(kind) if each is not NoneType))
    found += ["null"] if NoneType in get_args(kind) else []
    return " or ".join(found) if len(found) < 3 else "one of<br>" + "<br>".join(f"• {each}" for each in found)


def _type(kind: Any) -> str:
    """A type in plain words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type(args[0]) + _limits(args[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(each) for each in args))
    if origin in (tuple, list):
        inner = [each for each in args if each is not Ellipsis]
        if Ellipsis in args or origin is list:
            return f"list of {_single(inner[0])}"
        return f"[{', '.join(_type(each) for each in inner)}]"
    if origin is dict:
        return f"{_single(args[1])} by name"
    plain = {
        str: "text",
        int: "whole number",
        float: "number",
        ByteSize: "size, such as 4 GiB",
        bool: "true or false",
        Path: "path",
        NoneType: "null",
    }
    return plain.get(kind, "any value" if kind in (Any, object) else kind.__name__.lower())


def _single(kind: Any) -> str:
    """A type inside another: in brackets where it has alternatives."""
    words = _type(kind)
    return f"({words})" if " or " in words or ", " in words else words


def _limits(metadata: Any) -> str:
    signs = (("ge", "from {}"), ("gt", "above {}"), ("le", "to {}"), ("lt", "below {}"))
    marks = [part for mark in metadata for part in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]
    found = [form.format(getattr(mark, sign)) for mark in marks for sign, form in signs if hasattr(mark, sign)]
    return f" {' '.join(found)}" if found else ""


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
