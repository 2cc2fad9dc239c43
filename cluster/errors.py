"""What can go wrong with the place where work runs (errors of the work itself keep their own type)."""


class ClusterError(RuntimeError):
    """The cluster cannot do what was asked: what was found, what was expected, its meaning and what to do."""


class WorkerLost(ClusterError):
    """Worker processes kept dying over one task, or while they started.

    Attributes
    ----------
    index : position of the task in the sequence given to `run`; None when workers died while starting.
    attempts : how many workers were lost over it.
    """

    def __init__(self, index: int | None, attempts: int, reason: str, look_at: str) -> None:
        self.index, self.attempts, self.reason, self.look_at = index, attempts, reason, look_at
        where = "while it started" if index is None else f"while it worked on task {index}"
        super().__init__(
            f"A worker process died {where}, {attempts} times in a row (last: {reason}).\n"
            "Expected: at most some of the attempts are lost; so this is most likely the work itself: "
            "too little memory (the kernel's OOM killer, a memory limit) or a crash in native code.\n"
            f"What to do: look at {look_at}; then ask for fewer workers, more memory or smaller tasks."
        )

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return type(self), (self.index, self.attempts, self.reason, self.look_at)
