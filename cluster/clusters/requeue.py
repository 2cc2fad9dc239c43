"""The first process of a batch job: `python -m bdflow.cluster.clusters.requeue COMMAND ...` runs the command.

When SLURM says that the time limit is near (by SIGUSR1, asked for with `--signal=B:USR1@300`), it stops the command
cleanly and has the job requeued. SIGTERM, from `scancel`, stops the command and nothing more.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

RESTARTS = 200  # a job that never ends is not requeued for ever
STOP_TIMEOUT = 240.0  # seconds until a command that does not stop is killed


def main(command: Sequence[str]) -> int:
    """Run the command; returns its exit code, unless the job is requeued, which ends this process."""
    child: subprocess.Popen[bytes] | None = None
    told: list[int] = []

    def tell(number: int, frame: object) -> None:
        told.append(number)
        if child is not None:
            child.terminate()

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, tell)
    child = subprocess.Popen(command)
    if told:
        child.terminate()
    code = _wait(child, told)
    return code if not code or signal.SIGUSR1 not in told else _requeue(code)


def _wait(child: subprocess.Popen[bytes], told: Sequence[int]) -> int:
    since = None
    while True:
        try:
            return child.wait(1.0)
        except subprocess.TimeoutExpired:
            since = since or (time.monotonic() if told else None)
            if since is not None and time.monotonic() - since > STOP_TIMEOUT:
                child.kill()


def _requeue(code: int) -> int:
    job, restarts = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if job is None:
        print("No SLURM_JOB_ID: this is no job, and nothing can be requeued.", file=sys.stderr, flush=True)
        return code
    if restarts >= RESTARTS:
        print(f"Requeued {restarts} times; expected the work to be done by then.", file=sys.stderr, flush=True)
        return code
    print(f"Near the time limit: stopped, requeued (restart {restarts + 1}).", file=sys.stderr, flush=True)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    done = subprocess.run(
        ["scontrol", "requeue", job], capture_output=True, check=False, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        words = (
            f"Job {job} could not be requeued ({done.stderr.strip()}); submit it again, it goes on where it stopped."
        )
        print(words, file=sys.stderr, flush=True)
        return code
    time.sleep(120)  # SLURM ends this process
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
