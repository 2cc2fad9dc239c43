"""`bdflow bundle`: directories of model weights."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from bdflow import api
from bdflow.cli.text import console, human
from bdflow.errors import counted

bundle_app = typer.Typer(help="Directories of model weights.", no_args_is_help=True)

BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="`tiny`, or a directory of weights.")]


@bundle_app.command("init")
def bundle_init(
    folder: Annotated[str, typer.Argument(metavar="DIRECTORY", help="Holds the published files, in either layout.")],
) -> None:
    """Recognise published weights in a directory and write the manifest that makes it a bundle."""
    written = api.init_bundle(folder)
    typer.echo(f"wrote {written}. This looks into every file: {shlex.join(['bdflow', 'bundle', 'check', folder])}")


@bundle_app.command("check")
def bundle_check(bundle: BundleArgument) -> None:
    """Every missing, extra or misshapen tensor and every wrong file, at once."""
    checked = api.check_bundle(bundle)
    for problem in checked.problems:
        typer.echo(problem)
    if not checked.ok:
        typer.echo(f"{checked.path}: {counted(len(checked.problems), 'problem')}")
        raise typer.Exit(1)
    typer.echo(f"{checked.path}: every file and tensor is as expected")


@bundle_app.command("info")
def bundle_info(bundle: BundleArgument) -> None:
    """Files, sizes, parameters, dtypes and licence of every network."""
    from rich.table import Table

    found = api.describe_bundle(bundle)
    table = Table(box=None, pad_edge=False)
    for name in ("network", "parameters", "dtype", "layout", "licence", "files"):
        table.add_column(name, justify="right" if name == "parameters" else "left", overflow="fold")
    for network in found.networks:
        files = "\n".join(f"{file} ({human(size)})" for file, size in network.files)
        parameters = f"{network.parameters:,}" if network.parameters else ""
        licence = network.licence or ""
        table.add_row(network.name, parameters, ", ".join(network.dtypes), network.layout, licence, files)
    spaces = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in found.spaces.items())
    typer.echo(f"{found.name}  {found.path}  fingerprint {found.fingerprint}")
    guess = "" if found.guess_size is None else f"guess {found.guess_size} px, "
    typer.echo(f"target spaces: {spaces}; {guess}reconstruction {found.image_size} px")
    console().print(table)
