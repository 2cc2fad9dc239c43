"""What the shell completes: recipes and files of configuration, stages, subjects. An error completes to nothing."""

from __future__ import annotations

from pathlib import Path

import typer

STAGES = ("ingest", "features", "regress", "reconstruct", "evaluate", "report")
ON_DEMAND = ("roi", "encoding_features", "encode")


def configs(incomplete: str) -> list[str]:
    """Names of recipes, and YAML files and folders that begin so."""
    from bdflow import api

    folder, _, begun = incomplete.rpartition("/")
    before = f"{folder}/" if "/" in incomplete else ""
    try:
        files = sorted(Path(before or ".").expanduser().iterdir())
    except OSError:
        files = []
    found = [
        before + file.name + ("/" if file.is_dir() else "")
        for file in files
        if file.name.startswith(begun) and (file.is_dir() or file.suffix in (".yaml", ".yml"))
    ]
    return [*(name for name in sorted(api.recipes()) if name.startswith(incomplete)), *found]


def stages(incomplete: str) -> list[str]:
    """Stages to run until."""
    return [name for name in STAGES if name.startswith(incomplete)]


def single_stages(incomplete: str) -> list[str]:
    """Stages to run alone."""
    return [name for name in (*STAGES, *ON_DEMAND) if name.startswith(incomplete)]


def subjects(context: typer.Context, incomplete: str) -> list[str]:
    """Subjects of the configuration that is named before, one after another by commas."""
    from bdflow import api
    from bdflow.errors import BdflowError

    named = [context.params.get("config"), *context.args]  # what follows is not parsed yet: its value is being written
    try:
        known = api.load_config(next(word for word in named if word)).subjects
    except (BdflowError, OSError, StopIteration):
        return []
    *before, begun = incomplete.split(",")
    rest = [name for name in known if name not in before and name.startswith(begun)]
    return [",".join([*before, name]) for name in rest]
