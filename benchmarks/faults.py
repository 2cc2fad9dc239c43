"""Every fault in every stage, several times: the table of docs/reliability.md.

    python -m bdflow.benchmarks.faults --times 3 [--only WORDS] [--stage STAGE]

Needs a checkout, the tests' packages, and root for the small disk. Prints the table; exit code 1 if any outcome was
not right.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bdflow.errors import InputError
from bdflow.simulation.dataset import simulate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--only", default="", help="faults whose name has these words")
    parser.add_argument("--stage", default="", help="this stage alone")
    chosen = parser.parse_args()
    if find_spec("tests") is None:
        raise InputError(
            "tests",
            found="no folder of that name where Python looks",
            expected="bdflow's tests, which make the faults",
            action="run this in the folder of a checkout of bdflow",
        )
    from tests.conftest import SMALL, execution, small_settings, snapshot
    from tests.support.faults import FAULTS, Ground

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        simulate(root / "nsd", SMALL)

        def settings(place: Path, **sections: Any) -> dict[str, Any]:
            return small_settings(root / "nsd", place, **sections)

        plain = Ground(root / "plain", settings, {}, random.Random(0))
        plain.folder.mkdir()
        plain.configure(execution=execution("serial"))
        plain.run()
        expected = snapshot(plain.study)
        print("| fault | stage | tried | same bytes in the end | seconds a try |\n|---|---|---|---|---|", flush=True)
        failed = 0
        for name, (fault, stages) in FAULTS.items():
            if chosen.only not in name:
                continue
            for stage in (stage for stage in stages if chosen.stage in ("", stage)):
                good, start = 0, time.perf_counter()
                for number in range(chosen.times):
                    place = root / f"{fault.__name__}-{stage}-{number}"
                    place.mkdir()
                    try:
                        fault(Ground(place, settings, expected, random.Random(f"{stage}{number}")), stage)
                        good += 1
                    except AssertionError as error:
                        print(f"{name}, {stage}, try {number + 1}: {error}", file=sys.stderr, flush=True)
                failed += chosen.times - good
                seconds = (time.perf_counter() - start) / chosen.times
                print(f"| {name} | {stage} | {chosen.times} | {good} | {seconds:.0f} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
