"""The errors of bdflow, below one root: where, what was found, what was expected, what it means and what to do.

Also the few words that messages share: bounded lists, numbers with their noun, texts without credentials.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class BdflowError(Exception):
    """The root of all errors that bdflow raises itself. Pickles with all its attributes.

    Every error has all its parts; the text is made from them, in one form, without credentials, and of bounded length.

    Parameters
    ----------
    where : the file, key, store or trial it is about.
    found, expected : what stood there and what should have.
    action : what to do about it.
    meaning : what that means for the user, where it is not plain.
    remedy : what to do for programs, if there is a step of bdflow that helps: `run`, `run:STAGE`, `remake`,
        `remake:STAGE`, `repair`, `status`, `check-bundle` or `bench:NAME OPTIONS`. The command line makes it a command.
    """

    def __init__(
        self, where: object, *, found: str, expected: str, action: str, meaning: str = "", remedy: str = ""
    ) -> None:
        self.where, self.found, self.expected = _place(where), _part(found), _part(expected)
        self.meaning, self.action, self.remedy = _sentence(meaning), _sentence(action), remedy
        self._say()

    def _say(self) -> None:
        between = "\nExpected: " if "\n" in self.found else "; expected "
        first = f"{self.where}: found {self.found}{between}{self.expected}."
        self.message = "\n".join(line for line in (first, self.meaning, f"What to do: {self.action}") if line)
        self.args = (self.message,)

    @property
    def headline(self) -> str:
        """Where it is, what was found and what was expected, in one line."""
        return f"{self.where}: found {' '.join(self.found.split())}; expected {self.expected}."

    def inside(self, where: object) -> None:
        """Say before `where` in what it is."""
        self.where = f"{_place(where)}, {self.where}"
        self._say()

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class InputError(BdflowError, ValueError):
    """Bad input: a file, a key of the configuration or a trial that cannot be used."""


_EXPECTED = {
    errno.ENOENT: ("a file or a directory", "correct the path"),
    errno.ENOTDIR: ("directories up to its name", "correct the path: one of its folders is a file"),
    errno.EISDIR: ("a file", "correct the path, or move the directory away"),
    errno.EEXIST: ("nothing there, or a directory", "choose another path, or move what is there away"),
    errno.ENAMETOOLONG: ("a shorter name", "choose a shorter path"),
    errno.ELOOP: ("links that lead somewhere", "correct the path"),
    errno.ENOSPC: ("space on the device", "free some space, then run the same again: it goes on where it stopped"),
    errno.EDQUOT: ("space in this user's quota", "free some space, then run the same again"),
    errno.EFBIG: (
        "room for a file of this size",
        "raise the limit of file sizes (`ulimit -f`), or take another disk",
    ),
    errno.EMFILE: ("leave to open one more file", "raise the limit of open files (`ulimit -n`), or use fewer workers"),
    errno.ENFILE: ("leave to open one more file", "close other programs, or use fewer workers"),
    errno.EIO: ("a disk that answers", "look at the disk (`dmesg`), then run the same again"),
    errno.ESTALE: ("a network file system that answers", "have it mounted again, then run the same again"),
}
_RIGHTS = ("a place that this user may read, and write where results go", "correct its rights, or choose another place")
_OTHER = ("a file system that answers", "look at the file system, then run the same again")


@contextmanager
def os_errors_named() -> Iterator[None]:
    """Around what a user calls: what the operating system refuses about a file becomes an InputError that names it."""
    try:
        yield
    except OSError as error:
        named = os_error(error)
        if named is None:
            raise
        raise named from error


def os_error(error: OSError) -> InputError | None:
    """What the operating system refused, in words; None where neither a file nor a limit of the machine is meant.

    Writing to a file that is open already names no file: a full disk is then said of the place where results go.
    """
    rights = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    if error.filename is None and error.errno not in _EXPECTED and not rights:
        return None
    expected, action = _RIGHTS if rights else _EXPECTED.get(error.errno or 0, _OTHER)
    where = "a file that the system does not name" if error.filename is None else error.filename
    return InputError(
        os.fsdecode(where) if isinstance(where, bytes) else where,
        found=f"an error of the operating system ({error.strerror or error})",
        expected=expected,
        action=action,
    )


class NotAtHand(InputError):
    """An input file that is not there, or cannot be read. What was made from it before can be looked at without it."""


def _rebuild(kind: type[BdflowError], args: tuple[object, ...], state: dict[str, object]) -> BdflowError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


# --- words ------------------------------------------------------------------------------------------------------

MOST_LISTED = 8
_LONGEST_PART, _MOST_LINES = 2000, 24
_IN_URL = re.compile(r"(?<=://)[^/\s@'\"`]+@")
_SECRET = re.compile(r"(?i)((?:token|secret|password|signature|x-amz-credential|access_key_id)[\w-]*=)[^&\s'\"`]+")


def listed(items: Iterable[object], most: int = MOST_LISTED, *, joint: str = ", ") -> str:
    """Items one after another; past the first `most`, how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    every = [str(item) for item in items]
    return joint.join(every[:most]) + (f" and {len(every) - most:,} more" if len(every) > most else "")


def lines(items: Iterable[object], most: int = 16) -> str:
    """Items one a line, to stand after a colon; past the first `most`, how many more there are."""
    every = [str(item) for item in items]
    more = [f"and {len(every) - most:,} more"] if len(every) > most else []
    return "".join(f"\n  {item}" for item in [*every[:most], *more])


def counted(n: float, one: str, many: str = "") -> str:
    """A number and its noun: `1 file`, `2,000 files`, `0.5 GPUs`."""
    number = f"{int(n):,}" if n == int(n) else f"{n:g}"
    return f"{number} {one if n == 1 else many or one + 's'}"


def without_secrets(text: str) -> str:
    """A text without what gives access: names and passwords in URLs, and values of tokens and keys."""
    return _SECRET.sub(r"\1***", _IN_URL.sub("***@", text))


def _place(where: object) -> str:
    text = without_secrets(str(where))[:_LONGEST_PART]
    return f"'{text}'" if isinstance(where, os.PathLike) and any(c.isspace() for c in text) else text


def _part(text: str) -> str:
    """Without credentials, bounded, and without the full stop that the sentence around it has."""
    text = without_secrets(text).strip()
    if len(text) > _LONGEST_PART:
        text = text[:_LONGEST_PART] + f" ... ({len(text) - _LONGEST_PART:,} more characters)"
    every = text.split("\n")
    if len(every) > _MOST_LINES:
        text = "\n".join([*every[:_MOST_LINES], f"  and {len(every) - _MOST_LINES:,} more lines"])
    return text if text.endswith("..") else text.removesuffix(".")


def _sentence(text: str) -> str:
    text = without_secrets(text).strip()
    return text + "." if text and text[-1] not in ".?!" else text
