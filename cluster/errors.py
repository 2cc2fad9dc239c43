"""What can go wrong with the place where work runs (errors of the work itself keep their own type)."""

from bdflow.errors import BdflowError, counted


class ClusterError(BdflowError, RuntimeError):
    """The cluster cannot do what was asked: what was found, what was expected, its meaning and what to do."""


class WorkerLost(ClusterError):
    """Worker processes kept dying over one task, or while they started.

    Attributes
    ----------
    index : position of the task in the sequence given to `run`; None when workers died while starting.
    attempts : how many workers were lost over it.
    """

    def __init__(self, index: int | None, attempts: int, reason: str, log_hint: str) -> None:
        self.index, self.attempts, self.reason, self.log_hint = index, attempts, reason, log_hint
        super().__init__(
            "a worker process" if index is None else f"the worker process of task {index}",
            found=f"that it died {counted(attempts, 'time')} in a row"
            + (" while it started" if index is None else "")
            + f" (last: {reason})",
            expected="that at most some of the attempts are lost",
            meaning="Most likely it is the work itself: too little memory (the kernel's OOM killer, a memory limit) or "
            "a crash in native code.",
            action=f"look at {log_hint}; then ask for fewer workers, more memory or smaller tasks",
        )
