"""`bdflow deploy`: the files that bring bdflow onto a cluster, written into a new folder."""

from __future__ import annotations

from typing import Annotated

import typer

from bdflow import api
from bdflow.cli import completion
from bdflow.cli.options import SetOption

deploy_app = typer.Typer(help="Batch scripts and manifests for a cluster, into a new folder.", no_args_is_help=True)

FolderArgument = Annotated[str, typer.Argument(metavar="DIR", help="A new folder; nothing is written over.")]
FilledArgument = Annotated[
    str | None,
    typer.Argument(metavar="CONFIG", autocompletion=completion.configs, help="Whose settings are filled in."),
]


@deploy_app.command("slurm")
def deploy_slurm(folder: FolderArgument, config: FilledArgument = None, overrides: SetOption = None) -> None:
    """Batch scripts: one node, several nodes, an array of subjects. docs/slurm.md says how to submit them."""
    for file in api.deploy("slurm", folder, config, overrides or ()):
        typer.echo(file)


@deploy_app.command("kubernetes")
def deploy_kubernetes(
    folder: FolderArgument,
    config: FilledArgument = None,
    image: Annotated[str, typer.Option(metavar="IMAGE", help="Of every pod, where the nodes pull it from.")] = "",
    overrides: SetOption = None,
) -> None:
    """Manifests for KubeRay and the Dask operator, and a Dockerfile. docs/kubernetes.md says how to apply them."""
    for file in api.deploy("kubernetes", folder, config, overrides or (), image=image):
        typer.echo(file)
