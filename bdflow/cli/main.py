"""The command `bdflow`. Heavy imports happen inside the commands, so that --help answers at once."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bdflow import __version__, api
from bdflow.cli import completion, remedies
from bdflow.cli import status as status_of
from bdflow.cli.benchmarks import bench_app
from bdflow.cli.bundles import bundle_app
from bdflow.cli.datasets import dataset_app, fetch_app
from bdflow.cli.decoding import decode
from bdflow.cli.deploying import deploy_app
from bdflow.cli.options import ConfigArgument, RemakeOption, SetOption, SubjectsOption, loaded_config, names_of
from bdflow.cli.scoring import score
from bdflow.cli.text import bytes_of, console, last_line, show_log, timings_table
from bdflow.errors import BdflowError, InputError, counted, os_error
from bdflow.user_paths import escaped, local_path

app = typer.Typer(
    name="bdflow",
    help="Decode images from brain activity: recipes such as Brain-Diffuser, every intermediate array in Zarr stores.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(bench_app, name="bench")
app.add_typer(bundle_app, name="bundle")
app.add_typer(fetch_app, name="fetch")
app.add_typer(dataset_app, name="dataset")
app.add_typer(deploy_app, name="deploy")


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bdflow {__version__}")
        raise typer.Exit


@app.callback()
def _begin(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Show the version, and leave.")
    ] = False,
) -> None:
    show_log()


def _command() -> str:
    return " ".join(["bdflow", *(os.fsencode(word).decode(errors="replace") for word in sys.argv[1:])])


@app.command()
def run(
    config: ConfigArgument,
    until: Annotated[
        str, typer.Option(metavar="STAGE", autocompletion=completion.stages, help="Stop after this stage.")
    ] = "",
    only: Annotated[
        str, typer.Option(metavar="STAGE", autocompletion=completion.single_stages, help="Run this stage alone.")
    ] = "",
    subjects: SubjectsOption = "",
    remake: RemakeOption = False,
    overrides: SetOption = None,
) -> None:
    """Run the pipeline: ingest, features, regress, reconstruct, evaluate, report. Resumes where it was stopped."""
    loaded = loaded_config(config, overrides, subjects)
    with _stoppable():
        done = api.run(loaded, until=until, only=only, subjects=names_of(subjects), remake=remake, command=_command())
    typer.echo(last_line(done))


@contextmanager
def _stoppable() -> Iterator[None]:
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("stopped. Run the same command again: it goes on where it stopped.", err=True)
        raise typer.Exit(130) from None


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM, as batch systems send it before a time limit, stops a run as Ctrl-C does."""
    raise KeyboardInterrupt


def _stage_command(stage: str, text: str) -> None:
    def command(
        config: ConfigArgument, subjects: SubjectsOption = "", remake: RemakeOption = False, overrides: SetOption = None
    ) -> None:
        run(config, only=stage, subjects=subjects, remake=remake, overrides=overrides)

    command.__doc__ = text
    app.command(name=stage)(command)


_stage_command("ingest", "NSD's files into stores: betas, responses, stimuli.")
_stage_command("features", "Latents of every stimulus in the three target spaces.")
_stage_command("regress", "Ridge from responses to latents; predictions of the test stimuli.")
_stage_command("reconstruct", "Predicted latents into pictures: guesses, then reconstructions.")
_stage_command("evaluate", "Score every reconstruction against the photo that was shown.")
_stage_command("report", "Write the report from what the stores hold.")


@app.command()
def roi(
    config: ConfigArgument,
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="EXPR", help="Such as V1, 'faces - bodies', 'words & V1'; repeatable. Default: roi.sets."),
    ] = None,
    mask: Annotated[
        str | None, typer.Option(metavar="FILE", help="NIfTI mask, or .npy pattern, of the one --subject.")
    ] = None,
    subjects: Annotated[str, typer.Option("--subjects", "--subject", metavar="S,S", help="These subjects alone.")] = "",
    out: Annotated[str, typer.Option(help="Directory for the figures.")] = "figures",
    remake: RemakeOption = False,
    overrides: SetOption = None,
) -> None:
    """What brain areas like to see: paint patterns of regions by the stored decoders, and draw the figures."""
    loaded = loaded_config(config, overrides)
    with _stoppable():
        made = api.paint_regions(
            loaded, region or (), mask=mask, subjects=names_of(subjects), out=out, remake=remake, command=_command()
        )
    for path in (*made.stores, *made.figures):
        typer.echo(path)


