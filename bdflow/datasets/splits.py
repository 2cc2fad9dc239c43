"""Which stimuli are for testing and which for training: splits of a dataset, and files of ids."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bdflow import npy
from bdflow.config import OF_DATASET
from bdflow.datasets.contract import Dataset, Numbered, Split
from bdflow.errors import InputError, NotAtHand, counted, listed

log = logging.getLogger(__name__)

SHARED = "shared"
"""The split whose test stimuli are those that several subjects of the dataset see."""


def read_split(setting: str, subjects: Sequence[str], dataset: Dataset) -> dict[str, Split]:
    """The split of `dataset.split`, for each subject.

    Parameters
    ----------
    setting : `dataset:NAME` for a split that comes with the dataset, where `{subject}` stands for the subject; or the
        path of a file: a `.json` with lists `test` (or `test_ids`) and, if not all others are for training, `train`
        (or `train_ids`); else the test stimuli alone, one id a line (`#` begins a comment), or a
        one-dimensional `.npy`.

    Stimuli of a JSON file that the dataset does not have are logged and count for nothing, since such files come with
    larger sets. A list of ids may name none: there it is most likely misspelt.

    Raises
    ------
    InputError : no such split; a file that is none; an id twice, in both parts, or (of a list) of no stimulus.
    """
    if setting.startswith(OF_DATASET):
        return {subject: _of_dataset(setting.removeprefix(OF_DATASET), subject, dataset) for subject in subjects}
    path = Path(setting)
    if not path.is_file():
        raise NotAtHand(
            path,
            found="no such file",
            expected=f"`{SHARED}`, `{OF_DATASET}NAME`, or a file of stimulus ids",
            action="correct `dataset.split`",
        )
    split = _of_json(path, dataset) if path.suffix == ".json" else Split(_of_list(path, dataset))
    return dict.fromkeys(subjects, split)


def digest_of(splits: Mapping[str, Split]) -> str:
    """Digest of the ids of a split, by subject."""
    content = [
        [subject, sorted(split.test), None if split.train is None else sorted(split.train)]
        for subject, split in sorted(splits.items())
    ]
    shared = content[0][1:] if all(part[1:] == content[0][1:] for part in content) else content
    return hashlib.blake2b(json.dumps(shared).encode(), digest_size=16).hexdigest()


def _of_dataset(name: str, subject: str, dataset: Dataset) -> Split:
    splits, wanted = dataset.splits(), name.replace("{subject}", subject)
    if wanted not in splits:
        raise InputError(
            f"dataset.split {OF_DATASET}{name}",
            found=f"no split {wanted!r}",
            expected="one of " + (listed(sorted(splits), 24) or "none, since this dataset comes without splits"),
            action=f"correct the name, or use `{SHARED}` or a file of stimulus ids",
        )
    return splits[wanted]


def _of_json(path: Path, dataset: Dataset) -> Split:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise _no_split(path, f"no JSON that can be read ({error})") from error
    if not isinstance(content, dict):
        raise _no_split(path, f"a {type(content).__name__}")
    if isinstance(content.get("variants"), list) and content["variants"] and isinstance(content["variants"][0], dict):
        content = content["variants"][0]
    parts = {part: content.get(part, content.get(f"{part}_ids")) for part in ("test", "train")}
    for part, ids in parts.items():
        listed_ids = isinstance(ids, list) and all(isinstance(one, str) for one in ids)
        if not listed_ids and not (part == "train" and ids is None):
            raise _no_split(path, f"`{part}` that is no list of texts")
    test = _once(path, parts["test"] or [])
    train = None if parts["train"] is None else _once(path, parts["train"])
    if train is not None and (both := test & train):
        raise _no_split(path, f"{counted(len(both), 'id')} in both parts, such as {min(both)!r}")
    known = frozenset(dataset.stimuli())
    absent = (test | (train or frozenset())) - known
    if absent:
        log.info(
            "%s: %s of stimuli that this dataset does not have count for nothing.", path, counted(len(absent), "id")
        )
    return Split(test & known, None if train is None else train & known)


def _of_list(path: Path, dataset: Dataset) -> frozenset[str]:
    known = frozenset(dataset.stimuli())
    numbered = dataset if isinstance(dataset, Numbered) else None
    try:
        if path.suffix == ".npy":
            values = npy.load(path)
            if values.ndim != 1 or values.dtype.kind not in ("U", *(("i", "u") if numbered is not None else ())):
                raise ValueError(f"{values.dtype} of shape {values.shape}")
            lines = [str(value) for value in values.tolist()]
        else:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
            lines = [line if line in known else re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]
            lines = [line for line in lines if line]
    except (OSError, ValueError) as error:
        raise _no_split(path, f"no readable list ({error})") from error
    if numbered is not None:
        lines = [numbered.stimulus_of(int(line)) if _is_number(line) else line for line in lines]
    found = _once(path, lines)
    absent = found - known
    if absent or not found:
        raise _no_split(
            path, f"{counted(len(absent), 'id')} of no stimulus, such as {min(absent)!r}" if absent else "no ids"
        )
    return found


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\+?[0-9]{1,18}", text) is not None


def _once(path: Path, ids: Iterable[str]) -> frozenset[str]:
    ids = list(ids)
    found = frozenset(ids)
    if len(found) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise _no_split(path, f"the id {twice!r} twice")
    return found


def _no_split(path: Path, found: str) -> InputError:
    return InputError(
        path,
        found=found,
        expected="different ids of stimuli: one a line, a one-dimensional .npy, or a .json with `test` and `train`",
        meaning="These are the test stimuli.",
        action="correct the file, or `dataset.split`",
    )
