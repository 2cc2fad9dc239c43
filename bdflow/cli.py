"""The command `bdflow`. Heavy imports happen inside the commands, so that --help answers at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bdflow.cli_text import bytes_of, confirmed, console, human, status_table, timings_table

if TYPE_CHECKING:
    from bdflow.pipeline import Pipeline

app = typer.Typer(
    name="bdflow",
    help="Reconstruct seen images from fMRI (Brain-Diffuser), every intermediate array in chunked Zarr stores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bundle_app = typer.Typer(help="Directories of model weights.", no_args_is_help=True)
app.add_typer(bundle_app, name="bundle")
fetch_app = typer.Typer(help="Data sets, from where they are published.", no_args_is_help=True)
app.add_typer(fetch_app, name="fetch")

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, or the name of a shipped recipe.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as reconstruct.steps=20; repeatable."),
]
SubjectsOption = Annotated[
    str, typer.Option(metavar="S,S", help="Fill only these subjects' stores, such as subj01,subj02.")
]
RemakeOption = Annotated[bool, typer.Option("--remake", help="Replace stores that were made from something else.")]


def _pipeline(config: str, overrides: list[str] | None, subjects: str = "") -> Pipeline:
    from bdflow.config import load
    from bdflow.pipeline import Pipeline

    chosen = [name.strip() for name in subjects.split(",") if name.strip()]
    return Pipeline(load(config, overrides or ()), chosen, say=_say)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _command() -> str:
    return " ".join(["bdflow", *sys.argv[1:]])


@app.command()
def run(
    config: ConfigArgument,
    until: Annotated[str, typer.Option(metavar="STAGE", help="Stop after this stage.")] = "",
    only: Annotated[str, typer.Option(metavar="STAGE", help="Run this stage alone.")] = "",
    subjects: SubjectsOption = "",
    remake: RemakeOption = False,
    overrides: SetOption = None,
) -> None:
    """Run the pipeline: ingest, features, regress, reconstruct, evaluate, report. Resumes where it was stopped."""
    from bdflow.errors import InputError
    from bdflow.pipeline import NAMES, ON_DEMAND, stages_until

    for option, value, names in (("--until", until, NAMES), ("--only", only, (*NAMES, *ON_DEMAND))):
        if value and value not in names:
            raise InputError(
                option,
                found=repr(value),
                expected="a stage: " + ", ".join(names),
                action="choose one of these",
            )
    if until and only:
        raise InputError("--until, --only", found="both", expected="one of them", action="drop one")
    stages: Sequence[str] = (only,) if only else tuple(stages_until(until or NAMES[-1]))
    _fill(_pipeline(config, overrides, subjects), stages, remake)


def _fill(pipeline: Pipeline, stages: Sequence[str], remake: bool) -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        pipeline.run(stages, remake=remake, command=_command())
    except KeyboardInterrupt:
        _say("stopped; the same command goes on where it stopped")
        raise typer.Exit(130) from None


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM, as batch systems send it before a time limit, stops a run as Ctrl-C does."""
    raise KeyboardInterrupt


def _stage_command(stage: str, text: str) -> None:
    def command(
        config: ConfigArgument,
        subjects: SubjectsOption = "",
        remake: RemakeOption = False,
        overrides: SetOption = None,
    ) -> None:
        _fill(_pipeline(config, overrides, subjects), (stage,), remake)

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
        Path | None, typer.Option(metavar="FILE", help="NIfTI mask, or .npy pattern, of the one --subject.")
    ] = None,
    subjects: Annotated[str, typer.Option("--subjects", "--subject", metavar="S,S", help="These subjects alone.")] = "",
    out: Annotated[Path, typer.Option(help="Directory for the figures.")] = Path("figures"),
    remake: RemakeOption = False,
    overrides: SetOption = None,
) -> None:
    """What brain areas like to see: paint patterns of regions by the stored decoders, and draw the figures."""
    from bdflow.errors import InputError
    from bdflow.pipeline import Pipeline
    from bdflow.roi_patterns import on_demand

    pipeline = _pipeline(config, overrides, subjects)
    if region or mask:
        chosen = pipeline.subjects if subjects else ()
        pipeline = Pipeline(on_demand(pipeline.config, region or (), mask, chosen), pipeline.subjects, say=_say)
    if not pipeline.config.roi.sets:
        raise InputError("roi.sets", found="no regions", expected="some", action="add --region EXPR, or roi.sets")
    _fill(pipeline, ("roi",), remake)
    for name in pipeline.config.roi.sets:
        typer.echo(pipeline.study.path / "rois" / name)
    for file in pipeline.region_figures(out):
        typer.echo(file)


@app.command()
def encode(
    config: ConfigArgument, subjects: SubjectsOption = "", remake: RemakeOption = False, overrides: SetOption = None
) -> None:
    """Encoding models: how well the latents of each target space predict every voxel. `maps` then writes their R²."""
    from bdflow.config import SPACES

    pipeline = _pipeline(config, overrides, subjects)
    _fill(pipeline, ("encode",), remake)
    for subject in pipeline.subjects:
        for space in [space for space in SPACES if space in pipeline.config.encode.spaces]:
            typer.echo(pipeline.study.path / "encoding" / subject / space)


