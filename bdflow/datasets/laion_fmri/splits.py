"""The splits that LAION-fMRI's package carries: a folder of JSON files, POOL/NAME.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping

from bdflow.datasets.contract import Split
from bdflow.datasets.formats.identity import missing
from bdflow.datasets.laion_fmri.layout import below
from bdflow.errors import InputError, counted, listed
from bdflow.stores.paths import AnyPath


class Splits(Mapping[str, Split]):
    """Splits by `POOL/NAME`, the names of folder and file; a file is read when its split is asked for.

    Raises
    ------
    NotAtHand : no such folder. InputError : no splits in it; from a split, a damaged file.
    """

    def __init__(self, folder: AnyPath) -> None:
        if not folder.is_dir():
            raise missing(folder, "a folder of splits, POOL/NAME.json")
        files = below(folder, "*/*.json")
        self.files = {f"{path.parent.name}/{path.name.removesuffix('.json')}": path for path in files}
        if not self.files:
            raise InputError(
                folder,
                found="no file POOL/NAME.json",
                expected="the splits of LAION-fMRI's package, such as shared/tau.json",
                action="name in `dataset.options.splits` the folder `splits/data` of that package, or a copy of it",
            )

    def __getitem__(self, name: str) -> Split:
        return read_split(self.files[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def read_split(path: AnyPath) -> Split:
    """A split. Names in it that no table has, or that were never shown, stay in it.

    Raises
    ------
    InputError : no JSON; another number of variants than one; names that are no text, twice, or in both parts; no
        name in a part; other numbers of names than the file itself says.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except ValueError as error:
        raise _damaged(path, f"no JSON that can be read ({error})", "a split of LAION-fMRI's package") from error
    variants = content.get("variants") if isinstance(content, dict) else None
    if not isinstance(variants, list) or len(variants) != 1 or not isinstance(variants[0], dict):
        found = counted(len(variants), "variant") if isinstance(variants, list) else "no list `variants`"
        raise _damaged(path, found, "one variant, an object with `train_ids` and `test_ids`")
    train, test = (_names(path, content, variants[0], part) for part in ("train", "test"))
    if train & test:
        found = f"{counted(len(train & test), 'name')} in both parts: {listed(sorted(train & test))}"
        raise _damaged(path, found, "each name in train_ids or in test_ids")
    return Split(test, train)


def _names(path: AnyPath, content: dict[str, object], variant: dict[str, object], part: str) -> frozenset[str]:
    names = variant.get(f"{part}_ids")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        found = "an empty list" if names == [] else "no list of text"
        raise _damaged(f"{path}, {part}_ids", found, "names of stimuli")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise _damaged(f"{path}, {part}_ids", f"{twice[0]!r} twice", "each name once")
    said = content.get(f"n_{part}", len(names))
    if said != len(names):
        raise _damaged(f"{path}, {part}_ids", counted(len(names), "name"), f"{said}, as the file's n_{part} says")
    return frozenset(names)


def _damaged(where: object, found: str, expected: str) -> InputError:
    return InputError(where, found=found, expected=expected, action="take the file from the dataset's package again")
