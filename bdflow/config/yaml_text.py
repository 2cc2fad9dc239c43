"""YAML that is read one way: no key twice, and plain text that YAML 1.1 takes for a number or a truth stays text.

Plain `true`, `false`, `null`, and decimal numbers are what they are. `yes`, `010`, `0x1F`, `1_000`, `1:30`, `.inf` and
dates stay text: a text setting takes them as they stand, a number or a switch refuses them (`bdflow.config.sections`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

PREFIX = "tag:yaml.org,2002:"
NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
SWITCH = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
REAL = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z")
OTHERS = re.compile(r"[-+]?0(?:[0-9_]+|[oO][0-7_]+)\Z")  # numbers of YAML 1.2 alone
MERGE = re.compile(r"<<\Z")
MOST = 100_000  # nodes, those of anchors counted wherever they are used


class Guess(str):
    """Plain text that other readers of YAML take for a number, a truth or a date."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, Any]]] = {}  # noqa: RUF012 (PyYAML's)


for _kind, _pattern, _first in (
    ("null", NULL, ["~", "n", "N", ""]),
    ("bool", SWITCH, list("tTfF")),
    ("int", WHOLE, list("-+0123456789")),
    ("float", REAL, list("-+.0123456789")),
    ("merge", MERGE, ["<"]),
):
    _Loader.add_implicit_resolver(PREFIX + _kind, _pattern, _first)
_KNOWN = {PREFIX + "null": NULL, PREFIX + "bool": SWITCH, PREFIX + "int": WHOLE, PREFIX + "float": REAL}
_KINDS = {*_KNOWN, *(PREFIX + kind for kind in ("str", "map", "seq", "merge"))}
_OLD = yaml.SafeLoader.yaml_implicit_resolvers


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    if node.style is None and (OTHERS.match(text) or any(old.match(text) for _, old in _OLD.get(text[:1], []))):
        return Guess(text)
    return text


def _real(loader: _Loader, node: yaml.ScalarNode) -> float:
    value = float(str(loader.construct_scalar(node)))
    if not math.isfinite(value):
        raise _Problem(f"the number {node.value} in line {_line(node)}, which is too large for a float")
    return value


_Loader.add_constructor(PREFIX + "str", _text)
_Loader.add_constructor(PREFIX + "float", _real)


class _Problem(ValueError):
    pass


class _Dumper(yaml.SafeDumper):
    """Writes in quotes what PyYAML or `read` would take for something else than text."""


for _kind, _pattern in (("null", NULL), ("bool", SWITCH), ("int", WHOLE), ("float", REAL)):
    _Dumper.add_implicit_resolver(PREFIX + _kind, _pattern, None)


def write(content: object, *, flow: bool = False) -> str:
    """Plain values as YAML, in their order, which `read` and other readers of YAML read again; `flow` in braces."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow)


def read(text: str) -> Any:
    """The content of one YAML document.

    Raises
    ------
    ValueError : what is wrong and in which line: no YAML, a key twice in one mapping, a tag, nesting without end.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        for number, _ in enumerate(_checked(node, ())):
            if number >= MOST:
                raise _Problem(f"more than {MOST:,} values (anchors count wherever they are used)")
        return loader.construct_document(node)
    except _Problem as error:
        raise ValueError(str(error)) from None
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"text that is not YAML{at} ({said})") from error
    except (yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"text that is not YAML ({said})") from error


def _checked(node: yaml.Node, above: tuple[yaml.Node, ...]) -> Iterator[None]:
    """Look at every node below this one; yields once a node."""
    if any(node is other for other in above):
        raise _Problem(f"an anchor that holds itself (line {_line(node)})")
    pattern = _KNOWN.get(node.tag)
    if node.tag not in _KINDS or (pattern is not None and not pattern.match(str(node.value))):
        raise _Problem(f"the tag {node.tag.replace(PREFIX, '!!')} in line {_line(node)}; expected plain values")
    yield
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _checked(item, (*above, node))
    elif isinstance(node, yaml.MappingNode):
        seen: dict[tuple[str, str], yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Problem(f"a list or a mapping as a key (line {_line(key)})")
            first = seen.setdefault((key.tag, key.value), key)
            if first is not key:
                raise _Problem(f"the key `{key.value}` twice in one mapping, in lines {_line(first)} and {_line(key)}")
            yield from _checked(key, ())
            yield from _checked(value, (*above, node))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
