"""`bdflow bench`: what parts of bdflow take on this machine. Options are those of each benchmark: see its `--help`."""

from __future__ import annotations

import sys

import typer

from bdflow import api

bench_app = typer.Typer(
    help="What parts of bdflow take on this machine, beside its own limits. `plan --figures` takes the figures.",
    no_args_is_help=True,
)


def _add(name: str, text: str) -> None:
    def command(context: typer.Context) -> None:
        if not {"--help", "-h"} & set(context.args):
            typer.echo(f"bench {name}: loading what it needs ...", err=True)
            sys.stderr.flush()
        api.benchmark(name, context.args)

    command.__doc__ = text
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    bench_app.command(name, context_settings=settings, options_metavar="[OPTIONS], see --help")(command)


for _name, _text in api.BENCHMARKS.items():
    _add(_name, _text)