@app.command()
def maps(
    config: ConfigArgument,
    out: Annotated[Path, typer.Option(help="Directory to write below, a folder for each subject.")] = Path("maps"),
    subjects: SubjectsOption = "",
    overrides: SetOption = None,
) -> None:
    """Voxel maps as NIfTI in each subject's space: noise ceiling, regions, patterns, importance, R²."""
    for file in _pipeline(config, overrides, subjects).maps(out):
        typer.echo(file)


@app.command()
def figures(
    config: ConfigArgument,
    out: Annotated[Path, typer.Option(help="Directory to write into.")] = Path("figures"),
    subjects: SubjectsOption = "",
    overrides: SetOption = None,
) -> None:
    """Draw figures for papers from a finished study, as PNG and SVG."""
    for file in _pipeline(config, overrides, subjects).figures(out):
        typer.echo(file)


@app.command()
def status(
    config: ConfigArgument,
    timings: Annotated[
        bool, typer.Option("--timings", help="What partitions took: seconds, bytes, memory, retries.")
    ] = False,
    overrides: SetOption = None,
) -> None:
    """Every store: shape, size on disk, partitions done, sealed or stale and why; or, by stage, what it took."""
    pipeline = _pipeline(config, overrides)
    if timings:
        console().print(timings_table(str(pipeline.study.path), pipeline.timings()))
    else:
        console().print(status_table(str(pipeline.study.path), pipeline.status()))


@app.command()
def verify(
    config: ConfigArgument,
    repair: Annotated[bool, typer.Option("--repair", help="Compute what is damaged again.")] = False,
    overrides: SetOption = None,
) -> None:
    """Read every chunk of the study against its checksum; name, and with --repair redo, what is damaged."""
    pipeline = _pipeline(config, overrides)
    found = pipeline.verify(repair=repair, command=_command())
    if not found:
        typer.echo(f"{pipeline.study.path}: every chunk is as it was written.")
    elif repair:
        typer.echo(f"{len(found)} damaged chunks computed again.")
    else:
        for damage in found:
            typer.echo(str(damage).splitlines()[0])
        typer.echo(f"{len(found)} damaged chunks. `bdflow verify {config} --repair` computes them again.")
        raise typer.Exit(1)


@app.command()
def decode(
    config: ConfigArgument,
    patterns: Annotated[
        Path, typer.Argument(metavar="PATTERNS.npy", help="Responses in percent signal change, (patterns, voxels).")
    ],
    subject: Annotated[str, typer.Option(metavar="SUBJECT", help="Whose voxels they are.")],
    out: Annotated[Path, typer.Option(metavar="OUT.zarr", help="Where the latents go, a group for each space.")],
    standardise: Annotated[
        str, typer.Option(metavar="RULE", help="test_set, held_out or none (see reconstruct.standardise).")
    ] = "none",
    overrides: SetOption = None,
) -> None:
    """Decode any patterns of responses with the stored decoder; nothing is fitted again."""
    from bdflow import decode as decoding
    from bdflow.errors import InputError
    from bdflow.ridge import RULES

    if standardise not in RULES:
        raise InputError(
            "--standardise", found=repr(standardise), expected=", ".join(RULES), action="choose one of these"
        )
    values = decoding.read_array(patterns, "an array (patterns, voxels)")
    pipeline = _pipeline(config, overrides, subject)
    decoding.write(pipeline.context(), subject, values, out, standardise)
    typer.echo(f"{len(values)} patterns of {subject} decoded: {out}")


