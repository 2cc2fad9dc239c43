"""The one small interface behind which work runs, and the door to its three kinds: serial, Dask, Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from cluster.line import Phased
from cluster.meter import NOTHING, Used

if TYPE_CHECKING:
    from cluster.on_slurm import Slurm

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
    is what it cost the last of them.
    """

    index: int
    result: Any
    seconds: float
    worker: str
    attempts: int
    used: Used = NOTHING


OnDone = Callable[[Completed], None]


class Executor(Protocol):
    """Runs tasks on worker processes. Open one with `open_executor`; it is its own context manager."""

    name: str

    def run(
        self,
        make_worker: Callable[[], Callable[[T], R] | Phased],
        tasks: Sequence[T],
        *,
        resources: Resources = DEFAULT,
        on_done: OnDone | None = None,
    ) -> None:
        """Call `make_worker` once in each process, and what it returns once with every task.

        Parameters
        ----------
        make_worker : picklable, without arguments; loads what is heavy and returns the callable, or an object of
            three phases (see `cluster.line.Phased`): then one task is worked on while the next is prepared and the
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

    def close(self) -> None:
        """Stop every process this executor started. May be called twice."""

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_executor(
    kind: Kind,
    *,
    address: str | None = None,
    slurm: Slurm | None = None,
    cuda: bool = False,
    total: Resources | None = None,
    attempts: int = 3,
    start_timeout: float = 60.0,
    dashboard: str | None = None,
    announce: Callable[[str], None] | None = None,
) -> Executor:
    """An executor of a kind. Nothing is started before its first `run`.

    Parameters
    ----------
    kind : "serial" (in this process), "dask" or "ray".
    address : of a running Dask scheduler ("tcp://host:8786") or Ray head ("host:6379", "auto"); None starts
        an own cluster. At an address, Dask uses every worker that is there (one task at a time in
        each; phases overlap where a worker has three threads), Ray starts `resources.workers` actors.
    slurm : have SLURM start the own cluster's workers, as it says; None starts them on this machine.
    cuda : start Dask's workers that take a GPU with dask-cuda.
    total : the most a run may ask for: `workers`, `threads` in each of them, and `gpus` and `memory` in all.
        None: what this machine has (any number of workers and threads). Only for workers on this machine.
    attempts : workers that may be lost over one task before `WorkerLost`.
    start_timeout : seconds to wait for a first worker to turn up.
    dashboard : the address of this machine on which an own cluster shows its dashboard, on a free port
        ("127.0.0.1": to this machine alone). None: no dashboard.
    announce : called with a line that says where the dashboard is.

    Raises
    ------
    ValueError : an unknown kind, or arguments that contradict each other.
    """
    if attempts < 1:
        raise ValueError(f"attempts={attempts}: expected at least 1.")
    if address is not None and total is not None:
        raise ValueError(f"address={address!r} and total={total}: what is at an address it says itself.")
    if slurm is not None and (address is not None or total is not None):
        raise ValueError("slurm with an address or a total: expected one of them; SLURM says what it has.")
    if kind == "serial":
        if address is not None:
            raise ValueError(f"address={address!r}: the serial executor works in this process, it has none.")
        from cluster.serial import SerialExecutor

        return SerialExecutor(total=total)
    common: dict[str, Any] = {"address": address, "total": total, "attempts": attempts, "start_timeout": start_timeout}
    common |= {"slurm": slurm, "dashboard": dashboard, "announce": announce}
    if kind == "dask":
        from cluster.on_dask import DaskExecutor

        return DaskExecutor(**common, cuda=cuda)
    if kind == "ray":
        from cluster.on_ray import RayExecutor

        return RayExecutor(**common)
    raise ValueError(f"kind={kind!r}: expected 'serial', 'dask' or 'ray'.")
