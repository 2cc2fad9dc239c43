"""The errors of bdflow, below one root: where, what was found, what was expected, what it means and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class BdflowError(Exception):
    """The root of all errors that bdflow raises itself. Pickles with all its attributes.

    Parameters
    ----------
    message : the whole text, where it does not fall into the parts below; else it is made from them.
    where : the file, key, store or trial it is about.
    found, expected : what stood there and what should have.
    meaning : what that means for the user (optional).
    action : what to do about it.
    remedy : the same for programs, if there is a step of bdflow that helps: `run`, `run:STAGE`, `remake`,
        `remake:STAGE`, `repair`, `status` or `check-bundle`. The command line translates it into a command.
    """

    def __init__(
        self,
        message: str = "",
        *,
        where: object = "",
        found: str = "",
        expected: str = "",
        meaning: str = "",
        action: str = "",
        remedy: str = "",
    ) -> None:
        self.where, self.found, self.expected = str(where), found, expected
        self.meaning, self.action, self.remedy = meaning, action, remedy
        if not message:
            lines = [f"{self.where}: found {found}; expected {expected}."]
            if meaning:
                lines.append(meaning)
            lines.append(f"What to do: {action}")
            message = "\n".join(lines)
        self.message = message
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class InputError(BdflowError, ValueError):
    """Bad input: a file, a key of the configuration or a trial that cannot be used."""

    def __init__(
        self, where: object, *, found: str, expected: str, action: str, meaning: str = "", remedy: str = ""
    ) -> None:
        super().__init__(where=where, found=found, expected=expected, meaning=meaning, action=action, remedy=remedy)


_EXPECTED = {
    errno.ENOENT: ("a file or a directory", "correct the path"),
    errno.ENOTDIR: ("directories up to its name", "correct the path: one of its folders is a file"),
    errno.EISDIR: ("a file", "correct the path, or move the directory away"),
    errno.EEXIST: ("nothing there, or a directory", "choose another path, or move what is there away"),
    errno.ENAMETOOLONG: ("a shorter name", "choose a shorter path"),
    errno.ELOOP: ("links that lead somewhere", "correct the path"),
    errno.ENOSPC: ("space on the device", "free some space, then run the same again: it goes on where it stopped"),
    errno.EDQUOT: ("space in this user's quota", "free some space, then run the same again"),
}
_RIGHTS = ("a place that this user may read, and write where results go", "correct its rights, or choose another place")


@contextmanager
def os_errors_named() -> Iterator[None]:
    """Around what a user calls: what the operating system refuses about a file becomes an InputError that names it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        rights = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        other = ("a file system that answers", "look at the file system, then run the same again")
        expected, action = _RIGHTS if rights else _EXPECTED.get(error.errno or 0, other)
        raise InputError(
            os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename,
            found=f"an error of the operating system ({error.strerror or error})",
            expected=expected,
            action=action,
        ) from error


class NotAtHand(InputError):
    """An input file that is not there, or cannot be read. What was made from it before can be looked at without it."""


def _rebuild(kind: type[BdflowError], args: tuple[object, ...], state: dict[str, object]) -> BdflowError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error