@app.command()
def encode(
    config: ConfigArgument, subjects: SubjectsOption = "", remake: RemakeOption = False, overrides: SetOption = None
) -> None:
    """Encoding models: how well latents of each target space, or set of them, predict every voxel. See also `maps`."""
    loaded = loaded_config(config, overrides, subjects)
    with _stoppable():
        made = api.encode(loaded, subjects=names_of(subjects), remake=remake, command=_command())
    for store in made:
        typer.echo(store)


@app.command()
def maps(
    config: ConfigArgument,
    out: Annotated[str, typer.Option(help="Directory to write below, a folder for each subject.")] = "maps",
    subjects: SubjectsOption = "",
    overrides: SetOption = None,
) -> None:
    """Voxel maps as NIfTI in each subject's space: noise ceiling, regions, patterns, importance, encoding models."""
    for file in api.write_maps(loaded_config(config, overrides, subjects), out, subjects=names_of(subjects)):
        typer.echo(file)


@app.command()
def export(
    config: ConfigArgument,
    out: Annotated[str, typer.Option(metavar="DIR", help="A new directory.")],
    photos: Annotated[bool, typer.Option("--photos", help="What was shown too. Mind whose photos they are.")] = False,
    subjects: SubjectsOption = "",
    overrides: SetOption = None,
) -> None:
    """Every picture as PNG by stimulus, images.csv, the scores, and a manifest with digests: for others to score."""
    loaded = loaded_config(config, overrides, subjects)
    typer.echo(api.export_pictures(loaded, out, subjects=names_of(subjects), photos=photos))


@app.command()
def figures(
    config: ConfigArgument,
    out: Annotated[str, typer.Option(help="Directory to write into.")] = "figures",
    subjects: SubjectsOption = "",
    overrides: SetOption = None,
) -> None:
    """Draw figures for papers from a finished study, as PNG and SVG."""
    for file in api.draw_figures(loaded_config(config, overrides, subjects), out, subjects=names_of(subjects)):
        typer.echo(file)


@app.command()
def status(
    config: ConfigArgument,
    timings: Annotated[
        bool, typer.Option("--timings", help="What partitions took: seconds, bytes, memory, retries.")
    ] = False,
    subjects: SubjectsOption = "",
    overrides: SetOption = None,
) -> None:
    """Every store: shape, size on disk, partitions done, sealed or stale and why; or, by stage, what it took."""
    loaded = loaded_config(config, overrides, subjects)
    if timings:
        console().print(timings_table(str(loaded.study), api.timings(loaded)))
    else:
        status_of.show(str(loaded.study), api.status(loaded, subjects=names_of(subjects)))
        typer.echo(f"\n{api.rounding()}")


@app.command()
def verify(
    config: ConfigArgument,
    repair: Annotated[bool, typer.Option("--repair", help="Compute what is damaged again.")] = False,
    overrides: SetOption = None,
) -> None:
    """Compare every file of the study with what was written; name what is damaged, and with --repair mend it."""
    loaded = loaded_config(config, overrides)
    found = api.verify(loaded, repair=repair, command=_command())
    strange = [damage for damage in found if damage.file_is_foreign]
    mended = [damage for damage in found if repair and not damage.file_is_foreign]
    for damage in strange if repair else found:
        typer.echo(damage.headline)
    if not found:
        typer.echo(f"{loaded.study}: every file is as it was written.")
    if mended:
        typer.echo(f"{counted(len(mended), 'damaged file')} written or computed again.")
    elif len(found) > len(strange):
        damaged, command = len(found) - len(strange), remedies.command("repair", [])
        typer.echo(f"{counted(damaged, 'damaged file')}. This mends {'it' if damaged == 1 else 'them'}: {command}")
    if strange:
        one = len(strange) == 1
        typer.echo(
            f"{counted(len(strange), 'file')} that {'is' if one else 'are'} no part of the study: "
            f"move {'it' if one else 'them'} away; bdflow deletes nothing that it did not write."
        )
    if strange or (found and not repair):
        raise typer.Exit(1)


app.command()(decode)
app.command()(score)


