"""The lowest versions that pyproject.toml promises, a line each: what `make` installs beside the newest.

    python tests/support/lowest.py

torch is left out: its old builds are large, and its version is that of constraints.txt.
"""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def lowest() -> dict[str, str]:
    """Version by name of every dependency that is not optional.

    Raises ValueError for a dependency without a lowest version.
    """
    found = {}
    for line in tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]:
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", line)
        if match is None:
            raise ValueError(f"{line}: expected NAME>=VERSION")
        found[match[1]] = match[2]
    return found


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in lowest().items() if name != "torch"))
