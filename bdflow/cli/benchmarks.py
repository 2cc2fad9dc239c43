"""`bdflow bench`: what parts of bdflow take on this machine. Options are those of each benchmark: see its `--help`."""

from __future__ import annotations

import sys
from typing import Any

import typer
from click.shell_completion import CompletionItem
from typer.core import TyperCommand

from bdflow import api

bench_app = typer.Typer(
    help="What parts of bdflow take on this machine, beside its own limits. `plan --figures` takes the figures.",
    no_args_is_help=True,
)


class _Benchmark(TyperCommand):
    """A command whose options are those of a benchmark; the shell completes them."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        found: list[Any] = super().shell_complete(ctx, incomplete)
        options = (*api.benchmark_options(str(self.name)), "--help")
        return found + [
            CompletionItem(option) for option in options if incomplete[:1] and option.startswith(incomplete)
        ]


def _add(name: str, text: str) -> None:
    def command(context: typer.Context) -> None:
        if not {"--help", "-h"} & set(context.args):
            typer.echo(f"bench {name}: loading what it needs ...", err=True)
            sys.stderr.flush()
        api.benchmark(name, context.args)

    command.__doc__ = text
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    bench_app.command(name, cls=_Benchmark, context_settings=settings, options_metavar="[OPTIONS], see --help")(command)


for _name, _text in api.BENCHMARKS.items():
    _add(_name, _text)
