"""What bdflow does with directories of model weights. Heavy imports happen inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bdflow.errors import os_errors_named
from bdflow.user_paths import local_path

if TYPE_CHECKING:
    from bdflow.models.weights.bundle import BundleDescription, BundleReport

__all__ = [
    "check_bundle",
    "describe_bundle",
    "init_bundle",
]


@os_errors_named()
def init_bundle(folder: str | Path) -> Path:
    """Recognise published weights in a directory and write the manifest that makes it a bundle. Raises InputError."""
    from bdflow.models.weights.manifest import write_manifest

    return write_manifest(local_path("folder", folder))


def _bundle(bundle: str | Path) -> str | Path:
    return bundle if bundle == "tiny" else local_path("bundle", bundle)


@os_errors_named()
def check_bundle(bundle: str | Path) -> BundleReport:
    """Every missing, extra or misshapen tensor and every wrong file, at once."""
    from bdflow.models.weights.bundle import check_bundle as check

    return check(_bundle(bundle))


@os_errors_named()
def describe_bundle(bundle: str | Path) -> BundleDescription:
    """Files, sizes, parameters, dtypes and licence of every network. Raises InputError."""
    from bdflow.models.weights.bundle import describe_bundle as describe

    return describe(_bundle(bundle))
