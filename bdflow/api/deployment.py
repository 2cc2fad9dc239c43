"""Deployment files for clusters. Heavy imports happen inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bdflow.api.studies import load_config
from bdflow.errors import os_errors_named
from bdflow.user_paths import local_path

if TYPE_CHECKING:
    from bdflow.config import Config

__all__ = ["deploy"]


@os_errors_named()
def deploy(
    kind: str,
    folder: str | Path,
    config: Config | str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    image: str = "",
) -> list[Path]:
    """Write batch scripts of SLURM (`slurm`) or manifests of Kubernetes (`kubernetes`) into a new folder; return them.

    Parameters
    ----------
    config : whose partition, account, set-up lines, subjects and numbers of workers are filled in; None: as they ship.
    image : of Kubernetes' pods; `bdflow:VERSION` by default.

    Raises
    ------
    InputError : another kind, something at `folder`, a configuration that cannot be used.
    """
    from bdflow.export import deployment

    loaded = load_config(config, overrides) if isinstance(config, str | Path) else config
    return deployment.write(kind, local_path("folder", folder), loaded, image=image)
