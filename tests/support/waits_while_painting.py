"""The command `bdflow`, of which the first process that paints its second batch waits there until it is stopped.

What stops it may come when it will, such as a time limit of SLURM: it finds the run in the middle of its work, however
quick the machine is. Whoever waits says so by the file that $BDFLOW_TEST_WAITS names; where it exists nobody waits.
"""

import itertools
import os
import signal
import stat
import sys
from pathlib import Path

VARIABLE = "BDFLOW_TEST_WAITS"


def install(folder: Path) -> Path:
    """Write such a command below `folder`, which goes into PATH; returns the file that says that one waits."""
    command = folder / "bdflow"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "{Path(__file__).resolve()}" "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return folder / "waits"


def main() -> None:
    from bdflow.cli.main import main as bdflow
    from bdflow.models.versatile.painter import Painter

    waits, paint, batches = Path(os.environ[VARIABLE]), Painter.paint_prepared, itertools.count(1)

    def paint_or_wait(painter, inputs):
        if next(batches) == 2 and not waits.exists():
            waits.touch()
            while True:
                signal.pause()
        return paint(painter, inputs)

    Painter.paint_prepared = paint_or_wait
    bdflow()


if __name__ == "__main__":
    main()
