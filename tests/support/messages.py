"""What a message for users must not hold; and what the source says in its own errors and log lines."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bdflow.errors import BdflowError

ROOT = Path(__file__).parents[2]
REPRS = re.compile(
    r"PosixPath\(|\bnp\.\w+\(|\bdtype\(|\barray\(\[|torch\.Size|torch\.(?:float|bfloat|int|uint)\d|<class |<function |"
    r"<bdflow|object at 0x|mappingproxy|dict_keys|OrderedDict|\bfrozenset\("
)
FAULTY_ON_PURPOSE = ("test_messages", "test_message_references")
"""Modules of tests that make such errors."""


def faults(error: BdflowError) -> list[str]:
    """What is wrong with the words of an error; empty if nothing."""
    found = [f"no `{part}`" for part in ("where", "found", "expected", "action") if not getattr(error, part).strip()]
    found += [f"a Python repr: {word}" for word in REPRS.findall(error.message)]
    return found


@dataclass(frozen=True)
class Said:
    """A call in the source that makes an own error or logs a line: where, and the call itself."""

    where: str
    call: ast.Call

    @property
    def name(self) -> str:
        return ast.unparse(self.call.func).rsplit(".", 1)[-1]

    def texts(self) -> Iterator[str]:
        """Its literal texts, as they stand; `{}` for what is put into them."""
        inside: set[int] = set()
        for node in ast.walk(self.call):
            if isinstance(node, ast.JoinedStr):
                inside |= {id(part) for part in node.values}
                yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                yield node.value


def kinds(kind: type = BdflowError) -> set[str]:
    """Names of the classes of own errors."""
    return {kind.__name__}.union(*(kinds(below) for below in kind.__subclasses__()))


@cache
def said(*, logged: bool = True) -> tuple[Said, ...]:
    """Every construction of an own error, and with `logged` every line of information and warning."""
    return tuple(_said(kinds(), logged))


@cache
def tree(file: Path) -> ast.Module:
    """A source file, parsed once."""
    return ast.parse(file.read_text(encoding="utf-8"))


def _said(own: set[str], logged: bool) -> Iterator[Said]:
    for folder in ("bdflow", "stores", "cluster", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if folder == "bdflow" and file.relative_to(ROOT / folder).parts[0] in ("stores", "cluster", "benchmarks"):
                continue
            for node in ast.walk(tree(file)):
                if not isinstance(node, ast.Call):
                    continue
                words = ast.unparse(node.func).split(".")
                line = words[0] == "log" and words[-1] in ("info", "warning", "error") and logged
                if words[-1] in own or line:
                    yield Said(f"{file.relative_to(ROOT)}:{node.lineno}", node)
