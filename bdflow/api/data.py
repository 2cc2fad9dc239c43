"""What bdflow does with datasets: simulate, fetch, look into, split. Heavy imports happen inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bdflow.api.studies import load_config, pipeline_of
from bdflow.errors import os_errors_named
from bdflow.user_paths import local_path

if TYPE_CHECKING:
    from bdflow.config import Config
    from bdflow.datasets.check import DatasetAccount
    from bdflow.datasets.nsd.download import Item
    from bdflow.simulation.dataset import SimulateOptions
    from bdflow.study.clusters import ClusterSplit

__all__ = [
    "check_dataset",
    "fetch_nsd",
    "simulate",
    "write_split",
]


@os_errors_named()
def simulate(
    root: str | Path,
    options: SimulateOptions | None = None,
    *,
    subjects: Sequence[str] = (),
    shared: int = 0,
    own: int = 0,
    seed: int = 0,
    imagery: bool = False,
) -> None:
    """Write a small dataset in exactly NSD's files, with a planted truth beside it.

    Parameters
    ----------
    root : directory to write.
    options : every size; or, instead of it, the usual ones:
    subjects : such as ("subj01",). shared, own : stimuli of the test set, and of each subject's training set.
    seed : of everything that is drawn. What is empty or 0 keeps its default. imagery : a session of NSD-Imagery too.

    Raises
    ------
    InputError : a size out of range, or both `options` and single sizes; another dataset at `root`.
    """
    from bdflow.simulation.dataset import chosen_options
    from bdflow.simulation.dataset import simulate as write

    write(local_path("root", root), chosen_options(options, tuple(subjects), shared, own, seed, imagery))


@os_errors_named()
def fetch_nsd(
    config: Config | str | Path,
    to: str | Path | None = None,
    *,
    subjects: Sequence[str] = (),
    source: str = "",
    accept_terms: bool | Callable[[str], bool] = False,
    only_list: bool = False,
) -> list[Item]:
    """Fetch the files of NSD that a configuration reads; return them, with their sizes in bytes.

    `subjects` : these alone; all by default.
    `accept_terms` may be a function that asks; with `only_list` nothing is fetched. Raises InputError.
    """
    from bdflow.datasets.nsd.download import SOURCE, command

    loaded = load_config(config) if isinstance(config, str | Path) else config
    loaded = loaded.of_subjects(subjects)
    return command(loaded, None if to is None else local_path("to", to), source or SOURCE, accept_terms, only_list)


@os_errors_named()
def check_dataset(config: Config | str | Path, *, subjects: Sequence[str] = ()) -> DatasetAccount:
    """What the dataset of a configuration holds: headers, tables and one session of each subject are read.

    `check_dataset(config).text()` is all of it for a screen. `subjects`: these alone; all of them by default.
    Raises InputError.
    """
    from bdflow.datasets.check import check_dataset as check

    loaded = load_config(config) if isinstance(config, str | Path) else config
    return check(loaded.of_subjects(subjects))


@os_errors_named()
def write_split(
    config: Config | str | Path, out: str | Path, *, space: str, clusters: int = 5, test: int = 0
) -> ClusterSplit:
    """Write a split by cluster, a JSON file for `dataset.split`: stimuli of one cluster are for testing, all others for
    training. Return what was written, with the `sizes` of the clusters in `about`.

    Parameters
    ----------
    out : the file; there must be none yet.
    space : target space whose latents, which must be made, are clustered by k-means.
    clusters, test : how many clusters; which is for testing, from 0, the largest first.

    Raises
    ------
    InputError : no such space or cluster, a file at `out`. NotReady : latents that are not made yet.
    """
    from bdflow.study.clusters import write_split as write

    return write(pipeline_of(config).context(), local_path("out", out), space, clusters, test)
