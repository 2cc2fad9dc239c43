"""The plot of painting: images a second by batch size."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bdflow.benchmarks import machine
from bdflow.errors import InputError


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Images a second by batch size, one curve a dtype and set of switches; a tick at each batch size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    styles = iter([(colour, mark) for mark in "os^D" for colour in ("#0072b2", "#d55e00", "#009e73", "#cc79a7")])
    batches = sorted({row["batch_size"] for row in rows})
    for name in dict.fromkeys(row["switches"] for row in rows):
        if name.startswith(("plain +", "all -")):
            continue
        for dtype in dict.fromkeys(row["dtype"] for row in rows):
            points = [
                (r["batch_size"], r["images_a_second"]) for r in rows if (r["switches"], r["dtype"]) == (name, dtype)
            ]
            if points:
                colour, mark = next(styles, ("#000000", "x"))
                axes.plot(*zip(*sorted(points), strict=True), color=colour, marker=mark, label=f"{name}, {dtype}")
    axes.set(xlabel="batch size", ylabel="images a second", xscale="log", yscale="log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter() if _narrow(rows) else NullFormatter())
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _narrow(rows: list[dict[str, Any]]) -> bool:
    """Whether rates span less than a factor of ten, so that an axis may have no power of ten on it."""
    rates = [row["images_a_second"] for row in rows]
    return max(rates) < 10 * min(rates)


def check_plot(path: Path | None) -> None:
    """Raise InputError, before anything is measured, if a plot could not be drawn or written."""
    machine.check_output(path)
    if path is None:
        return
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(
            path, found=f"the ending {path.suffix!r}", expected=".png, .svg or .pdf", action="name such a file"
        )
    if find_spec("matplotlib") is None:
        raise InputError(
            "--plot",
            found="no matplotlib on this machine",
            expected="that it is installed: it draws the plot",
            action="install the extra: pip install 'bdflow[figures]'",
        )
