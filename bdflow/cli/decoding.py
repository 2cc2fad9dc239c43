"""The command `bdflow decode`: patterns, or the trials of another dataset, by the decoders of a study."""

from __future__ import annotations

from typing import Annotated

import typer

from bdflow import api
from bdflow.cli.options import ConfigArgument, SetOption, loaded_config, names_of
from bdflow.errors import InputError, counted


def decode(
    config: ConfigArgument,
    patterns: Annotated[
        str | None,
        typer.Argument(metavar="PATTERNS.npy", help="Responses (patterns, voxels), in the unit of the rows."),
    ] = None,
    *,
    out: Annotated[str, typer.Option(metavar="OUT.zarr", help="Where the latents go, a group for each space.")],
    subject: Annotated[
        str, typer.Option(metavar="S[,S]", help="Whose voxels the patterns are; of --dataset, which subjects.")
    ] = "",
    dataset: Annotated[
        str | None, typer.Option(metavar="OTHER.yaml", help="Instead of patterns: decode the trials of this dataset.")
    ] = None,
    standardise: Annotated[
        str, typer.Option(metavar="RULE", help="test_set, held_out or none (see reconstruct.standardise).")
    ] = "none",
    units: Annotated[
        str | None,
        typer.Option(metavar="UNIT", help="Of the patterns, to be checked: 'percent signal change', z or arbitrary."),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Decode any patterns of responses, or another dataset, with the stored decoder; nothing is fitted again."""
    loaded = loaded_config(config, overrides)
    if (patterns is None) == (dataset is None):
        raise InputError(
            "decode",
            found="patterns and --dataset" if dataset is not None else "neither patterns nor --dataset",
            expected="one of them",
            action="give a .npy file of patterns, or a configuration of another dataset by --dataset",
        )
    if dataset is not None and units is not None:
        raise InputError(
            "--units",
            found="a unit beside --dataset",
            expected="it with patterns alone: a dataset says its unit itself",
            action="leave --units out",
        )
    if dataset is not None:
        many = api.decode_dataset(loaded, dataset, out, subjects=names_of(subject), standardise=standardise)
        whose = ", ".join(f"{rows:,} of {name}" for name, rows in many.items())
        typer.echo(f"means of trials decoded, by stimulus and condition: {whose}: {out}")
        return
    if not subject:
        raise InputError(
            "--subject", found="no subject", expected="whose voxels the patterns are", action="name it by --subject"
        )
    assert patterns is not None
    number = api.decode_file(loaded, patterns, subject, out, standardise=standardise, units=units)
    typer.echo(f"{counted(number, 'pattern')} of {subject} decoded: {out}")
