"""What a cluster on this machine needs outside its process while it works: a folder, and names for semaphores.

Both carry the name of their owner, so that the next run of the same owner can sweep what a killed one left. Only one
run of an owner may go on at a time: `sweep` takes everything of that name.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import process
from multiprocessing.synchronize import SemLock
from pathlib import Path
from typing import Any

SEMAPHORES = Path("/dev/shm")


@dataclass(frozen=True)
class Scratch:
    """Where scratch goes, and whose it is.

    Attributes
    ----------
    name : begins the name of all of it.
    folder : where folders are made; None: where temporary files go.
    """

    name: str
    folder: Path | None = None

    @classmethod
    def of(cls, owner: str, folder: Path | None = None) -> Scratch:
        """That of an owner, such as a place."""
        return cls(f"bdflow-{hashlib.blake2b(owner.encode(), digest_size=6).hexdigest()}", folder)

    @property
    def _where(self) -> Path:
        return self.folder or Path(tempfile.gettempdir())

    def make(self) -> Path:
        """A new folder."""
        self._where.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=self._where))

    def remove(self, made: Path) -> None:
        """Remove a folder that `make` made, and those above that it was made in, as far as they are empty."""
        shutil.rmtree(made, ignore_errors=True)
        self._remove_empty()

    def sweep(self) -> None:
        """Remove what runs of this owner left that are dead."""
        for left in self._where.glob(f"{self.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in SEMAPHORES.glob(f"sem.{self.name}-*"):
            left.unlink(missing_ok=True)
        self._remove_empty()

    def _remove_empty(self) -> None:
        if self.folder is not None:
            with contextlib.suppress(OSError):
                self.folder.rmdir()
                self.folder.parent.rmdir()

    @contextlib.contextmanager
    def named_semaphores(self) -> Iterator[None]:
        """Have semaphores of this process, and of those it starts, carry the name.

        Python reads the beginning of the name in the process's configuration, which children inherit. Libraries put
        another way of naming in its place for the whole process (joblib, and all that imports it): it steps aside.
        """
        config: dict[str, str] = process.current_process()._config  # type: ignore[attr-defined]
        prefix, naming = config["semprefix"], vars(SemLock)["_make_name"]
        ours = staticmethod(_name_by_configuration)
        config["semprefix"] = f"/{self.name}"
        SemLock._make_name = ours  # type: ignore[attr-defined]
        try:
            yield
        finally:
            config["semprefix"] = prefix
            if vars(SemLock)["_make_name"] is ours:
                SemLock._make_name = naming  # type: ignore[attr-defined]


def _name_by_configuration() -> str:
    current: Any = process.current_process()
    return f"{current._config['semprefix']}-{next(SemLock._rand)}"  # type: ignore[attr-defined]


def nobody() -> Scratch:
    """Of a cluster without an owner: in the temporary folder, and swept by nobody."""
    return Scratch("bdflow")
