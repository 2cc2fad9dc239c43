"""Stimuli of a prepared dataset: ids, pictures, captions, splits."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from bdflow.datasets.arrays.hierarchy import Group, Variable
from bdflow.datasets.arrays.opening import PAGE, refuse
from bdflow.datasets.contract import Split
from bdflow.datasets.formats.pictures import decode
from bdflow.errors import InputError, NotAtHand, counted, listed
from bdflow.stores.paths import AnyPath, RemotePath, place

PARTS = ("train", "test", "")
_ROWS = 1024  # read at once where all rows are looked through
_MOST_NAMED = 5


class Stimuli:
    """The stimuli of a prepared dataset.

    Parameters
    ----------
    root : the hierarchy, from which files of pictures are found.
    group : of the stimuli. splits : of the splits, if there are any.
    background : grey, 0 to 255, behind transparent pixels of files.
    """

    def __init__(self, root: AnyPath, group: Group, splits: Group | None, background: int) -> None:
        self._root, self._group, self._splits, self._background = root, group, splits, background

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Row of every stimulus, by id. Raises InputError for ids that are empty or stand there twice."""
        ids = self._group["stimulus"].text().tolist()
        found: dict[str, int] = {}
        twice: dict[str, str] = {}
        for row, stimulus in enumerate(ids):
            if found.setdefault(stimulus, row) != row:
                twice.setdefault(stimulus, f"{stimulus!r} in rows {found[stimulus]} and {row}")
        wrong = []
        if twice:
            wrong.append(
                f"stimulus: {counted(len(twice), 'id')} more than once ({listed(twice.values(), _MOST_NAMED)}); "
                "expected each once"
            )
        empty = [row for row, stimulus in enumerate(ids) if not stimulus.strip()]
        if empty:
            wrong.append(f"stimulus: no text in row {empty[0]}; expected an id")
        refuse(self._group.where, wrong)
        return found

    @cached_property
    def pictured(self) -> Sequence[str]:
        """Ids of stimuli that have a picture, in their order. Raises InputError if none has."""
        found = tuple(self.rows)
        if "image_file" in self._group:
            found = tuple(stimulus for stimulus, file in zip(self.rows, self._image_files, strict=True) if file)
        if not found:
            raise InputError(
                self._group["image_file"].where,
                found="no stimulus with a picture",
                expected="the path of a picture for one stimulus or more",
                action=f"write paths ({PAGE})",
            )
        return found

    @cached_property
    def _image_files(self) -> list[str]:
        found: list[str] = self._group["image_file"].text().tolist()
        return found

    def _rows_of(self, stimuli: Sequence[str]) -> np.ndarray:
        unknown = [stimulus for stimulus in stimuli if stimulus not in self.rows]
        if unknown:
            raise InputError(
                f"{self._group.where}, stimulus {unknown[0]!r}",
                found=f"no such id among the {len(self.rows):,}",
                expected="the id of a stimulus",
                action="correct the id, or write the stimulus into /stimuli",
            )
        return np.array([self.rows[stimulus] for stimulus in stimuli], np.int64)

    # --- pictures ---------------------------------------------------------------------------------------------

    def picture_shape(self) -> tuple[int, int]:
        """Height and width of the first picture."""
        if "image" in self._group:
            height, width = self._group["image"].shape[1:3]
            return height, width
        shape = self._picture(self.pictured[0]).shape
        return int(shape[0]), int(shape[1])

    def pictures(self, stimuli: Sequence[str]) -> Sequence[np.ndarray] | np.ndarray:
        """(y, x, 3) uint8 of each stimulus."""
        rows = self._rows_of(stimuli)
        if "image" in self._group:
            return _of_rows(self._group["image"], rows)
        return [self._picture(stimulus) for stimulus in stimuli]

    def _picture(self, stimulus: str) -> np.ndarray:
        path = self._picture_path(stimulus)
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise NotAtHand(
                path,
                found="nothing there",
                expected=f"the picture of stimulus {stimulus!r}",
                action=f"put the picture there, or correct its path in {self._group['image_file'].where}; a relative "
                f"path begins at {self._root}",
            ) from error
        except OSError as error:
            raise NotAtHand(
                path,
                found=f"a file that cannot be read ({error.strerror or error})",
                expected=f"the picture of stimulus {stimulus!r}",
                action="correct the path, or the rights of the file",
            ) from error
        return decode(content, f"{path}, the picture of stimulus {stimulus!r}", self._background)

    def _picture_path(self, stimulus: str) -> AnyPath:
        file = self._image_files[self.rows[stimulus]]
        if not file:
            raise InputError(
                f"{self._group['image_file'].where}, stimulus {stimulus!r}",
                found="no path of a picture",
                expected="a stimulus that has a picture",
                action="leave this stimulus out, or write the path of its picture",
            )
        if "://" in file:
            return place(file)
        if Path(file).is_absolute():
            return Path(file)
        if isinstance(self._root, RemotePath):
            inside = self._root.url.removeprefix(self._root.root).strip("/")
            return RemotePath(f"{self._root.root}/{posixpath.normpath(posixpath.join('/', inside, file)).lstrip('/')}")
        return self._root / file

    # --- captions ---------------------------------------------------------------------------------------------

    def captions(self, stimuli: Sequence[str]) -> list[list[str]]:
        """Captions of each stimulus, without blanks around them, unused ones left out."""
        rows = self._rows_of(stimuli)
        if "caption" not in self._group:
            return [[] for _ in stimuli]
        return [_used(texts) for texts in _of_rows(self._group["caption"], rows)]

    @cached_property
    def captions_per_stimulus(self) -> int:
        """The most captions that a stimulus has."""
        if "caption" not in self._group:
            return 0
        caption, most = self._group["caption"], 0
        for start in range(0, caption.shape[0], _ROWS):
            texts = caption.text(slice(start, min(start + _ROWS, caption.shape[0])))
            most = max(most, *(len(_used(row)) for row in texts))
        return most

    # --- splits -----------------------------------------------------------------------------------------------

    @cached_property
    def splits(self) -> dict[str, Split]:
        """Splits by name. Raises InputError naming all that is wrong with them."""
        if self._splits is None:
            return {}
        names, ids, parts = (self._splits[name].text().tolist() for name in ("split", "stimulus", "part"))
        wrong = [*_unfit_names("split", names), *_unfit_names("stimulus", ids)]
        unknown = [stimulus for stimulus in ids if stimulus not in self.rows]
        if unknown:
            wrong.append(
                f"stimulus: {counted(len(unknown), 'id')} that /stimuli does not have "
                f"({listed(map(repr, unknown), _MOST_NAMED)}); expected ids of /stimuli"
            )
        found = {}
        for name, row in zip(names, parts, strict=True):
            odd = next((at for at, part in enumerate(row) if part not in PARTS), None)
            if odd is not None:
                wrong.append(f"part: {row[odd]!r} of {ids[odd]!r} in {name!r}; expected train, test or empty text")
            split = {part: frozenset(ids[at] for at, of in enumerate(row) if of == part) for part in PARTS}
            wrong += [f"part: no stimulus of {name!r} is {part}" for part in ("train", "test") if not split[part]]
            found[name] = Split(test=split["test"], train=split["train"])
        refuse(self._splits.where, wrong)
        return found

    # --- files ------------------------------------------------------------------------------------------------

    def files(self) -> dict[str, AnyPath]:
        """Every file of stimuli and splits, by its path below the root, and of pictures, by their stimuli."""
        groups = [self._group] if self._splits is None else [self._group, self._splits]
        found: dict[str, AnyPath] = {
            f"{group.name}/{name}": group.folder / name for group in groups for name in group.files()
        }
        if "image_file" in self._group:
            found |= {f"picture of {stimulus}": self._picture_path(stimulus) for stimulus in self.pictured}
        return found


def _of_rows(variable: Variable, rows: np.ndarray) -> np.ndarray:
    """Rows of an array along its first axis, in this order, also repeated."""
    unique, inverse = np.unique(rows, return_inverse=True)
    if not unique.size:
        return np.zeros((0, *variable.shape[1:]), str if variable.dtype.kind in "TU" else variable.dtype)
    whole = unique[-1] - unique[0] + 1 == unique.size
    index = slice(int(unique[0]), int(unique[-1]) + 1) if whole else unique
    values = variable.text(index) if variable.dtype.kind in "TU" else variable.read(index)
    return values if np.array_equal(unique, rows) else values[inverse]


def _used(texts: np.ndarray) -> list[str]:
    return [text.strip() for text in texts.tolist() if text.strip()]


def _unfit_names(what: str, names: list[str]) -> Iterator[str]:
    seen: set[str] = set()
    twice = {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
    if twice:
        yield f"{what}: {listed(map(repr, sorted(twice)), _MOST_NAMED)} more than once; expected each once"
    if any(not name.strip() for name in names):
        yield f"{what}: an empty text; expected a name"