@app.command()
def plan(
    config: ConfigArgument,
    figures: Annotated[
        list[Path] | None, typer.Option(metavar="FILE.json", help="What a benchmark wrote with --json; repeatable.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    overrides: SetOption = None,
) -> None:
    """Hours, GPU-hours, disk and memory of every stage, before anything runs; NSD need not be there."""
    from json import dumps

    found = _pipeline(config, overrides).plan(figures or ())
    if json:
        typer.echo(dumps(found.as_json(), indent=1))
        return
    from bdflow.plan_table import lines, table

    shown = console()
    shown.print(table(found))
    for line in lines(found):
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
    max_items: Annotated[int, typer.Option(help="Pictures in one request.")] = 64,
    max_body: Annotated[str, typer.Option(help="Bytes of one body.")] = "64 MiB",
    max_waiting: Annotated[int, typer.Option(help="Pictures accepted and not yet answered; more get 503.")] = 512,
    subjects: SubjectsOption = "",
    overrides: SetOption = None,
) -> None:
    """Pictures over HTTP: POST voxels of a subject, or latents, and get PNGs back. Runs until it is stopped."""
    pipeline = _pipeline(config, overrides, subjects)
    limits = {"items": max_items, "nbytes": bytes_of("--max-body", max_body), "waiting": max_waiting}
    pipeline.serve(host=host, port=port, token=token, **limits)


@app.command()
def simulate(
    root: Annotated[Path, typer.Argument(help="Directory to write; NSD's own files and folders.")],
    subjects: Annotated[str, typer.Option(metavar="S,S")] = "subj01,subj02,subj05,subj07",
    shared: Annotated[int, typer.Option(help="Stimuli shown to every subject: the test set.")] = 0,
    own: Annotated[int, typer.Option(help="Stimuli shown to each subject alone: the training set.")] = 0,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Write a small dataset in exactly NSD's files, with a planted truth beside it."""
    from bdflow.simulate import SimulateOptions
    from bdflow.simulate import simulate as write

    chosen: dict[str, Any] = {"subjects": tuple(name.strip() for name in subjects.split(",")), "seed": seed}
    chosen |= {name: value for name, value in (("n_shared", shared), ("n_own", own)) if value}
    write(root, SimulateOptions(**chosen))
    typer.echo(f"{root}: a simulated dataset in NSD's files; what was planted is in truth.json and truth.npz")


@app.command()
def demo(
    root: Annotated[Path, typer.Option(help="Directory to write below.")] = Path("demo"),
    remake: RemakeOption = False,
    overrides: SetOption = None,
) -> None:
    """Simulated brains of four subjects, the whole pipeline, and a report: in a few minutes, without NSD."""
    from bdflow.pipeline import NAMES

    paths = [f"study={root / 'study.zarr'}", f"nsd.root={root / 'nsd'}", f"report.path={root / 'report'}"]
    pipeline = _pipeline("demo", [*paths, *(overrides or ())])
    from bdflow.simulate import SimulateOptions
    from bdflow.simulate import simulate as write

    if isinstance(pipeline.config.nsd.root, Path):
        _say("simulating four subjects in NSD's files ...")
        write(pipeline.config.nsd.root, SimulateOptions())
    _fill(pipeline, NAMES, remake)
    typer.echo(f"data    {pipeline.config.nsd.root}   (NSD's files; truth.json tells what was planted)")
    typer.echo(
        f'study   {pipeline.study.path}   (xarray.open_datatree("{pipeline.study.path}", engine="zarr", chunks={{}}))'
    )
    typer.echo(f"report  {pipeline.config.report.path / 'index.html'}   (open it in a browser)")


@app.command()
def recipes() -> None:
    """The configurations that ship with bdflow, and where they are."""
    from bdflow.config import recipes as shipped

    for name, path in sorted(shipped().items()):
        typer.echo(f"{name:20} {path}")


@fetch_app.callback()
def _fetch() -> None:
    pass


@fetch_app.command("nsd")
def fetch_nsd(
    config: ConfigArgument,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to; nsd.root by default.")] = None,
    source: Annotated[str, typer.Option("--from", metavar="URL", help="A mirror of NSD's bucket.")] = "",
    accept_terms: Annotated[bool, typer.Option("--accept-terms", help="You have read and accept NSD's terms.")] = False,
    only_list: Annotated[bool, typer.Option("--list", help="Show the files and their sizes, fetch nothing.")] = False,
    overrides: SetOption = None,
) -> None:
    """The files of NSD that a configuration reads, from its public bucket: sized, resumed, verified."""
    from bdflow.config import load
    from bdflow.fetch import SOURCE, command

    command(load(config, overrides or ()), to, source or SOURCE, typer.echo, accept_terms or confirmed, only_list)


BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="`tiny`, or a directory of weights.")]


@bundle_app.command("init")
def bundle_init(
    folder: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Holds the published files, in either layout.")],
) -> None:
    """Recognise published weights in a directory and write the manifest that makes it a bundle."""
    from bdflow.models.manifest import write_manifest

    typer.echo(f"wrote {write_manifest(folder)}; `bdflow bundle check {folder}` looks into every file")


@bundle_app.command("check")
def bundle_check(bundle: BundleArgument) -> None:
    """Every missing, extra or misshapen tensor and every wrong file, at once."""
    from bdflow.models.bundle import check_bundle

    checked = check_bundle(bundle)
    for problem in checked.problems:
        typer.echo(problem)
    if not checked.ok:
        typer.echo(f"{checked.path}: {len(checked.problems)} problems")
        raise typer.Exit(1)
    typer.echo(f"{checked.path}: every file and tensor is as expected")


@bundle_app.command("info")
def bundle_info(bundle: BundleArgument) -> None:
    """Files, sizes, parameters, dtypes and licence of every network."""
    from rich.table import Table

    from bdflow.models.bundle import describe_bundle

    found = describe_bundle(bundle)
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
    typer.echo(f"target spaces: {spaces}; guess {found.guess_size} px, reconstruction {found.image_size} px")
    console().print(table)


def main() -> None:
    """Entry point: errors users can act on are printed without a traceback, with exit code 1."""
    try:
        app()
    except Exception as error:
        if not _expected(error):
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


def _expected(error: Exception) -> bool:
    kinds: list[type[Exception]] = []
    for module, name in (
        ("bdflow.errors", "InputError"),
        ("stores.errors", "StoreError"),
        ("cluster.errors", "ClusterError"),
    ):
        if module in sys.modules:
            kinds.append(getattr(sys.modules[module], name))
    return isinstance(error, tuple(kinds))


if __name__ == "__main__":
    main()
