"""Functions in a child of this process, as another user."""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534


def let_in(folder: Path) -> None:
    """Let other users into a temporary folder of pytest, whose parents it closes to them (popen: of pytest-xdist)."""
    for parent in (folder, *folder.parents):
        if parent == folder or parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o755)


def as_other_user(work: Callable[[], int]) -> tuple[int, str]:
    """What `work` returns in a forked child without root's rights, and all that it printed."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                for descriptor in (1, 2):
                    os.dup2(said.fileno(), descriptor)
                sys.stdout = sys.stderr = os.fdopen(1, "w", encoding="utf-8", buffering=1, closefd=False)
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                for name in ("XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
                    os.environ.pop(name, None)
                os.environ["HOME"] = "/nonexistent"
                code = work()
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read().decode()
