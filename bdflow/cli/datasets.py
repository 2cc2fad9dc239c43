"""`bdflow dataset` and `bdflow fetch`: datasets, looked into or fetched before anything runs."""

from __future__ import annotations

from typing import Annotated

import typer

from bdflow import api
from bdflow.cli.options import ConfigArgument, SetOption, SubjectsOption, loaded_config, names_of
from bdflow.cli.text import confirmed

fetch_app = typer.Typer(help="Data sets, from where they are published.", no_args_is_help=True)
dataset_app = typer.Typer(help="Datasets, looked into before anything runs.", no_args_is_help=True)


@fetch_app.callback()
def _fetch() -> None:
    pass


@fetch_app.command("nsd")
def fetch_nsd(
    config: ConfigArgument,
    to: Annotated[str | None, typer.Option(metavar="DIR", help="Where to; dataset.root by default.")] = None,
    source: Annotated[str, typer.Option("--from", metavar="URL", help="A mirror of NSD's bucket.")] = "",
    accept_terms: Annotated[bool, typer.Option("--accept-terms", help="You have read and accept NSD's terms.")] = False,
    only_list: Annotated[bool, typer.Option("--list", help="Show the files and their sizes, fetch nothing.")] = False,
    subjects: SubjectsOption = "",
    overrides: SetOption = None,
) -> None:
    """The files of NSD that a configuration reads, from its public bucket: sized, resumed, verified."""
    accept, loaded = accept_terms or confirmed, loaded_config(config, overrides, subjects)
    chosen = names_of(subjects)
    items = api.fetch_nsd(loaded, to, subjects=chosen, source=source, accept_terms=accept, only_list=only_list)
    for item in items if only_list else ():
        typer.echo(f"{item.size:>16,}  {item.name}")


@dataset_app.command("split")
def dataset_split(
    config: ConfigArgument,
    space: Annotated[str, typer.Option(metavar="SPACE", help="Target space whose latents are clustered.")],
    out: Annotated[str, typer.Option(metavar="FILE.json", help="Where the split goes: name it in `dataset.split`.")],
    clusters: Annotated[int, typer.Option(help="How many clusters.")] = 5,
    test: Annotated[int, typer.Option(help="The cluster that is for testing, from 0, the largest first.")] = 0,
    overrides: SetOption = None,
) -> None:
    """Write a split by cluster: test stimuli that are unlike all training stimuli. Latents must be made before."""
    split = api.write_split(loaded_config(config, overrides), out, space=space, clusters=clusters, test=test)
    sizes = ", ".join(map(str, split["about"]["sizes"]))
    typer.echo(f"{out}: clusters of {sizes} stimuli; cluster {test} is for testing")


@dataset_app.callback()
def _dataset() -> None:
    pass


@dataset_app.command("check")
def dataset_check(config: ConfigArgument, subjects: SubjectsOption = "", overrides: SetOption = None) -> None:
    """What is there: subjects, sessions, stimuli, repeats, regions, units, noise ceiling, splits, what is odd."""
    loaded = loaded_config(config, overrides, subjects)
    typer.echo(api.check_dataset(loaded, subjects=names_of(subjects)).text())
