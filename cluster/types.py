"""The one small interface behind which work runs, and what it is asked with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bdflow import user_paths
from bdflow.cluster.hardware import UNKNOWN, MadeOn
from bdflow.cluster.phases import Phased
from bdflow.cluster.usage import NOTHING, Used

T = TypeVar("T")
R = TypeVar("R")
Kind = Literal["serial", "dask", "ray"]


@dataclass(frozen=True)
class Resources:
    """What a run asks for.

    Parameters
    ----------
    workers : processes.
    threads : BLAS, OpenMP and torch threads inside each worker.
    gpus : per worker; with Ray a fraction shares a GPU.
    memory : bytes per worker; None = unlimited. Dask restarts a worker that exceeds it, Ray budgets with it.

    Raises
    ------
    ValueError : a number below its least.
    """

    workers: int = 1
    threads: int = 1
    gpus: float = 0.0
    memory: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("threads", 1), ("gpus", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"Resources({name}={getattr(self, name)}): expected at least {least}.")
        if self.memory is not None and self.memory < 1:
            raise ValueError(f"Resources(memory={self.memory}): expected bytes, or None for no limit.")


DEFAULT = Resources()


@dataclass(frozen=True)
class Completed:
    """One finished task.

    `index` is its position in the sequence, `seconds` what the worker took for it (with phases: for all three, waiting
    left out), `worker` is "host:pid", `attempts` counts the workers that tried (1 = the first one finished it), `used`
    is what it cost the last of them, `made_on` what that one computed with.
    """

    index: int
    result: Any
    seconds: float
    worker: str
    attempts: int
    used: Used = NOTHING
    made_on: MadeOn = UNKNOWN


def _local(value: object) -> object:
    if not isinstance(value, (str, Path)):
        raise ValueError("expected text; a name that looks like a number goes in quotes")
    return Path(user_paths.local(value))


class SlurmSettings(BaseModel):
    """How SLURM is asked for workers, as `sbatch` takes it; each worker is a job of the size its stage asks for.

    Parameters
    ----------
    partition, account : as `sbatch` takes them; None is the site's default.
    time : limit of a worker's job, as `sbatch` takes it. A job that reaches it is replaced.
    options : further `sbatch` options, such as "--constraint=a100".
    setup : shell lines before a worker starts, such as "module load cuda".
    logs : directory for what jobs print, on a file system that the nodes share.
    host : name or address of this machine as the nodes reach it; None: its address on the default route.

    Raises
    ------
    pydantic.ValidationError (a ValueError) : an unknown name, or a value of another form.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    partition: str | None = None
    account: str | None = None
    time: Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d+){0,2}$")] = "01:00:00"
    options: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    logs: Annotated[Path, BeforeValidator(_local)] = Path("slurm-logs")
    host: str | None = None

    def job_options(self) -> list[str]:
        """The options of `sbatch` that say where and how long, for a new job."""
        named = (("--partition", self.partition), ("--account", self.account), ("--time", self.time))
        return [*(f"{key}={value}" for key, value in named if value), *self.options]


OnDone = Callable[[Completed], None]
Worker = Callable[[T], R] | Phased[T, Any, Any, R]
"""What `make_worker` returns: a callable, or an object of three phases."""


class Executor(Protocol):
    """Runs tasks on worker processes. Open one with `open_executor`; it is its own context manager."""

    name: str

    def run(
        self,
        make_worker: Callable[[], Worker[T, R]],
        tasks: Sequence[T],
        *,
        resources: Resources = DEFAULT,
        on_done: OnDone | None = None,
    ) -> None:
        """Call `make_worker` once in each process, and what it returns once with every task.

        Parameters
        ----------
        make_worker : picklable, without arguments; loads what is heavy and returns the callable, or an object of
            three phases (see `bdflow.cluster.Phased`): then one task is worked on while the next is prepared and the
            last one finished.
        tasks : a sequence, read lazily (a task is fetched when a worker is about to be free for it); at most
            two a worker are in flight, three of phases. Results are small: they travel to the driver.
        on_done : called in the driver with each `Completed`, in order of completion.

        Raises
        ------
        ClusterError : more is asked for than there is, or no worker turns up in time.
        WorkerLost : worker processes died over the same task as often as attempts are allowed.
        Exception : whatever `make_worker` or a task raised, with its type and attributes; the remote
            traceback is a note on it. Nothing is tried again, running work is stopped.
        KeyboardInterrupt : after Ctrl-C, when everything that ran has been closed.
        """

    def check(self, resources: Resources) -> None:
        """Refuse what a run with these resources could never get. Starts no worker; at an address it connects.

        Raises
        ------
        ClusterError : naming what was asked for and what there is.
        """

    def rest(self) -> None:
        """Another executor works now: give back what idle workers hold that others may want. A later `run` goes on."""

    def close(self) -> None:
        """Stop every process this executor started. May be called twice."""

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
