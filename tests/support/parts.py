"""Stores of stimuli, in parts, read as one."""

from pathlib import Path

from bdflow.stores import Store, Study
from bdflow.study.parts import Joined


def whole(study: str | Path, path: str) -> Joined:
    """Every part below `path` (`stimuli`, `targets/vdvae`), the shared one first."""
    found = [key for key in Study(study).paths() if key.rpartition("/")[0] == path]
    return Joined([Store(study, key) for key in sorted(found, key=lambda key: (not key.endswith("/shared"), key))])