@app.command()
def plan(
    config: ConfigArgument,
    figures: Annotated[
        list[str] | None, typer.Option(metavar="FILE.json", help="What `bdflow bench` wrote with --json; repeatable.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which GPU to plan with: a100, 3090, h100 or h200.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    subjects: SubjectsOption = "",
    overrides: SetOption = None,
) -> None:
    """Hours, GPU-hours, disk and memory of every stage, before anything runs; NSD need not be there."""
    from json import dumps

    found = api.plan(loaded_config(config, overrides, subjects), figures or (), gpu, subjects=names_of(subjects))
    if json:
        typer.echo(dumps(found.as_json(), indent=1))
        return
    table, lines = api.plan_text(found)
    shown = console()
    shown.print(table)
    for line in lines:
        shown.print(line, markup=False, highlight=False)


@app.command()
def serve(
    config: ConfigArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen at; other than loopback only with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8750,
    token: Annotated[
        str, typer.Option(envvar="BDFLOW_TOKEN", help="What senders must know: Authorization: Bearer TOKEN.")
    ] = "",
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Answer everybody on this machine, its other users too.")
    ] = False,
    max_items: Annotated[int, typer.Option(help="Pictures in one request.")] = 64,
    max_body: Annotated[str, typer.Option(help="Bytes of one body.")] = "64 MiB",
    max_waiting: Annotated[int, typer.Option(help="Pictures accepted and not yet answered; more get 503.")] = 512,
    subjects: SubjectsOption = "",
    overrides: SetOption = None,
) -> None:
    """Pictures over HTTP: POST voxels of a subject, or latents, and get PNGs back. Runs until it is stopped."""
    api.serve(
        loaded_config(config, overrides, subjects),
        host=host,
        port=port,
        token=None if no_token else token,
        items=max_items,
        nbytes=bytes_of("--max-body", max_body),
        waiting=max_waiting,
        subjects=names_of(subjects),
    )


@app.command()
def simulate(
    root: Annotated[str, typer.Argument(help="Directory to write; NSD's own files and folders.")],
    subjects: Annotated[str, typer.Option(metavar="S,S")] = "subj01,subj02,subj05,subj07",
    shared: Annotated[int, typer.Option(help="Stimuli shown to every subject: the test set.")] = 0,
    own: Annotated[int, typer.Option(help="Stimuli shown to each subject alone: the training set.")] = 0,
    seed: Annotated[int, typer.Option()] = 0,
    imagery: Annotated[bool, typer.Option("--imagery", help="Also a session of NSD-Imagery of each subject.")] = False,
) -> None:
    """Write a small dataset in exactly NSD's files, with a planted truth beside it."""
    api.simulate(root, subjects=names_of(subjects), shared=shared, own=own, seed=seed, imagery=imagery)
    typer.echo(f"{root}: a simulated dataset in NSD's files; what was planted is in truth.json and truth.npz")


@app.command()
def demo(
    root: Annotated[str, typer.Option(help="Directory to write below.")] = "demo",
    remake: RemakeOption = False,
    overrides: SetOption = None,
) -> None:
    """Simulated brains of four subjects, the whole pipeline, and a report: in a few minutes, without NSD."""
    below = local_path("--root", root)
    places = (("study", "study.zarr"), ("dataset.root", "nsd"), ("report.path", "report"))
    own = {override.partition("=")[0].strip() for override in overrides or ()}
    paths = [f"{key}={escaped(below / name)}" for key, name in places if not {key, key.partition(".")[0]} & own]
    loaded = loaded_config("demo", [*paths, *(overrides or ())])
    if isinstance(loaded.dataset.root, Path):
        typer.echo("simulating four subjects in NSD's files ...", err=True)
        api.simulate(loaded.dataset.root)
    with _stoppable():
        done = api.run(loaded, remake=remake, command=_command())
    typer.echo(f"data    {loaded.dataset.root}   (NSD's files; truth.json tells what was planted)")
    typer.echo(f'study   {loaded.study}   (xarray.open_datatree("{loaded.study}", engine="zarr", chunks={{}}))')
    typer.echo(last_line(done))


@app.command()
def recipes() -> None:
    """The configurations that ship with bdflow, and where they are."""
    for name, path in sorted(api.recipes().items()):
        typer.echo(f"{name:20} {path}")


def main() -> None:
    """Entry point: errors users can act on are printed without a traceback, with exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks
    try:
        app()
    except Exception as raised:
        error = _in_words(raised)
        if error is None:
            raise
        typer.echo(f"error: {error}", err=True)
        command = remedies.command(error.remedy, sys.argv[1:])
        if command:
            typer.echo(f"Command: {command}", err=True)
        sys.exit(1)


def _in_words(error: Exception) -> BdflowError | None:
    """What a user is told of an error; None if it is a mistake in bdflow, whose traceback is to be seen."""
    if isinstance(error, BdflowError):
        return error
    if isinstance(error, OSError):
        return os_error(error)
    if isinstance(error, MemoryError):
        return InputError(
            "memory of this machine",
            found=f"too little ({str(error) or 'the system gave no more'})",
            expected="space for what is computed",
            meaning="What is written stays valid.",
            action="use fewer workers (`execution.STAGE.workers`), smaller `chunks` or more memory, then "
            "run the same again: it goes on where it stopped",
        )
    return None


if __name__ == "__main__":
    main()
