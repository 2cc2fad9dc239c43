"""What several commands have in common: the configuration and how it is overridden, subjects, `--remake`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bdflow import api
from bdflow.cli import completion, remedies

if TYPE_CHECKING:
    from bdflow import Config

ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG", autocompletion=completion.configs, help="YAML file, or the name of a shipped recipe."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as reconstruct.steps=20; repeatable."),
]
SubjectsOption = Annotated[
    str,
    typer.Option(
        metavar="S,S",
        autocompletion=completion.subjects,
        help="These subjects alone, such as subj01,subj02; no file of another one is needed.",
    ),
]
RemakeOption = Annotated[bool, typer.Option("--remake", help="Replace stores that were made from something else.")]


def loaded_config(config: str, overrides: list[str] | None, subjects: str = "") -> Config:
    """A configuration; what errors say to do is then said for it."""
    remedies.about(config, overrides or (), names_of(subjects))
    return api.load_config(config, overrides or ())


def names_of(listed: str) -> list[str]:
    """Names that are separated by commas."""
    return [name.strip() for name in listed.split(",") if name.strip()]
