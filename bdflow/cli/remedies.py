"""From an error's remedy to the command that carries it out: the command line alone knows commands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

REMAKING = ("run", "ingest", "features", "regress", "reconstruct", "evaluate", "report", "roi", "encode", "demo")


@dataclass
class _Subject:
    """What the command line was about: filled when a configuration is named."""

    config: str = "CONFIG"
    overrides: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()


_now = _Subject()


def about(config: str, overrides: Sequence[str], subjects: Sequence[str] = ()) -> None:
    """Remember what this invocation is about, so that commands can be given in full."""
    _now.config, _now.overrides, _now.subjects = config, tuple(overrides), tuple(subjects)


def command(remedy: str, given: Sequence[str]) -> str:
    """The command for a remedy (see `bdflow.errors.BdflowError`); "" for none. `given` is the command line that failed,
    without the program's name.
    """
    kind, _, stage = remedy.partition(":")
    only = ("--only", stage) if stage else ()
    if kind == "remake" and not stage and given and given[0] in REMAKING and "--remake" not in given:
        return shlex.join(["bdflow", *given, "--remake"])
    if kind in ("run", "remake"):
        chosen = ("--subjects", ",".join(_now.subjects)) if _now.subjects else ()
        remake = ("--remake",) if kind == "remake" else ()
        return shlex.join(["bdflow", "run", _now.config, *only, *chosen, *remake, *_settings()])
    if kind == "repair":
        return shlex.join(["bdflow", "verify", _now.config, "--repair", *_settings()])
    if kind == "status":
        return shlex.join(["bdflow", "status", _now.config, *_settings()])
    if kind == "bench":
        return f"bdflow bench {stage} --json FILE"
    if kind == "check-bundle":
        return "bdflow bundle check BUNDLE"
    if kind:
        raise AssertionError(f"unknown remedy {remedy!r}")
    return ""


def _settings() -> list[str]:
    return [word for override in _now.overrides for word in ("--set", override)]
